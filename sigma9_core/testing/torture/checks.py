"""What has to be true after a crash, and at the end of all of them; each fault is one sentence."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from sigma9_core.errors import Sigma9Error
from sigma9_core.events import TradeEvent
from sigma9_core.models import Fill, OrderStatus
from sigma9_core.money import rows
from sigma9_core.money.history import History
from sigma9_core.money.holding import parted
from sigma9_core.money.orders import ENDED
from sigma9_core.money.records import IntentRecord
from sigma9_core.money.restore import Bust
from sigma9_core.state import Documents
from sigma9_core.testing.torture.server import BUSTS, FOREIGN, GUARDED
from sigma9_core.testing.torture.traffic import Promises, latched, read_latch

Dump = Mapping[str, Any]

ZERO: Final = Decimal(0)
NODE: Final = "main"
PAGE: Final = 1000
UNHEARD: Final = timedelta(seconds=0.6)
"""An order was decided so long before the exchange had it, at the most."""


@dataclass(slots=True)
class Story:
    """What a journal tells."""

    intents: list[IntentRecord]
    events: list[tuple[int, str, dict[str, Any]]]
    """Number, the bytes as published, and the envelope."""
    fills: list[Any]
    """Each with the commission that was told after it, where one was."""
    notes: dict[str, list[Any]]

    @property
    def steps(self) -> Iterator[TradeEvent]:
        """Give the trade events in order."""
        for _, raw, envelope in self.events:
            if envelope["type"] == "trade_event":
                yield rows.trade_event(raw)


def read_story(folder: Path) -> Story:
    """Read a journal that nobody writes; raise JournalError where it is not sound."""
    history = History(f"sqlite:///{folder / 'sigma9.db'}", NODE)
    history.open()
    try:
        history.check()
        events: list[tuple[int, str, dict[str, Any]]] = []
        after = 0
        while True:
            page = history.events(after, PAGE)
            for raw in page.events:
                envelope = json.loads(raw)
                events.append((envelope["seq"], raw, envelope))
            if page.next is None:
                break
            after = page.next
        kinds = ("opening", "transfer", "bust", "kill", "reconciliation", "journal", "commission")
        notes = {kind: history.notes(kind, 100_000) for kind in kinds}
        late = {note.body["exec_id"]: Decimal(note.body["amount"]) for note in reversed(notes["commission"])}
        fills = [rows.with_commission(record, late) for record in history.fills()]
        return Story([*history.intents()], events, fills, notes)
    finally:
        history.close()


# --- after each crash -----------------------------------------------------------------------------------------


def check_left(folder: Path, promises: Promises, torn: frozenset[str]) -> tuple[list[str], Promises]:
    """Check what a dead server has left, against what it had promised; give the faults, and the promises that
    hold from here on (the latch and the last command are read from the files)."""
    faults: list[str] = []
    if not (folder / "kill.latch").exists() and promises.unborn:
        return [], promises
    promises.unborn = False
    state = read_latch(folder)
    found = latched(state)
    doubt = state.error is not None and state.latched
    if "latch" in torn and doubt:
        pass  # a torn kill counts as one: everything is halted, or killed as it was before
    elif state.error is not None:
        faults.append(f"the latch can't be read: {state.error}")
    elif found not in promises.latch:
        allowed = " or ".join(str(sorted(each, key=str)) for each in promises.latch)
        faults.append(f"the latch says {sorted(found, key=str)}, and it was {allowed}")
    promises.latch = {found}
    documents = Documents(folder / "documents.json")
    try:
        documents.open()
        commanded = (documents.get("commanded") or {}).get("state")
        if commanded not in promises.commanded:
            faults.append(f"the last command is {commanded}, and it was one of {promises.commanded}")
        promises.commanded = {commanded}
        for name in documents.names():
            documents.get(name)
    except Sigma9Error as error:
        faults.append(f"the documents can't be read: {error}")
    finally:
        documents.close()
    return faults, promises


def check_journal(folder: Path, dump: Dump) -> list[str]:
    """Check a dead server's journal by itself, against what it had published, and what the exchange had received
    by then."""
    if not (folder / "sigma9.db").exists():
        return [] if not dump["received"] else ["orders were sent, and there is no journal"]
    try:
        story = read_story(folder)
    except Sigma9Error as error:
        return [f"the journal can't be read: {error}"]
    faults = [*_numbers(story), *_published(folder, story), *_fills_once(story), *_intents(story)]
    known = {intent.order_id for intent in story.intents if intent.approved}
    for received in dump["received"]:
        if received["op"] == "submit":
            faults += [
                f"the order {one} was sent without an intent" for one in received["ids"] if one not in known
            ]
    return faults


def _numbers(story: Story) -> Iterator[str]:
    numbers = [seq for seq, _, _ in story.events]
    if numbers != list(range(1, len(numbers) + 1)):
        missing = sorted(set(range(1, (numbers or [0])[-1] + 1)) - set(numbers))
        yield f"the numbers of the events have gaps: {missing[:10]}"


def _published(folder: Path, story: Story) -> Iterator[str]:
    """What was published is in the journal, byte for byte: it was durable before."""
    file = folder / "published.jsonl"
    if not file.exists():
        return
    stored = {raw for _, raw, _ in story.events}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line not in stored:
            yield f"this event was published, and the journal does not have it: {line[:300]}"


def _fills_once(story: Story) -> Iterator[str]:
    told = Counter(record.fill.exec_id for record in story.fills)
    yield from (f"the fill {one} is in the journal {count} times" for one, count in told.items() if count > 1)
    steps = (envelope["data"] for _, _, envelope in story.events if envelope["type"] == "trade_event")
    events = Counter(step["trade_id"] for step in steps if step["trade_id"] is not None)
    yield from (f"the fill {one} was told {count} times" for one, count in events.items() if count > 1)
    yield from (f"the fill {one} has no event" for one in told if one not in events)


def _intents(story: Story) -> Iterator[str]:
    """An order id is decided on once; a command makes one order."""
    first: dict[str, IntentRecord] = {}
    made: defaultdict[str, set[str]] = defaultdict(set)
    for intent in story.intents:
        known = first.setdefault(intent.order_id, intent)
        if (known.request.symbol, known.request.side) != (intent.request.symbol, intent.request.side):
            yield f"the order id {intent.order_id} was used for two orders"
        if intent.approved and intent.cause is not None and intent.request.parent_id is None:
            made[intent.cause].add(intent.order_id)
    for cause, orders in made.items():
        by_hand = "-" in cause and cause != "kill_switch"  # an id of the traffic's, not that of an order
        if by_hand and len({first[one].request.symbol for one in orders}) < len(orders):
            yield f"the command {cause} has made the orders {sorted(orders)}"


# --- at the end -----------------------------------------------------------------------------------------------


def check_end(folder: Path, dump: Dump, promises: Promises, births: Sequence[datetime]) -> list[str]:
    """Compare the journal of a server that has settled with the exchange, which stands still."""
    faults = check_journal(folder, dump)
    if faults:
        return faults
    story = read_story(folder)
    faults += [*_sent_once(dump), *_same_fills(story, dump), *_same_orders(story, dump)]
    faults += [*_same_positions(story, dump), *_same_cash(story, dump), *_turned(dump)]
    faults += [*_kept_orders(story, promises), *_asked_for(story, promises), *_in_one_life(story, dump, births)]
    return faults


def _ours(dump: Dump) -> list[dict[str, Any]]:
    return [each for each in dump["executions"] if each["fill"]["order_id"]]


def _missed_busts(story: Story, dump: Dump) -> list[dict[str, Any]]:
    """Give the trades that were taken back while nobody heard of it."""
    noted = {Bust.of(note.body).told for note in story.notes["bust"]}
    counted = {record.fill.exec_id for record in story.fills}
    counted |= {each["fill"]["exec_id"] for each in _ours(dump) if _stands_for(each) in counted}
    return [
        each["fill"]
        for each in _ours(dump)
        if taken_back(each) and each["fill"]["exec_id"] not in noted and each["fill"]["exec_id"] in counted
    ]


def taken_back(execution: Mapping[str, Any]) -> bool:
    """Tell whether a trade was taken back, with nothing in its place."""
    return bool(execution["busted"]) and not execution.get("corrected")


def _stands_for(execution: Mapping[str, Any]) -> str:
    """Name the fill that is made up for an order which has filled without executions: this one, taken back."""
    return f"readback-{execution['fill']['broker_order_id']}"


def _sent_once(dump: Dump) -> Iterator[str]:
    sent = Counter(one for message in dump["received"] if message["op"] == "submit" for one in message["ids"])
    yield from (f"the order {one} was sent {count} times" for one, count in sent.items() if count > 1)
    there = Counter(order["order_id"] for order in dump["orders"] if order["order_id"])
    yield from (f"the order {one} is there {count} times" for one, count in there.items() if count > 1)


def _same_fills(story: Story, dump: Dump) -> Iterator[str]:
    """Every fill is in the journal once, as the exchange has it, and nothing else is."""
    truth = {each["fill"]["exec_id"]: each for each in _ours(dump)}
    told = {record.fill.exec_id: record.fill for record in story.fills}
    stand_ins = {_stands_for(each) for each in truth.values() if each["busted"]}
    for exec_id, fill in told.items():
        if exec_id in stand_ins:
            continue
        if exec_id not in truth:
            yield f"the fill {exec_id} is in the journal and never was"
            continue
        real = truth[exec_id]["fill"]
        names = ("order_id", "symbol", "side")
        # What was corrected costs nothing any more: its commission may have come after that.
        amounts = ("quantity", "price", *(() if truth[exec_id].get("corrected") else ("commission",)))
        same = all(getattr(fill, name) == real[name] for name in names)
        if not same or any(getattr(fill, name) != Decimal(real[name]) for name in amounts):
            yield f"the fill {exec_id} is in the journal as {fill}, and was {real}"
    for exec_id, each in truth.items():
        if exec_id not in told and not each["busted"]:
            yield f"the fill {exec_id} of {each['fill']['order_id']} is not in the journal"


def _same_orders(story: Story, dump: Dump) -> Iterator[str]:
    """What works and what has ended is the same on both sides; nothing has filled beyond its quantity."""
    last: dict[str, TradeEvent] = {}
    ended: set[str] = set()
    for step in story.steps:
        last[step.order_id] = step
        if step.event in ENDED:
            ended.add(step.order_id)
        elif step.event is OrderStatus.ACCEPTED:  # it works again
            ended.discard(step.order_id)
    truth = {order["order_id"]: order for order in dump["orders"] if order["order_id"]}
    filled: defaultdict[str, Decimal] = defaultdict(lambda: ZERO)
    for record in story.fills:
        filled[record.fill.order_id] += record.fill.quantity
    before: defaultdict[str, Decimal] = defaultdict(lambda: ZERO)
    for execution in filter(lambda each: each.get("corrected"), _ours(dump)):
        before[execution["fill"]["order_id"]] += Decimal(execution["fill"]["quantity"])
    approved = {intent.order_id for intent in story.intents if intent.approved}
    for order_id in approved:
        if order_id not in last:
            yield f"the order {order_id} has an intent and no event"
        elif order_id not in truth:
            if order_id not in ended or filled[order_id]:
                yield f"the order {order_id} is {last[order_id].event}, and the exchange never had it"
        elif (truth[order_id]["state"] == "working") == (order_id in ended):
            yield f"the order {order_id} is {last[order_id].event}, at the exchange {truth[order_id]['state']}"
        elif str(last[order_id].event) == "unknown":
            yield f"the order {order_id} is still unknown"
    for step in story.steps:
        real = truth.get(step.order_id)
        stand_in = step.trade_id is not None and step.trade_id.startswith("readback-")
        # What was corrected to less has been told as more, up to its correction.
        more = before[step.order_id] if step is not last[step.order_id] else ZERO
        if real is not None and step.filled_quantity > Decimal(real["filled_quantity"]) + more and not stand_in:
            yield f"the order {step.order_id} was told to have filled {step.filled_quantity}: {real}"
    for order_id, order in truth.items():
        if order_id in last and last[order_id].filled_quantity < Decimal(order["filled_quantity"]):
            yield f"the order {order_id} has filled {last[order_id].filled_quantity}, at the exchange: {order}"
        if Decimal(order["filled_quantity"]) > Decimal(order["quantity"]):
            yield f"the order {order_id} has filled beyond its quantity: {order}"
        if order_id in last and order["state"] == "working":
            mine, theirs = last[order_id].quantity, Decimal(order["quantity"])
            if mine != theirs:
                yield f"the order {order_id} is over {mine}, at the exchange over {theirs}"


def _same_positions(story: Story, dump: Dump) -> Iterator[str]:
    """Positions agree, but for trades that were taken back while nobody heard of it: these are said to differ."""
    mine: defaultdict[str, Decimal] = defaultdict(lambda: ZERO)
    for fill in _standing(story):
        mine[fill.symbol] += fill.quantity * (1 if fill.side == "buy" else -1)
    missed: defaultdict[str, Decimal] = defaultdict(lambda: ZERO)
    for each in _missed_busts(story, dump):
        missed[each["symbol"]] += Decimal(each["quantity"]) * (1 if each["side"] == "buy" else -1)
    newest = story.notes["reconciliation"][0].body if story.notes["reconciliation"] else {}
    said = {*newest.get("unexplained", ()), *newest.get("foreign_positions", ())}
    theirs = {symbol: Decimal(quantity) for symbol, quantity in dump["positions"].items()}
    for symbol in {*mine, *theirs} - set(FOREIGN):
        real = theirs.get(symbol, ZERO)
        if mine[symbol] - missed[symbol] != real:
            yield f"the journal's fills make {mine[symbol]} of {symbol}, the exchange has {real}"
        elif missed[symbol] and symbol not in said:
            yield f"a trade in {symbol} was taken back unheard, and no word is said of the difference"


def _same_cash(story: Story, dump: Dump) -> Iterator[str]:
    """Cash agrees, and what was taken as a transfer is what no fill of ours explains."""
    opening = sum((Decimal(note.body["cash"]) for note in story.notes["opening"]), ZERO)
    transfers = sum((Decimal(note.body["amount"]) for note in story.notes["transfer"]), ZERO)
    traded = sum(map(_paid, _standing(story)), ZERO)
    if len(story.notes["opening"]) != 1:
        yield f"the books were opened {len(story.notes['opening'])} times"
    if abs(opening + traded + transfers - Decimal(dump["cash"])) >= Decimal("0.01"):
        yield f"the books have a cash of {opening + traded + transfers}, the exchange has {dump['cash']}"


def _standing(story: Story) -> Iterator[Fill]:
    """Give the fills of the journal without what was taken back of them."""
    left: dict[str, Fill | None] = {record.fill.exec_id: record.fill for record in story.fills}
    for back in (Bust.of(note.body) for note in reversed(story.notes["bust"])):
        fill = left.get(back.exec_id)
        left[back.exec_id] = None if fill is None else parted(fill, back.quantity)[1]
    return (fill for fill in left.values() if fill is not None)


def _paid(fill: Fill) -> Decimal:
    amount: Decimal = fill.quantity * fill.price
    return (amount if fill.side == "sell" else -amount) - Decimal(fill.commission)


def _turned(dump: Dump) -> Iterator[str]:
    """No exit has turned a position round, but where a fill's report was lost or late: then nobody could know."""
    received = {
        one: datetime.fromisoformat(message["at"])
        for message in dump["received"]
        if message["op"] == "submit"
        for one in message["ids"]
    }
    for each in unheard_turns(dump):
        fill = each["fill"]
        sent = received[fill["order_id"]]
        before = [
            other
            for other in _ours(dump)
            if other["fill"]["symbol"] == fill["symbol"]
            and other is not each
            and other["fill"]["ts"] <= fill["ts"]
        ]
        late = [o for o in before if o["told_at"] is None or datetime.fromisoformat(o["told_at"]) > sent - UNHEARD]
        if not late:
            yield (
                f"{fill['symbol']} was turned to {each['after']} by {fill['order_id']} ({fill['exec_id']}), "
                "though all fills before it had been told"
            )


def unheard_turns(dump: Dump) -> list[dict[str, Any]]:
    """Give the sales that made a position short which never should be."""
    never = set(GUARDED) - set(BUSTS)
    return [
        each
        for each in _ours(dump)
        if each["fill"]["symbol"] in never and each["fill"]["side"] == "sell" and Decimal(each["after"]) < ZERO
    ]


def _kept_orders(story: Story, promises: Promises) -> Iterator[str]:
    """An order that was answered is in the journal, with an intent of its own."""
    known: dict[str, IntentRecord] = {}
    for intent in story.intents:
        known.setdefault(intent.order_id, intent)  # what follows are changes of it
    for name, answer in promises.answered.items():
        order_id = answer["result"]["order"]["order_id"]
        if order_id not in known or known[order_id].cause != name:
            yield f"the order {order_id} was answered to the command {name}, and the journal does not know it"


def _asked_for(story: Story, promises: Promises) -> Iterator[str]:
    """An entry is one that somebody asked for: a command, or a signal, and each of them once."""
    signals: Counter[tuple[str | None, str, str]] = Counter()
    seen: set[str] = set()
    for intent in story.intents:
        ask = intent.request
        if not intent.approved or ask.intent != "entry" or intent.order_id in seen:
            continue
        seen.add(intent.order_id)
        if ask.source == "strategy":
            signals[ask.strategy, ask.symbol, str((ask.signal or {}).get("ts"))] += 1
        elif intent.cause not in promises.orders:
            yield f"nobody has asked for the order {intent.order_id}: {ask}"
    yield from (f"the signal {one} has made {count} entries" for one, count in signals.items() if count > 1)


def _in_one_life(story: Story, dump: Dump, births: Sequence[datetime]) -> Iterator[str]:
    """What was decided on in one life is not sent in another."""
    decided: dict[str, datetime] = {}
    for intent in story.intents:
        decided.setdefault(intent.order_id, intent.ts)
    for message in dump["received"]:
        arrived = datetime.fromisoformat(message["at"]) - UNHEARD
        if message["op"] == "submit":
            for one in message["ids"]:
                if one in decided and any(decided[one] < birth < arrived for birth in births):
                    yield f"the order {one} was decided on at {decided[one]}, and sent in a later life"


def released(folder: Path) -> set[str]:
    """Name the symbols whose exits a person has cancelled: they stay without, as that person wants it."""
    history = History(f"sqlite:///{folder / 'sigma9.db'}", NODE)
    history.open()
    try:
        newest: dict[str, bool] = {}
        for note in history.notes("guard", 10_000):  # newest first
            newest.setdefault(note.body["symbol"], bool(note.body.get("released")))
        return {symbol for symbol, is_released in newest.items() if is_released}
    finally:
        history.close()


def naked(orders: list[dict[str, Any]], positions: Mapping[str, str]) -> dict[str, str]:
    """Give what is held at the exchange with neither a working stop for all of it nor a working close."""
    bare: dict[str, str] = {}
    for symbol, quantity in positions.items():
        held = Decimal(quantity)
        if symbol not in GUARDED or symbol in BUSTS or held <= ZERO:
            continue
        exits = [
            order
            for order in orders
            if order["state"] == "working"
            and order["active"]
            and order["symbol"] == symbol
            and order["side"] == "sell"
            and order["order_type"] in ("stop", "trailing_stop", "market")
        ]
        covered = max((Decimal(o["quantity"]) - Decimal(o["filled_quantity"]) for o in exits), default=ZERO)
        if covered < held:
            bare[symbol] = f"{held} held, {covered} covered"
    return bare
