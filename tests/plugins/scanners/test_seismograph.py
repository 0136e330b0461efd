"""The seismograph against the formulas of its reference, written down once more in plain loops."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sigma9_core.calendar import Calendar
from sigma9_core.clock import LiveClock
from sigma9_core.config import PluginSettings, Settings
from sigma9_core.contracts import PluginContext
from sigma9_core.plugins import PluginHost
from sigma9_core.scanning import scan
from sigma9_plugins.scanners.seismograph import Seismograph, SeismographConfig

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real bars beside the repository are missing")

Bar = tuple[float, float, float, float, float]
"""Open, high, low, close, volume."""
NAMES = ("tight_range", "obv_divergence", "accumulation_bar", "volume_dryout")
FIRST = date(2026, 1, 1)


# --- the reference: loops over the 20 bars, straight from the tables --------------------------------------------


@dataclass(frozen=True)
class Reference:
    """What the formulas give for the last of 20 bars."""

    intensities: dict[str, float]
    signals: dict[str, bool]
    priority: int
    stage: int
    score: float
    tight_ratio: float | None


def reference(bars: Sequence[Bar]) -> Reference:
    """Work out the last bar's numbers from its 20 bars."""
    assert len(bars) == 20
    ranges, signed = [], []
    for i in range(1, 20):
        _, high, low, close, volume = bars[i]
        before = bars[i - 1][3]
        ranges.append(max(high - low, abs(high - before), abs(low - before)))
        signed.append(volume * ((close > before) - (close < before)))
    volumes = [bar[4] for bar in bars]
    opened, close = bars[-1][0], bars[-1][3]
    mean20, mean3, mean19 = sum(volumes) / 20, sum(volumes[-3:]) / 3, sum(volumes[:-1]) / 19
    wide = sum(ranges) / 19
    tight = sum(ranges[-5:]) / 5 / wide if wide > 0 else None
    dry = mean3 / mean20 if mean20 > 0 else None
    rise = (close - bars[0][3]) / bars[0][3]
    flow = sum(signed) / sum(volumes) if sum(volumes) > 0 else None
    body = abs(close - opened) / opened
    burst = volumes[-1] / mean19 if mean19 > 0 else None

    intensities = dict.fromkeys(NAMES, 0.0)
    if tight is not None:
        intensities["tight_range"] = min(1.0, max(0.0, (0.7 - tight) / 0.4))
    if flow is not None and rise <= 0.02 and flow > 0:
        intensities["obv_divergence"] = min(1.0, 10 * abs(rise) + 5 * flow)
    if burst is not None and body <= 0.025:
        intensities["accumulation_bar"] = min(1.0, max(0.0, (burst - 2) / 3))
    if dry is not None and dry < 0.4:
        intensities["volume_dryout"] = 1 - dry / 0.4
    signals = {
        "tight_range": tight is not None and tight < 0.5,
        "obv_divergence": flow is not None and rise <= 0 and flow > 0,
        "accumulation_bar": burst is not None and body <= 0.025 and burst > 3,
        "volume_dryout": dry is not None and dry < 0.4,
    }
    if signals["tight_range"] and signals["obv_divergence"]:
        priority, stage = 100, 4
    elif signals["tight_range"]:
        priority, stage = 80, 4
    elif signals["accumulation_bar"] and signals["obv_divergence"]:
        priority, stage = 70, 3
    elif signals["accumulation_bar"]:
        priority, stage = 50, 3
    elif signals["obv_divergence"]:
        priority, stage = 30, 2
    elif signals["volume_dryout"]:
        priority, stage = 10, 1
    else:
        priority, stage = 0, 0
    weights = dict(zip(NAMES, (0.30, 0.35, 0.25, 0.10), strict=True))
    score = 100 * sum(weights[name] * intensities[name] for name in NAMES)
    return Reference(intensities, signals, priority, stage, score, tight)


def agree(row: dict[str, Any], bars: Sequence[Bar]) -> None:
    """Compare a scanned row with the reference: intensities to 1e-9, the rest exactly."""
    wanted = reference(bars)
    for name in NAMES:
        assert row["intensities"][name] == pytest.approx(wanted.intensities[name], abs=1e-9), (row["symbol"], name)
    assert row["score"] == pytest.approx(wanted.score, abs=1e-7)
    if wanted.tight_ratio is not None and abs(wanted.tight_ratio - 0.5) < 1e-12:
        return  # sums of floats on the very threshold: either answer is right
    assert row["signals"] == wanted.signals, row["symbol"]
    assert (row["priority"], row["stage"]) == (wanted.priority, wanted.stage)
    assert row["keep"] == (wanted.priority >= 50 or round(wanted.score, 1) >= 50)


# --- helpers --------------------------------------------------------------------------------------------------


def make(**config: Any) -> Seismograph:
    return Seismograph(SeismographConfig.model_validate(config), "seismograph")


def frame(symbols: dict[str, Sequence[Bar]]) -> pl.DataFrame:
    """Make daily bars; each symbol's end on the same day."""
    longest = max((len(bars) for bars in symbols.values()), default=0)
    rows = [
        (symbol, FIRST + timedelta(days=longest - len(bars) + index), *bar)
        for symbol, bars in sorted(symbols.items())
        for index, bar in enumerate(bars)
    ]
    schema = {"symbol": pl.String, "ts": pl.Date} | dict.fromkeys(
        ("open", "high", "low", "close", "volume"), pl.Float64
    )
    return pl.DataFrame(rows, schema=schema, orient="row")


def last(bars: Sequence[Bar], **config: Any) -> dict[str, Any]:
    """Scan one symbol's bars and give its last row."""
    return make(**config).scan(frame({"AAA": bars}).lazy()).collect().row(-1, named=True)


def flat(count: int = 20, price: float = 5.0, volume: float = 1000.0) -> list[Bar]:
    """Give bars that say nothing: closes alternate a little, the range stays the same, volume is even."""
    return [(price, price + 0.25, price - 0.25, price, volume)] * count


@st.composite
def histories(draw: st.DrawFn, least: int = 20, most: int = 45) -> list[Bar]:
    """Draw bars with cents as prices, quiet and wild stretches, and volumes with zeros and bursts."""
    count = draw(st.integers(least, most))
    price = draw(st.integers(200, 1000))
    bars: list[Bar] = []
    for _ in range(count):
        price = max(20, price + draw(st.integers(-8, 8)))
        opened = max(20, price + draw(st.integers(-15, 15)))
        high = max(price, opened) + draw(st.integers(0, 20))
        low = max(1, min(price, opened) - draw(st.integers(0, 18)))
        volume = draw(st.sampled_from([0, 100, 500, 1000, 1200, 5000, 20_000]))
        bars.append((opened / 100, high / 100, low / 100, price / 100, float(volume)))
    return bars


# --- the real universe ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="universe")
def _universe() -> pl.DataFrame:
    bars = pl.read_parquet(SHARED / "us_daily_2016-2017.parquet")
    return bars.with_columns(pl.col("volume").cast(pl.Float64))


@needs_data
@pytest.mark.shared_data
def test_every_symbol_of_the_real_universe_agrees_with_the_formulas(universe: pl.DataFrame) -> None:
    """For all symbols of a real day the four intensities agree to 1e-9, and flags, priority and stage exactly."""
    result = scan(universe.lazy(), make())
    assert result.error is None
    assert result.ranked is not None
    rows = {row["symbol"]: row for row in result.ranked.iter_rows(named=True)}
    compared = 0
    for (symbol,), part in universe.group_by("symbol", maintain_order=True):
        tail = part.tail(20)
        if tail.height < 20 or tail["ts"][-1] != result.as_of:
            assert symbol not in rows
            assert symbol in result.unscored or tail["ts"][-1] < result.as_of
            continue
        agree(rows[str(symbol)], tail.select("open", "high", "low", "close", "volume").rows())
        compared += 1

    assert compared == len(rows) == 5957


@needs_data
@pytest.mark.shared_data
def test_the_real_list_is_what_the_rules_say(universe: pl.DataFrame) -> None:
    """Of the real day's scored symbols exactly those that pass the rules by hand are listed, in their order."""
    result = scan(universe.lazy(), make())
    wanted = []
    for (symbol,), part in universe.filter(pl.col("ts") > date(2016, 11, 1)).group_by("symbol"):
        bars = part.sort("ts").tail(20).select("open", "high", "low", "close", "volume").rows()
        if len(bars) < 20 or part["ts"].max() != result.as_of:
            continue
        got = reference(bars)
        close, before = bars[-1][3], bars[-2][3]
        if (
            (got.priority >= 50 or round(got.score, 1) >= 50)
            and 2 <= close <= 10
            and sum(bar[4] for bar in bars) / 20 >= 100_000
            and 0 <= round((close - before) / before * 100, 9) <= 5
            and not (len(str(symbol)) == 5 and str(symbol)[-1] in "WRU")
        ):
            wanted.append((-got.priority, -round(got.score, 1), str(symbol)))

    assert [row.symbol for row in result.rows] == [symbol for _, _, symbol in sorted(wanted)][:50]
    assert result.rows
    assert all(row.reasons for row in result.rows)


@needs_data
@pytest.mark.shared_data
def test_every_bar_equals_the_scan_of_its_day(universe: pl.DataFrame) -> None:
    """On real bars the every-bar form, a scan of each day, and each symbol alone give the very same numbers."""
    names = universe["symbol"].unique().sort().gather_every(240)
    some = universe.filter(pl.col("symbol").is_in(names.implode()))
    every = make().scan(some.lazy()).collect()
    alone = pl.concat(
        make().scan(part.lazy()).collect() for _, part in some.group_by("symbol", maintain_order=True)
    )
    assert every.equals(alone)

    columns = ["symbol", "score", "priority", "stage", "intensities", "signals", "excluded", "reasons"]
    for day in (date(2016, 3, 1), date(2016, 11, 25), date(2017, 1, 17)):
        result = scan(some.lazy(), make(), as_of=day)
        assert result.ranked is not None
        here = every.filter((pl.col("ts") == day) & pl.col("score").is_not_null()).select(columns)
        assert result.ranked.select(columns).sort("symbol").equals(here)
        assert here.height > 15


# --- the formulas on made bars --------------------------------------------------------------------------------


@given(histories(), histories(1, 25))
@settings(max_examples=30, deadline=None)
def test_any_history_agrees_with_the_formulas(one: list[Bar], two: list[Bar]) -> None:
    """Every bar that is at least its symbol's 20th agrees with the reference; the earlier ones have no score."""
    rows = make().scan(frame({"AAA": one, "BBB": two}).lazy()).collect().rows(named=True)
    for bars, part in ((one, rows[: len(one)]), (two, rows[len(one) :])):
        for index, row in enumerate(part):
            if index < 19:
                assert row["score"] is row["priority"] is row["stage"] is row["excluded"] is None
                assert row["signals"] is row["intensities"] is row["reasons"] is None
                assert row["keep"] is False
            else:
                agree(row, bars[index - 19 : index + 1])


@given(histories(20, 40), histories(20, 40), st.lists(st.floats(0.01, 1e6), min_size=1, max_size=3))
@settings(deadline=None, max_examples=8)
def test_a_bar_depends_on_its_own_twenty_alone(one: list[Bar], two: list[Bar], more: list[float]) -> None:
    """Trimming, appending later bars, other symbols and a wild past change nothing, to the last bit."""
    wild: list[Bar] = [(value, value * 2, value / 2, value, 1e12) for value in more]
    alone = make().scan(frame({"BBB": one[-20:]}).lazy()).collect().row(-1, named=True)
    around = frame({"AAA": two, "BBB": wild + one, "CCC": two})
    appended = frame({"BBB": one + wild}).filter(pl.col("ts") < FIRST + timedelta(days=len(one)))
    both = make().scan(frame({"BBB": one + wild}).lazy()).collect()
    here = make().scan(around.lazy()).collect().filter(pl.col("symbol") == "BBB").row(-1, named=True)
    then = make().scan(appended.lazy()).collect().row(-1, named=True)

    for row in (here, then, both.row(len(one) - 1, named=True)):
        assert {name: row[name] for name in row if name != "ts"} == {
            name: alone[name] for name in alone if name != "ts"
        }


@given(st.integers(1, 10_000))
@settings(max_examples=10, deadline=None)
def test_two_percent_exactly_still_counts(k: int) -> None:
    """A rise of exactly 2 % keeps the OBV intensity, a cent more ends it, and its flag needs no rise at all."""
    rising: list[Bar] = [(50 * k, 51 * k, 49 * k, 50 * k, 100)] * 19
    over = (51 * k + 0.01, 52 * k, 49 * k, 51 * k + 0.01, 100)
    exact = last([*rising, (51 * k, 52 * k, 49 * k, 51 * k, 100)])

    assert exact["intensities"]["obv_divergence"] == pytest.approx(10 * 0.02 + 5 * 100 / 2000)
    assert exact["signals"]["obv_divergence"] is False
    assert last([*rising, over])["intensities"]["obv_divergence"] == 0.0


@given(st.integers(1, 10**9))
@settings(max_examples=10, deadline=None)
def test_forty_percent_exactly_is_no_dry_out(k: int) -> None:
    """Three bars at exactly 0.4 of the mean are none, a share less are."""
    bars = [(5.0, 5.25, 4.75, 5.0, float(volume)) for volume in [47 * k] + [0] * 16 + [k] * 3]
    less = [*bars[:-1], (5.0, 5.25, 4.75, 5.0, float(k - 1))]

    assert (last(bars)["intensities"]["volume_dryout"], last(bars)["signals"]["volume_dryout"]) == (0.0, False)
    assert last(less)["intensities"]["volume_dryout"] > 0
    assert last(less)["signals"]["volume_dryout"] is True


@pytest.mark.parametrize(
    ("times", "intensity", "signal"),
    [(2, 0.0, False), (3, 1 / 3, False), (4, 2 / 3, True), (5, 1.0, True), (9, 1.0, True)],
)
@given(k=st.integers(1, 10**9))
@settings(max_examples=8, deadline=None)
def test_an_accumulation_bar_starts_above_three_times(k: int, times: int, intensity: float, signal: bool) -> None:
    """The intensity runs from 2 to 5 times the 19 bars before; exactly 3 times is no flag yet."""
    row = last([*flat(19, volume=k), (40.0, 41.0, 39.0, 41.0, float(times * k))])

    assert row["intensities"]["accumulation_bar"] == pytest.approx(intensity, abs=1e-12)
    assert row["signals"]["accumulation_bar"] is signal


@given(st.integers(1, 1000))
@settings(max_examples=10, deadline=None)
def test_a_body_of_two_and_a_half_percent_exactly_counts(k: int) -> None:
    """|C − O| / O of exactly 2.5 % is an accumulation bar; a cent more is none."""
    quiet = flat(19, volume=10)

    assert last([*quiet, (40.0 * k, 42.0 * k, 39.0 * k, 41.0 * k, 100)])["signals"]["accumulation_bar"] is True
    row = last([*quiet, (40.0 * k, 42.0 * k, 39.0 * k, 41.0 * k + 0.01, 100)])
    assert row["signals"]["accumulation_bar"] is False
    assert row["intensities"]["accumulation_bar"] == 0.0


@pytest.mark.parametrize(
    ("old", "new", "intensity", "signal"),
    [(155, 98, 0.0, False), (33, 14, 0.5, False), (34, 14, None, True), (25, 6, 1.0, True), (25, 1, 1.0, True)],
)
def test_a_tight_range_is_measured_against_all_nineteen(
    old: int,
    new: int,
    intensity: float | None,
    signal: bool,
) -> None:
    """Ratios of exactly 0.7, 0.5 and 0.3 of the mean of 19 true ranges: 0, one half and no flag, 1."""
    wide: list[Bar] = [(512.0, 512 + old / 2, 512 - old / 2, 512.0, 10)] * 15
    narrow: list[Bar] = [(512.0, 512 + new / 2, 512 - new / 2, 512.0, 10)] * 5
    row = last(wide + narrow)

    if intensity is not None:
        assert row["intensities"]["tight_range"] == pytest.approx(intensity, abs=1e-12)
    assert row["signals"]["tight_range"] is signal


def test_a_gap_counts_into_the_true_range() -> None:
    """The true range reaches to the close before, upwards and downwards."""
    bars = flat()
    for gap in (3.0, -3.0):
        bars[10] = (5.0 + gap, 5.25 + gap, 4.75 + gap, 5.0 + gap, 1000)
        agree(last(bars), bars)
    # one gap up and back: true ranges of 3.25 twice among 17 of 0.5, though no bar is wider than 0.5
    bars[10] = (8.0, 8.25, 7.75, 8.0, 1000)
    row = last(bars)
    ratio = 0.5 / ((2 * 3.25 + 17 * 0.5) / 19)
    assert row["intensities"]["tight_range"] == pytest.approx((0.7 - ratio) / 0.4)


def test_nothing_to_divide_by_gives_nothing() -> None:
    """Without any volume, and without any range, every intensity is 0 and no flag is set."""
    row = last([(5.0, 5.0, 5.0, 5.0, 0.0)] * 20)

    assert row["score"] == 0.0
    assert row["intensities"] == dict.fromkeys(NAMES, 0.0)
    assert row["signals"] == dict.fromkeys(NAMES, False)
    assert (row["priority"], row["stage"], row["keep"], row["reasons"]) == (0, 0, False, [])


def test_a_burst_after_no_volume_at_all_is_no_signal() -> None:
    """A mean of 0 in the 19 bars before is a missing denominator, not an endless ratio."""
    row = last([*flat(19, volume=0.0), (5.0, 5.25, 4.75, 5.0, 1e6)])

    assert row["intensities"]["accumulation_bar"] == 0.0
    assert row["signals"]["accumulation_bar"] is False


@pytest.mark.parametrize("missing", [None, math.nan])
@pytest.mark.parametrize("column", ["open", "high", "low", "close", "volume"])
def test_missing_values_cost_their_signals_alone(column: str, missing: float | None) -> None:
    """A null or NaN in the window leaves a score between 0 and 100, and no null in it; other symbols stay."""
    bars = frame({"AAA": flat(40), "BBB": flat(40)})
    hole = (pl.col("symbol") == "AAA") & (pl.col("ts") == FIRST + timedelta(days=30))
    scanned = make().scan(
        bars.with_columns(pl.when(hole).then(pl.lit(missing)).otherwise(pl.col(column)).alias(column)).lazy()
    )
    rows = scanned.collect()
    scored = rows.filter(pl.col("ts") >= FIRST + timedelta(days=19))

    assert scored["score"].is_between(0, 100).all()
    assert scored["score"].is_not_nan().all()
    assert not scored["intensities"].struct.unnest().null_count().sum_horizontal().item()
    assert not scored["signals"].struct.unnest().null_count().sum_horizontal().item()
    whole = make().scan(bars.lazy()).collect()
    assert rows.filter(pl.col("symbol") == "BBB").equals(whole.filter(pl.col("symbol") == "BBB"))
    result = scan(
        bars.with_columns(pl.when(hole).then(None).otherwise(pl.col("volume")).alias("volume")).lazy(), make()
    )
    assert result.error is None


def test_all_four_at_their_full_give_a_hundred() -> None:
    """The weights add up to exactly 100."""
    import sigma9_plugins.scanners.seismograph.scanner as module

    full = pl.DataFrame({f"_{name}": [1.0] for name in NAMES})

    assert full.select(module._score()).item() == 100.0


def test_reasons_are_phrases() -> None:
    """Each signal that speaks is named with its intensity; silent ones are not."""
    row = last([*flat(19, volume=10), (5.0, 5.25, 4.75, 5.0, 40.0)])

    assert row["reasons"] == ["accumulation bar 0.67"]


# --- the universe filters -------------------------------------------------------------------------------------

PLAIN = [*flat(19, volume=200_000), (5.0, 5.25, 4.75, 5.1, 200_000.0)]


def test_a_plain_symbol_is_not_excluded() -> None:
    """A price of 5.10, 200,000 shares a day and +2 % pass every filter."""
    assert last(PLAIN)["excluded"] is None


@pytest.mark.parametrize(
    ("before", "close", "volume", "excluded"),
    [
        (2.0, 2.0, 100_000, None),
        (10.0, 10.0, 100_000, None),
        (1.99, 1.99, 100_000, "price below 2"),
        (10.01, 10.01, 100_000, "price above 10"),
        (5.0, 5.25, 100_000, None),
        (2.2, 2.31, 100_000, None),
        (5.0, 5.26, 100_000, "change % above 5"),
        (5.0, 4.99, 100_000, "change % below 0"),
        (5.0, 5.0, 99_999, "average volume below 100,000"),
        (20.0, 30.0, 5, "price above 10; average volume below 100,000; change % above 5"),
    ],
)
def test_filters_hold_at_their_edges(before: float, close: float, volume: int, excluded: str | None) -> None:
    """Both ends of price and change are included, and so is the least volume; each reason is named."""
    bars = [*flat(19, before, volume), (close, close + 0.5, close - 0.5, close, float(volume))]

    assert last(bars)["excluded"] == excluded


@pytest.mark.parametrize(
    "symbol", ["ABCDW", "ABCDR", "ABCDU", "AB.WS", "AB-WS", "AB-W", "AB.W", "AB.U", "AB.R", "AB.WS.A"]
)
def test_warrants_rights_and_units_are_left_out_by_name(symbol: str) -> None:
    """Nasdaq's fifth letter and the explicit forms are exclusions."""
    assert (
        make().scan(frame({symbol: PLAIN}).lazy()).collect()["excluded"][-1]
        == "named like a warrant, right or unit"
    )


@pytest.mark.parametrize(
    "symbol", ["UBER", "MU", "KR", "SNOW", "AIR", "W", "U", "R", "UNIT", "GOOGL", "BRK.B", "GEF-B", "abcdw"]
)
def test_a_last_letter_alone_excludes_nothing(symbol: str) -> None:
    """Ordinary shares stay, whatever letter they end in."""
    assert make().scan(frame({symbol: PLAIN}).lazy()).collect()["excluded"][-1] is None


def test_the_whitelist_wins_over_names_then_the_manual_list() -> None:
    """whitelist, manual list, patterns: in this order; a whitelisted symbol still has to pass the numbers."""
    universe = {"whitelist": ["ABCDW", "BBB", "DEAR"], "exclude": ["AAA", "BBB"]}
    dear = [(open_ * 10, high * 10, low * 10, close * 10, volume) for open_, high, low, close, volume in PLAIN]
    rows = (
        make(universe=universe)
        .scan(frame({"AAA": PLAIN, "BBB": PLAIN, "ABCDW": PLAIN, "ABCDR": PLAIN, "DEAR": dear}).lazy())
        .collect()
        .filter(pl.col("score").is_not_null())
    )

    assert dict(rows.select("symbol", "excluded").iter_rows()) == {
        "AAA": "excluded by name",
        "BBB": None,
        "ABCDW": None,
        "ABCDR": "named like a warrant, right or unit",
        "DEAR": "price above 10",
    }


def test_reference_columns_are_used_where_they_are() -> None:
    """A known type beats the name; market cap and float apply where they are known, and only there."""
    bars = frame({"AAA": PLAIN, "BBB": PLAIN, "CCC": PLAIN, "DDDDW": PLAIN, "EEE": PLAIN})
    known = pl.DataFrame(
        {
            "symbol": ["AAA", "BBB", "CCC", "DDDDW", "EEE"],
            "security_type": ["CS", "WARRANT", None, "CS", "CS"],
            "market_cap": [50e6, 100e6, None, 300e6, 301e6],
            "float": [14_999_999, 1_000_000, None, None, 15_000_000],
        }
    )
    rows = make().scan(bars.join(known, on="symbol", maintain_order="left").lazy()).collect()
    excluded = dict(rows.filter(pl.col("score").is_not_null()).select("symbol", "excluded").iter_rows())

    assert excluded == {
        "AAA": None,
        "BBB": "a warrant",
        "CCC": None,
        "DDDDW": None,
        "EEE": "market cap above 3e+08; float not below 15,000,000",
    }


def test_every_filter_can_be_switched_off() -> None:
    """Null bounds and no patterns leave every symbol in."""
    off = dict.fromkeys(("min_price", "max_price", "min_average_volume", "min_change", "max_change"))
    config = {"universe": {**off, "exclude_patterns": False}}

    assert last([*flat(19, 500.0, 1), (900.0, 900.0, 900.0, 900.0, 1.0)], **config)["excluded"] is None


def test_the_cut_is_a_setting() -> None:
    """Priority or score reach the list by settings, and its size is one, too."""
    assert last(PLAIN, keep_score=0)["keep"] is True
    assert last(PLAIN, keep_priority=0)["keep"] is True
    assert last(PLAIN)["keep"] is False
    assert make(watchlist_size=3).watchlist_size == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"universe": {"min_price": 20}}, r"min_price \(20\) is above max_price \(10\)"),
        ({"universe": {"minimum": 1}}, "Extra inputs"),
        ({"keep_score": 101}, "less than or equal to 100"),
        ({"watchlist_size": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_without_sense_are_refused(config: dict[str, Any], message: str) -> None:
    """A wrong setting is named before anything runs."""
    with pytest.raises(ValidationError, match=message):
        SeismographConfig.model_validate(config)


# --- the plugin -----------------------------------------------------------------------------------------------


def test_the_host_builds_it_through_the_public_door() -> None:
    """The entry point registers it, and the host builds it with its settings and its trigger."""
    host = PluginHost(PluginSettings())
    host.load()
    context = PluginContext("mine", Settings(), LiveClock(), Calendar("XNYS"), None)
    built = host.build("scanner", "seismograph", {"watchlist_size": 7}, context)

    assert isinstance(built, Seismograph)
    assert (built.watchlist_size, built.lookback) == (7, 20)
    trigger = built.trigger()
    assert trigger is not None
    assert callable(trigger.on_slice)


def test_registering_imports_nothing_heavy() -> None:
    """The plugin's module brings neither polars nor numpy."""
    code = (
        "import sys, sigma9_plugins.scanners.seismograph as s; "
        "sys.exit(bool({'polars', 'numpy', 'pandas'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
