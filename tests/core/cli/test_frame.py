"""The frame: commands, exit codes, plugins' commands, and a quick start."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sigma9_core import __version__
from sigma9_core.cli import frame
from sigma9_core.cli.frame import COMMANDS, OFFERED, main
from sigma9_core.datadir import DataDir
from sigma9_core.tokens import TokenBook

PLUGIN = """
from sigma9_core.hookspecs import hookimpl

@hookimpl
def register_cli(subparsers):
    parser = subparsers.add_parser("greet", help="say hello")
    parser.add_argument("--code", type=int, default=0)
    parser.set_defaults(run=lambda args: print("hello") or args.code)
    subparsers.add_parser("lazy", help="has no function")
"""


@pytest.fixture(name="plugin")
def _plugin(alone: Path) -> Path:
    folder = alone / "mine"
    folder.mkdir()
    (folder / "greeter.py").write_text(PLUGIN, encoding="utf-8")
    (alone / "server_config.yaml").write_text("plugins: {paths: [mine]}", encoding="utf-8")
    return folder


def program(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sigma9_core", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        **more,
    )


def test_every_command_has_its_module() -> None:
    """Each row of the table names a module that registers the command and runs it."""
    for command, module in COMMANDS.items():
        assert importlib.util.find_spec(f"sigma9_core.cli.{module}") is not None, command
        loaded = frame._module(module)
        assert callable(loaded.register)
        assert callable(loaded.run)


def test_help_names_every_command(cli: Any) -> None:
    """`sigma9 --help` lists every command, and every command and action has a help of its own."""
    result = cli("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert f"    {command}" in result.out
        help_of = cli(command, "--help")
        assert help_of.code == 0
        assert ("ACTION --help" in help_of.out) is ("ACTION" in help_of.out.splitlines()[0])


def test_version(cli: Any) -> None:
    """--version says the version and the contract's."""
    assert cli("--version").out == f"sigma9 {__version__} (contract 1)\n"


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["--nonsense"], ["run", "--nonsense"], ["order"], ["token", "create", "x"]]
)
def test_wrong_usage(cli: Any, arguments: list[str]) -> None:
    """Wrong usage is exit code 2, with the usage on stderr and nothing on stdout."""
    result = cli(*arguments)
    assert result.code == 2
    assert "usage: sigma9" in result.err
    assert result.out == ""


def test_options_stand_before_or_after_the_action(cli: Any, alone: Path) -> None:
    """Common options are taken on either side of an action, for every command that has actions."""
    data = DataDir(alone / "far")
    TokenBook(data).start()
    for arguments in (
        ["token", "list", "--data-dir", "far", "--format", "csv"],
        ["token", "--data-dir", "far", "--format", "csv", "list"],
        ["token", "--format=csv", "list", "--data-dir=far"],
    ):
        assert cli(*arguments).out == "name,right,created_at\n"
    (alone / "bars.csv").write_text("symbol,ts,open,high,low,close,volume\nA,2016-01-04,1,1,1,1,1\n")
    assert cli("data", "--kind", "daily", "check", "bars.csv").code == 0
    assert cli("config", "--client", "show").out.startswith("server:")
    for action in (["journal", "list"], ["order", "cancel", "o1"], ["risk", "list"], ["schedule", "list"]):
        before = [action[0], "--url", "127.0.0.1:9", *action[1:]]
        assert cli(*before).code == 3
        assert cli(*action, "--url", "127.0.0.1:9").code == 3


def test_the_last_of_two_counts(cli: Any, web: Any) -> None:
    """An option that is given on both sides of the action is the one after it."""
    web.says("/api/orders", {"count": 0, "orders": []})
    assert cli("order", "--format", "json", "list", "--format", "table").out == "no open orders\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["order", "list", "--protective"], "an option of `sigma9 order cancel-all`, not of `sigma9 order list`"),
        (["journal", "--limit", "3", "follow"], "--limit is an option of `sigma9 journal list`, not of"),
        (["status", "--formt", "json"], "`sigma9 status` has no option --formt: did you mean --format?"),
        (["status", "--form", "json"], "did you mean --format?"),
        (["kill", "now"], "'now' is one word too many; see `sigma9 kill --help`"),
        (["--data-dir", "x", "kill"], "options go after the command, such as `sigma9 kill --data-dir ...`"),
        (["--nonsense"], "there is no option --nonsense"),
        (["kil"], "there is no command 'kil': did you mean `sigma9 kill`?"),
        (["order"], "say what to do, one of: place, preview, modify, cancel, cancel-all, list"),
        (["journal", "lst"], "say what to do, one of: list, follow"),
        (["risk", "--", "list"], "say what to do, one of: list, set, clear, explain"),
    ],
)
def test_what_is_not_understood_is_hinted(cli: Any, web: Any, arguments: list[str], hint: str) -> None:
    """An option that is not known here is told where it goes, or which one is meant; nothing is asked."""
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert hint in result.err
    assert web.asked == []


def test_a_broken_command_stands_before_no_other(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command whose module can't be imported does not keep `kill` from running."""
    monkeypatch.setattr(frame, "COMMANDS", {**COMMANDS, "status": "does_not_exist"})
    assert cli("kill", "--help").code == 0


def test_wrong_configuration(cli: Any, alone: Path) -> None:
    """A wrong configuration is exit code 2, with every fault on a line of its own."""
    (alone / "server_config.yaml").write_text("a: 1\nb: 2\n", encoding="utf-8")
    result = cli("config", "show")
    assert result.code == 2
    first, *faults = result.err.splitlines()
    assert first == "sigma9: the configuration has 2 faults:"
    assert [fault.partition(": there is no such setting")[0] for fault in faults] == [
        "  server_config.yaml:1: a",
        "  server_config.yaml:2: b",
    ]


def test_commands_of_plugins(cli: Any, plugin: Path) -> None:
    """A plugin's command is found, is listed in the help, and its result is the exit code."""
    assert cli("greet").out == "hello\n"
    assert cli("greet", "--code", "3").code == 3
    assert "greet" in cli("--help").out
    result = cli("lazy")
    assert result.code == 1
    assert "set_defaults(run=...)" in result.err


def test_plugins_are_not_asked_without_need(cli: Any, plugin: Path) -> None:
    """A built-in command does not load plugins: a broken one can't stand before it."""
    (plugin / "greeter.py").write_text("raise SystemExit('loaded')", encoding="utf-8")
    result = cli("token")
    assert "no token" in result.err
    assert "loaded" not in result.err


def test_a_broken_plugin_is_named(cli: Any, plugin: Path) -> None:
    """A plugin that can't be loaded is named on stderr, and the help comes all the same."""
    (plugin / "greeter.py").write_text("raise ValueError('oh')", encoding="utf-8")
    result = cli("--help")
    assert result.code == 0
    assert "sigma9: the plugin greeter" in result.err
    assert "Traceback" not in result.err
    assert cli("greet").code == 2


def test_a_plugin_can_not_take_a_command(cli: Any, plugin: Path) -> None:
    """A plugin that registers the name of a built-in command is named, and the built-in one stays."""
    (plugin / "greeter.py").write_text(PLUGIN.replace('"greet"', '"kill"'), encoding="utf-8")
    result = cli("--help")
    assert result.code == 0
    assert "greeter" in result.err


def test_help_with_a_broken_configuration(cli: Any, alone: Path) -> None:
    """The help comes also where the configuration is broken."""
    (alone / "server_config.yaml").write_text("plugins: {paths: [nowhere]}\nx: [", encoding="utf-8")
    result = cli("--help")
    assert result.code == 0
    assert "config check" in result.err


def test_commands_that_are_offered(cli: Any, plugin: Path) -> None:
    """What Sigma9's own plugins add is in the help by their own line, with and without plugins of others."""
    with_others = cli("--help").out
    (plugin.parent / "server_config.yaml").unlink()
    alone = cli("--help").out
    for name, (_, line) in OFFERED.items():
        assert cli(name, "--help").code == 0
        for shown in (with_others, alone):
            assert " ".join(f"{name} {line}".split()) in " ".join(shown.split())
    assert "did you mean `sigma9 mqtt`?" in cli("mqt").err
    assert cli("mqtt").code == 2
    assert "say what to do, one of: setup, watch, send" in cli("mqtt").err


def test_an_offered_command_loads_its_own_plugin_alone(cli: Any, plugin: Path) -> None:
    """A broken plugin of others and a broken configuration stand before none of them; no client is imported."""
    (plugin / "greeter.py").write_text("raise SystemExit('loaded')", encoding="utf-8")
    (plugin.parent / "server_config.yaml").write_text("plugins: {paths: [mine]}\nx: [", encoding="utf-8")
    assert (cli("mqtt", "--help").code, cli("mqtt", "--help").err) == (0, "")
    code = (
        "import sys; from sigma9_core.cli.frame import main; main(['mqtt', '--help'])\n"
        "heavy = ('polars', 'rich', 'websockets', 'sqlalchemy', 'aiomqtt', 'amqtt', 'cryptography', 'starlette')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_interrupt_is_quiet(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a command with 130 and without a word."""

    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(frame._module("token"), "run", interrupt)
    result = cli("token")
    assert (result.code, result.out, result.err) == (130, "", "")


def test_module_and_exit_codes() -> None:
    """`python -m sigma9_core` is the command line, and its exit code is the command's."""
    done = program("--version")
    assert (done.returncode, done.stdout) == (0, f"sigma9 {__version__} (contract 1)\n")
    assert program("nonsense").returncode == 2
    done = program("status", "--url", "127.0.0.1:9")
    assert done.returncode == 3
    assert done.stderr.startswith("sigma9: no server at http://127.0.0.1:9 (")
    assert done.stderr.count("\n") == 1


def test_closed_pipes_are_quiet() -> None:
    """Whoever reads us may stop: no traceback, no word."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "sigma9_core", "config", "show"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    _, errors = process.communicate(timeout=30)
    assert errors == ""
    assert process.returncode == 141


def test_help_is_quick() -> None:
    """`sigma9 --help` loads none of the heavy modules."""
    code = (
        "import sys; from sigma9_core.cli.frame import main; main(['--help'])\n"
        "heavy = ('pydantic', 'polars', 'rich', 'asyncio', 'websockets', 'yaml', 'sqlalchemy', 'pluggy')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    best = 9.0
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - began)
    assert done.stderr == "[]\n"
    assert best < 1.0  # 0.1 s on an idle machine


def test_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    """`main` takes its arguments from a caller as well, and gives the code instead of leaving."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sigma9 ")
