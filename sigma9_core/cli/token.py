"""`sigma9 token`: where the admin token lies, and tokens for others."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sigma9_core.cli.options import add_data_dir, add_format, data_dir_of

if TYPE_CHECKING:
    from sigma9_core.datadir import DataDir
    from sigma9_core.tokens import TokenBook


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `token`, and below it `create`, `list` and `revoke`."""
    parser = subparsers.add_parser(
        "token",
        help="show or make tokens",
        description="Say where the admin token lies, or make and revoke tokens for others. "
        "A running server takes a change within a second.",
    )
    parser.add_argument("--show", action="store_true", help="print the admin token itself")
    add_data_dir(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    create = actions.add_parser("create", help="make a token and print it once")
    create.add_argument("name", help="who it is for, such as phone")
    create.add_argument("--right", choices=("read", "trade", "admin"), required=True, help="what it allows")
    show = actions.add_parser("list", help="list the tokens, without their secrets")
    add_format(show)
    revoke = actions.add_parser("revoke", help="make a token invalid")
    revoke.add_argument("name")


def run(args: argparse.Namespace) -> int:
    """Do what was asked, in the data folder itself."""
    from sigma9_core.cli.output import show_rows
    from sigma9_core.cli.times import WALL
    from sigma9_core.datadir import DataDir
    from sigma9_core.tokens import TokenBook

    data_dir = DataDir(data_dir_of(args))
    book = TokenBook(data_dir)
    if args.action == "create":
        print(book.create(args.name, args.right))
        return 0
    if args.action == "revoke":
        book.revoke(args.name)
        print(f"the token '{args.name}' is no longer valid")
        return 0
    if args.action == "list":
        rows = [{"name": one.name, "right": one.right, "created_at": one.created_at} for one in book.tokens()]
        columns, empty = ("name", "right", "created_at"), "no token but the admin token"
        show_rows(rows, columns, args.format, empty=empty, times={"created_at": WALL})
        return 0
    return _admin(data_dir, book, show=args.show)


def _admin(data_dir: DataDir, book: TokenBook, *, show: bool) -> int:
    from sigma9_core.errors import StateError
    from sigma9_core.tokens import ADMIN_FILE

    token = book.admin()
    if token is None:
        raise StateError(f"there is no token in {data_dir.path} yet: the first `sigma9 run` makes it")
    if show:
        print(token)
    else:
        print(f"the admin token is in {data_dir.file(ADMIN_FILE)}; `sigma9 token --show` prints it")
    return 0
