"""The nouns of trading as the contract has them: frozen, complete, and money to the last digit."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sigma9_core import models
from sigma9_core.models import (
    Account,
    ApprovedOrder,
    ExitPlan,
    Frozen,
    Money,
    OrderRequest,
    OrderStatus,
    OrderView,
    Position,
    Quote,
    RuleUsage,
    Symbol,
    Verdict,
    WatchlistItem,
)

TS = datetime(2026, 11, 20, 14, 45, 0, 123456, tzinfo=UTC)
MONEY: TypeAdapter[Decimal] = TypeAdapter(Money)
SYMBOL: TypeAdapter[str] = TypeAdapter(Symbol)

KEYS: dict[type[Frozen], str] = {
    Position: (
        "symbol quantity average_cost last market_value unrealized_pnl realized_pnl strategy opened_at protected "
        "foreign"
    ),
    Account: "account mode currency equity cash buying_power day_pnl realized_pnl unrealized_pnl",
    OrderView: (
        "status order_id broker_order_id symbol side quantity order_type limit_price stop_price trail_amount "
        "trail_percent time_in_force outside_rth filled_quantity average_price last_quantity last_price "
        "commission strategy source parent_id oca_group reason rule verdicts recovered "
        "good_after adjustment foreign"
    ),
    RuleUsage: "rule enabled used limit tripped until",
    WatchlistItem: "symbol priority score stage strategies reasons last added_at no_trade",
}
SMALLEST: dict[type[Frozen], dict[str, Any]] = {
    Position: {"symbol": "AAPL", "quantity": -5, "average_cost": "1.5"},
    Account: {"account": None, "mode": "paper"},
    OrderView: {
        "status": "submitted", "order_id": "O1", "symbol": "AAPL", "side": "buy", "quantity": 1,
        "order_type": "market", "time_in_force": "day", "source": "api",
    },
    RuleUsage: {"rule": "max_open"},
    WatchlistItem: {"symbol": "AAPL", "added_at": TS},
}  # fmt: skip


# --- the wire -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", KEYS)
def test_wire_models_carry_all_keys_of_the_contract(model: type[Frozen]) -> None:
    """Each has exactly the keys of contract 1 and 2, in their order, also where little is known of it."""
    body = json.loads(model.model_validate(SMALLEST[model]).model_dump_json())

    assert list(body) == KEYS[model].split()


def test_order_statuses_are_the_events_of_the_contract() -> None:
    """An order's status is one of the words that a trade_event may carry."""
    assert " ".join(OrderStatus) == (
        "submitted accepted partially_filled filled cancelled rejected expired replaced busted risk_rejected "
        "unknown unchanged"
    )


def test_times_are_written_as_the_contract_says() -> None:
    """A time is RFC 3339 in UTC with microseconds."""
    body = WatchlistItem(symbol="AAPL", added_at=TS).model_dump(mode="json")

    assert body["added_at"] == "2026-11-20T14:45:00.123456Z"


# --- money ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "wire"),
    [
        ("0.1", "0.1"), ("100", "100"), ("100.00", "100"), ("-5", "-5"), ("187.25", "187.25"), ("0", "0"),
        ("1E+3", "1000"), ("-0.0", "0"), ("0.00000001", "1e-8"), ("123456789012345678", "123456789012345678"),
    ],
)  # fmt: skip
def test_money_is_a_number_on_the_wire(amount: str, wire: str) -> None:
    """A decimal becomes the JSON number of its value: an integer where it is whole."""
    assert json.loads(MONEY.dump_json(Decimal(amount))) == json.loads(wire)
    assert (b"." in MONEY.dump_json(Decimal(amount))) == ("." in wire)


@given(amount=st.decimals(-(10**9), 10**9, places=6))
def test_money_comes_back_from_the_wire(amount: Decimal) -> None:
    """A decimal of up to fifteen digits is equal after it was written and read."""
    assert MONEY.validate_json(MONEY.dump_json(amount)) == amount


@given(amount=st.decimals(allow_nan=False, allow_infinity=False))
def test_money_inside_stays_decimal(amount: Decimal) -> None:
    """Inside the program no digit is lost: a model gives back the very decimal it took."""
    position = Position(symbol="AAPL", quantity=amount, average_cost=amount)

    assert str(position.model_dump()["quantity"]) == str(position.quantity) == str(amount)


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-Infinity", "", "1,5", "0x10", None, float("nan")])
def test_what_is_no_amount_is_refused(amount: object) -> None:
    """Not-a-number, infinity and words are no amounts of money."""
    with pytest.raises(ValidationError):
        MONEY.validate_python(amount)


def test_float_becomes_its_shortest_decimal() -> None:
    """A JSON number keeps the digits that a person sees: 0.1 is a tenth."""
    assert MONEY.validate_json("0.1") == MONEY.validate_python(0.1) == Decimal("0.1")


# --- symbols --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", ["AAPL", "BRK.B", "a", "ES-2026_12", "X" * 32, "0"])
def test_symbols_of_the_contract_are_taken(symbol: str) -> None:
    """Letters, digits, dot, underscore and hyphen, up to 32 of them."""
    assert SYMBOL.validate_python(symbol) == symbol


@pytest.mark.parametrize(
    "symbol", ["", "X" * 33, "A B", "A/B", "A+", "#", "AAPL\n", "\nAAPL", "ÄPFEL", "A\0", "*"]
)
def test_other_symbols_are_refused(symbol: str) -> None:
    """A symbol is part of topics and paths: nothing that means something there gets in."""
    with pytest.raises(ValidationError):
        SYMBOL.validate_python(symbol)


# --- frozen ---------------------------------------------------------------------------------------------------


def test_messages_do_not_change() -> None:
    """A model and a record refuse to be changed."""
    with pytest.raises(ValidationError, match="frozen"):
        OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(1)).quantity = Decimal(2)  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Quote("AAPL", TS, 1.0, 1.1).bid = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("model", [*KEYS, OrderRequest, ExitPlan, Verdict])
def test_unknown_key_is_named(model: type[Frozen]) -> None:
    """A key that a model does not have is an error with its name."""
    with pytest.raises(ValidationError, match="stop_prise"):
        model.model_validate({**SMALLEST.get(model, {}), "stop_prise": 1})


# --- the seal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seal", [None, object(), True, "approved"])
def test_only_the_gate_makes_an_approved_order(seal: object) -> None:
    """Without the gate's own seal there is no approved order, and so nothing that a broker takes."""
    request = OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(1))

    with pytest.raises(TypeError, match="only the risk gate makes an ApprovedOrder"):
        ApprovedOrder("O1", request, (), TS, seal=seal)


def test_seal_does_not_show() -> None:
    """An approved order can be logged and compared without its seal."""
    request = OrderRequest(symbol="AAPL", side="buy", quantity=Decimal(1))
    order = ApprovedOrder("O1", request, (), TS, seal=models._APPROVAL)

    assert "seal" not in repr(order)
    assert order == ApprovedOrder("O1", request, (), TS, seal=models._APPROVAL)
