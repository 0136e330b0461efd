"""The peer on a bare socket: frames, handshake, and what a client that is no library may do."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from sigma9_core.testing.tws import FakeTws
from sigma9_core.testing.tws.orders import BODY, HEAD, TAIL, TRAIL, WireOrder, open_order, read_order
from sigma9_core.testing.tws.requests import read_request
from sigma9_core.testing.tws.wire import (
    HELLO,
    UNSET,
    Cursor,
    WireError,
    decode,
    encode,
    framed,
    integer,
    message,
    number,
    read_frame,
    text,
)

CONTRACT = ("265598", "AAPL", "STK", "", "0.0", "", "", "SMART", "", "USD", "", "")


class Bare:
    """A client that speaks in fields."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, *fields: object) -> None:
        """Send a message."""
        self.writer.write(encode(str(each) for each in fields))

    async def hear(self) -> tuple[str, ...]:
        """Read a message."""
        async with asyncio.timeout(5):
            return decode(await read_frame(self.reader))

    async def until(self, number: int) -> list[tuple[str, ...]]:
        """Read up to a message of that number."""
        heard = [await self.hear()]
        while heard[-1][0] != str(number):
            heard.append(await self.hear())
        return heard

    async def shake(self, versions: bytes = b"v157..176") -> tuple[str, ...]:
        """Shake hands."""
        self.writer.write(HELLO + framed(versions))
        return await self.hear()

    async def begin(self, client_id: int = 1) -> list[tuple[str, ...]]:
        """Shake hands and start."""
        await self.shake()
        self.say(71, 2, client_id, "")
        return await self.until(9)

    async def closed(self) -> bool:
        """Tell whether the peer closes the connection."""
        async with asyncio.timeout(5):
            return await self.reader.read() == b""


@pytest.fixture(name="bare")
async def _bare(tws: FakeTws) -> AsyncIterator[Bare]:
    reader, writer = await asyncio.open_connection(tws.host, tws.port)
    yield Bare(reader, writer)
    writer.close()


def placed(order_id: int, **values: object) -> tuple[object, ...]:
    """Write placeOrder as a client does."""
    given = {
        "action": "BUY",
        "totalQuantity": 100,
        "orderType": "LMT",
        "lmtPrice": 180,
        "tif": "DAY",
        "transmit": 1,
    }
    found = {**given, **values}

    def named(names: tuple[str, ...]) -> list[object]:
        return [found.get(name, "") for name in names]

    return (
        *(3, order_id, *CONTRACT, "", "", *named(HEAD), *named(BODY), *named(TRAIL), "", "", "", ""),
        *("", "", "", "", 0, "", "", found.get("whatIf", 0), "", "", "", "", 0, *named(TAIL)),
    )


async def test_handshake(bare: Bare) -> None:
    """The answer to the versions has two fields: 176 and the time with its zone."""
    assert await bare.shake() == ("176", "20260105 15:00:00 UTC")
    bare.say(71, 2, 5, "")
    assert await bare.until(9) == [("15", "1", "DU1234567"), ("9", "1", "1")]


@pytest.mark.parametrize("versions", [b"v100..150", b"v178..190", b"nonsense"])
async def test_other_versions(bare: Bare, versions: bytes) -> None:
    """A client that does not offer 176 is sent away."""
    bare.writer.write(HELLO + framed(versions))
    assert await bare.closed()


async def test_connect_options(bare: Bare, tws: FakeTws) -> None:
    """Options may follow the versions."""
    assert (await bare.shake(b"v157..178 +PACEAPI"))[0] == "176"
    assert tws.world.clients[0].offered == "v157..178 +PACEAPI"


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HELLO + struct.pack(">I", 2**31),
        HELLO + framed(b"v157..176") + framed(b"no end"),
    ],
)
async def test_garbage(bare: Bare, garbage: bytes) -> None:
    """What is not of the protocol closes the connection, and the peer lives on."""
    bare.writer.write(garbage)
    async with asyncio.timeout(5):
        assert b"no end" not in await bare.reader.read()


async def test_broken_message(bare: Bare, tws: FakeTws) -> None:
    """A message with too few or too many fields closes the connection."""
    await bare.begin()
    bare.say(*placed(1), "more")
    async with asyncio.timeout(5):
        await bare.reader.read()
    assert tws.orders() == []


async def test_nothing_before_the_id(bare: Bare, tws: FakeTws) -> None:
    """Before startApi nothing is answered."""
    await bare.shake()
    bare.say(49, 1)
    bare.say(71, 2, 1, "")
    assert (await bare.hear())[0] == "15"


async def test_frames_in_pieces(bare: Bare) -> None:
    """Bytes may come one by one."""
    for byte in HELLO + framed(b"v157..176") + encode(("71", "2", "1", "")):
        bare.writer.write(bytes([byte]))
        await bare.writer.drain()
    assert (await bare.until(9))[-1] == ("9", "1", "1")


async def test_unknown_request(bare: Bare, tws: FakeTws) -> None:
    """A request that the peer does not know is noted and not answered."""
    await bare.begin()
    bare.say(83, 1, "x")
    bare.say(49, 1)
    assert (await bare.until(49))[-1] == ("49", "1", str(int(tws.clock.now().timestamp())))
    assert [each.name for each in tws.received] == ["startApi", "unknown", "reqCurrentTime"]


async def test_order_conversation(bare: Bare, tws: FakeTws) -> None:
    """Acceptance: openOrder, orderStatus. Fill: execDetails, openOrder, orderStatus, commissionReport."""
    await bare.begin()
    bare.say(*placed(1, orderRef="x"))
    *farms, opened, status = await bare.until(3)
    assert [each[3] for each in farms] == ["2104", "2106", "2158"]
    assert opened[0] == "5"
    assert status[:5] == ("3", "1", "Submitted", "0", "100")
    tws.fill("x", 40, 179)
    assert [(await bare.hear())[0] for _ in range(4)] == ["11", "5", "3", "59"]
    tws.fill("x")
    execution, _, status, commission = [await bare.hear() for _ in range(4)]
    assert execution[16:22] == ("DU1234567", "NASDAQ", "BOT", "60", "180", str(tws.order("x").perm_id))
    assert execution[24:27] == ("100", "179.6", "x")
    assert len(execution) == 31
    assert status[:6] == ("3", "1", "Filled", "100", "0", "179.6")
    assert commission[3:7] == ("0.300", "USD", UNSET, UNSET)
    bare.say(4, 1, 1, "")
    assert (await bare.hear())[:4] == ("4", "2", "1", "10148")


async def test_what_if_on_the_wire(bare: Bare) -> None:
    """A what-if is answered by one openOrder, with the flag."""
    await bare.begin()
    bare.say(*placed(7, whatIf=1))
    (answer,) = [each for each in await bare.until(5) if each[0] == "5"]
    assert answer[1] == "7"
    assert "4750.00" in answer


# --- reading and writing ----------------------------------------------------------------------------------------


def test_fields() -> None:
    """Flags are 1 and 0, decimals have no exponent, what is unset is empty or the largest number."""
    assert [text(each) for each in (True, False, None, Decimal("1E+2"), 1.5, "x")] == [
        "1",
        "0",
        "",
        "100",
        "1.5",
        "x",
    ]
    assert [number(each) for each in ("", UNSET, "1e-05")] == [None, None, Decimal("0.00001")]
    assert integer("100.0") == 100
    assert decode(encode(message(9, 1, 2))[4:]) == ("9", "1", "2")
    with pytest.raises(WireError, match="not a number"):
        number("many")
    with pytest.raises(WireError, match="ends after 0 fields"):
        Cursor(()).next()


def test_order_of_a_combination() -> None:
    """Legs, their prices and their routing are read where they stand, and told again."""
    bag = ["9", "SPY", "BAG", *CONTRACT[3:]]
    legs: list[Any] = [
        2,
        1,
        1,
        "BUY",
        "SMART",
        0,
        0,
        "",
        -1,
        2,
        1,
        "SELL",
        "SMART",
        0,
        0,
        "",
        -1,
        1,
        "1.5",
        1,
        "a",
        "b",
    ]
    fields = placed(5)
    head = 14 + 2 + len(HEAD)
    sent = [*fields[1:2], *bag, *fields[14:head], *legs, *fields[head:]]

    order_id, contract, order = read_order(Cursor([str(each) for each in sent]))

    assert (order_id, contract.sec_type) == (5, "BAG")
    assert [leg[2] for leg in order.legs] == ["BUY", "SELL"]
    assert (order.leg_prices, order.routing) == (("1.5",), (("a", "b"),))


def test_unknown_condition() -> None:
    """A condition of an unknown type can't be read."""
    fields = [str(each) for each in placed(5)]
    at = len(fields) - len(TAIL) - 1
    with pytest.raises(WireError, match="no condition is of type"):
        read_request(1, (*fields[:at], "1", "9", "x"))


def test_made_by_hand() -> None:
    """An order that a test makes has the same fields."""
    order = WireOrder.made(action="SELL", totalQuantity=5, orderType="stp", auxPrice=Decimal("1.50"))

    assert (order.kind, order.buys, order.get("auxPrice"), order.get("tif")) == ("STP", False, "1.50", "DAY")
    assert order.changed(tif="GTC").get("tif") == "GTC"
    assert callable(open_order)
