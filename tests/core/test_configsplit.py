"""An old single file becomes the two of contract 8."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sigma9_core import log
from sigma9_core.config import ClientSettings, Settings
from sigma9_core.configfile import load_client_settings, load_settings
from sigma9_core.configschema import find
from sigma9_core.configsplit import MOVED, REASONS, split_file
from sigma9_core.errors import ConfigError, StateError
from sigma9_core.plugins import PluginHost

OLD = """\
server:
  host: 0.0.0.0
  port: 9000
  debug: true
  reload: true
  ws_path: /ws/feed
  api_path: /api
  use_ssl: false
ibkr: {host: 127.0.0.1, port: 7496, client_id: 3, readonly: true, timeout: 30, auto_connect: true}
database: {type: duckdb, path: data/old.db, wal_mode: true}
market_data: {db_path: x, initial_load_days: 30}
massive: {enabled: true, base_url: https://x, rate_limit: 7, api_key: "${MASSIVE_API_KEY}"}
strategy: {default: seismograph, hot_reload: true}
risk: {max_position_pct: 8, max_concurrent: 4,
       daily_loss_limit_pct: -3.0, weekly_loss_limit_pct: 9, kelly_fraction: 1}
scheduler: {enabled: true, timezone: America/New_York, market_open_offset_minutes: 20, data_update_time: 16:45}
logging: {level: INFO}
connection: {auto_connect: false, reconnect_interval: 7, max_reconnect_attempts: 10}
gui: {theme: light, window_opacity: 0.9, acrylic_alpha: 150}
chart: {max_bars: 500}
nonsense: 1
"""


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_secrets", set())
    monkeypatch.setattr(log, "_pattern", None)


@pytest.fixture(name="old")
def _old(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(OLD, encoding="utf-8")
    return path


def test_placed(old: Path, tmp_path: Path) -> None:
    """What has a place is where it belongs, and both files load."""
    split_file(old, tmp_path)
    server = load_settings(tmp_path / "server_config.yaml", environ={"MASSIVE_API_KEY": "key"})
    client = load_client_settings(tmp_path / "client_config.yaml", environ={})
    assert (server.server.port, server.server.debug) == (9000, True)
    assert (server.ibkr.port, server.ibkr.client_id, server.ibkr.readonly) == (7496, 3, True)
    assert server.database.path == tmp_path / "data" / "old.db"
    assert (server.polygon.enabled, server.polygon.rate_limit) == (True, 7)
    assert server.polygon.api_key is not None
    assert server.polygon.api_key.get_secret_value() == "key"
    assert server.scheduler.data_update_time == "16:45"
    assert server.plugins.settings == {
        "max_position": {"max_percent_of_equity": 8},
        "max_open": {"max_positions": 4},
        "loss_limit": {"day_percent": 3.0, "week_percent": 9},
    }
    assert (client.server.host, client.server.port, client.server.tls) == ("localhost", 9000, False)
    assert (client.connection.auto_connect, client.connection.reconnect_interval) == (False, 7)
    assert (client.gui.theme, client.gui.window_opacity) == ("light", 0.9)


def test_unplaced(old: Path, tmp_path: Path) -> None:
    """Every key that has no place, or a value that is refused now, is named with its line and the reason."""
    split = split_file(old, tmp_path)
    assert [(where.rpartition(":")[2], path) for where, path, _ in split.unplaced] == [
        ("2", "server.host"),
        ("5", "server.reload"),
        ("9", "ibkr.timeout"),
        ("10", "database.type"),
        ("10", "database.wal_mode"),
        ("11", "market_data.db_path"),
        ("11", "market_data.initial_load_days"),
        ("12", "massive.base_url"),
        ("13", "strategy.default"),
        ("13", "strategy.hot_reload"),
        ("15", "risk.kelly_fraction"),
        ("17", "logging.level"),
        ("18", "connection.max_reconnect_attempts"),
        ("19", "gui.acrylic_alpha"),
        ("20", "chart.max_bars"),
        ("21", "nonsense"),
    ]
    reasons = {path: reason for _, path, reason in split.unplaced}
    assert "server.tls" in reasons["server.host"]
    assert "sqlite or postgresql" in reasons["database.type"]
    assert reasons["nonsense"] == "there is no such setting"


def test_nothing_is_lost(old: Path, tmp_path: Path) -> None:
    """Each key of the old file is either in one of the new ones or named: none disappears."""
    split = split_file(old, tmp_path)
    kept = sum(
        len(yaml.safe_load((tmp_path / name).read_text(encoding="utf-8"))[section] or {})
        for name, section in (("client_config.yaml", "connection"), ("client_config.yaml", "gui"))
    )
    assert kept == 4
    assert split.keys == 42
    assert len(split.unplaced) == 16


def test_never_overwrites(old: Path, tmp_path: Path) -> None:
    """A file that is there is left alone, and so is the other one, unless --force says otherwise."""
    there = tmp_path / "client_config.yaml"
    there.write_text("gui: {theme: dark}", encoding="utf-8")
    with pytest.raises(StateError, match=r"client_config\.yaml would be overwritten.*--force"):
        split_file(old, tmp_path)
    assert there.read_text(encoding="utf-8") == "gui: {theme: dark}"
    assert not (tmp_path / "server_config.yaml").exists()
    split_file(old, tmp_path, force=True)
    assert "light" in there.read_text(encoding="utf-8")


def test_private_and_tidy(old: Path, tmp_path: Path) -> None:
    """The new files are for their owner alone, and no trial is left behind."""
    split_file(old, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "settings.yaml",
        "server_config.yaml",
        "client_config.yaml",
    }
    for name in ("server_config.yaml", "client_config.yaml"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_never_reads_what_it_writes(tmp_path: Path) -> None:
    """Splitting server_config.yaml in its own folder is refused, even with --force."""
    path = tmp_path / "server_config.yaml"
    path.write_text("node: x", encoding="utf-8")
    with pytest.raises(StateError, match="--out"):
        split_file(path, tmp_path, force=True)
    assert path.read_text(encoding="utf-8") == "node: x"


@pytest.mark.parametrize("text", ["a: [1", "- x", "", "a: 1\na: 2"])
def test_unreadable(tmp_path: Path, text: str) -> None:
    """An old file that can't be read is a ConfigError, and nothing is written."""
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        split_file(path, tmp_path)
    with pytest.raises(ConfigError):
        split_file(tmp_path / "nowhere.yaml", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


def test_new_style_lists(tmp_path: Path) -> None:
    """Keys that are the same today keep their lists and free settings."""
    path = tmp_path / "settings.yaml"
    path.write_text(
        "risk: [{plugin: max_open, config: {max_positions: 2}}]\nsizer: {plugin: kelly, config: {a: {b: 1}}}\n"
        "scanners: [{plug: x}]\nserver: {token: mine}\n",
        encoding="utf-8",
    )
    split = split_file(path, tmp_path)
    server = load_settings(tmp_path / "server_config.yaml", environ={})
    assert server.risk[0].config == {"max_positions": 2}
    assert server.sizer.config == {"a": {"b": 1}}
    assert {path for _, path, _ in split.unplaced} == {"scanners"}
    client = load_client_settings(tmp_path / "client_config.yaml", environ={})
    assert client.server.token is not None


def test_the_tables_are_true() -> None:
    """Whatever moved has a place today, in the plugins' own models as well; what has none is not in the models."""
    host = PluginHost(Settings().plugins)
    host.load()
    for place in MOVED.values():
        name, _, path = place.partition(":")
        parts = tuple(path.split("."))
        assert find(Settings if name == "server" else ClientSettings, parts) is not None
        if parts[:2] == ("plugins", "settings"):
            assert parts[3] in host.factories("risk")[parts[2]].config.model_fields
    for old in REASONS:
        parts = tuple(old.split("."))
        assert find(Settings, parts) is None
        assert find(ClientSettings, parts) is None
