"""The watchlist: what scans and people put on it, kept over restarts, published whole at each change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import ValidationError

from sigma9_core.clock import Clock, rfc3339
from sigma9_core.errors import CommandError, StateError
from sigma9_core.events import WatchlistUpdate
from sigma9_core.models import WatchlistItem

MANUAL: Final = "manual"
"""The strategy name of what a person added."""
MOST_MANUAL: Final = 100

Reason = Literal["scan", "manual", "restored"]


class Watchlist:
    """Items by symbol, the best first; every change goes to `publish` with the update that tells it."""

    def __init__(self, clock: Clock, publish: Callable[[WatchlistUpdate], None]) -> None:
        self.updated_at: str | None = None
        self._items: dict[str, WatchlistItem] = {}
        self._clock = clock
        self._publish = publish

    def items(self) -> tuple[WatchlistItem, ...]:
        """List the items, the best first."""
        return tuple(self._items.values())

    def symbols(self) -> frozenset[str]:
        """Name the watched symbols."""
        return frozenset(self._items)

    def body(self) -> dict[str, Any]:
        """Give the `state/watchlist` object (contract 1)."""
        items = [item.model_dump(mode="json") for item in self._items.values()]
        return {"count": len(items), "updated_at": self.updated_at, "items": items}

    def reprice(self, last: Callable[[str], float | None]) -> bool:
        """Take the newest prices; tell whether any has changed. It is no update: the list is what it was."""
        changed = {
            symbol: item.model_copy(update={"last": price})
            for symbol, item in self._items.items()
            if (price := last(symbol)) is not None and price != item.last
        }
        self._items.update(changed)
        return bool(changed)

    def renew(
        self, items: Sequence[WatchlistItem], strategy: str | None, *, standing: Collection[str] = ()
    ) -> WatchlistUpdate:
        """Take a scan's list; what a person added stays, and an item that stays keeps its `added_at`.

        `standing` names the strategies that have not scanned this time: what they had listed stays as well.
        """
        listed: dict[str, WatchlistItem] = {}
        by_hand: dict[str, WatchlistItem] = {}
        for item in items:
            before = self._items.get(item.symbol)
            changes: dict[str, Any] = {}
            if before is not None:
                others = [name for name in before.strategies if name in standing or name == MANUAL]
                changes["added_at"] = before.added_at
                changes["strategies"] = tuple(dict.fromkeys((*item.strategies, *others)))
            listed[item.symbol] = item.model_copy(update=changes)
        for symbol, item in self._items.items():
            if symbol in listed:
                continue
            left = tuple(name for name in item.strategies if name in standing or name == MANUAL)
            if any(name != MANUAL for name in left):
                listed[symbol] = item.model_copy(update={"strategies": left})
            elif left:
                by_hand[symbol] = item.model_copy(
                    update={"strategies": left, "no_trade": item.no_trade or "added by hand: watched only"}
                )
        best = sorted(listed.values(), key=lambda item: (-item.priority, -(item.score or 0.0), item.symbol))
        return self._replace({**{item.symbol: item for item in best}, **by_hand}, "scan", strategy)

    def add(self, symbol: str) -> WatchlistUpdate | None:
        """Watch a symbol by hand; None where it was so already."""
        before = self._items.get(symbol)
        if before is not None and MANUAL in before.strategies:
            return None
        if sum(MANUAL in item.strategies for item in self._items.values()) >= MOST_MANUAL:
            raise CommandError("conflict", f"{MOST_MANUAL} symbols were added by hand; remove one first")
        if before is not None:
            item = before.model_copy(update={"strategies": (*before.strategies, MANUAL)})
        else:
            item = WatchlistItem(
                symbol=symbol,
                strategies=(MANUAL,),
                reasons=("added by hand",),
                added_at=self._clock.now(),
                no_trade="added by hand: watched only",
            )
        return self._replace({**self._items, symbol: item}, "manual", None)

    def remove(self, symbol: str) -> WatchlistUpdate:
        """Stop watching a symbol, whoever put it on."""
        if symbol not in self._items:
            raise CommandError("not_found", f"{symbol} is not on the watchlist", {"field": "symbol"})
        return self._replace({s: i for s, i in self._items.items() if s != symbol}, "manual", None)

    def restore(self, document: Mapping[str, Any]) -> None:
        """Take back the list that `document` gave before a restart; raise StateError where it can't be read."""
        try:
            items = [WatchlistItem.model_validate(each) for each in document.get("items", ())]
        except (ValidationError, TypeError) as error:
            raise StateError(f"the watchlist that was kept can't be read: {error}") from error
        self._replace({item.symbol: item for item in items}, "restored", None, at=document.get("updated_at"))

    def _replace(
        self,
        items: Mapping[str, WatchlistItem],
        reason: Reason,
        strategy: str | None,
        *,
        at: str | None = None,
    ) -> WatchlistUpdate:
        before = self._items
        self._items = dict(items)
        self.updated_at = at or rfc3339(self._clock.now())
        update = WatchlistUpdate(
            reason=reason,
            strategy=strategy,
            added=_sorted(set(items) - set(before)),
            removed=_sorted(set(before) - set(items)),
            count=len(items),
            items=tuple(items.values()),
        )
        self._publish(update)
        return update


def _sorted(symbols: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(symbols))
