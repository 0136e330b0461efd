"""The service `mqtt`: the embedded broker where the configuration wants one, and the node's connections."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sigma9_core.config import MqttTls
from sigma9_core.contracts import PluginContext, Server
from sigma9_core.errors import ConfigError, Fault
from sigma9_integrations.broker.accounts import access
from sigma9_integrations.broker.note import BrokerNote, remove_note, write_note
from sigma9_integrations.tasks import end

if TYPE_CHECKING:
    from sigma9_integrations.broker.embedded import EmbeddedBroker
    from sigma9_integrations.mqtt.connection import Endpoint
    from sigma9_integrations.mqtt.node import Node

_LOG = logging.getLogger("sigma9.mqtt")

FOLDER = "mqtt"
"""The folder below the data folder with the embedded broker's passwords and configuration."""


class MqttService:
    """Runs the MQTT side of a server."""

    def __init__(self, context: PluginContext) -> None:
        self._context = context
        self._server: Server | None = None
        self._broker: EmbeddedBroker | None = None
        self._node: Node | None = None
        self._starting: asyncio.Task[None] | None = None

    async def start(self, server: Server) -> None:
        """Start the embedded broker and connect; return once the node is online or has begun to try.

        Raise ConfigError where another server is online as the same node, EmbeddedBrokerError where no broker
        starts.
        """
        if not server.settings.mqtt.enabled:
            server.report_mqtt("disabled")
            return
        self._starting = asyncio.create_task(self._start(server), name="mqtt-start")
        try:
            await self._starting
        except BaseException:
            await self.stop()
            raise

    async def _start(self, server: Server) -> None:
        settings = server.settings.mqtt
        self._server = server
        server.report_mqtt("disconnected")
        # aiomqtt takes 70 ms to import: meanwhile the broker starts.
        importing = asyncio.create_task(
            asyncio.to_thread(importlib.import_module, "sigma9_integrations.mqtt.node")
        )
        try:
            if settings.broker == "embedded":
                await self._start_broker(server)
            else:
                scheme = "mqtt" if settings.tls == MqttTls() else "mqtts"
                server.announce(f"MQTT  {scheme}://{settings.host}:{settings.port} (external)")
            self._write_note()
        finally:
            await importing
        from sigma9_integrations.mqtt.node import Node  # noqa: PLC0415 - see above
        from sigma9_integrations.mqtt.outbox import Outbox  # noqa: PLC0415

        self._node = Node(server, self._endpoint, Outbox(self._context.data_dir), look_first=self._broker is None)
        await self._node.start()

    async def stop(self) -> None:
        """Publish `offline`, disconnect, end the embedded broker: within 3 s, whatever the broker does."""
        starting, self._starting = self._starting, None
        if starting is not None and not starting.done():  # another part's start has failed meanwhile
            await end(starting)
        node, self._node = self._node, None
        broker, self._broker = self._broker, None
        try:
            if node is not None:
                await node.stop()
        finally:
            if broker is not None:
                await broker.stop()
            if self._folder is not None:
                remove_note(self._folder)
            if self._server is not None:
                self._server.report_mqtt("disconnected")

    async def _start_broker(self, server: Server) -> None:
        from sigma9_integrations.broker.embedded import HOST, EmbeddedBroker  # noqa: PLC0415 - only where it is wanted

        settings = server.settings
        if settings.mqtt.host not in (HOST, "localhost"):
            _LOG.warning(
                "mqtt.host is %s, but the embedded broker listens on loopback only: for other machines run a "
                "broker of your own with mosquitto.conf, and set mqtt.broker to external",
                settings.mqtt.host,
            )
        if settings.mqtt.username is not None:
            _LOG.warning("mqtt.username is for an external broker: the embedded one has logins of its own")
        base = settings.mqtt.base_topic
        rules = access(base, settings.home_assistant.prefix, server.specs)
        broker = EmbeddedBroker(
            self._folder, settings.mqtt.port, base, rules, announce=server.announce, on_ready=self._broker_is_back
        )
        await broker.start()
        self._broker = broker
        if broker.kind == "amqtt":
            if settings.mqtt.protocol == "5":
                message = "the embedded amqtt speaks MQTT 3.1.1 only: install Mosquitto, or set it to auto"
                raise ConfigError([Fault("server_config.yaml", "mqtt.protocol", message)])
            _LOG.warning(
                "no Mosquitto on this machine: the embedded amqtt takes its place, for MQTT 3.1.1 clients on one "
                "machine; install Mosquitto for Home Assistant, MQTT 5 and load"
            )

    @property
    def _folder(self) -> Path | None:
        return None if self._context.data_dir is None else self._context.data_dir / FOLDER

    def _write_note(self) -> None:
        """Tell this machine's command line where the broker is; it goes on without where the disk is full."""
        folder, server = self._folder, self._server
        if folder is None or server is None:
            return
        settings, broker = server.settings, self._broker
        files = settings.mqtt.tls.model_dump(mode="json", exclude_none=True) if broker is None else {}
        note = BrokerNote(
            "external" if broker is None else broker.kind,
            settings.mqtt.host if broker is None else broker.host,
            settings.mqtt.port if broker is None else broker.port,
            settings.mqtt.base_topic,
            settings.home_assistant.prefix,
            settings.node,
            os.getpid(),
            {name: str(Path(path).absolute()) for name, path in files.items()},
        )
        try:
            write_note(folder, note)
        except OSError as error:
            _LOG.warning(
                "%s can't be written (%s): `sigma9 mqtt` does not find the broker by itself", folder, error
            )

    def _broker_is_back(self) -> None:
        self._write_note()
        if self._node is not None:
            self._node.hurry()

    def _endpoint(self) -> Endpoint:
        """Give the broker's present address."""
        from sigma9_integrations.mqtt.connection import Endpoint  # noqa: PLC0415 - it brings aiomqtt

        if self._broker is not None:
            broker = self._broker
            password = broker.passwords["sigma9"]
            return Endpoint(broker.host, broker.port, "sigma9", password, is_amqtt=broker.kind == "amqtt")
        settings = (self._server or self._context).settings.mqtt
        secret = None if settings.password is None else settings.password.get_secret_value()
        return Endpoint(settings.host, settings.port, settings.username, secret, settings.tls)
