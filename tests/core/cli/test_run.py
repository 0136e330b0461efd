"""`sigma9 run`: what happens before the engine."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from sigma9_core import serve
from sigma9_core.config import Settings
from sigma9_core.configfile import Loaded
from sigma9_core.datadir import DataDir
from sigma9_core.errors import StateError
from sigma9_core.log import Logging


def test_settings_reach_the_server(cli: Any, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of file, variables and options reach the server, with the time at which the process began."""
    (alone / "conf.yaml").write_text("node: here\nserver: {debug: true}\n", encoding="utf-8")
    monkeypatch.setenv("SIGMA9_MQTT__PORT", "1999")
    got: list[tuple[Settings, float]] = []

    def run_server(loaded: Loaded, started: float, logs: Logging) -> int:
        got.append((loaded.settings, started))
        assert loaded.locate("server.port") == "the option --set server.port"
        assert isinstance(logs, Logging)
        assert logging.getLogger("sigma9").level == logging.DEBUG
        return 7

    monkeypatch.setattr(serve, "run_server", run_server)
    level = logging.getLogger("sigma9").level
    assert cli("run", "--config", "conf.yaml", "--set", "server.port=9000").code == 7
    settings, started = got[0]
    assert (settings.node, settings.server.port, settings.mqtt.port) == ("here", 9000, 1999)
    assert started < time.monotonic()
    assert logging.getLogger("sigma9").level == level


@pytest.mark.parametrize("folder", ["far", "a folder: #1", "${HOME}"])
def test_the_data_folder_by_its_own_option(
    cli: Any, alone: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """`run --data-dir` names the data folder as it stands there, from the current folder on."""
    got: list[Path] = []

    def run_server(loaded: Loaded, *_: object) -> int:
        got.append(loaded.settings.data_dir)
        return 0

    monkeypatch.setattr(serve, "run_server", run_server)
    assert cli("run", "--data-dir", folder, "--set", "node=here").code == 0
    assert got == [alone / folder]


def test_faults_end_the_start(cli: Any, alone: Path) -> None:
    """A wrong configuration ends the start with exit code 2 and every fault; nothing is made on disk."""
    (alone / "server_config.yaml").write_text("server: {port: x}\nnod: y\n", encoding="utf-8")
    result = cli("run")
    assert result.code == 2
    assert "2 faults" in result.err
    assert [path.name for path in alone.iterdir()] == ["server_config.yaml"]


def test_refused_start(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server refuses is exit code 1 and one sentence."""

    def run_server(*_: object) -> int:
        raise StateError("the disk is full")

    monkeypatch.setattr(serve, "run_server", run_server)
    result = cli("run")
    assert (result.code, result.err) == (1, "sigma9: the disk is full\n")


def test_a_second_server(cli: Any, alone: Path) -> None:
    """A second server on one data folder is refused, naming the first one."""
    with DataDir(alone / "data") as data:
        data.lock("first")
        result = cli("run")
    assert result.code == 1
    assert "is in use by the server in process" in result.err
    assert "(node first)" in result.err
