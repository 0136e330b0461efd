"""What the torture asks of a dead server's files is what a crash may leave, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from sigma9_core.money.latch import Latch, LatchedScope, LatchState
from sigma9_core.testing.torture.checks import check_left
from sigma9_core.testing.torture.traffic import Latched, Promises


@pytest.mark.parametrize("flatten", [False, True])
def test_a_torn_write_over_a_kill_that_is_on_leaves_that_kill(tmp_path: Path, flatten: bool) -> None:
    """Whether it halts or flattens; where nothing was torn, a latch that can't be read is a fault."""
    latch = Latch(tmp_path / "kill.latch")
    latch.create()
    latch.write(LatchState((LatchedScope(None, flatten, "test", "api", None),)))
    latch.close()
    raw = latch.path.read_bytes()
    size = len(raw)
    newest = raw.index(b'"test"') * 2 // size
    torn = bytearray(raw)
    torn[(1 - newest) * size // 2 + 60] ^= 1
    latch.path.write_bytes(torn)
    left: Latched = frozenset([(None, flatten)])

    for tears, faults in ((frozenset(("latch",)), 0), (frozenset[str](), 1)):
        found, promises = check_left(tmp_path, Promises(unborn=False, latch={left}), tears)
        assert len(found) == faults, found
        assert promises.latch == {left}
