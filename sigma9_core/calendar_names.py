"""The names of the exchange calendars that there are: a wrong one is found when the configuration is read.

exchange_calendars is too heavy to be imported at each start. A name that is not in the list is asked for in a
child process, because a newer package may know more.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Final

_LISTED: Final = """
24/5 24/7 AIXK ARCX ASEX ASX BATS BMF BSE BVB BVMF CBOT CFE CME CMES COMEX FWB HKEX ICE ICEUS IEPA
JKT JPX LSE LUXSE NASDAQ NYFE NYMEX NYSE OOTC OSE SIX SSE TASE TSX XAMS XASE XASX XBDA XBEL XBKK
XBOG XBOM XBRA XBRU XBSE XBUD XBUE XCBF XCSE XCYS XDUB XDUS XEEE XETR XEUR XFRA XHAM XHEL XHKG XICE
XIDX XIST XJSE XKAR XKLS XKRX XLIM XLIS XLIT XLJU XLON XLUX XMAD XMEX XMIL XMOS XNAS XNYS XNZE XOSL
XPAR XPHS XPRA XRIS XSAU XSES XSGO XSHG XSTO XSTU XSWX XTAE XTAI XTAL XTKS XTSE XTSX XWAR XWBO XZAG
us_futures
"""
NAMES: Final = frozenset(_LISTED.split())
"""Every calendar and alias of exchange_calendars 4.13; a test compares them with the package."""
ASK_SECONDS: Final = 30.0
"""A child that takes longer is not asked any more."""


def is_exchange(name: str) -> bool:
    """Tell whether there is an exchange calendar of this name; upper and lower case are told apart."""
    return name in NAMES or name in installed_names()


@cache
def installed_names() -> frozenset[str]:
    """Ask the installed package for its names, once a process; empty where it can't be asked."""
    from sigma9_core.calendar import child_environment  # noqa: PLC0415 - brings asyncio, and is hardly ever needed

    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "sigma9_core.calendar_build", "--names"],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(done.stdout.decode(errors="replace").split()) if done.returncode == 0 else frozenset()
