"""How long the torture is, and by which seed: `--crashes 200 --seed 7`, or SIGMA9_CRASHES and SIGMA9_SEED."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CRASHES = 30
AT_TWS = 7
"""How often with the peer as the broker, in the short form."""
AT_TWS_LONG = 200
AT_TWS_INSYNC = 50
"""How often with the other library."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the two numbers; pytest reads them where it is started with this folder."""
    group = parser.getgroup("crash torture")
    group.addoption("--crashes", type=int, default=None, help=f"how often the server is killed ({CRASHES})")
    group.addoption("--seed", type=int, default=None, help="what is drawn by chance (1)")


def number(config: pytest.Config, option: str, default: int) -> int:
    """Give a number of the command line, else of the environment, else the default."""
    given = config.getoption(f"--{option}", default=None)
    return int(given if given is not None else os.environ.get(f"SIGMA9_{option.upper()}", default))


@pytest.fixture(name="crashes")
def _crashes(request: pytest.FixtureRequest) -> int:
    """Give how often the server is killed."""
    return number(request.config, "crashes", CRASHES)


@pytest.fixture(name="at_tws")
def _at_tws(request: pytest.FixtureRequest) -> int:
    """Give how often the server is killed with the peer as the broker."""
    return number(request.config, "crashes", AT_TWS)


@pytest.fixture(name="at_tws_long")
def _at_tws_long(request: pytest.FixtureRequest) -> int:
    """Give how often it is killed there in the long form."""
    return number(request.config, "crashes", AT_TWS_LONG)


@pytest.fixture(name="at_tws_insync")
def _at_tws_insync(request: pytest.FixtureRequest) -> int:
    """Give how often it is killed there with the other library."""
    return number(request.config, "crashes", AT_TWS_INSYNC)


@pytest.fixture(name="seed")
def _seed(request: pytest.FixtureRequest) -> int:
    """Give the seed."""
    return number(request.config, "seed", 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the torture the time that it needs: every wait in it has a limit of its own."""
    seconds = 120 + 10 * number(config, "crashes", CRASHES)
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(seconds))
