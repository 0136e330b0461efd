"""The chain over a journal's rows: each row's hash covers what is in it, and the hash of the row before it.

Events are one chain, in the order of `seq`; the rows of all other tables are another, in the order of `n`. Whoever
changes, adds or removes a row has to write every later row of its chain anew, and the mark beside the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from sigma9_core.money.tables import HASH, METADATA

BEGIN: Final = ""
"""What stands for the row before the first one."""
_SIZE: Final = 20
_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    name: tuple(column.name for column in table.c if column.name != HASH)
    for name, table in METADATA.tables.items()
}


def linked(before: str, table: str, row: Mapping[str, Any]) -> str:
    """Give the hash of a row that follows one with the hash `before`; a column without a value is not in it.

    So a column that a later version adds leaves the hashes of older rows what they are.
    """
    told = [before, table]
    for name in _COLUMNS[table]:
        value = row[name]
        if value is not None:
            text = value if type(value) is str else str(value)
            told.append(f"{name} {len(text)} {text}")  # with its length: nothing can pass for two columns
    return blake2b("\n".join(told).encode("utf-8", "surrogatepass"), digest_size=_SIZE).hexdigest()
