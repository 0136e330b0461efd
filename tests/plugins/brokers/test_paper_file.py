"""The paper exchange survives the end of its process: what the file has is what it was."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.clock import EPOCH, SteppedClock
from sigma9_core.errors import BrokerError
from sigma9_core.models import Slice, Split, Trade
from sigma9_core.testing.broker_contract import Recorder
from sigma9_core.testing.orders import approve, request
from sigma9_plugins.brokers import paper_book
from sigma9_plugins.brokers.paper_book import Book, Holding, PaperOrder
from sigma9_plugins.testing.paper_room import START, Exchange, exchange, paper

CASH = Decimal(100_000)


def book_of(room: Exchange) -> Book:
    """Look into the exchange."""
    return room.broker._ledger.book


async def busy_day(room: Exchange) -> None:
    """Let a lot happen: fills, parts of fills, groups, brackets, changes, cancels, rejections, orders by hand."""
    rng = random.Random(7)
    sent: list[Any] = []
    price = 10.0
    for step in range(120):
        price = round(min(12, max(8, price + rng.choice((-0.07, 0.0, 0.07)))), 2)
        kind = rng.choice(
            ("market", "limit", "stop", "trailing_stop", "bracket", "replace", "cancel", "hand", "bad")
        )
        side: Any = rng.choice(("buy", "sell"))
        if kind == "market":
            sent.append(await room.order(side, rng.randint(1, 300)))
        elif kind == "limit":
            terms = {"order_type": "limit", "limit_price": price - 0.1, "oca_group": f"g{step // 10}"}
            sent.append(await room.order("buy", 50, **terms))
        elif kind == "stop":
            sent.append(await room.order("sell", 50, order_type="stop", stop_price=price - 0.1, intent="reduce"))
        elif kind == "trailing_stop":
            sent.append(await room.order("sell", 30, order_type="trailing_stop", trail_percent=1, intent="reduce"))
        elif kind == "bracket":
            entry = approve(request(room.symbol, "buy", 100, order_type="limit", limit_price=price))
            legs: dict[str, Any] = {"parent_id": entry.order_id, "oca_group": entry.order_id, "intent": "reduce"}
            stop = request(room.symbol, "sell", 100, order_type="stop", stop_price=price - 0.2, **legs)
            profit = request(room.symbol, "sell", 100, order_type="limit", limit_price=price + 0.2, **legs)
            await room.broker.submit([entry, approve(stop), approve(profit)])
            sent.append(entry)
        elif kind == "hand":
            room.broker.place_by_hand(request(room.symbol, side, 10))
        elif kind == "bad":
            await room.order(side, 0)
        elif sent:
            order = rng.choice(sent)
            try:
                if kind == "cancel":
                    await room.broker.cancel(order.order_id)
                else:
                    changed = order.request.model_copy(update={"quantity": order.request.quantity + 7})
                    await room.broker.replace(approve(changed, order.order_id))
            except BrokerError:
                pass  # it has ended
        if rng.random() < 0.5:
            await room.trade(price, size=rng.randint(100, 2000))
        else:
            await room.quote(price - 0.01, price + 0.01, bid_size=rng.randint(10, 200), ask_size=150)


async def reading_back(broker: Any) -> tuple[Any, ...]:
    """Read everything back."""
    return (
        await broker.open_orders(),
        await broker.completed_orders(EPOCH),
        await broker.executions(EPOCH),
        await broker.positions(),
        (await broker.account()).cash,
    )


async def test_restart_equality(tmp_path: Path) -> None:
    """A broker on the same file reads back what the first one did, in every detail, twice over."""
    async with exchange(tmp_path) as room:
        await busy_day(room)
        before = await reading_back(room.broker)
        inside = book_of(room).snapshot()
    assert len(before[0]) > 3
    assert len(before[2]) > 50
    for _ in range(2):
        async with exchange(tmp_path) as again:
            assert await reading_back(again.broker) == before
            assert book_of(again).snapshot() == inside


async def test_cut_at_any_byte(tmp_path: Path) -> None:
    """A file that a crash cut anywhere gives the state after the last whole step: none half, none doubled."""
    async with exchange(tmp_path / "whole") as room:
        states = [book_of(room).snapshot()]
        append = room.broker._ledger._commit

        def commit(step: Any) -> None:
            append(step)
            states.append(book_of(room).snapshot())

        room.broker._ledger._commit = commit  # type: ignore[method-assign]
        await busy_day(room)
        text = (tmp_path / "whole" / "paper.jsonl").read_bytes()
    first = text.index(b"\n") + 1
    ends = [i + 1 for i, byte in enumerate(text) if byte == ord("\n")]
    assert len(states) == len(ends)
    rng = random.Random(3)
    cuts = {first, len(text), *rng.sample(range(first, len(text)), 60), *rng.sample(ends, 20)}
    folder = tmp_path / "cut"
    folder.mkdir()
    for cut in sorted(cuts):
        (folder / "paper.jsonl").write_bytes(text[:cut])
        whole = sum(end <= cut for end in ends)
        broker = paper(folder)
        await broker.connect(Recorder())

        assert broker._ledger.book.snapshot() == states[whole - 1], cut
        await broker.disconnect()


async def test_written_before_reported(tmp_path: Path) -> None:
    """What is reported stands in the file already at that moment."""
    async with exchange(tmp_path) as room:
        missing: list[Any] = []

        def check(report: Any) -> None:
            lines = (tmp_path / "paper.jsonl").read_text().splitlines()
            step = json.loads(lines[-1])
            names = {record.get("exec_id") or record.get("number") or record["order"]["number"] for record in step}
            wanted = report.fill.exec_id if report.fill else report.broker_order_id
            if wanted not in names:
                missing.append(report)

        room.heard.on_report = check  # type: ignore[method-assign]
        await busy_day(room)

        assert missing == []


async def test_a_group_is_one_step(tmp_path: Path) -> None:
    """A fill and the cancels that it causes are one line: a crash between them can't be."""
    async with exchange(tmp_path) as room:
        await room.hold(100)
        common: dict[str, Any] = {"oca_group": "g", "intent": "reduce"}
        await room.order("sell", 100, order_type="limit", limit_price=10.5, **common)
        await room.order("sell", 100, order_type="stop", stop_price=9.5, **common)
        await room.move(room.symbol, 10.6)
        last = json.loads((tmp_path / "paper.jsonl").read_text().splitlines()[-1])

    assert [record["do"] for record in last] == ["fill", "end"]


async def test_data_that_come_again_are_not_matched_again(tmp_path: Path) -> None:
    """After a restart the feed may go back a little; data up to the last step are not matched a second time."""
    async with exchange(tmp_path) as room:
        order = await room.order("buy", 100)
        await room.trade(10.0, size=300)
        seen = room.now()
    async with exchange(tmp_path) as again:
        await again.slice(Trade(again.symbol, seen, 10.0, 300), at=seen)
        assert again.fills(order) == []
        await again.slice(
            Trade(again.symbol, seen + timedelta(seconds=1), 10.0, 9e6), at=seen + timedelta(seconds=1)
        )

        assert [fill.quantity for fill in again.fills(order)] == [70]
        assert await again.position() == 100


async def test_broken_file_is_named(tmp_path: Path) -> None:
    """A file that is broken in the middle is refused with its line, and left as it is."""
    async with exchange(tmp_path) as room:
        await room.hold(100)
    file = tmp_path / "paper.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[1] = lines[1][:20]
    file.write_bytes(b"\n".join(lines))
    broker = paper(tmp_path)
    with pytest.raises(BrokerError, match=r"paper\.jsonl: line 2 is broken"):
        await broker.connect(Recorder())

    assert file.read_bytes() == b"\n".join(lines)


async def test_full_disk_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file can't be written the order is not taken, nothing is reported, and the file stays whole."""
    async with exchange(tmp_path) as room:
        order = approve(request(room.symbol, "buy", 100))
        before = (tmp_path / "paper.jsonl").read_bytes()

        def full(file: int, line: bytes) -> None:
            os.write(file, line[:20])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("sigma9_plugins.brokers.paper_log.PaperLog._write", staticmethod(full))
            with pytest.raises(BrokerError, match="No space left"):
                await room.broker.submit([order])
        assert room.heard.reports == []
        assert await room.working(order) is None
        assert (tmp_path / "paper.jsonl").read_bytes() == before
        await room.broker.submit([order])

        assert room.heard.kinds(order.order_id) == ["accepted"]


async def test_compaction_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a start the file becomes one line; of what has ended it keeps the newest, and everything that works."""
    async with exchange(tmp_path) as room:
        resting = await room.order("buy", 10, order_type="limit", limit_price=5, time_in_force="gtc")
        for _ in range(6):
            await room.hold(10)
        count = book_of(room).count
    monkeypatch.setattr(paper_book, "KEPT", 4)
    for _ in range(2):
        async with exchange(tmp_path) as again:
            await asyncio.sleep(0)
    async with exchange(tmp_path) as again:
        assert len((tmp_path / "paper.jsonl").read_text().splitlines()) == 1
        assert await again.working(resting) is not None
        assert len(await again.broker.executions(EPOCH)) == 4
        assert len(await again.broker.completed_orders(EPOCH)) == 4
        assert await again.position() == 60
        assert book_of(again).count == count


KILLED = """
    import asyncio, sys
    from pathlib import Path
    from sigma9_plugins.testing.paper_room import exchange

    async def main() -> None:
        async with exchange(Path(sys.argv[1])) as room:
            while True:
                order = await room.order("buy", 100)
                await room.move(room.symbol, 10.0)
                for fill in room.fills(order):
                    print(fill.exec_id, flush=True)

    asyncio.run(main())
"""


def test_kill_9(tmp_path: Path) -> None:
    """Every fill that was reported before a kill -9 is there after it, and the cash fits."""
    program = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        told = [child.stdout.readline().strip() for _ in range(40)]
        time.sleep(0.02)  # anywhere in the middle of its work
        child.send_signal(signal.SIGKILL)
        told += child.stdout.read().split("\n")[:-1]

    async def after() -> tuple[Any, ...]:
        async with exchange(tmp_path) as room:
            return await reading_back(room.broker)

    _, _, executions, (position,), cash = asyncio.run(after())
    held = position.quantity

    assert [fill.exec_id for fill in executions][: len(told)] == told
    assert len(executions) - len(told) <= 1
    assert held == sum(fill.quantity for fill in executions)
    assert cash == CASH - sum(fill.quantity * fill.price + fill.commission for fill in executions)


def test_holding_through_zero() -> None:
    """A position that goes through zero starts a new cost; one that is reduced keeps its cost."""
    held = Holding()
    held.take("buy", Decimal(100), Decimal(10))
    held.take("buy", Decimal(100), Decimal(12))
    assert (held.quantity, held.average_cost) == (Decimal(200), Decimal(11))
    held.take("sell", Decimal(50), Decimal(20))
    assert (held.quantity, held.average_cost) == (Decimal(150), Decimal(11))
    held.take("sell", Decimal(250), Decimal(9))
    assert (held.quantity, held.average_cost) == (Decimal(-100), Decimal(9))
    held.take("buy", Decimal(100), Decimal(8))
    assert (held.quantity, held.average_cost) == (Decimal(0), Decimal(0))


def test_unknown_record() -> None:
    """A record that the book does not know is an error: the file is of a later version."""
    book = Book(CASH)
    order = PaperOrder("P1", "a", "TEST", "buy", Decimal(1), "market", START)
    book.apply({"do": "accept", "ts": START.isoformat(), "order": order.to_json()})
    with pytest.raises(ValueError, match="dance"):
        book.apply({"do": "dance", "ts": START.isoformat(), "number": "P1"})


async def test_clock_goes_on_from_the_newest_record(tmp_path: Path) -> None:
    """After a restart with a clock that is behind, orders count from the newest market time that is known."""
    async with exchange(tmp_path) as room:
        await room.hold(1)
        newest = room.now()
    clock = SteppedClock("simulated", START)
    room = Exchange(paper(tmp_path, clock=clock), clock)
    await room.broker.connect(room.heard)
    order = await room.order("buy", 1)
    number = book_of(room).numbers[order.order_id]

    assert book_of(room).orders[number].since >= newest
    await room.broker.disconnect()


async def test_a_split_is_applied_once_and_kept(tmp_path: Path) -> None:
    """Shares double, orders in the symbol are cancelled, and neither a repeat nor a restart splits again."""
    async with exchange(tmp_path) as room:
        await room.move(room.symbol, 10.0)
        await room.order("buy", 100)
        await room.move(room.symbol, 10.0)
        await room.order("sell", 100, order_type="stop", stop_price=9.0, intent="reduce")
        (held,) = await room.broker.positions()
        told = Split(room.symbol, room.now(), Decimal(2))
        for _ in range(2):
            await room.broker.on_market(Slice(room.now(), splits=(told,)), None)
        (now,) = await room.broker.positions()
        assert (now.quantity, now.average_cost) == (held.quantity * 2, held.average_cost / 2)
        assert await room.broker.open_orders() == []
        cash = (await room.broker.account()).cash
    async with exchange(tmp_path) as again:
        await again.broker.on_market(Slice(again.now(), splits=(told,)), None)
        assert await again.broker.positions() == [now]
        assert (await again.broker.account()).cash == cash
