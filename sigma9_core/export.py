"""Rows as files for other programs: CSV and Parquet, written as they come, and never half a file."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Any, Final, Literal

from sigma9_core.errors import DataError
from sigma9_core.log import MASK, redacted

Form = Literal["csv", "parquet"]
Kind = Literal["text", "number", "flag", "moment", "amount"]
"""What a column holds: text, a whole number, yes or no, an RFC 3339 time, a decimal written as text."""

DIGITS: Final = 38
"""The most digits that a decimal of Parquet has; a column that needs more stays text."""
NOTHING: Final = "\\N"
EMPTY: Final = "\\E"
"""How a value that is not there, and a text of no length, are written on the way to Parquet."""
_NAMES: Final = ("password", "passwd", "secret", "token", "api", "authorization")
_SECRET: Final = re.compile(
    r'("[A-Za-z0-9_]*(?:password|passwd|secret|token|api_?key|authorization)"\s*:\s*)"(?:[^"\\]|\\.)*"',
    re.IGNORECASE,
)


def export(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, Kind],
    path: Path,
    form: Form,
    *,
    replace: bool = False,
) -> int:
    """Write rows into a file that only its owner may read; give their number.

    Known secrets, and what stands under names such as `token` or `password`, are masked. Amounts keep every digit.
    Raise DataError where the file exists already (unless `replace`) or can't be written; then nothing is there.
    """
    if path.exists() and not replace:
        raise DataError(f"{path} exists already: name another file, or say --replace")
    try:
        with _beside(path) as (file, name):
            nothing, empty = ("", "") if form == "csv" else (NOTHING, EMPTY)
            sizes = _write_csv(rows, columns, file, nothing, empty)
            file.close()
            if form == "parquet":
                with _beside(path) as (other, result):
                    other.close()
                    _make_parquet(name, columns, sizes, result)
                    result.replace(path)
            else:
                name.replace(path)
    except OSError as error:
        raise DataError(f"{path} can't be written ({error.strerror or error}): name another place") from error
    return sizes.rows


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[tuple[IO[str], Path]]:
    """Make a file of mode 0600 in the same folder, and take it away again unless it was renamed."""
    descriptor, text = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    name = Path(text)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file, name
    finally:
        name.unlink(missing_ok=True)


class _Sizes:
    """How many rows there are, and how many digits the amounts of each column have before and after the point."""

    def __init__(self) -> None:
        self.rows = 0
        self.whole: dict[str, int] = {}
        self.part: dict[str, int] = {}
        self.odd: set[str] = set()
        """Columns with an amount that is no finite number."""

    def see(self, name: str, text: str) -> None:
        try:
            _, digits, exponent = Decimal(text).as_tuple()
        except InvalidOperation:
            exponent, digits = "n", ()
        if not isinstance(exponent, int):
            self.odd.add(name)
            return
        self.part[name] = max(self.part.get(name, 0), -exponent, 0)
        self.whole[name] = max(self.whole.get(name, 1), len(digits) + exponent)


def _write_csv(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Kind], file: IO[str], nothing: str, empty: str
) -> _Sizes:
    sizes = _Sizes()
    amounts = [name for name, kind in columns.items() if kind == "amount"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        sizes.rows += 1
        for name in amounts:
            if row[name] is not None:
                sizes.see(name, row[name])
        cells = (_cell(row[name]) for name in columns)
        writer.writerow([nothing if cell is None else cell or empty for cell in cells])
    return sizes


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return masked(value) if isinstance(value, str) else str(value)


def masked(text: str) -> str:
    """Mask every known secret, and what JSON keeps under a name such as `token` or `password`."""
    small = text.lower()
    if any(name in small for name in _NAMES):
        text = _SECRET.sub(rf'\g<1>"{MASK}"', text)
    return redacted(text)


def _make_parquet(source: Path, columns: Mapping[str, Kind], sizes: _Sizes, path: Path) -> None:
    import polars as pl  # noqa: PLC0415 - heavy

    frame = pl.scan_csv(
        source,
        schema={name: pl.Int64 if kind == "number" else pl.String for name, kind in columns.items()},
        null_values=[NOTHING],
    )
    frame.with_columns(_casts(columns, sizes)).sink_parquet(path, compression="zstd")


def _casts(columns: Mapping[str, Kind], sizes: _Sizes) -> Sequence[Any]:
    import polars as pl  # noqa: PLC0415 - heavy

    casts = []
    for name, kind in columns.items():
        if kind == "text":
            casts.append(pl.col(name).replace({EMPTY: ""}))
        elif kind == "flag":
            casts.append(pl.col(name) == "true")
        elif kind == "moment":
            casts.append(pl.col(name).str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us", time_zone="UTC"))
        elif kind == "amount" and name not in sizes.odd:
            part = sizes.part.get(name, 0)
            if sizes.whole.get(name, 1) + part <= DIGITS:
                casts.append(pl.col(name).cast(pl.Decimal(DIGITS, part)))
    return casts
