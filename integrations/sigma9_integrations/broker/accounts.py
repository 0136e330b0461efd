"""Who may do what on the broker: four roles, their passwords, and the rules that tell them apart (contract 4)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from sigma9_core.commands import BUILT_IN, CommandSpec
from sigma9_core.errors import ConfigError, Fault, StateError
from sigma9_integrations.broker.files import private_folder, write_private

Role = Literal["sigma9", "admin", "operator", "viewer"]
"""`sigma9` is the server; `admin` sends every command, `operator` those of right trade and read, `viewer` none."""
ROLES: Final[tuple[Role, ...]] = get_args(Role)

ROUNDS: Final = 101
"""PBKDF2 rounds, as mosquitto_passwd has them: the passwords are random and long, a slow hash adds nothing."""

PASSWORDS: Final = "passwords.json"
"""The passwords in clear, for the people and programs that log in."""
PASSWORD_FILE: Final = "sigma9.passwd"  # noqa: S105 - a file name
"""The same, hashed, in mosquitto's format."""
ACL_FILE: Final = "sigma9.acl"


@dataclass(frozen=True, slots=True)
class Access:
    """The topic filters that a role may read (subscribe to) and write (publish to)."""

    read: tuple[str, ...]
    write: tuple[str, ...]

    def may_read(self, wanted: str) -> bool:
        """Tell whether a subscription to the filter `wanted` shows nothing but what may be read."""
        return any(covers(allowed, wanted) for allowed in self.read)

    def may_write(self, topic: str) -> bool:
        """Tell whether `topic` may be published to."""
        return any(covers(allowed, topic) for allowed in self.write)


def access(base: str, prefix: str, specs: Mapping[str, CommandSpec] = BUILT_IN) -> Mapping[Role, Access]:
    """Give the access of every role: the server alone speaks as a node, the others send commands or nothing.

    `base` is `mqtt.base_topic`, `prefix` Home Assistant's. Everybody reads everything, `{base}/reply/#` included.
    An operator's commands are listed one by one, so that a command that nobody thought of is not among them.
    """
    for name, value in (("mqtt.base_topic", base), ("home_assistant.prefix", prefix)):
        if not value.isprintable():
            message = (
                "holds a character that can't stand in a line of an access file: use letters, digits, _ and /"
            )
            raise ConfigError([Fault("server_config.yaml", name, message)])
    everything = (f"{base}/#", f"{prefix}/#")
    birth = f"{prefix}/status"
    trading = tuple(f"{base}/+/command/{name}" for name, spec in specs.items() if spec.right != "admin")
    return {
        "sigma9": Access(everything, everything),
        "admin": Access(everything, (f"{base}/+/command/+", birth)),
        "operator": Access(everything, (*trading, birth)),
        "viewer": Access(everything, ()),
    }


def covers(allowed: str, wanted: str) -> bool:
    """Tell whether the filter `allowed` matches all that the topic or filter `wanted` can match."""
    have, want = allowed.split("/"), wanted.split("/")
    for index, level in enumerate(have):
        if level == "#":
            return True
        if index >= len(want) or want[index] == "#":
            return False
        if level != "+" and level != want[index]:
            return False
    return len(have) == len(want)


def load_passwords(folder: Path) -> Mapping[Role, str]:
    """Read the passwords of the roles; those that are missing are made and kept, mode 0600."""
    path = folder / PASSWORDS
    found = read_passwords(folder) if path.exists() else {}
    passwords: dict[Role, str] = {role: found.get(role) or secrets.token_urlsafe(18) for role in ROLES}
    if passwords != found:
        write_private(path, json.dumps(passwords, indent=2) + "\n")
    return passwords


def read_passwords(folder: Path) -> dict[str, str]:
    """Read the passwords that are there, by role; raise StateError where that can't be done."""
    path = folder / PASSWORDS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(f"{path} can't be read ({error}): delete it and new passwords are made") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) and value for value in found.values()):
        raise StateError(f"{path} is not an object of passwords by role: delete it and new passwords are made")
    return found


def hash_password(password: str) -> str:
    """Hash a password as mosquitto 2 does: `$7$rounds$salt$hash`, PBKDF2 with SHA-512."""
    salt = os.urandom(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ROUNDS, 64)
    return f"$7${ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def check_password(password: str, hashed: str) -> bool:
    """Tell whether a password is the one that `hash_password` hashed."""
    _, _, rounds, salt, digest = hashed.split("$")
    made = hashlib.pbkdf2_hmac("sha512", password.encode(), base64.b64decode(salt), int(rounds), 64)
    return hmac.compare_digest(made, base64.b64decode(digest))


def password_text(passwords: Mapping[Role, str]) -> str:
    """Write mosquitto's password file."""
    return "".join(f"{role}:{hash_password(password)}\n" for role, password in passwords.items())


def acl_text(rules: Mapping[Role, Access]) -> str:
    """Write mosquitto's access file: what is not granted is denied."""
    lines: list[str] = []
    for role, rule in rules.items():
        both = [topic for topic in rule.read if topic in rule.write]
        lines.append(f"user {role}")
        lines += [f"topic readwrite {topic}" for topic in both]
        lines += [f"topic read {topic}" for topic in rule.read if topic not in both]
        lines += [f"topic write {topic}" for topic in rule.write if topic not in both]
        lines.append("")
    return "\n".join(lines)


def write_files(folder: Path, rules: Mapping[Role, Access]) -> Mapping[Role, str]:
    """Write password file and access file into `folder`, and give the passwords."""
    passwords = load_passwords(private_folder(folder))
    write_private(folder / PASSWORD_FILE, password_text(passwords), durable=False)
    write_private(folder / ACL_FILE, acl_text(rules), durable=False)
    return passwords
