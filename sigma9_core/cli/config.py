"""`sigma9 config`: check the configuration, show what is in effect, split an old single file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sigma9_core.cli.options import add_server_file


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `config check`, `config show` and `config split`."""
    parser = subparsers.add_parser("config", help="check, show or split the configuration")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="list every fault",
        description="List every fault of both files and of the plugins' settings.",
    )
    add_server_file(check)
    check.add_argument("--client-config", type=Path, metavar="FILE", help="default: ./client_config.yaml if there")
    show = actions.add_parser(
        "show", help="print what is in effect", description="Print the effective settings, secrets masked."
    )
    add_server_file(show)
    show.add_argument("--client", action="store_true", help="show the client's settings instead")
    show.add_argument("--client-config", type=Path, metavar="FILE", help="default: ./client_config.yaml if there")
    split = actions.add_parser(
        "split",
        help="split an old single file in two",
        description="Write server_config.yaml and client_config.yaml from an old settings.yaml, "
        "and name every key that has no place in them.",
    )
    split.add_argument("file", type=Path, metavar="settings.yaml")
    split.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: beside the old file)")
    split.add_argument("--force", action="store_true", help="overwrite what is there")


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    if args.action == "check":
        return _check(args)
    return _show(args) if args.action == "show" else _split(args)


def _check(args: argparse.Namespace) -> int:
    from sigma9_core.configfile import CLIENT_FILE, find_config, load_client_settings, survey_settings
    from sigma9_core.errors import ConfigError
    from sigma9_core.plugincheck import every_fault

    file = find_config(args.config)
    client = args.client_config or (Path(CLIENT_FILE) if Path(CLIENT_FILE).exists() else None)
    faults = every_fault(survey_settings(args.config, args.overrides))
    try:
        load_client_settings(client)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))  # both files take the same variables
    print(f"{file or 'no server_config.yaml, the defaults are'}: no fault")
    if client is not None:
        print(f"{client}: no fault")
    return 0


def _show(args: argparse.Namespace) -> int:
    import yaml

    from sigma9_core.configfile import load_client_settings, load_settings, masked

    if args.client:
        body = masked(load_client_settings(args.client_config))
    else:
        body = masked(load_settings(args.config, args.overrides))
    print(yaml.safe_dump(body, sort_keys=False, allow_unicode=True), end="")
    return 0


def _split(args: argparse.Namespace) -> int:
    from sigma9_core.configsplit import split_file

    done = split_file(args.file, args.out or args.file.absolute().parent, force=args.force)
    for path in done.written:
        print(f"wrote {path}")
    for place, key, why in done.unplaced:
        print(f"{place}: {key}: not placed: {why}")
    if done.unplaced:
        print(f"{len(done.unplaced)} of {done.keys} keys have no place: see above", file=sys.stderr)
    return 0
