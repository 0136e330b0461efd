"""Symbols as a configuration names them."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from sigma9_core.models import SYMBOL_PATTERN

Ticker = Annotated[str, StringConstraints(pattern=SYMBOL_PATTERN, to_upper=True)]
"""A symbol; small letters become capital ones."""
