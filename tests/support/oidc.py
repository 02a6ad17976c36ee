"""npm's oidc-provider as a process, and a browser that signs in at it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2

from support.peers import build_program
from support.socketio_peers import Program, running

__all__ = ["CLIENT_SECRET", "Browser", "OidcProvider", "oidc_provider"]

CLIENT_SECRET = "the-secret-of-the-confidential-client"

_FORM = re.compile(r'<form[^>]*action="([^"]+)"[^>]*>(.*?)</form>', re.DOTALL)
_HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)"')


@dataclass
class OidcProvider:
    """A running provider, with a public client `public` and a confidential one `confidential`."""

    issuer: str
    program: Program

    async def restart(self) -> None:
        """Start anew: with other signing keys, and without any session, code or token."""
        await self._tell({"restart": True})

    async def _tell(self, wanted: dict[str, object]) -> None:
        assert self.program.process.stdin is not None
        await self.program.process.stdin.send_all(json.dumps(wanted).encode() + b"\n")
        await self.program.expect("done")


@asynccontextmanager
async def oidc_provider(base: str) -> AsyncIterator[OidcProvider]:
    """A provider that knows the API at `base`; killed at the end of the block."""
    command = build_program("oidc", "provider")
    async with running([*command, json.dumps({"base": base})]) as program:
        listening = await program.expect("listening", within=30)
        yield OidcProvider(listening["issuer"], program)


@dataclass
class Browser:
    """Follows redirects and keeps cookies by host as Chromium does on localhost, where it takes
    `Secure` ones over plain HTTP; httpx's own jar does not."""

    client: httpx2.AsyncClient
    cookies: dict[str, dict[str, str]] = field(default_factory=dict)

    async def request(
        self,
        method: str,
        url: str,
        *,
        stop_at: str | None = None,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> httpx2.Response | str:
        """The last answer, or the URL of the redirect that begins with `stop_at`."""
        for _ in range(20):
            jar = self.cookies.setdefault(urlsplit(url).netloc, {})
            sent = dict(headers or {})
            if jar:
                sent["cookie"] = "; ".join(f"{name}={value}" for name, value in jar.items())
            self.client.cookies.clear()
            answer = await self.client.request(method, url, headers=sent, **options)
            for line in answer.headers.get_list("set-cookie"):
                name, _, value = line.partition(";")[0].partition("=")
                if "expires=thu, 01 jan 1970" in line.lower() or "max-age=0" in line.lower():
                    jar.pop(name, None)
                else:
                    jar[name] = value
            if not answer.is_redirect:
                return answer
            url, method, options = urljoin(url, answer.headers["location"]), "GET", {}
            if stop_at is not None and url.startswith(stop_at):
                return url
        raise AssertionError("the redirects do not end")

    async def get(self, url: str, **headers: str) -> httpx2.Response:
        """The page at a URL."""
        answer = await self.request("GET", url, headers=headers)
        assert isinstance(answer, httpx2.Response)
        return answer

    async def post(self, url: str, **options: Any) -> httpx2.Response:
        """What a page of this very server sends."""
        headers = {"sec-fetch-site": "same-origin"}
        answer = await self.request("POST", url, headers=headers, **options)
        assert isinstance(answer, httpx2.Response)
        return answer

    async def sign_in(
        self,
        base: str,
        name: str,
        *,
        return_to: str = "/api/auth/me",
        stop_at: str | None = None,
    ) -> httpx2.Response | str:
        """Go through the provider's pages as *name*: where the browser stands then."""
        begin = f"{base}/api/auth/login?return_to={return_to}"
        answer = await self.request("GET", begin, stop_at=stop_at)
        while not isinstance(answer, str) and "text/html" in answer.headers["content-type"]:
            form = _FORM.search(answer.text)
            assert form is not None, answer.text
            data = dict(_HIDDEN.findall(form[2]))
            if 'name="login"' in form[2]:
                data |= {"login": name, "password": "any"}
            action = urljoin(str(answer.url), html.unescape(form[1]))
            answer = await self.request("POST", action, data=data, stop_at=stop_at)
        return answer
