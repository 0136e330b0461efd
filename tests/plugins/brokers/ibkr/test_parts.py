"""The parts by themselves: what all codes share, order ids on disk, lanes, numbers, times, the library's door."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sigma9_core.errors import BrokerError
from sigma9_plugins.brokers.ibkr import book as book_module
from sigma9_plugins.brokers.ibkr import library, recent
from sigma9_plugins.brokers.ibkr.accounts import choose
from sigma9_plugins.brokers.ibkr.book import Book, Known
from sigma9_plugins.brokers.ibkr.codes import TABLE, action, order_action, request_fails, says
from sigma9_plugins.brokers.ibkr.contracts import name_of
from sigma9_plugins.brokers.ibkr.executions import corrected_by
from sigma9_plugins.brokers.ibkr.figures import amount, price, quantity
from sigma9_plugins.brokers.ibkr.ids import BLOCK, CROWDED, FILE, HIGHEST, OrderNumbers
from sigma9_plugins.brokers.ibkr.lanes import Lanes
from sigma9_plugins.brokers.ibkr.mapping import moment_of
from sigma9_plugins.brokers.ibkr.reading import ended_as
from sigma9_plugins.brokers.ibkr.recent import KEPT, Recent

# --- codes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [*TABLE, 99_999])
def test_no_code_kills_an_order_that_was_acknowledged(number: int) -> None:
    """An acknowledged order dies by its status or a read-back alone."""
    for changing in (False, True):
        assert order_action(number, acknowledged=True, changing=changing) != "reject"


def test_unknown_codes() -> None:
    """An unknown code about an order is a doubt, about anything else it is logged; IB's warnings fail nothing."""
    assert order_action(99_999, acknowledged=False, changing=False) == "read_back"
    assert action(99_999) == "log"
    assert request_fails(99_999)
    assert request_fails(200)
    assert request_fails(321)
    assert not request_fails(2176)
    assert not request_fails(399)
    assert says(201, "Order\n rejected") == "Order rejected (code 201)"
    assert says(202, "") == f"{TABLE[202].text} (code 202)"


# --- order ids ------------------------------------------------------------------------------------------------


def test_order_ids_never_go_back(tmp_path: Path) -> None:
    """Over restarts of both sides the ids rise, whatever TWS says is free."""
    given: list[int] = []
    for told in (1, 500, 1, 1):
        numbers = OrderNumbers(tmp_path)
        numbers.begin(told)
        given += [numbers.next() for _ in range(3)]
        first = numbers.next(5)
        given += range(first, first + 5)

    assert given == sorted(set(given))
    assert given[8] >= 500


def test_order_ids_are_written_ahead(tmp_path: Path) -> None:
    """The mark on disk is never below an id that was given, also where a block is used up."""
    numbers = OrderNumbers(tmp_path)
    numbers.begin(1)
    low = False
    for _ in range(3 * BLOCK):
        given = numbers.next()
        low = low or numbers.runs_low
        assert json.loads((tmp_path / FILE).read_text())["next"] > given
    assert low


def test_order_ids_lie_above_what_is_heard_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What any order has is never given, nor an id below; above one that leaves no room none is, which is said."""
    numbers = OrderNumbers(tmp_path)
    numbers.begin(1)
    for number in (-3, 0, 8999, 12):
        numbers.heard(number)
    assert numbers.next() == 9000
    for number in (CROWDED, HIGHEST, HIGHEST + 5):
        numbers.heard(number)
    assert numbers.next() == 9001
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    again = OrderNumbers(tmp_path)
    again.begin(1)
    assert again.next() > 9001


@pytest.mark.parametrize("text", ["", "{}", '{"next": "x"}', '{"next": -4}', "[1]"])
def test_a_mark_that_is_no_mark(tmp_path: Path, text: str) -> None:
    """What can't be read is said, and TWS's own number counts."""
    (tmp_path / FILE).write_text(text)
    numbers = OrderNumbers(tmp_path)
    numbers.begin(7)

    assert numbers.next() == 7


def test_a_disk_that_fails_stops_no_order(tmp_path: Path) -> None:
    """Ids go on without their mark, and without a folder there is none."""
    for numbers in (OrderNumbers(tmp_path / "missing"), OrderNumbers(None)):
        numbers.begin(3)
        assert [numbers.next() for _ in range(2 * BLOCK)] == [*range(3, 3 + 2 * BLOCK)]


# --- lanes ----------------------------------------------------------------------------------------------------


async def test_lanes_keep_room_for_what_is_urgent() -> None:
    """Entries get a part of the rate, cancels what is left of it; a parcel leaves whole, or not at all."""
    lanes, left = Lanes(20), list[str]()

    def put(lane: Any, name: str, messages: int = 1) -> Any:
        return lanes.put(lane, messages, lambda: left.append(name))

    first = put("orders", "bracket", 5)
    waits = put("orders", "next bracket", 3)
    put("orders", "behind it")
    for number in range(5):
        put("questions", f"question {number}")
    for number in range(11):
        put("urgent", f"cancel {number}")
    cancels = [f"cancel {number}" for number in range(11)]
    assert left == ["bracket", *(f"question {number}" for number in range(4)), *cancels]
    last = put("urgent", "one cancel too many")

    assert (first.left, waits.left, last.left) == (True, False, False)
    assert not lanes.drop(first)
    assert lanes.drop(waits)
    assert not lanes.drop(waits)
    await asyncio.sleep(1.05)
    assert left[16:] == ["one cancel too many", "behind it", "question 4"]
    lanes.clear()
    assert lanes.waiting == 0


async def test_lanes_let_exits_pass_entries() -> None:
    """An exit leaves though entries have used up their part, and no small entry takes the room it waits for."""
    lanes, left = Lanes(20), list[str]()

    def put(lane: Any, name: str, messages: int = 1) -> None:
        lanes.put(lane, messages, lambda: left.append(name))

    for number in range(8):
        put("orders", f"entry {number}")
    put("exits", "stop")
    put("exits", "pair", 2)
    assert left == [*(f"entry {number}" for number in range(6)), "stop", "pair"]
    for number in range(6):
        put("questions", f"question {number}")
        put("urgent", f"cancel {number}")
    assert [name for name in left if name.startswith("cancel")] == [f"cancel {number}" for number in range(6)]
    put("exits", "another pair", 2)
    put("exits", "behind it")
    assert left[-1] == "cancel 5"
    await asyncio.sleep(1.05)
    assert left[18:22] == ["another pair", "behind it", "entry 6", "entry 7"]
    lanes.clear()

    alone = Lanes(20)
    left.clear()
    for _ in range(12):
        alone.put("exits", 1, lambda: left.append("exit"))
    alone.put("orders", 1, lambda: left.append("entry"))
    assert left == ["exit"] * 10
    alone.clear()


async def test_lanes_pause_and_large_parcels() -> None:
    """After a complaint orders wait; what is larger than a second's share leaves when all is quiet."""
    lanes, left = Lanes(4), list[str]()
    lanes.pause()
    lanes.put("orders", 1, lambda: left.append("order"))
    lanes.put("urgent", 1, lambda: left.append("cancel"))
    assert left == ["cancel"]
    lanes.clear()
    quiet = Lanes(4)
    quiet.put("orders", 9, lambda: left.append("large"))
    assert left == ["cancel", "large"]
    quiet.put("urgent", 1, lambda: left.append("late"))
    assert quiet.waiting == 1
    quiet.clear()


# --- names and numbers ----------------------------------------------------------------------------------------


def test_numbers() -> None:
    """Numbers are exact, unset ones are none, and a price of zero is none."""
    assert amount(10.1) == Decimal("10.1")
    assert amount("1234.50") == Decimal("1234.50")
    assert str(quantity(100.0)) == "100"
    assert amount(1.7976931348623157e308) is None
    assert amount("") is None
    assert amount(2**31 - 1) is None
    assert price(0.0) is None
    assert quantity(None) == 0


def test_times() -> None:
    """IB's times are read in their zone; what is none is None."""
    assert moment_of("20260105 16:00:00 US/Eastern") == datetime(2026, 1, 5, 21, tzinfo=UTC)
    assert moment_of("20260105-16:00:00") == datetime(2026, 1, 5, 16, tzinfo=UTC)
    assert moment_of("20260105 16:00:00 Etc/GMT-1") == datetime(2026, 1, 5, 15, tzinfo=UTC)
    assert moment_of("") is None
    assert moment_of("20260105 16:00:00 Nowhere/Land") is None


@pytest.mark.parametrize(
    ("status", "words", "end"),
    [
        ("Filled", "Filled Size: 100", "filled"),
        ("Cancelled", "Cancelled by Trader", "cancelled"),
        ("Cancelled", "Order expired", "expired"),
        ("Inactive", "", "rejected"),
        ("Cancelled", "Rejected by System", "rejected"),
    ],
)
def test_ends(status: str, words: str, end: str) -> None:
    """A completed order's end is read from its status and IB's words."""
    assert ended_as(status, words) == end


def test_corrections() -> None:
    """An execution id says which ones it corrects."""
    assert corrected_by("0001f4e5.5f6c.01.03") == ("0001f4e5.5f6c.01.01", "0001f4e5.5f6c.01.02")
    assert corrected_by("0001f4e5.5f6c.01.01") == ()
    assert corrected_by("whatever") == ()


def test_what_is_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of executions is forgotten once IB does not speak of them any more."""
    now = 1000.0
    monkeypatch.setattr(recent, "monotonic", lambda: now)
    known = Recent[int]()
    known["old"], known["again"] = 1, 2
    now += KEPT
    known["again"], known["new"] = 3, 4
    assert (len(known), known.get("old", 0)) == (3, 1)
    now += 1
    known["newest"] = 5

    assert "old" not in known
    assert [known.get(name, 0) for name in ("old", "again", "new", "newest")] == [0, 3, 4, 5]


def test_names_of_contracts() -> None:
    """A name has only what symbols may have."""
    contract = SimpleNamespace(secType="CASH", currency="USD", symbol="EUR", localSymbol="EUR.USD")
    assert name_of(contract) == "CASH-EUR.USD"
    assert name_of(SimpleNamespace(secType="STK", currency="USD", symbol="", localSymbol="")) == "?"


def test_accounts() -> None:
    """One account is taken by itself, one of several by its name."""
    assert choose(None, ("DU1",)) == "DU1"
    assert choose("DU2", ("DU1", "DU2")) == "DU2"
    with pytest.raises(BrokerError, match="none"):
        choose(None, ())


def test_a_number_that_was_given_out_again() -> None:
    """An order id of another session is no identity: the permanent id decides."""
    book = Book()
    old = Known("old", 1, 5, perm_id=100)
    book.add(old)

    assert book.find(client_id=1, number=5) is old
    assert book.find(perm_id=200, client_id=1, number=5) is None
    assert book.find(perm_id=100, client_id=9, number=9) is old
    assert book.by_broker_id("100") is old
    book.name(old, 100, 1, 77)
    assert book.find(client_id=1, number=5) is None


def test_the_book_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has ended long ago goes, what works stays; no name of what has gone leads anywhere."""
    monkeypatch.setattr(book_module, "MOST", 100)
    book = Book()
    works = Known("works", 1, 1, perm_id=1001)
    book.add(works)
    for number in range(2, 1000):
        book.add(Known(f"{number}", 1, number, perm_id=1000 + number, end="filled"))

    assert [*book.open()] == [works]
    assert book.find(perm_id=1001) is book.find(client_id=1, number=1) is works
    assert book.by_id("999") is not None
    assert (book.by_id("2"), book.find(perm_id=1002), book.find(client_id=1, number=2)) == (None, None, None)
    assert sum(f"{number}" in book for number in range(2, 1000)) < 100


# --- the library ----------------------------------------------------------------------------------------------


def test_library_is_there() -> None:
    """One of the two is installed, is found once, and has what is used."""
    found = library.load()

    assert found is library.load()
    assert found.name in library.NAMES
    assert found.client.MaxRequests > 0
    with pytest.raises(BrokerError, match="not installed"):
        library.load("ib_missing")


def test_library_is_imported_cleanly() -> None:
    """Its import on a worker warns of nothing and patches no loop; the plugin's own import does not bring it."""
    program = """
import asyncio, sys
import sigma9_plugins.brokers.ibkr
assert not {"ib_async", "ib_insync", "eventkit"} & set(sys.modules)
from sigma9_plugins.brokers.ibkr import library
before = asyncio.run
async def main():
    found = await asyncio.to_thread(library.load)
    assert asyncio.get_running_loop().is_running()
    return found.name
name = asyncio.run(main())
assert asyncio.run is before and not hasattr(asyncio, "_nest_patched")
print(name)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )

    assert done.stderr == ""
    assert done.stdout.strip() in library.NAMES
