"""Numbers as the library has them, and as we have them."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Final

UNSET: Final = 1e300
"""A number of IB beyond it is none: it writes the largest one there is where nothing is set."""


def amount(value: Any) -> Decimal | None:
    """Turn a number of the library, or its text, into a decimal; None where it is not set."""
    if value in (None, ""):
        return None
    number = float(value)
    if not math.isfinite(number) or abs(number) > UNSET or abs(number) == 2**31 - 1:
        return None
    exact = Decimal(repr(number)) if isinstance(value, float) else Decimal(str(value))
    return exact.quantize(Decimal(1)) if exact == exact.to_integral_value() and abs(exact) < 10**15 else exact


def price(value: Any) -> Decimal | None:
    """Turn a price into a decimal; None where none is set, which IB also writes as zero."""
    return amount(value) or None


def quantity(value: Any) -> Decimal:
    """Turn a quantity into a decimal; zero where it is not set."""
    return amount(value) or Decimal(0)
