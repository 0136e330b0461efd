"""`sigma9 config check`, `show` and `split`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sigma9_core.config import ClientSettings

PLUGIN = """
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen

class Config(Frozen):
    limit: int = 5

@hookimpl
def register_notifiers(register):
    register("loud", lambda config, context: None, config=Config)

@hookimpl
def register_brokers(register):
    register("pit", lambda config, context: None)

@hookimpl
def register_feeds(register):
    register("tape", lambda config, context: None)
"""

TEXT = """\
broker: {broker}
feed: tape
notifiers: [{{plugin: loud, config: {{limit: {limit}}}}}]
plugins: {{paths: [mine]}}
"""


def prepare(alone: Path, text: str) -> None:
    (alone / "mine").mkdir(exist_ok=True)
    (alone / "mine" / "loudness.py").write_text(PLUGIN, encoding="utf-8")
    (alone / "server_config.yaml").write_text(text, encoding="utf-8")


def test_check(cli: Any, alone: Path) -> None:
    """A clean configuration is said to be clean, both files of it."""
    prepare(alone, TEXT.format(broker="pit", limit=7))
    (alone / "client_config.yaml").write_text("gui: {theme: light}", encoding="utf-8")
    result = cli("config", "check")
    assert (result.code, result.err) == (0, "")
    assert result.out == "server_config.yaml: no fault\nclient_config.yaml: no fault\n"


def test_check_defaults(cli: Any) -> None:
    """Without any file the defaults are checked."""
    result = cli("config", "check")
    assert result.code == 0
    assert "the defaults are: no fault" in result.out


def test_check_finds_everything(cli: Any, alone: Path) -> None:
    """Faults of both files come in one list."""
    prepare(alone, "nod: x\nserver: {port: x}\n")
    (alone / "client_config.yaml").write_text("auth: {token: x}", encoding="utf-8")
    result = cli("config", "check", "--set", "mqtt.prot=1")
    assert result.code == 2
    assert [line.split(": ")[0] for line in result.err.splitlines()] == [
        "sigma9",
        "  server_config.yaml:1",
        "  server_config.yaml:2",
        "  the option --set mqtt.prot",
        "  client_config.yaml:1",
    ]


def test_check_asks_the_plugins(cli: Any, alone: Path) -> None:
    """Plugins that are not there, and settings that a plugin refuses, are faults with their lines."""
    prepare(alone, TEXT.format(broker="pitt", limit="many"))
    result = cli("config", "check")
    assert result.code == 2
    assert "  server_config.yaml:1: broker: there is no broker 'pitt'" in result.err
    assert "  server_config.yaml:3: notifiers.0.config.limit: must be a whole number, not 'many'" in result.err


def test_check_and_run_tell_the_file_and_the_plugins_at_once(cli: Any, alone: Path) -> None:
    """What the file gets wrong does not hide what its plugins do: one list, by line, for both commands."""
    prepare(alone, TEXT.format(broker="pitt", limit="many") + "nod: x\nscheduler: {calendar: XNYZ}\n")
    check, run = cli("config", "check"), cli("run")
    assert (check.code, run.code) == (2, 2)
    assert check.err == run.err
    assert [line.split(": ")[:2] for line in check.err.splitlines()[1:]] == [
        ["  server_config.yaml:1", "broker"],
        ["  server_config.yaml:3", "notifiers.0.config.limit"],
        ["  server_config.yaml:5", "nod"],
        ["  server_config.yaml:6", "scheduler.calendar"],
    ]
    assert "did you mean 'XNYS'?" in check.err
    assert not (alone / "data").exists()


def test_run_tells_every_fault_of_the_plugins_at_once(cli: Any, alone: Path) -> None:
    """Where the file itself is clean, `run` says of the plugins what `config check` says."""
    text = TEXT.format(broker="pitt", limit="many").replace("paths: [mine]", "paths: [mine], settings: {luod: {}}")
    prepare(alone, text)
    check, run = cli("config", "check"), cli("run")
    assert (check.code, run.code) == (2, 2)
    assert len(check.err.splitlines()) == 4
    assert check.err.splitlines() == [line for line in run.err.splitlines() if "INFO" not in line][-4:]


def test_check_names_other_files(cli: Any, alone: Path) -> None:
    """--config and --client-config name the files; one that is not there is a fault."""
    prepare(alone, TEXT.format(broker="pit", limit=7))
    (alone / "server_config.yaml").rename(alone / "c.yaml")
    assert "c.yaml: no fault" in cli("config", "check", "--config", "c.yaml").out
    assert cli("config", "check", "--client-config", "nowhere.yaml").code == 2


def test_show(cli: Any, alone: Path) -> None:
    """The effective settings are YAML that can be read back, with the secrets masked."""
    (alone / "server_config.yaml").write_text(
        "auth: {token: hunter2}\nserver: {port: 1}\nnotifiers: [{plugin: p, config: {api_key: hunter2}}]",
        encoding="utf-8",
    )
    result = cli("config", "show", "--set", "server.port=9000")
    assert result.code == 0
    assert "hunter2" not in result.out
    body = yaml.safe_load(result.out)
    assert body["server"]["port"] == 9000
    assert body["auth"] == {"token": "********"}
    assert body["notifiers"][0]["config"] == {"api_key": "********"}
    assert body["data_dir"] == str(alone / "data")


def test_show_client(cli: Any, alone: Path) -> None:
    """The client's settings are shown on request."""
    (alone / "client_config.yaml").write_text("server: {token: hunter2}", encoding="utf-8")
    result = cli("config", "show", "--client")
    assert "hunter2" not in result.out
    assert list(yaml.safe_load(result.out)) == list(ClientSettings.model_fields)


def test_split(cli: Any, alone: Path) -> None:
    """An old file becomes two; what has no place is named; nothing is overwritten without --force."""
    (alone / "settings.yaml").write_text(
        "server: {port: 9000, workers: 4}\ngui: {theme: light}\n", encoding="utf-8"
    )
    result = cli("config", "split", "settings.yaml")
    assert result.code == 0
    assert result.out.splitlines() == [
        f"wrote {alone / 'server_config.yaml'}",
        f"wrote {alone / 'client_config.yaml'}",
        "settings.yaml:1: server.workers: not placed: one node is one process",
    ]
    assert "1 of 3 keys" in result.err
    assert cli("config", "show").code == 0
    result = cli("config", "split", "settings.yaml")
    assert result.code == 1
    assert "--force" in result.err
    assert cli("config", "split", "settings.yaml", "--force").code == 0
    (alone / "out").mkdir()
    assert cli("config", "split", "settings.yaml", "--out", "out").code == 0
    assert (alone / "out" / "client_config.yaml").exists()
    assert cli("config", "split", "nowhere.yaml", "--force").code == 2
    assert cli("config", "split", "settings.yaml", "--out", "no/folder").code == 1
