"""Options that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

FORMATS: Final = ("table", "json", "csv")


def add_server_file(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and `--set`: the server's settings."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the server's configuration (default: SIGMA9_CONFIG, else ./server_config.yaml where it exists)",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, such as server.port=9000 or risk.0.config.limit=500; may be repeated",
    )


class _DataDir(argparse.Action):
    """Keeps `--data-dir FOLDER` as the setting that it is short for; it starts at the current folder."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        import json

        path = str(Path(str(values)).expanduser().absolute()).replace("${", "$${")
        namespace.overrides = [*namespace.overrides, f"data_dir={json.dumps(path)}"]


def add_own_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add `--data-dir` to what runs an engine: short for `--set data_dir=FOLDER`."""
    parser.add_argument(
        "--data-dir",
        action=_DataDir,
        default=argparse.SUPPRESS,
        metavar="FOLDER",
        help="where its data are (default: SIGMA9_DATA_DIR, else the configuration's data_dir, else ./data)",
    )


def add_server_address(parser: argparse.ArgumentParser) -> None:
    """Add what finds the running server."""
    group = parser.add_argument_group("the server")
    group.add_argument("--url", metavar="URL", help="where it is, such as http://trader:8000 (or SIGMA9_URL)")
    group.add_argument("--token", metavar="TOKEN", help="better SIGMA9_TOKEN: others can see a command line")
    group.add_argument(
        "--client-config", type=Path, metavar="FILE", help="default: ./client_config.yaml where it exists"
    )
    add_data_dir(group)


def add_data_dir(parser: argparse._ActionsContainer) -> None:
    """Add `--data-dir`: the data folder of this machine's server."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        help="the data folder of this machine's server; where it is named, here or by SIGMA9_DATA_DIR, only the "
        "server that runs on it is meant (default: the configuration's)",
    )


def add_format(parser: argparse.ArgumentParser, formats: tuple[str, ...] = FORMATS) -> None:
    """Add `--format`; json and csv print nothing else on stdout."""
    parser.add_argument("--format", choices=formats, default=formats[0], help=f"default: {formats[0]}")


def data_dir_of(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Path:
    """Tell the data folder that the options, the environment or the configuration name."""
    from sigma9_core.configfile import find_data_dir

    given: Path | None = args.data_dir
    if given is not None:
        return given.expanduser().absolute()
    return find_data_dir(getattr(args, "config", None), environ)


def data_dir_named(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> str | None:
    """Tell what names the data folder outright: `--data-dir` or `SIGMA9_DATA_DIR`.

    None where nobody has: it is the configuration's, or the default. A folder that is named outright is meant: a
    command goes to the server that runs on it, or nowhere.
    """
    if args.data_dir is not None:
        return "--data-dir"
    environ = os.environ if environ is None else environ
    return "SIGMA9_DATA_DIR" if environ.get("SIGMA9_DATA_DIR", "").strip() else None
