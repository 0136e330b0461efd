"""The imports say what the architecture says: integrations → core ← plugins, layers, no circle, start fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "sigma9_core": ROOT / "sigma9_core",
    "sigma9_plugins": ROOT / "plugins" / "sigma9_plugins",
    "sigma9_integrations": ROOT / "integrations" / "sigma9_integrations",
}

VOCABULARY = frozenset(
    (
        *("errors", "clock", "models", "events", "commands", "entities", "contracts", "hookspecs"),
        *("config", "calendar", "board", "bus", "lanes", "explain"),
    )
)
"""The nouns that everything else is written in."""
MONEY_MAY = VOCABULARY | {"afterwards", "garbage", "payload", "workers"}
"""What the money path imports from the rest of the core."""
PUBLIC = VOCABULARY | {"bars", "money.days", "money.exposure", "money.ids", "money.pricing"}
"""What a plugin imports: the vocabulary, how our order ids look, and sums that gate and rules must do alike."""
ROOTS: Mapping[str, frozenset[str]] = {
    "engine": frozenset(("serve", "testing")),
    "serve": frozenset(("cli", "testing")),
    "cli": frozenset(("cli", "__main__")),
    "testing": frozenset(("testing", "cli.fake_tws")),
}
"""Who may import the composition root, what starts it, the command line and the test kit."""

THIRD_PARTY: Mapping[str, frozenset[str] | None] = {
    "pydantic": None,
    "pydantic_core": None,
    "pluggy": frozenset(("hookspecs", "plugins")),
    "yaml": None,
    "polars": frozenset(("scanning", "bars", "export")),
    "sqlalchemy": frozenset(
        f"money.{name}" for name in ("tables", "postgres", "integrity", "history", "snapshot", "journal")
    ),
    "psycopg": frozenset(("testing",)),
    "tinydb": frozenset(("state",)),
    "apscheduler": frozenset(("schedule",)),
    "exchange_calendars": frozenset(("calendar_build",)),
    "rich": frozenset(("cli",)),
    "websockets": frozenset(("cli", "testing")),
    "hypothesis": frozenset(("testing",)),
    "pytest": frozenset(("testing",)),
}
"""Where the core may import a package; None: anywhere. What is not here is not a dependency of the core."""
HEAVY = frozenset(("polars", "numpy", "pandas", "apscheduler", "exchange_calendars"))
"""Imported late, inside functions, everywhere: a server must be online within two seconds."""


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    by: str
    name: str
    line: int
    late: bool
    """Inside a function: it is not run when the module is imported."""

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.by}:{self.line} imports {self.name}{' (late)' if self.late else ''}"


def sources(package: str) -> dict[str, str]:
    """Read a package: its modules by full name."""
    folder = PACKAGES[package]
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (package, *path.relative_to(folder).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def imports(module: str, source: str, known: frozenset[str]) -> list[Import]:
    """Read what a module imports when it runs; what stands under `if TYPE_CHECKING` never runs."""
    return list(_visit(ast.parse(source), module, known, late=False))


def _visit(node: ast.AST, module: str, known: frozenset[str], *, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from _visit(ast.Module([other], []), module, known, late=late)
            continue
        for name in _names(child, known):
            yield Import(module, name, getattr(child, "lineno", 0), late)
        inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _visit(child, module, known, late=inside)


def _names(node: ast.AST, known: frozenset[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        for alias in node.names:
            # `from package import module` imports the module.
            yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "import_module",
        "importlib.import_module",
        "__import__",
    ):
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


MODULES = {package: sources(package) for package in PACKAGES}
KNOWN = frozenset(name for modules in MODULES.values() for name in modules)
IMPORTS = {
    package: [found for name, source in modules.items() for found in imports(name, source, KNOWN)]
    for package, modules in MODULES.items()
}


def core(name: str) -> str:
    """Name a module inside the core, without the package."""
    return name.removeprefix("sigma9_core").removeprefix(".")


def within(name: str, places: frozenset[str]) -> bool:
    """Tell whether a module of the core is one of the places, or inside one."""
    return any(core(name) == place or core(name).startswith(f"{place}.") for place in places)


def listed(wrong: list[Import]) -> str:
    return "\n".join(sorted(map(str, wrong)))


# --- direction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("sigma9_core", ("sigma9_plugins", "sigma9_integrations")),
        ("sigma9_plugins", ("sigma9_integrations",)),
        ("sigma9_integrations", ("sigma9_plugins",)),
    ],
)
def test_dependencies_point_inward(package: str, forbidden: tuple[str, ...]) -> None:
    """The core imports neither plugins nor integrations, and these do not import each other, not even late."""
    assert not listed([found for found in IMPORTS[package] if found.top in forbidden])


def test_plugins_use_the_public_door() -> None:
    """Built-in plugins import the vocabulary of the core and nothing behind it, as anybody's plugin would."""
    inside = [found for found in IMPORTS["sigma9_plugins"] if found.top == "sigma9_core"]

    assert inside
    tests = "sigma9_plugins.testing."  # what tests share may use what the core offers to tests
    product = [found for found in inside if not found.by.startswith(tests)]
    assert not listed([found for found in product if core(found.name) not in PUBLIC])


def test_integrations_do_not_reach_behind_the_server() -> None:
    """Integrations talk to the `Server` of the contracts: they import no engine, money path or command line."""
    behind = frozenset(("engine", "serve", "money", "cli", "dispatcher", "handlers", "plugins", "state"))

    inside = [f for f in IMPORTS["sigma9_integrations"] if f.top == "sigma9_core" and within(f.name, behind)]
    # Their commands look like the core's own: they share its options, its client's errors and its output.
    tools = frozenset(f"sigma9_core.cli.{name}" for name in ("answers", "client", "options", "output"))
    commands = [f for f in inside if f.by.startswith("sigma9_integrations.cli.") and f.name in tools]

    assert commands
    assert not listed([found for found in inside if found not in commands])
    kits = [f for f in IMPORTS["sigma9_integrations"] if f.name.startswith("sigma9_core.testing")]
    assert not listed([found for found in kits if not found.by.endswith(".testing")])


# --- layers of the core ---------------------------------------------------------------------------------------


def test_vocabulary_stands_alone() -> None:
    """A module of the vocabulary imports other modules of the vocabulary and nothing else of Sigma9."""
    inside = [
        found for found in IMPORTS["sigma9_core"] if found.top == "sigma9_core" and core(found.by) in VOCABULARY
    ]

    assert {f"sigma9_core.{name}" for name in VOCABULARY} <= KNOWN
    assert not listed([found for found in inside if core(found.name) not in VOCABULARY])


def test_money_path_knows_nothing_above_it() -> None:
    """The money path imports the vocabulary and itself, never the engine, the dispatcher or a plugin host."""
    money = [f for f in IMPORTS["sigma9_core"] if f.top == "sigma9_core" and within(f.by, frozenset(("money",)))]

    assert not listed([f for f in money if not within(f.name, MONEY_MAY | {"money"})])


@pytest.mark.parametrize("root", ROOTS)
def test_roots_are_imported_from_above_alone(root: str) -> None:
    """The composition root, the command line and the test kit are on top: nothing below imports them."""
    users = [f for f in IMPORTS["sigma9_core"] if f.top == "sigma9_core" and within(f.name, frozenset((root,)))]

    assert not listed([found for found in users if not within(found.by, ROOTS[root])])


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_goes_in_a_circle(package: str) -> None:
    """No module imports itself by way of others, not even late."""
    graph: dict[str, set[str]] = {name: set() for name in MODULES[package]}
    for found in IMPORTS[package]:
        # A package and what is inside it are one thing to Python; the package's own file is looked at as a module.
        if found.name in graph and found.name != found.by:
            graph[found.by].add(found.name)

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


# --- packages of others ---------------------------------------------------------------------------------------


def test_core_imports_each_package_where_it_belongs() -> None:
    """A package is imported in the modules that the architecture names, and no other package at all."""
    foreign = [f for f in IMPORTS["sigma9_core"] if f.top not in sys.stdlib_module_names and f.top not in PACKAGES]
    unknown = [found for found in foreign if found.top not in THIRD_PARTY]
    misplaced = [
        found
        for found in foreign
        if (places := THIRD_PARTY.get(found.top)) is not None and not within(found.by, places)
    ]

    assert not listed(unknown)
    assert not listed(misplaced)


@pytest.mark.parametrize("package", PACKAGES)
def test_heavy_packages_are_imported_late(package: str) -> None:
    """What is slow to import stands inside functions."""
    assert not listed([found for found in IMPORTS[package] if found.top in HEAVY and not found.late])


def test_start_imports_nothing_heavy() -> None:
    """A process that imports the server and every plugin has loaded none of the heavy packages."""
    names = [
        "sigma9_core.serve",
        *MODULES["sigma9_plugins"],
        "sigma9_integrations.mqtt",
        "sigma9_integrations.web",
    ]
    program = (
        f"import sys\nfor name in {names!r}: __import__(name)\nprint(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_is_relative(package: str) -> None:
    """An import names its module in full."""
    assert not listed([found for found in IMPORTS[package] if found.name.startswith(".")])


# --- the reader itself ----------------------------------------------------------------------------------------


def test_reader_finds_every_kind_of_import() -> None:
    """Plain, aliased, late, conditional and named imports are found; those for type checking are not."""
    source = """
import a.b as c, d
from e import f
from e import g
from . import h
if TYPE_CHECKING:
    import never
else:
    import otherwise
try:
    import tried
except ImportError:
    import spare
class Thing:
    import inner
    def method(self):
        import late
        importlib.import_module("named")
        importlib.import_module(unknown)
        return lambda: __import__("dynamic")
"""
    found = imports("m", source, frozenset(("e.f",)))

    assert {(each.name, each.late) for each in found} == {
        ("a.b", False),
        ("d", False),
        ("e.f", False),
        ("e", False),
        (".", False),
        ("otherwise", False),
        ("tried", False),
        ("spare", False),
        ("inner", False),
        ("late", True),
        ("named", True),
        ("dynamic", True),
    }
    assert str(found[0]) == "m:2 imports a.b"


def test_reader_sees_the_whole_tree() -> None:
    """The rules are applied to what is really there."""
    assert {
        "sigma9_core.money.journal",
        "sigma9_core.models",
        "sigma9_plugins",
        "sigma9_integrations.mqtt",
    } <= KNOWN
    assert within("sigma9_core.cli.run", frozenset(("cli",)))
    assert not within("sigma9_core.client", frozenset(("cli",)))
    assert Import("sigma9_core.money.tables", "sqlalchemy", 0, late=False).top == "sqlalchemy"
