"""The dashboard and the browsable description: what their files may and may not hold."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from sigma9_integrations.web.pages import FILES, FOLDER, SCRIPTS

if TYPE_CHECKING:
    from tests.integrations.web.conftest import Node


MODULES = tuple(f"{name}.js" for name in SCRIPTS if name != "docs")
"""The scripts of the dashboard."""


class Page(HTMLParser):
    """Collects tags, ids and labels of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def ids(self) -> set[str]:
        return {attributes["id"] or "" for _, attributes in self.tags if "id" in attributes}


def test_every_file_of_the_folder_is_served_and_the_other_way_round() -> None:
    """The table of pages and the folder name the same files."""
    assert {name for name, _ in FILES.values()} == {path.name for path in FOLDER.iterdir()}


async def test_pages_come_with_their_type_and_are_not_sent_twice(node: Node) -> None:
    """Each file has its content type, and a browser that has it gets 304."""
    async with node.http(None) as client:
        for path, (name, kind) in FILES.items():
            answer = await client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == kind
            assert answer.content == (FOLDER / name).read_bytes()
            again = await client.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for path in ("/static/", "/static/../pages.py", "/static/%2e%2e/pages.py", "/static/pages.py"):
            assert (await client.get(path)).status_code == 401


def test_pages_take_nothing_from_elsewhere_and_hold_no_inline_code() -> None:
    """Every link stays on this server, and nothing needs a hole in the content security policy."""
    for name in ("dashboard.html", "docs.html"):
        page = Page((FOLDER / name).read_text())
        for tag, attributes in page.tags:
            for attribute in ("src", "href", "action"):
                link = attributes.get(attribute)
                assert link is None or (link in FILES and not link.startswith("//")), link
            assert not [key for key in attributes if key.startswith("on") or key == "style"], tag
            assert tag != "style"
            assert tag != "script" or attributes.get("src")
    for name in ("dashboard.css", *MODULES, "docs.js"):
        text = (FOLDER / name).read_text()
        assert not re.search(r"https?://|@import|url\(", text), name


def test_scripts_write_text_and_never_markup() -> None:
    """What comes from outside can't become markup or code, and no token gets into an address or a cookie."""
    for name in (*MODULES, "docs.js"):
        text = (FOLDER / name).read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "new Function",
            "srcdoc",
        ):
            assert word not in text, (name, word)
        for word in ("localStorage", "document.cookie", "token=", "location.search", "location.hash"):
            assert word not in text, (name, word)
        assert '"use strict"' in text or "import " in text or "export " in text  # a module is always strict


def test_scripts_find_every_element_that_they_use() -> None:
    """Each id that a script asks for stands in its page."""
    for page_name, scripts in (("dashboard.html", MODULES), ("docs.html", ("docs.js",))):
        ids = Page((FOLDER / page_name).read_text()).ids()
        text = "".join((FOLDER / script).read_text() for script in scripts)
        used = set(re.findall(r'\$\("([a-z-]+)"\)', text)) | set(re.findall(r'note\("([a-z-]+)"', text))
        assert used
        assert used <= ids, used - ids


def test_pages_can_be_used_without_seeing_them() -> None:
    """Fields have labels, buttons a type, sections a heading, regions a name, and what changes a role."""
    for name in ("dashboard.html", "docs.html"):
        page = Page((FOLDER / name).read_text())
        ids = page.ids()
        labelled = {attributes.get("for") for tag, attributes in page.tags if tag == "label"}
        assert ("html", {"lang": "en"}) in page.tags
        for tag, attributes in page.tags:
            if tag in ("input", "select") and attributes["id"] not in ("level", "kinds"):  # inside of their labels
                assert attributes["id"] in labelled
            if tag == "button":
                assert attributes.get("type") in ("button", "submit")
            if tag in ("section", "dialog") or attributes.get("role") in ("region", "log", "tablist", "tabpanel"):
                assert attributes.get("aria-labelledby") in ids
            if tag == "th":
                assert attributes.get("scope") == "col"
            if tag == "img":
                assert "alt" in attributes
    dashboard = Page((FOLDER / "dashboard.html").read_text())
    roles = {attributes.get("id"): attributes.get("role") for _, attributes in dashboard.tags}
    assert (roles["connection"], roles["stale"], roles["killed"], roles["log"]) == (
        "status",
        "alert",
        "alert",
        "log",
    )
    assert "width=device-width" in (FOLDER / "dashboard.html").read_text()


def test_the_dashboard_uses_paths_that_exist() -> None:
    """Every address in the scripts is one that this server has."""
    from sigma9_core.commands import BUILT_IN
    from sigma9_integrations.web.reads import READS

    known = {read.path for read in READS} | {spec.alias.path for spec in BUILT_IN.values() if spec.alias}
    patterns = [re.sub(r"\{\w+\}", "X", path) for path in known]
    text = "".join((FOLDER / name).read_text() for name in MODULES)
    paths = {re.sub(r"\$\{[^}]*\}", "X", found) for found in re.findall(r'["`](/api/[^"`]*)["`]', text)}
    paths.discard("/api/X")  # the panels are read by name
    paths = {path.partition("?")[0] for path in paths}
    assert {"/api/kill-switch", "/api/events", "/api/risk/X/clear"} <= paths
    assert paths <= set(patterns), paths - set(patterns)
