"""Errors that Sigma9 raises; each says what the reader should do about it.

Sigma9Error
├── ConfigError        a configuration file is wrong: fix the lines that it lists
├── PluginError        a plugin can't be loaded or built: disable or repair it
├── DataError          market data can't be read: name another file or column
├── JournalError       the journal can't be written: nothing was sent; `unknown` where it may be there all the same
├── StateError         a document can't be read or written
├── BrokerError        the broker's outcome is not known: read back before deciding anything
│   └── BrokerRefused  the broker surely did not take the order: it is dead
└── CommandError       a command was refused: the code and the message are its answer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

ErrorCode = Literal[
    "invalid",
    "unknown_command",
    "not_found",
    "unauthorized",
    "forbidden",
    "killed",
    "conflict",
    "busy",
    "not_running",
    "retained",
    "expired",
    "risk_rejected",
    "rate_limited",
    "broker_unavailable",
    "internal",
]

HTTP_STATUS: Final[Mapping[ErrorCode, int]] = {
    "invalid": 422,
    "unknown_command": 404,
    "not_found": 404,
    "unauthorized": 401,
    "forbidden": 403,
    "killed": 409,
    "conflict": 409,
    "busy": 409,
    "not_running": 409,
    "retained": 409,
    "expired": 410,
    "risk_rejected": 422,
    "rate_limited": 429,
    "broker_unavailable": 503,
    "internal": 500,
}
"""The HTTP status of each error code (contract 4)."""


class Sigma9Error(Exception):
    """Base of everything that Sigma9 raises on purpose."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in a configuration file."""

    where: str
    """File and line, or the environment variable, or the command-line option."""
    path: str
    """The dotted path of the setting, such as `server.port`."""
    message: str

    def __str__(self) -> str:
        """Give the one line that the user reads."""
        return f"{self.where}: {self.path}: {self.message}" if self.path else f"{self.where}: {self.message}"


class ConfigError(Sigma9Error):
    """List every fault of the configuration in one message."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class PluginError(Sigma9Error):
    """Name the plugin that can't be loaded, registered or built."""


class DataError(Sigma9Error):
    """Name the file of market data that can't be used."""


class JournalError(Sigma9Error):
    """The journal could not make a record durable; `unknown`: nobody knows yet whether it has."""

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        self.unknown = unknown
        super().__init__(message)


class StateError(Sigma9Error):
    """A document could not be read or written."""


class BrokerError(Sigma9Error):
    """The broker did not answer as it should; the outcome is unknown."""


class BrokerRefused(BrokerError):
    """The broker surely did not accept the order."""


class CommandError(Sigma9Error):
    """Refuse a command with the code, message and details of its answer."""

    def __init__(self, code: ErrorCode, message: str, details: Mapping[str, Any] | None = None) -> None:
        self.code: ErrorCode = code
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        super().__init__(message)


def in_words(error: BaseException) -> str:
    """Give an error of ours as the sentence that it is, any other with its type in front."""
    return str(error) if isinstance(error, Sigma9Error) and str(error) else f"{type(error).__name__}: {error}"
