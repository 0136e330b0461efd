"""Tokens: who may do what. The admin token of the command line, the configuration's fixed one, and named ones.

Named tokens are kept as hashes; the book reloads its files when they change, so that `sigma9 token` works beside a
running server.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
from dataclasses import dataclass
from typing import Any, Final

from sigma9_core.clock import monotonic, rfc3339, wall_now
from sigma9_core.commands import RIGHTS, Right
from sigma9_core.datadir import FILE_MODE, DataDir
from sigma9_core.errors import StateError
from sigma9_core.log import redact

ADMIN_FILE: Final = "admin.token"
BOOK_FILE: Final = "tokens.json"
ADMIN: Final = "admin"
"""The name of the token in `admin.token`."""
FIXED: Final = "auth.token"
"""The name of the configuration's token."""
LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the files."""

_LOCK: Final = "tokens.lock"
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST: Final = 4096

_log = logging.getLogger("sigma9.tokens")


@dataclass(frozen=True, slots=True)
class Token:
    """A named token, without its secret."""

    name: str
    right: Right
    sha256: str
    created_at: str


class TokenBook:
    """Knows every token; asked on one thread at a time."""

    def __init__(self, data_dir: DataDir, fixed: str | None = None) -> None:
        self._data_dir = data_dir
        self._fixed = fixed
        self._known: tuple[tuple[bytes, str, Right], ...] = ()
        self._stamp: object = None
        self._looked = -LOOK_EVERY

    def start(self) -> None:
        """Make the admin token at the first start, and read what is there; raise StateError where that fails."""
        self._data_dir.make()
        with self._data_dir.exclusive(_LOCK):
            if not (self._data_dir.read(ADMIN_FILE) or "").strip():
                self._data_dir.write_private(ADMIN_FILE, secrets.token_urlsafe(32) + "\n")
        self._keep_private()
        self._load()

    def right_of(self, token: str) -> tuple[str, Right] | None:
        """Tell a token's name and right, None where it is not valid; the time does not depend on the token."""
        self._look()
        if not token or len(token) > _LONGEST:
            return None
        asked = _digest(token)
        found: tuple[str, Right] | None = None
        for digest, name, right in self._known:
            if hmac.compare_digest(digest, asked) and found is None:
                found = (name, right)
        if found is not None:
            redact(token)
        return found

    # --- what the command line does -----------------------------------------

    def admin(self) -> str | None:
        """Give the admin token; None before the first start."""
        text = (self._data_dir.read(ADMIN_FILE) or "").strip()
        return text or None

    def create(self, name: str, right: Right) -> str:
        """Make a named token and give its secret, kept nowhere; raise StateError where the name is taken."""
        if not _NAME.fullmatch(name):
            raise StateError(f"'{name}' can't name a token: use 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'")
        if name in (ADMIN, FIXED):
            raise StateError(f"'{name}' is the name of a token that is always there: choose another one")
        secret = secrets.token_urlsafe(32)
        self._data_dir.make()
        with self._data_dir.exclusive(_LOCK):
            tokens = self._read()
            if any(token.name == name for token in tokens):
                raise StateError(f"there is a token '{name}' already: revoke it first, or choose another name")
            new = Token(name, right, _digest(secret).hex(), rfc3339(wall_now()))
            self._write([*tokens, new])
        return secret

    def revoke(self, name: str) -> None:
        """Make a named token invalid; raise StateError where there is none."""
        if name in (ADMIN, FIXED):
            where = self._data_dir.file(ADMIN_FILE) if name == ADMIN else "the configuration"
            raise StateError(f"'{name}' can't be revoked: it stands in {where}")
        self._data_dir.make()
        with self._data_dir.exclusive(_LOCK):
            tokens = self._read()
            left = [token for token in tokens if token.name != name]
            if len(left) == len(tokens):
                raise StateError(f"there is no token '{name}'")
            self._write(left)

    def tokens(self) -> list[Token]:
        """List the named tokens."""
        return self._read()

    # ------------------------------------------------------------------------

    def _look(self) -> None:
        now = monotonic()
        if now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        if self._stat() == self._stamp:
            return
        try:
            self._load()
        except StateError as error:
            self._stamp = self._stat()
            _log.error("%s; the tokens that were valid before stay valid", error)

    def _load(self) -> None:
        stamp = self._stat()
        known: list[tuple[bytes, str, Right]] = []
        if self._fixed:
            redact(self._fixed)
            known.append((_digest(self._fixed), FIXED, "admin"))
        admin = self.admin()
        if admin is not None:
            redact(admin)
            known.append((_digest(admin), ADMIN, "admin"))
        known += [(bytes.fromhex(token.sha256), token.name, token.right) for token in self._read()]
        self._known, self._stamp, self._looked = tuple(known), stamp, monotonic()

    def _stat(self) -> object:
        """Give what changes whenever one of the files does."""
        marks: list[tuple[int, int, int] | None] = []
        for name in (ADMIN_FILE, BOOK_FILE):
            try:
                stat = self._data_dir.file(name).stat()
                marks.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
            except OSError:
                marks.append(None)
        return marks

    def _keep_private(self) -> None:
        for name in (ADMIN_FILE, BOOK_FILE):
            path = self._data_dir.file(name)
            try:
                if path.stat().st_mode & 0o077:
                    _log.warning("%s could be read by others: its mode is 0600 again", path)
                    path.chmod(FILE_MODE)
            except FileNotFoundError:
                continue
            except OSError as error:
                _log.warning("%s may be read by others, and its mode can't be changed: %s", path, error.strerror)

    def _read(self) -> list[Token]:
        text = self._data_dir.read(BOOK_FILE)
        if text is None:
            return []
        path = self._data_dir.file(BOOK_FILE)
        try:
            body: Any = json.loads(text)
            tokens = [_token(entry) for entry in body["tokens"]]
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{path} is damaged ({type(error).__name__}): move it away and create its tokens anew"
            ) from error
        return tokens

    def _write(self, tokens: list[Token]) -> None:
        rows = [
            {"name": token.name, "right": token.right, "sha256": token.sha256, "created_at": token.created_at}
            for token in tokens
        ]
        self._data_dir.write_private(BOOK_FILE, json.dumps({"version": 1, "tokens": rows}, indent=2) + "\n")


def _token(entry: Any) -> Token:
    right = entry["right"]
    if right not in RIGHTS or len(bytes.fromhex(entry["sha256"])) != hashlib.sha256().digest_size:
        raise ValueError("not a token")
    return Token(str(entry["name"]), right, entry["sha256"], str(entry.get("created_at", "")))


def _digest(token: str) -> bytes:
    """Hash a token; tokens are long and random, so that one round of SHA-256 is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
