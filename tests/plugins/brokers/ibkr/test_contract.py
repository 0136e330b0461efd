"""The IB broker keeps to the broker contract, against a TWS on a socket."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from sigma9_core.testing.broker_contract import BrokerContract, BrokerRoom
from sigma9_plugins.testing.ibkr_room import open_room


class TestContract(BrokerContract):
    """With a folder for the order ids."""

    def open_room(self, folder: Path) -> AbstractAsyncContextManager[BrokerRoom]:
        """Open a new TWS."""
        return open_room(folder)
