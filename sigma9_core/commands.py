"""The commands: one table that MQTT, REST, the command line and the scheduler share (contract 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, model_validator

from sigma9_core.clock import rfc3339
from sigma9_core.errors import CommandError
from sigma9_core.explain import WrongFields
from sigma9_core.models import Frozen, Money, OrderRequest, OrderType, Side, Symbol, TimeInForce

Right = Literal["read", "trade", "admin"]
RIGHTS: Final[tuple[Right, ...]] = ("read", "trade", "admin")
CommandSource = Literal["api", "mqtt", "cli", "schedule", "signal", "socket", "risk", "dead_man", "engine"]
"""Where a command came from; `socket` is the kill's own door on this machine."""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""What something is called: a strategy, a rule, a plugin, an order's id."""
LARGEST_SEQ: Final = 2**53
"""The largest whole number that every JSON reader takes exactly."""


def allows(have: Right, need: Right) -> bool:
    """Tell whether the right `have` covers `need`: read < trade < admin."""
    return RIGHTS.index(have) >= RIGHTS.index(need)


# --- arguments: one model a command; an unknown key is an error that names it ---------------------------------


class NoArgs(Frozen):
    """A command without arguments; every command takes an optional reason."""

    reason: Text | None = None


class Scope(Frozen):
    """A part of the trading: one strategy or one symbol."""

    strategy: Name | None = None
    symbol: Symbol | None = None

    @model_validator(mode="after")
    def _one(self) -> Scope:
        if (self.strategy is None) == (self.symbol is None):
            raise ValueError("must name exactly one of strategy and symbol")
        return self


class ControlArgs(NoArgs):
    """`control`: the short form for dashboards."""

    command: Literal["start", "stop", "kill"]


class KillArgs(NoArgs):
    """`kill_switch`; `flatten` absent takes the configuration's, `scope` absent means everything."""

    flatten: bool | None = None
    scope: Scope | None = None


class ResetKillArgs(Frozen):
    """`reset_kill_switch`: a person says why."""

    reason: Text
    scope: Scope | None = None


class ScanArgs(NoArgs):
    """`scan`; absent strategies mean all that are enabled."""

    strategies: tuple[Name, ...] | None = None


class BracketArgs(Frozen):
    """The protective legs of an order: prices, in the account's currency."""

    stop_price: Annotated[Money, Field(gt=0)]
    take_profit: Annotated[Money, Field(gt=0)] | None = None


Positive = Annotated[Money, Field(gt=0, allow_inf_nan=False)]


PRICES: Final[Mapping[OrderType, tuple[str, ...]]] = {
    "market": (),
    "limit": ("limit_price",),
    "stop": ("stop_price",),
    "stop_limit": ("limit_price", "stop_price"),
    "trailing_stop": (),
    "market_on_close": (),
    "limit_on_close": ("limit_price",),
}
"""The prices that each type of order needs."""
TRAILS: Final = ("trail_amount", "trail_percent")
"""A trailing stop needs one of them."""


def wrong_prices(order: OrderArgs | OrderRequest) -> dict[str, str]:
    """Tell which prices an order of its type lacks, and which do not go with it: the rest of a clause by field."""
    kind = order.order_type
    wanted = PRICES[kind]
    wrong: dict[str, str] = {}
    for name in ("limit_price", "stop_price"):
        if name in wanted and getattr(order, name) is None:
            wrong[name] = f"is required for a {kind} order"
        if name not in wanted and getattr(order, name) is not None:
            wrong[name] = f"does not go with a {kind} order"
    trails = [name for name in TRAILS if getattr(order, name) is not None]
    if kind != "trailing_stop":
        wrong |= dict.fromkeys(trails, f"does not go with a {kind} order")
    elif not trails:
        wrong["trail_amount"] = "is required for a trailing_stop order, or trail_percent in its place"
    elif len(trails) == len(TRAILS):
        wrong["trail_percent"] = "does not go with trail_amount: give one of the two"
    return wrong


class OrderArgs(NoArgs):
    """`place_order` and `preview_order`."""

    symbol: Symbol
    side: Side
    quantity: Positive
    order_type: OrderType = "market"
    limit_price: Positive | None = None
    stop_price: Positive | None = None
    trail_amount: Positive | None = None
    trail_percent: Positive | None = None
    time_in_force: TimeInForce = "day"
    outside_rth: bool = False
    bracket: BracketArgs | None = None

    @model_validator(mode="after")
    def _prices(self) -> OrderArgs:
        """Want the prices that the type of order needs, and no others; every field that is wrong is named."""
        if wrong := wrong_prices(self):
            raise WrongFields(wrong)
        return self


class ModifyOrderArgs(NoArgs):
    """`modify_order`: the fields that change."""

    order_id: Name
    quantity: Positive | None = None
    limit_price: Positive | None = None
    stop_price: Positive | None = None
    trail_amount: Positive | None = None
    trail_percent: Positive | None = None


class OrderIdArgs(NoArgs):
    """`cancel_order`."""

    order_id: Name


class CancelAllArgs(NoArgs):
    """`cancel_all`: our entries; protective orders only where it says so."""

    protective: bool = False


class SymbolArgs(NoArgs):
    """`watchlist_add`, `watchlist_remove`."""

    symbol: Symbol


class CloseArgs(NoArgs):
    """`close_position`: one symbol, or `*` for all that are ours."""

    symbol: Symbol | Literal["*"]


class AdoptArgs(NoArgs):
    """`adopt_position`: a foreign position becomes ours."""

    symbol: Symbol
    strategy: Name


class SettleArgs(Frozen):
    """`settle_position`: what the broker shows of a position that can't be explained becomes the truth."""

    symbol: Symbol
    reason: Text


class PluginArgs(NoArgs):
    """`plugin_enable`, `plugin_disable`."""

    name: Name


class RiskSetArgs(NoArgs):
    """`risk_set`: the rule, and the settings that change."""

    rule: Name
    settings: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """Take the settings beside `rule` as well as in an object of their own."""
        if isinstance(value, Mapping) and "settings" not in value:
            known = {"rule", "reason"}
            return {
                **{key: value[key] for key in value if key in known},
                "settings": {key: value[key] for key in value if key not in known},
            }
        return value

    @model_validator(mode="after")
    def _some(self) -> RiskSetArgs:
        if not self.settings:
            raise WrongFields({"settings": "is required: name at least one setting of the rule, and its value"})
        return self


class RiskClearArgs(NoArgs):
    """`risk_clear`."""

    rule: Name


class AcknowledgeArgs(Frozen):
    """`acknowledge_journal`: a person says why the journal was put back, or was without its guards."""

    reason: Text


class EventsArgs(NoArgs):
    """`events`: durable events after a number, for clients that have only MQTT."""

    after: Annotated[int, Field(ge=0, le=LARGEST_SEQ)]
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


# --- the table ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Alias:
    """The REST path of a command; a name in braces becomes the argument of that name."""

    method: Literal["POST", "PUT", "PATCH", "DELETE"]
    path: str


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """One row of the command table."""

    name: str
    args: type[Frozen]
    right: Right
    summary: str
    alias: Alias | None = None
    word: str | None = None
    """The argument that a plain word in the payload fills, such as `command` of `control`."""
    fixed_words: frozenset[str] = frozenset(("PRESS", "ON"))
    """Plain words that mean "do it, with no arguments"."""
    repeats: bool = True
    """Hold back the same (command, id) for 24 hours; off where a button with a constant id must work twice."""
    journalled: bool = True
    needs_id: bool = False


def _spec(
    name: str, args: type[Frozen], right: Right, summary: str, alias: Alias | None = None, **more: Any
) -> CommandSpec:
    words = frozenset(("PRESS", "ON", name))
    return CommandSpec(name, args, right, summary, alias, fixed_words=more.pop("fixed_words", words), **more)


BUILT_IN: Final[Mapping[str, CommandSpec]] = {
    spec.name: spec
    for spec in (
        _spec("start", NoArgs, "trade", "Start the engine; starting what runs is fine.", Alias("POST", "/api/engine/start")),
        _spec("stop", NoArgs, "trade", "End entries and strategies; exits go on.", Alias("POST", "/api/engine/stop"), repeats=False),
        _spec("pause", NoArgs, "trade", "Take no new entries; exits go on.", Alias("POST", "/api/engine/pause"), repeats=False),
        _spec("resume", NoArgs, "trade", "Take entries again.", Alias("POST", "/api/engine/resume")),
        _spec("control", ControlArgs, "trade", "Start, stop or kill by one word.", Alias("POST", "/api/control"), word="command", fixed_words=frozenset()),
        _spec("kill_switch", KillArgs, "trade", "Close the gate, cancel our orders, close our positions.", Alias("POST", "/api/kill-switch"), repeats=False),
        _spec("reset_kill_switch", ResetKillArgs, "admin", "Unlatch the kill switch; the engine stays stopped.", Alias("DELETE", "/api/kill-switch"), fixed_words=frozenset()),
        _spec("kill_drill", NoArgs, "admin", "Really kill a paper or simulated account, then start again.", Alias("POST", "/api/kill-switch/drill")),
        _spec("heartbeat", NoArgs, "trade", "Feed the dead man's switch.", Alias("POST", "/api/heartbeat"), repeats=False, journalled=False),
        _spec("scan", ScanArgs, "trade", "Scan the market and renew the watchlist.", Alias("POST", "/api/scan")),
        _spec("place_order", OrderArgs, "trade", "Send an order through the risk gate.", Alias("POST", "/api/orders"), needs_id=True, fixed_words=frozenset()),
        _spec("preview_order", OrderArgs, "trade", "Say what the risk rules would say; send nothing.", Alias("POST", "/api/orders/preview"), fixed_words=frozenset(), repeats=False, journalled=False),
        _spec("modify_order", ModifyOrderArgs, "trade", "Change a working order.", Alias("PATCH", "/api/orders/{order_id}"), fixed_words=frozenset()),
        _spec("cancel_order", OrderIdArgs, "trade", "Cancel a working order.", Alias("DELETE", "/api/orders/{order_id}"), word="order_id", fixed_words=frozenset(), repeats=False),
        _spec("cancel_all", CancelAllArgs, "trade", "Cancel our entries.", Alias("DELETE", "/api/orders"), repeats=False),
        _spec("close_position", CloseArgs, "trade", "Close a position at the market.", Alias("POST", "/api/positions/{symbol}/close"), word="symbol", fixed_words=frozenset()),
        _spec("adopt_position", AdoptArgs, "admin", "Make a foreign position ours.", Alias("POST", "/api/positions/{symbol}/adopt"), fixed_words=frozenset()),
        _spec("settle_position", SettleArgs, "admin", "Take the broker's word for a position that can't be explained.", Alias("POST", "/api/positions/{symbol}/settle"), fixed_words=frozenset()),
        _spec("watchlist_add", SymbolArgs, "trade", "Watch a symbol.", Alias("PUT", "/api/watchlist/{symbol}"), word="symbol", fixed_words=frozenset()),
        _spec("watchlist_remove", SymbolArgs, "trade", "Stop watching a symbol.", Alias("DELETE", "/api/watchlist/{symbol}"), word="symbol", fixed_words=frozenset()),
        _spec("broker_connect", NoArgs, "trade", "Connect the broker.", Alias("POST", "/api/broker/connect")),
        _spec("broker_disconnect", NoArgs, "trade", "Disconnect the broker.", Alias("POST", "/api/broker/disconnect")),
        _spec("plugin_enable", PluginArgs, "admin", "Enable a plugin.", Alias("POST", "/api/plugins/{name}/enable"), word="name", fixed_words=frozenset()),
        _spec("plugin_disable", PluginArgs, "admin", "Disable a plugin.", Alias("POST", "/api/plugins/{name}/disable"), word="name", fixed_words=frozenset()),
        _spec("risk_set", RiskSetArgs, "admin", "Change a risk rule's settings.", Alias("PATCH", "/api/risk/{rule}"), fixed_words=frozenset()),
        _spec("risk_clear", RiskClearArgs, "admin", "Clear a trip that a person must clear.", Alias("POST", "/api/risk/{rule}/clear"), word="rule", fixed_words=frozenset()),
        _spec("acknowledge_journal", AcknowledgeArgs, "admin", "Say that the journal was put back for a known reason.", Alias("POST", "/api/journal/acknowledge"), fixed_words=frozenset()),
        _spec("events", EventsArgs, "read", "Give durable events after a number.", None, fixed_words=frozenset(), repeats=False, journalled=False),
    )
}  # fmt: skip
"""Every built-in command, in the order of contract 4."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command as it arrived, from whatever surface; `args` are raw until the dispatcher validates them."""

    name: str
    args: Mapping[str, Any]
    source: CommandSource
    right: Right = "admin"
    id: str | None = None
    expires_at: datetime | None = None
    actor: str | None = None
    """Who sent it, as far as the surface knows: a token's name, an MQTT user."""
    received: float = field(default=0.0)
    """Monotonic seconds at arrival, for `duration_ms`."""
    taken: Callable[[], None] | None = field(default=None, compare=False, repr=False)
    """Told once it has taken effect, where something stands in for it since it was heard (a kill's barrier)."""


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a command: the same object on every surface (contract 4)."""

    id: str | None
    command: str
    ok: bool
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    source: CommandSource
    ts: datetime
    duration_ms: float

    @classmethod
    def failed(cls, command: Command, error: CommandError, *, ts: datetime, duration_ms: float) -> Response:
        """Answer a command with the error that refused it."""
        body = {"code": error.code, "message": error.message, "details": error.details}
        return cls(command.id, command.name, False, None, body, command.source, ts, duration_ms)

    def body(self) -> dict[str, Any]:
        """Give the JSON object of contract 4."""
        return {
            "id": self.id,
            "command": self.command,
            "ok": self.ok,
            "result": None if self.result is None else dict(self.result),
            "error": None if self.error is None else dict(self.error),
            "source": self.source,
            "ts": rfc3339(self.ts),
            "duration_ms": round(self.duration_ms, 1),
        }


def decimal(value: object) -> Decimal:
    """Turn a JSON number into `Decimal` by its shortest text, so that 0.1 stays 0.1."""
    return Decimal(str(value))
