"""What each command does: one function a row of the command table, all on the outer loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sigma9_core.commands import (
    AcknowledgeArgs,
    AdoptArgs,
    CancelAllArgs,
    CloseArgs,
    EventsArgs,
    KillArgs,
    ModifyOrderArgs,
    NoArgs,
    OrderArgs,
    OrderIdArgs,
    PluginArgs,
    ResetKillArgs,
    RiskClearArgs,
    RiskSetArgs,
    ScanArgs,
    SettleArgs,
    SymbolArgs,
)
from sigma9_core.dispatcher import Call, Handler
from sigma9_core.errors import CommandError
from sigma9_core.garbage import uncollected
from sigma9_core.plain import Plain

if TYPE_CHECKING:
    from sigma9_core.engine import Engine

Result = Mapping[str, Any]
EVENTS_SIZE: Final = 256 * 1024
"""Characters of events in one answer of `events`: brokers take no more than 1 MiB, and 2 MiB take the outer
loop a third of a second."""
NOT_KEPT: Final = (
    "the list can't be saved now: until it is, which is tried again, a restart brings back the one before it"
)


class Handlers:
    """The commands of contract 4, carried out on an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def table(self) -> dict[str, Handler]:
        """Give the handler of every built-in command."""
        return {
            "start": self.start,
            "stop": self.stop,
            "pause": self.pause,
            "resume": self.resume,
            "kill_switch": self.kill_switch,
            "reset_kill_switch": self.reset_kill_switch,
            "kill_drill": self.kill_drill,
            "heartbeat": self.heartbeat,
            "scan": self.scan,
            "place_order": self.place_order,
            "preview_order": self.preview_order,
            "modify_order": self.modify_order,
            "cancel_order": self.cancel_order,
            "cancel_all": self.cancel_all,
            "close_position": self.close_position,
            "adopt_position": self.adopt_position,
            "settle_position": self.settle_position,
            "watchlist_add": self.watchlist_add,
            "watchlist_remove": self.watchlist_remove,
            "broker_connect": self.broker_connect,
            "broker_disconnect": self.broker_disconnect,
            "plugin_enable": self.plugin_enable,
            "plugin_disable": self.plugin_disable,
            "risk_set": self.risk_set,
            "risk_clear": self.risk_clear,
            "acknowledge_journal": self.acknowledge_journal,
            "events": self.events,
        }

    # --- engine -----------------------------------------------------------------------------------------------

    async def start(self, args: NoArgs, call: Call) -> Result:
        """Start the engine."""
        await self._engine.start_trading(reason=args.reason or f"command by {call.command.source}", person=True)
        return {"engine": self._engine.state}

    async def stop(self, args: NoArgs, call: Call) -> Result:
        """Stop the engine."""
        await self._engine.stop_trading(reason=args.reason or f"command by {call.command.source}", person=True)
        return {"engine": self._engine.state}

    async def pause(self, args: NoArgs, call: Call) -> Result:
        """Take no new entries."""
        await self._engine.pause_trading(reason=args.reason or f"command by {call.command.source}", person=True)
        return {"engine": self._engine.state}

    async def resume(self, args: NoArgs, call: Call) -> Result:
        """Take entries again."""
        await self._engine.resume_trading(reason=args.reason or f"command by {call.command.source}")
        return {"engine": self._engine.state}

    async def heartbeat(self, _args: NoArgs, _call: Call) -> Result:
        """Feed the dead man's switch."""
        self._engine.dead_man.beat()
        return {"armed": self._engine.settings.dead_man.timeout is not None}

    # --- kill -------------------------------------------------------------------------------------------------

    async def kill_switch(self, args: KillArgs, call: Call) -> Result:
        """Kill, on the money lane; the gate is closed since the command was heard."""
        engine = self._engine
        with uncollected(), engine.money.hurried():
            result = await engine.money.call(engine.path.kill(args, call.command))
        if not engine.doors.current:  # such as REST, where the state may be read next: it is told first
            await engine.money.ask(engine.path.afterwards.flush)
        return result

    async def reset_kill_switch(self, args: ResetKillArgs, call: Call) -> Result:
        """Unlatch; the engine stays stopped."""
        engine = self._engine
        result = await engine.money.call(
            engine.path.killswitch.reset(args.reason, args.scope, call.command.source)
        )
        await engine.after_reset(args.scope)
        return result

    async def kill_drill(self, _args: NoArgs, call: Call) -> Result:
        """Try the whole kill, and start again what ran before."""
        return await self._engine.drill(call.command.source)

    # --- orders -----------------------------------------------------------------------------------------------

    async def place_order(self, args: OrderArgs, call: Call) -> Result:
        """Send an order through the risk gate."""
        engine = self._engine
        return await engine.money.call(engine.path.place(args, call.command, call.records))

    async def preview_order(self, args: OrderArgs, _call: Call) -> Result:
        """Say what the rules would say."""
        engine = self._engine
        return await engine.money.call(engine.path.preview(args))

    async def modify_order(self, args: ModifyOrderArgs, call: Call) -> Result:
        """Change a working order."""
        engine = self._engine
        return await engine.money.call(engine.path.modify(args, call.command, call.records))

    async def cancel_order(self, args: OrderIdArgs, _call: Call) -> Result:
        """Cancel a working order."""
        engine = self._engine
        return await engine.money.call(engine.path.cancel(args.order_id))

    async def cancel_all(self, args: CancelAllArgs, _call: Call) -> Result:
        """Cancel our entries."""
        engine = self._engine
        return await engine.money.call(engine.path.cancel_all(args))

    async def close_position(self, args: CloseArgs, call: Call) -> Result:
        """Close a position at the market."""
        engine = self._engine
        return await engine.money.call(engine.path.close(args, call.command, call.records))

    async def adopt_position(self, args: AdoptArgs, _call: Call) -> Result:
        """Make a foreign position ours."""
        engine = self._engine
        return await engine.money.call(engine.path.adopt(args))

    async def settle_position(self, args: SettleArgs, call: Call) -> Result:
        """Take the broker's word for a position."""
        engine = self._engine
        return await engine.money.call(engine.path.settle_position(args, call.command))

    # --- market -----------------------------------------------------------------------------------------------

    async def scan(self, args: ScanArgs, _call: Call) -> Result:
        """Scan the market and renew the watchlist."""
        return await self._listed(await self._engine.scans.run(args.strategies))

    async def watchlist_add(self, args: SymbolArgs, _call: Call) -> Result:
        """Watch a symbol."""
        self._engine.watchlist.add(args.symbol)
        return await self._listed({"count": len(self._engine.watchlist.items())})

    async def watchlist_remove(self, args: SymbolArgs, _call: Call) -> Result:
        """Stop watching a symbol."""
        self._engine.watchlist.remove(args.symbol)
        return await self._listed({"count": len(self._engine.watchlist.items())})

    async def _listed(self, result: Result) -> Result:
        """Answer once a restart would know of the list, or say that it would not."""
        return result if await self._engine.keeping.kept("watchlist") else {**result, "note": NOT_KEPT}

    # --- broker, plugins, risk --------------------------------------------------------------------------------

    async def broker_connect(self, _args: NoArgs, _call: Call) -> Result:
        """Begin to connect the broker."""
        return {"broker": await self._engine.connect_broker()}

    async def broker_disconnect(self, _args: NoArgs, _call: Call) -> Result:
        """Disconnect the broker; working orders stay there."""
        engine = self._engine
        await engine.money.call(engine.path.link.disconnect())
        return {"broker": engine.path.link.state}

    async def plugin_enable(self, args: PluginArgs, _call: Call) -> Result:
        """Enable a plugin instance."""
        await self._engine.set_plugin(args.name, enabled=True)
        return {"name": args.name, "enabled": True}

    async def plugin_disable(self, args: PluginArgs, _call: Call) -> Result:
        """Disable a plugin instance."""
        await self._engine.set_plugin(args.name, enabled=False)
        return {"name": args.name, "enabled": False}

    async def risk_set(self, args: RiskSetArgs, _call: Call) -> Result:
        """Change a risk rule's settings."""
        return {"rule": args.rule, "settings": await self._engine.set_rule(args.rule, args.settings)}

    async def risk_clear(self, args: RiskClearArgs, _call: Call) -> Result:
        """Clear a trip."""
        engine = self._engine
        if args.rule not in engine.rule_names():
            raise CommandError("not_found", f"no risk rule is called '{args.rule}'", {"field": "rule"})
        await engine.money.call(engine.path.clear_rule(args.rule))
        return {"rule": args.rule}

    async def acknowledge_journal(self, args: AcknowledgeArgs, call: Call) -> Result:
        """Take a person's word for what the journal has noted of itself; `verify` is content from then on."""
        command = call.command
        known = await self._engine.acknowledge_journal(args.reason, command.actor or command.source)
        if not known:
            raise CommandError("conflict", "there is nothing to acknowledge: the journal was not put back")
        return {"acknowledged": known}

    async def events(self, args: EventsArgs, _call: Call) -> Result:
        """Give durable events after a number: as many as are asked for, and no more than one answer holds."""
        page = await self._engine.events(args.after, args.limit)
        if args.after > page.last or args.after < page.first - 1:
            raise CommandError(
                "conflict",
                f"after={args.after} is outside of what is kept ({page.first} to {page.last})",
                {"first": page.first, "last": page.last, "journal_id": page.journal_id},
            )
        events = await asyncio.to_thread(_first, page.events)
        more = len(events) < len(page.events)
        return {
            "events": events,
            "next": events[-1]["seq"] if more else page.next,
            "journal_id": page.journal_id,
        }


def _first(events: Sequence[str]) -> list[Plain]:
    """Read the first of the encoded events, and as many more as fit into one answer."""
    found: list[Plain] = []
    size = 0
    for raw in events:
        size += len(raw)
        if found and size > EVENTS_SIZE:
            break
        found.append(Plain(json.loads(raw)))
    return found
