"""amqtt as the embedded broker: its settings, and the program that runs in the child process.

`python -m sigma9_integrations.broker.amqtt_child SETTINGS`, a JSON file with `host`, `port`, `passwords` (hashed,
by role) and `access` (`read` and `write` filters by role). What it says goes to standard error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sigma9_integrations.broker.accounts import Access, Role, hash_password
from sigma9_integrations.broker.files import write_private

SETTINGS_FILE: Final = "amqtt.json"
MODULE: Final = "sigma9_integrations.broker.amqtt_child"
PLUGINS: Final = ("sigma9_integrations.broker.amqtt_roles.Login", "sigma9_integrations.broker.amqtt_roles.Topics")


def command(
    folder: Path, host: str, port: int, passwords: Mapping[Role, str], rules: Mapping[Role, Access]
) -> list[str]:
    """Write the settings into `folder` and give the command line."""
    settings = {
        "host": host,
        "port": port,
        "passwords": {role: hash_password(password) for role, password in passwords.items()},
        "access": {role: {"read": rule.read, "write": rule.write} for role, rule in rules.items()},
    }
    path = folder / SETTINGS_FILE
    write_private(path, json.dumps(settings, indent=2), durable=False)
    return [sys.executable, "-P", "-m", MODULE, str(path)]


async def serve(settings: Mapping[str, Any]) -> None:
    """Run the broker until the process is ended."""
    from amqtt.broker import Broker as Plain  # noqa: PLC0415 - the server imports this module, not all of amqtt

    class Broker(Plain):  # type: ignore[misc]
        """amqtt 0.12.1 sends a client that connects the retained messages of everybody's subscriptions.

        A client that publishes and leaves at once, such as a kill by `mosquitto_pub`, then closes with those
        unread, and its message is lost with the connection. Here only a subscriber gets them.
        """

        async def _publish_retained_messages_for_subscription(self, subscription: Any, session: Any) -> None:
            subscribers = self._subscriptions.get(subscription[0], [])
            if any(each.client_id == session.client_id for each, _qos in subscribers):
                await super()._publish_retained_messages_for_subscription(subscription, session)

    roles = {"passwords": settings["passwords"], "access": settings["access"]}
    bind = f"{settings['host']}:{settings['port']}"
    broker = Broker(
        {"listeners": {"default": {"type": "tcp", "bind": bind}}, "plugins": dict.fromkeys(PLUGINS, roles)}
    )
    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
