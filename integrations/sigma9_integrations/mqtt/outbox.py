"""How far the broker has acknowledged durable events: a number that survives a restart."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sigma9_integrations.broker.files import write_private

_LOG = logging.getLogger("sigma9.mqtt")

FILE: Final = "mqtt_outbox.json"


@dataclass(frozen=True, slots=True)
class Mark:
    """The newest durable event that the broker has acknowledged, and the journal that it stands in."""

    journal_id: str
    seq: int


class Outbox:
    """Keeps the mark in a file of the data folder; without a folder it keeps nothing.

    It is written at most once a second, so after a crash the last second's events are sent again, marked late;
    their `seq` tells them from new ones.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._path = None if folder is None else folder / FILE

    def load(self) -> Mark | None:
        """Read the mark; None where there is none, or none that can be read."""
        if self._path is None or not self._path.exists():
            return None
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return Mark(str(found["journal_id"]), int(found["seq"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            _LOG.warning("%s can't be read (%s): MQTT goes on with the newest events", self._path, error)
            return None

    def save(self, mark: Mark) -> None:
        """Write the mark; a disk that fails is logged, and costs nothing but repeats after a restart."""
        if self._path is None:
            return
        try:
            write_private(self._path, json.dumps({"journal_id": mark.journal_id, "seq": mark.seq}) + "\n")
        except OSError as error:
            _LOG.warning("%s can't be written (%s): after a restart events may be sent twice", self._path, error)
