"""`sigma9 journal list` and `follow`, against a journal that has forgotten its first events."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sigma9_core.cli import journal
from sigma9_core.cli.client import Client, Refused, Target


class Journal:
    """Durable events as GET /api/events gives them."""

    def __init__(self, web: Any, first: int, last: int) -> None:
        self.web = web
        self.first, self.last = first, last
        self.answer = web.answer
        self.down = False
        web.answer = self

    def event(self, seq: int) -> dict[str, Any]:
        """Make an event: every third one is a watchlist update."""
        kind = "watchlist_update" if seq % 3 == 0 else "trade_event"
        data = {
            "symbol": f"S{seq % 5}",
            "order_id": f"O{seq // 2}",
            "strategy": "even" if seq % 2 == 0 else "odd",
            "source": "exit" if seq % 7 == 0 else "strategy",
        }
        at = f"2026-11-20T{14 + seq // 3600:02d}:{seq // 60 % 60:02d}:{seq % 60:02d}.000000Z"
        return {"type": kind, "v": 1, "seq": seq, "ts": at, "node": "main", "data": data}

    def __call__(self, asked: Any) -> tuple[int, Any]:
        """Answer the two paths that the command reads, by the rules of the contract."""
        if self.down:
            return 200, None
        parts = urlsplit(asked.path)
        if parts.path == "/api/status":
            return 200, {"seq": self.last}
        if parts.path != "/api/events":
            return self.answer(asked)  # type: ignore[no-any-return]
        self.web.asked.append(asked)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        limit = int(query["limit"])
        assert 1 <= limit <= 1000
        wanted = {name: query[name] for name in ("symbol", "order_id") if name in query}
        if wanted and "after" not in query:
            before = int(query.get("before", self.last + 1))
            found = [self.event(seq) for seq in range(self.first, before)]
            found = [one for one in found if all(one["data"][name] == value for name, value in wanted.items())]
            more = found[-limit]["seq"] if len(found) > limit else None
            return 200, {"events": found[-limit:], "next": more, "journal_id": "j"}
        after = int(query["after"])
        if not self.first - 1 <= after <= self.last:
            details = {"first": self.first, "last": self.last, "journal_id": "j"}
            return 409, {
                "error": {"code": "conflict", "message": f"after={after} is out of range", "details": details}
            }
        events = [self.event(seq) for seq in range(after + 1, self.last + 1)]
        events = [event for event in events if query.get("type") in (None, event["type"])]
        events = [one for one in events if all(one["data"][name] == value for name, value in wanted.items())]
        following = events[limit - 1]["seq"] if len(events) > limit else None
        return 200, {"events": events[:limit], "next": following, "journal_id": "j"}


def numbers(text: str) -> list[int]:
    return [event["seq"] for event in json.loads(text)]


def test_the_newest(cli: Any, web: Any) -> None:
    """Without a number the newest events are listed, oldest first."""
    Journal(web, 1, 120)
    assert numbers(cli("journal", "list", "--format", "json").out) == list(range(71, 121))
    header, *lines = cli("journal", "list", "--limit", "3").out.splitlines()
    assert header.startswith("market time, UTC")
    assert len(lines) == 3
    assert numbers(cli("journal", "list", "--limit", "500", "--format", "json").out) == list(range(1, 121))


def test_the_newest_of_a_type(cli: Any, web: Any) -> None:
    """A type is searched backwards as far as it takes, over several pages."""
    Journal(web, 1, 5000)
    result = cli("journal", "list", "--type", "watchlist_update", "--limit", "700", "--format", "json")
    assert numbers(result.out) == [seq for seq in range(1, 5001) if seq % 3 == 0][-700:]
    assert len(web.asked) == 3


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--symbol", "S2"), lambda seq: seq % 5 == 2),
        (("--order", "O7"), lambda seq: seq in (14, 15)),
        (("--strategy", "odd"), lambda seq: seq % 2 == 1),
        (("--source", "exit"), lambda seq: seq % 7 == 0),
        (("--since", "2026-11-20T14:40"), lambda seq: seq >= 2400),
        (("--until", "2026-11-20T14:01:00+00:00"), lambda seq: seq < 60),
        (("--since", "2026-11-20T15:00+01:00", "--until", "2026-11-20T14:00:30Z"), lambda seq: seq < 30),
        (("--until", "2026-11-20"), lambda seq: False),
        (("--symbol", "S2", "--type", "trade_event", "--strategy", "even"), lambda s: s % 30 in (2, 22)),
    ],
)
def test_filters(cli: Any, web: Any, options: tuple[str, ...], wanted: Any) -> None:
    """Each filter leaves out what it says, reading backwards from the newest or forwards from a number."""
    Journal(web, 1, 2500)
    right = [seq for seq in range(1, 2501) if wanted(seq)]
    newest = cli("journal", "list", "--format", "json", "--limit", "40", *options)
    assert numbers(newest.out) == right[-40:]
    oldest = cli("journal", "list", "--format", "json", "--limit", "40", "--after", "0", *options)
    assert numbers(oldest.out) == right[:40]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--since", "noon"), "'noon' is no time"),
        (("--after", "-1"), "'-1' is no number of an event"),
        (("--limit", "0"), "'0' is no positive whole number"),
        (("--type", "log"), "invalid choice: 'log'"),
        (("--url", "http://x", "--local"), "--url goes with what a server can tell"),
        (("--url", "http://x", "--cause", "c"), "--url goes with what a server can tell"),
    ],
)
def test_wrong_filters(cli: Any, options: tuple[str, ...], said: str) -> None:
    """What can't be understood is named, with exit code 2."""
    result = cli("journal", "list", *options)
    assert result.code == 2
    assert said in result.err


def test_the_server_finds_an_order(cli: Any, web: Any) -> None:
    """The events of one order in a long journal take one request: the server's database has an index of them."""
    Journal(web, 1, 1_000_000 // 50)
    for more in ((), ("--after", "0")):
        web.asked.clear()
        found = cli("journal", "list", "--format", "json", "--order", "O7", *more)
        assert numbers(found.out) == [14, 15]
        assert len(web.asked) == 1


def test_a_journal_with_a_past(cli: Any, web: Any) -> None:
    """Events that are no longer kept end the list without a complaint."""
    Journal(web, 4001, 4020)
    assert numbers(cli("journal", "list", "--format", "json").out) == list(range(4001, 4021))


def test_after(cli: Any, web: Any) -> None:
    """--after reads forwards over the pages; a number that is out of range is the server's sentence."""
    Journal(web, 1, 2500)
    result = cli("journal", "list", "--after", "10", "--limit", "2200", "--format", "json")
    assert numbers(result.out) == list(range(11, 2211))
    result = cli("journal", "list", "--after", "9999")
    assert (result.code, result.err) == (1, "sigma9: after=9999 is out of range\n")


def test_empty(cli: Any, web: Any) -> None:
    """An empty journal lists nothing."""
    Journal(web, 1, 0)
    assert cli("journal", "list").out == "no events\n"
    assert cli("journal", "list", "--format", "json").json == []
    assert cli("journal", "list", "--limit", "0").code == 2


def test_csv(cli: Any, web: Any) -> None:
    """CSV has one row an event."""
    Journal(web, 1, 2)
    lines = cli("journal", "list", "--format", "csv").out.splitlines()
    assert lines[0] == "type,v,seq,ts,node,data"
    assert len(lines) == 3


def test_follow(cli: Any, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Following prints each new event once, over a break of the connection and over a restored journal."""
    kept = Journal(web, 1, 5)
    steps = iter(
        (
            lambda: setattr(kept, "last", 7),
            lambda: setattr(kept, "down", True),
            lambda: None,
            lambda: kept.__dict__.update(down=False, last=8),
            lambda: setattr(kept, "last", 3),  # restored from a backup
            lambda: setattr(kept, "last", 4),
        )
    )

    def pause(_: float) -> None:
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(time, "sleep", pause)
    result = cli("journal", "follow", "--format", "json")
    assert result.code == 130
    assert [json.loads(line)["seq"] for line in result.out.splitlines()] == [6, 7, 8, 4]
    assert result.err.count("trying again") == 1
    assert result.err.count("connected again") == 1
    assert "out of range; going on with what comes now" in result.err


def test_follow_from_a_number_by_type(cli: Any, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """--after begins in the past, and --type leaves out the others."""
    Journal(web, 1, 2500)
    waits = iter(range(2))
    monkeypatch.setattr(time, "sleep", lambda _: next(waits))
    with pytest.raises(StopIteration):
        cli("journal", "follow", "--after", "3", "--type", "watchlist_update")
    assert len(web.asked) == 5  # three pages, then one look a round


def test_follow_filters(cli: Any, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is wanted is printed."""
    Journal(web, 1, 100)

    def pause(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", pause)
    result = cli("journal", "follow", "--after", "0", "--symbol", "S2", "--strategy", "odd", "--format", "json")
    assert [json.loads(line)["seq"] for line in result.out.splitlines()] == [*range(7, 101, 10)]


def test_follow_without_a_server(cli: Any) -> None:
    """Without a server there is nothing to follow."""
    assert cli("journal", "follow", "--url", "127.0.0.1:9").code == 3


def test_broken_pages_do_not_loop(web: Any) -> None:
    """A conflict that the range does not explain is told, and not tried again for ever."""
    details = {"first": 1, "last": 5}
    web.says("/api/events", {"error": {"code": "conflict", "message": "odd", "details": details}}, 409)
    web.says("/api/status", {"seq": 5})
    client = Client(Target(web.url, "the-right-token"))
    with pytest.raises(Refused, match="odd"):
        journal._newest(client, journal.Filter(), 5)
