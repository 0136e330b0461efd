"""The shipped mosquitto.conf: a real Mosquitto takes it, and every line has its reason."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from sigma9_core.clock import monotonic
from sigma9_integrations.broker.accounts import load_passwords, main
from sigma9_integrations.broker.embedded import HOST, can_log_in, free_port
from sigma9_integrations.broker.mosquitto import SETTINGS

FILE = Path(__file__).parents[3] / "mosquitto.conf"


def settings(text: str) -> dict[str, str]:
    lines = [line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value for name, value in lines if name != "log_type"}


def test_every_line_has_its_reason() -> None:
    """Each setting, or group of settings, stands below a comment."""
    before = ""
    for line in FILE.read_text().splitlines():
        if line and not line.startswith("#"):
            assert before, f"no reason above: {line}"
        before = line


def test_it_agrees_with_the_embedded_one() -> None:
    """Limits and locks are the same in the shipped file and in the embedded broker."""
    shipped, embedded = settings(FILE.read_text()), settings(SETTINGS)
    same = set(embedded) - {"persistence", "sys_interval", "log_dest", "log_timestamp"}
    assert {name: shipped[name] for name in same} == {name: embedded[name] for name in same}


@pytest.mark.mosquitto
async def test_mosquitto_runs_with_it(mosquitto_program: str, tmp_path: Path) -> None:
    """With the account files of the documented command, the roles log in and strangers don't."""
    assert main([str(tmp_path)]) == 0
    port = free_port()
    text = (
        FILE.read_text()
        .replace("listener 1883", f"listener {port}")
        .replace("/etc/mosquitto/sigma9", str(tmp_path))
    )
    text = text.replace("/var/lib/mosquitto/", f"{tmp_path}/").replace("log_dest syslog", "log_dest stderr")
    if os.geteuid() == 0:
        text += "user root\n"
    config = tmp_path / "mosquitto.conf"
    config.write_text(text)
    process = await asyncio.create_subprocess_exec(
        mosquitto_program, "-c", str(config), stderr=asyncio.subprocess.PIPE
    )
    try:
        passwords = load_passwords(tmp_path)
        deadline = monotonic() + 5
        while not await can_log_in(HOST, port, "viewer", passwords["viewer"]):
            assert monotonic() < deadline
            assert process.returncode is None
            await asyncio.sleep(0.01)
        assert not await can_log_in(HOST, port, "viewer", "wrong")
    finally:
        if process.returncode is None:
            process.terminate()
        _, said = await process.communicate()
    assert b"Error" not in said
