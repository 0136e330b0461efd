"""The two configuration files of contract 8: their models; `configfile.py` reads them and names every fault."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from sigma9_core.models import Frozen

Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 lets the system choose a free one (for tests)."""
NodeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,32}$")]
Topic = Annotated[str, StringConstraints(pattern=r"^[^+#\x00/]+(/[^+#\x00/]+)*$")]
Clockface = Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]


class ServerTls(Frozen):
    """`server.tls`: the certificate that the web server shows."""

    cert: Path | None = None
    key: Path | None = None


class ServerSettings(Frozen):
    """`server`: REST and WebSocket."""

    host: str = "127.0.0.1"
    port: Port = 8000
    debug: bool = False
    allowed_origins: tuple[str, ...] = ()
    ws_queue: Annotated[int, Field(ge=10)] = 1000
    tls: ServerTls = ServerTls()
    insecure: bool = False


class AuthSettings(Frozen):
    """`auth`: a fixed admin token, for containers and tests."""

    token: SecretStr | None = None


class MqttTls(Frozen):
    """`mqtt.tls`: the CA to trust and the client certificate to show."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


class MqttSettings(Frozen):
    """`mqtt`: the broker that the server lives on."""

    enabled: bool = True
    broker: Literal["embedded", "external"] = "embedded"
    host: str = "127.0.0.1"
    port: Port = 1883
    username: str | None = None
    password: SecretStr | None = None
    tls: MqttTls = MqttTls()
    base_topic: Topic = "sigma9"
    protocol: Literal["auto", "5", "3.1.1"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _protocol_text(cls, value: Any) -> Any:
        """Take YAML's number 5 for the text "5"."""
        if isinstance(value, dict) and isinstance(value.get("protocol"), int | float):
            return {**value, "protocol": f"{value['protocol']:g}"}
        return value


class HomeAssistantSettings(Frozen):
    """`home_assistant`: discovery."""

    enabled: bool = True
    prefix: Topic = "homeassistant"
    format: Literal["device", "entity"] = "device"


class SizerSettings(Frozen):
    """`sizer`: which sizer plugin, with its settings."""

    plugin: str = "fixed_fraction"
    config: dict[str, Any] = Field(default_factory=dict)


class InstanceSettings(Frozen):
    """An entry of `scanners`, `risk` or `notifiers`: which plugin runs, under which name, with which settings."""

    plugin: str
    name: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)

    @property
    def instance(self) -> str:
        """Give the instance's name: its own, or the plugin's."""
        return self.name or self.plugin


class PluginSettings(Frozen):
    """`plugins`: folders with plugins, what is switched off, and settings by plugin name."""

    paths: tuple[Path, ...] = ()
    disabled: tuple[str, ...] = ()
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)


class EngineSettings(Frozen):
    """`engine`."""

    auto_start: bool | None = None
    """None: yes on a paper or simulated account, no on a live one."""


class IbkrSettings(Frozen):
    """`ibkr`: the gateway or workstation."""

    host: str = "127.0.0.1"
    port: Port = 7497
    client_id: int = 1
    auto_connect: bool = False
    account: str | None = None
    readonly: bool = False


class DatabaseSettings(Frozen):
    """`database`: the journal's; `url` beats `path`."""

    type: Literal["sqlite", "postgresql"] = "sqlite"
    path: Path = Path("data/sigma9.db")
    url: SecretStr | None = None


class PolygonSettings(Frozen):
    """`polygon`: market data over REST."""

    enabled: bool = False
    api_key: SecretStr | None = None
    rate_limit: Annotated[int, Field(ge=1)] = 5
    """Requests a minute."""


class SchedulerSettings(Frozen):
    """`scheduler`: what happens when, on the market clock."""

    enabled: bool = True
    timezone: str = "America/New_York"
    calendar: str = "XNYS"
    market_open_scan: bool = True
    market_open_offset_minutes: Annotated[int, Field(ge=-240, le=360)] = 15
    daily_data_update: bool = True
    data_update_time: Clockface = "16:30"


class KillSwitchSettings(Frozen):
    """`kill_switch`."""

    flatten: bool = True
    foreign: Literal["leave", "cancel", "flatten"] = "leave"


class DeadManSettings(Frozen):
    """`dead_man`: seconds without a heartbeat, and what follows."""

    timeout: Annotated[float, Field(gt=0)] | None = None
    action: Literal["pause", "halt", "flatten"] = "pause"
    broker_lost: Annotated[float, Field(gt=0)] | None = None


BUILT_IN_RISK: Final = "built_in"
"""As the last entry of `risk`: all the built-in rules that are not listed, with their defaults."""
DEFAULT_RISK = tuple(
    InstanceSettings(plugin=name)
    for name in (
        "max_order_quantity",
        "max_order_value",
        "price_collar",
        "max_position",
        "max_exposure",
        "concentration",
        "max_open",
        "loss_limit",
        "order_rate",
        "repeated_execution",
        "duplicate_order",
        "instruments",
        "session",
        "buying_power",
        "account_guard",
        "signal_age",
        "reference_data",
        "slippage_watch",
        "loss_streak",
        "self_trade",
        "day_trades",
        "short_sales",
        "halts",
        "clock",
        "feed_health",
    )
)
"""The built-in risk rules R1 to R25, each with its defaults, where `risk` is absent."""


class Settings(Frozen):
    """`server_config.yaml`."""

    node: NodeName = "main"
    data_dir: Path = Path("data")
    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    mqtt: MqttSettings = MqttSettings()
    home_assistant: HomeAssistantSettings = HomeAssistantSettings()
    broker: str = "paper"
    feed: str = "simulated"
    sizer: SizerSettings = SizerSettings()
    scanners: tuple[InstanceSettings, ...] = (InstanceSettings(plugin="seismograph"),)
    risk: tuple[InstanceSettings, ...] = DEFAULT_RISK
    notifiers: tuple[InstanceSettings, ...] = (InstanceSettings(plugin="console"),)
    plugins: PluginSettings = PluginSettings()
    engine: EngineSettings = EngineSettings()
    ibkr: IbkrSettings = IbkrSettings()
    database: DatabaseSettings = DatabaseSettings()
    polygon: PolygonSettings = PolygonSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    kill_switch: KillSwitchSettings = KillSwitchSettings()
    dead_man: DeadManSettings = DeadManSettings()

    @field_validator("risk")
    @classmethod
    def _whole_set(cls, listed: tuple[InstanceSettings, ...]) -> tuple[InstanceSettings, ...]:
        """Put the built-in rules that are not listed in the place of a last entry `built_in`."""
        names = [entry.plugin for entry in listed]
        if BUILT_IN_RISK not in names:
            return listed
        if names.index(BUILT_IN_RISK) != len(names) - 1:
            raise ValueError(f"{BUILT_IN_RISK} stands for all the other built-in rules: it must be the last entry")
        if listed[-1].name is not None or listed[-1].config:
            raise ValueError(f"{BUILT_IN_RISK} takes no name and no config: list the rule that you want to change")
        return (*listed[:-1], *(entry for entry in DEFAULT_RISK if entry.plugin not in names))

    @model_validator(mode="after")
    def _sense(self) -> Settings:
        if self.node in ("all", "reply"):
            raise ValueError(f"node: '{self.node}' is reserved; choose another name")
        if self.feed in ("simulated", "replay") and self.broker != "paper":
            raise ValueError(
                f"broker: a {self.feed} feed goes with the paper broker alone, not with '{self.broker}': "
                "orders would be made on prices that do not exist"
            )
        return self


class ClientServerSettings(Frozen):
    """`server` of `client_config.yaml`: where the server is."""

    host: str = "localhost"
    port: Port = 8000
    ws_path: str = "/ws/feed"
    api_path: str = "/api"
    token: SecretStr | None = None
    tls: bool = False


class ConnectionSettings(Frozen):
    """`connection` of `client_config.yaml`."""

    auto_connect: bool = True
    reconnect_interval: Annotated[float, Field(gt=0)] = 5
    timeout: Annotated[float, Field(gt=0)] = 30


class GuiSettings(Frozen):
    """`gui` of `client_config.yaml`."""

    theme: Literal["dark", "light"] = "dark"
    window_opacity: Annotated[float, Field(ge=0.1, le=1)] = 0.95


class ClientSettings(Frozen):
    """`client_config.yaml`."""

    server: ClientServerSettings = ClientServerSettings()
    connection: ConnectionSettings = ConnectionSettings()
    gui: GuiSettings = GuiSettings()
