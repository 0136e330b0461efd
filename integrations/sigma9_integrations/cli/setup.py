"""`sigma9 mqtt setup`: everything that a Mosquitto of one's own needs, in one folder, and what to do with it."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from sigma9_core.cli.client import WrongUsage
from sigma9_core.config import Topic
from sigma9_core.errors import StateError
from sigma9_integrations.broker import certificates
from sigma9_integrations.broker.accounts import (
    ACL_FILE,
    PASSWORD_FILE,
    PASSWORDS,
    ROLES,
    Access,
    Role,
    access,
    write_files,
)
from sigma9_integrations.broker.files import private_folder, write_private
from sigma9_integrations.broker.mosquitto import CONFIG_FILE

PLACE: Final = "/etc/mosquitto/sigma9"
"""The folder that the shipped mosquitto.conf names."""
NETWORK: Final = "# --- Over a network"
"""Where the part with the TLS listeners begins in it: it goes to the end."""
CERTIFICATES: Final = (certificates.CA, certificates.SERVER, certificates.CLIENT)
MOSQUITTOS: Final = (PASSWORD_FILE, ACL_FILE, "ca.crt", "server.crt", "server.key")
"""What Mosquitto reads."""
OURS: Final = frozenset(
    (
        *(PASSWORDS, PASSWORD_FILE, ACL_FILE, CONFIG_FILE, f"{CONFIG_FILE}.old"),
        *(f"{name}.{end}" for name in CERTIFICATES for end in ("crt", "key")),
    )
)


def setup(args: argparse.Namespace) -> int:
    """Make the files, say what was done with each, and what comes next."""
    folder: Path = args.folder.expanduser().absolute()
    if args.hosts and not args.tls:
        raise WrongUsage("--host is for a certificate: say --tls as well")
    _check_topic("--base-topic", args.base_topic)
    _check_topic("--prefix", args.prefix)
    _check_folder(folder)
    if args.tls:
        certificates.require()
        certificates.names_of(args.hosts)  # what can't be in a certificate is refused before anything is written
    rules = access(args.base_topic, args.prefix)
    try:
        _make(args, folder, rules)
    except OSError as error:
        raise StateError(f"{folder} can't be written ({error.strerror or error}): run it with sudo?") from error
    print()
    print(next_steps(folder, args.hosts, tls=args.tls))
    return 0


def _make(args: argparse.Namespace, folder: Path, rules: Mapping[Role, Access]) -> None:
    private_folder(folder)
    known = (folder / PASSWORDS).exists()
    if args.force:
        (folder / PASSWORDS).unlink(missing_ok=True)
    write_files(folder, rules)
    kept = "kept" if known and not args.force else "made"
    rows = [
        (PASSWORDS, f"the passwords of {', '.join(ROLES)}: {kept}"),
        (PASSWORD_FILE, "the same, hashed, for Mosquitto: written"),
        (ACL_FILE, f"who may read and write what below {args.base_topic}/ and {args.prefix}/: written"),
    ]
    if args.tls:
        for made in certificates.make(folder, args.hosts, args.days or certificates.DAYS, force=args.force):
            about = {
                "ca.crt": "the private authority, for every client",
                "server.crt": f"the broker's certificate, for {', '.join(made.names)}",
                "sigma9.crt": "the client certificate of the role sigma9",
            }[made.name]
            rows.append((made.name, f"{about}, until {made.ends:%Y-%m-%d}: {made.what}"))
    rows.append((CONFIG_FILE, _write_conf(folder, tls=args.tls)))
    _give_back(folder)
    width = max(len(name) for name, _ in rows)
    print(f"in {folder}:")
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")


def _give_back(folder: Path) -> None:
    """Let Mosquitto own its files again where the folder is its own: what was renewed came into root's hands."""
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for name in MOSQUITTOS:
        if (folder / name).exists():
            os.chown(folder / name, owner.st_uid, owner.st_gid)


def conf_text(folder: Path, *, tls: bool) -> str:
    """Give the shipped mosquitto.conf with the paths of `folder`, with or without its TLS listeners."""
    text = shipped().read_text(encoding="utf-8")
    if not tls:
        text = text.partition(NETWORK)[0].rstrip() + "\n"
    return text.replace(PLACE, str(folder))


def shipped() -> Path:
    """Find the shipped mosquitto.conf: in the package, where a link leads to the top of the repository."""
    from sigma9_integrations.broker import accounts

    return Path(accounts.__file__).with_name(CONFIG_FILE)


def _write_conf(folder: Path, *, tls: bool) -> str:
    path = folder / CONFIG_FILE
    text = conf_text(folder, tls=tls)
    kept = ""
    if path.exists() and path.read_text(encoding="utf-8") != text:
        path.replace(path.with_name(f"{CONFIG_FILE}.old"))
        kept = f"; the one before is {CONFIG_FILE}.old"
    write_private(path, text)
    path.chmod(0o644)  # it holds no secret
    return f"ready for Mosquitto, {'with' if tls else 'without'} TLS: written{kept}"


STEPS: Final = """\
Next:
  1. Let Mosquitto read its files; {yours} stay yours:
       sudo chown mosquitto: {owned}
  2. Put the configuration in its place (not into conf.d) and restart Mosquitto:
       sudo cp {conf} /etc/mosquitto/mosquitto.conf
       sudo systemctl restart mosquitto
  3. Let the server on this machine use it, in server_config.yaml, with the password of sigma9 in the environment:
       mqtt: {{broker: external, host: 127.0.0.1, port: 1883, username: sigma9, password: "${{MQTT_PASSWORD}}"}}
"""
STEPS_PLAIN: Final = """\
  4. Programs on this machine log in as operator or viewer on port 1883, with their password of passwords.json.
     Phones and other machines need TLS: run this again with --tls --host NAME.
"""
STEPS_TLS: Final = """\
     A server on another machine gets copies of ca.crt, sigma9.crt and sigma9.key, and needs no password:
       mqtt: {{broker: external, host: {host}, port: 8885,
              tls: {{ca: ca.crt, cert: sigma9.crt, key: sigma9.key}}}}
  4. Home Assistant, Node-RED and phones: {host}, port 8883 (WebSocket: 8884), the login operator or viewer
     with its password of passwords.json, and ca.crt as the authority to trust. They need nothing else. Who has
     ca.key can make every login: keep it where no network reaches it, and put it back to renew.
  5. The same command again renews what ends within 30 days; then restart Mosquitto.
"""
STEPS_LOOK: Final = """\
To see whether it works:
       MQTT_PASSWORD=... sigma9 mqtt watch --host 127.0.0.1 --username viewer --password-env MQTT_PASSWORD\
"""


def next_steps(folder: Path, hosts: Sequence[str], *, tls: bool) -> str:
    """Write what to do with the files, in order."""
    paths = [folder, *(folder / name for name in (MOSQUITTOS if tls else MOSQUITTOS[:2]))]
    text = STEPS.format(
        yours=f"{PASSWORDS}, ca.key and sigma9.key" if tls else f"{PASSWORDS} and {CONFIG_FILE}",
        owned=" ".join(shlex.quote(str(path)) for path in paths),
        conf=shlex.quote(str(folder / CONFIG_FILE)),
    )
    host = hosts[0] if hosts else certificates.names_of(())[0]
    return text + (STEPS_TLS.format(host=host) if tls else STEPS_PLAIN) + STEPS_LOOK


def _check_topic(option: str, topic: str) -> None:
    try:
        TypeAdapter(Topic).validate_python(topic)
    except ValidationError as error:
        raise WrongUsage(f"{option} '{topic}' is no topic: levels with / between them, without + and #") from error


def _check_folder(folder: Path) -> None:
    """Refuse a folder with other things in it: it becomes private, and what others need there would break."""
    if not str(folder).isprintable():
        raise WrongUsage("the folder's name can't stand in a line of mosquitto.conf: choose another one")
    try:
        if folder.exists() and not folder.is_dir():
            raise WrongUsage(f"{folder} is a file: name a folder")
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise StateError(f"{folder} can't be read ({error.strerror}): run it with sudo?") from error
    if found and not found & OURS:
        raise WrongUsage(
            f"{folder} holds other things: name a folder for these files alone, such as {folder / 'sigma9'}"
        )
