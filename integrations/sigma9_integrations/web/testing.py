"""A real browser for tests of the pages: Chromium without a window, driven over its own debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, Final, Literal, Self

from websockets.asyncio.client import ClientConnection, connect

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE: Final = 10.0
"""Seconds that a test waits for something that must come."""
ZONE: Final = "Europe/Berlin"
"""Where the browser's reader is."""
PHONE: Final = 600
"""A narrower screen is a phone's."""
_KEYS: Final = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
_SHOWN: Final = "((element) => element.checkVisibility() ? element.innerText : '')(document.querySelector(%s))"
_MIDDLE: Final = """
(() => {
  const element = document.querySelector(%s), box = element.getBoundingClientRect();
  const x = box.x + box.width / 2, y = box.y + box.height / 2;
  return element.contains(document.elementFromPoint(x, y)) ? [x, y] : null;
})()
"""


def find() -> str | None:
    """Find the program; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """The program, which several tests may share; `start` and `stop` block."""

    def __init__(self, program: str, folder: Path) -> None:
        self.address = ""
        """Where its debugging protocol is reached, once it runs."""
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._listens = threading.Event()

    def start(self) -> None:
        """Start it, and return once it listens."""
        self._process = subprocess.Popen(  # noqa: S603 - the program was found on the path
            [
                self._program,
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
                *("--disable-background-networking", "--disable-extensions", "--hide-scrollbars", "--lang=en-US"),
                *("--remote-debugging-port=0", f"--user-data-dir={self._folder}", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "TZ": ZONE, "LANG": "en_US.UTF-8"},
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="browser's output", daemon=True)
        self._reader.start()
        if not self._listens.wait(3 * PATIENCE) or not self.address:
            self.stop()
            raise RuntimeError(f"{self._program} does not start")

    def stop(self) -> None:
        """End it and all its children."""
        process, self._process = self._process, None
        if process is None:
            return
        os.killpg(process.pid, signal.SIGKILL)  # its own group: nobody else is in it
        process.wait()
        if self._reader is not None:
            self._reader.join()
        if process.stderr is not None:
            process.stderr.close()

    def _read(self) -> None:
        output = None if self._process is None else self._process.stderr
        for line in output or ():
            found = re.search(r"DevTools listening on (ws://\S+)", line)
            if found:
                self.address = found[1]
                self._listens.set()
        self._listens.set()  # it has ended


class Tab:
    """One page with a session of its own; use it with `async with`."""

    def __init__(self, browser: Browser) -> None:
        self.faults: list[str] = []
        """What the page complained of: uncaught errors, and what its content security policy has blocked."""
        self._browser = browser
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self._context = ""

    async def __aenter__(self) -> Self:
        """Open it, empty."""
        self._socket = await connect(self._browser.address, proxy=None, max_size=None)
        self._reader = asyncio.create_task(self._read(self._socket), name="browser: reader")
        self._context = (await self._send("Target.createBrowserContext"))["browserContextId"]
        wanted = {"url": "about:blank", "browserContextId": self._context}
        target = (await self._send("Target.createTarget", **wanted))["targetId"]
        self._session = (await self._send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self._send(f"{domain}.enable")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close it, and whatever it has open."""
        if self._socket is not None:
            self._session = None
            await self._send("Target.disposeBrowserContext", browserContextId=self._context)
            await self._socket.close()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self, socket: ClientConnection) -> None:
        async for text in socket:
            message: dict[str, Any] = json.loads(text)
            if "id" in message:
                waiting = self._waiting.pop(message["id"])
                if not waiting.done():
                    waiting.set_result(message)
            elif message["method"] == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.faults.append(str(details.get("exception", {}).get("description", details["text"])))
            elif message["method"] == "Log.entryAdded":
                entry = message["params"]["entry"]
                # A request that the server refuses, or does not answer, is what some tests are about.
                if entry["level"] == "error" and entry["source"] != "network":
                    self.faults.append(entry["text"])

    async def _send(self, method: str, **params: Any) -> dict[str, Any]:
        if self._socket is None:
            raise RuntimeError("the tab is not open: use `async with`")
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        session = {} if self._session is None else {"sessionId": self._session}
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params, **session}))
        async with asyncio.timeout(PATIENCE):
            found = await answer
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']['message']}")
        result: dict[str, Any] = found["result"]
        return result

    # --- what a test does -------------------------------------------------------------------------------------

    async def look(self, width: int, height: int = 900, scheme: Literal["light", "dark"] = "light") -> None:
        """Take the size of a screen, and the colours that its system prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < PHONE}
        await self._send("Emulation.setDeviceMetricsOverride", **size)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        await self._send("Emulation.setEmulatedMedia", features=wanted)

    async def open(self, url: str) -> None:
        """Go to a page."""
        await self._send("Page.navigate", url=url)
        await self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    async def run(self, script: str) -> Any:
        """Run an expression in the page and give its value, awaited where it is a promise."""
        wanted = {"expression": script, "awaitPromise": True, "returnByValue": True}
        found = await self._send("Runtime.evaluate", **wanted)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']['exception'].get('description')}")
        return found["result"].get("value")

    async def until(self, script: str, within: float = PATIENCE) -> Any:
        """Wait until an expression is true; give it."""
        end = asyncio.get_running_loop().time() + within
        while True:
            try:
                found = await self.run(script)
            except RuntimeError as error:  # such as in the middle of a navigation
                found, why = None, str(error)
            else:
                why = f"{script} gave {found!r}"
            if found:
                return found
            if asyncio.get_running_loop().time() > end:
                raise AssertionError(f"{why}; the page complained of {self.faults}")
            await asyncio.sleep(0.02)

    async def text(self, selector: str) -> str:
        """Give what a person reads in an element, an empty text where it is not shown."""
        return str(await self.run(_SHOWN % json.dumps(selector)))

    async def says(self, selector: str, text: str) -> None:
        """Wait until an element shows a text."""
        await self.until(f"{_SHOWN % json.dumps(selector)}.includes({json.dumps(text)})")

    async def click(self, selector: str) -> None:
        """Press the mouse where an element is; it must be in view, and nothing may lie over it."""
        where = await self.run(_MIDDLE % json.dumps(selector))
        if where is None:
            raise AssertionError(f"{selector} can't be clicked: it is out of view, or something lies over it")
        at = {"x": where[0], "y": where[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            await self._send("Input.dispatchMouseEvent", type=kind, **at)

    async def press(self, *keys: str) -> None:
        """Press keys one after the other: `Tab`, `Enter`, `Escape`, `ArrowLeft`, `ArrowRight`."""
        for key in keys:
            names = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
            down = {"type": "keyDown", "text": "\r"} if key == "Enter" else {"type": "rawKeyDown"}
            for kind in (down, {"type": "keyUp"}):
                await self._send("Input.dispatchKeyEvent", **kind, **names)

    async def write(self, text: str) -> None:
        """Write into the field that has the focus."""
        await self._send("Input.insertText", text=text)

    async def picture(self, path: Path) -> None:
        """Save what is seen as a PNG."""
        found = await self._send("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(found["data"]))
