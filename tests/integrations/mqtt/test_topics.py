"""The topic table and the addresses made from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.clock import wall_now
from sigma9_core.events import EVENT_TYPES, LOG_LEVELS, LogLine, MarketData
from sigma9_core.models import OrderStatus
from sigma9_integrations.mqtt.topics import TABLE, Address, Topics

ROOT = Path(__file__).parents[3]
TOPICS = Topics("home/sigma9", "main")


def matches(pattern: str, topic: str) -> bool:
    filled = pattern.replace("{p}", "home/sigma9/main").replace("{base}", "home/sigma9")
    expression = "".join(
        "[^/]+" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{\w+\})", filled)
    )
    return re.fullmatch(expression, topic) is not None


def test_every_event_topic_is_in_the_table() -> None:
    """Each event type, with each of its last levels, has exactly one row, not retained, at its QoS."""
    cases = [("market_data", "BRK.B"), ("watchlist_update", None), ("status_update", None)]
    cases += [("trade_event", status.value) for status in OrderStatus]
    cases += [("log", level) for level in LOG_LEVELS]
    assert {kind for kind, _ in cases} == set(EVENT_TYPES)
    for kind, last in cases:
        topic = TOPICS.event(kind, {"symbol": last, "event": last, "level": last})
        rows = [row for row in TABLE if matches(row.pattern, topic)]
        assert [(row.retained, row.qos) for row in rows] == [(False, 0 if kind in ("market_data", "log") else 1)]


def test_state_topics_agree_with_the_table() -> None:
    """Board names go to retained topics at the QoS of their row, and come back as names."""
    names = ["status", "kill_switch", "account", "positions", "position/AAPL", "orders", "watchlist"]
    for name in [*names, "quote/AAPL", "risk", "plugins", "schedule"]:
        row = next(row for row in TABLE if matches(row.pattern, TOPICS.state(name)))
        assert (row.retained, row.qos) == (True, TOPICS.state_qos(name))
        assert TOPICS.state_name(TOPICS.state(name)) == name
    assert TOPICS.state_name("home/sigma9/other/state/status") is None


def test_events_give_their_topic_from_data_or_envelope() -> None:
    """The topic is the same from the event's data and from its journalled envelope."""
    line = LogLine(level="warning", logger="a", message="b")
    assert (
        TOPICS.event("log", line) == TOPICS.event("log", line.model_dump()) == "home/sigma9/main/event/log/warning"
    )
    data = MarketData(symbol="BRK.B", kind="bar", ts=wall_now())
    assert TOPICS.event("market_data", data) == "home/sigma9/main/event/market_data/BRK.B"


def test_the_docs_have_every_topic() -> None:
    """docs/mqtt.md lists the rows of the table, and says of each whether it is retained."""
    rows = re.findall(r"^\| (`[^|]+) \| (yes|no|never) \|", (ROOT / "docs" / "mqtt.md").read_text(), re.MULTILINE)
    told = {name: retained == "yes" for names, retained in rows for name in re.findall(r"`([^`]+)`", names)}
    assert told == {row.pattern.removeprefix("{p}/"): row.retained for row in TABLE}


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("home/sigma9/main/command/start", Address("start", own=True)),
        ("home/sigma9/all/command/start", Address("start", own=False)),
        ("home/sigma9/other/command/start", None),
        ("home/sigma9/main/command/", None),
        ("home/sigma9/main/command/a/b", None),
        ("home/sigma9/main/state/status", None),
    ],
)
def test_command_addresses(topic: str, expected: Address | None) -> None:
    """A command topic gives its name and whose it is; other topics give nothing."""
    assert TOPICS.address(topic) == expected


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_replies_stay_below_their_branch(text: str) -> None:
    """A response topic is accepted only below {base}/reply/, without wildcards."""
    assert not TOPICS.may_reply(text)
    assert TOPICS.may_reply(f"home/sigma9/reply/{text}") == (text != "" and not set("+#\0") & set(text))
