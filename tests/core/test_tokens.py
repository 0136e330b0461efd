"""Tokens: the admin's, the fixed one, and named ones that come and go while a server runs."""

from __future__ import annotations

import hmac
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from sigma9_core import log
from sigma9_core import tokens as module
from sigma9_core.commands import Right
from sigma9_core.datadir import DataDir
from sigma9_core.errors import StateError
from sigma9_core.log import redacted
from sigma9_core.tokens import LOOK_EVERY, TokenBook


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_secrets", set())
    monkeypatch.setattr(log, "_pattern", None)


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


def test_the_first_start_makes_an_admin_token(data: DataDir) -> None:
    """The first start writes a long random token for its owner alone; later starts keep it."""
    book = TokenBook(data)
    assert book.admin() is None
    book.start()
    admin = book.admin()
    assert admin is not None
    assert len(admin) >= 40
    assert data.file("admin.token").stat().st_mode & 0o777 == 0o600
    assert book.right_of(admin) == ("admin", "admin")
    again = TokenBook(data)
    again.start()
    assert again.admin() == admin


def test_no_token_is_no_right(data: DataDir) -> None:
    """What is no token has no right: nothing at all, a part of one, a huge one, foreign letters."""
    book = TokenBook(data, "")
    book.start()
    admin = book.admin()
    assert admin is not None
    for wrong in ("", " ", admin[:-1], admin + "x", admin.upper(), "ä\ud800", "x" * 1_000_000, "\0"):
        assert book.right_of(wrong) is None


def test_the_fixed_token(data: DataDir) -> None:
    """The configuration's token is an admin's, beside the one in the folder."""
    book = TokenBook(data, "from-the-configuration")
    book.start()
    assert book.right_of("from-the-configuration") == ("auth.token", "admin")
    assert book.right_of(book.admin() or "") == ("admin", "admin")
    assert "from-the-configuration" not in data.file("admin.token").read_text()


@pytest.mark.parametrize("right", ["read", "trade", "admin"])
def test_named_tokens(data: DataDir, right: Right) -> None:
    """A named token has the right it was made with; only its hash is kept."""
    book = TokenBook(data)
    secret = book.create("phone", right)
    book.start()
    assert book.right_of(secret) == ("phone", right)
    text = data.file("tokens.json").read_text()
    assert secret not in text
    assert data.file("tokens.json").stat().st_mode & 0o777 == 0o600
    assert [(token.name, token.right) for token in book.tokens()] == [("phone", right)]


def test_names(data: DataDir) -> None:
    """A name is used once, is short and plain, and is none of the two that are always there."""
    book = TokenBook(data)
    book.create("phone", "read")
    with pytest.raises(StateError, match="already"):
        book.create("phone", "trade")
    for name in ("", "a b", "x" * 65, "a/b", "é"):
        with pytest.raises(StateError, match="can't name a token"):
            book.create(name, "read")
    for name in ("admin", "auth.token"):
        with pytest.raises(StateError, match="always there"):
            book.create(name, "read")
        with pytest.raises(StateError, match="can't be revoked"):
            book.revoke(name)
    with pytest.raises(StateError, match="no token 'tablet'"):
        book.revoke("tablet")


def test_a_running_server_takes_changes(data: DataDir, clock: Clock) -> None:
    """A token that another process makes or revokes is known within a second, without a restart."""
    server = TokenBook(data)
    server.start()
    command_line = TokenBook(data)
    secret = command_line.create("phone", "trade")
    assert server.right_of(secret) is None
    clock.now += LOOK_EVERY
    assert server.right_of(secret) == ("phone", "trade")
    command_line.revoke("phone")
    clock.now += LOOK_EVERY
    assert server.right_of(secret) is None


def test_a_new_admin_token(data: DataDir, clock: Clock) -> None:
    """Replacing or removing admin.token takes effect on a running server too."""
    server = TokenBook(data)
    server.start()
    old = server.admin() or ""
    data.write_private("admin.token", "a-new-one\n")
    clock.now += LOOK_EVERY
    assert server.right_of("a-new-one") == ("admin", "admin")
    assert server.right_of(old) is None
    data.remove("admin.token")
    clock.now += LOOK_EVERY
    assert server.right_of("a-new-one") is None


def test_looking_is_cheap(data: DataDir, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are looked at once a second at most, and read only when they changed."""
    server = TokenBook(data)
    server.start()
    looks: list[int] = []
    reads: list[int] = []
    stat, load = server._stat, server._load

    def counted_stat() -> object:
        looks.append(1)
        return stat()

    def counted_load() -> None:
        reads.append(1)
        load()

    monkeypatch.setattr(server, "_stat", counted_stat)
    monkeypatch.setattr(server, "_load", counted_load)
    for _ in range(50):
        server.right_of("x")
    assert looks == []
    for _ in range(5):
        clock.now += LOOK_EVERY
        server.right_of("x")
    assert len(looks) == 5
    assert reads == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "{}",
        '{"tokens": 5}',
        '{"tokens": [{"name": "x"}]}',
        '{"tokens": [{"name": "x", "right": "root", "sha256": "' + "0" * 64 + '"}]}',
        '{"tokens": [{"name": "x", "right": "read", "sha256": "zz"}]}',
        '{"tokens": [{"name": "x", "right": "read", "sha256": "00"}]}',
    ],
)
def test_a_damaged_book(data: DataDir, clock: Clock, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """A damaged file refuses the start; under a running server it is logged, and what was valid stays valid."""
    server = TokenBook(data)
    secret = server.create("phone", "read")
    server.start()
    data.file("tokens.json").write_text(text)
    clock.now += LOOK_EVERY
    with caplog.at_level(logging.ERROR):
        assert server.right_of(secret) == ("phone", "read")
        clock.now += LOOK_EVERY
        assert server.right_of(secret) == ("phone", "read")
    assert len(caplog.records) == 1
    with pytest.raises(StateError, match=r"tokens\.json is damaged"):
        TokenBook(data).start()


def test_others_can_not_read_them(data: DataDir, caplog: pytest.LogCaptureFixture) -> None:
    """Files that others could read are closed again at the start, with a warning."""
    book = TokenBook(data)
    book.create("phone", "read")
    book.start()
    for name in ("admin.token", "tokens.json"):
        data.file(name).chmod(0o644)
    with caplog.at_level(logging.WARNING):
        TokenBook(data).start()
    assert len(caplog.records) == 2
    for name in ("admin.token", "tokens.json"):
        assert data.file(name).stat().st_mode & 0o777 == 0o600


def test_every_token_is_compared(data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is constant-time and goes over all tokens, whichever one fits."""
    book = TokenBook(data, "fixed")
    secrets = [book.create(f"t{n}", "read") for n in range(3)]
    book.start()
    compared: list[bool] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(real(one, other))
        return compared[-1]

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for token in ("fixed", secrets[0], secrets[2], "wrong"):
        compared.clear()
        book.right_of(token)
        assert len(compared) == 5
        assert any(compared) is (token != "wrong")


def test_tokens_are_redacted(data: DataDir) -> None:
    """A token that was used, the admin's and the fixed one never appear in a log line."""
    book = TokenBook(data, "the-fixed-token")
    secret = book.create("phone", "read")
    book.start()
    book.right_of(secret)
    for token in (secret, book.admin() or "?", "the-fixed-token"):
        assert token not in redacted(f"GET /ws/feed with {token} in it")


WRITER = """
import sys
from pathlib import Path
from sigma9_core.datadir import DataDir
from sigma9_core.tokens import TokenBook
for n in range(10):
    TokenBook(DataDir(Path(sys.argv[1]))).create(f"t{sys.argv[2]}-{n}", "read")
"""


def test_two_writers(data: DataDir) -> None:
    """Two processes that make tokens at the same time lose none."""
    command = [sys.executable, "-c", WRITER, str(data.path)]
    writers = [subprocess.Popen([*command, str(half)]) for half in range(2)]
    assert [writer.wait(20) for writer in writers] == [0, 0]
    assert len(TokenBook(data).tokens()) == 20
    assert len(json.loads(data.file("tokens.json").read_text())["tokens"]) == 20
