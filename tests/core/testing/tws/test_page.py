"""docs/fake-tws.md says what is so, and tests/core/testing/tws holds with the other library, too.

`python tests/core/testing/tws/test_page.py` writes the table of faults.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.cli import fake_tws
from sigma9_core.testing.tws import KINDS, FakeTws
from sigma9_core.testing.tws.asking import METHODS
from sigma9_core.testing.tws.contracts import PRICES
from sigma9_core.testing.tws.insync import run_with_ib_insync

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
PAGE = ROOT / "docs" / "fake-tws.md"
HEAD = "| fault | what happens |\n|---|---|\n"


def table() -> str:
    """Write the table of faults."""
    return HEAD + "".join(f"| `{kind.name}` | {kind.about} |\n" for kind in KINDS.values())


def with_faults(page: str) -> str:
    """Put the table of faults in the place of the one that a page has."""
    before, after = page.split(HEAD)
    return before + table() + after[re.match(r"(?:[|F].*\n)*", after).end() :]  # type: ignore[union-attr]


def test_faults() -> None:
    """The page has every fault, and counts them."""
    page = PAGE.read_text(encoding="utf-8")
    assert with_faults(page) == page, f"run `python {Path(__file__).relative_to(ROOT)}`"
    assert f"{len(KINDS)} named faults" in page


def test_options() -> None:
    """The page has every option of the command."""
    subparsers = argparse.ArgumentParser().add_subparsers()
    fake_tws.register(subparsers)
    options = set(re.findall(r"--[a-z][a-z-]+", subparsers.choices["fake-tws"].format_help()))
    told = set(re.findall(r"--[a-z][a-z-]+", PAGE.read_text(encoding="utf-8")))

    assert options - {"--help"} - told == set()
    assert told - options == set()


def test_methods() -> None:
    """Every method of the page is one, and the page has every method that can be asked for."""
    page = PAGE.read_text(encoding="utf-8")
    rows = page[page.index("| to ... | call |") : page.index("An order is named by")]
    told = set(re.findall(r"([a-z_]+)\(", rows))

    assert [name for name in told if not hasattr(FakeTws, name)] == []
    assert METHODS - told == set()
    assert all(symbol in page for symbol in PRICES)


async def test_example(lib: Any) -> None:
    """The example of the page passes, with either library."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(example.replace("import ib_async\n", ""), str(PAGE), "exec"), scope)  # noqa: S102 - ours
    scope["ib_async"] = lib
    async with FakeTws() as tws:
        await scope["test_lost_acknowledgement"](tws)


@pytest.mark.insync
@pytest.mark.timeout(200)
def test_everything_with_ib_insync(lib: Any) -> None:
    """What holds with `ib_async` holds with `ib_insync`."""
    if lib.__name__ == "ib_insync":
        pytest.skip("this run has ib_insync already")
    run_with_ib_insync("-m", "not insync", HERE, within=180)


if __name__ == "__main__":
    PAGE.write_text(with_faults(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
