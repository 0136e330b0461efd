"""The board keeps the newest body of every state topic and tells who watches."""

from __future__ import annotations

import pytest

from sigma9_core.board import Board


@pytest.fixture(name="board")
def _board() -> Board:
    return Board()


def test_newest_body_is_kept(board: Board) -> None:
    """A name has the body that was set last, and none before."""
    assert board.get("status") is None
    board.set("status", {"engine": "stopped"})
    board.set("status", {"engine": "running"})

    assert board.get("status") == {"engine": "running"}
    assert board.names() == ("status",)


def test_watchers_learn_of_changes_alone(board: Board) -> None:
    """Each change is told once, in order; setting what is there already is none."""
    seen: list[str] = []
    board.watch(seen.append)

    board.set("status", {"engine": "stopped"})
    board.set("status", {"engine": "stopped"})
    board.set("positions", {"count": 0})
    board.set("status", {"engine": "running"})

    assert seen == ["status", "positions", "status"]


def test_watcher_finds_the_new_body(board: Board) -> None:
    """When a watcher is called, the board has the body already; at a removal it has none."""
    seen: list[object] = []
    board.watch(lambda name: seen.append(board.get(name)))

    board.set("position/AAPL", {"quantity": 1})
    board.set("position/AAPL", None)

    assert seen == [{"quantity": 1}, None]


def test_removed_name_is_gone(board: Board) -> None:
    """A body of None removes the name; removing what is not there tells nobody."""
    seen: list[str] = []
    board.set("position/AAPL", {"quantity": 1})
    board.watch(seen.append)

    board.set("position/MSFT", None)
    board.set("position/AAPL", None)
    board.set("position/AAPL", None)

    assert board.names() == ()
    assert seen == ["position/AAPL"]


def test_watching_can_be_ended(board: Board) -> None:
    """A watcher that has left hears nothing more, also where it leaves while it is told."""
    seen: list[str] = []

    def once(name: str) -> None:
        seen.append(f"once {name}")
        leave()

    leave = board.watch(once)
    board.watch(lambda name: seen.append(f"always {name}"))
    board.set("a", {"n": 1})
    board.set("b", {"n": 1})

    assert seen == ["once a", "always a", "always b"]


def test_empty_body_is_a_body(board: Board) -> None:
    """An empty object is kept: only None removes."""
    board.set("watchlist", {})

    assert board.get("watchlist") == {}
    assert board.names() == ("watchlist",)
