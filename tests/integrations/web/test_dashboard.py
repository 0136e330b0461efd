"""The dashboard in a real browser: what a person sees and can do, on a phone and on a screen, light and dark."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sigma9_core.cli import token as token_command
from sigma9_core.clock import SteppedClock
from sigma9_core.commands import Command, Response
from sigma9_core.errors import CommandError
from sigma9_core.events import LogLine, StatusUpdate
from sigma9_core.models import RuleUsage
from sigma9_integrations.web.pages import FOLDER
from sigma9_integrations.web.service import WebService
from sigma9_integrations.web.testing import Browser, Tab, find

if TYPE_CHECKING:
    from tests.integrations.web.conftest import Node, Peer, Serve

OPEN = datetime(2026, 3, 2, 14, 31, 5, tzinfo=UTC)
"""A Monday, a minute after the open in New York."""
WALL = datetime(2026, 11, 22, 21, 0, tzinfo=UTC)
OFF: dict[str, Any] = {
    "state": "OFF",
    "latched": False,
    "phase": "off",
    "detail": None,
    "scopes": [],
    "reason": None,
    "source": None,
    "at": None,
    "cancelled": [],
    "closed": [],
    "pending": [],
    "error": None,
    "last_drill": None,
}
RULES = (
    RuleUsage(rule="max_open", used=2, limit=3),
    RuleUsage(rule="loss_limit", used=4, limit=3, tripped=True),
    RuleUsage(rule="session"),
)


@pytest.fixture(name="browser", scope="module")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Run one browser for these tests; skip where there is none."""
    program = find()
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    browser.start()
    yield browser
    browser.stop()


@pytest.fixture(name="tab")
async def _tab(browser: Browser) -> AsyncIterator[Tab]:
    """Open a page of a session of its own; whatever it complains of fails the test."""
    async with Tab(browser) as tab:
        await tab.look(1280)
        yield tab
        assert tab.faults == []


def show(server: Peer, **changes: Any) -> dict[str, Any]:
    """Put a status on the board, and give it."""
    body = {
        "server": "running",
        "engine": "running",
        "ibkr": "disabled",
        "mqtt": "disabled",
        "node": "main",
        "broker": {"name": "paper", "state": "connected", "socket": "up", "link": "up", "data": "up"},
        "feed": {"name": "simulated", "state": "connected", "last_at": OPEN},
        "kill_switch": OFF,
        "uptime": 5,
        "active_positions": 1,
        "open_orders": 0,
        "watchlist_count": 0,
        "day_pnl": 0,
        "seq": len(server.journal),
        "journal_id": "fake",
        "version": "0",
        "contract": 1,
        "started_at": WALL,
        "last_error": None,
        "clock": "simulated",
        "market": {"open": True, "next_open": OPEN + timedelta(hours=23, minutes=59), "next_close": OPEN},
        **changes,
    }
    server.board.set("status", body)
    return body


def tell(server: Peer, **changes: Any) -> None:
    """Put a status on the board, and tell it by an event."""
    status = show(server, **changes)
    update = StatusUpdate(changed=("kill_switch",), status=status)
    server.emit("status_update", update, durable=True)


def furnish(server: Peer) -> None:
    """Put something on the board for every panel, and the market's clock to Monday."""
    server.clock = SteppedClock("simulated", OPEN)
    show(server)
    position = {"symbol": "AAPL", "quantity": 10, "average_cost": 9.5, "last": 10, "market_value": 100}
    position |= {"unrealized_pnl": 5, "strategy": "seismograph", "protected": True, "foreign": False}
    order = {"order_id": "o-9", "symbol": "MSFT", "side": "buy", "quantity": 5, "filled_quantity": 0}
    order |= {"order_type": "limit", "limit_price": 7.25, "status": "accepted", "source": "api", "foreign": False}
    item = {
        "symbol": "TSLA",
        "priority": 80,
        "score": 41.5,
        "reasons": ["tight range"],
        "last": 3,
        "no_trade": None,
    }
    sick = {
        "name": "mine",
        "kind": "notifier",
        "version": "2",
        "enabled": True,
        "healthy": False,
        "error": "no net",
    }
    well = {"name": "paper", "kind": "broker", "version": "1", "enabled": True, "healthy": True, "error": None}
    jobs = [
        {"id": "scan", "next_run": OPEN + timedelta(minutes=14), "last_run": None, "last_result": None},
        {"id": "data", "next_run": None, "last_run": OPEN, "last_result": "6 files"},
    ]
    account = {"account": "DU1", "mode": "paper", "currency": "USD", "equity": 1000.5, "cash": 900, "day_pnl": -3}
    bodies: dict[str, dict[str, Any]] = {
        "account": account,
        "positions": {"count": 1, "positions": [position]},
        "orders": {"count": 1, "orders": [order]},
        "watchlist": {"count": 1, "updated_at": None, "items": [item]},
        "risk": {"rules": RULES},
        "plugins": {"plugins": [well, sick]},
        "schedule": {"timezone": "America/New_York", "jobs": jobs},
    }
    for name, body in bodies.items():
        server.board.set(name, body)


async def log_in(tab: Tab, node: Node) -> None:
    """Open the dashboard and log in as a person does, with the keyboard."""
    await tab.open(f"{node.url}/")
    await tab.until("document.activeElement.id === 'token'")
    await tab.write("secret-admin")
    await tab.press("Enter")
    await tab.says("#connection", "connected")


async def events(tab: Tab) -> list[str]:
    """Read the events' texts, oldest first."""
    found: list[str] = await tab.run(
        "Array.from(document.querySelectorAll('#events li span'), (each) => each.innerText)"
    )
    return found[::-1]


def symbols(lines: list[str]) -> list[str]:
    """Find the symbol of each trade event's line."""
    return [match[1] for line in lines if (match := re.search(r"\b(N\d+)\b", line))]


def numbered(server: Peer, start: int, end: int) -> list[str]:
    """Emit a trade event for each number, and give their symbols."""
    found = [f"N{number}" for number in range(start, end)]
    for symbol in found:
        server.trade(symbol)
    return found


# --- before the login -------------------------------------------------------------------------------------------


async def test_the_login_tells_how_to_get_a_token(node: Node, tab: Tab) -> None:
    """The hint names a command that the command line has; a wrong token is refused beside the field."""
    await tab.open(f"{node.url}/")
    words = re.search(r"sigma9 (token --show)", await tab.text("#login"))
    assert words is not None
    parser = argparse.ArgumentParser()
    token_command.register(parser.add_subparsers())
    assert parser.parse_args(words[1].split()).show is True
    await tab.write("wrong")
    await tab.press("Enter")
    await tab.says("#login-error", "not valid")
    assert await tab.run("sessionStorage.length") == 0
    assert await tab.text("#app") == ""


# --- events -----------------------------------------------------------------------------------------------------


async def test_events_of_the_journal_are_there_at_once(node: Node, tab: Tab) -> None:
    """What happened before the login is listed first, then what happens, newest on top; each once."""
    expected = numbered(node.server, 0, 5)
    furnish(node.server)
    await log_in(tab, node)
    assert symbols(await events(tab)) == expected
    expected += numbered(node.server, 5, 8)
    await tab.until("document.querySelectorAll('#events li').length >= 8")
    assert symbols(await events(tab)) == expected
    assert "N7" in (await tab.text("#events")).split("\n")[1]  # a time, and below it the newest


async def test_no_event_is_lost_or_doubled_while_the_page_opens(node: Node, tab: Tab) -> None:
    """Events that happen between the journal's page and the stream stand in the list once, in order."""
    furnish(node.server)

    async def busily() -> list[str]:
        told = []
        for number in range(120):
            told += numbered(node.server, number, number + 1)
            await asyncio.sleep(0.005)
        return told

    numbered(node.server, 1000, 1002)
    busy = asyncio.create_task(busily())
    await log_in(tab, node)
    expected = ["N1000", "N1001", *(await busy)]
    await tab.says("#events", "N119")
    assert symbols(await events(tab)) == expected


async def test_a_page_that_was_cut_off_goes_on_where_it_was(serve: Serve, tab: Tab) -> None:
    """After an outage the events of the meantime follow without a gap, and none comes twice."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with serve(port=port) as node:
        furnish(node.server)
        expected = numbered(node.server, 0, 3)
        await log_in(tab, node)
        await node.service.stop()
        await tab.says("#connection", "reconnecting")
        await tab.says("#stale", "Not connected since")
        expected += numbered(node.server, 3, 6)
        node.service = WebService()
        await node.service.start(node.server)
        try:
            await tab.says("#connection", "connected")
            expected += numbered(node.server, 6, 7)
            await tab.says("#events", "N6")
            assert symbols(await events(tab)) == expected
        finally:
            await node.service.stop()


async def test_only_the_newest_events_of_a_long_journal_are_read(node: Node, tab: Tab) -> None:
    """A journal of many events gives its newest hundred; where older ones are not kept, what there is."""
    told = numbered(node.server, 0, 250)
    furnish(node.server)
    await log_in(tab, node)
    assert symbols(await events(tab)) == told[-100:]
    await tab.click("#logout")
    assert await events(tab) == []
    node.server.first = 221
    await log_in(tab, node)
    assert symbols(await events(tab)) == told[-30:]


async def test_log_lines_do_not_stand_among_the_events(node: Node, tab: Tab) -> None:
    """The log has a tab of its own with wall times; lines that only repeat an event are left out of it."""
    furnish(node.server)
    await log_in(tab, node)
    node.server.trade("N1")
    line = LogLine(level="info", logger="sigma9.console", message="BUY 10 N1 filled")
    node.server.emit("log", line, durable=False)
    node.server.log("the disk is nearly full", "warning")
    node.server.log("last", "info")
    await tab.until("document.querySelectorAll('#log li').length >= 2")
    assert len(await events(tab)) == 1
    assert await tab.text("#panel-log") == ""  # it is not shown
    await tab.run("document.getElementById('tab-events').focus()")
    await tab.press("ArrowRight")
    assert await tab.run("document.activeElement.id") == "tab-log"
    assert await tab.text("#panel-events") == ""
    assert [text.split(": ")[1] for text in (await tab.text("#log")).split("\n") if ": " in text] == [
        "last",
        "the disk is nearly full",
    ]
    assert "Wall time, Europe/Berlin" in await tab.text("#panel-log")


async def test_events_can_be_narrowed_to_a_kind(node: Node, tab: Tab) -> None:
    """The choice hides the other kinds, and loses none."""
    node.server.trade("N1")
    node.server.status()
    furnish(node.server)
    await log_in(tab, node)
    choose = "((e) => { e.value = '%s'; e.dispatchEvent(new Event('change')); })(document.getElementById('kinds'))"
    await tab.run(choose % "trade_event")
    shown = await tab.text("#events")
    assert ("N1" in shown, "started" in shown) == (True, False)
    await tab.run(choose % "")
    assert "started" in await tab.text("#events")


# --- clocks and panels ------------------------------------------------------------------------------------------


async def test_both_clocks_are_shown_with_their_zones(node: Node, tab: Tab) -> None:
    """Market time stands in the market's zone, wall time in the reader's; it says when the market opens."""
    furnish(node.server)
    await log_in(tab, node)
    clocks = re.sub(r"\s+", " ", await tab.text("#clocks"))
    assert "Market clock (America/New_York, simulated) Mon, Mar 2, 09:31:05 EST" in clocks
    assert re.search(r"Wall clock \(Europe/Berlin\) \w+, \w+ \d+, \d\d:\d\d:\d\d GMT\+[12]", clocks)
    assert "Market open until Mon, Mar 2, 09:31 EST Next open Tue, Mar 3, 09:30 EST" in clocks
    market = {"open": False, "next_open": OPEN, "next_close": None}
    show(
        node.server,
        market=market,
        feed={"name": "simulated", "state": "connected", "last_at": OPEN.replace(hour=22)},
    )
    await tab.says("#clocks", "17:31:05 EST")
    await tab.says("#clocks", "closed")


async def test_every_panel_shows_its_state(node: Node, tab: Tab) -> None:
    """Risk rules with use and limit, the schedule's next runs and the plugins' health, what is wrong first."""
    furnish(node.server)
    await log_in(tab, node)
    rules = (await tab.text("#risk")).split("\n")
    assert [line.split("\t")[:3] for line in rules if "\t" in line] == [
        ["max_open", "2", "3"],
        ["loss_limit", "4", "3"],
        ["session", "–", "–"],
    ]
    meter = "document.querySelector('#risk meter')"
    assert await tab.run(f"[{meter}.value, {meter}.max, {meter}.ariaLabel]") == [2, 3, "max_open: 2 of 3"]
    assert "tripped until it is cleared" in await tab.text("#risk")
    assert "1 tripped" in await tab.text("#h-risk")
    schedule = await tab.text("#schedule")
    assert "Mon, Mar 2, 09:45" in schedule
    assert "6 files" in schedule
    assert "not planned" in schedule
    plugins = await tab.text("#plugins")
    assert plugins.index("no net") < plugins.index("paper")
    assert "1 of 2 not healthy" in await tab.text("#h-plugins")
    for panel, text in (("positions", "AAPL"), ("orders", "MSFT"), ("watchlist", "TSLA"), ("account", "$900.00")):
        assert text in await tab.text(f"#{panel}"), panel
    assert await tab.run("document.querySelectorAll('#risk button:not([hidden])').length") == 1
    await tab.run("document.querySelector('#risk button:not([hidden])').click()")
    await tab.press("Enter")
    await tab.until("!document.getElementById('ask').open")
    assert [(each.name, dict(each.args)) for each in node.server.commands] == [
        ("risk_clear", {"rule": "loss_limit"})
    ]


# --- commands ---------------------------------------------------------------------------------------------------


async def test_the_kill_switch_is_always_in_reach(node: Node, tab: Tab) -> None:
    """On a phone, scrolled to the end and with a question open, the button can be pressed; by keyboard as well."""
    furnish(node.server)
    await tab.look(390, 844)
    await log_in(tab, node)
    await tab.run("scrollTo(0, document.documentElement.scrollHeight)")
    await tab.run("document.querySelector('#positions button').click()")
    assert await tab.text("#ask-title") == "Close AAPL?"
    await tab.click("#kill")
    assert await tab.text("#ask-title") == "Kill switch"
    await tab.click("#reason")
    await tab.write("too fast")
    await tab.click("#ask-yes")
    await tab.until("!document.getElementById('ask').open")
    assert [(each.name, dict(each.args)) for each in node.server.commands] == [
        ("kill_switch", {"reason": "too fast"})
    ]
    assert await tab.run("document.activeElement.id") == "kill"
    await tab.press("Enter")
    assert await tab.run("document.getElementById('ask').open") is True
    await tab.press("Escape")
    assert await tab.run("document.getElementById('ask').open") is False
    await tab.press("Enter", "Enter")
    await tab.until("!document.getElementById('ask').open")
    assert [each.name for each in node.server.commands] == ["kill_switch", "kill_switch"]
    assert node.server.commands[0].id != node.server.commands[1].id


async def test_the_latch_and_its_phases_are_shown(node: Node, tab: Tab) -> None:
    """While it is on, its phase is marked and what is pending named; no latch is said; a reset needs a reason."""
    furnish(node.server)
    on = {**OFF, "state": "ON", "latched": True, "reason": "too fast", "source": "api", "at": WALL}
    await log_in(tab, node)
    assert await tab.text("#killed") == ""
    current = "document.querySelector('#phases [aria-current]')?.innerText"
    for phase, shown in (
        ("cancelling", "cancel orders"),
        ("flattening", "close positions"),
        ("failed", "not done yet"),
    ):
        pending = {"phase": phase, "pending": ["AAPL"], "detail": "waiting_for_market"}
        tell(node.server, engine="killed", kill_switch={**on, **pending})
        await tab.until(f"{current}?.includes({json.dumps(shown)})")
        await tab.says(
            "#killed-text", "waiting for market · positions held: 1 · waiting for AAPL · reason: too fast"
        )
    tell(node.server, engine="killed", kill_switch={**on, "phase": "done", "latched": False}, active_positions=0)
    await tab.until(f"{current} === 'done'")
    assert (await tab.text("#killed-text")).startswith("NOT LATCHED")
    assert "positions held" not in await tab.text("#killed-text")
    assert await tab.run("document.getElementById('start').disabled")
    await tab.click("#reset")
    await tab.press("Enter")  # without a reason nothing is sent
    assert await tab.run("document.getElementById('ask').open") is True
    await tab.write("it is over")
    await tab.press("Enter")
    await tab.until("!document.getElementById('ask').open")
    sent = [(each.name, dict(each.args)) for each in node.server.commands]
    assert sent == [("reset_kill_switch", {"reason": "it is over"})]


async def test_a_narrow_kill_is_shown_and_reset_by_itself(node: Node, tab: Tab) -> None:
    """A kill of one symbol does not look like the whole one, and its reset names its scope."""
    furnish(node.server)
    partial = {**OFF, "latched": True, "phase": "done", "scopes": [{"symbol": "AAPL"}], "reason": "odd prints"}
    show(node.server, kill_switch=partial)
    await log_in(tab, node)
    assert await tab.text("#killed") == ""
    assert "symbol AAPL" in await tab.text("#scopes")
    assert "done" in await tab.text("#scopes-text")
    await tab.click("#scope-list button")
    await tab.write("quiet again")
    await tab.press("Enter")
    await tab.until("!document.getElementById('ask').open")
    sent = [(each.name, dict(each.args)) for each in node.server.commands]
    assert sent == [("reset_kill_switch", {"reason": "quiet again", "scope": {"symbol": "AAPL"}})]


async def test_what_went_wrong_stands_beside_the_button(
    node: Node, tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused command is told where it was pressed; a question stays open, and tries again under the same id."""
    seen: list[Command] = []

    async def refuse(command: Command) -> Response:
        seen.append(command)
        error = CommandError("broker_unavailable", f"{command.name} can't be done now")
        return Response.failed(command, error, ts=WALL, duration_ms=1)

    monkeypatch.setattr(node.server, "dispatch", refuse)
    furnish(node.server)
    await log_in(tab, node)
    for button, place, name in (("pause", "engine-said", "pause"), ("scan", "scan-said", "scan")):
        await tab.run(f"document.getElementById('{button}').scrollIntoView({{block: 'center'}})")
        await tab.click(f"#{button}")
        await tab.says(f"#{place}", f"{name} can't be done now")
        near = f"['{button}', '{place}'].map((id) => document.getElementById(id).getBoundingClientRect())"
        assert await tab.run(f"(([one, other]) => Math.abs(one.y - other.y) < 60)({near})")
    await tab.click("#kill")
    for tries in (1, 2):
        await tab.click("#ask-yes")
        await tab.until("!document.getElementById('ask-yes').disabled")
        assert await tab.text("#ask-said") == "kill_switch can't be done now"
        assert len(seen) == 2 + tries
    assert seen[-1].id == seen[-2].id
    monkeypatch.undo()
    await tab.click("#ask-yes")
    await tab.until("!document.getElementById('ask').open")


async def test_a_token_that_was_revoked_leads_back_to_the_login(node: Node, tab: Tab) -> None:
    """Nothing of the account stays on the page, and nothing of the token in the tab."""
    furnish(node.server)
    node.server.trade("N1")
    await log_in(tab, node)
    node.server.tokens.clear()
    await tab.says("#login-error", "no longer valid")
    left = await tab.run("document.getElementById('app').textContent")
    assert "AAPL" not in left
    assert "N1" not in left
    assert await tab.run("sessionStorage.length") == 0


# --- looks ------------------------------------------------------------------------------------------------------


async def test_it_fits_a_phone_and_a_screen(node: Node, tab: Tab) -> None:
    """Nothing has to be pushed sideways, nothing that can be pressed is tiny, in both schemes of colours."""
    furnish(node.server)
    show(node.server, engine="killed", kill_switch={**OFF, "state": "ON", "latched": True, "phase": "failed"})
    numbered(node.server, 0, 20)
    await tab.look(390, 844)
    await log_in(tab, node)
    grounds = set()
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            await tab.look(width, 844, scheme)
            await tab.until(f"innerWidth === {width}")
            assert await tab.run("document.documentElement.scrollWidth") == width
            grounds.add(await tab.run("getComputedStyle(document.body).backgroundColor"))
            buttons = (
                "Array.from(document.querySelectorAll('#app button')).filter((each) => each.checkVisibility())"
            )
            assert (
                await tab.run(f"{buttons}.filter((each) => each.offsetHeight < 28).map((each) => each.id)") == []
            )
    assert len(grounds) == 2


def luminance(colour: str) -> float:
    """Give the relative luminance of `#rgb` or `#rrggbb` as WCAG defines it."""
    digits = colour.removeprefix("#")
    digits = "".join(each * 2 for each in digits) if len(digits) == 3 else digits
    parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_in_both_schemes(scheme: int) -> None:
    """Every colour of text has a contrast of 4.5 to 1 at least on every ground that it stands on."""
    blocks = re.findall(r":root \{(.*?)\}", (FOLDER / "dashboard.css").read_text(), re.DOTALL)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6})\b", blocks[scheme]))
    pairs = [
        (text, ground)
        for text in ("text", "muted", "good", "bad", "warn", "accent")
        for ground in ("panel", "ground")
    ]
    pairs += [("text", "raised"), ("bad-text", "bad-ground"), ("warn-text", "warn-ground"), ("good", "raised")]
    for text, ground in pairs:
        bright, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
