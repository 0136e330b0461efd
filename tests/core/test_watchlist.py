"""The watchlist: what scans and people put on it, the best first, every change told with the whole list."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sigma9_core.clock import SteppedClock
from sigma9_core.errors import CommandError, StateError
from sigma9_core.events import WatchlistUpdate
from sigma9_core.models import WatchlistItem
from sigma9_core.watchlist import MOST_MANUAL, Watchlist

START = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)


class Room:
    """A watchlist, its clock, and what it has told."""

    def __init__(self) -> None:
        self.clock = SteppedClock("simulated", START)
        self.told: list[WatchlistUpdate] = []
        self.seen: list[str | None] = []
        self.list = Watchlist(self.clock, self._tell)

    def _tell(self, update: WatchlistUpdate) -> None:
        self.told.append(update)
        self.seen.append(self.list.updated_at)

    def item(self, symbol: str, priority: int = 50, score: float | None = 60.0, **more: Any) -> WatchlistItem:
        more.setdefault("strategies", ("one",))
        return WatchlistItem(symbol=symbol, priority=priority, score=score, added_at=self.clock.now(), **more)

    def scan(self, *items: WatchlistItem, standing: tuple[str, ...] = ()) -> WatchlistUpdate:
        self.clock.advance(self.clock.now() + timedelta(minutes=1))
        return self.list.renew(items, "one", standing=standing)

    def symbols(self) -> list[str]:
        return [item.symbol for item in self.list.items()]

    def strategies(self) -> dict[str, tuple[str, ...]]:
        return {item.symbol: item.strategies for item in self.list.items()}


@pytest.fixture(name="room")
def _room() -> Room:
    return Room()


def test_a_scan_replaces_the_list_and_says_what_changed(room: Room) -> None:
    """An update names what came and what went, and carries the whole list, the best first."""
    room.scan(room.item("B"), room.item("A"), room.item("C", 100))
    update = room.scan(room.item("A", score=70.0), room.item("D"))

    assert room.symbols() == ["A", "D"]
    assert (update.reason, update.strategy, update.added, update.removed) == ("scan", "one", ("D",), ("B", "C"))
    assert [item.symbol for item in room.told[0].items] == ["C", "A", "B"]
    assert (update.count, update.items) == (2, room.list.items())


def test_an_item_that_stays_keeps_its_date(room: Room) -> None:
    """`added_at` is when a symbol came onto the list, not when it was scanned last."""
    room.scan(room.item("A"))
    added = room.list.items()[0].added_at
    room.scan(room.item("A", score=99.0))

    assert (room.list.items()[0].added_at, room.list.items()[0].score) == (added, 99.0)


def test_what_a_person_added_stays(room: Room) -> None:
    """A scan takes nothing away that was added by hand: it is watched, and says that it is only that."""
    room.list.add("HAND")
    room.scan(room.item("A"), room.item("B"))
    room.list.add("B")
    room.scan(room.item("A"))

    assert room.strategies() == {"A": ("one",), "HAND": ("manual",), "B": ("manual",)}
    assert {item.symbol: item.no_trade for item in room.list.items()} == {
        "A": None,
        "HAND": "added by hand: watched only",
        "B": "added by hand: watched only",
    }


def test_a_scan_of_a_symbol_by_hand_trades_it(room: Room) -> None:
    """A symbol that a scan finds too is the scan's as well, and keeps its place by hand when the scan drops it."""
    room.list.add("A")
    room.scan(room.item("A"))
    assert (room.strategies()["A"], room.list.items()[0].no_trade) == (("one", "manual"), None)

    room.scan()
    assert room.strategies() == {"A": ("manual",)}


def test_a_strategy_that_did_not_scan_keeps_what_it_had(room: Room) -> None:
    """A scan by some strategies renews their part alone; the list is ranked anew as a whole."""
    room.list.renew(
        [
            room.item("A", 100, strategies=("one",)),
            room.item("B", 80, strategies=("two",)),
            room.item("C", 70, strategies=("one", "two")),
            room.item("D", 60, strategies=("one", "two"), reasons=("old",)),
        ],
        None,
    )
    update = room.scan(room.item("E", 90), room.item("D", 10, reasons=("new",)), standing=("two",))

    assert room.strategies() == {"E": ("one",), "B": ("two",), "C": ("two",), "D": ("one", "two")}
    assert room.symbols() == ["E", "B", "C", "D"]
    assert update.removed == ("A",)
    assert room.list.items()[-1].reasons == ("new",)


def test_a_strategy_that_is_gone_leaves_nothing_behind(room: Room) -> None:
    """Items of strategies that neither scanned nor stand go."""
    room.list.renew([room.item("A", strategies=("gone",)), room.item("B", strategies=("gone", "two"))], None)
    room.scan(standing=("two",))

    assert room.strategies() == {"B": ("two",)}


def test_adding_by_hand(room: Room) -> None:
    """A symbol is added once, at the end, watched only; adding it again tells nobody."""
    room.scan(room.item("A"))
    update = room.list.add("HAND")

    assert update is not None
    assert (update.reason, update.strategy, update.added) == ("manual", None, ("HAND",))
    assert room.symbols() == ["A", "HAND"]
    assert room.list.items()[1].strategies == ("manual",)
    assert room.list.add("HAND") is None
    assert len(room.told) == 2


def test_there_is_an_end_to_adding_by_hand(room: Room) -> None:
    """So many symbols may be added by hand and no more: the next one is a conflict, and nothing changes."""
    for number in range(MOST_MANUAL):
        room.list.add(f"S{number}")
    with pytest.raises(CommandError) as refused:
        room.list.add("ONE.MORE")

    assert refused.value.code == "conflict"
    assert len(room.list.items()) == MOST_MANUAL
    room.list.remove("S0")
    assert room.list.add("ONE.MORE") is not None


def test_removing(room: Room) -> None:
    """A person removes a symbol whoever put it on; one that is not there is not_found."""
    room.scan(room.item("A"), room.item("B"))
    update = room.list.remove("A")

    assert (update.reason, update.removed, room.symbols()) == ("manual", ("A",), ["B"])
    with pytest.raises(CommandError) as refused:
        room.list.remove("A")
    assert (refused.value.code, refused.value.details) == ("not_found", {"field": "symbol"})


def test_the_list_comes_back_after_a_restart_as_it_was(room: Room) -> None:
    """The body, kept as JSON, brings items, order and time back, told once with the reason `restored`."""
    room.scan(room.item("B", 100, reasons=("tight", "dry")), room.item("A", stage=3, last=4.25))
    room.list.add("HAND")
    body = json.loads(json.dumps(room.list.body()))
    after = Room()
    after.clock.advance(START + timedelta(days=1))
    after.list.restore(body)

    assert after.list.items() == room.list.items()
    assert after.list.body() == body
    assert [(update.reason, update.added) for update in after.told] == [("restored", ("A", "B", "HAND"))]
    assert after.seen == [body["updated_at"]]


@pytest.mark.parametrize("items", [[{"symbol": "A"}], ["A"], 7])
def test_a_kept_list_that_can_t_be_read_is_named(room: Room, items: object) -> None:
    """A document that a person has damaged is a StateError in one sentence, and nothing is told."""
    with pytest.raises(StateError, match="the watchlist that was kept can't be read"):
        room.list.restore({"items": items})

    assert room.told == []


def test_the_body_is_that_of_the_contract(room: Room) -> None:
    """`state/watchlist` has count, updated_at and items with all their keys."""
    assert room.list.body() == {"count": 0, "updated_at": None, "items": []}
    room.scan(room.item("A"))
    body = room.list.body()

    assert body["updated_at"] == "2026-03-02T15:01:00.000000Z"
    assert set(body["items"][0]) == set(WatchlistItem.model_fields)
    assert room.list.symbols() == {"A"}


def test_prices_move_and_the_list_stays_what_it_was(room: Room) -> None:
    """`last` follows the market without an update: nothing was added, and nobody is told of it."""
    room.scan(room.item("A"), room.item("B"))
    told, seen = len(room.told), room.list.body()["updated_at"]
    assert room.list.reprice({"A": 5.25}.get)
    assert not room.list.reprice({"A": 5.25}.get)

    assert {item.symbol: item.last for item in room.list.items()}["A"] == 5.25
    assert (len(room.told), room.list.body()["updated_at"]) == (told, seen)
