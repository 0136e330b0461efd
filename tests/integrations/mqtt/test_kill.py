"""Two doors for one kill: the ledger lets exactly one of them carry it out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_integrations.mqtt import kill
from sigma9_integrations.mqtt.connection import Arrival
from sigma9_integrations.mqtt.kill import KillLedger


def message(payload: bytes = b"PRESS", topic: str = "t") -> Arrival:
    return Arrival(topic, payload, retain=False, stored=False, stale=False, at=0.0)


@given(st.data())
def test_each_message_is_taken_once(data: st.DataObject) -> None:
    """In whatever order two doors come to the same messages, each message is carried out exactly once."""
    sent = data.draw(st.lists(st.sampled_from([b"PRESS", b"{}", b"x"]), max_size=12))
    waiting = {"kill": list(sent), "command": list(sent)}
    ledger, taken = KillLedger(), 0
    while waiting["kill"] or waiting["command"]:
        door = data.draw(st.sampled_from([name for name, rest in waiting.items() if rest]))
        taken += ledger.take("kill" if door == "kill" else "command", message(waiting[door].pop(0)))
    assert taken == len(sent)


def test_one_door_alone_takes_everything() -> None:
    """Where only one door hears, every message is carried out, equal ones included."""
    ledger = KillLedger()
    assert all(ledger.take("command", message()) for _ in range(10))


def test_a_new_connection_is_no_debtor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill that one door took while the other was away swallows no later one that only the other hears."""
    now = [100.0]
    monkeypatch.setattr(kill, "monotonic", lambda: now[0])
    doors: tuple[tuple[kill.Door, kill.Door], ...] = (("kill", "command"), ("command", "kill"))
    for first, second in doors:
        ledger = KillLedger()
        assert ledger.take(first, message())
        now[0] += 1
        ledger.renew(second, now[0])
        assert ledger.take(second, message())
        assert not ledger.take(first, message()), "both have heard it"
        assert ledger.take(first, message())
        ledger.renew(second, now[0] - 1)
        assert not ledger.take(second, message()), "it was heard in time by both"
        now[0] += kill.MEMORY_SECONDS + 1
        assert ledger.take(first, message(b"other"))
        assert len(ledger._taken) == len(ledger._order) == 1


def test_a_kill_that_is_met_late_is_not_carried_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the kill's connection is up, the other one may come to a message minutes later, behind a flood."""
    now = [100.0]
    monkeypatch.setattr(kill, "monotonic", lambda: now[0])
    ledger = KillLedger()
    ledger.up = True
    assert ledger.take("kill", message())
    now[0] += kill.MEMORY_UP_SECONDS - 1
    assert not ledger.take("command", message())

    assert ledger.take("kill", message())
    now[0] += kill.MEMORY_SECONDS + 1
    ledger.up = False
    assert ledger.take("command", message()), "only this door hears, and it is a new one"


def test_a_flood_of_kills_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come, no more than so many are remembered."""
    monkeypatch.setattr(kill, "MEMORY_MOST", 10)
    ledger = KillLedger()
    ledger.up = True
    for number in range(100):
        assert ledger.take("kill", message(str(number).encode()))
    assert len(ledger._taken) == len(ledger._order) == 10


def test_old_marks_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that the other door never saw does not swallow a later one, nor fill the memory."""
    now = [100.0]
    monkeypatch.setattr(kill, "monotonic", lambda: now[0])
    ledger = KillLedger()
    for number in range(100):
        assert ledger.take("kill", message(str(number).encode()))
    now[0] += kill.MEMORY_SECONDS + 1
    assert ledger.take("command", message(b"5"))
    assert len(ledger._taken) == len(ledger._order) == 1
