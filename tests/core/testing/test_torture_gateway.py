"""The TWS peer as a venue: what it tells the torture is what the exchange tells, and a second send is seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sigma9_core.testing.exchange.control import ExchangeProcess
from sigma9_core.testing.torture.gateway import Recorder
from sigma9_core.testing.tws.contracts import Contract
from sigma9_core.testing.tws.orders import WireOrder
from sigma9_core.testing.tws.requests import Request


@pytest.fixture(name="venue")
def _venue() -> Iterator[ExchangeProcess]:
    """Run the gateway in a process of its own."""
    with ExchangeProcess(seed=1, venue="sigma9_core.testing.torture.gateway") as venue:
        venue.ask("run", every=60.0, step=0.004, base={"AA": 10.0, "FA": 20.0}, busts=[])
        yield venue


def test_an_order_by_hand_is_foreign(venue: ExchangeProcess) -> None:
    """It trades, moves position and cash, and has no id of ours."""
    venue.ask("by_hand", order={"symbol": "FA", "side": "sell", "quantity": "3"})
    dump = venue.ask("dump")

    (order,), (execution,) = dump["orders"], dump["executions"]
    assert (order["order_id"], order["state"], order["filled_quantity"]) == (None, "filled", "3")
    assert execution["fill"]["order_id"] == ""
    assert (execution["after"], execution["busted"], execution["told_at"]) == ("-3", False, None)
    assert dump["positions"] == {"FA": "-3"}
    assert dump["received"] == []
    assert float(dump["cash"]) == 100_000 + 60 - 1


def test_faults_are_the_peers_and_end_with_none(venue: ExchangeProcess) -> None:
    """What is named is armed, an unknown name is an accident that never happens, and the port is the peer's."""
    venue.ask("faults", rates={"lost-ack": 0.5, "late-execution": 0.5, "cut": 1.0, "late": 0.1})
    venue.ask("faults", rates={})
    assert venue.ask("gateway") not in (0, venue.port)
    assert venue.ask("dump")["connected"] is False


@pytest.mark.parametrize(
    ("arrives", "changed", "sent"), [(True, False, 1), (True, True, 1), (False, True, 1), (False, False, 2)]
)
async def test_an_order_that_comes_again_is_a_change_or_a_second_send(
    arrives: bool, changed: bool, sent: int
) -> None:
    """Under the number of an order that is there it is a change; where none is, the same terms were sent again."""
    async with Recorder() as tws:
        values: dict[str, Any] = {"action": "BUY", "totalQuantity": 1, "orderType": "LMT", "lmtPrice": 1}
        order = WireOrder.made(orderRef="x", **values)
        contract: Contract = tws.world.contracts.named("AAPL").contract
        for raw in ("3", "1"), ("3", "2" if changed else "1"):
            if arrives:
                tws.book.place(1, 5, contract, order)
            tws.look(Request(1, "placeOrder", raw, order=order, contract=contract, order_id=5))
        tws.look(Request(1, "reqIds", ()))

        assert [one for each in tws.sent for one in each["ids"]] == ["x"] * sent
