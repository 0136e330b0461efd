"""The frame of the command line: which command lives where, and what its end means to the shell."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from sigma9_core import CONTRACT, __version__
from sigma9_core.cli.placing import (
    Actions,
    CommandParser,
    no_such_command,
    not_understood,
    options_of,
    placed,
)

COMMANDS: Final[Mapping[str, str]] = {
    "run": "run",
    "scan": "scan",
    "replay": "replay",
    "status": "status",
    "watch": "watch",
    "kill": "kill",
    "reset-kill": "reset_kill",
    "start": "engine",
    "stop": "engine",
    "pause": "engine",
    "resume": "engine",
    "watchlist": "watchlist",
    "order": "order",
    "close": "close",
    "adopt": "adopt",
    "settle": "settle",
    "risk": "risk",
    "plugin": "plugin",
    "schedule": "schedule",
    "journal": "journal",
    "config": "config",
    "token": "token",
    "data": "data",
    "fake-tws": "fake_tws",
}
"""Every built-in command and its module in this package, in the order of `--help`.

Only the module of the command that is asked for is imported: a fault in another one can't stand before a kill.
"""

OFFERED: Final[Mapping[str, tuple[str, str]]] = {
    "mqtt": ("mqtt", "set a broker up, follow its topics, send a command over it"),
    "discovery": ("mqtt", "take a retired node off the broker and out of Home Assistant"),
}
"""Commands that Sigma9's own plugins add by `register_cli`: the plugin, and the line in `--help`.

The line stands here so that `--help` loads no plugin, and the command itself no plugin but its own.
"""

OURS: Final = ("sigma9_plugins.", "sigma9_integrations.")
"""The packages of Sigma9's own plugins."""

LOGS_ITSELF: Final = frozenset(("run", "replay"))
"""Commands that run an engine and set up logging for it; the others print warnings as plain sentences."""

STARTED: Final = time.monotonic()
"""Monotonic seconds at which the process began to think."""

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141


class CommandModule(Protocol):
    """What a module of this package offers."""

    def register(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Add the command's parser."""

    def run(self, args: argparse.Namespace) -> int:
        """Carry the command out and give its exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give the exit code of contract 9: 0 done, 1 failed, 2 usage, 3 unreachable."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _carry_out(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read us, such as `head`, has seen enough
        _point_nowhere(sys.stdout)
        return PIPE_CLOSED
    return code


def _carry_out(arguments: Sequence[str]) -> int:
    if sys.platform == "win32":
        print("sigma9: Sigma9 runs on Linux and macOS; on Windows use WSL", file=sys.stderr)
        return USAGE
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser, subparsers = _parser()
    built_in = name in COMMANDS and arguments[0] == name
    names = [name] if built_in and name is not None else list(COMMANDS)
    modules = {COMMANDS[name]: _module(COMMANDS[name]) for name in names}
    for module in modules.values():
        module.register(subparsers)
    if not built_in:
        _register_more(arguments, name, subparsers)
    try:
        args = _parse(parser, subparsers, arguments)
    except SystemExit as end:  # argparse has printed what there is to say
        return end.code if isinstance(end.code, int) else USAGE
    if args is None:
        return USAGE
    if args.sigma9_command is None:
        parser.print_help(sys.stderr)
        return USAGE
    chosen = modules.get(COMMANDS.get(args.sigma9_command, ""))
    run: Callable[[argparse.Namespace], int] | None = getattr(args, "run", None) if chosen is None else chosen.run
    if run is None:
        print(
            f"sigma9: the plugin's command '{args.sigma9_command}' has no set_defaults(run=...)", file=sys.stderr
        )
        return FAILED
    return _guarded(run, args)


def _parse(
    parser: argparse.ArgumentParser,
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    arguments: Sequence[str],
) -> argparse.Namespace | None:
    """Read the arguments; None where they are not understood, which has been said then."""
    words = list(arguments)
    command = subparsers.choices.get(words[0]) if words else None
    if command is None:
        if not words or words[0] in options_of(parser):
            return parser.parse_args(words)
        _wrong(parser, no_such_command(subparsers.choices, words))
        return None
    rest = placed(command, words[1:])
    args, unknown = parser.parse_known_args([words[0], *rest])
    if unknown:
        _wrong(command, not_understood(command, rest, unknown))
        return None
    return args


def _wrong(parser: argparse.ArgumentParser, sentence: str) -> None:
    parser.print_usage(sys.stderr)
    print(f"sigma9: {sentence}", file=sys.stderr)


def _guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    from sigma9_core.errors import ConfigError, Sigma9Error

    try:
        if args.sigma9_command in LOGS_ITSELF:
            return int(run(args) or DONE)
        from sigma9_core.cli.brief import brief_log

        with brief_log():
            return int(run(args) or DONE)
    except ConfigError as error:
        count = len(error.faults)
        print(f"sigma9: the configuration has {count} fault{'' if count == 1 else 's'}:", file=sys.stderr)
        for fault in error.faults:
            print(f"  {fault}", file=sys.stderr)
        return USAGE
    except Sigma9Error as error:
        print(f"sigma9: {error}", file=sys.stderr)
        return int(getattr(error, "exit_code", FAILED))


def _parser() -> tuple[argparse.ArgumentParser, Actions]:
    parser: argparse.ArgumentParser = CommandParser(
        prog="sigma9",
        description="A self-hosted trading server, and the commands that talk to it.",
        epilog="`sigma9 COMMAND --help` lists a command's options, which go after it. "
        "Exit codes: 0 done, 1 failed or refused, 2 wrong usage or configuration, 3 no server reached.",
    )
    parser.add_argument("--version", action="version", version=f"sigma9 {__version__} (contract {CONTRACT})")
    subparsers = parser.add_subparsers(dest="sigma9_command", metavar="COMMAND", title="commands")
    return parser, subparsers


def _module(name: str) -> CommandModule:
    module: CommandModule = importlib.import_module(f"sigma9_core.cli.{name}")
    return module


# --- commands of plugins --------------------------------------------------------------------------------------


def _may_have_more_commands() -> bool:
    """Tell whether it is worth loading all plugins for `--help`: not where there are none but Sigma9's own."""
    if os.environ.get("SIGMA9_PLUGINS__PATHS"):
        return True
    file = Path(os.environ.get("SIGMA9_CONFIG") or "server_config.yaml")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = ""
    if re.search(r"^[^#\n]*\bpaths[\"']?\s*:(?![ \t]*(\[\s*\]|null\b|~))", text, re.MULTILINE):
        return True
    from importlib.metadata import entry_points

    return any(not entry.value.startswith(OURS) for entry in entry_points(group="sigma9.plugins"))


def _register_more(
    arguments: Sequence[str], name: str | None, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]
) -> None:
    """Add the commands that are not built in, as far as they are needed for these arguments."""
    if name in OFFERED and arguments[0] == name:
        _register_plugins(subparsers, OFFERED[name][0])
        return
    if name is not None or _may_have_more_commands():
        _register_plugins(subparsers)
        return
    for offered, (_, line) in OFFERED.items():
        subparsers.add_parser(offered, help=line)


def _register_plugins(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], only: str | None = None
) -> None:
    """Let plugins add their commands, or one of Sigma9's own alone, which needs no configuration.

    A plugin that can't is named on stderr, and the others go on.
    """
    from sigma9_core.cli.brief import brief_log
    from sigma9_core.config import PluginSettings
    from sigma9_core.configfile import load_settings
    from sigma9_core.errors import ConfigError, Sigma9Error
    from sigma9_core.plugins import PluginHost

    if only is not None:
        from importlib.metadata import entry_points

        from sigma9_core.plugins import GROUP

        entries = [e for e in entry_points(group=GROUP) if e.name == only and e.value.startswith(OURS)]
        host = PluginHost(PluginSettings(), entries)
    else:
        try:
            settings = load_settings().plugins
        except ConfigError:
            settings = PluginSettings()
            print(
                "sigma9: the configuration has faults (see `sigma9 config check`); it is not read", file=sys.stderr
            )
        host = PluginHost(settings)
    with brief_log():
        try:
            host.load()
            host.call_hook("register_cli", subparsers=subparsers)
        except Sigma9Error as error:
            print(f"sigma9: the commands of plugins are missing: {error}", file=sys.stderr)


def _point_nowhere(stream: object) -> None:
    """Send what is still in a stream's buffer nowhere, so that the interpreter's end stays quiet."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[attr-defined]
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass  # a stream without a file can't break at the end
