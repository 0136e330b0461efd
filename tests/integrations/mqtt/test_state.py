"""The queue of state topics: conflated by name, paced where the contract says so."""

from __future__ import annotations

import asyncio

import pytest

from sigma9_core.board import Board
from sigma9_integrations.mqtt import state
from sigma9_integrations.mqtt.state import StateQueue


async def drain(queue: StateQueue) -> list[tuple[str, str]]:
    found = []
    while not queue.idle:
        found.append(await queue.next())
    return found


async def test_changes_are_conflated_by_name() -> None:
    """A name that changes twice before it is sent is sent once, with the newest body, in the order of changes."""
    board = Board()
    queue = StateQueue(board)
    queue.start()
    board.set("a", {"n": 1})
    board.set("b", {"n": 1})
    board.set("a", {"n": 2})
    assert await drain(queue) == [("a", '{"n":2}'), ("b", '{"n":1}')]
    board.set("b", None)
    assert await drain(queue) == [("b", "")]
    queue.stop()
    board.set("a", {"n": 3})
    assert queue.idle


async def test_paced_names_wait_for_their_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Status and quotes leave at once, then at most once in the interval, the last change never lost."""
    monkeypatch.setattr(state, "INTERVAL", 0.1)
    board = Board()
    queue = StateQueue(board)
    queue.start()
    for name in ("status", "quote/AAPL"):
        board.set(name, {"n": 1})
        assert await drain(queue) == [(name, '{"n":1}')]
        board.set(name, {"n": 2})
        board.set(name, {"n": 3})
        assert queue.idle
        assert await asyncio.wait_for(queue.next(), 1) == (name, '{"n":3}')
        assert queue.idle
    queue.stop()


async def test_a_new_connection_gets_everything_at_once() -> None:
    """After a reconnect every name is due, held ones too, and the removal of all that vanished, ever."""
    board = Board()
    queue = StateQueue(board)
    queue.published.add("position/OLD")
    queue.start()
    board.set("status", {"n": 1})
    board.set("position/AAPL", {"n": 1})
    await drain(queue)
    board.set("status", {"n": 2})
    board.set("position/AAPL", None)
    await drain(queue)
    everything = {"status": '{"n":2}', "position/AAPL": "", "position/OLD": ""}
    for _ in range(2):  # whether the broker heard of a removal, and still knows of it, nobody can tell
        queue.all_again(removals=True)
        assert dict(await drain(queue)) == everything
    queue.all_again(removals=False)
    assert dict(await drain(queue)) == {"status": '{"n":2}'}
    queue.stop()


async def test_a_removal_that_waits_survives_a_birth() -> None:
    """When everything is told again, a removal that was due or held is not forgotten."""
    board = Board()
    queue = StateQueue(board)
    queue.start()
    for name in ("position/A", "position/B"):
        board.set(name, {"n": 1})
    await drain(queue)
    board.set("position/A", None)
    await drain(queue)
    queue.hold("position/A", 60)
    board.set("position/B", None)
    queue.all_again(removals=False)
    assert dict(await drain(queue)) == {"position/A": "", "position/B": ""}
    queue.stop()


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": object()}])
async def test_a_body_that_is_no_json_is_named(body: dict[str, object]) -> None:
    """A body that can't be written raises, naming the topic, and is not due any more."""
    board = Board()
    queue = StateQueue(board)
    queue.start()
    board.set("account", body)
    with pytest.raises(ValueError, match="state/account"):
        await queue.next()
    assert queue.idle
    queue.stop()
