"""Where the broker is and who logs in: this machine's running server says it, options, or the configuration."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiomqtt
from aiomqtt.exceptions import MqttConnectError

from sigma9_core.cli.client import Refused, Unreachable, WrongUsage, no_server_on
from sigma9_core.cli.options import data_dir_named, data_dir_of
from sigma9_core.config import MqttTls, Settings
from sigma9_core.configfile import load_settings
from sigma9_core.datadir import DataDir
from sigma9_core.errors import ConfigError
from sigma9_integrations.broker.accounts import PASSWORDS, ROLES, Role, read_passwords
from sigma9_integrations.broker.note import BrokerNote, read_note
from sigma9_integrations.mqtt.connection import Arrival, Endpoint, Protocol5, Wire, open_wire, protocols
from sigma9_integrations.mqtt.service import FOLDER

BAD_LOGIN: Final = frozenset((4, 5, 0x86, 0x87))
"""CONNACK codes of a broker that does not let this login in, on MQTT 3.1.1 and on 5."""
PLAIN: Final = 1883
SECURE: Final = 8883


@dataclass(frozen=True, slots=True)
class Reach:
    """A broker, and the names that a server has there."""

    endpoint: Endpoint
    protocols: tuple[Protocol5, ...]
    base: str
    prefix: str
    node: str


def find_broker(args: argparse.Namespace, role: Role, environ: Mapping[str, str] | None = None) -> Reach:
    """Find the broker: --host, this machine's running server, or the external one of the server's configuration.

    `role` logs in on the embedded broker of a server on this machine, whose passwords lie in its data folder.
    Raise Unreachable, or WrongUsage where a login is missing.
    """
    environ = os.environ if environ is None else environ
    if args.host is not None or args.port is not None:
        return _named(args, environ)
    data_dir = DataDir(data_dir_of(args, environ))
    named = data_dir_named(args, environ)
    holder = data_dir.holder()
    if holder is None and named is not None:
        raise no_server_on(data_dir, named)
    note = None if holder is None else read_note(data_dir.path / FOLDER, holder.pid)
    if note is not None:
        if note.kind == "external":
            return _external(args, environ, note)
        return _embedded(args, environ, note, data_dir.path / FOLDER, role)
    if holder is not None:
        raise Unreachable(
            f"the server on the data folder {data_dir.path} has told no MQTT broker: it is only starting, or "
            "mqtt.enabled is false there"
        )
    settings = load_settings(args.config, environ=environ)
    if settings.mqtt.enabled and settings.mqtt.broker == "external":
        return _configured(args, environ, settings)
    raise Unreachable(
        f"no server runs on the data folder {data_dir.path}, and no broker is named: start one with `sigma9 run`, "
        "or name a broker with --host"
    )


@asynccontextmanager
async def connected(reach: Reach, on_message: Callable[[Arrival], None]) -> AsyncIterator[Wire]:
    """Connect, and disconnect at the end; raise Unreachable, or Refused where the login is."""
    endpoint = reach.endpoint
    try:
        wire = await open_wire(endpoint, f"sigma9-cli-{secrets.token_hex(6)}", reach.protocols, on_message)
    except MqttConnectError as error:
        code = getattr(error.rc, "value", error.rc)
        if code in BAD_LOGIN:
            who = "a client without a login" if endpoint.username is None else f"the login '{endpoint.username}'"
            raise Refused(f"the broker {endpoint} refuses {who}: check the name and the password") from error
        raise Unreachable(f"the broker {endpoint} refuses the connection: {error}") from error
    except (aiomqtt.MqttError, OSError) as error:
        raise Unreachable(
            f"no MQTT broker at {endpoint} ({error}): is it running, and is the address right?"
        ) from error
    try:
        yield wire
    finally:
        await wire.close()


def _named(args: argparse.Namespace, environ: Mapping[str, str]) -> Reach:
    try:
        settings = load_settings(args.config, environ=environ)
    except ConfigError:
        if args.config is not None:
            raise
        settings = Settings()  # it is only asked for names here, which have defaults
        print("sigma9: the configuration has faults (see `sigma9 config check`); it is not read", file=sys.stderr)
    tls = _tls(args)
    port = args.port or (PLAIN if tls == MqttTls() else SECURE)
    endpoint = Endpoint(args.host or "127.0.0.1", port, args.username, _password(args, environ), tls)
    return _reach(args, endpoint, settings)


def _embedded(
    args: argparse.Namespace, environ: Mapping[str, str], note: BrokerNote, folder: Path, role: Role
) -> Reach:
    user = args.username or role
    password = _password(args, environ)
    if password is None:
        password = read_passwords(folder).get(user)
    if password is None:
        raise WrongUsage(f"{folder / PASSWORDS} has no password of '{user}': choose one of {', '.join(ROLES)}")
    endpoint = Endpoint(note.host, note.port, user, password, is_amqtt=note.kind == "amqtt")
    tried: tuple[Protocol5, ...] = ("3.1.1",) if note.kind == "amqtt" else protocols("auto")
    return Reach(endpoint, tried, args.base_topic or note.base, note.prefix, _node(args) or note.node)


def _external(args: argparse.Namespace, environ: Mapping[str, str], note: BrokerNote) -> Reach:
    """Use the broker that the running server uses; its login stands in the configuration alone."""
    tls = (
        MqttTls(**{name: Path(path) for name, path in note.tls.items()}) if _tls(args) == MqttTls() else _tls(args)
    )
    user, password = args.username, _password(args, environ)
    if user is None and tls.cert is None:
        try:
            mqtt = load_settings(args.config, environ=environ).mqtt
        except ConfigError:
            mqtt = None
        if mqtt is None or (mqtt.broker, mqtt.host, mqtt.port) != ("external", note.host, note.port):
            raise WrongUsage(
                f"the server uses the broker {note.host}:{note.port}, and its login is in a configuration that is "
                "not found here: name it with --config, or a login with --username and --password-env"
            )
        user, password = mqtt.username, None if mqtt.password is None else mqtt.password.get_secret_value()
    endpoint = Endpoint(note.host, note.port, user, password, tls)
    return Reach(endpoint, protocols("auto"), args.base_topic or note.base, note.prefix, _node(args) or note.node)


def _configured(args: argparse.Namespace, environ: Mapping[str, str], settings: Settings) -> Reach:
    mqtt = settings.mqtt
    user, password = args.username, _password(args, environ)
    if user is None:
        user, password = mqtt.username, None if mqtt.password is None else mqtt.password.get_secret_value()
    tls = mqtt.tls if _tls(args) == MqttTls() else _tls(args)
    return _reach(args, Endpoint(mqtt.host, mqtt.port, user, password, tls), settings)


def _reach(args: argparse.Namespace, endpoint: Endpoint, settings: Settings) -> Reach:
    return Reach(
        endpoint,
        protocols(settings.mqtt.protocol),
        args.base_topic or settings.mqtt.base_topic,
        settings.home_assistant.prefix,
        _node(args) or settings.node,
    )


def _node(args: argparse.Namespace) -> str | None:
    node: str | None = getattr(args, "node", None)
    return node


def _tls(args: argparse.Namespace) -> MqttTls:
    if args.key is not None and args.cert is None:
        raise WrongUsage("--key is the key of --cert: name both")
    return MqttTls(ca=args.ca, cert=args.cert, key=args.key)


def _password(args: argparse.Namespace, environ: Mapping[str, str]) -> str | None:
    name: str | None = args.password_env
    if name is None:
        return None
    if args.username is None:
        raise WrongUsage("--password-env goes with --username")
    if not environ.get(name):
        raise WrongUsage(f"the environment has no variable {name}, or an empty one: put the password there")
    return environ[name]
