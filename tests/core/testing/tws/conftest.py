"""What the tests of the TWS peer share: the peer, and clients of whichever library is installed."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from sigma9_core.testing.tws import FakeTws, PeerClock

NAMES = ("ib_async", "ib_insync")


@pytest.fixture(name="tws")
async def _tws() -> AsyncIterator[FakeTws]:
    """Run a peer whose time stands still."""
    async with FakeTws(clock=PeerClock(by_hand=True)) as tws:
        yield tws


@pytest.fixture(name="lib")
async def _lib() -> Any:
    """Give the client library that is installed."""
    for name in NAMES:
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    pytest.fail(f"neither of {NAMES} is installed")


@pytest.fixture(name="connect")
async def _connect(lib: Any, tws: FakeTws) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Give a function that connects a client to the peer."""
    made = []

    async def connect(client_id: int = 1, **options: Any) -> Any:
        ib = lib.IB()
        made.append(ib)
        await ib.connectAsync(tws.host, tws.port, clientId=client_id, **{"timeout": 5, **options})
        return ib

    yield connect
    for ib in made:
        ib.disconnect()
    await asyncio.sleep(0)


@pytest.fixture(name="ib")
async def _ib(connect: Callable[..., Awaitable[Any]]) -> Any:
    """Give a connected client."""
    return await connect()


@pytest.fixture(name="aapl")
async def _aapl(lib: Any, ib: Any) -> Any:
    """Give a contract as the peer knows it."""
    (contract,) = await ib.qualifyContractsAsync(lib.Stock("AAPL", "SMART", "USD"))
    return contract


@pytest.fixture(name="heard")
async def _heard(ib: Any) -> list[tuple[int, int, str]]:
    """Collect the errors that a client hears: request, code, text."""
    heard: list[tuple[int, int, str]] = []
    ib.errorEvent += lambda number, code, text, contract: heard.append((number, code, text))
    return heard
