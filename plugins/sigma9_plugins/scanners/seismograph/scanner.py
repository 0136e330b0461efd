"""The seismograph: four signs of quiet accumulation in 20 daily bars, as one pass of Polars expressions.

A bar's numbers depend on its 20 bars alone, to the last bit: on the whole history, on a part, in any company.
So every sum runs over exactly its own window (a running total keeps a trace of a large value that has passed), and
nothing is divided by a constant (Polars then multiplies by the reciprocal in some of its paths and not in others):
a mean of 5 over a mean of 19 is (19 × sum of 5) / (5 × sum of 19), which also makes the exact thresholds exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from sigma9_plugins.scanners.seismograph.config import SeismographConfig, UniverseConfig

if TYPE_CHECKING:
    import polars as pl

    from sigma9_core.contracts import Trigger

WINDOW: Final = 20
"""Bars of a symbol that its signals look at: 20 bars hold 19 true ranges and 19 moves."""

TRACES: Final = r"^[A-Z]{4}[WRU]$|[./-](WS|WT|W|R|U)([./-][A-Z])?$|\+$"
"""Warrants, rights and units by their names: Nasdaq's fifth letter, and the explicit forms of other exchanges."""

LABELS: Final = {
    "tight_range": "tight range",
    "obv_divergence": "OBV divergence",
    "accumulation_bar": "accumulation bar",
    "volume_dryout": "volume dry-out",
}
"""The signals by the names of their intensities, strongest stage first, and the words for a person."""


class Seismograph:
    """Scores accumulation (v2), ranks it by stage and priority (v1), and filters the universe."""

    version = "2.0"
    lookback = WINDOW

    def __init__(self, config: SeismographConfig, name: str) -> None:
        self.watchlist_size = config.watchlist_size
        self._config = config
        self._name = name

    def scan(self, bars: pl.LazyFrame) -> pl.LazyFrame:
        """Score every bar that is at least the 20th of its symbol; the earlier ones get nulls."""
        import polars as pl  # noqa: PLC0415 - registering the plugin must cost nothing

        c = pl.col
        columns = bars.collect_schema().names()
        reference = [name for name in ("market_cap", "float", "security_type") if name in columns]
        measured = _measured(bars).with_columns(**_intensities())
        judged = measured.with_columns(_v2=_score(), **_signals()).with_columns(_v1=_table("priority"))
        scored = c("_full")
        kept = (c("_v1") >= self._config.keep_priority) | (c("_v2").round(1) >= self._config.keep_score)
        signals = pl.struct(c(f"_is_{name}").alias(name) for name in LABELS)
        intensities = pl.struct(c(f"_{name}").alias(name) for name in LABELS)
        return judged.select(
            *columns,
            score=pl.when(scored).then(c("_v2")),
            priority=pl.when(scored).then(c("_v1")),
            stage=pl.when(scored).then(_table("stage")),
            keep=scored & kept,
            excluded=pl.when(scored).then(_excluded(self._config.universe, reference)),
            reasons=pl.when(scored).then(_reasons()),
            signals=pl.when(scored).then(signals),
            intensities=pl.when(scored).then(intensities),
        )

    def trigger(self) -> Trigger:
        """Build the ignition trigger of this strategy."""
        from sigma9_plugins.scanners.seismograph.trigger import SeismographTrigger  # noqa: PLC0415 - only servers need it

        return SeismographTrigger(self._config.trigger, self._name)


# --- formulas -------------------------------------------------------------------------------------------------


def _measured(bars: pl.LazyFrame) -> pl.LazyFrame:
    """Add the quantities that the signals compare; a zero or missing denominator gives null.

    Shifts run across symbols, and so do the sums; `_full` tells the bars whose 20 bars are of one symbol.
    """
    import polars as pl  # noqa: PLC0415

    c = pl.col
    opened, high, low, close, volume = (
        c(name).cast(pl.Float64).fill_nan(None) for name in ("open", "high", "low", "close", "volume")
    )
    before = close.shift()
    span = high - low
    reach = pl.max_horizontal(span, (high - before).abs(), (low - before).abs())
    bars = bars.with_columns(
        _close=close,
        _volume1=volume,
        _range1=pl.when(span.is_not_null() & before.is_not_null()).then(reach),
        _signed1=(close - before).sign() * volume,
    )
    for size in (1, 2, 4, 8):  # sums of 2, 4, 8 and 16 bars, by doubling
        bars = bars.with_columns(
            (c(f"_{x}{size}") + c(f"_{x}{size}").shift(size)).alias(f"_{x}{2 * size}") for x in _SUMMED
        )

    def over(upper: pl.Expr, lower: pl.Expr) -> pl.Expr:
        return pl.when(lower > 0).then(upper / lower)

    first, before = c("_close").shift(WINDOW - 1), c("_close").shift()
    traded = _sum("volume", WINDOW)
    return bars.with_columns(
        _full=(c("symbol") == c("symbol").shift(WINDOW - 1)).fill_null(value=False),
        _tr=over(19 * _sum("range", 5), 5 * _sum("range", 19)),
        _dp=over(c("_close") - first, first),
        _do=over(_sum("signed", 19), traded),
        _body=over((c("_close") - opened).abs(), opened),
        _ab=over(19 * c("_volume1"), _sum("volume", 19).shift()),
        _vd=over(20 * _sum("volume", 3), 3 * traded),
        _traded=traded,
        _change=over(100 * (c("_close") - before), before),
    )


_SUMMED: Final = ("volume", "range", "signed")


def _sum(x: str, count: int) -> pl.Expr:
    """Put the sum of the last `count` bars together from the sums of 16, 8, 4, 2 and 1."""
    import polars as pl  # noqa: PLC0415

    done, parts = 0, []
    for size in (16, 8, 4, 2, 1):
        if count & size:
            parts.append(pl.col(f"_{x}{size}").shift(done))
            done += size
    return sum(parts[1:], parts[0])


def _intensities() -> dict[str, pl.Expr]:
    """Give the four intensities (v2), 0 to 1, unrounded."""
    import polars as pl  # noqa: PLC0415

    c = pl.col
    grows = (c("_dp") <= 0.02) & (c("_do") > 0)
    return {
        "_tight_range": ((0.7 - c("_tr")) * 2.5).clip(0, 1).fill_null(0),
        "_obv_divergence": pl.when(grows).then((10 * c("_dp").abs() + 5 * c("_do")).clip(0, 1)).otherwise(0.0),
        "_accumulation_bar": pl.when(c("_body") <= 0.025).then(((c("_ab") - 2) * (1 / 3)).clip(0, 1)).fill_null(0),
        "_volume_dryout": pl.when(c("_vd") < 0.4).then(1 - 2.5 * c("_vd")).otherwise(0.0),
    }


def _score() -> pl.Expr:
    """Weigh the intensities (v2), 0 to 100."""
    import polars as pl  # noqa: PLC0415

    c = pl.col
    return (
        30 * c("_tight_range") + 35 * c("_obv_divergence") + 25 * c("_accumulation_bar") + 10 * c("_volume_dryout")
    )


def _signals() -> dict[str, pl.Expr]:
    """Give the masterplan's booleans, which decide priority and stage."""
    import polars as pl  # noqa: PLC0415

    c = pl.col
    signals = {
        "tight_range": c("_tr") < 0.5,
        "obv_divergence": (c("_dp") <= 0) & (c("_do") > 0),
        "accumulation_bar": (c("_body") <= 0.025) & (c("_ab") > 3),
        "volume_dryout": c("_vd") < 0.4,
    }
    return {f"_is_{name}": signal.fill_null(value=False) for name, signal in signals.items()}


def _table(column: str) -> pl.Expr:
    """Look up priority or stage in the masterplan's table: the first row that matches."""
    import polars as pl  # noqa: PLC0415

    tight, obv = pl.col("_is_tight_range"), pl.col("_is_obv_divergence")
    bar, dry = pl.col("_is_accumulation_bar"), pl.col("_is_volume_dryout")
    rows = (
        (tight & obv, {"priority": 100, "stage": 4}),
        (tight, {"priority": 80, "stage": 4}),
        (bar & obv, {"priority": 70, "stage": 3}),
        (bar, {"priority": 50, "stage": 3}),
        (obv, {"priority": 30, "stage": 2}),
        (dry, {"priority": 10, "stage": 1}),
    )
    value = pl.lit(0, pl.Int32)
    for condition, row in reversed(rows):
        value = pl.when(condition).then(pl.lit(row[column], pl.Int32)).otherwise(value)
    return value


def _reasons() -> pl.Expr:
    """Say which signals speak, with their intensities, such as "tight range 0.83"."""
    import polars as pl  # noqa: PLC0415

    said = (
        pl.when(pl.col(f"_is_{name}") | (pl.col(f"_{name}") >= 0.005)).then(
            pl.format(f"{words} {{}}", pl.col(f"_{name}").round(2))
        )
        for name, words in LABELS.items()
    )
    return pl.concat_list(*said).list.drop_nulls()


def _excluded(universe: UniverseConfig, reference: Sequence[str]) -> pl.Expr:
    """Say why the universe filters leave a symbol out, all reasons in one line; null where they don't."""
    import polars as pl  # noqa: PLC0415

    said = [pl.when(condition).then(text) for condition, text in _filters(universe, reference)]
    if not said:
        return pl.lit(None, pl.String)
    line = pl.concat_str(*said, separator="; ", ignore_nulls=True)
    return pl.when(line != "").then(line)


def _filters(universe: UniverseConfig, reference: Sequence[str]) -> Iterator[tuple[pl.Expr, pl.Expr]]:
    import polars as pl  # noqa: PLC0415

    symbol, free = pl.col("symbol"), ~pl.col("symbol").is_in(list(universe.whitelist))
    if universe.exclude:
        yield symbol.is_in(list(universe.exclude)) & free, pl.lit("excluded by name")
    kind = pl.col("security_type") if "security_type" in reference else pl.lit(None, pl.String)
    if "security_type" in reference:
        types = [name.lower() for name in universe.exclude_types]
        yield kind.str.to_lowercase().is_in(types) & free, pl.format("a {}", kind.str.to_lowercase())
    if universe.exclude_patterns:
        named = kind.is_null() & symbol.str.contains(TRACES) & free
        yield named, pl.lit("named like a warrant, right or unit")
    yield from _bounds("price", pl.col("close"), universe.min_price, universe.max_price)
    if universe.min_average_volume is not None:
        least = universe.min_average_volume
        yield pl.col("_traded").is_null(), pl.lit("average volume unknown")
        yield pl.col("_traded") < WINDOW * least, pl.lit(f"average volume below {least:,g}")
    yield from _bounds("change %", pl.col("_change").round(9), universe.min_change, universe.max_change)
    if "market_cap" in reference:
        cap = pl.col("market_cap").cast(pl.Float64)
        for condition, text in _bounds("market cap", cap, universe.min_market_cap, universe.max_market_cap):
            yield cap.is_not_null() & condition, text
    if "float" in reference and universe.max_float is not None:
        yield pl.col("float") >= universe.max_float, pl.lit(f"float not below {universe.max_float:,.0f}")


def _bounds(what: str, value: pl.Expr, low: float | None, high: float | None) -> Iterator[tuple[pl.Expr, pl.Expr]]:
    import polars as pl  # noqa: PLC0415

    if low is not None or high is not None:
        yield value.is_null(), pl.lit(f"{what} unknown")
    if low is not None:
        yield value < low, pl.lit(f"{what} below {low:,g}")
    if high is not None:
        yield value > high, pl.lit(f"{what} above {high:,g}")
