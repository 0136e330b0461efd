"""`sigma9 token`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sigma9_core.datadir import DataDir
from sigma9_core.tokens import TokenBook


@pytest.fixture(name="book")
def _book(alone: Path) -> TokenBook:
    book = TokenBook(DataDir(alone / "data"))
    book.start()
    return book


def test_before_the_first_start(cli: Any, alone: Path) -> None:
    """Before the first start there is no token, and asking for one makes nothing."""
    result = cli("token")
    assert result.code == 1
    assert "the first `sigma9 run` makes it" in result.err
    assert not (alone / "data").exists()


def test_admin(cli: Any, alone: Path, book: TokenBook) -> None:
    """`token` tells where the admin token lies; only --show prints it."""
    result = cli("token")
    assert str(alone / "data" / "admin.token") in result.out
    assert (book.admin() or "?") not in result.out
    assert cli("token", "--show").out == f"{book.admin()}\n"


def test_create_list_revoke(cli: Any, book: TokenBook) -> None:
    """A token is printed once, listed without its secret, and revoked."""
    assert cli("token", "list").out == "no token but the admin token\n"
    secret = cli("token", "create", "phone", "--right", "trade").out.strip()
    book.start()
    assert book.right_of(secret) == ("phone", "trade")
    result = cli("token", "list", "--format", "json")
    assert [(row["name"], row["right"]) for row in result.json] == [("phone", "trade")]
    assert secret not in result.out
    assert cli("token", "revoke", "phone").code == 0
    assert cli("token", "revoke", "phone").code == 1
    result = cli("token", "create", "admin", "--right", "read")
    assert result.code == 1
    assert result.out == ""


def test_another_folder(cli: Any, alone: Path) -> None:
    """--data-dir names the folder."""
    secret = cli("token", "--data-dir", "else", "create", "phone", "--right", "read").out.strip()
    book = TokenBook(DataDir(alone / "else"))
    book.start()
    assert book.right_of(secret) == ("phone", "read")


def test_the_folder_on_either_side(cli: Any, alone: Path) -> None:
    """--data-dir is taken before and after the action."""
    cli("token", "create", "phone", "--right", "read", "--data-dir", "else")
    assert "phone" in cli("token", "--data-dir", "else", "list").out
    result = cli("token", "list", "--data-dir", "else")
    assert "created (wall time, UTC)" in result.out
    assert "phone" in result.out
    assert cli("token", "revoke", "phone", "--data-dir", "else").code == 0
