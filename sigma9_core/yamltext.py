"""YAML text becomes a tree of scalars that know whether they stood in quotes, and the line of everything in it.

The types of plain scalars follow YAML 1.2 (`16:30`, `on` and `0123` are text); the configuration file's models
decide what a scalar must be. PyYAML's own loader in Python is used, because libyaml's crashes on deep nesting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from sigma9_core.yamlmend import Mending

Location = tuple[str | int, ...]
"""A place in the tree: keys and list indices."""

MOST_NODES: Final = 20_000
"""The most values that a file may hold, aliases expanded."""
MOST_BYTES: Final = 1_000_000
MOST_MENDED: Final = 100_000
"""The longest text, in characters, that is read on after a part that is no YAML."""
MOST_MENDINGS: Final = 20
"""How many such parts are told at once."""

_NULL: Final = frozenset(("", "~", "null", "Null", "NULL"))
_FLAGS: Final[Mapping[str, bool]] = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_OLD_FLAGS: Final[Mapping[str, bool]] = {"yes": True, "on": True, "no": False, "off": False}
_WHOLE: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
_BASED: Final = re.compile(r"0x[0-9a-fA-F]{1,16}|0o[0-7]{1,22}")
_NUMBER: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")
_PADDED: Final = re.compile(r"[-+]?0[0-9]")
_ENDLESS: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TAG: Final = "tag:yaml.org,2002:"
_SCALAR_TAGS: Final = frozenset(f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "timestamp"))
_LONG_QUOTE: Final = re.compile(r"'[^']{2,}'|\"[^\"]{2,}\"")
_ALIAS: Final = re.compile(r"undefined alias '(.*)'")
_BEGINS_EARLIER: Final = re.compile(r"simple key|quoted scalar|flow (mapping|sequence|node)")
_HAS_KEY: Final = re.compile(r":(\s|$)")

Plain = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value as it was written."""

    text: str
    plain: bool = True
    """Not in quotes: it may be a number, a flag or null."""

    def value(self) -> Plain:
        """Give the value by the rules of YAML 1.2."""
        text = self.text
        if not self.plain:
            return text
        if text in _NULL:
            return None
        if text in _FLAGS:
            return _FLAGS[text]
        if _WHOLE.fullmatch(text):
            return int(text)
        if _BASED.fullmatch(text):
            return int(text, 0)
        if _ENDLESS.fullmatch(text):
            return float(text.replace(".", ""))
        if _NUMBER.fullmatch(text) and not _PADDED.match(text):
            return float(text)
        return text

    def flag(self) -> Plain:
        """Give the value where a flag is wanted: the old words yes, no, on and off count as well."""
        return _OLD_FLAGS.get(self.text.lower(), self.value()) if self.plain else self.text


Tree = dict[str, "Tree"] | list["Tree"] | Scalar


def plain_value(tree: Tree) -> Any:
    """Give a tree as plain Python values."""
    if isinstance(tree, Scalar):
        return tree.value()
    if isinstance(tree, list):
        return [plain_value(entry) for entry in tree]
    return {key: plain_value(entry) for key, entry in tree.items()}


@dataclass(frozen=True, slots=True)
class TextFault:
    """What is wrong at a line of the text."""

    line: int
    at: Location
    message: str
    spoilt: bool = True
    """Whether the value there is of no use; of a key that stands twice the first value still counts."""


@dataclass(slots=True)
class Document:
    """One YAML text; `tree` is None where it is empty or could not be read at all.

    Where a part is no YAML, the tree is that of the other top-level keys.
    """

    tree: Tree | None = None
    lines: dict[Location, int] = field(default_factory=dict)
    """The line, counted from 1, of every key and list entry."""
    faults: list[TextFault] = field(default_factory=list)
    lost: tuple[str, ...] = ()
    """The top-level keys that could not be read."""


def read_yaml(data: bytes | str) -> Document:
    """Read one YAML document; never raises for its content: what is wrong stands in `faults`."""
    document = Document()
    if len(data) > MOST_BYTES:
        document.faults.append(TextFault(1, (), f"the file is larger than {MOST_BYTES} bytes"))
        return document
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        document.faults.append(TextFault(line, (), "this is not UTF-8 text: save it as UTF-8"))
        return document
    node = _compose(text, document)
    if node is not None:
        _Reader(document).read_root(node)
    return document


def _compose(text: str, document: Document) -> yaml.Node | None:
    """Compose the text, or what is left of it without the parts that are no YAML; they stand in the faults."""
    mending = Mending(text)
    for _ in range(MOST_MENDINGS):
        try:
            loader = yaml.SafeLoader(text)
            try:
                node: yaml.Node | None = loader.get_single_node()
            finally:
                loader.dispose()
        except yaml.reader.ReaderError as error:
            line = text[: error.position].count("\n") + 1 if isinstance(error.position, int) else 1
            document.faults.append(TextFault(line, (), "a control character can't stand in YAML: take it out"))
            return None
        except yaml.MarkedYAMLError as error:
            alias = _ALIAS.search(error.problem or "")
            if not (alias and mending.knew(alias[1])):
                document.faults.append(_syntax(error, text))
            if len(text) > MOST_MENDED or not mending.take_out(_culprit(error, text)):
                return None
            text = mending.text
            document.lost = tuple(mending.lost)
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            document.faults.append(TextFault(1, (), f"this is not YAML ({type(error).__name__})"))
            return None
        except RecursionError:
            document.faults.append(TextFault(1, (), "the values are nested too deep"))
            return None
        else:
            return node
    return None


class _TooMuch(Exception):
    """The walk met more nodes than a file may hold."""


class _Reader:
    """Walks the nodes of one document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._open: set[int] = set()
        self._count = 0
        self._resolver = yaml.resolver.Resolver()

    def read_root(self, node: yaml.Node) -> None:
        """Fill the document from its root node."""
        try:
            self._document.tree = self._read(node, ())
        except _TooMuch:
            self._document.tree = None
            self._fault(node, (), f"aliases make this more than {MOST_NODES} values")
        except RecursionError:
            self._document.tree = None
            self._fault(node, (), "the values are nested too deep")

    def _read(self, node: yaml.Node, at: Location) -> Tree:
        self._count += 1
        if self._count > MOST_NODES:
            raise _TooMuch
        self._document.lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, at)
        if id(node) in self._open:
            self._fault(node, at, "an alias holds itself")
            return Scalar("")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                self._known_tag(node, at, "seq")
                return [self._read(item, (*at, index)) for index, item in enumerate(node.value)]
            self._known_tag(node, at, "map")
            return self._mapping(node, at)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, at: Location) -> dict[str, Tree]:
        values: dict[str, Tree] = {}
        merged: list[yaml.Node] = []
        first: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._fault(key, at, "a key must be a single word")
                continue
            name = str(key.value)
            line = key.start_mark.line + 1
            if key.tag == f"{_TAG}merge":
                merged.append(value)
            elif name in first:
                message = f"the key stands twice; the first one is in line {first[name]}: remove one of them"
                self._document.faults.append(TextFault(line, (*at, name), message, spoilt=False))
            else:
                first[name] = line
                self._document.lines[(*at, name)] = line
                values[name] = self._read(value, (*at, name))
        for source in merged:
            self._merge(source, at, values)
        return values

    def _merge(self, source: yaml.Node, at: Location, values: dict[str, Tree]) -> None:
        """Take the keys of `<<: *alias` that are not there yet."""
        parts = source.value if isinstance(source, yaml.SequenceNode) else [source]
        for part in parts:
            if not isinstance(part, yaml.MappingNode) or id(part) in self._open:
                self._fault(part, at, "<< takes a mapping, or a list of mappings")
                continue
            self._open.add(id(part))
            for key, value in part.value:
                if key.tag == f"{_TAG}merge":
                    self._merge(value, at, values)
                elif isinstance(key, yaml.ScalarNode) and key.value not in values:
                    self._document.lines.setdefault((*at, key.value), key.start_mark.line + 1)
                    values[key.value] = self._read(value, (*at, key.value))
            self._open.discard(id(part))

    def _scalar(self, node: yaml.ScalarNode, at: Location) -> Scalar:
        text = str(node.value)
        if node.style is not None:
            self._known_tag(node, at, "str")
            return Scalar(text, plain=False)
        implied = self._resolver.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        if node.tag == implied:
            return Scalar(text)
        if node.tag not in _SCALAR_TAGS:
            self._fault(node, at, "a tag (!) has no meaning here; put a value that begins with ! in quotes")
        return Scalar(text, plain=node.tag != f"{_TAG}str")

    def _known_tag(self, node: yaml.Node, at: Location, *names: str) -> None:
        if node.tag not in {f"{_TAG}{name}" for name in names}:
            self._fault(node, at, "a tag (!) has no meaning here")

    def _fault(self, node: yaml.Node, at: Location, message: str) -> None:
        self._document.faults.append(TextFault(node.start_mark.line + 1, at, message))


def _culprit(error: yaml.MarkedYAMLError, text: str) -> int:
    """Tell the line, counted from 1, of what PyYAML stumbled over: where it begins, if that is known."""
    begins = _BEGINS_EARLIER.search(error.context or "")  # a mapping's context is its beginning, far above
    mark = error.context_mark if begins else error.problem_mark
    mark = mark or error.problem_mark or error.context_mark
    if mark is None:
        return 1
    above = _words_above(error, text)
    return mark.line + 1 if above is None else above


def _words_above(error: yaml.MarkedYAMLError, text: str) -> int | None:
    """Tell the line of words without a colon that run into the `key:` below them, where that is what is wrong."""
    mark = error.problem_mark
    if mark is None or "mapping values are not allowed" not in (error.problem or ""):
        return None
    lines = text.splitlines()
    if _HAS_KEY.search(lines[mark.line][: mark.column]):
        return None
    above = next((index for index in range(mark.line - 1, -1, -1) if lines[index].strip()), None)
    return None if above is None or _HAS_KEY.search(lines[above]) else above + 1


def _syntax(error: yaml.MarkedYAMLError, text: str) -> TextFault:
    """Say what PyYAML stumbled over, without repeating words of the file: one of them may be a secret."""
    line = _culprit(error, text)
    problem = error.problem or error.context or "this is not YAML"
    around = text.splitlines()[max(0, line - 2) : line]
    if "undefined alias" in problem:
        problem = "an alias (*) that no anchor (&) defines; put a value that begins with * in quotes"
    elif "but found another document" in problem:
        problem = "a second document begins here (---); the file holds one"
    elif "found character '\\t'" in problem:
        problem = "a tab can't indent YAML; use blanks"
    elif "could not find expected ':'" in problem:
        problem = "this is no 'key: value'"
    elif "mapping values are not allowed" in problem:
        if _words_above(error, text) is not None:
            problem = "this is no 'key: value'"
        elif _HAS_KEY.search(
            text.splitlines()[line - 1][: error.problem_mark.column if error.problem_mark else 0]
        ):
            problem = "a second ': ' in one line; put a value that holds ': ' in quotes"
        else:
            problem = "this stands below a key that has a value already"
    elif "end of stream" in problem and "quoted" in (error.context or ""):
        problem = "a quote begins here and is not closed"
    elif "flow" in (error.context or ""):
        problem = "a [ or { begins here and is not closed, or a comma is missing in it"
    elif "duplicate anchor" in (error.context or ""):
        problem = "an anchor (&) of this name stands above already; give it another name"
    elif "mapping keys are not allowed" in problem:
        problem = "a '? ' can't stand here; put a value that begins with ? in quotes"
    elif "expected <block end>" in problem:
        problem = "this is indented unlike the lines above it, or goes on after a value that is complete"
    elif "cannot start any token" in problem:
        problem = f"{_LONG_QUOTE.sub('...', problem)}; put a value that begins with it in quotes"
    elif "sequence entries are not allowed" in problem:
        problem = "a list's entry (-) can't stand here; put it into a line of its own, or the value in quotes"
    else:
        problem = _LONG_QUOTE.sub("...", problem)
    if any(re.search(r"\{[^}]*[^\"'$]\$\{", one) for one in around):
        problem += '; inside { } write "${NAME}" in quotes'
    return TextFault(line, (), f"this is not YAML: {problem}")
