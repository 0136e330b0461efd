"""The names of exchange calendars: those of the package, without importing it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sigma9_core import calendar_names as module
from sigma9_core.calendar_names import NAMES, installed_names, is_exchange


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    installed_names.cache_clear()
    yield
    installed_names.cache_clear()


def test_the_list_is_the_packages_own() -> None:
    """Every calendar and alias of exchange_calendars is in the list, and nothing else: update it otherwise."""
    assert installed_names() == NAMES


def test_a_name_in_the_list_needs_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual start asks nobody; aliases are names, too, and case counts."""
    monkeypatch.setattr(module, "installed_names", lambda: pytest.fail("the package was asked"))

    assert all(is_exchange(name) for name in ("XNYS", "NYSE", "24/7", "us_futures"))


def test_a_name_that_a_newer_package_has_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in the list is asked for; the package has the last word."""
    monkeypatch.setattr(module, "installed_names", lambda: frozenset(("XNEW",)))

    assert is_exchange("XNEW")
    assert not is_exchange("XOLD")
    assert not is_exchange("nyse")


def test_a_package_that_can_not_be_asked_knows_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A child that fails, or can't be started, leaves the list alone to decide."""
    (tmp_path / "exchange_calendars.py").write_text("raise ImportError('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("sigma9_core.calendar.child_environment", lambda: {"PYTHONPATH": str(tmp_path)})
    assert not is_exchange("XNYZ")
    installed_names.cache_clear()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert not is_exchange("XNYZ")


def test_reading_a_configuration_imports_no_calendar() -> None:
    """The check costs a start nothing: neither the package nor what builds calendars is imported."""
    program = (
        "import sys\nfrom sigma9_core.configfile import load_settings\nload_settings(environ={})\n"
        "print(*sorted({'pandas', 'exchange_calendars', 'sigma9_core.calendar'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []
