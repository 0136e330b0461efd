"""Interactive Brokers, through TWS or IB Gateway; docs/interactive-brokers.md leads to the first paper order.

Where to connect stands under `ibkr` of the server's configuration, all else under `plugins.settings.ibkr`. The
library that speaks with TWS is an extra: `pip install 'sigma9[ibkr-async]'` or `'sigma9[ibkr]'`.
"""

from __future__ import annotations

from typing import Any

from sigma9_core.contracts import PluginContext, Register
from sigma9_core.hookspecs import hookimpl
from sigma9_plugins.brokers.ibkr.broker import IbkrBroker
from sigma9_plugins.brokers.ibkr.feed import IbkrFeed
from sigma9_plugins.brokers.ibkr.settings import IbkrConfig


@hookimpl
def register_brokers(register: Register) -> None:
    """Offer the broker."""
    register("ibkr", _broker, config=IbkrConfig)


@hookimpl
def register_feeds(register: Register) -> None:
    """Offer the feed."""
    register("ibkr", _feed, config=IbkrConfig)


def _broker(config: Any, context: PluginContext) -> IbkrBroker:
    return IbkrBroker(config, context)


def _feed(config: Any, context: PluginContext) -> IbkrFeed:
    return IbkrFeed(config, context)
