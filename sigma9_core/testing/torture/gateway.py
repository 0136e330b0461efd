"""The TWS peer as the venue of a tortured server: `python -m sigma9_core.testing.torture.gateway`.

The broker connects to the peer's own port (ask for `gateway`); control and feed are those of the exchange, and so
is the form of its dump.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

from sigma9_core.testing.exchange.book import Body, text
from sigma9_core.testing.exchange.venue import Market, Venue, run
from sigma9_core.testing.tws import KINDS, FakeTws
from sigma9_core.testing.tws.requests import Request
from sigma9_core.testing.tws.tickets import Ticket
from sigma9_core.testing.tws.wire import Message

TYPES: Final = {
    "MKT": "market",
    "LMT": "limit",
    "STP": "stop",
    "STP LMT": "stop_limit",
    "TRAIL": "trailing_stop",
    "MOC": "market_on_close",
    "LOC": "limit_on_close",
}
ENDS: Final = {"Filled": "filled", "Cancelled": "cancelled", "Inactive": "rejected"}
ACCIDENTS: Final = ("cancel", "correct", "outage", "cut", "mute", "flap", "restart")
"""What goes wrong at a step of the market; every other fault is one of the peer's own, by its name."""
CORRECTED: Final = 200
"""One of so many of the newest executions is corrected."""


class Recorder(FakeTws):
    """The peer, and every order that it was sent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sent: list[Body] = []
        self._newest: dict[tuple[int, int, str], Message] = {}
        """What came last of each order that the book does not have; empty for what it has."""

    def look(self, request: object = None) -> None:
        """Note an order; a change is none, and that of an order which never arrived has other terms."""
        if isinstance(request, Request) and request.order is not None and not request.order.flag("whatIf"):
            ref, key = request.order.get("orderRef"), (request.client_id, request.order_id)
            known = self.book.numbers.get(key)
            if self._newest.get((*key, ref), request.raw) == request.raw:
                self.sent.append({"op": "submit", "ids": [ref], "at": stamp(self)})
            there = known is not None and known.ref == ref
            self._newest[(*key, ref)] = () if there else request.raw
        super().look(request)


class Gateway(Venue):
    """The peer, a market that wanders, and what goes wrong."""

    def __init__(self, seed: int, cash: Decimal) -> None:
        super().__init__(seed)
        self._tws = Recorder(seed=seed, cash=cash)
        self._rates: dict[str, float] = {}
        self._streams = {
            name: random.Random(f"{seed}-{name}")  # noqa: S311 - repeatable on purpose
            for name in ACCIDENTS
        }
        self._happened: Counter[str] = Counter()
        self._away: Counter[str] = Counter()

    async def begin(self) -> None:
        """Open the peer's port."""
        await self._tws.start()

    async def end(self) -> None:
        """Close it."""
        await self._tws.stop()

    # --- the market ---------------------------------------------------------------------------------------------

    def _run(self, message: Body) -> None:
        if self._market is None:
            for symbol, base in message["base"].items():
                self._tws.add_contract(symbol, base)
        super()._run(message)

    def _trade(self, symbol: str, price: Decimal, depth: Decimal | None) -> None:
        book = self._tws.book
        fills, live = len(book.executions), [each for each in book.working() if each.contract.symbol == symbol]
        self._tws.set_price(symbol, price, depth=depth)
        if not self._tws.clients:
            self._away["fills"] += len(book.executions) - fills
            self._away["ends"] += sum(not each.live for each in live)

    def _accidents(self, market: Market) -> None:
        tws = self._tws
        for ticket in tws.book.working():
            if ticket.live and ticket.transmitted and self._strikes("cancel"):
                tws.cancel(
                    ticket, ("expired", "the exchange has ended it")[self._streams["cancel"].random() < 0.5]
                )
        if self._rates.get("correct") and self._strikes("correct"):
            self._correct()
        if not tws.clients:
            return
        if self._strikes("flap"):
            tws.flap_farms()
        if tws.world.link_up and self._strikes("outage"):
            draw = self._streams["outage"]
            kept = draw.random() < 0.5
            tws.lose_link()
            tws.clock.later(draw.uniform(0, self._late), lambda: tws.regain_link(kept=kept))
        if self._strikes("mute"):
            tws.mute()
        if self._strikes("cut"):
            tws.drop()
        if self._strikes("restart"):
            tws.restart()

    def _correct(self) -> None:
        draw, superseded = self._streams["correct"], self._superseded()
        newest = self._tws.book.executions[-CORRECTED:]
        able = [each for each in newest if each.ticket.ref and each.exec_id not in superseded]
        if able:
            execution, half = draw.choice(able), draw.random() < 0.3
            ended = not execution.ticket.live and execution.quantity > 1
            price = execution.price + draw.choice((Decimal("-0.01"), Decimal("0.01")))
            self._tws.correct(execution, price, execution.quantity // 2 if half and ended else None)

    @property
    def _late(self) -> float:
        return self._rates.get("late", 0.25)

    def _strikes(self, name: str) -> bool:
        struck = self._rates.get(name, 0.0) > self._streams[name].random()
        self._happened[name] += struck
        return struck

    # --- what is asked ------------------------------------------------------------------------------------------

    def _ask(self, what: str, message: Body) -> Any:
        match what:
            case "gateway":
                return self._tws.port
            case "faults":
                self._set(message["rates"])
            case "by_hand":
                order = message["order"]
                side, quantity = str(order["side"]).upper(), int(order["quantity"])
                self._tws.place_manual(order["symbol"], action=side, totalQuantity=quantity)
            case "dump":
                return self._dump()
            case _:
                return super()._ask(what, message)
        return None

    def _set(self, rates: dict[str, float]) -> None:
        """Take new chances; what is not named does not happen, and what had gone wrong is over."""
        self._rates = rates
        self._tws.disarm()
        for name, chance in rates.items():
            if name in KINDS:
                late = {"seconds": self._late} if name.split("-")[0] == "late" or name.endswith("-late") else {}
                self._tws.arm(name, None, chance, **late)
        if not rates:
            self._tws.regain_link()

    def _dump(self) -> Body:
        """Give everything that a test may want to compare, as the exchange does."""
        tws, book = self._tws, self._tws.book
        account = tws.world.accounts.first
        return {
            "received": tws.sent,
            "waiting": len(tws.world.waiting),
            "orders": [shown(each, book.early(each)) for each in book.tickets.values() if each.transmitted],
            "executions": [*self._executions()],
            "positions": {each.contract.symbol: str(each.quantity) for each in account.held()},
            "cash": str(account.cash),
            "sessions": sum(1 for each in tws.received if each.name == "startApi"),
            "connected": bool(tws.clients),
            "away": {"fills": self._away["fills"], "ends": self._away["ends"]},
            "faults": dict(tws.faults.happened + self._happened),
        }

    def _executions(self) -> Iterator[Body]:
        superseded = self._superseded()
        for each in self._tws.book.executions:
            yield {
                "fill": {
                    "exec_id": each.exec_id,
                    "order_id": each.ticket.ref,
                    "symbol": each.ticket.contract.symbol,
                    "side": "buy" if each.ticket.order.buys else "sell",
                    "quantity": str(each.quantity),
                    "price": str(each.price),
                    "commission": str(each.commission),
                    "ts": each.time.isoformat(timespec="microseconds"),
                    "broker_order_id": str(each.ticket.perm_id),
                },
                "busted": each.exec_id in superseded,
                "corrected": each.exec_id in superseded,
                "after": str(each.held),
                "told_at": None if each.told_at is None else each.told_at.isoformat(timespec="microseconds"),
            }

    def _superseded(self) -> set[str]:
        """Name the executions that were corrected."""
        corrected = [each.exec_id for each in self._tws.book.executions if not each.exec_id.endswith(".01")]
        return {f"{stem}.{int(last) - 1:02d}" for stem, _, last in (one.rpartition(".") for one in corrected)}


def shown(ticket: Ticket, early: bool) -> Body:
    """Show an order as the exchange does; one whose time has not come is not active."""
    return {
        "number": str(ticket.perm_id),
        "order_id": ticket.ref or None,
        "symbol": ticket.contract.symbol,
        "side": "buy" if ticket.order.buys else "sell",
        "quantity": str(ticket.quantity),
        "filled_quantity": str(ticket.filled),
        "order_type": TYPES[ticket.order.kind],
        "state": "working" if ticket.live else ENDS[ticket.status],
        "limit_price": text(ticket.limit),
        "stop_price": text(ticket.stop),
        "active": not early and (ticket.parent is None or ticket.parent.filled > 0),
        "reason": ticket.reason,
    }


def stamp(tws: FakeTws) -> str:
    """Tell the peer's time."""
    return tws.clock.now().isoformat(timespec="microseconds")


if __name__ == "__main__":
    run(Gateway)
