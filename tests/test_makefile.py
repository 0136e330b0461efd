"""`make run`: what it says while it installs, and what a Ctrl-C on a terminal ends with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sigma9_core.testing.terminal import CTRL_C, CTRL_Z, on_terminal

MAKE = shutil.which("make")
SOURCE = Path(__file__).parents[1] / "Makefile"
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
"""The environment without what `make test` leaves in it: the make of these tests is no part of that one."""
SERVER = """#!/bin/sh
trap 'echo in order; exit {code}' INT
echo "server $1 runs"
while :; do sleep 0.05; done
"""

pytestmark = pytest.mark.skipif(MAKE is None, reason="there is no make")


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """Give a folder with the real Makefile, and with programs that only pretend."""
    shutil.copy(SOURCE, tmp_path)
    (tmp_path / "pyproject.toml").touch()
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in (("pip", "#!/bin/sh\n"), ("python", "#!/bin/sh\n"), ("sigma9", SERVER.format(code=0))):
        (programs / name).write_text(text)
        (programs / name).chmod(0o700)
    return tmp_path


def test_ctrl_c_ends_with_the_server_s_code(folder: Path) -> None:
    """The server hears Ctrl-C once and ends in order with 0, and so does make; no error is told."""
    code, out = on_terminal(["make", "run"], folder, keys=[("runs", CTRL_C)])
    assert "server run runs" in out
    assert out.count("in order") == 1
    assert (code, "Error" in out) == (0, False)


def test_ctrl_z_does_not_lose_the_server(folder: Path) -> None:
    """Ctrl-Z is ignored: nobody could bring the server back from it. Ctrl-C works after it."""
    code, out = on_terminal(["make", "run"], folder, keys=[("runs", CTRL_Z), ("runs", CTRL_C)])
    assert (code, out.count("in order")) == (0, 1)


def test_a_server_that_fails_is_told(folder: Path) -> None:
    """Another exit code of the server is make's error."""
    (folder / ".venv" / "bin" / "sigma9").write_text(SERVER.format(code=3))
    code, out = on_terminal(["make", "run"], folder, keys=[("runs", CTRL_C)])
    assert code == 2
    assert "Error 3" in out


def test_it_says_what_takes_so_long(folder: Path) -> None:
    """One line tells what is done before the server starts; the second time there is nothing to do or to say."""
    (folder / ".venv" / "bin" / "sigma9").write_text("#!/bin/sh\necho started $1\n")

    def run() -> list[str]:
        done = subprocess.run(
            ["make", "run"], cwd=folder, env=OUTSIDE, capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.splitlines()

    assert run() == ["making the environment (.venv) and installing: under a minute, once", "started run"]
    assert run() == ["started run"]
