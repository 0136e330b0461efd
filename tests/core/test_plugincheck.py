"""The check of the plugins that a configuration names: together with the file's own faults, and by line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from sigma9_core import calendar_names, log
from sigma9_core.config import PluginSettings, Settings
from sigma9_core.configfile import survey_settings
from sigma9_core.errors import ConfigError, Fault
from sigma9_core.plugincheck import check_plugins, every_fault, in_order, read_checked
from sigma9_core.plugins import PluginHost

PLUGIN = """
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen

class Config(Frozen):
    limit: int = 5
    api_key: str = ""

class Needy(Frozen):
    where: str

@hookimpl
def register_notifiers(register):
    register("loud", lambda config, context: None, config=Config)
    register("needy", lambda config, context: None, config=Needy)

@hookimpl
def register_services(register):
    register("hall", lambda config, context: None, config=Config)
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log, "_secrets", set())
    monkeypatch.setattr(log, "_pattern", None)
    monkeypatch.setattr(
        calendar_names, "installed_names", lambda: frozenset(calendar_names.NAMES)
    )  # saves a child
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "loudness.py").write_text(PLUGIN, encoding="utf-8")


def check(text: str, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> list[str]:
    """Check a file, and give its faults as the lines that a person reads."""
    file = Path("c.yaml")
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    faults = every_fault(survey_settings(file, overrides, environ or {}))
    return [re.sub(r" among [\w, -]*\w", " among ...", str(fault)) for fault in faults]


BOTH = """\
risk:
  - {plugin: max_oder_value}
  - {plugin: max_open, config: {max_positions: many}}
  - {plugin: max_position, confg: {}}
server: {port: 99999}
broker: papper
sizer: {plugin: kelly, config: {fraction: 7}}
nod: x
plugins:
  paths: [mine]
  settings: {loud: {limt: 3}, max_opne: {}}
notifiers: [{plugin: loud, name: a}, {plugin: loud, name: b}]
feed: [simulated]
"""


def test_the_faults_of_the_file_and_of_its_plugins_come_at_once() -> None:
    """One list, by line, without doubles: what the file gets wrong, what is missing, what a plugin refuses."""
    found = check(BOTH, ["mqtt.prt=1", "notifiers.1.config.limit=x"])

    assert [line.rsplit(": ", 1)[0] if "did you" in line else line for line in found] == [
        "c.yaml:2: risk.0.plugin",
        "c.yaml:3: risk.1.config.max_positions: must be a whole number, not 'many'",
        "c.yaml:4: risk.2.confg",
        "c.yaml:5: server.port: must be less than or equal to 65535, not 99999",
        "c.yaml:6: broker",
        "c.yaml:7: sizer.config.fraction",
        "c.yaml:8: nod",
        "c.yaml:11: plugins.settings.max_opne",
        "c.yaml:11: plugins.settings.loud.limt",
        "c.yaml:13: feed: must be text, not a list",
        "the option --set mqtt.prt: mqtt.prt",
        "the option --set notifiers.1.config.limit: notifiers.1.config.limit: must be a whole number, not 'x'",
    ]


def test_run_is_refused_with_the_same_list() -> None:
    """What reads the settings for a start raises the same faults, and none where the file itself is clean."""
    Path("c.yaml").write_text(BOTH, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_checked(Path("c.yaml"), (), {})
    assert list(caught.value.faults) == every_fault(survey_settings(Path("c.yaml"), (), {}))

    Path("clean.yaml").write_text("node: clean\nfeed: tape\n", encoding="utf-8")
    loaded = read_checked(Path("clean.yaml"), (), {})
    with pytest.raises(ConfigError, match=r"clean\.yaml:2: feed: there is no feed 'tape'"):
        check_plugins(PluginHost(PluginSettings()), loaded.settings, loaded.locate)


def test_a_start_lists_every_fault_of_the_plugins_by_line() -> None:
    """Settings for a plugin that is not there do not hide what else is wrong; the order is the file's."""
    text = (
        "notifiers: [{plugin: loud, config: {limit: x}}]\nplugins: {paths: [mine], settings: {luod: {}}}\n"
        "sizer: {plugin: pit}\n"
    )
    Path("c.yaml").write_text(text, encoding="utf-8")
    loaded = read_checked(Path("c.yaml"), (), {})
    with pytest.raises(ConfigError) as caught:
        check_plugins(PluginHost(loaded.settings.plugins, locate=loaded.locate), loaded.settings, loaded.locate)

    assert [fault.where for fault in caught.value.faults] == ["c.yaml:1", "c.yaml:2", "c.yaml:3"]
    assert [fault.path for fault in caught.value.faults] == [
        "notifiers.0.config.limit",
        "plugins.settings.luod",
        "sizer.plugin",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "broker: [paper]",
        "feed: {a: 1}",
        "sizer: {plugin: [kelly]}",
        "sizer: 5",
        "risk: [5]",
        "risk: [{name: x}]",
        "risk: 7",
        "notifiers: [{plugin: needy, config: {where: '${NOPE}'}}]\nplugins: {paths: [mine]}",
        "plugins: {disabled: [5]}",
        "plugins: 5",
    ],
)
def test_what_could_not_be_read_is_no_second_fault(text: str) -> None:
    """A part that has a fault already says nothing more about plugins."""
    assert len(check(text)) == 1


def test_a_broken_part_does_not_hide_the_plugins_of_the_others() -> None:
    """Where a section is no YAML, those that can be read are checked on, plugins included."""
    assert check("server: {host: 'a\nnode\nmqtt:\n\tport: 1\nbroker: papper\nscheduler: {calendar: XNYZ}\n") == [
        "c.yaml:1: this is not YAML: a quote begins here and is not closed",
        "c.yaml:2: this is not YAML: this is no 'key: value'",
        "c.yaml:4: this is not YAML: a tab can't indent YAML; use blanks",
        "c.yaml:5: broker: there is no broker 'papper' among ...; did you mean 'paper'?",
        (
            "c.yaml:6: scheduler.calendar: must be an exchange's calendar, such as XNYS, not 'XNYZ'; "
            "did you mean 'XNYS'?"
        ),
    ]


def test_a_folder_with_plugins_that_is_missing_makes_what_is_missing_unsure() -> None:
    """A plugin that is not found may lie where nobody could look: it is told all the same, and so is that."""
    found = check("plugins: {paths: [mine, gone], settings: {lout: {}}}\nbroker: pit\nfeed: simulated\n")

    assert [line.partition(": ")[2] for line in found] == [
        f"plugins.paths.1: must be a folder or a plugin's .py file that is there, not {Path.cwd() / 'gone'}",
        (
            "plugins.settings.lout: no plugin has this name; did you mean 'loud'? "
            "(or it lies in plugins.paths, which has a fault)"
        ),
        "broker: there is no broker 'pit' among ... (or it lies in plugins.paths, which has a fault)",
    ]


def test_a_plugin_that_is_switched_off_is_told_where_that_is() -> None:
    """The default broker stands in no line; the line that takes it away does."""
    assert check("node: x\nplugins:\n  disabled:\n    - paper\n") == [
        "c.yaml:4: plugins.disabled.0: the broker 'paper' is switched off: take 'paper' out of plugins.disabled"
    ]
    assert check("broker: paper\nplugins: {disabled: [paper]}")[0].startswith("c.yaml:1: broker: ")


def test_settings_of_what_is_not_in_use_and_of_services_are_checked() -> None:
    """A typing error does not wait for the day on which the plugin is used; what is missing there may."""
    text = "plugins: {paths: [mine], settings: {needy: {whre: x}, hall: {limit: y}, max_open: {max_orders: 1.5}}}"

    assert [line.partition("settings.")[2] for line in check(text)] == [
        "max_open.max_orders: must be a whole number, not 1.5",
        "hall.limit: must be a whole number, not 'y'",
        "needy.whre: is not known here; did you mean 'where'?",
    ]


def test_true_and_false_are_no_numbers_for_a_plugin_either() -> None:
    """`max_positions: true` is not 1."""
    assert check("risk: [{plugin: max_open, config: {max_positions: true}}]") == [
        "c.yaml:1: risk.0.config.max_positions: must be a whole number, not true"
    ]


def test_what_a_variable_brought_into_a_plugins_settings_is_not_shown() -> None:
    """A plugin's refusal shows no value that came from the environment, and no secret."""
    text = (
        "plugins: {paths: [mine]}\n"
        "notifiers:\n- {plugin: loud, config: {limit: '${PIN}', api_key: 123456}}\n"
        "- {plugin: loud, name: b, config: {limit: x}}"
    )
    found = check(text, (), {"PIN": "one-two-three"})

    assert [line.partition(": ")[2] for line in found] == [
        "notifiers.0.config.limit: must be a whole number",
        "notifiers.0.config.api_key: must be text",
        "notifiers.1.config.limit: must be a whole number, not 'x'",
    ]


def test_two_plugins_of_one_name_are_a_fault_of_the_configuration(tmp_path: Path) -> None:
    """Where nobody can tell which is meant, that one fault comes, with the file's own."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "loudness.py").write_text(PLUGIN, encoding="utf-8")

    found = check("nod: x\nplugins: {paths: [mine, other]}")

    assert [line.partition(": ")[0] for line in found] == ["c.yaml:1", "c.yaml:2"]
    assert "plugins: two plugins are called 'loudness'" in found[1]
    settings = Settings(plugins=PluginSettings(paths=(tmp_path / "mine", tmp_path / "other")))
    with pytest.raises(ConfigError, match="two plugins are called"):
        check_plugins(PluginHost(settings.plugins), settings, lambda _path: "configuration")


def test_order_of_faults() -> None:
    """Lines come by number, then variables, then options; the same fault comes once."""
    wheres = ["the option --set b", "x.yaml:10", "the variable A", "x.yaml:9", "x.yaml:10", "x.yaml"]

    assert [fault.where for fault in in_order(Fault(where, "p", "m") for where in wheres)] == [
        "x.yaml",
        "x.yaml:9",
        "x.yaml:10",
        "the variable A",
        "the option --set b",
    ]
