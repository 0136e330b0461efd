"""The documentation against the code: what can be read off the code is never written from memory.

`python tests/core/test_docs.py` rewrites docs/settings.md and the table of commands in docs/mqtt.md.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Annotated, Final, Literal, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, StringConstraints
from pydantic.fields import FieldInfo

from sigma9_core.calendar import Calendar
from sigma9_core.clock import LiveClock
from sigma9_core.commands import BUILT_IN, CommandSpec, NoArgs
from sigma9_core.config import DEFAULT_RISK, PluginSettings, Settings
from sigma9_core.contracts import PluginContext, PluginKind, RiskRule, Scanner
from sigma9_core.models import Session, Slice, Trade, WatchlistItem
from sigma9_core.plugins import PluginHost
from sigma9_core.registry import Registration
from sigma9_plugins.brokers.paper import PaperConfig
from sigma9_plugins.feeds.replay import ReplayConfig
from sigma9_plugins.scanners.seismograph.config import SeismographConfig

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))

# --- docs/settings.md -----------------------------------------------------------------------------------------

KINDS: Final[Mapping[PluginKind, tuple[str, str]]] = {
    "scanner": ("Scanners", "`config` of an entry of `scanners`."),
    "risk": ("Risk rules", "`config` of an entry of `risk`, or `sigma9 risk set RULE KEY=VALUE` while it runs."),
    "sizer": ("Sizers", "`sizer.config`."),
    "broker": ("Brokers", "`plugins.settings.NAME`."),
    "feed": ("Feeds", "`plugins.settings.NAME`."),
    "notifier": ("Notifiers", "`config` of an entry of `notifiers`."),
}
"""The kinds of plugins with settings of their own: title, and where the settings go."""

MEANINGS: Final[Mapping[str, str]] = {
    "seismograph.watchlist_size": "How many symbols the scan lists at most.",
    "seismograph.trigger.double_tap.enabled": "Whether there is a re-entry at all.",
    "max_order_quantity.max_shares": "Shares of one order.",
    "max_order_value.max_percent_of_equity": "One order, in percent of the equity; null: no such limit.",
    "max_position.max_percent_of_equity": "One position with its working orders, in percent of the equity.",
    "order_rate.max_per_minute": "The same in any minute.",
    "price_collar.max_distance_percent": "How far an order's price may be from the reference, in percent of it.",
    "fixed_fraction.percent_of_equity": "The value of each entry in percent of the equity.",
    "kelly.cap_percent": "The most that the criterion may give, in percent of the equity.",
    "paper.commission_per_share": "What an order costs for each share that fills, in USD.",
    "console.trades": "Show the steps of orders.",
    "console.watchlist": "Show changes of the watchlist.",
    "console.kill_switch": "Show changes of the kill switch.",
}
"""What a setting means whose model says nothing; one that the model has come to explain is a fault."""

SHARED: Final[Mapping[str, str]] = {
    "seismograph.keep_priority": "seismograph.keep_score",
    "seismograph.universe.min_price": "seismograph.universe.max_price",
    "seismograph.universe.min_change": "seismograph.universe.max_change",
    "seismograph.universe.min_market_cap": "seismograph.universe.max_market_cap",
}
"""Settings that are explained together with another one."""

SETTINGS_HEAD: Final = (
    "# Settings of the built-in plugins\n\n"
    "Written by `python tests/core/test_docs.py` from the models; a test holds it to them. The keys of the server "
    "itself are in `server_config.yaml`, each with its default and its meaning.\n\n"
    "Each heading says where the keys of its plugins go; `plugins.settings.NAME` holds defaults for every "
    "instance of any plugin. A dot stands for a level: `universe.min_price` is `universe: {min_price: ...}`. An "
    "unknown key or a value that does not fit is named by `sigma9 config check`, with its line. Money is in the "
    "account's currency.\n"
)


def host() -> PluginHost:
    """Load what is installed."""
    found = PluginHost(PluginSettings())
    found.load()
    return found


def registrations(plugins: PluginHost, kind: PluginKind) -> list[Registration]:
    """Give the built-in plugins of a kind, the risk rules in the order of the default set."""
    mine = {
        name: entry
        for name, entry in sorted(plugins.factories(kind).items())
        if entry.plugin.module.startswith("sigma9_plugins.")
    }
    order = [entry.plugin for entry in DEFAULT_RISK] if kind == "risk" else []
    return [mine[name] for name in dict.fromkeys([*order, *mine]) if name in mine]


def settings_page() -> str:
    """Write docs/settings.md."""
    plugins = host()
    parts = [SETTINGS_HEAD]
    for kind, (title, where) in KINDS.items():
        parts.append(f"## {title}\n\n{where}\n")
        for entry in registrations(plugins, kind):
            rows = [
                f"| `{key}` | {shown(field)} | {values(field.annotation, field.metadata)} | {meaning} |"
                for key, field, meaning in settings_of(entry.name, entry.config)
            ]
            about = " ".join((inspect.getdoc(entry.plugin.loaded) or "").partition("\n\n")[0].split())
            table = (
                ["| key | default | value | meaning |", "|---|---|---|---|", *rows] if rows else ["No settings."]
            )
            parts.append(f"### {entry.name}\n\n{about}\n\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


def settings_of(plugin: str, model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo, str]]:
    """Give key, field and meaning of all settings of a plugin, those of inner models by a dotted key."""
    found = {f"{plugin}.{key}": (key, field, said) for key, field, said in _fields(model, "")}
    for path, (key, field, said) in found.items():
        meaning = said or MEANINGS.get(path) or found[SHARED[path]][2]
        yield key, field, meaning.replace("|", "\\|")


def _fields(model: type[BaseModel], before: str) -> Iterator[tuple[str, FieldInfo, str]]:
    said = docstrings(model)
    for name, field in model.model_fields.items():
        inner = field.annotation
        if inspect.isclass(inner) and issubclass(inner, BaseModel):
            yield from _fields(inner, f"{before}{name}.")
        else:
            yield f"{before}{field.alias or name}", field, said.get(name, "")


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Give the docstrings below a model's attributes, its parents' too, each in one line."""
    said: dict[str, str] = {}
    for owner in reversed([each for each in model.__mro__ if each.__module__.startswith("sigma9_plugins.")]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for above, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name):
                match below:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        said[above.target.id] = " ".join(text.split())
    return said


def shown(field: FieldInfo) -> str:
    """Write a default as YAML has it."""
    return "required" if field.is_required() else f"`{written(field.default)}`"


def written(value: object) -> str:
    """Write a value as YAML has it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.12g}"
        case AbstractSet():
            return f"[{', '.join(sorted(map(written, value)))}]"
        case tuple() | list():
            return f"[{', '.join(map(written, value))}]"
        case Mapping():
            return "{}" if not value else str(dict(value))
    return str(value)


NAMES: Final[Mapping[object, str]] = {
    bool: "true, false",
    int: "whole number",
    float: "number",
    Decimal: "number",
    str: "text",
    Path: "path",
    date: "date",
    datetime: "time",
    type(None): "null",
}


def values(annotation: object, metadata: Sequence[object] = ()) -> str:
    """Say in words which values a setting takes."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        more = chain.from_iterable(each.metadata if isinstance(each, FieldInfo) else [each] for each in inner[1:])
        return values(inner[0], [*more, *metadata])
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in inner)
    if origin in (Union, types.UnionType):
        return "; or ".join(values(each, metadata) for each in inner)
    if origin in (tuple, frozenset):
        return f"list of {values(inner[0])}"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"{values(inner[0])}: {values(inner[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return (
            "`{"
            + ", ".join(f"{key}: {values(each.annotation)}" for key, each in annotation.model_fields.items())
            + "}`"
        )
    return NAMES[annotation] + _bounds(metadata)


def _bounds(metadata: Sequence[object]) -> str:
    bounds = {
        name: written(getattr(each, name))
        for each in metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(each, name, None) is not None
    }
    clock = any(isinstance(each, StringConstraints) and "[0-5]" in str(each.pattern) for each in metadata)
    if "ge" in bounds and "le" in bounds:
        return f", {bounds['ge']} to {bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = [f"{word} {bounds[name]}" for name, word in words.items() if name in bounds]
    return ", " + ", ".join(said) if said else " `HH:MM`" if clock else ""


# --- the commands of docs/mqtt.md -----------------------------------------------------------------------------

COMMANDS_HEAD: Final = ("| command | what it does | arguments | right | plain word |", "|---|---|---|---|---|")


def commands_table() -> str:
    """Write the table of commands."""
    return "\n".join((*COMMANDS_HEAD, *map(command_row, BUILT_IN.values())))


def command_row(spec: CommandSpec) -> str:
    """Write one command; arguments that may be left out stand in brackets."""
    hidden = {"reason"} if issubclass(spec.args, NoArgs) else set()
    fields = {name: field for name, field in spec.args.model_fields.items() if name not in hidden}
    must = ", ".join(f"`{name}`" for name, field in fields.items() if field.is_required())
    may = ", ".join(f"`{name}`" for name, field in fields.items() if not field.is_required())
    arguments = " ".join(part for part in (must, f"[{may}]" if may else "") if part) or "-"
    if spec.needs_id:
        arguments = f"`id`, {arguments}"
    words = ", ".join(f"`{word}`" for word in sorted(spec.fixed_words)) or "-"
    if spec.word is not None:
        wanted = values(spec.args.model_fields[spec.word].annotation)
        words = wanted if wanted.startswith("`") else f"the `{spec.word}`"
    return f"| `{spec.name}` | {spec.summary} | {arguments} | {spec.right} | {words} |"


def with_commands(page: str) -> str:
    """Put the table of commands in the place of the one that a page has."""
    lines = page.split("\n")
    first = lines.index(COMMANDS_HEAD[0])
    last = next(at for at in range(first, len(lines) + 1) if at == len(lines) or not lines[at].startswith("|"))
    return "\n".join([*lines[:first], commands_table(), *lines[last:]])


# --- the promises ---------------------------------------------------------------------------------------------


def blocks(page: str, kind: str) -> list[str]:
    """Give the fenced blocks of a kind on a page."""
    return re.findall(
        rf"^```{kind}\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def test_settings_page() -> None:
    """docs/settings.md has the settings of every built-in plugin as the models have them."""
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == settings_page(), (
        "run `python tests/core/test_docs.py`"
    )


def test_settings_explained() -> None:
    """What the page adds to the models is about settings that there are and that the models do not explain."""
    plugins = host()
    bare = {
        f"{entry.name}.{key}"
        for kind in KINDS
        for entry in registrations(plugins, kind)
        for key, _, said in _fields(entry.config, "")
        if not said
    }
    assert bare == {*MEANINGS, *SHARED}


def test_commands() -> None:
    """docs/mqtt.md names every command with its arguments, its right and its plain words."""
    page = (DOCS / "mqtt.md").read_text(encoding="utf-8")
    for name, spec in BUILT_IN.items():
        assert re.search(rf"^\| `{name}` \|.*\| {spec.right} \|[^|]*\|$", page, re.MULTILINE), name
    assert with_commands(page) == page, "run `python tests/core/test_docs.py`"


@pytest.mark.parametrize(
    ("page", "models", "least"),
    [("strategy.md", (SeismographConfig,), 30), ("replay.md", (PaperConfig, ReplayConfig), 8)],
)
def test_defaults(page: str, models: tuple[type[BaseModel], ...], least: int) -> None:
    """A page that names a setting with its default, as `key: value`, names one that there is, and its default."""
    known = {key: written(field.default) for model in models for key, field, _ in _fields(model, "")}
    text = (DOCS / page).read_text(encoding="utf-8")
    told = re.findall(r"`(?:plugins\.settings\.\w+\.)?([a-z_.]+): ([^`]+)`", text)
    assert len(told) >= least
    assert [pair for pair in told if known.get(pair[0]) != pair[1]] == []


def test_links() -> None:
    """Every link from a page to a file leads to one."""
    dead = [
        (page.name, link)
        for page in PAGES
        for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert dead == []


def test_every_page_is_linked() -> None:
    """README.md leads to every page of docs/ that is written for users."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [
        page.name for page in PAGES[1:] if page.name != "journal.md" and f"docs/{page.name}" not in readme
    ] == []


# --- the examples of docs/plugins.md --------------------------------------------------------------------------


@pytest.fixture
def examples(tmp_path: Path) -> PluginHost:
    """Load the examples as a user does: as files of a folder of `plugins.paths`."""
    for name, text in zip(("small_orders", "movers"), blocks("plugins.md", "python"), strict=True):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    found = PluginHost(PluginSettings(paths=(tmp_path,)), entry_points=())
    found.load()
    assert [plugin.error for plugin in found.plugins()] == [None, None]
    return found


def build(plugins: PluginHost, kind: PluginKind, name: str) -> object:
    """Build an instance with its default settings."""
    entry = plugins.factories(kind)[name]
    context = PluginContext(name, Settings(), LiveClock(), Calendar("XNYS"), None)
    return entry.factory(entry.config(), context)


def test_example_rule(examples: PluginHost) -> None:
    """The risk rule of the page loads and is one."""
    assert isinstance(build(examples, "risk", "small_orders"), RiskRule)


def test_example_set_of_rules() -> None:
    """The page's `risk` runs the rule of the page and all the built-in ones."""
    (text,) = (text for text in blocks("plugins.md", "yaml") if "built_in" in text)
    names = [entry.plugin for entry in Settings.model_validate(yaml.safe_load(text)).risk]
    assert names == ["small_orders", *(entry.plugin for entry in DEFAULT_RISK)]


def test_example_scanner(examples: PluginHost) -> None:
    """The scanner of the page scores a rise, and its trigger buys once what goes on rising."""
    import polars as pl

    scanner: Scanner = build(examples, "scanner", "movers")  # type: ignore[assignment]
    days = [date(2026, 3, 2), date(2026, 3, 3)]
    bars = pl.DataFrame({"symbol": ["A", "A"], "ts": days, "close": [10.0, 10.5]})
    assert scanner.scan(bars.lazy()).collect()["score"].to_list() == [None, pytest.approx(50)]

    trigger = scanner.trigger()
    assert trigger is not None
    opens = datetime(2026, 3, 4, 14, 30, tzinfo=UTC)
    session = Session("2026-03-04", opens, opens + timedelta(hours=6.5))
    trigger.watch([WatchlistItem(symbol="A", strategies=("movers",), added_at=opens)], {})
    found = []
    for minute, price in enumerate((10.0, 10.04, 10.2, 10.4)):
        ts = opens + timedelta(minutes=minute)
        found.append(len(trigger.on_slice(Slice(ts, trades=(Trade("A", ts, price, 100.0),)), session)))
    assert found == [0, 0, 1, 0]


if __name__ == "__main__":
    (DOCS / "settings.md").write_text(settings_page(), encoding="utf-8")
    mqtt = DOCS / "mqtt.md"
    mqtt.write_text(with_commands(mqtt.read_text(encoding="utf-8")), encoding="utf-8")
