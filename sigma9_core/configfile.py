"""Read the two configuration files of contract 8, and name every fault with its file, line and dotted path.

The file comes first, then `SIGMA9_` variables, then `--set`; `config.py` has the models, `configschema.py` says
what they want, `configsense.py` what makes no sense together.
"""

from __future__ import annotations

import logging
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from sigma9_core.config import ClientSettings, Settings
from sigma9_core.configschema import WANTED, Shape, find, root
from sigma9_core.configsecret import MASK, Secrets
from sigma9_core.configsense import Sense, senseless, senseless_client
from sigma9_core.errors import ConfigError, Fault
from sigma9_core.explain import hint, listed, problems, quoted
from sigma9_core.log import redact
from sigma9_core.yamltext import Location, Scalar, Tree, read_yaml

SERVER_FILE: Final = "server_config.yaml"
CLIENT_FILE: Final = "client_config.yaml"
PREFIX: Final = "SIGMA9_"
COMMAND_LINE_OWN: Final = frozenset(("SIGMA9_URL", "SIGMA9_TOKEN", "SIGMA9_CONFIG"))
"""Variables that are no settings; SIGMA9_DATA_DIR is the setting `data_dir`."""

_VARIABLE: Final = re.compile(r"\$(\$?)\{([^}]*)\}")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USUAL_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]*")
_UNWRITABLE: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_ORIGIN_SECTIONS: Final = frozenset(("massive", "market_data", "strategy", "logging", "llm", "chart"))
_PATTERNS: Final[Mapping[str, str]] = {
    "node": "must be 1 to 32 of the characters a-z, 0-9, _ and -",
    "mqtt.base_topic": "must be topic levels parted by single /, without + and #",
    "home_assistant.prefix": "must be topic levels parted by single /, without + and #",
    "scheduler.data_update_time": 'must be a time of day from "00:00" to "23:59"',
}

_log = logging.getLogger("sigma9.config")

Model = TypeVar("Model", bound=BaseModel)


class Places:
    """Tells the file and line, the variable or the option of a dotted path, for further messages about it."""

    def __init__(self, reading: _Configuration[Settings]) -> None:
        self._reading = reading

    def __call__(self, path: str) -> str:
        """Tell where a setting was given, or the nearest section around it."""
        return self._reading.locate(path)

    def conceal(self, fault: Fault) -> Fault:
        """Take out of a fault what must not be shown: secrets, and what ${NAME} brought in."""
        return self._reading.conceal(fault)

    def is_faulty(self, path: str) -> bool:
        """Tell whether a setting, or a section around it, could not be read."""
        return self._reading.is_faulty(path)

    def is_partial(self, path: str) -> bool:
        """Tell whether something below a path could not be read."""
        return self._reading.is_partial(path)

    def refused(self, path: str) -> object:
        """Give a value that was read and makes no sense together with others; None where there is none."""
        return self._reading.refused.get(path)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The server's settings, and where they come from."""

    settings: Settings
    locate: Places


@dataclass(frozen=True, slots=True)
class Survey:
    """What could be read of the server's settings, and every fault of theirs, in the order of the file."""

    settings: Settings | None
    """Where something was wrong it has its default; None where nothing could be made of it."""
    faults: tuple[Fault, ...]
    places: Places


def load_settings(
    path: Path | None = None, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Settings:
    """Read the server's settings; raise ConfigError with every fault.

    Without a path, SIGMA9_CONFIG names the file, else ./server_config.yaml is read where it exists, else there are
    defaults alone. `overrides` are the command line's `a.b=VALUE`.
    """
    return read_settings(path, overrides, environ).settings


def read_settings(
    path: Path | None = None, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Loaded:
    """Read the server's settings like `load_settings`, and tell where each of them was given."""
    survey = survey_settings(path, overrides, environ)
    if survey.faults or survey.settings is None:
        raise ConfigError(survey.faults)
    return Loaded(survey.settings, survey.places)


def survey_settings(
    path: Path | None = None, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Survey:
    """Read what can be read of the server's settings, so that the rest of it can be checked as well."""
    environ = os.environ if environ is None else environ
    reading = _Configuration(Settings, environ, senseless)
    settings = reading.survey(find_config(path, environ), overrides)
    return Survey(settings, reading.faults(), Places(reading))


def load_client_settings(
    path: Path | None = None, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> ClientSettings:
    """Read a client's settings, by default from ./client_config.yaml; raise ConfigError with every fault."""
    environ = os.environ if environ is None else environ
    if path is None and Path(CLIENT_FILE).exists():
        path = Path(CLIENT_FILE)
    return _Configuration(ClientSettings, environ, senseless_client).load(path, overrides)


def find_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Path | None:
    """Tell which server file is read: the one given, SIGMA9_CONFIG's, ./server_config.yaml, or none."""
    if path is not None:
        return path
    named = (os.environ if environ is None else environ).get("SIGMA9_CONFIG", "")
    if named:
        return Path(named)
    return Path(SERVER_FILE) if Path(SERVER_FILE).exists() else None


def find_data_dir(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """Tell which data_dir this machine's server uses, however broken the rest of its file is; never raises.

    Clients look there for the running server: a kill must not depend on a clean configuration file.
    """
    environ = os.environ if environ is None else environ
    named = environ.get("SIGMA9_DATA_DIR", "").strip()
    if named:
        return _absolute(named, Path.cwd()) or Path.cwd() / named
    file = find_config(path, environ)
    folder = Path.cwd() if file is None else file.absolute().parent
    default = folder / "data"
    if file is None:
        return default
    try:
        tree = read_yaml(file.read_bytes()).tree
    except OSError:
        return default
    value = tree.get("data_dir") if isinstance(tree, dict) else None
    if not isinstance(value, Scalar) or not value.text:
        return default
    text = _VARIABLE.sub(lambda match: environ.get(match[2], "") if not match[1] else match[0][1:], value.text)
    return _absolute(text, folder) or default


def masked(settings: BaseModel) -> dict[str, Any]:
    """Give the effective settings as plain values, with every secret masked."""
    shown = _masked(settings.model_dump(mode="json"), root(type(settings)))
    return dict(shown)


def secrets_of(settings: BaseModel) -> list[str]:
    """List the secrets that the settings hold, those of plugins' own settings included."""
    found: list[str] = []
    _collect(settings, root(type(settings)), found)
    return found


# --- the loading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a setting was given."""

    order: tuple[int, int]
    """File (0, line), variable (1, position), option (2, position): the order of the faults."""
    where: str
    folder: Path
    expand: bool = True
    """Whether ${NAME} is read from the environment: not in what comes from there."""


class _Omit:
    """Marks a value that is left to its default."""


_OMIT: Final = _Omit()


class _Configuration(Generic[Model]):
    """One reading of one configuration file with its overrides."""

    def __init__(
        self, model: type[Model], environ: Mapping[str, str], sense: Callable[[Model], Iterable[Sense]]
    ) -> None:
        self._model = model
        self._environ = environ
        self._sense = sense
        self._client = model is ClientSettings
        self._folder = Path.cwd()
        self._tree: dict[str, Tree] = {}
        self._sources: dict[Location, _Source] = {(): _Source((0, 0), "configuration", self._folder)}
        self._faults: list[tuple[tuple[int, int], Fault]] = []
        self._faulty: set[Location] = set()
        self._filled_in: set[Location] = set()
        self.refused: dict[str, object] = {}
        """Values that were read, and make no sense together with others."""
        self._secrets = Secrets()
        self._holds_secret = False
        self._unreadable = False
        """Nothing of the file is known: what its settings mean together can't be judged."""
        self._file_data_dir: Path | None = None

    def load(self, path: Path | None, overrides: Sequence[str]) -> Model:
        """Read everything; raise ConfigError where anything is wrong."""
        settings = self.survey(path, overrides)
        if self._faults or settings is None:
            raise ConfigError(self.faults())
        return settings

    def survey(self, path: Path | None, overrides: Sequence[str]) -> Model | None:
        """Read everything, with defaults where something is wrong; `faults` tells what."""
        if path is not None:
            self._read_file(path)
        self._file_data_dir = self._data_dir_of_file()
        self._read_environ()
        self._read_overrides(overrides)
        self._secrets.note(self._tree, root(self._model))
        values = self._section(self._tree, root(self._model), ())
        if self._model is Settings:
            self._place(values)
        settings = self._validate(values)
        if settings is None or self._unreadable:
            return None
        for paths, message in self._sense(settings):
            located = [_split(one) for one in paths]
            if not any(self._is_faulty(at) for at in located):
                given = next((at for at in located if at in self._sources), located[0])
                self._fault(given, message)
        for secret in secrets_of(settings):
            redact(secret)
        if path is not None and self._holds_secret and not self._faults:
            _warn_of_readers(path)
        return settings

    def faults(self) -> tuple[Fault, ...]:
        """Give every fault: the file's by line, then those of variables, then those of options."""
        self._faults.sort(key=lambda entry: entry[0])
        return tuple(dict.fromkeys(self.conceal(fault) for _, fault in self._faults))

    def locate(self, path: str) -> str:
        """Tell where a setting was given, or the nearest section around it."""
        return self._source(_split(path)).where

    def is_faulty(self, path: str) -> bool:
        """Tell whether a setting, or a section around it, could not be read."""
        return self._is_faulty(_split(path))

    def is_partial(self, path: str) -> bool:
        """Tell whether something below a path could not be read."""
        at = _split(path)
        return any(known[: len(at)] == at for known in self._faulty)

    def conceal(self, fault: Fault) -> Fault:
        """Take out of a fault what must not be shown: secrets, and what ${NAME} brought in."""
        if _split(fault.path) in self._filled_in:
            fault = replace(fault, message=fault.message.partition(", not ")[0])
        return self._secrets.conceal(fault)

    # reading ----------------------------------------------------------------

    def _read_file(self, path: Path) -> None:
        name = str(path)
        self._folder = path.absolute().parent
        self._sources[()] = _Source((0, 0), name, self._folder)
        whole = _Source((0, 1), f"{name}:1", self._folder)
        try:
            data = path.read_bytes()
        except OSError as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
            self._fault((), f"it can't be read: {reason}")
            self._unreadable = True
            return
        except ValueError:
            self._fault((), "this is not the name of a file")
            self._unreadable = True
            return
        document = read_yaml(data)
        for at, line in document.lines.items():
            if at:
                self._sources[at] = _Source((0, line), f"{name}:{line}", self._folder)
        self._faulty.update((key,) for key in document.lost)
        for fault in document.faults:
            if fault.at and fault.spoilt:
                self._faulty.add(fault.at)
            where = Fault(f"{name}:{fault.line}", _dotted(fault.at), fault.message)
            self._faults.append(((0, fault.line), where))
        tree = document.tree
        if isinstance(tree, dict):
            self._tree = tree
        elif tree is not None and not (isinstance(tree, Scalar) and tree.plain and tree.value() is None):
            kind = "a list" if isinstance(tree, list) else "a single value"
            self._fault((), f"the file must hold keys and values, not {kind}", source=whole)
        self._unreadable = not isinstance(tree, dict) and bool(self._faults)
        self._secrets.note(self._tree, root(self._model))

    def _read_environ(self) -> None:
        names = sorted(name for name in self._environ if name.startswith(PREFIX))
        for index, name in enumerate(names):
            if name in COMMAND_LINE_OWN:
                continue
            path = name[len(PREFIX) :].lower().split("__")
            other = Settings if self._client else ClientSettings
            if find(self._model, _indexed(path)) is None and find(other, _indexed(path)) is not None:
                continue  # it is meant for the other file
            source = _Source((1, index), f"the variable {name}", Path.cwd(), expand=False)
            self._override(path, self._environ[name], source)

    def _read_overrides(self, overrides: Sequence[str]) -> None:
        for index, text in enumerate(overrides):
            key, equals, value = text.partition("=")
            key = key.strip()
            where = f"the option --set {key}" if equals and key else "the option --set"
            source = _Source((2, index), where, Path.cwd())
            if not equals or not key:
                self._report(source, "", "write it as KEY=VALUE, such as server.port=9000")
            else:
                self._override(key.split("."), value, source)

    def _override(self, path: Sequence[str], text: str, source: _Source) -> None:
        shape: Shape | None = root(self._model)
        at: Location = ()
        for part in path:
            known = shape
            holder = self._look_up(at)
            if shape is not None and (shape.kind == "list" or isinstance(holder, list)) and part.isdecimal():
                at = (*at, int(part))
            else:
                at = (*at, part)
            shape = shape.child(at[-1]) if shape is not None and part else None
            if shape is None:
                if known is not None and known.kind == "list":
                    self._report(source, _dotted(at), "an entry of a list is named by its number, from 0")
                else:
                    self._report(source, _dotted(at), _no_such(part, known))
                return
        assert shape is not None  # noqa: S101 - a path has at least one part, and each of them was found
        tree = self._override_tree(shape, text, source, at)
        if isinstance(tree, Scalar) and tree.value() is None and shape.kind in ("section", "mapping"):
            self._report(source, _dotted(at), f"must be {WANTED[shape.kind]}, not empty")
        elif tree is not None:
            self._put(at, tree, source)

    def _override_tree(self, shape: Shape, text: str, source: _Source, at: Location) -> Tree | None:
        """Parse an override's value; where text is wanted, what was written is the text, without quotes."""
        bare = text.strip()
        if shape.kind == "text" and not (len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "'\""):
            return Scalar(bare, plain=bare in ("", "~", "null"))
        document = read_yaml(text)
        if document.faults:
            self._report(source, _dotted(at), f"the value is not YAML: {WANTED[shape.kind]} is wanted here")
            self._faulty.add(at)
            return None
        return Scalar("") if document.tree is None else document.tree

    def _put(self, at: Location, tree: Tree, source: _Source) -> None:
        if isinstance(tree, dict) and isinstance(self._look_up(at), dict):
            shape = find(self._model, at)
            if shape is not None and shape.kind == "section":
                for key, value in tree.items():
                    self._put((*at, key), value, source)
                return
        holder: Any = self._tree
        for depth, part in enumerate(at):
            if isinstance(holder, list) and (not isinstance(part, int) or part > len(holder)):
                message = f"the list has {len(holder)} entries, counted from 0"
                self._report(source, _dotted(at), message)
                return
            missing = part == len(holder) if isinstance(holder, list) else part not in holder
            if depth == len(at) - 1:
                if isinstance(holder, list) and missing:
                    holder.append(tree)
                else:
                    holder[part] = tree
            else:
                below = None if missing else holder[part]
                if not isinstance(below, dict | list):
                    below = self._fresh(at[: depth + 1])
                    if isinstance(holder, list) and missing:
                        holder.append(below)
                    else:
                        holder[part] = below
                holder = below
        for known in [known for known in self._sources if known[: len(at)] == at and known]:
            del self._sources[known]
        self._faulty.discard(at)
        self._sources[at] = source

    def _fresh(self, at: Location) -> Tree:
        """Make what an override is put into where the file has nothing: the default list, or an empty section."""
        shape = find(self._model, at)
        if shape is None or shape.kind != "list":
            return {}
        value: Any = self._model()
        for part in at:
            value = value[part] if isinstance(part, int) else getattr(value, part)
        return [_as_tree(entry.model_dump(mode="json", exclude_defaults=True)) for entry in value]

    def _look_up(self, at: Location) -> Tree | None:
        tree: Any = self._tree
        for part in at:
            if isinstance(tree, dict) and part in tree:
                tree = tree[str(part)]
            elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
                tree = tree[part]
            else:
                return None
        found: Tree = tree
        return found

    # typing -----------------------------------------------------------------

    def _value(self, tree: Tree, shape: Shape, at: Location) -> Any:
        if isinstance(tree, Scalar):
            return self._scalar(tree, shape, at)
        if isinstance(tree, dict) and shape.kind == "section":
            return self._section(tree, shape, at)
        if isinstance(tree, dict) and shape.kind in ("mapping", "free"):
            return self._entries(tree, shape, at)
        if isinstance(tree, list) and shape.kind in ("list", "free"):
            return self._items(tree, shape, at)
        self._fault(at, f"must be {WANTED[shape.kind]}, not {_named(tree)}")
        return _OMIT

    def _section(self, tree: dict[str, Tree], shape: Shape, at: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in tree.items():
            here = (*at, key)
            below = shape.child(key)
            if below is None:
                self._fault(here, self._unknown(key, shape, here))
                continue
            found = self._value(value, below, here)
            if found is not _OMIT:
                values[key] = found
        assert shape.model is not None  # noqa: S101 - a section has a model
        for name, field in shape.model.model_fields.items():
            if field.is_required() and name not in values:
                if not self._is_faulty((*at, name)):
                    self._fault((*at, name), "is required", source=self._source(at))
                values[name] = "?"
        return values

    def _unknown(self, key: str, shape: Shape, at: Location) -> str:
        other = Settings if self._client else ClientSettings
        if find(other, at) is not None:
            if self._client:
                return f"belongs in {SERVER_FILE}: a client's file holds no setting and no secret of the server"
            return f"belongs in {CLIENT_FILE}"
        if len(at) == 1 and key in _ORIGIN_SECTIONS:
            return "there is no such setting; `sigma9 config split` moves what it can of an old file"
        return _no_such(key, shape)

    def _entries(self, tree: dict[str, Tree], shape: Shape, at: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in tree.items():
            below = shape.child(key)
            assert below is not None  # noqa: S101 - any key is known here
            found = self._value(value, below, (*at, key))
            if found is not _OMIT:
                values[key] = found
        return values

    def _items(self, tree: list[Tree], shape: Shape, at: Location) -> list[Any]:
        values: list[Any] = []
        for index, value in enumerate(tree):
            below = shape.child(index)
            assert below is not None  # noqa: S101 - any index is known here
            here = (*at, index)
            found = self._value(value, below, here)
            if found is _OMIT:
                if not self._is_faulty(here):
                    self._fault(here, f"must be {WANTED[below.kind]}, not empty")
                found = (
                    {"plugin": "?"} if below.kind == "section" else "?"
                )  # so that later entries keep their number
            values.append(found)
        return values

    def _scalar(self, scalar: Scalar, shape: Shape, at: Location) -> Any:
        filled = self._filled(scalar, shape, at)
        if filled is None or at in self._faulty:
            return _OMIT
        substituted = filled is not scalar
        if substituted:
            self._filled_in.add(at)
        value = filled.flag() if shape.kind == "flag" else filled.value()
        if value is None and shape.kind in ("section", "mapping"):
            return _OMIT
        if value is None:
            if shape.optional:
                return None
            self._fault(at, f"must be {WANTED[shape.kind]}, not empty")
            return _OMIT
        if shape.secret and not substituted and self._source(at).order[0] == 0:
            self._holds_secret = True
        shown = "" if shape.secret or substituted else quoted(scalar.text)
        match shape.kind:
            case "free":
                return value
            case "flag" if isinstance(value, bool):
                return value
            case "whole" if isinstance(value, int) and not isinstance(value, bool):
                return value
            case "number" if isinstance(value, int | float) and not isinstance(value, bool):
                if math.isfinite(value):
                    return value
            case "text":
                if isinstance(value, str):
                    return self._text(value, shape, at, shown)
                if filled.text in shape.choices:
                    return filled.text
                self._fault(at, f"must be text: put {shown or 'it'} in quotes")
                return _OMIT
        self._fault(at, f"must be {WANTED[shape.kind]}" + (f", not {shown}" if shown else ""))
        return _OMIT

    def _text(self, text: str, shape: Shape, at: Location, shown: str) -> Any:
        if _UNWRITABLE.search(text):
            self._fault(at, "must not hold control characters")
            return _OMIT
        if shape.choices and text not in shape.choices:
            choices = ", ".join(shape.choices[:-1]) + f" or {shape.choices[-1]}"
            self._fault(at, f"must be {choices}" + (f", not {shown}{hint(text, shape.choices)}" if shown else ""))
            return _OMIT
        if shape.path:
            path = _absolute(text, self._source(at).folder)
            if path is None:
                self._fault(at, "must be the path of a file or folder")
                return _OMIT
            return path
        return text

    def _filled(self, scalar: Scalar, shape: Shape, at: Location) -> Scalar | None:
        """Fill ${NAME} from the environment; what was filled is typed by what is wanted, in quotes or not."""
        if "${" not in scalar.text or not self._source(at).expand:
            return scalar
        missing: list[str] = []

        def fill(match: re.Match[str]) -> str:
            if match[1]:
                return f"${{{match[2]}}}"
            name = match[2]
            if not _NAME.fullmatch(name):
                missing.append("${...} takes the name of one environment variable; $${ stands for ${ itself")
            elif name not in self._environ:
                told = f" {name}" if _USUAL_NAME.fullmatch(name) or not shape.secret else " that it names"
                missing.append(f"the environment variable{told} is not set: set it, or write the value here")
            return self._environ.get(name, "")

        text = _VARIABLE.sub(fill, scalar.text)
        for message in missing:
            self._fault(at, message)
        if missing:
            return None
        plain = scalar.plain if shape.kind == "free" else shape.kind != "text"
        return Scalar(text, plain)

    # validating -------------------------------------------------------------

    def _data_dir_of_file(self) -> Path:
        """Tell the data_dir before variables and options change it."""
        value = self._tree.get("data_dir")
        text = value.text if isinstance(value, Scalar) else ""
        text = _VARIABLE.sub(lambda match: self._environ.get(match[2], ""), text)
        return _absolute(text or "data", self._folder) or self._folder / "data"

    def _place(self, values: dict[str, Any]) -> None:
        """Make the paths that were not given absolute; the database lives in data_dir and moves with it."""
        data_dir: Path = values.setdefault("data_dir", self._folder / "data")
        database = values.setdefault("database", {})
        if not isinstance(database, dict):
            return
        path = database.get("path")
        at: Location = ("database", "path")
        in_file = self._source(at).order[0] == 0
        moved = self._source(("data_dir",)).order[0] > 0 and in_file
        before = self._file_data_dir or data_dir
        # As it is shipped: whoever moves data_dir in the file means the journal, too. With the latch in one folder
        # and the journal in another the server would come up killed.
        shipped = in_file and path == self._folder / "data" / "sigma9.db"
        if path is None or shipped:
            database["path"] = data_dir / "sigma9.db"
        elif moved and isinstance(path, Path) and path.is_relative_to(before):
            database["path"] = data_dir / path.relative_to(before)

    def _validate(self, values: dict[str, Any]) -> Model | None:
        """Let the models judge; what they refuse is put aside, so that the next look finds what is behind it."""
        for _ in range(100):
            try:
                return self._model.model_validate(values)
            except ValidationError as error:
                progress = False
                for problem in problems(error, values):
                    at, message = _split(problem.path), problem.message
                    if not at:  # a model's own check names its field first
                        named, colon, rest = message.partition(": ")
                        if colon and find(self._model, _split(named)) is not None:
                            at, message = _split(named), rest
                            self.refused[named] = values.get(named)
                    if at in self._filled_in:  # what came from the environment is not shown
                        message = message.partition(", not ")[0]
                    if problem.path in _PATTERNS:
                        given = message.partition(", not ")
                        message = _PATTERNS[problem.path] + "".join(given[1:])
                    if not self._is_faulty(at):
                        self._fault(at, message)
                    progress = _remove(values, at) or progress
                if not progress:
                    return None
        return None

    # faults -----------------------------------------------------------------

    def _source(self, at: Location) -> _Source:
        while at not in self._sources:
            at = at[:-1]
        return self._sources[at]

    def _is_faulty(self, at: Location) -> bool:
        return any(at[: len(known)] == known for known in self._faulty)

    def _fault(self, at: Location, message: str, source: _Source | None = None) -> None:
        if at:
            self._faulty.add(at)
        self._report(source or self._source(at), _dotted(at), message)

    def _report(self, source: _Source, path: str, message: str) -> None:
        self._faults.append((source.order, Fault(source.where, path, message)))


# --- small things ---------------------------------------------------------------------------------------------


def _dotted(at: Location) -> str:
    """Write a location; what a terminal could not show is replaced."""
    return "".join(sign if sign.isprintable() else "?" for sign in ".".join(map(str, at)))


def _split(path: str) -> Location:
    return _indexed(path.split(".")) if path else ()


def _indexed(parts: Sequence[str]) -> Location:
    return tuple(int(part) if part.isdecimal() and len(part) < 6 else part for part in parts)


def _named(tree: Tree) -> str:
    if isinstance(tree, Scalar):
        return quoted(tree.text)
    return "a list" if isinstance(tree, list) else "keys and values"


def _no_such(key: str, shape: Shape | None) -> str:
    """Say that a key is not known, with the one that was meant, else with those that there are."""
    keys = shape.keys() if shape is not None else ()
    meant = hint(key, keys)
    if meant or not keys:
        return f"there is no such setting{meant or '; remove it'}"
    return f"there is no such setting; known here: {listed(keys)}"


def _absolute(text: str, folder: Path) -> Path | None:
    """Make a path absolute; None where it can't be one."""
    if not text.strip() or "\0" in text:
        return None
    try:
        return Path(os.path.normpath(folder / Path(text).expanduser()))
    except (RuntimeError, ValueError):
        return None


def _as_tree(value: Any) -> Tree:
    if isinstance(value, dict):
        return {str(key): _as_tree(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_tree(entry) for entry in value]
    return Scalar("" if value is None else str(value), plain=not isinstance(value, str))


def _remove(values: Any, at: Location) -> bool:
    """Put a refused value aside; an entry of a list keeps its place. Tell whether there was one."""
    for part in at[:-1]:
        if not _holds(values, part):
            return False
        values = values[part]
    if not at or not _holds(values, at[-1]):
        return False
    if isinstance(values, list) and isinstance(at[-1], int):
        del values[at[-1] :]
    else:
        del values[at[-1]]
    return True


def _holds(values: object, part: str | int) -> bool:
    if isinstance(values, list):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, dict) and part in values


def _masked(value: Any, shape: Shape | None) -> Any:
    if shape is not None and shape.secret and value is not None:
        return MASK
    if isinstance(value, dict):
        return {key: _masked(entry, shape.child(key) if shape else None) for key, entry in value.items()}
    if isinstance(value, list):
        return [_masked(entry, shape.child(index) if shape else None) for index, entry in enumerate(value)]
    return value


def _collect(value: Any, shape: Shape | None, found: list[str]) -> None:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            _collect(getattr(value, name), shape.child(name) if shape else None, found)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _collect(entry, shape.child(key) if shape else None, found)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _collect(entry, shape.child(index) if shape else None, found)
    elif shape is not None and shape.secret and value is not None:
        found.append(value.get_secret_value() if hasattr(value, "get_secret_value") else str(value))


def _warn_of_readers(path: Path) -> None:
    try:
        readable = path.stat().st_mode & stat.S_IROTH
    except OSError:
        return
    if readable:
        _log.warning("%s holds a secret and everybody on this machine can read it: chmod 600 %s", path, path)
