"""Work for a server that is going to die, and everything that it has promised meanwhile."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sigma9_core.money.latch import Latch, LatchState
from sigma9_core.testing.exchange.control import ExchangeProcess
from sigma9_core.testing.torture.server import ALPHA, BETA, BRACKETS, FOREIGN, GUARDED, PLAIN, TorturedServer

Latched = frozenset[tuple[tuple[str, str] | None, bool]]
"""What is latched: each scope, and whether it flattens."""

LATCHED_WITHIN: Final = 3.0
"""Seconds until an answered kill has to be in the latch file."""
LATE: Final = 0.2
"""A latch that comes this much later than the answer was not waited for; a slow disk may do that now and then."""
NOTHING: Final[Latched] = frozenset()


def latched(state: LatchState) -> Latched:
    """Give the scopes of a latch."""
    return frozenset((scope.key, scope.flatten) for scope in state.scopes)


@dataclass(slots=True)
class Promises:
    """What a server may be after a crash, by what it has answered and what it was asked last."""

    unborn: bool = True
    """No server has come as far as to make its latch yet."""
    latch: set[Latched] = field(default_factory=lambda: {NOTHING})
    commanded: set[str | None] = field(default_factory=lambda: {None})
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Arguments of every `place_order`, by the command's id."""
    answered: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The first answer of each that has one."""
    broken: list[str] = field(default_factory=list)
    """Promises that were not kept, one sentence each."""
    done: Counter[str] = field(default_factory=Counter)
    """Commands that were carried out."""
    refused: Counter[str] = field(default_factory=Counter)
    """Commands that were refused, with the code."""
    late: int = 0
    """Latches that came after the answer."""
    lost: int = 0
    """Answers that were lost with the server."""


class Traffic:
    """Two people at work on one server: one commands, one trades. `run` blocks until the server is dead."""

    def __init__(
        self, server: TorturedServer, exchange: ExchangeProcess, promises: Promises, *, seed: str, wants: str
    ) -> None:
        self._server = server
        self._exchange = exchange
        self._promises = promises
        self._wants = wants
        self._commander = random.Random(f"{seed}-commander")  # noqa: S311 - repeatable
        self._trader = random.Random(f"{seed}-trader")  # noqa: S311 - repeatable
        self._seed = seed
        self._count = 0
        self._latch = Latch(server.data / "kill.latch")

    def run(self, until: float) -> None:
        """Work until the server dies or a time (monotonic) has come."""
        try:
            with ThreadPoolExecutor(1, "trader") as second:
                trading = second.submit(self._trade, until)  # at once: also while nothing is reconciled yet
                if self._begin(until):
                    self._command(until)
                trading.result()
        finally:
            self._latch.close()

    # --- the one who commands -----------------------------------------------------------------------------------

    def _begin(self, until: float) -> bool:
        """Reset what an earlier life has left, mostly, and start the engine; tell whether the server lives."""
        if self._known() != NOTHING and (self._wants != "nothing" or self._commander.random() < 0.5):
            if self._commander.random() < 0.3:
                time.sleep(self._commander.uniform(0.1, 0.6))  # the kill goes on with its work
            for key, _ in sorted(self._known(), key=str):
                self._reset(key)
        for _ in self._server.looks(until):
            answer = self._tell("start")
            if answer is None:
                return False
            code = None if answer["error"] is None else answer["error"]["code"]
            if code != "broker_unavailable":
                break
        return self._server.alive

    def _command(self, until: float) -> None:
        draw = self._commander
        begun = time.monotonic()
        kill_at = begun + draw.uniform(0.2, 0.7) if self._wants == "kills" else until + 1
        for _ in self._server.looks(until, 0.02):
            if time.monotonic() > kill_at:
                self._kill(scoped=draw.random() < 0.2)
                time.sleep(draw.uniform(0.0, 0.5))
                if not self._server.alive:
                    return
                for key, _flatten in sorted(self._known(), key=str):
                    self._reset(key)
                self._tell("start")
                kill_at = time.monotonic() + draw.uniform(0.2, 0.6)
            time.sleep(draw.uniform(0.02, 0.12))
            self._choose(
                draw,
                {
                    self._kill_now: 1,
                    self._reset_any: 3,
                    lambda: self._tell("start"): 3,
                    lambda: self._tell("pause"): 1,
                    lambda: self._tell("resume"): 2,
                    lambda: self._tell("stop"): 1,
                    lambda: self._server.ask("cancel_all", protective=draw.random() < 0.3): 2,
                    lambda: self._server.ask("close_position", symbol="*", id=self._id()): 1,
                    self._reconnect: 1,
                    self._by_hand: 2,
                },
            )

    def _known(self) -> Latched:
        """Give what is latched; the dead server's file has told it before this life at the latest."""
        return next(iter(self._promises.latch))

    @property
    def _sure(self) -> bool:
        """Tell whether it is known what is latched: a command whose answer was lost leaves that open."""
        return len(self._promises.latch) == 1

    def _kill_now(self) -> None:
        self._kill(scoped=self._commander.random() < 0.6)

    def _kill(self, *, scoped: bool) -> None:
        if not self._sure:
            return
        draw = self._commander
        key: tuple[str, str] | None = None
        scope: dict[str, str] | None = None
        if scoped:
            key = draw.choice((("strategy", "alpha"), ("strategy", "beta"), ("symbol", draw.choice(GUARDED))))
            scope = {key[0]: key[1]}
        flatten = draw.random() < 0.7
        now = self._known()
        wanted = frozenset(
            {(each, how) for each, how in now if each != key} | {(key, flatten or (key, True) in now)}
        )
        self._promises.latch = {now, wanted}
        answer = self._tell("kill_switch", flatten=flatten, scope=scope, reason="torture")
        if answer is None:
            return
        if not answer["ok"]:
            self._promises.broken.append(f"a kill was refused: {answer['error']}")
        self._settle_latch(wanted, "a kill was answered")

    def _reset_any(self) -> None:
        known = sorted(self._known(), key=str)
        if known:
            self._reset(self._commander.choice(known)[0])

    def _reset(self, key: tuple[str, str] | None) -> None:
        if not self._sure:
            return
        now = self._known()
        wanted = frozenset((each, how) for each, how in now if each != key)
        self._promises.latch = {now, wanted}
        scope = None if key is None else {key[0]: key[1]}
        answer = self._tell("reset_kill_switch", reason="torture", scope=scope)
        if answer is None:
            return
        if answer["ok"]:
            self._settle_latch(wanted, "a reset was answered")
        elif answer["error"]["code"] == "busy":  # a close of the kill's still works: it stays on
            self._promises.latch = {now}
        else:
            self._promises.broken.append(f"a reset was refused: {answer['error']}")

    def _settle_latch(self, wanted: Latched, what: str) -> None:
        """See that the file says what was answered; where the disk is slow it may come a moment later."""
        found = NOTHING
        answered = time.monotonic()
        for _ in self._server.looks(answered + LATCHED_WITHIN, 0.01):
            found = latched(self._latch.read())
            if found == wanted:
                self._promises.latch = {wanted}
                self._promises.late += time.monotonic() - answered > LATE
                return
        if self._server.alive:
            self._promises.broken.append(f"{what}, and the latch says {sorted(found, key=str)}, not {wanted}")

    def _tell(self, name: str, **args: Any) -> dict[str, Any] | None:
        """Send a command of the engine, and keep what it may have left behind."""
        promises = self._promises
        lasting = {"start": "start", "resume": "start", "stop": "stop", "pause": "pause"}.get(name)
        if name == "kill_switch" and args["scope"] is None:
            lasting = "stop"
        if lasting is not None:
            promises.commanded = {*promises.commanded, lasting}
        answer = self._count_up(name, self._server.ask(name, **{k: v for k, v in args.items() if v is not None}))
        if answer is not None and answer["ok"] and name in ("start", "stop", "pause"):
            promises.commanded = {lasting}
        everything = any(key is None for key, _ in self._known())
        if name == "start" and answer is not None and answer["ok"] and everything:
            promises.broken.append("the engine was started although everything is killed")
        return answer

    def _count_up(self, name: str, answer: dict[str, Any] | None) -> dict[str, Any] | None:
        promises = self._promises
        if answer is None:
            promises.lost += 1
        elif answer.get("ok"):
            promises.done[name] += 1
        else:
            error = answer["error"]
            promises.refused[f"{name}: {error['code']}"] += 1
            if error["code"] == "internal" and "stopped before" not in error["message"]:
                promises.broken.append(f"{name} failed: {error['message']}")
        return answer

    def _reconnect(self) -> None:
        self._server.ask("broker_disconnect")
        time.sleep(self._commander.uniform(0.0, 0.2))
        self._server.ask("broker_connect")

    def _by_hand(self) -> None:
        order = {
            "symbol": FOREIGN[0],
            "side": self._commander.choice(("buy", "sell")),
            "quantity": str(self._commander.randrange(1, 20)),
            "order_type": "market",
            "time_in_force": "day",
        }
        missing = ("limit_price", "stop_price", "trail_amount", "trail_percent", "oca_group", "parent_id")
        self._exchange.ask("by_hand", order={**dict.fromkeys(missing), **order})

    # --- the one who trades -------------------------------------------------------------------------------------

    def _trade(self, until: float) -> None:
        weights: dict[Callable[[], object], int] = {
            self._place: 6,
            self._bracket: 5,
            self._modify: 12 if self._wants == "changes" else 4,
            self._cancel: 8 if self._wants == "changes" else 3,
            self._close: 2,
            self._watch: 20 if self._wants == "documents" else 2,
            self._again: 2,
        }
        for _ in self._server.looks(until, 0.005):
            self._choose(self._trader, weights)

    def _choose(self, draw: random.Random, weights: Mapping[Callable[[], object], int]) -> None:
        draw.choices(list(weights), list(weights.values()))[0]()

    def _id(self) -> str:
        self._count += 1
        return f"{self._seed}-{self._count}"

    def _price(self, symbol: str) -> float:
        """Give a price near where the market began, which it comes back to."""
        return BASE[symbol] * self._trader.uniform(0.98, 1.02)

    def _place(self) -> None:
        draw = self._trader
        symbol = draw.choice(PLAIN)
        kind = draw.choice(("market", "market", "limit", "limit", "stop"))
        order: dict[str, Any] = {"order_type": kind}
        if kind == "limit":
            order["limit_price"] = round(self._price(symbol), 2)
        if kind == "stop":
            order["stop_price"] = round(self._price(symbol), 2)
        self._order(symbol, draw.choice(("buy", "buy", "sell")), order)

    def _bracket(self) -> None:
        draw = self._trader
        symbol = draw.choice(BRACKETS)
        bracket: dict[str, Any] = {"stop_price": round(BASE[symbol] * draw.uniform(0.96, 0.99), 2)}
        if draw.random() < 0.5:
            bracket["take_profit"] = round(BASE[symbol] * draw.uniform(1.01, 1.03), 2)
        order: dict[str, Any] = {"order_type": "market", "bracket": bracket}
        if draw.random() < 0.4:
            order |= {"order_type": "limit", "limit_price": round(self._price(symbol), 2)}
        self._order(symbol, "buy", order)

    def _order(self, symbol: str, side: str, order: dict[str, Any]) -> None:
        name = self._id()
        body = {"symbol": symbol, "side": side, "quantity": self._trader.randrange(1, 150), **order, "id": name}
        self._promises.orders[name] = body
        self._place_order(name)

    def _place_order(self, name: str) -> None:
        answer = self._count_up("place_order", self._server.ask("place_order", **self._promises.orders[name]))
        if answer is None or not answer["ok"]:
            return
        first = self._promises.answered.setdefault(name, answer)
        if first["result"]["order"]["order_id"] != answer["result"]["order"]["order_id"]:
            self._promises.broken.append(f"the command {name} has made two orders: {first} and {answer}")

    def _again(self) -> None:
        """Repeat an order under its id, above all one whose answer was lost: it must not be made twice."""
        orders, answered = self._promises.orders, self._promises.answered
        lost = [name for name in orders if name not in answered]
        known = lost if lost and self._trader.random() < 0.7 else list(orders)
        if known:
            self._place_order(self._trader.choice(known[-40:]))

    def _working(self) -> list[dict[str, Any]]:
        found = self._server.read("/api/orders")
        return [] if found is None else [order for order in found.get("orders", ()) if not order["foreign"]]

    def _modify(self) -> None:
        draw = self._trader
        able = [o for o in self._working() if o["order_type"] in ("limit", "stop")]
        if not able:
            return
        order = draw.choice(able)
        price = f"{order['order_type']}_price"
        changes: dict[str, Any] = {}
        if draw.random() < 0.7:
            changes[price] = round(order[price] * draw.uniform(0.995, 1.005), 2)
        if not changes or draw.random() < 0.3:
            changes["quantity"] = max(1, round(order["quantity"] * draw.uniform(0.5, 1.5)))
        changes |= {"order_id": order["order_id"], "id": self._id()}
        self._count_up("modify_order", self._server.ask("modify_order", **changes))

    def _cancel(self) -> None:
        able = [o for o in self._working() if o["source"] != "exit"]
        if able:
            order = self._trader.choice(able)
            self._count_up("cancel_order", self._server.ask("cancel_order", order_id=order["order_id"]))

    def _close(self) -> None:
        found = self._server.read("/api/positions")
        held = [] if found is None else [p for p in found.get("positions", ()) if not p["foreign"]]
        if held:
            symbol = self._trader.choice(held)["symbol"]
            self._count_up("close_position", self._server.ask("close_position", symbol=symbol, id=self._id()))

    def _watch(self) -> None:
        symbol = self._trader.choice((*ALPHA, *BETA))
        name = self._trader.choice(("watchlist_add", "watchlist_remove"))
        self._count_up(name, self._server.ask(name, symbol=symbol, id=self._id()))


def _bases(symbols: Iterable[str]) -> dict[str, float]:
    return {symbol: 10.0 + index for index, symbol in enumerate(symbols)}


BASE: Final[Mapping[str, float]] = _bases((*GUARDED, *PLAIN, *FOREIGN))
"""The price about which each symbol wanders."""


def read_latch(folder: Path) -> LatchState:
    """Read the latch of a server that is dead."""
    latch = Latch(folder / "kill.latch")
    try:
        return latch.read()
    finally:
        latch.close()


__all__ = ["BASE", "Latched", "Promises", "Traffic", "latched", "read_latch"]
