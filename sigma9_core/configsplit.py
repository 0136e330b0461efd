"""Split an old single settings file into the two files of contract 8, and name every key that has no place."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from sigma9_core.config import ClientSettings, Settings
from sigma9_core.configfile import CLIENT_FILE, SERVER_FILE, load_client_settings, load_settings
from sigma9_core.configschema import find
from sigma9_core.datadir import DataDir
from sigma9_core.errors import ConfigError, Fault, StateError
from sigma9_core.yamltext import Location, Tree, plain_value, read_yaml

MOVED: Final[Mapping[str, str]] = {
    "server.use_ssl": "client:server.tls",
    "massive.enabled": "server:polygon.enabled",
    "massive.api_key": "server:polygon.api_key",
    "massive.rate_limit": "server:polygon.rate_limit",
    "risk.max_position_pct": "server:plugins.settings.max_position.max_percent_of_equity",
    "risk.max_concurrent": "server:plugins.settings.max_open.max_positions",
    "risk.max_daily_trades": "server:plugins.settings.max_open.max_entries_per_day",
    "risk.daily_loss_limit_pct": "server:plugins.settings.loss_limit.day_percent",
    "risk.weekly_loss_limit_pct": "server:plugins.settings.loss_limit.week_percent",
}
"""Keys that have another name now: the old path, the file and the new path."""

LOSSES: Final = frozenset(("risk.daily_loss_limit_pct", "risk.weekly_loss_limit_pct"))
"""Limits that old files write with either sign; a loss is a positive percentage now."""

REASONS: Final[Mapping[str, str]] = {
    "server.reload": "a server does not reload itself: restart it",
    "server.workers": "one node is one process",
    "ibkr.timeout": "the broker's plugin has its own time limits",
    "ibkr.auto_reconnect": "it always reconnects",
    "database.wal_mode": "SQLite always runs in WAL mode",
    "market_data": "a feed plugin brings its own data: see `feed`",
    "massive": "the polygon section has enabled, api_key and rate_limit alone",
    "strategy": "see `scanners`: which plugin runs, under which name, with which settings",
    "risk.per_trade_stop_pct": "the stop belongs to the strategy's exit plan: see `scanners`",
    "risk.kelly_fraction": "choose sizer: {plugin: kelly} and set its fraction there",
    "logging": "log lines go to stderr, MQTT and the WebSocket; server.debug shows more of them",
    "llm": "there is no such part",
    "connection.reconnect_enabled": "a client always reconnects",
    "connection.max_reconnect_attempts": "a client goes on reconnecting",
    "connection.heartbeat_interval": "the WebSocket has its own",
    "chart": "there are no settings for charts",
}
"""Why a key, or everything below it, has no place; the longest path that fits counts."""

_PLACEHOLDER: Final = "what-a-variable-holds"


@dataclass(slots=True)
class Split:
    """What a split did."""

    written: list[Path] = field(default_factory=list)
    unplaced: list[tuple[str, str, str]] = field(default_factory=list)
    """File and line, dotted path, and why it could not be placed, in the order of the file."""
    keys: int = 0
    """How many keys the old file holds."""


def split_file(file: Path, folder: Path, *, force: bool = False) -> Split:
    """Write server_config.yaml and client_config.yaml into a folder, with mode 0600.

    Raise ConfigError where the old file can't be read, StateError where one of the two is there already (unless
    `force`) or can't be written; then neither is changed.
    """
    targets = {"server": folder / SERVER_FILE, "client": folder / CLIENT_FILE}
    there = [str(path) for path in targets.values() if path.exists()]
    if there and not force:
        raise StateError(f"{' and '.join(there)} would be overwritten: move away what is there, or use --force")
    if any(path.exists() and path.samefile(file) for path in targets.values() if file.exists()):
        raise StateError(f"{file} is one of the two files to be written: move it away first, or use --out FOLDER")
    tree, lines = _read(file)
    split = Split()
    bodies: dict[str, dict[str, Any]] = {"server": {}, "client": {}}
    placed: dict[tuple[str, Location], Location] = {}
    for old, value in _leaves(tree, ()):
        split.keys += 1
        places = _places(old)
        if not places:
            split.unplaced.append((_where(file, lines, old), _dotted(old), _reason(old)))
        for name, new in places:
            _put(bodies[name], new, _converted(old, name, value))
            placed[name, new] = old
    private = DataDir(folder)
    for name, body in bodies.items():
        for fault in _refused(private, name, body):
            old = _origin(placed, name, tuple(fault.path.split(".")))
            split.unplaced.append((_where(file, lines, old), _dotted(old), fault.message))
    order = {path: index for index, (path, _) in enumerate(_leaves(tree, ()))}
    split.unplaced.sort(key=lambda entry: order.get(tuple(entry[1].split(".")), len(order)))
    for name, path in targets.items():
        private.write_private(path.name, _text(name, file, bodies[name]))
        split.written.append(path)
    return split


def _read(file: Path) -> tuple[dict[str, Tree], dict[Location, int]]:
    try:
        document = read_yaml(file.read_bytes())
    except OSError as error:
        raise ConfigError([Fault(str(file), "", f"it can't be read: {error.strerror}")]) from error
    if document.faults:
        raise ConfigError(
            [Fault(f"{file}:{fault.line}", _dotted(fault.at), fault.message) for fault in document.faults]
        )
    if not isinstance(document.tree, dict):
        raise ConfigError([Fault(str(file), "", "the file must hold keys and values")])
    return document.tree, document.lines


def _leaves(tree: Tree, at: Location) -> Iterable[tuple[Location, Tree]]:
    """Give every key that holds a value; a list is one value, and so is what is free-form in the new files."""
    free = bool(at) and any(shape is not None and shape.kind == "mapping" for shape in (find(Settings, at),))
    if isinstance(tree, dict) and tree and not free:
        for key, value in tree.items():
            yield from _leaves(value, (*at, key))
    elif at:
        yield at, tree


def _places(old: Location) -> list[tuple[str, Location]]:
    """Tell where a key goes: which file, which path; host and port of the server go into both."""
    moved = MOVED.get(_dotted(old))
    if moved is not None:
        name, _, path = moved.partition(":")
        return [(name, tuple(path.split(".")))]
    places = [("server", old)] if find(Settings, old) is not None else []
    if find(ClientSettings, old) is not None and (not places or _dotted(old) in ("server.host", "server.port")):
        places.append(("client", old))
    return places


def _converted(old: Location, name: str, value: Tree) -> Any:
    plain = plain_value(value)
    path = _dotted(old)
    if path in LOSSES and isinstance(plain, int | float) and not isinstance(plain, bool):
        return abs(plain)
    if path == "server.host" and name == "client" and plain in ("0.0.0.0", "::", "127.0.0.1"):  # noqa: S104 - compared
        return "localhost"
    return plain


def _put(body: dict[str, Any], at: Location, value: Any) -> None:
    for part in at[:-1]:
        body = body.setdefault(str(part), {})
    body[str(at[-1])] = value


def _origin(placed: Mapping[tuple[str, Location], Location], name: str, new: Location) -> Location:
    """Tell which old key a place in a new file came from."""
    for length in range(len(new), 0, -1):
        if (name, new[:length]) in placed:
            return placed[name, new[:length]]
    return new


def _refused(private: DataDir, name: str, body: dict[str, Any]) -> list[Fault]:
    """Take out of a body what the new models refuse, and give the faults; what ${NAME} holds is not judged."""
    refused: list[Fault] = []
    while True:
        trial = f".{name}.{secrets.token_hex(6)}.yaml"
        text = yaml.safe_dump(body)
        private.write_private(trial, text)
        environ = dict.fromkeys(re.findall(r"\$\{([A-Za-z0-9_]+)\}", text), _PLACEHOLDER)
        try:
            if name == "server":
                load_settings(private.file(trial), environ=environ)
            else:
                load_client_settings(private.file(trial), environ=environ)
        except ConfigError as error:
            taken = [
                fault for fault in error.faults if not _is_variable(body, fault.path) and _take(body, fault.path)
            ]
            if not taken:
                return refused
            refused += taken
        else:
            return refused
        finally:
            private.remove(trial)


def _is_variable(body: Any, path: str) -> bool:
    for part in path.split("."):
        body = body.get(part) if isinstance(body, dict) else None
    return isinstance(body, str) and "${" in body


def _take(body: Any, path: str) -> bool:
    """Remove a path, or the nearest section around it that is there; tell whether there was anything."""
    parts = path.split(".")
    for part in parts[:-1]:
        below = body.get(part) if isinstance(body, dict) else None
        if not isinstance(below, dict):
            parts = [part]
            break
        body = below
    if isinstance(body, dict) and parts[-1] in body:
        del body[parts[-1]]
        return True
    return False


def _text(name: str, file: Path, body: dict[str, Any]) -> str:
    kind = "The server's configuration" if name == "server" else "A client's configuration"
    values = yaml.safe_dump(body, sort_keys=False, allow_unicode=True) if body else "{}\n"
    return f"# {kind}, made by `sigma9 config split` from {file.name}.\n{values}"


def _reason(old: Location) -> str:
    for length in range(len(old), 0, -1):
        reason = REASONS.get(_dotted(old[:length]))
        if reason is not None:
            return reason
    return "there is no such setting"


def _where(file: Path, lines: Mapping[Location, int], at: Location) -> str:
    while at and at not in lines:
        at = at[:-1]
    return f"{file}:{lines.get(at, 1)}"


def _dotted(at: Location) -> str:
    return ".".join(map(str, at))
