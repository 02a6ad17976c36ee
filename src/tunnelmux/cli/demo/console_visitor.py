"""The person who drives `tunnelmux demo --console --once`: a browser without a screen."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2
import trio_websocket

from tunnelmux.cli.demo.checks import CheckFailed
from tunnelmux.cli.demo.ports import HOST

__all__ = ["Visitor", "expect_status", "visiting"]

_REDIRECTS = 20
_MAX_SHOWN = 1024 * 1024  # bytes of a terminal, of which a command of the demo writes some hundred


class Visitor:
    """Follows redirects and keeps cookies by host, as a browser does on loopback, where it sends
    `Secure` ones over plain HTTP. Every `*.localhost` is this machine, also where no resolver
    says so."""

    def __init__(self, client: httpx2.AsyncClient, base: str) -> None:
        self._client = client
        self._base = base.rstrip("/")
        self.cookies: dict[str, dict[str, str]] = {}
        """What it keeps, by the host and port that set it."""
        self.here = ""
        """The URL of the page that it shows."""

    async def get(self, url: str) -> httpx2.Response:
        """The page at a URL, or at a path of the console. Raises CheckFailed for no answer."""
        return await self._ask("GET", urljoin(f"{self._base}/", url))

    async def sign_in(self, subject: str) -> None:
        """Go through the development provider's page as this person. Raises CheckFailed."""
        await self.get("/api/auth/login?return_to=/")
        expect_status(await self._ask("POST", self.here, {"sub": subject}), 200)

    async def api(self, method: str, path: str, content: Any = None) -> Any:
        """What a call from the console's pages answers. Raises CheckFailed for a refusal."""
        url = f"{self._base}{path}"
        headers = {"sec-fetch-site": "same-origin", "content-type": "application/json"}
        answer = await self._once(method, url, headers, json.dumps(content).encode())
        if not answer.is_success:
            raise CheckFailed(f"{method} {path}: status {answer.status_code}, {_detail(answer)}")
        return answer.json() if answer.content else None

    async def type_in_terminal(self, device_id: str, account: str, line: str) -> str:
        """What a terminal in the browser shows of one line and of `exit` after it. Raises
        CheckFailed where there is none."""
        url = f"{self._base.replace('http', 'ws', 1)}/api/devices/{device_id}/terminal"
        headers = [
            (b"origin", self._base.encode("ascii")),
            (b"cookie", self._cookie(self._base).encode("latin-1")),
        ]
        async with trio_websocket.open_websocket_url(url, extra_headers=headers) as socket:
            await socket.send_message(json.dumps({"account": account, "columns": 80, "rows": 24}))
            shown, story = b"", ""
            while not story:
                message = await socket.get_message()
                if isinstance(message, bytes):
                    shown += message
                    if len(shown) > _MAX_SHOWN:
                        raise CheckFailed("the terminal does not end")
                    continue
                word = json.loads(message)
                if word["kind"] == "open":
                    await socket.send_message(f"{line}\rexit\r".encode())
                else:
                    story = word.get("story", "")
        text = shown.decode("utf-8", "replace")
        if not text:
            raise CheckFailed(story)
        return text

    async def _ask(
        self, method: str, url: str, form: dict[str, str] | None = None
    ) -> httpx2.Response:
        for _ in range(_REDIRECTS):
            headers = {"sec-fetch-mode": "navigate", "accept": "text/html"}
            body = b""
            if form is not None:
                headers["content-type"] = "application/x-www-form-urlencoded"
                body = str(httpx2.QueryParams(form)).encode()
            answer = await self._once(method, url, headers, body)
            if not answer.is_redirect:
                self.here = url
                return answer
            url, method, form = urljoin(url, answer.headers["location"]), "GET", None
        raise CheckFailed("the redirects do not end")

    async def _once(
        self, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> httpx2.Response:
        parts = urlsplit(url)
        sent = {**headers, "host": parts.netloc}
        if cookie := self._cookie(url):
            sent["cookie"] = cookie
        there = parts._replace(netloc=f"{HOST}:{parts.port}").geturl()
        self._client.cookies.clear()
        try:
            answer = await self._client.request(method, there, headers=sent, content=body)
        except httpx2.HTTPError as exc:
            raise CheckFailed(f"{parts.netloc}: {type(exc).__name__} {exc}") from exc
        self._keep(parts.netloc, answer)
        return answer

    def _keep(self, host: str, answer: httpx2.Response) -> None:
        jar = self.cookies.setdefault(host, {})
        for line in answer.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            jar[name] = value

    def _cookie(self, url: str) -> str:
        jar = self.cookies.get(urlsplit(url).netloc, {})
        return "; ".join(f"{name}={value}" for name, value in jar.items())


@asynccontextmanager
async def visiting(base: str) -> AsyncIterator[Visitor]:
    """A visitor of the console at this URL, for the length of the block."""
    async with httpx2.AsyncClient(timeout=None, trust_env=False) as client:
        yield Visitor(client, base)


def expect_status(answer: httpx2.Response, status: int) -> None:
    """Raises CheckFailed for another one."""
    if answer.status_code != status:
        raise CheckFailed(f"status {answer.status_code} where {status} was to come")


def _detail(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:100]
