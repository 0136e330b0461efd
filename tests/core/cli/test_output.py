"""Rows and objects: tables, JSON, CSV."""

from __future__ import annotations

import csv
import io
import json
import sys

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
    """CSV has every key, in the order of the rows; lists are JSON, nothing is empty."""
    show_rows(ROWS, ("symbol",), "csv")
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
