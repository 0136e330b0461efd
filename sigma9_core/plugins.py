"""The plugin host: finds plugins, loads each one alone, and builds the instances that the configuration names.

A plugin that can't be loaded is quarantined: what it registered is rolled back, the others go on, and the status
names it. Only what can't be decided without a person refuses the start: two of one name, or a missing one.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pluggy
from pydantic import ValidationError

from sigma9_core import hookspecs
from sigma9_core.config import PluginSettings
from sigma9_core.contracts import API_VERSION, PluginContext, PluginKind
from sigma9_core.entities import EntitySpec
from sigma9_core.errors import ConfigError, Fault, PluginError
from sigma9_core.explain import Wrong, hint, listed, validated
from sigma9_core.models import Frozen
from sigma9_core.registry import REGISTER_HOOKS, Plugin, PluginCommand, Registrar, Registration, Registry

GROUP: Final = "sigma9.plugins"
"""The entry-point group, of built-in and third-party plugins alike."""
PATH_PREFIX: Final = "sigma9_local_"
"""The module name of a plugin from `plugins.paths` is this and its file's name."""

logger = logging.getLogger("sigma9.plugins")

PluginFailure: Final = (Exception, SystemExit)
"""What is caught where foreign code is called: it may raise anything, and the others must go on."""


class _Row:
    """One instance in use, as the status shows it."""

    def __init__(self, version: str | None) -> None:
        self.version = version
        self.enabled = True
        self.error: str | None = None


class PluginHost:
    """Holds every plugin, what it offers, and how each instance in use is doing."""

    def __init__(
        self,
        settings: PluginSettings,
        entry_points: Iterable[EntryPoint] | None = None,
        *,
        locate: Callable[[str], str] | None = None,
    ) -> None:
        """Store; `locate` tells the file and line of a setting's dotted path, for error messages."""
        self._settings = settings
        self._entry_points = entry_points
        self._locate = locate or (lambda _path: "configuration")
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._plugins: dict[str, Plugin] = {}
        self._disabled: set[str] = set()
        self._registry = Registry()
        self._rows: dict[tuple[str, str], _Row] = {}
        self._watchers: list[Callable[[], None]] = []

    # --- loading ----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Import and register every plugin; raise PluginError or ConfigError where the start must be refused."""
        self._manager.add_hookspecs(hookspecs)
        distributions: dict[int, tuple[str, str]] = {}
        found = entry_points(group=GROUP) if self._entry_points is None else self._entry_points
        for entry in sorted(found, key=lambda entry: (entry.name, entry.value)):
            owner, version = _distribution(entry.dist, distributions)
            plugin = Plugin(entry.name, f"{entry.value} of {owner}", entry.module, version)
            self._load(plugin, entry.load)
        for path in self._files():
            name = path.parent.name if path.name == "__init__.py" else path.stem
            plugin = Plugin(name, str(path), f"{PATH_PREFIX}{name}")
            self._load(plugin, partial(_import_file, path, plugin.module))
        for plugin in self._plugins.values():
            self._registry.add(plugin)
        for name in self._registry.commands():
            self._rows["command", name] = _Row(self._registry.commands()[name].plugin.version)
        self._check_names()

    def _load(self, plugin: Plugin, load: Callable[[], object]) -> None:
        if plugin.name in self._settings.disabled:
            self._disabled.add(plugin.name)
            return
        other = self._plugins.get(plugin.name)
        if other is not None:
            raise PluginError(
                f"two plugins are called '{plugin.name}', {other.origin} and {plugin.origin}: uninstall or rename "
                "one, or name it in plugins.disabled to use neither"
            )
        self._plugins[plugin.name] = plugin
        try:
            plugin.loaded = load()
        except PluginFailure as error:
            self._quarantine(plugin, f"its import failed with {describe(error)}")
            return
        try:
            self._register(plugin)
        except PluginError as error:
            self._quarantine(plugin, str(error))

    def _quarantine(self, plugin: Plugin, error: str) -> None:
        logger.error(
            "the plugin %s (%s) is quarantined: %s", plugin.name, plugin.origin, error, exc_info=sys.exc_info()
        )
        plugin.quarantine(error)
        if plugin.loaded is not None and self._manager.is_registered(plugin.loaded):
            self._manager.unregister(name=plugin.name)

    def _register(self, plugin: Plugin) -> None:
        """Check a plugin's version and hooks and call the registering ones; PluginError says what is wrong."""
        loaded = plugin.loaded
        if loaded is None or isinstance(loaded, type):
            raise PluginError("its entry point must name a module or an object with hooks, not a class or nothing")
        api = getattr(loaded, "SIGMA9_API", API_VERSION)
        if api != API_VERSION:
            raise PluginError(f"it was written for plugin API {api!r}, and this is API {API_VERSION}: update it")
        plugin.version = _version(loaded) or plugin.version
        for name, hook in self._check_hooks(plugin).items():
            kind = REGISTER_HOOKS.get(name)
            if kind is None:
                continue
            registrar = Registrar(plugin, kind)
            try:
                hook.function(registrar.offer)
            except PluginError:
                raise
            except PluginFailure as error:
                raise PluginError(f"its {name} failed with {describe(error)}") from error
            finally:
                registrar.close()

    def _check_hooks(self, plugin: Plugin) -> dict[str, pluggy.HookImpl]:
        try:
            self._manager.register(plugin.loaded, plugin.name)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"a hook does not fit: {str(error).strip().splitlines()[-1]}") from error
        except ValueError as error:
            raise PluginError("its module is a plugin under another name already") from error
        hooks = _hooks_of(self._manager, plugin.loaded)
        known = [name for name in dir(hookspecs) if hasattr(getattr(hookspecs, name), f"{hookspecs.PROJECT}_spec")]
        if not hooks:
            unmarked = [name for name in known if hasattr(plugin.loaded, name)]
            raise PluginError(
                f"its {unmarked[0]} is not marked with @hookimpl"
                if unmarked
                else "it has no hook: mark one with @hookimpl"
            )
        for name, hook in hooks.items():
            if name not in known:
                raise PluginError(f"there is no hook '{name}'{hint(name, known)}")
            if hook.wrapper or hook.hookwrapper:
                raise PluginError(
                    f"its {name} is a hook wrapper: each plugin is called alone, so nothing is wrapped"
                )
            if inspect.iscoroutinefunction(hook.function):
                raise PluginError(f"its {name} is asynchronous: hooks are plain functions, objects do the rest")
        return hooks

    def _files(self) -> list[Path]:
        """List the plugins in the configured folders: .py files and packages whose name has no leading "_"."""
        files: list[Path] = []
        faults: list[Fault] = []
        for index, path in enumerate(self._settings.paths):
            if path.suffix == ".py" and path.is_file():
                files.append(path)
            elif (path / "__init__.py").is_file():
                files.append(path / "__init__.py")
            elif path.is_dir():
                entries = sorted(entry for entry in path.iterdir() if entry.name[0] not in "_.")
                files += [entry for entry in entries if entry.suffix == ".py" and entry.is_file()]
                files += [entry / "__init__.py" for entry in entries if (entry / "__init__.py").is_file()]
            else:
                setting = f"plugins.paths.{index}"
                faults.append(Fault(self._locate(setting), setting, f"there is no folder or plugin at {path}"))
        if faults:
            raise ConfigError(faults)
        return files

    def _check_names(self) -> None:
        """Find settings for plugins that do not exist: most likely a typing error."""
        for name in self._settings.disabled:
            if name not in self._disabled:
                logger.warning(
                    "plugins.disabled names '%s', which is not installed%s", name, hint(name, self._plugins)
                )
        known = {*self._plugins, *self._disabled, *(entry.name for entry in self._registry)}
        unknown = [name for name in self._settings.settings if name not in known]
        if any(plugin.error for plugin in self._plugins.values()):
            return  # it may be for what a quarantined plugin would have registered
        if unknown:
            raise ConfigError(
                [
                    Fault(
                        self._locate(f"plugins.settings.{name}"),
                        f"plugins.settings.{name}",
                        f"no plugin has this name{hint(name, known)}",
                    )
                    for name in unknown
                ]
            )

    # --- what there is ----------------------------------------------------------------------------------------

    def factories(self, kind: PluginKind) -> Mapping[str, Registration]:
        """Give everything of a kind that can be built, by name."""
        return self._registry.of_kind(kind)

    def commands(self) -> Mapping[str, PluginCommand]:
        """Give the commands that plugins add, by name."""
        return self._registry.commands()

    def entities(self) -> tuple[EntitySpec, ...]:
        """Give the entities that plugins offer to Home Assistant, the built-in ones first."""
        return self._registry.entities()

    def plugins(self) -> tuple[Plugin, ...]:
        """Give every plugin that is not disabled, quarantined ones included."""
        return tuple(self._plugins.values())

    def origin(self, kind: PluginKind, name: str) -> str:
        """Tell which module and distribution, or which file, offers a name."""
        return self._find(kind, name).plugin.origin

    def built_in(self, kind: PluginKind, name: str) -> bool:
        """Tell whether Sigma9's own packages offer a name: such code is trusted to be quick."""
        return self._find(kind, name).plugin.built_in

    # --- building ---------------------------------------------------------------------------------------------

    def validate(
        self, kind: PluginKind, name: str, config: Mapping[str, Any] | None = None, *, path: str = ""
    ) -> Frozen:
        """Check settings with the registration's model; ConfigError lists every fault below `path`.

        `plugins.settings.<name>` are the defaults, `config` beats them key by key.
        """
        entry = self._find(kind, name)
        defaults = self._settings.settings.get(name, {})
        given = dict(config or {})
        merged = {**defaults, **given}
        try:
            return validated(entry.config, merged)
        except Wrong as error:
            faults = []
            for problem in error.problems:
                key = problem.path.partition(".")[0]
                base = f"plugins.settings.{name}" if key in defaults and key not in given else path
                where = ".".join(part for part in (base or f"plugins.settings.{name}", problem.path) if part)
                faults.append(Fault(self._locate(where), where, problem.message))
            raise ConfigError(faults) from error

    def build(
        self,
        kind: PluginKind,
        name: str,
        config: Mapping[str, Any] | None,
        context: PluginContext,
        *,
        path: str = "",
        replace: bool = False,
    ) -> Any:
        """Build the instance `context.name` and give it a row in the status.

        `path` is where its settings stand, such as `risk.2.config`. Raise ConfigError for wrong settings or an
        instance name that is in use (unless it is to be replaced), PluginError where it can't be built.
        """
        entry = self._find(kind, name)
        if (kind, context.name) in self._rows and not replace:
            where = f"{path.rpartition('.')[0]}.name" if "." in path else path
            raise ConfigError(
                [
                    Fault(
                        self._locate(where), where, f"two {kind} instances are called '{context.name}': rename one"
                    )
                ]
            )
        settings = self.validate(kind, name, config, path=path)
        try:
            instance = entry.factory(settings, context)
        except (ConfigError, PluginError):
            raise
        except PluginFailure as error:
            raise PluginError(
                f"the {kind} '{name}' ({entry.plugin.origin}) can't be built: {describe(error)}"
            ) from error
        version = getattr(instance, "version", None)
        self._rows[kind, context.name] = _Row(version if isinstance(version, str) else entry.plugin.version)
        self._changed()
        return instance

    def _find(self, kind: PluginKind, name: str) -> Registration:
        entry = self._registry.get(kind, name)
        if entry is not None:
            return entry
        if name in self._disabled:
            raise PluginError(f"the {kind} '{name}' is switched off: take '{name}' out of plugins.disabled")
        for plugin in self._plugins.values():
            if plugin.error and (plugin.name == name or (kind, name) in plugin.offered):
                raise PluginError(
                    f"the {kind} '{name}' is missing, because the plugin '{plugin.name}' ({plugin.origin}) is "
                    f"quarantined: {plugin.error}"
                )
        known = self._registry.of_kind(kind)
        message = f"there is no {kind} '{name}' among {listed(known)}{hint(name, known)}"
        broken = [plugin.name for plugin in self._plugins.values() if plugin.error]
        raise PluginError(message + (f" (quarantined: {listed(broken)})" if broken else ""))

    # --- hooks ------------------------------------------------------------------------------------------------

    def call_hook(self, hook: str, **arguments: Any) -> None:
        """Call a hook of every healthy plugin, each under its own guard, in the order of their names."""
        for plugin in self._plugins.values():
            if plugin.error or plugin.loaded is None:
                continue
            function = _hooks_of(self._manager, plugin.loaded).get(hook)
            if function is None:
                continue
            try:
                function.function(*(arguments[name] for name in function.argnames))
            except PluginFailure as error:
                message = f"its {hook} failed with {describe(error)}"
                logger.exception("the plugin %s: %s", plugin.name, message)
                row = self._rows.setdefault(("plugin", plugin.name), _Row(plugin.version))
                row.error = message
                self._changed()

    # --- health -----------------------------------------------------------------------------------------------

    def status(self) -> list[dict[str, Any]]:
        """Give the rows of `state/plugins`: instances in use, then quarantined and disabled plugins."""
        rows = [
            _row(name, kind, row.version, enabled=row.enabled, error=row.error)
            for (kind, name), row in self._rows.items()
        ]
        rows += [
            _row(plugin.name, _kind_of(plugin), plugin.version, enabled=False, error=plugin.error)
            for plugin in self._plugins.values()
            if plugin.error
        ]
        return rows + [_row(name, "plugin", None, enabled=False, error=None) for name in sorted(self._disabled)]

    def set_health(self, name: str, error: str | None, *, kind: str | None = None) -> None:
        """Say how an instance in use is doing: an error in one sentence, or None for healthy."""
        for row in self._rows_of(name, kind):
            row.error = error
        self._changed()

    def set_enabled(self, name: str, enabled: bool, *, kind: str | None = None) -> None:
        """Mark an instance in use as enabled (which forgets its error) or disabled."""
        for row in self._rows_of(name, kind):
            row.enabled = enabled
            if enabled:
                row.error = None
        self._changed()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` whenever the status may have changed, on the thread that changed it."""
        self._watchers.append(watcher)

    def _rows_of(self, name: str, kind: str | None) -> list[_Row]:
        rows = [row for key, row in self._rows.items() if key[1] == name and kind in (None, key[0])]
        if not rows:
            names = sorted({key[1] for key in self._rows})
            raise PluginError(f"no plugin in use is called '{name}'{hint(name, names)}")
        return rows

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()


def describe(error: BaseException) -> str:
    """Write an exception as one line: its type, and the first line of its text."""
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"]))
        return f"{error.title}: {f'{where}: ' if where else ''}{fault['msg'].removeprefix('Value error, ')}"
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _hooks_of(manager: pluggy.PluginManager, loaded: object) -> dict[str, pluggy.HookImpl]:
    return {
        caller.name: impl
        for caller in manager.get_hookcallers(loaded) or ()
        for impl in caller.get_hookimpls()
        if impl.plugin is loaded
    }


def _distribution(distribution: Distribution | None, known: dict[int, tuple[str, str]]) -> tuple[str, str | None]:
    """Name an entry point's distribution and version; reading its metadata takes a while, so only once."""
    if distribution is None:
        return "no distribution", None
    if id(distribution) not in known:
        metadata = distribution.metadata
        known[id(distribution)] = (f"{metadata['Name']} {metadata['Version']}", metadata["Version"])
    return known[id(distribution)]


def _version(loaded: object) -> str | None:
    version = getattr(loaded, "__version__", None)
    return version if isinstance(version, str) else None


def _import_file(path: Path, module: str) -> ModuleType:
    folders = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(module, path, submodule_search_locations=folders)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
            del sys.modules[name]
        raise
    return loaded


def _kind_of(plugin: Plugin) -> str:
    """Name the kind of a quarantined plugin by what it had registered, else `plugin`."""
    return plugin.offered[0][0] if plugin.offered else "plugin"


def _row(name: str, kind: str, version: str | None, *, enabled: bool, error: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "version": version,
        "enabled": enabled,
        "healthy": error is None,
        "error": error,
    }
