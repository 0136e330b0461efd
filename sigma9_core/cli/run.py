"""`sigma9 run`: the server."""

from __future__ import annotations

import argparse

from sigma9_core.cli.frame import STARTED
from sigma9_core.cli.options import add_own_data_dir, add_server_file


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `run`."""
    parser = subparsers.add_parser("run", help="run the server", description="Run the server until Ctrl-C.")
    add_server_file(parser)
    add_own_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Read the settings and hand over to the process around the engine; logging stands before it."""
    from sigma9_core.log import Logging
    from sigma9_core.plugincheck import read_checked

    logging = Logging(background=True)
    logging.start()
    try:
        loaded = read_checked(args.config, args.overrides)
        logging.set_debug(on=loaded.settings.server.debug)
        from sigma9_core.serve import run_server

        return run_server(loaded, STARTED, logging)
    finally:
        logging.stop()
