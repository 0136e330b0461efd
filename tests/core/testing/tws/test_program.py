"""The peer in a thread, as a process, and as `sigma9 fake-tws`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sigma9_core.cli.frame import main
from sigma9_core.testing.tws import KINDS, FakeTws, PeerClock
from sigma9_core.testing.tws.faults import Faults
from sigma9_core.testing.tws.remote import TwsProcess, TwsThread
from sigma9_core.testing.tws.wire import HELLO, framed

ROOT = Path(__file__).parents[4]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "plugins", ROOT / "integrations"))),
}


def shakes(host: str, port: int) -> bool:
    """Tell whether the peer answers the handshake."""
    with socket.create_connection((host, port), 5) as connection:
        connection.sendall(HELLO + framed(b"v157..176"))
        return b"176\0" in connection.recv(100)


def test_thread() -> None:
    """A test that blocks asks the peer from outside its loop."""
    with TwsThread(cash=500) as tws:
        assert shakes(tws.host, tws.port)
        tws.ask("add_contract", symbol="XYZ", price=12)
        tws.ask("place_foreign", client_id=4, symbol="XYZ", action="BUY", totalQuantity=10, orderRef="r")
        (order,) = tws.ask("orders", symbol="XYZ")
        assert (order["order_ref"], order["status"], order["average"]) == ("r", "Filled", "12")
        assert tws.call(lambda peer: str(peer.world.accounts.first.cash)) == "379"
        with pytest.raises(KeyError, match="nothing is called 'explode'"):
            tws.ask("explode")


def test_thread_that_does_not_run() -> None:
    """Asking needs a peer that runs."""
    tws = TwsThread()
    with pytest.raises(RuntimeError, match="does not run"):
        tws.ask("state")
    with tws:
        pass


def test_process() -> None:
    """The peer as a process is asked over its control port, and ends with its standard input."""
    with TwsProcess("--accounts", "DU1,DU2", "--symbol", "XYZ=12.5", environment=ENVIRONMENT) as tws:
        assert shakes(tws.host, tws.port)
        tws.ask("set_price", symbol="XYZ", last="12.75")
        tws.ask("place_manual", symbol="XYZ", action="BUY", totalQuantity=1, account="DU2")
        state = tws.ask("state")
        assert state["accounts"]["DU2"]["positions"] == {"XYZ": "1"}
        assert [each["price"] for each in state["executions"]] == ["12.76"]
        assert tws.ask("arm", name="reject") == "reject"
        assert tws.ask("received") == []
        with pytest.raises(RuntimeError, match=r"no fault is called 'rejct'"):
            tws.ask("arm", name="rejct")
        with pytest.raises(RuntimeError, match="KeyError"):
            tws.ask("explode")
    with pytest.raises(RuntimeError, match="does not run"):
        tws.ask("state")


def test_process_that_does_not_start() -> None:
    """A process that ends at once is told of."""
    with (
        pytest.raises(RuntimeError, match="did not come up"),
        TwsProcess("--fault", "rejct", environment=ENVIRONMENT),
    ):
        pass


def test_conversation_is_printed() -> None:
    """--verbose prints one line a message; --client-version only what was offered."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for option, told in (
        ("--verbose", ["> API v157..176", "- the connection is closed"]),
        ("--client-version", ["> API v157..176"]),
    ):
        program = subprocess.Popen(
            [sys.executable, "-m", "sigma9_core", "fake-tws", "--port", str(port), option],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        assert (
            program.stdout.readline() == f"a TWS to test against listens on 127.0.0.1:{port}, accounts DU1234567\n"
        )
        assert shakes("127.0.0.1", port)
        assert program.stderr is not None
        lines = [program.stderr.readline() for _ in told]
        assert all(words in line for words, line in zip(told, lines, strict=True)), lines
        program.terminate()
        program.communicate(timeout=10)


def test_faults_are_listed(capsys: Any) -> None:
    """--list-faults has a line for each."""
    assert main(["fake-tws", "--list-faults"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(KINDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fault", "rejct"], "no fault is called 'rejct'"),
        (["--fault", "reject,symbol"], "'symbol' is not KEY=VALUE"),
        (["--fault", "reject,colour=red"], "no fault has the option 'colour'"),
        (["--fault", "reject:often"], "invalid literal"),
        (["--cash", "lots"], "a number is not one"),
        (["--zone", "Nowhere"], "Nowhere"),
        (["--accounts", ","], "there must be an account"),
    ],
)
def test_wrong_use(capsys: Any, *, arguments: list[str], words: str) -> None:
    """What can't be understood is said, with exit code 2."""
    assert main(["fake-tws", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_port_in_use(capsys: Any) -> None:
    """A port that is taken is said, with exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["fake-tws", "--port", str(taken.getsockname()[1])]) == 1
    assert "can't listen on 127.0.0.1" in capsys.readouterr().err


def test_faults_as_told() -> None:
    """A fault on the command line has a count, a chance or `always`, and settings."""
    faults = Faults()
    told = [
        faults.arm_as_told(each)
        for each in ("reject", "reject:3", "reject:0.25", "reject:always", "cancel-late:2,seconds=0.5,client_id=7")
    ]

    assert [(each.times, each.chance) for each in told] == [(1, 1), (3, 1), (None, 0.25), (None, 1), (2, 1)]
    assert (told[-1].match, told[-1].option("seconds", 2)) == ({"client_id": 7}, 0.5)


async def test_wander() -> None:
    """Prices move by the seed alone."""

    async def prices(seed: int) -> list[str]:
        async with FakeTws(seed=seed, clock=PeerClock(by_hand=True)) as tws:
            tws.wander(1, 0.01)
            tws.clock.advance(10)
            return [str(each.last) for each in tws.world.market.quotes.values()]

    assert await prices(1) == await prices(1) != await prices(2)
    assert all(float(each) > 0 for each in await prices(1))


async def test_any_symbol(lib: Any) -> None:
    """A stock that nobody knows is made up where that is wanted."""
    async with FakeTws(any_symbol=True) as tws:
        ib = lib.IB()
        await ib.connectAsync(tws.host, tws.port, clientId=1)
        (details,) = await ib.reqContractDetailsAsync(lib.Stock("ZZZ", "SMART", "USD"))
        trade = ib.placeOrder(details.contract, lib.MarketOrder("BUY", 1, tif="DAY"))
        await ib.reqCurrentTimeAsync()
        assert trade.orderStatus.avgFillPrice == 100
        ib.disconnect()


def test_clock_that_runs() -> None:
    """A clock that runs by itself can't be moved."""
    with pytest.raises(RuntimeError, match="runs by itself"):
        PeerClock().advance(1)
