"""Contracts: what a client names, what the peer knows of it, and its details."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Final

from sigma9_core.testing.tws.wire import Cursor, Message, Value, integer, message

CONTRACT: Final = (
    *("conId", "symbol", "secType", "expiry", "strike", "right", "multiplier", "exchange", "primaryExchange"),
    *("currency", "localSymbol", "tradingClass"),
)
"""The twelve fields by which a client names a contract."""
ORDER_TYPES: Final = (
    "ACTIVETIM,AD,ALERT,ALLOC,DAY,GTC,GTD,IOC,LIT,LMT,LOC,MIDPX,MIT,MKT,MOC,OCA,STP,STPLMT,TRAIL,WHATIF"
)
PRICES: Final[Mapping[str, tuple[int, str, str, str]]] = {
    "AAPL": (265598, "NASDAQ", "APPLE INC", "190"),
    "AMD": (4391, "NASDAQ", "ADVANCED MICRO DEVICES", "150"),
    "AMZN": (3691937, "NASDAQ", "AMAZON.COM INC", "180"),
    "GOOG": (208813720, "NASDAQ", "ALPHABET INC-CL C", "170"),
    "IBM": (8314, "NYSE", "INTL BUSINESS MACHINES CORP", "230"),
    "META": (107113386, "NASDAQ", "META PLATFORMS INC-CLASS A", "500"),
    "MSFT": (272093, "NASDAQ", "MICROSOFT CORP", "420"),
    "NVDA": (4815747, "NASDAQ", "NVIDIA CORP", "120"),
    "QQQ": (320227571, "NASDAQ", "INVESCO QQQ TRUST SERIES 1", "480"),
    "SPY": (756733, "ARCA", "SPDR S&P 500 ETF TRUST", "550"),
    "TSLA": (76792991, "NASDAQ", "TESLA INC", "250"),
}
"""Stocks that are known from the start: number, primary exchange, name, price."""
FIRST_MADE_UP: Final = 900_000_001


@dataclass(frozen=True, slots=True)
class Contract:
    """A contract as the wire names it."""

    con_id: int = 0
    symbol: str = ""
    sec_type: str = "STK"
    expiry: str = ""
    strike: str = "0"
    right: str = ""
    multiplier: str = ""
    exchange: str = "SMART"
    primary_exchange: str = ""
    currency: str = "USD"
    local_symbol: str = ""
    trading_class: str = ""

    @classmethod
    def read(cls, cursor: Cursor) -> Contract:
        """Read the twelve fields."""
        con_id, *rest = cursor.take(len(CONTRACT))
        return cls(integer(con_id), *rest)

    def head(self) -> tuple[Value, ...]:
        """Write number, symbol, type, expiry, strike, right and multiplier."""
        return (self.con_id, self.symbol, self.sec_type, self.expiry, self.strike, self.right, self.multiplier)

    def eleven(self) -> tuple[Value, ...]:
        """Write the eleven fields of most answers."""
        return (*self.head(), self.exchange, self.currency, self.local_symbol, self.trading_class)

    def portfolio(self) -> tuple[Value, ...]:
        """Write the eleven fields of a portfolio line, which names the primary exchange."""
        return (*self.head(), self.primary_exchange, self.currency, self.local_symbol, self.trading_class)

    def held(self) -> Contract:
        """Give it as positions name it: without a route."""
        return replace(self, exchange="")

    def shown(self) -> dict[str, str | int]:
        """Show it as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Details:
    """What the peer knows of a contract."""

    contract: Contract
    name: str
    min_tick: Decimal = Decimal("0.01")
    trading_hours: str = ""
    """As the wire has it: `20260105:0400-20260105:2000;20260106:CLOSED`; empty: made up."""
    liquid_hours: str = ""
    time_zone: str = "US/Eastern"
    stock_type: str = "COMMON"
    category: str = "Computers"

    def message(self, request: int, trading_hours: str, liquid_hours: str) -> Message:
        """Write contractDetails."""
        each = self.contract
        return message(
            10,
            request,
            *(each.symbol, each.sec_type, each.expiry, each.strike, each.right, each.exchange, each.currency),
            *(each.local_symbol, each.trading_class, each.trading_class, each.con_id, self.min_tick),
            *(each.multiplier, ORDER_TYPES, f"SMART,{each.primary_exchange}", 1, 0, self.name),
            *(each.primary_exchange, "", "Technology", self.category, self.category, self.time_zone),
            *(self.trading_hours or trading_hours, self.liquid_hours or liquid_hours, "", 0),
            *(1, "ISIN", f"US{each.con_id:010d}"),
            *(1, "", "", "26", "", self.stock_type),
            *("0.0001", "0.0001", "100"),
        )


class Contracts:
    """The contracts that the peer knows."""

    def __init__(self) -> None:
        self.made_up: Callable[[Details], None] | None = None
        """Where it is set, a stock that nobody knows is made up when a client names it, and this hears of it."""
        self._all: dict[int, Details] = {}
        self._next = FIRST_MADE_UP
        for symbol, (con_id, exchange, name, _) in PRICES.items():
            self.add(symbol, con_id=con_id, primary_exchange=exchange, name=name)

    def add(
        self,
        symbol: str,
        *,
        con_id: int = 0,
        sec_type: str = "STK",
        primary_exchange: str = "NASDAQ",
        currency: str = "USD",
        name: str = "",
        min_tick: str = "0.01",
        multiplier: str = "",
        **details: str,
    ) -> Details:
        """Make a contract known; a number is made up where none is given."""
        if not con_id:
            con_id, self._next = self._next, self._next + 1
        trading_class = "NMS" if primary_exchange == "NASDAQ" else symbol
        contract = Contract(
            con_id,
            symbol,
            sec_type,
            multiplier=multiplier,
            primary_exchange=primary_exchange,
            currency=currency,
            local_symbol=symbol,
            trading_class=trading_class,
        )
        found = Details(contract, name or symbol, Decimal(min_tick), **details)
        self._all[con_id] = found
        return found

    def matching(self, wanted: Contract) -> list[Details]:
        """Find what a client may mean; more than one where it says too little."""
        if wanted.con_id:
            found = self._all.get(wanted.con_id)
            return [] if found is None else [found]
        known = [each for each in self._all.values() if _means(wanted, each.contract)]
        if not known and self.made_up is not None and wanted.symbol and wanted.sec_type in ("", "STK"):
            known = [self.add(wanted.symbol, currency=wanted.currency or "USD")]
            self.made_up(known[0])
        return known

    def named(self, symbol: str) -> Details:
        """Give the contract of a symbol; raise KeyError."""
        for each in self._all.values():
            if each.contract.symbol == symbol:
                return each
        raise KeyError(f"no contract is called {symbol}: add_contract() makes one known")

    def by_id(self, con_id: int) -> Details:
        """Give a contract by its number; raise KeyError."""
        return self._all[con_id]

    def all(self) -> list[Details]:
        """List them."""
        return list(self._all.values())


def _means(wanted: Contract, known: Contract) -> bool:
    symbol = wanted.symbol in ("", known.symbol) and (wanted.symbol or wanted.local_symbol) != ""
    return (
        symbol
        and wanted.local_symbol in ("", known.local_symbol)
        and wanted.sec_type in ("", known.sec_type)
        and wanted.currency in ("", known.currency)
        and wanted.exchange in ("", "SMART", known.primary_exchange)
        and wanted.primary_exchange in ("", known.primary_exchange, "SMART")
    )
