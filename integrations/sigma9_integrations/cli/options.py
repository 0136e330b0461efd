"""Options that the commands of the integrations share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from sigma9_core.cli.options import add_data_dir


def add_broker(parser: argparse.ArgumentParser) -> None:
    """Add what finds the broker, and who logs in there."""
    group = parser.add_argument_group("the broker")
    group.add_argument("--host", metavar="NAME", help="an external broker (default: the running server's)")
    group.add_argument("--port", type=_port, metavar="PORT", help="default: 1883, with --ca 8883")
    group.add_argument("--username", metavar="NAME", help="the login; on this machine's server a role")
    group.add_argument(
        "--password-env",
        metavar="VARIABLE",
        help="the environment variable that holds the password: others can see a command line",
    )
    group.add_argument("--ca", type=Path, metavar="FILE", help="speak TLS, and trust this authority (ca.crt)")
    group.add_argument("--cert", type=Path, metavar="FILE", help="the client certificate to show")
    group.add_argument("--key", type=Path, metavar="FILE", help="its key")
    group.add_argument("--base-topic", metavar="TOPIC", help="default: the server's, else sigma9")
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the server's configuration (default: SIGMA9_CONFIG, else ./server_config.yaml where it exists)",
    )
    add_data_dir(group)


def add_node(parser: argparse.ArgumentParser) -> None:
    """Add `--node`."""
    parser.add_argument("--node", type=_node, metavar="NODE", help="default: the server's, else main")


def natural(text: str) -> int:
    """Read a number from 1 on; argparse turns the error into a usage message."""
    if not text.isdecimal() or not 1 <= int(text) <= 36500:
        raise argparse.ArgumentTypeError("write a whole number from 1 to 36500")
    return int(text)


def seconds(text: str) -> float:
    """Read a time in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError("write seconds, more than 0 and at most 86400")
    return value


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("write a port from 1 to 65535")
    return int(text)


def _node(text: str) -> str:
    known = "abcdefghijklmnopqrstuvwxyz0123456789_-"
    if not 1 <= len(text) <= 32 or text in ("all", "reply") or any(sign not in known for sign in text):
        raise argparse.ArgumentTypeError(
            "a node has letters from a to z, digits, _ and -, and is not 'all' or 'reply'"
        )
    return text
