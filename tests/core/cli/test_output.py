"""Rows and objects: tables, JSON, CSV."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import pytest

from sigma9_core.cli.output import cell, show_object, show_rows

ROWS = [
    {"symbol": "AAPL", "quantity": 5, "price": 1.25, "tags": ["a", "b"], "open": True, "note": None},
    {"symbol": "X\x1b[2J", "quantity": -10, "price": None, "tags": [], "open": False, "extra": {"k": 1}},
]


def test_plain_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Away from a terminal a table is plain: aligned, numbers to the right, nothing that moves a cursor."""
    show_rows(ROWS, ("symbol", "quantity", "price", "tags", "open"), "table")
    assert capsys.readouterr().out.splitlines() == [
        "symbol  quantity  price  tags  open",
        "AAPL           5   1.25  a, b  yes",
        "X [2J        -10      -  -     no",
    ]


def test_terminal_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it is a rich table with the same cells; markup in them stays text."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    show_rows([{"a": "[red]x[/red]", "b": 1}], ("a", "b"), "table")
    assert "[red]x[/red]" in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON is an array of whole rows."""
    show_rows(ROWS, ("symbol",), "json")
    assert json.loads(capsys.readouterr().out) == ROWS


def test_csv(capsys: pytest.CaptureFixture[str]) -> None:
    """CSV has the fields, whatever the rows have; lists are JSON, nothing is empty."""
    fields = ("symbol", "quantity", "price", "tags", "open", "note", "extra")
    show_rows(ROWS, ("symbol",), "csv", fields=fields)
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert found[0] == {
        "symbol": "AAPL",
        "quantity": "5",
        "price": "1.25",
        "tags": '["a", "b"]',
        "open": "true",
        "note": "",
        "extra": "",
    }
    assert found[1]["extra"] == '{"k": 1}'


def test_the_header_of_csv_is_always_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """A list without rows, with some, and one of a newer server with more fields have the same columns."""
    lists: list[list[dict[str, int]]] = [[], [{"b": 1}], [{"new": 1, "a": 2, "b": 3}]]
    for rows in lists:
        show_rows(rows, ("a",), "csv", fields=("a", "b"))
        assert capsys.readouterr().out.splitlines()[0] == "a,b"


def test_times(capsys: pytest.CaptureFixture[str]) -> None:
    """In a table a time is short, and its column says clock and zone; JSON and CSV have it as it is."""
    rows: list[dict[str, Any]] = [{"at": "2026-11-20T14:45:00.123456Z"}, {"at": None}]
    show_rows(rows, ("at",), "table", times={"at": "market time, UTC"})
    assert capsys.readouterr().out.splitlines() == ["at (market time, UTC)", "2026-11-20 14:45:00", "-"]
    show_rows(rows, ("at",), "csv", times={"at": "market time, UTC"})
    assert capsys.readouterr().out == 'at\n2026-11-20T14:45:00.123456Z\n""\n'


@pytest.mark.parametrize(("columns", "rich"), [("80", True), ("50", False)])
def test_nothing_is_cut_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, rich: bool
) -> None:
    """On a terminal that is too narrow for a table its lines go on below: ids and times stay whole."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", columns)
    row = {"id": "01M82M1NRV608X8S12PYT9CTTT", "at": "2026-11-20T14:45:00Z", "reasons": "a long text " * 9}
    show_rows([row], ("id", "at", "reasons"), "table", times={"at": "UTC"})
    out = capsys.readouterr().out
    assert ("─" in out) is rich
    assert "01M82M1NRV608X8S12PYT9CTTT" in out
    assert "2026-11-20 14:45:00" in out
    assert "…" not in out


@pytest.mark.parametrize(("form", "text"), [("table", "none here\n"), ("json", "[]\n"), ("csv", "a,b\n")])
def test_no_rows(capsys: pytest.CaptureFixture[str], form: str, text: str) -> None:
    """An empty list is a sentence, an empty array, or the header alone."""
    show_rows([], ("a", "b"), form, empty="none here")
    assert capsys.readouterr().out == text


def test_object(capsys: pytest.CaptureFixture[str]) -> None:
    """One object is aligned lines, or itself in JSON."""
    show_object({"a": 1}, "table", [("first", 1), ("second one", None)])
    assert capsys.readouterr().out == "first       1\nsecond one  -\n"
    show_object({"a": 1}, "json", [])
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_cells() -> None:
    """Values are written for a person."""
    assert [cell(value) for value in (None, True, 0.1 + 0.2, 1e6, (), ["x", 1], {"a": 1})] == [
        "-",
        "yes",
        "0.3",
        "1000000",
        "-",
        "x, 1",
        '{"a": 1}',
    ]
