"""The plugin host: one bad plugin never takes the others with it, and two of one name refuse the start."""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from typing import Any

import pytest

from sigma9_core import hookspecs
from sigma9_core.calendar import Calendar
from sigma9_core.clock import LiveClock
from sigma9_core.config import PluginSettings, Settings
from sigma9_core.contracts import PluginContext
from sigma9_core.errors import ConfigError, PluginError
from sigma9_core.plugins import GROUP, PATH_PREFIX, PluginHost
from sigma9_core.registry import REGISTER_HOOKS

GOOD = """
from sigma9_core.hookspecs import hookimpl
from sigma9_core.models import Frozen

class Config(Frozen):
    percent: int = 10
    token: str | None = None

@hookimpl
def register_sizers(register):
    register("{name}", lambda config, context: (config.percent, context.name), config=Config)
"""

numbers = itertools.count()


class Site:
    """A folder on the import path, with distributions that have entry points."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def module(self, source: str) -> str:
        """Write a module and give its name."""
        name = f"sigma9_test_plugin_{next(numbers)}"
        (self.folder / f"{name}.py").write_text(textwrap.dedent(source))
        self.names.append(name)
        return name

    def distribution(self, name: str, **plugins: str) -> None:
        """Install a distribution whose entry points name a module with the given source each."""
        info = self.folder / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [f"{plugin} = {self.module(source)}" for plugin, source in plugins.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))

    def entry_points(self) -> list[EntryPoint]:
        """Give the entry points of everything installed here."""
        return [point for owner in distributions(path=[str(self.folder)]) for point in owner.entry_points]


@pytest.fixture(name="site")
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    site = Site(folder)
    yield site
    for name in [name for name in sys.modules if name in site.names or name.startswith(PATH_PREFIX)]:
        del sys.modules[name]


def load(entry_points: Sequence[EntryPoint] = (), **settings: Any) -> PluginHost:
    """Load a host."""
    host = PluginHost(PluginSettings(**settings), entry_points)
    host.load()
    return host


def context(name: str) -> PluginContext:
    """Give a factory's context."""
    return PluginContext(name, Settings(), LiveClock(), Calendar("XNYS"), None)


def row(host: PluginHost, name: str) -> dict[str, Any]:
    """Find the status row of a name."""
    return next(row for row in host.status() if row["name"] == name)


def test_a_plugin_of_a_distribution_is_loaded_and_built(site: Site) -> None:
    """An entry point's module registers a factory, whose instance has a row with the distribution's version."""
    site.distribution("acme", half=GOOD.format(name="half"))
    host = load(site.entry_points())

    assert list(host.factories("sizer")) == ["half"]
    assert host.build("sizer", "half", {"percent": "50"}, context("mine")) == (50, "mine")
    assert host.status() == [
        {"name": "mine", "kind": "sizer", "version": "1.2", "enabled": True, "healthy": True, "error": None}
    ]
    assert host.origin("sizer", "half") == f"{site.names[0]} of acme 1.2"
    assert not host.built_in("sizer", "half")


BAD = {
    "import": ("import no_such_module", "its import failed with ModuleNotFoundError: No module named"),
    "syntax": ("def", "its import failed with SyntaxError"),
    "exit": ("raise SystemExit(3)", "its import failed with SystemExit: 3"),
    "api": ("SIGMA9_API = 2", "it was written for plugin API 2, and this is API 1"),
    "none": ("x = 1", "it has no hook"),
    "unmarked": ("def register_sizers(register): pass", "its register_sizers is not marked with @hookimpl"),
    "unknown": (
        "from sigma9_core.hookspecs import hookimpl\n@hookimpl\ndef register_sizer(register): pass",
        "there is no hook 'register_sizer'; did you mean 'register_sizers'?",
    ),
    "signature": (
        "from sigma9_core.hookspecs import hookimpl\n@hookimpl\ndef register_sizers(wrong): pass",
        "a hook does not fit: Argument(s) {'wrong'}",
    ),
    "wrapper": (
        "from sigma9_core.hookspecs import hookimpl as h\n@h(wrapper=True)\ndef register_sizers(register): yield",
        "its register_sizers is a hook wrapper",
    ),
    "async": (
        "from sigma9_core.hookspecs import hookimpl\n@hookimpl\nasync def register_sizers(register): pass",
        "its register_sizers is asynchronous",
    ),
    "raise": (
        GOOD.format(name="bad") + "    raise KeyError('x')\n",
        "its register_sizers failed with KeyError: 'x'",
    ),
    "name": (GOOD.format(name="a b"), "'a b' is no name of a sizer"),
    "factory": (
        "from sigma9_core.hookspecs import hookimpl\n@hookimpl\ndef register_sizers(register): register('x', 1)",
        "the factory of the sizer 'x' can't be called",
    ),
    "config": (
        "from sigma9_core.hookspecs import hookimpl as h\n@h\ndef register_sizers(register): register('x', id, 1)",
        "the config of the sizer 'x' is not a pydantic model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_plugin_is_quarantined_and_the_others_go_on(site: Site, case: str) -> None:
    """What a bad plugin registered is rolled back, the status names it, the good one works."""
    source, message = BAD[case]
    site.distribution("acme", aaa=source, good=GOOD.format(name="good"))
    host = load(site.entry_points())

    assert list(host.factories("sizer")) == ["good"]
    bad = row(host, "aaa")
    assert (bad["enabled"], bad["healthy"]) == (False, False)
    assert bad["error"].startswith(message)
    assert "\n" not in bad["error"]
    assert host.build("sizer", "good", None, context("good")) == (10, "good")


def test_a_class_or_a_second_plugin_of_one_module_is_quarantined(site: Site) -> None:
    """An entry point names a module or an object, and a module is one plugin only."""
    module = site.module(GOOD.format(name="good"))
    points = [
        EntryPoint("a", module, GROUP),
        EntryPoint("b", module, GROUP),
        EntryPoint("c", f"{module}:Config", GROUP),
    ]
    host = load(points)

    assert list(host.factories("sizer")) == ["good"]
    assert "under another name" in row(host, "b")["error"]
    assert "not a class" in row(host, "c")["error"]


def test_an_object_with_hooks_is_a_plugin(site: Site) -> None:
    """An entry point may name an object whose methods are the hooks."""
    module = site.module("""
        from sigma9_core.hookspecs import hookimpl

        class Plugin:
            @hookimpl
            def register_feeds(self, register):
                register("tape", lambda config, context: "tape")

        plugin = Plugin()
    """)

    assert list(load([EntryPoint("tape", f"{module}:plugin", GROUP)]).factories("feed")) == ["tape"]


def test_two_plugins_of_one_name_refuse_the_start_naming_both(site: Site) -> None:
    """Two distributions with one plugin name are told apart by a person, never by chance."""
    site.distribution("acme", half=GOOD.format(name="half"))
    site.distribution("bolt", half=GOOD.format(name="other"))
    with pytest.raises(PluginError, match=r"two plugins are called 'half', .* of acme 1\.2 and .* of bolt 1\.2"):
        load(site.entry_points())

    assert load(site.entry_points(), disabled=["half"]).factories("sizer") == {}


def test_two_registrations_of_one_name_refuse_the_start_naming_both(site: Site) -> None:
    """One name within a kind is registered once; the same name in another kind is fine."""
    feed = GOOD.format(name="half").replace("register_sizers", "register_feeds")
    site.distribution("acme", one=GOOD.format(name="half"), other=feed)
    assert list(load(site.entry_points()).factories("feed")) == ["half"]

    site.distribution("bolt", two=GOOD.format(name="half"))
    with pytest.raises(PluginError, match=r"the sizer 'half' is registered by two plugins, 'one' \(.*'two' \("):
        load(site.entry_points())


def test_a_name_that_one_plugin_registers_twice_refuses_the_start(site: Site) -> None:
    """The message names the plugin."""
    site.distribution("acme", one=GOOD.format(name="half") + '    register("half", print)\n')
    with pytest.raises(PluginError, match=r"the sizer 'half' is registered twice by .* of acme"):
        load(site.entry_points())


def test_a_disabled_plugin_is_not_even_imported(site: Site) -> None:
    """`plugins.disabled` skips by name, and a missing piece says that it was switched off."""
    site.distribution("acme", half="raise RuntimeError('imported')")
    host = load(site.entry_points(), disabled=["half"])

    assert host.status() == [
        {"name": "half", "kind": "plugin", "version": None, "enabled": False, "healthy": True, "error": None}
    ]
    with pytest.raises(
        PluginError, match=r"the sizer 'half' is switched off: take 'half' out of plugins\.disabled"
    ):
        host.build("sizer", "half", None, context("half"))


def test_plugins_in_folders_are_files_and_packages(site: Site, tmp_path: Path) -> None:
    """Single files and packages are loaded, a leading underscore hides, and a broken file is quarantined."""
    folder = tmp_path / "mine"
    (folder / "pack").mkdir(parents=True)
    (folder / "one.py").write_text(GOOD.format(name="one") + "\n__version__ = '3.1'\n")
    (folder / "_helper.py").write_text("raise RuntimeError")
    (folder / "notes.txt").write_text("no plugin")
    (folder / "broken.py").write_text("def")
    (folder / "pack" / "__init__.py").write_text("from .part import register_sizers")
    (folder / "pack" / "part.py").write_text(GOOD.format(name="two"))
    host = load(paths=[folder])

    assert list(host.factories("sizer")) == ["one", "two"]
    assert host.origin("sizer", "one") == str(folder / "one.py")
    assert not host.built_in("sizer", "one")
    assert row(host, "broken")["error"].startswith("its import failed with SyntaxError")
    assert f"{PATH_PREFIX}broken" not in sys.modules
    host.build("sizer", "one", None, context("one"))
    assert row(host, "one")["version"] == "3.1"
    assert list(load(paths=[folder / "one.py", folder / "pack"]).factories("sizer")) == ["one", "two"]


def test_a_folder_that_is_not_there_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    """Every missing folder is listed with its setting and its place in the file."""
    host = PluginHost(
        PluginSettings(paths=(tmp_path / "a", tmp_path / "b")), [], locate=lambda path: f"file.yaml:{path[-1]}"
    )
    with pytest.raises(ConfigError) as caught:
        host.load()

    assert [str(fault) for fault in caught.value.faults] == [
        f"file.yaml:{index}: plugins.paths.{index}: there is no folder or plugin at {tmp_path / name}"
        for index, name in enumerate("ab")
    ]


def test_wrong_settings_are_faults_with_the_path_of_each(site: Site) -> None:
    """Every wrong field is listed below the path of the instance, and no secret is shown."""
    site.distribution("acme", half=GOOD.format(name="half"))
    host = load(site.entry_points())
    with pytest.raises(ConfigError) as caught:
        host.build("sizer", "half", {"percent": "x", "precent": 1, "token": 7}, context("h"), path="risk.2.config")

    assert [str(fault) for fault in caught.value.faults] == [
        "configuration: risk.2.config.percent: must be a whole number, not 'x'",
        "configuration: risk.2.config.token: must be text",
        "configuration: risk.2.config.precent: is not known here; did you mean 'percent'?",
    ]


def test_settings_by_plugin_name_are_the_defaults_of_an_instance(site: Site) -> None:
    """`plugins.settings` gives what the instance's own leave out, and faults say which of both is wrong."""
    site.distribution("acme", half=GOOD.format(name="half"))
    host = load(site.entry_points(), settings={"half": {"percent": 7}})
    assert host.build("sizer", "half", None, context("a"))[0] == 7
    assert host.build("sizer", "half", {"percent": 8}, context("b"))[0] == 8

    wrong = load(site.entry_points(), settings={"half": {"percent": []}})
    with pytest.raises(ConfigError, match=r"plugins\.settings\.half\.percent: must be"):
        wrong.build("sizer", "half", {"token": "x"}, context("a"), path="sizer.config")
    with pytest.raises(
        ConfigError, match=r"plugins\.settings\.hafl: no plugin has this name; did you mean 'half'"
    ):
        load(site.entry_points(), settings={"hafl": {}})


def test_an_unknown_name_says_what_there_is(site: Site) -> None:
    """The error lists the names and suggests the nearest."""
    site.distribution("acme", half=GOOD.format(name="half"))
    host = load(site.entry_points())
    with pytest.raises(PluginError, match=r"^there is no sizer 'halve' among half; did you mean 'half'\?$"):
        host.build("sizer", "halve", None, context("x"))
    with pytest.raises(PluginError, match=r"^there is no feed 'half' among none$"):
        host.build("feed", "half", None, context("x"))


@pytest.mark.parametrize("failing", ["the import", "the hook"])
def test_what_a_quarantined_plugin_would_have_provided_is_explained(site: Site, failing: str) -> None:
    """A configuration that names a missing piece hears which plugin is quarantined, and why."""
    source = "import nope" if failing == "the import" else GOOD.format(name="half") + "    1 // 0\n"
    site.distribution("acme", half=source)
    host = load(site.entry_points())
    with pytest.raises(
        PluginError, match=r"the sizer 'half' is missing, because the plugin 'half' .* is quarantined: its"
    ):
        host.build("sizer", "half", None, context("half"))


def test_a_factory_that_raises_is_named(site: Site) -> None:
    """The error names kind, name and origin; nothing gets a row."""
    site.distribution("acme", half=GOOD.format(name="half").replace("(config.percent, context.name)", "1 // 0"))
    host = load(site.entry_points())
    with pytest.raises(
        PluginError, match=r"the sizer 'half' \(.* of acme 1\.2\) can't be built: ZeroDivisionError"
    ):
        host.build("sizer", "half", None, context("half"))

    assert host.status() == []


def test_two_instances_of_one_name_are_a_fault_unless_one_replaces_the_other(site: Site) -> None:
    """Instance names are unique within a kind; a rebuilt instance keeps its name and is healthy again."""
    site.distribution("acme", half=GOOD.format(name="half"))
    host = load(site.entry_points())
    host.build("sizer", "half", None, context("a"))
    host.set_health("a", "it broke")
    with pytest.raises(ConfigError, match=r"sizers\.1\.name: two sizer instances are called 'a'"):
        host.build("sizer", "half", None, context("a"), path="sizers.1.config")
    host.build("sizer", "half", None, context("a"), replace=True)

    assert row(host, "a")["healthy"]


def test_health_and_enabling_are_told_and_watched(site: Site) -> None:
    """What is set appears in the status, and watchers hear of each change."""
    site.distribution("acme", half=GOOD.format(name="half"))
    host = load(site.entry_points())
    changes: list[int] = []
    host.watch(lambda: changes.append(1))
    host.build("sizer", "half", None, context("a"))
    host.set_health("a", "it broke", kind="sizer")
    host.set_enabled("a", False)
    assert row(host, "a") == {
        "name": "a",
        "kind": "sizer",
        "version": "1.2",
        "enabled": False,
        "healthy": False,
        "error": "it broke",
    }
    host.set_enabled("a", True)
    assert (row(host, "a")["enabled"], row(host, "a")["error"]) == (True, None)
    assert len(changes) == 4
    with pytest.raises(PluginError, match="no plugin in use is called 'aa'; did you mean 'a'"):
        host.set_health("aa", None)


COMMANDS = """
from sigma9_core.commands import CommandSpec, NoArgs
from sigma9_core.hookspecs import hookimpl

class Args(NoArgs):
    {field}: str = ""

@hookimpl
def register_commands(register):
    register(CommandSpec("{name}", Args, "read", "Do it.", word={word}), print)
"""


def test_a_plugin_adds_commands(site: Site) -> None:
    """A command has its row among the plugins in use; a clash with a built-in one refuses the start."""
    site.distribution("acme", shout=COMMANDS.format(field="text", name="shout", word="'text'"))
    host = load(site.entry_points())
    assert host.commands()["shout"].spec.summary == "Do it."
    assert row(host, "shout")["kind"] == "command"

    site.distribution("bolt", start=COMMANDS.format(field="text", name="start", word=None))
    with pytest.raises(
        PluginError, match=r"the command 'start' is built in, and .* of bolt .* registers it again"
    ):
        load(site.entry_points())
    site.distribution("crow", shouts=COMMANDS.format(field="text", name="shout", word=None))
    with pytest.raises(
        PluginError, match=r"the command 'shout' is registered by two plugins, 'shout' .* and 'shouts'"
    ):
        load(site.entry_points(), disabled=["start"])


@pytest.mark.parametrize(
    ("field", "name", "word", "message"),
    [
        ("id", "shout", None, "the command 'shout' can't have an argument 'id'"),
        ("expires_at", "shout", None, "can't have an argument 'expires_at'"),
        ("text", "shout/loud", None, "'shout/loud' is no name of a command"),
        ("text", "shout", "'txt'", "the command 'shout' has no argument 'txt'"),
    ],
)
def test_a_command_that_no_surface_could_carry_is_quarantined(
    site: Site, field: str, name: str, word: str | None, message: str
) -> None:
    """Topics, payloads and REST paths must be able to carry every command."""
    site.distribution("acme", shout=COMMANDS.format(field=field, name=name, word=word))
    host = load(site.entry_points())

    assert host.commands() == {}
    assert message in row(host, "shout")["error"]


def test_registering_after_the_hook_is_refused(site: Site) -> None:
    """A kept callback registers nothing later."""
    module = site.module("""
        from sigma9_core.hookspecs import hookimpl
        kept = []

        @hookimpl
        def register_feeds(register):
            kept.append(register)
    """)
    load([EntryPoint("late", module, GROUP)])
    with pytest.raises(PluginError, match="'x' is registered too late"):
        sys.modules[module].kept[0]("x", print)


# --- every hook has a test ------------------------------------------------------------------------------------


def source_of(hook: str, arguments: str, body: str) -> str:
    """Write a plugin with one hook."""
    return (
        f"from sigma9_core.hookspecs import hookimpl\nseen = []\n@hookimpl\ndef {hook}({arguments}):\n    {body}\n"
    )


@pytest.mark.parametrize("hook", sorted(set(REGISTER_HOOKS) - {"register_commands", "register_entities"}))
def test_hook_register(site: Site, hook: str) -> None:
    """Each registering hook offers factories of its kind, and of no other."""
    site.distribution("acme", thing=source_of(hook, "register", "register('thing', lambda config, context: 1)"))
    host = load(site.entry_points())

    offered = {kind: list(host.factories(kind)) for kind in REGISTER_HOOKS.values()}
    assert {kind: names for kind, names in offered.items() if names} == {REGISTER_HOOKS[hook]: ["thing"]}


@pytest.mark.parametrize("hook", ["engine_started", "engine_stopping"])
def test_hook_engine(site: Site, hook: str) -> None:
    """Each plugin's hook is called under its own guard, and a failure is in the status."""
    site.distribution(
        "acme",
        aaa=source_of(hook, "", "raise ValueError('no')"),
        bbb=source_of(hook, "server", "seen.append(server)"),
    )
    host = load(site.entry_points())
    host.call_hook(hook, server="the server")

    assert sys.modules[site.names[1]].seen == ["the server"]
    assert row(host, "aaa")["error"] == f"its {hook} failed with ValueError: no"


ENTITY = (
    "from sigma9_core.entities import EntitySpec; "
    "register(EntitySpec(platform='button', object='scan_now', name='Scan now', command='scan'{more}))"
)


def test_hook_register_entities(site: Site) -> None:
    """A plugin offers entities; one that would be refused quarantines it; two of one name don't start."""
    site.distribution("acme", aaa=source_of("register_entities", "register", ENTITY.format(more="")))
    assert [spec.object for spec in load(site.entry_points()).entities()] == ["scan_now"]

    bad = ENTITY.format(more=", unit='shares'").replace("scan_now", "other")
    site.distribution("acme2", bbb=source_of("register_entities", "register", bad))
    host = load(site.entry_points())
    assert [spec.object for spec in host.entities()] == ["scan_now"]
    assert "unit, precision and state class belong to a sensor" in str(row(host, "bbb")["error"])

    site.distribution("acme3", ccc=source_of("register_entities", "register", ENTITY.format(more="")))
    with pytest.raises(PluginError, match="entity 'scan_now'"):
        load(site.entry_points())


def test_hook_register_cli(site: Site) -> None:
    """A plugin adds a sub-command to the command line."""
    site.distribution("acme", aaa=source_of("register_cli", "subparsers", "subparsers.add_parser('acme')"))
    parser = argparse.ArgumentParser()
    load(site.entry_points()).call_hook("register_cli", subparsers=parser.add_subparsers(dest="command"))

    assert parser.parse_args(["acme"]).command == "acme"


def test_every_hook_is_either_registering_or_called_later() -> None:
    """The host knows each hook of the specification."""
    hooks = {name for name, value in vars(hookspecs).items() if hasattr(value, "sigma9_spec")}

    assert hooks == {*REGISTER_HOOKS, "register_cli", "engine_started", "engine_stopping"}


def test_a_call_of_a_hook_skips_quarantined_plugins(site: Site) -> None:
    """A plugin whose registering failed gets no later call."""
    bad = source_of("engine_started", "server", "seen.append(server)") + GOOD.format(name="x") + "    1 // 0\n"
    site.distribution("acme", bad=bad)
    load(site.entry_points()).call_hook("engine_started", server=1)

    assert sys.modules[site.names[0]].seen == []


def test_built_in_means_the_packages_of_sigma9(site: Site) -> None:
    """A module in sigma9_plugins is built in; a third party's is not, whatever it calls itself."""
    site.distribution("sigma9_plugins_extra", half=GOOD.format(name="half"))
    host = load([EntryPoint("console", "sigma9_plugins.notifiers.console", GROUP), *site.entry_points()])

    assert host.built_in("notifier", "console")
    assert not host.built_in("sizer", "half")


def test_the_built_in_plugins_are_healthy_and_import_nothing_heavy() -> None:
    """All of them load at every start, so none may bring a data frame, a database or a broker along."""
    program = (
        "import sys\n"
        "from sigma9_core.config import PluginSettings\n"
        "from sigma9_core.plugins import PluginHost\n"
        "host = PluginHost(PluginSettings())\n"
        "host.load()\n"
        "heavy = {'polars', 'numpy', 'pandas', 'sqlalchemy', 'apscheduler', 'amqtt', 'tinydb'}\n"
        "print(host.status(), sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "[] []\n"
