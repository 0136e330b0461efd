"""The one door to the library that speaks with TWS: `ib_async`, or its predecessor `ib_insync`.

Only the wire of it is used (its client, decoder and records), on the loop that calls; not its `IB` object, whose
orders change on warnings, and not its `startLoop` or `patchAsyncio`. The import takes a moment and wants an event
loop to be set (on Python 3.12 and later it warns, later it fails), so it is made on a worker thread with a loop of
its own.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from sigma9_core.errors import BrokerError

NAMES: Final = ("ib_async", "ib_insync")
"""In the order of preference: the one that is maintained first."""
MISSING: Final = (
    f"neither ib_async nor ib_insync is installed: {sys.executable} -m pip install 'sigma9[ibkr-async]' brings one"
)

_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Library:
    """What is used of it; the records are the library's own."""

    name: str
    version: str
    client: Any
    """Makes a client of a wrapper: the object whose methods get the messages."""
    contract: Any
    order: Any
    execution_filter: Any


_loaded: dict[str, Library] = {}


def load(name: str | None = None) -> Library:
    """Import the library once, on a thread without a running loop; raise BrokerError where there is none."""
    with _loading:
        key = name or ""
        if key not in _loaded:
            module = _import(name)
            # Its own words on a connection are ours to say, and it says them as errors at every attempt.
            logging.getLogger(f"{module.__name__}.client").setLevel(logging.CRITICAL)
            _loaded[key] = Library(
                module.__name__,
                str(getattr(module, "__version__", "?")),
                module.Client,
                module.Contract,
                module.Order,
                module.ExecutionFilter,
            )
        return _loaded[key]


def _import(name: str | None) -> ModuleType:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        for each in NAMES if name is None else (name,):
            try:
                return importlib.import_module(each)
            except ModuleNotFoundError as error:
                if error.name != each:
                    raise BrokerError(f"{each} can't be imported: {error}") from error
        raise BrokerError(MISSING if name is None else f"{name} is not installed")
    finally:
        asyncio.set_event_loop(None)
        loop.close()
