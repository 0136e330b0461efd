"""The settings of broker and feed; host, port, client id and account stand under `ibkr` of the server."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from sigma9_core.config import Clockface
from sigma9_core.models import Frozen

Seconds = Annotated[float, Field(gt=0, le=600)]
SymbolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,32}$")]


class RestartConfig(Frozen):
    """When the gateway restarts each night."""

    start: Clockface | None = None
    """From here on no entries are taken: a few minutes before the gateway's own restart time, such as 23:40."""
    end: Clockface | None = None
    """Entries are taken again from here on, if the gateway is back, such as 00:05."""
    zone: str | None = None
    """The time zone of both, such as `Europe/Berlin`: that of the machine the gateway runs on; absent, the
    scheduler's."""

    @model_validator(mode="after")
    def _both(self) -> RestartConfig:
        if (self.start is None) != (self.end is None):
            raise ValueError("start and end go together: name both, or neither")
        if self.start is not None and self.start == self.end:
            raise ValueError("start and end are the same: the restart needs a length")
        return self


class IbkrConfig(Frozen):
    """Settings of `ibkr`, under `plugins.settings.ibkr`: broker and feed read the same ones."""

    connect_seconds: Seconds = 10.0
    """How long the gateway may take to answer a connection."""
    answer_seconds: Seconds = 10.0
    """How long it may take to answer a question, such as for the open orders."""
    probe_seconds: Seconds = 10.0
    """After so much silence it is asked for its time; without an answer in half of that the connection is dead."""
    commission_seconds: Annotated[float, Field(ge=0, le=10)] = 0.25
    """How long a fill waits for its commission report; one that comes later is booked later."""
    messages_per_second: Annotated[int, Field(ge=20, le=48)] = 40
    """What the broker sends at most: a good third of it orders, a fifth questions, and all that is left is kept
    for cancels and the kill switch. IB closes above 50."""
    client_id_seconds: Annotated[float, Field(ge=0, le=3600)] = 60.0
    """How long `ibkr.client_id` may be in use by another client before the spare one is taken."""
    spare_client_id: Annotated[int, Field(ge=1)] | None = None
    """The client id that is taken then; absent, `ibkr.client_id` + 100."""
    feed_client_id: Annotated[int, Field(ge=1)] | None = None
    """The client id of the feed; absent, `ibkr.client_id` + 1."""
    restart: RestartConfig = RestartConfig()
    symbols: tuple[SymbolName, ...] = ()
    """Feed: the stocks that are scanned. Daily bars come symbol by symbol, 60 in ten minutes: keep it short."""
    allow_delayed: bool = False
    """Feed: whether delayed data are passed on, under the time that they are of; else they are left out."""
    real_time_bars: bool = True
    """Feed: whether 5-second bars are asked for, from which it makes minute bars."""
    feed_messages_per_second: Annotated[int, Field(ge=1, le=50)] = 8
    """What the feed sends at most; both together must stay below IB's 50."""
