"""Numbers of the risk rules: their types in a configuration, and how a reason writes them."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, TypeGuard

from pydantic import Field

from sigma9_core.models import ZERO, Money

Positive = Annotated[Money, Field(gt=0)]
"""A finite number above zero."""


def percent(part: Decimal, whole: Decimal) -> Decimal:
    """Give `part` in percent of `whole`, which is above zero."""
    return part / whole * 100


def known(amount: Decimal | None) -> TypeGuard[Decimal]:
    """Tell whether an amount, such as the equity, is a number above zero."""
    return amount is not None and amount.is_finite() and amount > ZERO


def money(amount: Decimal) -> str:
    """Write an amount for a sentence."""
    return f"{amount:,.2f}"


def plain(number: Decimal) -> str:
    """Write a quantity or a limit for a sentence, without zeros that say nothing."""
    return f"{number:,f}".rstrip("0").rstrip(".") if "." in f"{number:f}" else f"{number:,f}"
