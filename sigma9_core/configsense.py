"""Combinations of settings that make no sense, each with its reason; the start is refused on them (contract 8)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import SecretStr

from sigma9_core.calendar_names import NAMES, is_exchange
from sigma9_core.config import ClientSettings, InstanceSettings, SchedulerSettings, Settings
from sigma9_core.explain import hint, quoted

Sense = tuple[tuple[str, ...], str]
"""The settings that are concerned, the one to change first, and the sentence, with any value after ", not"."""

_HEADER_SAFE: Final = re.compile(r"[\x21-\x7e]+")


def senseless(settings: Settings) -> Iterator[Sense]:
    """Give what makes no sense in the server's settings."""
    yield from _token("auth.token", settings.auth.token)
    yield from _server(settings)
    yield from _mqtt(settings)
    yield from _instances("scanners", settings.scanners)
    yield from _instances("risk", settings.risk)
    yield from _instances("notifiers", settings.notifiers)
    for index, path in enumerate(settings.plugins.paths):
        if not is_plugin_path(path):
            yield (f"plugins.paths.{index}",), f"must be a folder or a plugin's .py file that is there, not {path}"
    database = settings.database
    if database.type == "postgresql" and database.url is None:
        yield (
            ("database.type", "database.url"),
            "postgresql needs database.url, such as postgresql+psycopg://host/name",
        )
    if settings.polygon.enabled and settings.polygon.api_key is None:
        yield ("polygon.enabled", "polygon.api_key"), "polygon needs polygon.api_key"
    yield from _scheduler(settings.scheduler)


def senseless_client(settings: ClientSettings) -> Iterator[Sense]:
    """Give what makes no sense in a client's settings."""
    yield from _token("server.token", settings.server.token)
    for name in ("ws_path", "api_path"):
        if not re.fullmatch(r"/[\x21-\x7e]*", getattr(settings.server, name)):
            yield (f"server.{name}",), "a path begins with / and holds no blanks"


def reachable_from_outside(host: str) -> bool:
    """Tell whether an address to listen on is open to other machines; a name is judged when it is resolved."""
    if not host:
        return True
    try:
        return not ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


def _token(path: str, token: SecretStr | None) -> Iterator[Sense]:
    if token is not None and not _HEADER_SAFE.fullmatch(token.get_secret_value()):
        yield (path,), "a token is not empty, and holds printable ASCII characters without blanks"


def _server(settings: Settings) -> Iterator[Sense]:
    server = settings.server
    if server.tls.cert is None and server.tls.key is not None:
        yield ("server.tls.key", "server.tls.cert"), "a key needs its certificate: name server.tls.cert too"
    yield from _files("server.tls", {"cert": server.tls.cert, "key": server.tls.key})
    if reachable_from_outside(server.host) and server.tls.cert is None and not server.insecure:
        yield (
            ("server.host", "server.tls", "server.insecure"),
            (
                "other machines could read the tokens on their way: set server.tls, "
                "or server.insecure: true where the network itself is safe"
            ),
        )


def _mqtt(settings: Settings) -> Iterator[Sense]:
    mqtt = settings.mqtt
    if mqtt.password is not None and mqtt.username is None:
        yield ("mqtt.password", "mqtt.username"), "a password needs mqtt.username"
    if mqtt.tls.cert is None and mqtt.tls.key is not None:
        yield ("mqtt.tls.key", "mqtt.tls.cert"), "a key needs its certificate: name mqtt.tls.cert too"
    yield from _files("mqtt.tls", {"ca": mqtt.tls.ca, "cert": mqtt.tls.cert, "key": mqtt.tls.key})


def _scheduler(scheduler: SchedulerSettings) -> Iterator[Sense]:
    zone, exchange = scheduler.timezone, scheduler.calendar
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        meant = hint(zone, available_timezones())
        yield ("scheduler.timezone",), f"must be a time zone, such as America/New_York, not {quoted(zone)}{meant}"
    if not is_exchange(exchange):
        meant = hint(exchange, NAMES)
        yield (
            ("scheduler.calendar",),
            f"must be an exchange's calendar, such as XNYS, not {quoted(exchange)}{meant}",
        )


def _files(section: str, files: dict[str, Path | None]) -> Iterator[Sense]:
    for name, path in files.items():
        if path is not None and not _is_file(path):
            yield (f"{section}.{name}",), f"must be a file that is there, not {path}"


def _instances(section: str, instances: Sequence[InstanceSettings]) -> Iterator[Sense]:
    first: dict[str, int] = {}
    for index, entry in enumerate(instances):
        if entry.instance in first:
            yield (
                (f"{section}.{index}.name", f"{section}.{index}"),
                f"needs a name of its own, not {quoted(entry.instance)} like entry {first[entry.instance]}",
            )
        first.setdefault(entry.instance, index)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def is_plugin_path(path: Path) -> bool:
    """Tell whether plugins can be looked for at a path: a folder, or a Python file."""
    try:
        return path.is_dir() or (path.suffix == ".py" and path.is_file())
    except OSError:
        return False
