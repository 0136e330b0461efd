"""The gateway's restart, once a night: no entries shortly before it and while it lasts."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sigma9_core.errors import PluginError
from sigma9_plugins.brokers.ibkr.settings import RestartConfig


class Blackout:
    """A stretch of every day, by the clock of the gateway's machine; it may span midnight."""

    def __init__(self, config: RestartConfig, zone: str) -> None:
        """Store; `zone` counts where the settings name none. Raise PluginError for a zone that does not exist."""
        self._start, self._end = config.start, config.end
        name = config.zone or zone
        try:
            self._zone = ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise PluginError(f"ibkr: restart.zone: there is no time zone '{name}'") from error

    def covers(self, moment: datetime) -> bool:
        """Tell whether a moment lies in it."""
        if self._start is None or self._end is None:
            return False
        clockface = moment.astimezone(self._zone).strftime("%H:%M")
        if self._start < self._end:
            return self._start <= clockface < self._end
        return clockface >= self._start or clockface < self._end

    def __str__(self) -> str:
        """Say when it is."""
        return f"{self._start} to {self._end} ({self._zone})"
