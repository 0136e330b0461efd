"""The peer as a program: it listens, can be asked by another process, and ends with its standard input."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from sigma9_core.testing.tws.asking import asked
from sigma9_core.testing.tws.server import LOCAL, FakeTws


async def serve(tws: FakeTws, begin: Callable[[FakeTws], None], control: int | None = None) -> None:
    """Run the peer until it is cancelled; with a control port, say the ports on stdout and end when stdin does."""
    async with tws:
        begin(tws)
        if control is None:
            await asyncio.Event().wait()
            return
        server = await serve_control(tws, control)
        port = server.sockets[0].getsockname()[1]
        sys.stdout.write(json.dumps({"host": tws.host, "port": tws.port, "control": port}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        server.close()


async def serve_control(tws: FakeTws, port: int) -> asyncio.Server:
    """Answer JSON lines such as `{"ask": "set_price", "symbol": "AAPL", "last": 190}` on a loopback port."""

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async for line in reader:
                writer.write(json.dumps(await _answered(tws, line)).encode() + b"\n")
        except ConnectionError:
            pass  # whoever asked has gone
        finally:
            writer.close()

    return await asyncio.start_server(visit, LOCAL, port)


async def _answered(tws: FakeTws, line: bytes) -> dict[str, Any]:
    try:
        more = json.loads(line)
        what = more.pop("ask")
        return {"answer": await asked(tws, what, more)}
    except Exception as problem:  # noqa: BLE001 - whatever was asked wrongly is the asker's to hear
        return {"error": f"{type(problem).__name__}: {problem}"}
