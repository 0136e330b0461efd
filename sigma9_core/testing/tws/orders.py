"""Orders on the wire: how a client sends one (placeOrder), how a server tells it (openOrder, completedOrder)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from sigma9_core.testing.tws.contracts import Contract
from sigma9_core.testing.tws.wire import UNSET, UNSET_INT, Cursor, Message, Value, WireError, integer, number, text

HEAD: Final = (
    *("action", "totalQuantity", "orderType", "lmtPrice", "auxPrice", "tif", "ocaGroup", "account", "openClose"),
    *("origin", "orderRef", "transmit", "parentId", "blockOrder", "sweepToFill", "displaySize", "triggerMethod"),
    *("outsideRth", "hidden"),
)
BODY: Final = (
    *("", "discretionaryAmt", "goodAfterTime", "goodTillDate", "faGroup", "faMethod", "faPercentage", "faProfile"),
    *("modelCode", "shortSaleSlot", "designatedLocation", "exemptCode", "ocaType", "rule80A", "settlingFirm"),
    *("allOrNone", "minQty", "percentOffset", "eTradeOnly", "firmQuoteOnly", "nbboPriceCap", "auctionStrategy"),
    *("startingPrice", "stockRefPrice", "delta", "stockRangeLower", "stockRangeUpper"),
    *("overridePercentageConstraints", "volatility", "volatilityType", "deltaNeutralOrderType"),
    "deltaNeutralAuxPrice",
)
DELTA_NEUTRAL: Final = (
    *("deltaNeutralConId", "deltaNeutralSettlingFirm", "deltaNeutralClearingAccount"),
    *("deltaNeutralClearingIntent", "deltaNeutralOpenClose", "deltaNeutralShortSale"),
    *("deltaNeutralShortSaleSlot", "deltaNeutralDesignatedLocation"),
)
TRAIL: Final = (
    *("continuousUpdate", "referencePriceType", "trailStopPrice", "trailingPercent"),
    *("scaleInitLevelSize", "scaleSubsLevelSize", "scalePriceIncrement"),
)
SCALE: Final = (
    *("scalePriceAdjustValue", "scalePriceAdjustInterval", "scaleProfitOffset", "scaleAutoReset"),
    *("scaleInitPosition", "scaleInitFillQty", "scaleRandomPercent"),
)
PEG_BENCH: Final = (
    *("referenceContractId", "isPeggedChangeAmountDecrease", "peggedChangeAmount", "referenceChangeAmount"),
    "referenceExchangeId",
)
TAIL: Final = (
    *("adjustedOrderType", "triggerPrice", "lmtPriceOffset", "adjustedStopPrice", "adjustedStopLimitPrice"),
    *("adjustedTrailingAmount", "adjustableTrailingUnit", "extOperator", "softDollarTierName"),
    *("softDollarTierValue", "cashQty", "mifid2DecisionMaker", "mifid2DecisionAlgo", "mifid2ExecutionTrader"),
    *("mifid2ExecutionAlgo", "dontUseAutoPriceForHedge", "isOmsContainer", "discretionaryUpToLimitPrice"),
    *("usePriceMgmtAlgo", "duration", "postToAts", "autoCancelParent", "advancedErrorOverride"),
    "manualOrderTime",
)
CONDITIONS: Final[Mapping[str, int]] = {"1": 6, "3": 3, "4": 3, "5": 4, "6": 5, "7": 5}
"""How many fields follow each type of condition: price, time, margin, execution, volume, percent."""
NO_NUMBER: Final = frozenset(
    (
        *("percentOffset", "startingPrice", "stockRefPrice", "delta", "stockRangeLower", "stockRangeUpper"),
        *("trailStopPrice", "trailingPercent", "basisPoints", "triggerPrice", "lmtPriceOffset"),
        *("adjustedStopPrice", "adjustedStopLimitPrice", "adjustedTrailingAmount", "scalePriceIncrement"),
        *("startingPrice", "nbboPriceCap", "volatility", "deltaNeutralAuxPrice"),
    )
)
"""Numbers that a server writes as unset."""
ZEROES: Final = frozenset(
    (
        *("lmtPrice", "auxPrice", "discretionaryAmt", "origin", "outsideRth", "hidden", "displaySize"),
        *("blockOrder", "sweepToFill", "allOrNone", "ocaType", "eTradeOnly", "firmQuoteOnly", "parentId"),
        *("triggerMethod", "shortSaleSlot", "auctionStrategy", "continuousUpdate", "optOutSmartRouting"),
        *("notHeld", "solicited", "randomizeSize", "randomizePrice", "adjustableTrailingUnit", "cashQty"),
        *("dontUseAutoPriceForHedge", "isOmsContainer", "discretionaryUpToLimitPrice", "usePriceMgmtAlgo"),
        *("autoCancelParent", "volatilityType", "referencePriceType", "deltaNeutralConId"),
        *("deltaNeutralShortSale", "deltaNeutralShortSaleSlot"),
    )
)
NO_COUNT: Final = frozenset(("minQty", "scaleInitLevelSize", "scaleSubsLevelSize", "duration", "postToAts"))
WORDS: Final[Mapping[str, str]] = {
    "exemptCode": "-1",
    "clearingIntent": "IB",
    "deltaNeutralOrderType": "None",
    "deltaNeutralOpenClose": "?",
    "adjustedOrderType": "None",
}
"""What a server writes where the client has set nothing."""


@dataclass(frozen=True, slots=True)
class WireOrder:
    """An order as a client has sent it: every field by its name, as text."""

    values: Mapping[str, str]
    legs: tuple[tuple[str, ...], ...] = ()
    leg_prices: tuple[str, ...] = ()
    routing: tuple[tuple[str, ...], ...] = ()
    delta_neutral_contract: tuple[str, ...] = ()
    algo: tuple[tuple[str, ...], ...] = ()
    conditions: tuple[tuple[str, ...], ...] = ()
    conditions_more: tuple[str, ...] = ("0", "0")
    """Whether they ignore regular hours, and whether they cancel."""

    @classmethod
    def made(cls, **values: Value) -> WireOrder:
        """Make an order by hand: `made(action="BUY", totalQuantity=100, orderType="LMT", lmtPrice=190)`."""
        plain = {"tif": "DAY", "transmit": "1", **{name: text(value) for name, value in values.items()}}
        return cls(plain)

    def get(self, name: str) -> str:
        """Give a field; empty where it is not set."""
        return self.values.get(name, "")

    def number(self, name: str) -> Decimal | None:
        """Give a number; None where it is not set."""
        return number(self.get(name))

    def integer(self, name: str) -> int:
        """Give a whole number; 0 where it is not set."""
        return integer(self.get(name))

    def flag(self, name: str) -> bool:
        """Tell whether a flag is set."""
        return self.get(name) == "1"

    @property
    def kind(self) -> str:
        """Give its type in capitals."""
        return self.get("orderType").upper()

    @property
    def buys(self) -> bool:
        """Tell whether it buys."""
        return self.get("action").upper() == "BUY"

    def changed(self, **values: Value) -> WireOrder:
        """Give it with other fields."""
        return replace(self, values={**self.values, **{name: text(value) for name, value in values.items()}})

    def told(self, name: str) -> str:
        """Write a field as a server does."""
        value = self.get(name)
        if value in ("", "None") and name in WORDS:
            return WORDS[name]
        if value == "":
            return (
                UNSET if name in NO_NUMBER else UNSET_INT if name in NO_COUNT else "0" if name in ZEROES else value
            )
        return value


def read_order(cursor: Cursor) -> tuple[int, Contract, WireOrder]:
    """Read placeOrder behind its number; raise WireError."""
    order_id = integer(cursor.next())
    contract = Contract.read(cursor)
    values = cursor.named(("secIdType", "secId", *HEAD))
    legs: tuple[tuple[str, ...], ...] = ()
    leg_prices: tuple[str, ...] = ()
    routing: tuple[tuple[str, ...], ...] = ()
    if contract.sec_type == "BAG":
        legs = tuple(cursor.take(8) for _ in range(cursor.count()))
        leg_prices = cursor.take(cursor.count())
        routing = tuple(cursor.take(2) for _ in range(cursor.count()))
    values |= cursor.named(BODY)
    if values["deltaNeutralOrderType"]:
        values |= cursor.named(DELTA_NEUTRAL)
    values |= cursor.named(TRAIL)
    if (number(values["scalePriceIncrement"]) or 0) > 0:
        values |= cursor.named(SCALE)
    values |= cursor.named(("scaleTable", "activeStartTime", "activeStopTime", "hedgeType"))
    if values["hedgeType"]:
        values |= cursor.named(("hedgeParam",))
    values |= cursor.named(("optOutSmartRouting", "clearingAccount", "clearingIntent", "notHeld"))
    neutral = cursor.take(3) if cursor.next() == "1" else ()
    values |= cursor.named(("algoStrategy",))
    algo: tuple[tuple[str, ...], ...] = ()
    if values["algoStrategy"]:
        algo = tuple(cursor.take(2) for _ in range(cursor.count()))
    values |= cursor.named(
        ("algoId", "whatIf", "orderMiscOptions", "solicited", "randomizeSize", "randomizePrice")
    )
    if values["orderType"] in ("PEG BENCH", "PEGBENCH"):
        values |= cursor.named(PEG_BENCH)
    conditions = tuple(_condition(cursor) for _ in range(cursor.count()))
    more = cursor.take(2) if conditions else ("0", "0")
    values |= cursor.named(TAIL)
    values |= _pegged(cursor, contract, values["orderType"])
    if left := cursor.rest():
        raise WireError(f"placeOrder has {len(left)} fields too many: {left}")
    order = WireOrder(values, legs, leg_prices, routing, neutral, algo, conditions, more)
    return order_id, contract, order


def _condition(cursor: Cursor) -> tuple[str, ...]:
    kind = cursor.next()
    if kind not in CONDITIONS:
        raise WireError(f"no condition is of type {kind!r}")
    return (kind, *cursor.take(CONDITIONS[kind]))


def _pegged(cursor: Cursor, contract: Contract, kind: str) -> dict[str, str]:
    values = cursor.named(("minTradeQty",)) if contract.exchange == "IBKRATS" else {}
    middle = kind in ("PEG MID", "PEGMID")
    if kind in ("PEG BEST", "PEGBEST"):
        values |= cursor.named(("minCompeteSize", "competeAgainstBestOffset"))
        middle = values["competeAgainstBestOffset"] == "Infinite"
    if middle:
        values |= cursor.named(("midOffsetAtWhole", "midOffsetAtHalf"))
    return values


@dataclass(frozen=True, slots=True)
class Told:
    """What a server adds to an order when it tells of it."""

    order_id: int
    client_id: int
    perm_id: int
    parent_id: int
    status: str
    account: str
    quantity: Decimal
    filled: Decimal = Decimal(0)
    completed_time: str = ""
    completed_status: str = ""
    margins: tuple[str, ...] = (UNSET,) * 9
    commission: tuple[str, ...] = (UNSET, UNSET, UNSET, "", "")
    """Commission, its least and most, the currency, and a warning."""


def _common(order: WireOrder) -> Iterator[str]:
    """Write combination legs, scale and hedge."""
    yield str(len(order.legs))
    for leg in order.legs:
        yield from leg
    yield str(len(order.leg_prices))
    yield from order.leg_prices
    yield str(len(order.routing))
    for pair in order.routing:
        yield from pair
    for name in ("scaleInitLevelSize", "scaleSubsLevelSize", "scalePriceIncrement"):
        yield order.told(name)
    if (order.number("scalePriceIncrement") or 0) > 0:
        yield from (order.told(name) for name in SCALE)
    yield order.get("hedgeType")
    if order.get("hedgeType"):
        yield order.get("hedgeParam")


def _neutral_and_algo(order: WireOrder) -> Iterator[str]:
    yield "1" if order.delta_neutral_contract else "0"
    yield from order.delta_neutral_contract
    yield order.get("algoStrategy")
    if order.get("algoStrategy"):
        yield str(len(order.algo))
        for pair in order.algo:
            yield from pair


def _conditions(order: WireOrder) -> Iterator[str]:
    if order.kind in ("PEG BENCH", "PEGBENCH"):
        yield from (order.told(name) for name in PEG_BENCH)
    yield str(len(order.conditions))
    for condition in order.conditions:
        yield from condition
    if order.conditions:
        yield from order.conditions_more


def _start(contract: Contract, order: WireOrder, told: Told) -> Iterator[str]:
    yield from (text(value) for value in replace(contract, right=contract.right or "?").eleven())
    yield from (order.get("action"), text(told.quantity), order.get("orderType"))
    yield from (order.told(name) for name in ("lmtPrice", "auxPrice", "tif", "ocaGroup"))
    yield told.account
    yield from (order.told(name) for name in ("openClose", "origin", "orderRef"))


def open_order(contract: Contract, order: WireOrder, told: Told) -> Message:
    """Write openOrder."""

    def fields() -> Iterator[str]:
        yield from ("5", str(told.order_id))
        yield from _start(contract, order, told)
        yield from (str(told.client_id), str(told.perm_id))
        yield from (order.told(name) for name in ("outsideRth", "hidden", "discretionaryAmt", "goodAfterTime"))
        yield ""
        for name in (
            *("faGroup", "faMethod", "faPercentage", "faProfile", "modelCode", "goodTillDate", "rule80A"),
            *("percentOffset", "settlingFirm", "shortSaleSlot", "designatedLocation", "exemptCode"),
            *("auctionStrategy", "startingPrice", "stockRefPrice", "delta", "stockRangeLower"),
            *("stockRangeUpper", "displaySize", "blockOrder", "sweepToFill", "allOrNone", "minQty", "ocaType"),
            *("eTradeOnly", "firmQuoteOnly", "nbboPriceCap"),
        ):
            yield order.told(name)
        yield str(told.parent_id)
        for name in (
            *("triggerMethod", "volatility", "volatilityType", "deltaNeutralOrderType", "deltaNeutralAuxPrice"),
            *DELTA_NEUTRAL,
            *("continuousUpdate", "referencePriceType", "trailStopPrice", "trailingPercent", "basisPoints"),
            *("basisPointsType", "comboLegsDescrip"),
        ):
            yield order.told(name)
        yield from _common(order)
        for name in ("optOutSmartRouting", "clearingAccount", "clearingIntent", "notHeld"):
            yield order.told(name)
        yield from _neutral_and_algo(order)
        yield from (order.told("solicited"), "1" if order.flag("whatIf") else "0", told.status)
        yield from told.margins
        yield from told.commission
        yield from (order.told("randomizeSize"), order.told("randomizePrice"))
        yield from _conditions(order)
        for name in (
            *("adjustedOrderType", "triggerPrice", "trailStopPrice", "lmtPriceOffset", "adjustedStopPrice"),
            *("adjustedStopLimitPrice", "adjustedTrailingAmount", "adjustableTrailingUnit"),
            *("softDollarTierName", "softDollarTierValue", "softDollarTierDisplayName", "cashQty"),
            *("dontUseAutoPriceForHedge", "isOmsContainer", "discretionaryUpToLimitPrice"),
            *("usePriceMgmtAlgo", "duration", "postToAts", "autoCancelParent"),
            *("minTradeQty", "minCompeteSize"),
        ):
            yield order.told(name)
        yield _offset(order)
        yield from (order.told("midOffsetAtWhole"), order.told("midOffsetAtHalf"))

    return tuple(fields())


def completed_order(contract: Contract, order: WireOrder, told: Told) -> Message:
    """Write completedOrder, which has neither order id nor client id nor parent id."""

    def fields() -> Iterator[str]:
        yield "101"
        yield from _start(contract, order, told)
        yield str(told.perm_id)
        for name in (
            *("outsideRth", "hidden", "discretionaryAmt", "goodAfterTime", "faGroup", "faMethod"),
            *("faPercentage", "faProfile", "modelCode", "goodTillDate", "rule80A", "percentOffset"),
            *("settlingFirm", "shortSaleSlot", "designatedLocation", "exemptCode", "startingPrice"),
            *("stockRefPrice", "delta", "stockRangeLower", "stockRangeUpper", "displaySize", "sweepToFill"),
            *("allOrNone", "minQty", "ocaType", "triggerMethod", "volatility", "volatilityType"),
            *("deltaNeutralOrderType", "deltaNeutralAuxPrice", "deltaNeutralConId", "deltaNeutralShortSale"),
            *("deltaNeutralShortSaleSlot", "deltaNeutralDesignatedLocation", "continuousUpdate"),
            *("referencePriceType", "trailStopPrice", "trailingPercent", "comboLegsDescrip"),
        ):
            yield order.told(name)
        yield from _common(order)
        yield from (order.told(name) for name in ("clearingAccount", "clearingIntent", "notHeld"))
        yield from _neutral_and_algo(order)
        yield from (order.told("solicited"), told.status, order.told("randomizeSize"))
        yield order.told("randomizePrice")
        yield from _conditions(order)
        for name in ("trailStopPrice", "lmtPriceOffset", "cashQty", "dontUseAutoPriceForHedge", "isOmsContainer"):
            yield order.told(name)
        yield from ("", text(told.filled), UNSET_INT, order.told("autoCancelParent"), "", "0", "0", "0")
        yield from (told.completed_time, told.completed_status)
        yield from (order.told("minTradeQty"), order.told("minCompeteSize"), _offset(order))
        yield from (order.told("midOffsetAtWhole"), order.told("midOffsetAtHalf"))

    return tuple(fields())


def _offset(order: WireOrder) -> str:
    value = order.get("competeAgainstBestOffset")
    return "Infinity" if value == "Infinite" else value
