"""Clearing command topics: each at most once a second, never those of everybody, and bounded under a flood."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sigma9_integrations.mqtt import sweep
from sigma9_integrations.mqtt.answers import Answers
from sigma9_integrations.mqtt.sweep import Sweeper
from sigma9_integrations.mqtt.topics import Topics

TOPICS = Topics("sigma9", "main")


class Noted(Answers):
    """Answers that only note what is cleared."""

    def __init__(self) -> None:
        super().__init__(TOPICS)
        self.cleared: list[str] = []

    def clear(self, topic: str) -> None:
        self.cleared.append(topic.removeprefix("sigma9/main/command/"))


@pytest.fixture(name="swift", autouse=True)
def _swift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "INTERVAL", 0.1)


def sweeper(*, blind: bool) -> tuple[Sweeper, Noted]:
    answers = Noted()
    made = Sweeper(answers, TOPICS)
    made.blind = blind
    return made, answers


async def test_a_topic_is_cleared_at_once_and_again_behind_the_last() -> None:
    """Many commands in a moment cost two messages: one at once, one when the interval is over."""
    made, answers = sweeper(blind=True)
    for _ in range(100):
        made.after_live("start", own=True, retain=False)
    made.after_live("stop", own=True, retain=False)
    assert answers.cleared == ["start", "stop"]
    await asyncio.sleep(0.15)
    assert answers.cleared == ["start", "stop", "start"]
    await asyncio.sleep(0.15)
    assert answers.cleared == ["start", "stop", "start"]


async def test_only_what_may_be_stored_is_cleared(caplog: pytest.LogCaptureFixture) -> None:
    """On MQTT 5 the flag tells; a warning follows it alone. What everybody hears is nobody's to clear."""
    made, answers = sweeper(blind=False)
    made.after_live("start", own=True, retain=False)
    made.after_live("stop", own=False, retain=True)
    assert answers.cleared == []
    made.after_live("pause", own=True, retain=True)
    assert answers.cleared == ["pause"]
    assert caplog.text.count("retain flag") == 1
    blind, answers = sweeper(blind=True)
    blind.after_live("start", own=False, retain=False)
    assert answers.cleared == []
    blind.after_live("start", own=True, retain=False)
    assert answers.cleared == ["start"]
    assert caplog.text.count("retain flag") == 1


async def test_the_end_leaves_nothing_behind() -> None:
    """What waits for its interval when the connection ends is cleared before."""
    made, answers = sweeper(blind=True)
    made.after_live("start", own=True, retain=False)
    made.after_live("start", own=True, retain=False)
    made.flush()
    assert answers.cleared == ["start", "start"]
    await asyncio.sleep(0.15)
    assert answers.cleared == ["start", "start"]


async def test_a_flood_of_invented_names_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the memory nor the messages grow with the names that somebody makes up; later it works again."""
    made, answers = sweeper(blind=True)
    for number in range(10 * sweep.ROOM):
        made.after_live(f"x{number}", own=True, retain=False)
        made.after_live(f"x{number}", own=True, retain=False)
    inner: Any = made
    assert len(answers.cleared) == len(inner._cleared) == sweep.ROOM
    assert len(inner._held) <= sweep.ROOM
    await asyncio.sleep(0.3)
    made.after_live("start", own=True, retain=False)
    assert answers.cleared[-1] == "start"
    assert len(inner._cleared) == 1
    assert inner._held == {}
    assert caplog.text == ""
