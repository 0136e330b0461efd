"""One order taken back from the journal: as its newest event tells it, not as its newest intent wanted it."""

from __future__ import annotations

from sigma9_core.money.journal import Journal
from sigma9_core.money.orders import Order


def recalled(journal: Journal, order_id: str) -> Order | None:
    """Give an order of ours as the journal has it (blocks: disk), None for one that is not ours.

    What has ended stays so, unless it was accepted after that: the newest event of a cancelled order may be a fill
    that came late. A change that was approved, and refused or never sent, is in the intents too; the events have
    only what the broker has confirmed.
    """
    intent, event, status = journal.intent(order_id), journal.order(order_id), journal.status(order_id)
    if intent is None or event is None or status is None:
        return None
    terms = {
        name: getattr(event, name)
        for name in (
            *("quantity", "order_type", "limit_price", "stop_price"),
            *("trail_amount", "trail_percent", "adjustment"),
        )
    }
    return Order(
        order_id,
        intent.request.model_copy(update=terms),
        intent.verdicts,
        intent.ts,
        status=status,
        broker_order_id=event.broker_order_id,
        filled=event.filled_quantity,
        average_price=event.average_price,
        commission=journal.commission(order_id),
        reason=event.reason,
    )


__all__ = ["recalled"]
