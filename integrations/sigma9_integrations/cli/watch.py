"""`sigma9 mqtt watch`: one line for each message, over any break of the connection."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import deque
from datetime import datetime
from typing import Any, Final

import aiomqtt

from sigma9_core.cli.client import Refused, Unreachable, WrongUsage
from sigma9_core.cli.output import clean
from sigma9_core.clock import rfc3339, wall_now
from sigma9_integrations.cli.reach import connected, find_broker
from sigma9_integrations.mqtt.connection import Arrival
from sigma9_integrations.mqtt.connection import Refused as FilterRefused

PAUSE: Final = 2.0
"""Seconds before a lost connection is tried again."""
LONGEST: Final = 300
"""Signs of a payload that a line shows, without --full."""


def watch(args: argparse.Namespace) -> int:
    """Watch until Ctrl-C, or for --count messages."""
    if args.filter is not None:
        check_filter(args.filter)
    return asyncio.run(_Watcher(args).follow())


def check_filter(text: str) -> None:
    """Raise WrongUsage where a text is no topic filter."""
    levels = text.split("/")
    hash_ok = "#" not in text or (levels[-1] == "#" and text.count("#") == 1)
    plus_ok = all("+" not in level or level == "+" for level in levels)
    if not text or not hash_ok or not plus_ok or "\0" in text:
        raise WrongUsage(
            f"'{text}' is no topic filter: + stands for one whole level, # for all that follow, at the end"
        )


def line_of(arrival: Arrival, at: datetime, *, full: bool) -> str:
    """Write one message for a person."""
    text = clean(arrival.payload.decode("utf-8", "replace"))
    if not full and len(text) > LONGEST:
        text = f"{text[:LONGEST]}… ({len(arrival.payload)} bytes)"
    mark = " (retained)" if arrival.retain else ""
    clock = f"{at.astimezone():%H:%M:%S}.{at.microsecond // 1000:03}"
    return f"{clock}  {clean(arrival.topic)}{mark}  {text or '(empty)'}"


def object_of(arrival: Arrival, at: datetime) -> dict[str, Any]:
    """Write one message for a program: the payload as JSON where it is JSON, else as text."""
    text = arrival.payload.decode("utf-8", "replace")
    try:
        payload: Any = json.loads(text)
    except (ValueError, RecursionError):
        payload = text
    return {"ts": rfc3339(at), "topic": arrival.topic, "retained": arrival.retain, "payload": payload}


class _Watcher:
    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._left: int | None = args.count
        self._arrived: deque[tuple[Arrival, datetime]] = deque()
        self._news = asyncio.Event()
        self._connected = False

    async def follow(self) -> int:
        while True:
            try:
                await self._once()
            except Unreachable as error:
                if not self._connected:
                    raise
                self._say(str(error))
            except FilterRefused as error:
                raise Refused(str(error)) from error
            except aiomqtt.MqttError as error:
                self._say(str(error))
            else:
                return 0
            await asyncio.sleep(PAUSE)

    async def _once(self) -> None:
        """Follow one connection: return once all that was wanted is shown, raise MqttError where it is lost."""
        reach = find_broker(self._args, "viewer")  # a server that starts again may have its broker elsewhere
        async with connected(reach, self._note) as wire:
            if self._connected:
                print("sigma9: connected again", file=sys.stderr, flush=True)
            self._connected = True
            await wire.fetch([self._args.filter or f"{reach.base}/#"])
            lost = asyncio.ensure_future(wire.lost())
            try:
                while not self._show() and not lost.done():
                    self._news.clear()
                    news = asyncio.ensure_future(self._news.wait())
                    await asyncio.wait((news, lost), return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
                if self._left != 0:
                    await lost
            finally:
                lost.cancel()
                await asyncio.gather(lost, return_exceptions=True)

    def _note(self, arrival: Arrival) -> None:
        self._arrived.append((arrival, wall_now()))
        self._news.set()

    def _show(self) -> bool:
        """Print what has arrived; tell whether that is all that was wanted."""
        while self._arrived and self._left != 0:
            arrival, at = self._arrived.popleft()
            if self._args.json:
                print(json.dumps(object_of(arrival, at), ensure_ascii=False))
            else:
                print(line_of(arrival, at, full=self._args.full))
            if self._left is not None:
                self._left -= 1
        sys.stdout.flush()
        return self._left == 0

    @staticmethod
    def _say(text: str) -> None:
        print(f"sigma9: {text}; trying again in {PAUSE:g} s", file=sys.stderr, flush=True)
