"""A headless Chromium, driven by its own protocol over a web socket: what tests and benchmark of the page need of it.

`aiohttp` is there already, and a browser's driver would be larger than all else that is installed. Debian's package is
`chromium`; ANTDT_CHROMIUM names another program.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Nothing is looked up in a network; as root it has no sandbox.
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
         "--disable-dev-shm-usage", "--remote-debugging-port=0")  # fmt: skip
WITHIN_S = 30.0


def program() -> str | None:
    """Where it is; None: there is none."""
    named = os.environ.get("ANTDT_CHROMIUM", "")
    return named or next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Tab:
    """One page. errors: what its console complained of, and requests that failed."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.errors: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        return await asyncio.wait_for(answer, WITHIN_S)

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                answer = self._answers.pop(said["id"])
                if not answer.done():
                    answer.set_result(said.get("result", said.get("error")))
                continue
            what, about = said["method"], said["params"]
            if what == "Runtime.exceptionThrown":
                detail = about["exceptionDetails"]
                self.errors.append(str(detail.get("exception", {}).get("description") or detail["text"]))
            elif what == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in about["args"]))
            elif what == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")

    async def size(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                        mobile=phone)  # fmt: skip
        value = "dark" if dark else "light"
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    async def go(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def value(self, script: str) -> Any:
        """What an expression of JavaScript comes to; a promise is awaited."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str, within_s: float = WITHIN_S) -> Any:
        """Wait until an expression is true."""
        end = time.monotonic() + within_s
        while not (found := await self.value(script)):
            assert time.monotonic() < end, f"not within {within_s:g} s: {script}; errors: {self.errors}"
            await asyncio.sleep(0.02)  # between two looks
        return found

    async def key(self, name: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name,
                            windowsVirtualKeyCode=KEYS[name])  # fmt: skip

    async def picture(self, path: Path) -> None:
        found = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Tab": 9, "Home": 36, "End": 35}


@asynccontextmanager
async def chromium() -> AsyncIterator[Tab]:
    """A browser with one empty tab; it ends with the block."""
    found = program()
    assert found is not None, "there is no Chromium here: Debian's package is chromium"
    with tempfile.TemporaryDirectory(prefix="antdt-chromium-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log:
            command = [found, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            port = await _port(folder / "profile" / "DevToolsActivePort", process, folder / "log")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    (target,) = [one for one in await answer.json() if one["type"] == "page"]
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    tab = Tab(socket)
                    for domain in ("Page", "Runtime", "Log", "Network"):
                        await tab.call(f"{domain}.enable")
                    yield tab
        finally:
            process.kill()
            process.wait()


async def _port(file: Path, process: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + WITHIN_S
    while True:
        if file.exists() and (lines := file.read_text().split()):
            return int(lines[0])
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        assert time.monotonic() < end, "Chromium does not begin"
        await asyncio.sleep(0.02)  # between two looks
