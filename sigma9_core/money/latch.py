"""The kill switch's latch: a file made ahead of time at full size and written in place, so that it works when the
disk is full, and read so that any doubt means latched.

The file has two slots, each `S9LATCH <generation> <length> <crc32>`, a line break, JSON, and spaces to its end.
A write goes to the slot that does not hold the newest state, with the next generation, in one pwrite and one
fdatasync; the other slot stays whole whatever happens meanwhile. The rule of reading:

| slots | what is latched |
|---|---|
| both whole, their generations one apart | what the newer one says |
| one damaged, the whole one latches everything | what the whole one says: an unlatch or a kill's step was torn |
| one damaged, the whole one does not | everything, and what the whole one says: a kill may have been torn |
| both damaged, or generations that do not follow | everything |
| the file is missing, of another size, or can't be read | everything |

A latch that doubt has made never flattens: it halts, and a person resets it, which makes the file whole again.
Only `create` makes an unlatched file, and only a new data_dir calls it; later a missing file is doubt.
"""

from __future__ import annotations

import logging
import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from sigma9_core.errors import StateError

log = logging.getLogger("sigma9.kill")

Key = tuple[str, str] | None
"""What is latched: None is everything, else ("strategy", name) or ("symbol", symbol)."""

_MAGIC: Final = b"S9LATCH"
_HEADER: Final = len(b"S9LATCH 00000000000000000001 000001 00000000\n")
_SHORT: Final = 60
"""Characters of a reason that stay where not all of it has room."""


@dataclass(frozen=True, slots=True)
class LatchedScope:
    """One kill that is in force."""

    key: Key
    flatten: bool
    reason: str
    source: str
    at: datetime | None
    """Wall clock; None where doubt has latched it."""
    pending: tuple[str, ...] = ()
    """What was left to do, as a hint; the broker's own read-back decides."""


@dataclass(frozen=True, slots=True)
class LatchState:
    """What is latched, and why it could not be read where that is so."""

    scopes: tuple[LatchedScope, ...] = ()
    error: str | None = None

    @property
    def latched(self) -> bool:
        """Tell whether everything is latched."""
        return self.everything is not None

    @property
    def everything(self) -> LatchedScope | None:
        """Give the global kill, None where there is none."""
        return next((scope for scope in self.scopes if scope.key is None), None)


_SCOPES: Final = TypeAdapter(tuple[LatchedScope, ...])


@dataclass(frozen=True, slots=True)
class _Slot:
    index: int
    generation: int
    scopes: tuple[LatchedScope, ...]


class Latch:
    """Keeps the latch file; every call blocks for a disk write or read (0.1 ms) and may come from any thread."""

    def __init__(self, path: Path, size: int = 4096) -> None:
        self.path = path
        self._size = size
        self._slot_size = size // 2
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        """Device and inode of the descriptor's file."""
        self._whole: dict[bytes, _Slot] = {}
        """The slots that were read last, by their bytes: to take them apart again costs a kill 0.1 ms."""
        self._lock = threading.Lock()

    def create(self) -> None:
        """Make the file, unlatched; for a new data_dir alone. Raise StateError where there is one already."""
        with self._lock:
            if os.path.lexists(self.path):
                raise StateError(f"{self.path} is there already: a latch is made once")
            fresh = self.path.with_name(f"{self.path.name}.new")
            descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _write_all(descriptor, self._frame(1, ()) + self._frame(2, ()), 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            fresh.rename(self.path)
            _flush_folder(self.path.parent)

    def read(self) -> LatchState:
        """Give what is latched; never raises: what can't be read is latched, and `error` says why."""
        with self._lock:
            try:
                slots, fault = self._slots(self._open())
            except OSError as error:
                slots, fault = [], f"{self.path} can't be read ({error.strerror or error})"
        return self._judge(slots, fault)

    def write(self, state: LatchState) -> None:
        """Replace what is latched, durable when this returns. Raise OSError where it can't be written.

        What has no room loses its hints first, then the length of its reasons; at last everything is latched,
        because more scopes than there is room for must not be forgotten.
        """
        with self._lock:
            try:
                descriptor = self._open()
            except FileNotFoundError:
                descriptor = self._make_again()
            slots, fault = self._slots(descriptor)
            newest = max(slots, key=lambda slot: slot.generation, default=None)
            if newest is None:
                # Both are damaged: the file as a whole is made good, in place and at its old size.
                frames = self._frame(1, state.scopes) + self._frame(2, state.scopes)
                _write_all(descriptor, frames, 0)
            else:
                offset = (1 - newest.index) * self._slot_size
                _write_all(descriptor, self._frame(newest.generation + 1, state.scopes), offset)
            if fault is not None and os.fstat(descriptor).st_size > self._size:
                os.ftruncate(descriptor, self._size)
            _flush(descriptor)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._shut()

    # --- the file -------------------------------------------------------------------------------------------

    def _open(self) -> int:
        """Give the kept descriptor of the file that stands at the path now, not of one that was moved away."""
        there = self.path.stat()
        if self._descriptor is not None:
            if self._identity == (there.st_dev, there.st_ino):
                return self._descriptor
            self._shut()
        return self._keep(os.open(self.path, os.O_RDWR | os.O_CLOEXEC))

    def _keep(self, descriptor: int) -> int:
        mine = os.fstat(descriptor)
        self._descriptor, self._identity = descriptor, (mine.st_dev, mine.st_ino)
        return descriptor

    def _make_again(self) -> int:
        """Make a file that went missing; what is written into it counts, and until then it is damaged."""
        self._shut()
        descriptor = self._keep(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        _flush_folder(self.path.parent)
        return descriptor

    def _shut(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _slots(self, descriptor: int) -> tuple[list[_Slot], str | None]:
        """Read both slots; give the whole ones, and what is wrong with the file."""
        size = os.fstat(descriptor).st_size
        raw = os.pread(descriptor, self._size, 0)
        slots: list[_Slot] = []
        whole: dict[bytes, _Slot] = {}
        for index in (0, 1):
            frame = raw[index * self._slot_size :][: self._slot_size]
            slot = self._whole.get(frame) or _parse(index, frame, self._slot_size)
            if slot is not None:
                whole[frame] = slot
                slots.append(slot if slot.index == index else replace(slot, index=index))
        self._whole = whole
        if size != self._size or len(raw) != self._size:
            return slots, f"{self.path} has {size} bytes instead of {self._size}"
        if len(slots) < 2:
            return slots, f"{self.path} is damaged in {2 - len(slots)} of its 2 slots"
        if abs(slots[0].generation - slots[1].generation) != 1:
            return slots, f"{self.path} has slots that do not follow each other"
        return slots, None

    def _judge(self, slots: Sequence[_Slot], fault: str | None) -> LatchState:
        newest = max(slots, key=lambda slot: slot.generation, default=None)
        if newest is not None and fault is None:
            return LatchState(newest.scopes)
        state = LatchState(newest.scopes if newest else (), fault)
        if state.latched:
            return state
        reason = f"{fault}: treated as latched; look at the positions, then reset the kill switch"
        doubt = LatchedScope(None, flatten=False, reason=reason, source="latch", at=None)
        return replace(state, scopes=(doubt, *state.scopes))

    # --- the frame ------------------------------------------------------------------------------------------

    def _frame(self, generation: int, scopes: tuple[LatchedScope, ...]) -> bytes:
        scopes = tuple(replace(scope, reason=_printable(scope.reason)) for scope in scopes)
        body = _SCOPES.dump_json(scopes)
        room = self._slot_size - _HEADER
        if len(body) > room:
            scopes = tuple(replace(scope, pending=(), reason=scope.reason[:_SHORT]) for scope in scopes)
            body = _SCOPES.dump_json(scopes)
        if len(body) > room:
            log.critical("%s has no room for %d kills: it latches everything", self.path, len(scopes))
            reason = "more kills than the latch has room for"
            whole = next((scope for scope in scopes if scope.key is None), None)
            at = whole.at if whole else None
            flatten = whole is not None and whole.flatten
            body = _SCOPES.dump_json((LatchedScope(None, flatten, reason, "latch", at),))
        crc = _crc(generation, body)
        frame = b"%s %020d %06d %08x\n%s" % (_MAGIC, generation, len(body), crc, body)
        return frame.ljust(self._slot_size)


def _printable(text: str) -> str:
    """Replace what UTF-8 can't hold: a strange reason must not keep a kill from being latched."""
    return text.encode("utf-8", "replace").decode()


def _crc(generation: int, body: bytes) -> int:
    return zlib.crc32(b"%d %s" % (generation, body))


def _parse(index: int, raw: bytes, size: int) -> _Slot | None:
    """Read one slot; None where it is damaged."""
    head, _, rest = raw.partition(b"\n")
    words = head.split(b" ")
    if len(raw) != size or len(head) + 1 != _HEADER or len(words) != 4 or words[0] != _MAGIC:
        return None
    try:
        generation, length, crc = int(words[1]), int(words[2]), int(words[3], 16)
        body = rest[:length]
        if len(body) != length or rest[length:].strip(b" ") or crc != _crc(generation, body):
            return None
        return _Slot(index, generation, _SCOPES.validate_json(body))
    except (ValueError, ValidationError):
        return None


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    written = os.pwrite(descriptor, data, offset)
    if written != len(data):
        raise OSError(f"only {written} of {len(data)} bytes were written")


def _flush(descriptor: int) -> None:
    """Make the content durable; macOS has no fdatasync."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
