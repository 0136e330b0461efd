"""The phone panel: every tile reads what there is and sends what is taken."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest


def tables(text: str) -> list[list[dict[str, str]]]:
    """Read the tables of a page: rows by the names of their columns."""
    found: list[list[dict[str, str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


@pytest.fixture(name="page")
def _page(examples: Path) -> list[list[dict[str, str]]]:
    return tables((examples / "phone" / "README.md").read_text())


def test_every_tile_shows_something(page: Any, moments: Mapping[str, Any], contract: Any) -> None:
    """The topic of each tile is in the topic table, and its path leads somewhere in what is published there."""
    tiles = [row for table in page for row in table if "JSON path" in row]
    assert len(tiles) >= 12
    moment = moments["running"]
    for tile in tiles:
        topic = tile["topic"].strip("`")
        contract.check_filter(topic)
        if not tile["JSON path"] or "/response/" in topic:
            continue
        body = moment.events[topic][-1] if "/event/" in topic else json.loads(moment.retained(topic) or "null")
        for step in tile["JSON path"].strip("`").removeprefix("$.").split("."):
            assert step in body, f"{tile['tile']}: {tile['JSON path']}"
            body = body[step]
        assert isinstance(body, str | int | float), tile


def test_every_button_sends_a_command(page: Any, contract: Any) -> None:
    """An operator may send each, its arguments are valid, and what can't be undone asks first."""
    buttons = [row for table in page for row in table if "payload" in row]
    names = [row["topic"].strip("`").rpartition("/")[2] for row in buttons]
    assert "kill_switch" in names
    for name, row in zip(names, buttons, strict=True):
        contract.check_command(row["topic"].strip("`"), row["payload"].strip("`"))
        if name in ("kill_switch", "close_position", "start", "resume", "cancel_all"):
            assert row["confirmation"].startswith("yes"), name
