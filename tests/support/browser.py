"""A real browser without a window, driven through its debugging protocol (CDP)."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
import trio_websocket

__all__ = ["BrowserPage", "browser_page"]

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.localhost 127.0.0.1",
    "--remote-debugging-port=0",
)
_LARGEST_ANSWER = 64 * 1024 * 1024  # a screenshot, in Base64
_LOOK = 0.05  # seconds between two looks at what nobody announces


class BrowserPage:
    """One tab."""

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        """What the browser told by itself, of the domains that were enabled: `Network.enable`."""

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one command of the protocol."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        await self._connection.send_message(json.dumps(command))
        while True:
            answer = json.loads(await self._connection.get_message())
            if "method" in answer:
                self.events.append(answer)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']['message']}"
                result: dict[str, Any] = answer["result"]
                return result

    async def open_tab(self, width: int, height: int, scheme: str) -> None:
        """Make the tab that everything else is about."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    async def goto(self, url: str) -> None:
        """Open a page, without waiting for what is on it."""
        answer = await self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"

    async def evaluate(self, script: str) -> Any:
        """What a JavaScript expression is on the page now."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def wait_until(self, script: str) -> None:
        """Return once a JavaScript expression is true; the caller sets the deadline."""
        while not await self.evaluate(f"Boolean({script})"):  # noqa: ASYNC110  nobody tells
            await trio.sleep(_LOOK)

    async def wait_for_page(self, script: str) -> None:
        """Like `wait_until`, on a page that the browser is on its way to: in between there is none
        to ask."""
        while True:
            with contextlib.suppress(AssertionError):
                if await self.evaluate(f"Boolean({script})"):
                    return
            await trio.sleep(_LOOK)

    async def set_cookies(self, url: str, jar: Mapping[str, str]) -> None:
        """Have these cookies, by name, for the host of a URL."""
        for name, value in jar.items():
            await self.call("Network.setCookie", name=name, value=value, url=url, secure=True)

    async def screenshot(self) -> bytes:
        """The whole page as a PNG, however long it is."""
        answer = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])


@asynccontextmanager
async def browser_page(
    program: str,
    profile: Path,
    *,
    width: int = 1160,
    height: int = 900,
    scheme: str = "light",
    flags: Sequence[str] = (),
) -> AsyncIterator[BrowserPage]:
    """A tab of `program` (a Chromium), with its own empty profile and more *flags*, for the length
    of the block."""
    command = [program, *_FLAGS, *flags, f"--user-data-dir={profile}"]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        )
        try:
            url = await _debugging_url(trio.Path(profile / "DevToolsActivePort"))
            async with trio_websocket.open_websocket_url(
                url, max_message_size=_LARGEST_ANSWER
            ) as connection:
                page = BrowserPage(connection)
                await page.open_tab(width, height, scheme)
                yield page
        finally:
            process.terminate()


async def _debugging_url(file: trio.Path) -> str:
    """Where the browser listens, which it writes to a file when it does."""
    with trio.fail_after(20):
        while True:
            if await file.exists() and len(lines := (await file.read_text()).split()) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            await trio.sleep(_LOOK)
    raise AssertionError("unreachable")
