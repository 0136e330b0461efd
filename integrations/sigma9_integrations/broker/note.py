"""The note that tells this machine's command line which broker the running server lives on, and where.

It holds no secret but lies in the data folder, mode 0600: the passwords lie beside it.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

from sigma9_integrations.broker.files import private_folder, write_private

NOTE: Final = "broker.json"


@dataclass(frozen=True, slots=True)
class BrokerNote:
    """Which broker a server uses."""

    kind: Literal["mosquitto", "amqtt", "external"]
    host: str
    port: int
    base: str
    """`mqtt.base_topic`."""
    prefix: str
    """`home_assistant.prefix`."""
    node: str
    pid: int
    """The server's process: a note of another one is old."""
    tls: dict[str, str] = field(default_factory=dict)
    """The files `ca`, `cert` and `key` of an external broker, where it speaks TLS."""


def write_note(folder: Path, note: BrokerNote) -> None:
    """Write the note."""
    write_private(private_folder(folder) / NOTE, json.dumps(asdict(note), indent=2) + "\n", durable=False)


def remove_note(folder: Path) -> None:
    """Take the note away: the server stops."""
    with contextlib.suppress(OSError):
        (folder / NOTE).unlink(missing_ok=True)


def read_note(folder: Path, pid: int) -> BrokerNote | None:
    """Read the note of the server that runs as `pid`; None where there is none, or an older one's."""
    try:
        note = BrokerNote(**json.loads((folder / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return note if note.pid == pid else None
