"""Saving documents that nobody waits for: as soon as the disk takes them, and none holding up another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from sigma9_core.errors import StateError
from sigma9_core.state import Documents

log = logging.getLogger("sigma9.engine")

SAVE_AGAIN: Final = 1.0
"""Seconds between two tries of a document that could not be saved."""


class Keeping:
    """Keeps documents; on the outer loop."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._waiting: dict[str, dict[str, Any]] = {}
        """What is to be saved, by name."""
        self._task: asyncio.Task[None] | None = None

    async def save(self, name: str, document: Mapping[str, Any]) -> None:
        """Save a document now; raise StateError where it can't be, then the one before it counts."""
        older = self._waiting.pop(name, None)  # this one is newer
        try:
            await self._documents.save(name, dict(document))
        except StateError:
            if older is not None and name not in self._waiting:
                self.keep(name, older)  # whoever asked for the newer one hears that it does not count
            raise

    def keep(self, name: str, document: Mapping[str, Any]) -> None:
        """Save a document that nobody waits for, as soon as the disk takes it."""
        self._waiting[name] = dict(document)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._save_all(), name="save-documents")

    async def kept(self, name: str) -> bool:
        """Save now what is to be kept of a document; False where the disk does not take it, and it waits on."""
        document = self._waiting.get(name)
        if document is not None:
            try:
                await self.save(name, document)
            except StateError:
                return False
        return True

    async def end(self) -> None:
        """Give what is still to be saved a last moment, and say what was not."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=SAVE_AGAIN)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._waiting:
            log.error("not saved: the documents %s", ", ".join(self._waiting))

    async def _save_all(self) -> None:
        """Save what is to be kept; a document that can't be saved holds up no other, and is told once."""
        told: set[str] = set()
        while self._waiting:
            failed = False
            for name, document in tuple(self._waiting.items()):
                if self._waiting.get(name) is not document:
                    continue  # a newer one came meanwhile, or somebody has saved one
                try:
                    await self._documents.save(name, document)
                except StateError as error:
                    failed = True
                    if name not in told:
                        log.error("%s; the document %s is saved as soon as it can be", error, name)
                    told.add(name)
                else:
                    if self._waiting.get(name) is document:
                        del self._waiting[name]
            if failed:
                await asyncio.sleep(SAVE_AGAIN)
