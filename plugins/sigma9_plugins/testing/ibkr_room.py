"""The IB broker, connected to a TWS of its own, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sigma9_core.calendar import Calendar
from sigma9_core.clock import LiveClock
from sigma9_core.config import IbkrSettings, KillSwitchSettings, Settings
from sigma9_core.contracts import PluginContext
from sigma9_core.models import OrderRequest
from sigma9_core.testing.broker_contract import BrokerRoom, Recorder
from sigma9_core.testing.orders import approve
from sigma9_core.testing.tws import FakeTws
from sigma9_plugins.brokers.ibkr import library
from sigma9_plugins.brokers.ibkr.broker import IbkrBroker
from sigma9_plugins.brokers.ibkr.mapping import to_ib
from sigma9_plugins.brokers.ibkr.settings import IbkrConfig

SYMBOL: Final = "TEST"
QUICK: Final[dict[str, Any]] = {"client_id_seconds": 0, "answer_seconds": 2, "connect_seconds": 2}


def context(tws: FakeTws, folder: Path | None = None, *, foreign: Any = "leave", **ibkr: Any) -> PluginContext:
    """Make a plugin's context whose gateway is this one."""
    settings = Settings(
        broker="ibkr",
        feed="ibkr",
        ibkr=IbkrSettings(host=tws.host, port=tws.port, **ibkr),
        kill_switch=KillSwitchSettings(foreign=foreign),
    )
    return PluginContext("ibkr", settings, LiveClock(), Calendar("XNYS", []), folder)


class IbkrRoom(BrokerRoom):
    """A TWS, and a broker that is connected to it."""

    def __init__(self, tws: FakeTws, folder: Path | None = None, *, config: Any = None, **ibkr: Any) -> None:
        self.tws = tws
        self.folder = folder
        self.given = {**QUICK, **(config or {})}
        self.ibkr = ibkr
        self.heard = Recorder()
        self.broker: IbkrBroker = self.another()

    def another(self) -> IbkrBroker:
        """Make the broker of the next start."""
        return IbkrBroker(IbkrConfig(**self.given), context(self.tws, self.folder, **self.ibkr))

    def now(self) -> datetime:
        """Tell the time."""
        return datetime.now(UTC)

    async def move(self, symbol: str, price: float) -> None:
        """Trade at a price, and let the broker hear of it."""
        await self._trade(symbol, price, None)

    async def thin(self, symbol: str, price: float, quantity: int) -> None:
        """Trade so many shares."""
        await self._trade(symbol, price, quantity)

    async def _trade(self, symbol: str, price: float, depth: int | None) -> None:
        """Trade: what comes between two trades fills at the next one, as in any market of one's own."""
        self.tws.hold_fills(hold=False)
        self.tws.set_price(symbol, price, depth=depth)
        self.tws.hold_fills()
        await self.caught_up()

    async def caught_up(self) -> None:
        """Wait until the broker has heard everything that was said so far: the time comes behind it."""
        if self.broker.health.socket == "up" and not self.tws.faults.on("half-open"):
            await self.broker.time()

    async def place_by_hand(self, wanted: OrderRequest) -> None:
        """Place an order past the broker, as a person at the workstation does, who may write a reference too."""
        order = to_ib(library.load(), wanted, "by hand", account="", number=0)
        values: dict[str, Any] = {
            name: getattr(order, name)
            for name in ("action", "totalQuantity", "orderType", "tif", "orderRef")
            if getattr(order, name) != ""
        }
        if wanted.limit_price is not None:
            values["lmtPrice"] = wanted.limit_price
        self.tws.place_manual(wanted.symbol, **values)

    def seen(self, what: Callable[[IbkrRoom], object]) -> Callable[[], bool]:
        """Make a condition for `until`."""
        return lambda: bool(what(self))


@asynccontextmanager
async def open_room(
    folder: Path | None = None, *, config: Any = None, peer: Any = None, **ibkr: Any
) -> AsyncIterator[IbkrRoom]:
    """Open a TWS that knows `TEST` at about 10, and a broker that is connected to it."""
    async with FakeTws(**(peer or {})) as tws:
        tws.add_contract(SYMBOL, 10)
        tws.hold_fills()
        room = IbkrRoom(tws, folder, config=config, **ibkr)
        await room.broker.connect(room.heard)
        try:
            yield room
        finally:
            await room.broker.disconnect()


__all__ = ["IbkrRoom", "approve", "context", "open_room"]
