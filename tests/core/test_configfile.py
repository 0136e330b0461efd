"""The two configuration files: every fault with its place, overrides, variables, paths and secrets."""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from sigma9_core import calendar_names, log
from sigma9_core.config import DEFAULT_RISK, ClientSettings, Settings
from sigma9_core.configfile import (
    find_config,
    find_data_dir,
    load_client_settings,
    load_settings,
    masked,
    read_settings,
    secrets_of,
)
from sigma9_core.configschema import find, shapes
from sigma9_core.errors import ConfigError, Fault
from sigma9_core.log import redacted

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log, "_secrets", set())
    monkeypatch.setattr(log, "_pattern", None)
    monkeypatch.setattr(
        calendar_names, "installed_names", lambda: frozenset(calendar_names.NAMES)
    )  # saves a child


def write(text: str, name: str = "server_config.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def load(text: str, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Settings:
    return load_settings(write(text), overrides, environ or {})


def faults_of(
    text: str | None, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> list[Fault]:
    path = None if text is None else write(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, overrides, environ or {})
    return list(caught.value.faults)


def only(faults: Sequence[Fault]) -> Fault:
    assert len(faults) == 1, [str(fault) for fault in faults]
    return faults[0]


# --- what is read ---------------------------------------------------------------------------------------------


def test_no_file_means_defaults(tmp_path: Path) -> None:
    """Without a file there are the defaults, and paths start at the current folder."""
    found = load_settings(environ={})
    assert found.data_dir == tmp_path / "data"
    assert found.database.path == tmp_path / "data" / "sigma9.db"
    assert found.model_copy(update={"data_dir": Path("data"), "database": Settings().database}) == Settings()


def test_the_usual_file_is_found() -> None:
    """./server_config.yaml is read where it exists, and SIGMA9_CONFIG names another one."""
    write("node: usual")
    write("node: other", "elsewhere/conf.yaml")
    assert load_settings(environ={}).node == "usual"
    assert load_settings(environ={"SIGMA9_CONFIG": "elsewhere/conf.yaml"}).node == "other"
    assert find_config(Path("x"), {"SIGMA9_CONFIG": "y"}) == Path("x")


def test_empty_files_and_sections() -> None:
    """An empty file, a file of comments and a section whose keys are all comments mean the defaults."""
    for text in ("", "# nothing\n", "---\n", "server:\n  # port: 9\nmqtt:\nsizer:\n  config:\n"):
        assert load(text).server == Settings().server


def test_types_that_are_easy_on_people() -> None:
    """What YAML 1.1 would twist is taken as it was meant: times of day, old flags, the MQTT version."""
    found = load(
        "scheduler: {data_update_time: 16:45}\nserver: {debug: on}\nmqtt: {protocol: 5}\ndead_man: {timeout: 30}"
    )
    assert found.scheduler.data_update_time == "16:45"
    assert found.server.debug is True
    assert found.mqtt.protocol == "5"
    assert found.dead_man.timeout == 30.0


def test_a_plugins_own_settings_are_taken_as_they_are() -> None:
    """The settings of plugins are free: any key, any value, nested."""
    found = load("risk: [{plugin: x, config: {limit: 5, names: [a, 'b'], deep: {on: yes}}}]")
    assert found.risk[0].config == {"limit": 5, "names": ["a", "b"], "deep": {"on": "yes"}}


# --- faults ---------------------------------------------------------------------------------------------------


def test_every_fault_in_one_message() -> None:
    """One ConfigError lists every fault with file, line and dotted path: the file's by line, then the others."""
    text = """\
nod: main
node: all
server:
  port: 99999
  port: 1
  debug: maybe
mqtt: {password: "${NOPE}", broker: extern}
risk:
  - {plugin: max_open, confg: {}}
  - {name: x}
  - 5
feed: replay
broker: ibkr
scheduler: {timezone: Mars/Olympus}
"""
    faults = faults_of(text, ["server.prot=1", "x"], {"SIGMA9_DATABASE__TYPE": "oracle"})
    assert [(fault.where, fault.path) for fault in faults] == [
        ("server_config.yaml:1", "nod"),
        ("server_config.yaml:2", "node"),
        ("server_config.yaml:4", "server.port"),
        ("server_config.yaml:5", "server.port"),
        ("server_config.yaml:6", "server.debug"),
        ("server_config.yaml:7", "mqtt.password"),
        ("server_config.yaml:7", "mqtt.broker"),
        ("server_config.yaml:9", "risk.0.confg"),
        ("server_config.yaml:10", "risk.1.plugin"),
        ("server_config.yaml:11", "risk.2"),
        ("server_config.yaml:13", "broker"),
        ("server_config.yaml:14", "scheduler.timezone"),
        ("the variable SIGMA9_DATABASE__TYPE", "database.type"),
        ("the option --set server.prot", "server.prot"),
        ("the option --set", ""),
    ]
    messages = {fault.path: fault.message for fault in faults}
    assert "'node'" in messages["nod"]
    assert "reserved" in messages["node"]
    assert "embedded or external" in messages["mqtt.broker"]
    assert "'port'" in messages["server.prot"]
    assert "is required" in messages["risk.1.plugin"]


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("server: {port: abc}", "server.port", "whole number, not 'abc'"),
        ("server: {port: '80'}", "server.port", "whole number"),
        ("server: {port: true}", "server.port", "whole number"),
        ("server: {port: 1.0}", "server.port", "whole number"),
        ("server: {port: }", "server.port", "not empty"),
        ("server: {port: [1]}", "server.port", "whole number, not a list"),
        ("server: {port: -1}", "server.port", "greater than or equal to 0"),
        ("server: {debug: 1}", "server.debug", "true or false"),
        ("server: {host: 5}", "server.host", "put '5' in quotes"),
        ("server: {host: [a]}", "server.host", "text, not a list"),
        ("server: 5", "server", "keys and values, not '5'"),
        ("risk: {a: 1}", "risk", "a list, not keys and values"),
        ("risk: ", "risk", "a list, not empty"),
        ("scanners: [{plugin: x, config: 5}]", "scanners.0.config", "keys and values"),
        ("server: {allowed_origins: [5]}", "server.allowed_origins.0", "in quotes"),
        ("node: Main", "node", "a-z"),
        ("node: all", "node", "reserved"),
        ("mqtt: {base_topic: a/#}", "mqtt.base_topic", "topic"),
        ("dead_man: {timeout: .inf}", "dead_man.timeout", "a number"),
        ("dead_man: {timeout: 0}", "dead_man.timeout", "greater than 0"),
        ("data_dir: ''", "data_dir", "path"),
        ("data_dir: ~nobody-of-that-name/x", "data_dir", "path"),
        ('node: "a\\x07"', "node", "control"),
        ("kill_switch: {foreign: keep}", "kill_switch.foreign", "leave, cancel or flatten"),
        ("scheduler: {data_update_time: 25:00}", "scheduler.data_update_time", "time of day"),
        ("scheduler: {calendar: XNYZ}", "scheduler.calendar", "not 'XNYZ'; did you mean 'XNYS'?"),
        ("scheduler: {calendar: xnys}", "scheduler.calendar", "not 'xnys'; did you mean 'XNYS'?"),
        ("scheduler: {timezone: America/Newyork}", "scheduler.timezone", "did you mean 'America/New_York'?"),
        ("server: {zzz: 1}", "server.zzz", "known here: allowed_origins, debug, host,"),
        ("massive: {enabled: true}", "massive", "config split"),
        ("gui: {theme: dark}", "gui", "belongs in client_config.yaml"),
        ("server: {token: x}", "server.token", "belongs in client_config.yaml"),
        ("auth: {token: ''}", "auth.token", "not empty"),
        ("auth: {token: 'a b'}", "auth.token", "without blanks"),
        ("mqtt: {password: x}", "mqtt.password", "mqtt.username"),
        ("mqtt: {tls: {ca: nowhere.pem}}", "mqtt.tls.ca", "a file that is there, not /"),
        ("server: {tls: {key: /dev/null}}", "server.tls.key", "certificate"),
        ("server: {host: 0.0.0.0}", "server.host", "server.tls"),
        ("database: {type: postgresql}", "database.type", "database.url"),
        ("polygon: {enabled: true}", "polygon.enabled", "polygon.api_key"),
        ("feed: replay\nbroker: ibkr", "broker", "paper"),
        ("plugins: {paths: [nowhere]}", "plugins.paths.0", "a folder or a plugin's .py file that is there, not /"),
        (
            "scanners: [{plugin: a}, {plugin: b, name: a}]",
            "scanners.1.name",
            "a name of its own, not 'a' like entry 0",
        ),
        ("- a", "", "keys and values"),
        ("just words", "", "keys and values"),
    ],
)
def test_one_fault(text: str, path: str, words: str) -> None:
    """Each kind of mistake is one fault, at its dotted path, in a sentence that says what must be there."""
    fault = only(faults_of(text))
    assert fault.path == path
    assert words in fault.message


@pytest.mark.parametrize("name", ["XNYS", "NYSE", "XTKS", "24/7"])
def test_calendars_that_there_are(name: str) -> None:
    """Every exchange that exchange_calendars knows may be named, by an alias as well."""
    assert load(f"scheduler: {{calendar: '{name}'}}").scheduler.calendar == name


def test_a_part_that_is_no_yaml_hides_nothing_else() -> None:
    """Every broken part is told, and the faults of all others; what the broken ones mean is not guessed."""
    text = """\
node: all
server:
  host: 0.0.0.0
  tls: {cert: null
mqtt
ibkr:
\tport: 1
database: {type: postgresql}
feed: *live
polygon: {enabled: true}
"""
    assert [(fault.where, fault.path) for fault in faults_of(text)] == [
        ("server_config.yaml:1", "node"),
        ("server_config.yaml:4", ""),
        ("server_config.yaml:5", ""),
        ("server_config.yaml:7", ""),
        ("server_config.yaml:8", "database.type"),
        ("server_config.yaml:9", ""),
        ("server_config.yaml:10", "polygon.enabled"),
    ]


def test_bool_for_a_number_is_refused() -> None:
    """`port: true` is not port 1."""
    assert only(faults_of("ibkr: {client_id: yes}")).path == "ibkr.client_id"


def test_missing_file() -> None:
    """A file that was named must be there; a folder is no file."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: it can't be read: there is no such file"):
        load_settings(Path("nowhere.yaml"), environ={})
    Path("folder").mkdir()
    with pytest.raises(ConfigError, match="folder: it can't be read"):
        load_settings(Path("folder"), environ={})
    with pytest.raises(ConfigError, match="not the name of a file"):
        load_settings(Path("a\0b"), environ={})


def test_locate() -> None:
    """What was loaded tells where each setting was given, for faults that are found later."""
    loaded = read_settings(write("node: a\nrisk:\n  - plugin: x\n    config:\n      limit: 1\n"), ["feed=x"], {})
    assert loaded.locate("risk.0.config.limit") == "server_config.yaml:5"
    assert loaded.locate("risk.0.config.other") == "server_config.yaml:4"
    assert loaded.locate("feed") == "the option --set feed"
    assert loaded.locate("broker") == "server_config.yaml"


# --- overrides ------------------------------------------------------------------------------------------------


def test_order_of_precedence() -> None:
    """--set beats the variable, the variable beats the file, the file beats the default."""
    environ = {"SIGMA9_SERVER__PORT": "2", "SIGMA9_MQTT__PORT": "2"}
    found = load("server: {port: 1}\nmqtt: {port: 1}\nibkr: {port: 1}", ["server.port=3"], environ)
    assert (found.server.port, found.mqtt.port, found.ibkr.port) == (3, 2, 1)


def test_variables_are_yaml() -> None:
    """Values of variables are YAML where no text is wanted: flags, numbers, null, lists, sections."""
    environ = {
        "SIGMA9_SERVER__DEBUG": "true",
        "SIGMA9_ENGINE__AUTO_START": "null",
        "SIGMA9_SERVER__ALLOWED_ORIGINS": "[http://a, http://b]",
        "SIGMA9_HOME_ASSISTANT": "{enabled: false}",
        "SIGMA9_PLUGINS__SETTINGS__X__Y": "[1, {z: 2}]",
        "SIGMA9_MQTT__PASSWORD": "",
        "SIGMA9_DATA_DIR": "elsewhere",
        "SIGMA9_URL": "http://x",
        "SIGMA9_TOKEN": "y",
    }
    found = load("home_assistant: {prefix: ha}", (), environ)
    assert found.server.debug is True
    assert found.engine.auto_start is None
    assert found.server.allowed_origins == ("http://a", "http://b")
    assert (found.home_assistant.enabled, found.home_assistant.prefix) == (False, "ha")
    assert found.plugins.settings == {"x": {"y": [1, {"z": 2}]}}
    assert found.mqtt.password is None
    assert found.data_dir.name == "elsewhere"


@pytest.mark.parametrize("text", ["12345", "0123", "a: b", "x #y", "*star", "{brace", "true", "!bang", "%", "1e5"])
def test_text_from_outside_is_text(text: str) -> None:
    """A password in a variable is exactly what stands there, whatever YAML would make of it."""
    found = load_settings(
        environ={"SIGMA9_AUTH__TOKEN": "t", "SIGMA9_MQTT__USERNAME": "u", "SIGMA9_MQTT__PASSWORD": text}
    )
    assert found.mqtt.password == SecretStr(text)


def test_quotes_from_outside() -> None:
    """Quotes around an override are YAML's, so that blanks and the word null can be written."""
    assert load_settings(overrides=["ibkr.account='null'"], environ={}).ibkr.account == "null"
    assert load_settings(overrides=["ibkr.account=null"], environ={}).ibkr.account is None


def test_list_entries() -> None:
    """An entry of a list is set by its number, also in the default risk rules, and one can be added."""
    found = load_settings(overrides=["risk.1.config.limit=500", "scanners.1.plugin=extra"], environ={})
    assert [rule.plugin for rule in found.risk] == [rule.plugin for rule in DEFAULT_RISK]
    assert found.risk[1].config == {"limit": 500}
    assert [scanner.plugin for scanner in found.scanners] == ["seismograph", "extra"]
    deep = load("risk: [{plugin: x, config: {a: [1, 2]}}]", ["risk.0.config.a.1=5"])
    assert deep.risk[0].config == {"a": [1, 5]}
    by_variable = load("risk: [{plugin: x}]", (), {"SIGMA9_RISK__0__CONFIG__A": "7"})
    assert by_variable.risk[0].config == {"a": 7}


@pytest.mark.parametrize(
    ("option", "path", "words"),
    [
        ("risk.x=1", "risk.x", "by its number"),
        ("risk.30.plugin=x", "risk.30.plugin", "25 entries"),
        ("server.port.x=1", "server.port.x", "no such setting"),
        ("server=", "server", "not empty"),
        ("server=5", "server", "keys and values"),
        ("server.port=[", "server.port", "not YAML"),
        ("server.port=x", "server.port", "whole number"),
        ("=5", "", "KEY=VALUE"),
        ("server.port", "", "KEY=VALUE"),
        ("server..port=1", "server.", "no such setting"),
    ],
)
def test_wrong_options(option: str, path: str, words: str) -> None:
    """A wrong --set is a fault that names the option."""
    fault = only(faults_of(None, [option]))
    assert fault.where.startswith("the option --set")
    assert fault.path == path
    assert words in fault.message


def test_unknown_variable() -> None:
    """A SIGMA9_ variable that is no setting is a fault that names it, with what was perhaps meant."""
    fault = only(faults_of(None, (), {"SIGMA9_SERVER__PROT": "1"}))
    assert fault.where == "the variable SIGMA9_SERVER__PROT"
    assert "did you mean 'port'" in fault.message


def test_variables_of_the_other_file() -> None:
    """A variable for the client's file does not disturb the server, nor the other way round."""
    environ = {"SIGMA9_CONNECTION__TIMEOUT": "3", "SIGMA9_MQTT__PORT": "9", "SIGMA9_SERVER__TLS__CERT": "x"}
    assert load_client_settings(environ=environ).connection.timeout == 3
    assert load_settings(environ={"SIGMA9_CONNECTION__TIMEOUT": "3"}).node == "main"


# --- ${NAME} --------------------------------------------------------------------------------------------------


def test_variables_in_values() -> None:
    """${NAME} is read from the environment, typed by what is wanted there, and $${ stands for itself."""
    environ = {"PW": "0123", "PORT": "9000", "DIR": "d"}
    found = load(
        'mqtt: {username: u, password: "${PW}"}\nserver:\n  port: ${PORT}\n'
        'data_dir: "x/${DIR}"\nplugins: {settings: {p: {a: "$${PW}", b: "${PORT}"}}}\nibkr: {port: "${PORT}"}',
        ["auth.token=${PW}"],
        environ,
    )
    assert found.mqtt.password == SecretStr("0123")
    assert found.server.port == found.ibkr.port == 9000
    assert found.data_dir == Path.cwd() / "x" / "d"
    assert found.plugins.settings == {"p": {"a": "${PW}", "b": "9000"}}
    assert found.auth.token == SecretStr("0123")


def test_what_comes_from_the_environment_is_not_read_twice() -> None:
    """A ${ inside a variable's value is part of the value."""
    found = load_settings(environ={"SIGMA9_AUTH__TOKEN": "a${B}"})
    assert found.auth.token == SecretStr("a${B}")


@pytest.mark.parametrize("text", ["${NOPE}", "a${}b", "${A-B}", "${A:-x}"])
def test_missing_variables(text: str) -> None:
    """A variable that is not set, or no name, is a fault at the setting."""
    fault = only(faults_of(f"ibkr: {{account: '{text}'}}"))
    assert (fault.where, fault.path) == ("server_config.yaml:1", "ibkr.account")


# --- paths ----------------------------------------------------------------------------------------------------


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    """Relative paths of the file start at its folder, those from outside at the current one."""
    path = write("data_dir: d\nplugins: {paths: [..]}", "conf/server_config.yaml")
    found = load_settings(path, environ={})
    assert found.data_dir == tmp_path / "conf" / "d"
    assert found.plugins.paths == (tmp_path,)
    assert load_settings(path, ["data_dir=d"], {}).data_dir == tmp_path / "d"
    assert load_settings(path, environ={"SIGMA9_DATA_DIR": "e"}).data_dir == tmp_path / "e"
    empty = write("node: x", "conf/other.yaml")
    assert load_settings(empty, environ={}).data_dir == tmp_path / "conf" / "data"


def test_the_database_follows_the_data(tmp_path: Path) -> None:
    """The database lies in data_dir unless its path is given; one inside a data_dir that moves moves with it."""
    assert load("data_dir: d").database.path == tmp_path / "d" / "sigma9.db"
    assert load("data_dir: d\ndatabase: {path: x.db}").database.path == tmp_path / "x.db"
    assert load("data_dir: d\ndatabase: {path: data/sigma9.db}").database.path == tmp_path / "d" / "sigma9.db"
    shipped = "data_dir: data\ndatabase: {path: data/sigma9.db}"
    assert load(shipped, (), {"SIGMA9_DATA_DIR": "/else"}).database.path == Path("/else/sigma9.db")
    assert load(shipped, ["data_dir=/else"]).database.path == Path("/else/sigma9.db")
    fixed = ["data_dir=/else", "database.path=/db/x.db"]
    assert load(shipped, fixed).database.path == Path("/db/x.db")
    outside = "data_dir: data\ndatabase: {path: /var/x.db}"
    assert load(outside, ["data_dir=/else"]).database.path == Path("/var/x.db")


@pytest.mark.parametrize(
    "text",
    ["data_dir: d", "data_dir: d\nserver: {port: broken}", "data_dir: '${D}'", "x: [\ndata_dir: d\ny: *nobody\n"],
)
def test_find_data_dir(tmp_path: Path, text: str) -> None:
    """Clients find the data folder even where the rest of the file is broken."""
    path = write(text, "conf/server_config.yaml")
    assert find_data_dir(path, {"D": "d"}) == tmp_path / "conf" / "d"
    assert find_data_dir(path, {"SIGMA9_DATA_DIR": "other"}) == tmp_path / "other"


def test_find_data_dir_without_a_file(tmp_path: Path) -> None:
    """Without a file, or with one that is not there, the data folder is `data`."""
    assert find_data_dir(None, {}) == tmp_path / "data"
    assert find_data_dir(Path("no/where.yaml"), {}) == tmp_path / "no" / "data"
    for text in ("[]", "data_dir: [1]", "data_dir:", "data_dir: ~nobody-of-that-name"):
        assert find_data_dir(write(text), {}) == tmp_path / "data"


# --- secrets --------------------------------------------------------------------------------------------------

SECRET = "hunter2-and-more"


@pytest.mark.parametrize(
    "text",
    [
        f"auth: {{token: [{SECRET}]}}",
        f"mqtt: {{password: {SECRET}}}",
        f"mqtt: {{password: *{SECRET}}}",
        f"database: {{url: {SECRET}, type: oracle}}",
        f"polygon: {{api_key: {SECRET}, rate_limit: 0}}",
        f"auth: {{token: '{SECRET} x'}}",
        f"auth: {{token: {SECRET}}}\nnode: all",
        'ibkr: {port: "${PW}"}',
        'server: {port: 5, host: "${PW}", debug: "${PW}", tls: {cert: 5}}\nmqtt: {broker: "${PW}"}',
    ],
)
def test_no_secret_in_a_message(text: str) -> None:
    """Faults never repeat a secret, nor anything that came from a variable."""
    faults = faults_of(text, (), {"PW": SECRET, "SIGMA9_MQTT__TLS__CA": "nowhere"})
    assert faults
    assert all(SECRET not in str(fault) for fault in faults)


def test_no_secret_of_a_variable_in_a_message() -> None:
    """A secret in a SIGMA9_ variable or an option is not repeated either."""
    faults = faults_of(None, [f"auth.token={SECRET} x"], {"SIGMA9_MQTT__PASSWORD": SECRET})
    assert {fault.path for fault in faults} == {"auth.token", "mqtt.password"}
    assert all(SECRET not in str(fault) for fault in faults)


def test_a_secret_in_a_wrong_place_is_not_repeated() -> None:
    """What stands where keys with a secret among them belong is masked; what surely is none is shown."""
    assert "'********'" in only(faults_of(f"auth: {SECRET}")).message
    assert only(faults_of(f"auth: {{{SECRET}}}")).path == "auth.********"
    assert only(faults_of(f"auth: {{token={SECRET}: }}")).path == "auth.********"
    assert only(faults_of(f"ibkr: {{token={SECRET}: 1}}")).path == "ibkr.token..."
    assert SECRET not in only(faults_of(f"auth: {{token: '${{{SECRET.replace('-', '_')}}}'}}")).message
    both = faults_of(f"auth: {{token: {SECRET}}}\nibkr: {{port: {SECRET}}}")
    assert only(both).message == "must be a whole number, not '********'"
    assert only(faults_of("ibkr: {port: x}")).message == "must be a whole number, not 'x'"
    assert only(faults_of("ibkr: x")).message == "must be keys and values, not 'x'"


def test_masked() -> None:
    """The effective settings can be shown: secrets masked, those in plugins' own settings by their names."""
    found = load(
        "auth: {token: s1}\nmqtt: {username: u, password: s2}\ndatabase: {url: 'postgresql://u:s3@h/d'}\n"
        "notifiers: [{plugin: mail, config: {smtp: {password: s4, host: h}, api_key: s5}}]"
    )
    text = yaml.safe_dump(masked(found))
    assert not re.search(r"s[1-5]\b", text)
    assert "host: h" in text
    assert sorted(secrets_of(found)) == sorted(["s1", "s2", "postgresql://u:s3@h/d", "s4", "s5"])


def test_loaded_secrets_are_redacted() -> None:
    """From loading on no log line shows a secret of the configuration."""
    load("auth: {token: a-very-secret-token}")
    assert "a-very-secret-token" not in redacted("got a-very-secret-token here")


def test_a_file_that_others_can_read(caplog: pytest.LogCaptureFixture) -> None:
    """A secret in a file that everybody can read is a warning; no secret, or one from a variable, is none."""
    for text, warned in (
        ("auth: {token: abc}", True),
        ('auth: {token: "${T}"}', False),
        ("node: x", False),
        ("notifiers: [{plugin: p, config: {password: abc}}]", True),
    ):
        path = write(text)
        path.chmod(0o644)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load_settings(path, environ={"T": "x"})
        assert bool(caplog.records) is warned
        assert "abc" not in caplog.text
    path = write("auth: {token: abc}")
    caplog.clear()
    load_settings(path, environ={})
    assert not caplog.records


# --- the client's file ----------------------------------------------------------------------------------------


def test_client_file() -> None:
    """A client's file has the same rules."""
    write("server: {host: trader, token: t}\ngui: {theme: light}", "client_config.yaml")
    found = load_client_settings(environ={"SIGMA9_CONNECTION__TIMEOUT": "3"})
    assert (found.server.host, found.gui.theme, found.connection.timeout) == ("trader", "light", 3)
    assert load_client_settings(Path(write("", "empty.yaml")), environ={}) == ClientSettings()


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("auth: {token: x}", "auth", "belongs in server_config.yaml"),
        ("mqtt: {password: x}", "mqtt", "belongs in server_config.yaml"),
        ("server: {debug: true}", "server.debug", "belongs in server_config.yaml"),
        ("server: {hots: x}", "server.hots", "did you mean 'host'"),
        ("server: {api_path: api}", "server.api_path", "begins with /"),
        ("gui: {window_opacity: 2}", "gui.window_opacity", "less than or equal to 1"),
        ("server: {tls: {cert: x}}", "server.tls", "true or false"),
    ],
)
def test_client_faults(text: str, path: str, words: str) -> None:
    """What belongs to the server has no place in a client's file."""
    with pytest.raises(ConfigError) as caught:
        load_client_settings(write(text, "client_config.yaml"), environ={})
    fault = only(caught.value.faults)
    assert (fault.where, fault.path) == ("client_config.yaml:1", path)
    assert words in fault.message


# --- the files that are shipped -------------------------------------------------------------------------------


def test_shipped_server_file() -> None:
    """server_config.yaml names every key with its default."""
    path = ROOT / "server_config.yaml"
    found = load_settings(path, environ={})
    expected = Settings().model_dump()
    expected |= {
        "data_dir": ROOT / "data",
        "database": {**expected["database"], "path": ROOT / "data" / "sigma9.db"},
    }
    expected["scanners"] = ({"plugin": "seismograph", "name": "seismograph", "config": {}},)
    assert found.model_dump() == expected
    text = path.read_text(encoding="utf-8")
    given = yaml.safe_load(text)
    assert list(given) == [name for name in Settings.model_fields if name != "risk"]
    for section, values in given.items():
        shape = find(Settings, (section,))
        if shape is not None and shape.model is not None:
            assert set(values) == set(shapes(shape.model)), section
    risk = yaml.safe_load("\n".join(line[2:] for line in text.splitlines() if re.match(r"# (risk:|  - \{)", line)))
    assert [entry["plugin"] for entry in risk["risk"]] == [rule.plugin for rule in DEFAULT_RISK]


def test_shipped_client_file() -> None:
    """client_config.yaml names every key with its default."""
    path = ROOT / "client_config.yaml"
    assert load_client_settings(path, environ={}) == ClientSettings()
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {section: set(values) for section, values in given.items()} == {
        section: set(shapes(shape.model)) for section, shape in shapes(ClientSettings).items() if shape.model
    }


# --- properties -----------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    [
        *Settings.model_fields,
        "port",
        "host",
        "tls",
        "plugin",
        "config",
        "paths",
        "settings",
        "token",
        "path",
        "url",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(alphabet=string.printable + "\x00\x85\ud800é", max_size=8),
    st.sampled_from(["${X}", "${}", "$${X}", "~x", "all", "192.168.1.1", "replay", "postgresql", "\x00"]),
)
TREES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(KEYS, SCALARS), inner, max_size=5)
    ),
    max_leaves=15,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, TREES, max_size=6))
def test_any_structure(tmp_path: Path, tree: dict[str, Any]) -> None:
    """Whatever YAML says, the answer is settings or a ConfigError, never another exception."""
    path = tmp_path / "any.yaml"
    path.write_bytes(yaml.safe_dump(tree, allow_unicode=False).encode("utf-8", "surrogatepass"))
    _loads_or_refuses(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage(tmp_path: Path, data: st.DataObject) -> None:
    """The shipped file with lines lost, doubled, moved or overwritten loads or is refused, never anything else."""
    lines = (ROOT / "server_config.yaml").read_text(encoding="utf-8").splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        what = data.draw(st.sampled_from(["drop", "double", "indent", "cut", "write"]))
        if what == "drop":
            del lines[at]
        elif what == "double":
            lines.insert(at, lines[at])
        elif what == "indent":
            lines[at] = " " * data.draw(st.integers(1, 4)) + lines[at]
        elif what == "cut":
            lines[at] = lines[at][: data.draw(st.integers(0, 20))]
        else:
            lines[at] = data.draw(st.text(alphabet="ab:- []{}&*!|>'\"#%@`?,0.~<$", max_size=12))
    path = tmp_path / "damaged.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    _loads_or_refuses(path)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.one_of(KEYS, st.sampled_from(["0", "1", "7", "", "x"])), min_size=1, max_size=4),
            st.text(alphabet="ab:- []{}&*!|>'\"#$0.~", max_size=8),
        ),
        max_size=4,
    )
)
def test_any_override(pairs: list[tuple[list[str], str]]) -> None:
    """Any options and variables are taken or refused, each fault naming its option or variable."""
    overrides = [f"{'.'.join(path)}={value}" for path, value in pairs]
    environ = {f"SIGMA9_{'__'.join(path).upper()}": value for path, value in pairs}
    environ.pop("SIGMA9_CONFIG", None)  # it names the file
    for given_overrides, given_environ in ((overrides, {}), ([], environ), (overrides, environ)):
        faults = _faults(lambda: load_settings(None, given_overrides, given_environ))  # noqa: B023 - called at once
        assert all(re.match(r"the (variable|option) ", fault.where) for fault in faults)


def _loads_or_refuses(path: Path) -> None:
    for kind in (load_settings, load_client_settings):
        faults = _faults(lambda: kind(path, [], {"X": "1"}))  # noqa: B023 - called at once
        assert all(fault.where.startswith(str(path)) for fault in faults)
        lines = [int(fault.where.rpartition(":")[2]) for fault in faults if fault.where != str(path)]
        assert lines == sorted(lines)


def _faults(load_it: Callable[[], object]) -> tuple[Fault, ...]:
    try:
        load_it()
    except ConfigError as error:
        found = error.faults
    else:
        return ()
    assert found
    return found


# --- the whole set of rules -----------------------------------------------------------------------------------


def test_built_in_stands_for_the_rules_that_are_not_listed(tmp_path: Path) -> None:
    """A rule of one's own, one that is changed, and all the others: nobody has to copy the list."""
    path = tmp_path / "server_config.yaml"
    path.write_text("risk: [{plugin: mine}, {plugin: max_open, config: {max_positions: 7}}, {plugin: built_in}]\n")
    risk = load_settings(path, environ={}).risk
    others = [rule.plugin for rule in DEFAULT_RISK if rule.plugin != "max_open"]

    assert [entry.plugin for entry in risk] == ["mine", "max_open", *others]
    assert risk[1].config == {"max_positions": 7}


@pytest.mark.parametrize(
    ("risk", "says"),
    [
        ("[{plugin: built_in}, {plugin: mine}]", "must be the last entry"),
        ("[{plugin: built_in}, {plugin: built_in}]", "must be the last entry"),
        ("[{plugin: built_in, config: {max_positions: 7}}]", "takes no name and no config"),
        ("[{plugin: built_in, name: rest}]", "takes no name and no config"),
    ],
)
def test_built_in_stands_alone_and_last(tmp_path: Path, risk: str, says: str) -> None:
    """What could mean two things is refused."""
    path = tmp_path / "server_config.yaml"
    path.write_text(f"risk: {risk}\n")
    with pytest.raises(ConfigError, match=says):
        load_settings(path, environ={})
