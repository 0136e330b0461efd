"""The latch is written in place, survives whatever tears it, and any doubt means latched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma9_core.errors import StateError
from sigma9_core.money.latch import Latch, LatchedScope, LatchState

AT = datetime(2026, 11, 20, 14, 45, 0, 123456, tzinfo=UTC)
KILL = LatchedScope(None, flatten=True, reason="by hand", source="mqtt", at=AT, pending=("AAPL",))
HALT = LatchedScope(("symbol", "BRK.B"), flatten=False, reason="odd quotes", source="risk", at=AT)
UNLATCHED = LatchState()
KILLED = LatchState((KILL,))
SCOPED = LatchState((HALT,))


@pytest.fixture(name="latch")
def _latch(tmp_path: Path) -> Iterator[Latch]:
    latch = Latch(tmp_path / "kill.latch")
    latch.create()
    yield latch
    latch.close()


def again(latch: Latch) -> LatchState:
    """Read the file as the next process would."""
    other = Latch(latch.path)
    try:
        return other.read()
    finally:
        other.close()


# --- an ordinary life -----------------------------------------------------------------------------------------


def test_new_latch_is_unlatched_private_and_full_size(latch: Latch) -> None:
    """A new latch is unlatched, has its whole size at once, and only its owner may read it."""
    assert latch.read() == UNLATCHED
    assert not latch.read().latched
    assert latch.path.stat().st_size == 4096
    assert latch.path.stat().st_mode & 0o777 == 0o600


def test_create_does_not_overwrite(latch: Latch) -> None:
    """Making a latch where there is one is refused, and what is latched stays."""
    latch.write(KILLED)

    with pytest.raises(StateError, match="is there already"):
        latch.create()

    assert again(latch) == KILLED


@pytest.mark.parametrize("state", [KILLED, SCOPED, LatchState((KILL, HALT)), UNLATCHED])
def test_state_survives_a_restart(latch: Latch, state: LatchState) -> None:
    """What was written is what the next process reads, every field of it."""
    latch.write(state)

    assert again(latch) == state
    assert latch.read() == state


def test_narrow_scope_does_not_latch_everything(latch: Latch) -> None:
    """A kill of one symbol is kept as that, and is not the global latch."""
    latch.write(SCOPED)

    assert not again(latch).latched
    assert again(latch).scopes == (HALT,)


@given(texts=st.lists(st.text(max_size=300), max_size=4), flatten=st.booleans())
def test_any_reason_is_kept(tmp_path_factory: pytest.TempPathFactory, texts: list[str], flatten: bool) -> None:
    """Whatever a reason holds, the kill is latched with it, or with as much of it as there is room for."""
    latch = Latch(tmp_path_factory.mktemp("latch") / "kill.latch")
    latch.create()
    scopes = tuple(LatchedScope(("symbol", f"S{i}"), flatten, text, "api", AT) for i, text in enumerate(texts))

    latch.write(LatchState(scopes))
    latch.close()

    found = again(latch)
    assert found.error is None
    assert [s.key for s in found.scopes] == [s.key for s in scopes]
    assert all(
        a.reason == b.reason or a.reason == b.reason[:60] for a, b in zip(found.scopes, scopes, strict=True)
    )


def test_reason_that_utf8_cannot_hold_is_latched_all_the_same(latch: Latch) -> None:
    """A reason with half a surrogate pair does not keep a kill from being latched."""
    latch.write(LatchState((LatchedScope(None, flatten=True, reason="bad \ud800 text", source="api", at=AT),)))

    assert again(latch).latched
    assert again(latch).scopes[0].reason == "bad ? text"


def test_more_kills_than_there_is_room_for_latch_everything(
    latch: Latch, caplog: pytest.LogCaptureFixture
) -> None:
    """Scopes that have no room are not forgotten: everything is latched in their place, without a flatten."""
    latch.write(
        LatchState(tuple(LatchedScope(("symbol", f"S{i}"), True, "x" * 100, "api", AT) for i in range(99)))
    )

    found = again(latch)
    assert found.latched
    assert found.scopes[0].flatten is False
    assert "no room" in found.scopes[0].reason or "more kills" in found.scopes[0].reason
    assert "no room for 99 kills" in caplog.text
    assert latch.path.stat().st_size == 4096


# --- doubt ----------------------------------------------------------------------------------------------------


def doubtful(state: LatchState) -> bool:
    return state.latched and state.error is not None


def test_missing_file_is_latched(tmp_path: Path) -> None:
    """A file that is not there counts as latched, without a flatten, and says so."""
    found = Latch(tmp_path / "kill.latch").read()

    assert doubtful(found)
    assert found.everything is not None
    assert not found.everything.flatten
    assert "can't be read (No such file or directory): treated as latched" in found.everything.reason


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 4095, 4097, 9000])
def test_file_of_another_size_is_latched(latch: Latch, size: int) -> None:
    """A file that was cut or has grown counts as latched."""
    os.truncate(latch.path, size)

    assert doubtful(again(latch))
    assert f"has {size} bytes instead of 4096" in str(again(latch).error)


def test_folder_in_its_place_is_latched(tmp_path: Path) -> None:
    """Whatever stands in the place of the file, reading it does not raise."""
    (tmp_path / "kill.latch").mkdir()

    assert doubtful(Latch(tmp_path / "kill.latch").read())


@pytest.mark.parametrize("damage", [b"\0" * 4096, b"\xff" * 4096, b"S9LATCH 1 2 3\n" + b" " * 4082])
def test_file_of_rubbish_is_latched(latch: Latch, damage: bytes) -> None:
    """A file whose both slots are damaged counts as latched."""
    latch.path.write_bytes(damage)

    assert doubtful(again(latch))


def torn(before: bytes, after: bytes, cut: int) -> bytes:
    """Give the file as a write leaves it that stopped after `cut` of its bytes."""
    changed = [index for index in range(len(before)) if before[index] != after[index]]
    slot = 0 if changed[0] < 2048 else 2048
    return before[:slot] + after[slot : slot + cut] + before[slot + cut :]


@pytest.mark.parametrize(
    ("old", "new"), [(UNLATCHED, KILLED), (KILLED, UNLATCHED), (SCOPED, UNLATCHED), (UNLATCHED, SCOPED)]
)
def test_torn_write_never_unlatches(latch: Latch, old: LatchState, new: LatchState) -> None:
    """A write that stops at any byte leaves the old state, the new one, or everything latched."""
    latch.write(old)
    before = latch.path.read_bytes()
    latch.write(new)
    after = latch.path.read_bytes()

    seen = set()
    for cut in (*range(400), *range(400, 2049, 103), 2048):
        latch.path.write_bytes(torn(before, after, cut))
        found = again(latch)
        seen.add(found.error is not None)
        if found.error is None:
            assert found in (old, new)
        else:
            assert found.latched
            assert set(old.scopes) <= set(found.scopes)
    assert seen == {True, False}


def test_torn_unlatch_keeps_what_was_latched(latch: Latch) -> None:
    """After a torn reset the kill goes on as it was: its reason, its flatten and its scope are still known."""
    latch.write(KILLED)
    before = latch.path.read_bytes()
    latch.write(UNLATCHED)
    latch.path.write_bytes(torn(before, latch.path.read_bytes(), 40))

    assert again(latch).scopes == (KILL,)
    assert "damaged in 1 of its 2 slots" in str(again(latch).error)


def test_torn_kill_is_latched_without_flatten(latch: Latch) -> None:
    """After a torn kill of an unlatched file everything is latched, but nothing is flattened on a guess."""
    before = latch.path.read_bytes()
    latch.write(KILLED)
    latch.path.write_bytes(torn(before, latch.path.read_bytes(), 60))

    found = again(latch)
    assert doubtful(found)
    assert not any(scope.flatten for scope in found.scopes)


@given(position=st.integers(0, 4095), bit=st.integers(0, 7), kills=st.integers(0, 3))
def test_one_flipped_bit_never_unlatches(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int, kills: int
) -> None:
    """With any one bit changed the file reads as it was, or as latched: never as an older, unlatched state."""
    latch = Latch(tmp_path_factory.mktemp("latch") / "kill.latch")
    latch.create()
    for turn in range(kills):
        latch.write(SCOPED if turn % 2 else KILLED)
    expected = latch.read()
    latch.close()
    raw = bytearray(latch.path.read_bytes())
    raw[position] ^= 1 << bit
    latch.path.write_bytes(raw)

    found = again(latch)
    assert found == expected or doubtful(found)


def test_slots_that_do_not_follow_are_latched(latch: Latch) -> None:
    """An old slot copied back beside a newer one counts as latched."""
    first = latch.path.read_bytes()
    for _ in range(3):
        latch.write(UNLATCHED)
    now = latch.path.read_bytes()
    latch.path.write_bytes(first[:2048] + now[2048:])

    assert doubtful(again(latch))
    assert "do not follow" in str(again(latch).error)


# --- making it whole ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "empty", "long", "first", "second", "both", "stale"])
def test_reset_makes_the_file_whole(latch: Latch, damage: str) -> None:
    """However it was damaged, one write of the unlatched state makes it readable again."""
    first = latch.path.read_bytes()
    latch.write(KILLED)
    raw = latch.path.read_bytes()
    match damage:
        case "missing":
            latch.path.unlink()
        case "empty":
            os.truncate(latch.path, 0)
        case "long":
            os.truncate(latch.path, 5000)
        case "first":
            latch.path.write_bytes(b"?" * 100 + raw[100:])
        case "second":
            latch.path.write_bytes(raw[:2100] + b"?" * 100 + raw[2200:])
        case "both":
            latch.path.write_bytes(b"?" * 4096)
        case _:
            latch.write(KILLED)
            latch.write(KILLED)
            latch.path.write_bytes(first[:2048] + latch.path.read_bytes()[2048:])
    assert doubtful(again(latch))

    latch.write(UNLATCHED)

    assert again(latch) == UNLATCHED
    assert latch.path.stat().st_size == 4096
    assert latch.path.stat().st_mode & 0o777 == 0o600


def test_kill_goes_to_the_file_that_stands_there_now(latch: Latch, tmp_path: Path) -> None:
    """A file that was put in the place of the open one gets the next kill, not the one that was moved away."""
    latch.read()
    copy = tmp_path / "copy"
    shutil.copy(latch.path, copy)
    latch.path.rename(tmp_path / "moved")
    copy.rename(latch.path)

    latch.write(KILLED)

    assert again(latch) == KILLED


def test_unwritable_latch_raises_oserror(latch: Latch) -> None:
    """Where the folder is gone a write raises OSError, so that the kill can say `latched: false`."""
    shutil.rmtree(latch.path.parent)

    with pytest.raises(OSError, match="No such file"):
        latch.write(KILLED)
    assert latch.read().latched


def fill(folder: Path) -> None:
    """Leave no free byte on the disk of a folder."""
    with (folder / "filler").open("wb", buffering=0) as filler:
        while True:
            try:
                filler.write(b"x" * 4096)
            except OSError:
                return


def test_full_disk_does_not_keep_it_from_latching(tmp_path: Path) -> None:
    """On a disk without a free byte the latch is written and read back."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        latch = Latch(folder / "kill.latch")
        latch.create()
        fill(folder)
        assert os.statvfs(folder).f_bavail == 0

        latch.write(KILLED)

        assert again(latch) == KILLED
        latch.close()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_descriptor_does_not_leak_into_children(latch: Latch) -> None:
    """A child process does not inherit the open latch."""
    latch.read()

    assert latch._descriptor is not None
    assert not os.get_inheritable(latch._descriptor)
