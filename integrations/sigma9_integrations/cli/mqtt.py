"""`sigma9 mqtt`: set a broker up, follow what is said on one, send a command over it."""

from __future__ import annotations

import argparse
from pathlib import Path

from sigma9_core.cli.options import add_format
from sigma9_integrations.cli.options import add_broker, add_node, natural, seconds


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mqtt`, and below it `setup`, `watch` and `send`."""
    parser = subparsers.add_parser(
        "mqtt",
        help="set a broker up, follow its topics, send a command over it",
        description="Tools for MQTT. `watch` and `send` use the broker of this machine's running server, another "
        "one with --host, or the external one of the server's configuration.",
    )
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    setup = actions.add_parser(
        "setup",
        help="make passwords, access file, certificates and mosquitto.conf for a broker of your own",
        description="Make what Mosquitto needs for Sigma9 in a folder, and say what to do next. What is there "
        "stays valid: passwords and the authority are kept unless --force is given, certificates that end within "
        "30 days are renewed.",
    )
    setup.add_argument("folder", type=Path, metavar="FOLDER", help="such as /etc/mosquitto/sigma9")
    setup.add_argument("--base-topic", default="sigma9", metavar="TOPIC", help="mqtt.base_topic (default: sigma9)")
    setup.add_argument(
        "--prefix", default="homeassistant", metavar="TOPIC", help="home_assistant.prefix (default: homeassistant)"
    )
    setup.add_argument(
        "--tls", action="store_true", help="make a private authority and certificates too, and the TLS listeners"
    )
    setup.add_argument(
        "--host",
        dest="hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or address by which clients reach the broker; may be repeated (this machine's own name, "
        "localhost, 127.0.0.1 and ::1 are always there)",
    )
    setup.add_argument("--days", type=natural, metavar="N", help="how long certificates hold (default: 825)")
    setup.add_argument(
        "--force", action="store_true", help="make new passwords and a new authority: every client needs them"
    )

    watch = actions.add_parser(
        "watch",
        help="follow topics as they are published",
        description="Print each message as one line until Ctrl-C: time (wall time), topic, payload. What the "
        "broker had stored comes first and is marked (retained).",
    )
    watch.add_argument(
        "filter", nargs="?", metavar="FILTER", help="a topic filter (default: everything of Sigma9)"
    )
    watch.add_argument("--json", action="store_true", help="one JSON object a line")
    watch.add_argument("--full", action="store_true", help="whole payloads, however long")
    watch.add_argument("--count", type=natural, metavar="N", help="end after N messages")
    add_broker(watch)

    send = actions.add_parser(
        "send",
        help="send a command over MQTT and show its answer",
        description="Publish a command to a node and wait for its answer; the command is never retained. "
        "Exit codes: 0 done, 1 refused, 2 wrong usage, 3 no broker or no answer.",
    )
    send.add_argument("name", metavar="NAME", help="the command, such as scan; docs/mqtt.md lists them")
    send.add_argument(
        "json", nargs="?", metavar="JSON", help='its arguments, such as \'{"symbol": "BEME"}\' (an id is made)'
    )
    send.add_argument(
        "--all", dest="everybody", action="store_true", help="to every node on the broker (TOPIC/all/command/NAME)"
    )
    send.add_argument(
        "--timeout", type=seconds, default=30.0, metavar="SECONDS", help="how long to wait (default: 30)"
    )
    add_node(send)
    add_broker(send)
    add_format(send, ("table", "json"))


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    if args.action == "setup":
        from sigma9_integrations.cli.setup import setup

        return setup(args)
    if args.action == "watch":
        from sigma9_integrations.cli.watch import watch

        return watch(args)
    from sigma9_integrations.cli.send import send

    return send(args)
