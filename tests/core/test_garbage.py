"""When garbage is collected."""

from __future__ import annotations

import gc
import threading

from sigma9_core.garbage import uncollected


def test_no_garbage_is_collected_until_the_last_block_has_ended() -> None:
    """Blocks on several threads are counted: the first one that ends does not begin it again for the others."""
    entered, leaves = threading.Event(), threading.Event()

    def other() -> None:
        with uncollected():
            entered.set()
            leaves.wait(5)

    assert gc.isenabled()
    thread = threading.Thread(target=other)
    with uncollected():
        thread.start()
        entered.wait(5)
        assert not gc.isenabled()
    assert not gc.isenabled()
    leaves.set()
    thread.join()
    assert gc.isenabled()


def test_who_collects_none_goes_on_so() -> None:
    """Where it was off before it stays off, also after a block that failed."""
    gc.disable()
    try:
        with uncollected(), uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    try:
        with uncollected():
            raise ValueError
    except ValueError:
        pass
    assert gc.isenabled()
