"""The guard: a child that never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sigma9_core.clock import monotonic
from sigma9_integrations.broker import guard

SLEEP = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
PARENT = """
import os, subprocess, sys, time
from sigma9_integrations.broker import guard
child = subprocess.Popen(
    guard.command([sys.executable, "-c", sys.argv[1], sys.argv[2]], os.getpid(), sys.argv[3]),
    stdin=subprocess.PIPE, start_new_session=True,
)
time.sleep(60)
"""

modes = pytest.mark.parametrize(
    "mode",
    [
        pytest.param(
            "signal",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent"),
        ),
        "pipe",
    ],
)


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and waits to be collected does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return state.strip() != "" and not state.strip().startswith("Z")


def wait_for_pid(path: Path) -> int:
    deadline = monotonic() + 10
    while not (path.exists() and path.read_text()):
        assert monotonic() < deadline, "the child did not start"
        time.sleep(0.01)
    return int(path.read_text())


@modes
def test_the_child_dies_with_a_killed_parent(tmp_path: Path, mode: guard.Mode) -> None:
    """After kill -9 of the parent the child is gone within a second, whatever session it runs in."""
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, SLEEP, str(pid_file), mode])
    child = wait_for_pid(pid_file)
    assert is_running(child)
    parent.kill()
    parent.wait()
    deadline = monotonic() + 2
    while is_running(child):
        assert monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)


@modes
def test_the_child_ends_when_asked(tmp_path: Path, mode: guard.Mode) -> None:
    """SIGTERM to the guard ends the child, and its exit is the guard's."""
    pid_file = tmp_path / "pid"
    command = guard.command([sys.executable, "-c", SLEEP, str(pid_file)], os.getpid(), mode)
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    child = wait_for_pid(pid_file)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode != 0
    assert not is_running(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent")
def test_a_parent_that_ended_before_is_noticed(tmp_path: Path) -> None:
    """Where the parent has ended before the kernel was asked, the program is not started at all."""
    pid_file = tmp_path / "pid"
    command = guard.command([sys.executable, "-c", SLEEP, str(pid_file)], 1, "signal")
    result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert "the parent has ended" in result.stderr
    assert not pid_file.exists()
