"""`sigma9 scan`: from files to the list, without a server."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import pytest

from sigma9_core.calendar import load_calendar

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real bars beside the repository are missing")
FIELDS = ["symbol", "priority", "score", "stage", "signals", "intensities", "last", "as_of", "reasons"]
SIGNALS = ["tight_range", "obv_divergence", "accumulation_bar", "volume_dryout"]


class Result(Protocol):
    """What the fixture `cli` gives."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Read stdout as JSON."""


class Cli(Protocol):
    """Runs a command line."""

    def __call__(self, *arguments: str) -> Result:
        """Run it."""


@pytest.fixture(scope="session", name="days")
def _days(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Give 25 real sessions, and fill the calendar cache that the commands share."""
    calendar = load_calendar("XNYS", tmp_path_factory.getbasetemp() / "sigma9")
    return [session.day for session in calendar.before(date(2025, 11, 5), 25)]


@pytest.fixture(autouse=True)
def _cache(days: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's own cache out of the tests."""
    assert days
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))


@pytest.fixture(name="bars")
def _bars(tmp_path: Path, days: list[str]) -> str:
    """Make bars: BURST has an accumulation bar, so has DEAR, which is too dear; QUIET says nothing; NEW is new."""
    lines = ["symbol,ts,open,high,low,close,volume"]
    for name, price in (("BURST", 5.0), ("QUIET", 5.0), ("DEAR", 50.0), ("NEW", 5.0)):
        for index, day in enumerate(days):
            if name == "NEW" and index < 15:
                continue
            volume = 1_000_000 if index == 24 and name in ("BURST", "DEAR") else 200_000
            lines.append(f"{name},{day},{price},{price + 0.25},{price - 0.25},{price},{volume}")
    file = tmp_path / "bars.csv"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def test_the_list_as_json_has_the_fields_of_the_contract(cli: Cli, bars: str) -> None:
    """stdout is a JSON array of rows; the steps are on stderr."""
    result = cli("scan", "--data", bars, "--format", "json")

    assert result.code == 0
    assert result.json == [
        {
            "symbol": "BURST",
            "priority": 50,
            "score": 25.0,
            "stage": 3,
            "signals": {**dict.fromkeys(SIGNALS, False), "accumulation_bar": True},
            "intensities": {**dict.fromkeys(SIGNALS, 0.0), "accumulation_bar": 1.0},
            "last": 5.0,
            "as_of": "2025-11-05",
            "reasons": ["accumulation bar 1.0"],
        }
    ]
    assert list(result.json[0]) == FIELDS
    assert "read 85 rows in" in result.err
    steps = [line.split(maxsplit=1) for line in result.err.splitlines() if line.startswith("  ")]
    assert steps == [
        ["4", "symbols in the last 25 sessions"],
        ["4", "with a bar of 2025-11-05"],
        ["3", "with 20 bars or more"],
        ["3", "scored"],
        ["2", "kept"],
        ["1", "in the universe"],
        ["1", "listed"],
    ]


def test_all_gives_every_scored_symbol_and_why_it_is_not_listed(cli: Cli, bars: str) -> None:
    """--all lists them in the order of the ranking, with `listed` and `excluded`; the unscored are not there."""
    rows = cli("scan", "--data", bars, "--all", "--format", "json").json

    assert [(row["symbol"], row["listed"], row["excluded"]) for row in rows] == [
        ("BURST", True, None),
        ("DEAR", False, "price above 10"),
        ("QUIET", False, None),
    ]
    assert all(list(row)[: len(FIELDS)] == FIELDS for row in rows)


def test_table_and_csv(cli: Cli, bars: str) -> None:
    """The table has a line a symbol under its headings; CSV has every field."""
    table = cli("scan", "--data", bars).out.splitlines()
    assert len(table) == 2
    assert table[0].split() == ["symbol", "priority", "score", "stage", "last", "as", "of", "reasons"]
    assert table[1].split()[:4] == ["BURST", "50", "25", "3"]

    rows = list(csv.DictReader(io.StringIO(cli("scan", "--data", bars, "--format", "csv").out)))
    assert list(rows[0]) == FIELDS
    assert rows[0]["symbol"] == "BURST"


def test_as_of_scans_an_earlier_day(cli: Cli, bars: str, days: list[str]) -> None:
    """The day before the burst has nothing to list."""
    result = cli("scan", "--data", bars, "--as-of", days[23])

    assert (result.code, result.out) == (0, "no symbol to list\n")
    assert f"as of {days[23]}" in result.err


def test_several_files_are_one_history_and_their_bad_rows_are_named(cli: Cli, bars: str, tmp_path: Path) -> None:
    """--data takes files in any number and any order; rejected rows are counted by reason and named on stderr."""
    whole = Path(bars).read_text().splitlines()
    (tmp_path / "one.csv").write_text("\n".join(whole[:40]) + "\n")
    (tmp_path / "two.csv").write_text("\n".join([whole[0], *whole[40:], "BAD,2025-11-05,0,0,0,0,0", "X Y,a,b"]))
    result = cli(
        "scan", "--data", str(tmp_path / "two.csv"), "--data", str(tmp_path / "one.csv"), "--format", "json"
    )

    assert [row["symbol"] for row in result.json] == ["BURST"]
    assert "left out 2 rows: 1 bad symbol, 1 price <= 0" in result.err
    assert "two.csv: row 47: BAD 2025-11-05: price <= 0" in result.err


def test_many_bad_rows_are_named_in_part(cli: Cli, bars: str) -> None:
    """The first few are named, and the command that names them all."""
    with Path(bars).open("a") as file:
        file.write("BAD,2025-11-05,0,0,0,0,0\n" * 20)
    err = cli("scan", "--data", bars).err

    assert err.count(": price <= 0") == 5
    assert "and 15 more: `sigma9 data check` names them" in err


def test_the_configuration_sets_the_scanner(cli: Cli, bars: str, tmp_path: Path) -> None:
    """server_config.yaml and --set decide which scanner runs, and how; --scanner names one of them or a plugin."""
    (tmp_path / "server_config.yaml").write_text(
        "scanners:\n"
        "  - {plugin: seismograph, name: strict, config: {keep_priority: 100}}\n"
        "  - {plugin: seismograph, name: open, config: {universe: {max_price: null}}}\n"
    )

    def symbols(*more: str) -> list[str]:
        return [row["symbol"] for row in cli("scan", "--data", bars, "--format", "json", *more).json]

    assert symbols() == []
    assert symbols("--scanner", "open") == ["BURST", "DEAR"]
    assert symbols("--scanner", "seismograph") == ["BURST"]
    assert symbols(
        "--set", "scanners.0.config.keep_priority=0", "--set", "scanners.0.config.watchlist_size=1"
    ) == ["BURST"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--scanner", "nothing"), 2, "no scanner 'nothing'; there are seismograph"),
        (("--set", "scanners.0.config.keep_score=500"), 2, "keep_score"),
        (("--set", "scanners=[]"), 2, "it names no scanner: give one with --scanner"),
        (("--as-of", "2025-02-30"), 2, "is no date: write it as"),
        (("--as-of", "2025-11-02"), 1, "there is no bar of 2025-11-02 in the data"),
        (("--data", "missing.csv"), 1, "missing.csv: it can't be read"),
        (("--format", "xml"), 2, "invalid choice"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_listed(
    cli: Cli, bars: str, arguments: tuple[str, ...], code: int, message: str
) -> None:
    """Exit code 2 for wrong usage or configuration, 1 for data that can't be scanned; stdout stays empty."""
    result = cli("scan", "--data", bars, *arguments)

    assert (result.code, result.out) == (code, "")
    assert message in result.err


def test_data_is_required(cli: Cli) -> None:
    """Without a file there is nothing to scan."""
    assert cli("scan").code == 2


def test_a_broken_scanner_fails_the_command(cli: Cli, bars: str, tmp_path: Path) -> None:
    """A third-party scanner that raises ends with its traceback on stderr and exit code 1."""
    (tmp_path / "bad_scan.py").write_text(
        "from sigma9_core.hookspecs import hookimpl\n"
        "class Bad:\n"
        "    version, lookback, watchlist_size = '1', 5, 5\n"
        "    def scan(self, bars):\n"
        "        raise LookupError('gone wrong')\n"
        "    def trigger(self):\n"
        "        return None\n"
        "@hookimpl\n"
        "def register_scanners(register):\n"
        "    register('bad', lambda config, context: Bad())\n"
    )
    result = cli("scan", "--data", bars, "--scanner", "bad", "--set", "plugins.paths=[bad_scan.py]")

    assert (result.code, result.out) == (1, "")
    assert "LookupError: gone wrong" in result.err
    assert "the scanner 'bad' failed; nothing is listed" in result.err


@needs_data
@pytest.mark.shared_data
def test_the_real_universe_from_the_shell() -> None:
    """1.9 million rows and the real rejects, through the real program: a few seconds, JSON alone on stdout."""
    import json

    files = [str(SHARED / "us_daily_2016-2017.parquet"), str(SHARED / "us_daily_rejected.csv")]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "sigma9_core", "scan", "--all", "--format", "json", "--data", *files],
        capture_output=True,
        text=True,
        check=True,
    )
    took = time.perf_counter() - began
    rows = json.loads(done.stdout)

    assert len(rows) == 5957
    assert all(list(row["intensities"]) == SIGNALS for row in rows)
    keys = [(-row["priority"], -row["score"], row["symbol"]) for row in rows]
    assert keys == sorted(keys)
    assert "left out 79 rows: 79 exchange shut" in done.stderr
    assert "us_daily_rejected.csv: row 1: CBX 2016-01-18: exchange shut" in done.stderr
    assert took < 10
