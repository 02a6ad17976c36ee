"""An OpenID provider that answers as a test tells it to: wrong, late, or not at all."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio
from joserfc import jws, jwt
from joserfc.jwk import KeySet, RSAKey

__all__ = ["FakeProvider", "fake_provider"]


@dataclass
class FakeProvider:
    """What it answers. Each field can be changed at any time."""

    issuer: str
    client_id: str = "public"
    keys: list[RSAKey] = field(default_factory=lambda: [new_key()])
    """The first signs, all are published."""
    claims: dict[str, Any] = field(default_factory=dict)
    """Put over the claims of each id_token; None leaves a claim out."""
    sign: Callable[[FakeProvider, dict[str, Any]], str] | None = None
    """Makes the id_token in place of the first key."""
    token_answer: Callable[[dict[str, Any]], bytes] | None = None
    """The body of the token answer in place of JSON."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Put over the metadata."""
    is_silent: bool = False
    """Takes requests and answers none."""
    holds: trio.Event | None = None
    """Answers with tokens wait for it."""
    asked: trio.Event = field(default_factory=trio.Event)
    """Set once tokens were asked for."""
    token_requests: list[tuple[dict[str, str], dict[str, str]]] = field(default_factory=list)
    """The form and the header fields of each request for tokens."""
    paths: list[str] = field(default_factory=list)
    """What was asked for."""
    nonces: dict[str, str] = field(default_factory=dict)
    """The nonce of each code that was given out."""

    def answer(self, path: str, fields: dict[str, str], body: bytes) -> bytes | None:
        self.paths.append(path)
        if path == "/.well-known/openid-configuration":
            return json.dumps(self._metadata()).encode()
        if path == "/keys":
            return json.dumps(KeySet([*self.keys]).as_dict(private=False)).encode()
        if path == "/token":
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            self.token_requests.append((form, fields))
            return self._tokens(form)
        return None

    def callback_for(self, authorization_url: str, *, code: str = "a-code", **more: str) -> str:
        """The query with which a browser comes back from the page at that URL."""
        query = {name: v[0] for name, v in parse_qs(urlsplit(authorization_url).query).items()}
        self.nonces[code] = query["nonce"]
        given = {"code": code, "state": query["state"], "iss": self.issuer, **more}
        return "&".join(f"{name}={value}" for name, value in given.items() if value != "")

    def id_token(self, nonce: str | None = None, **more: Any) -> str:
        """A token signed with the first key, or as `sign` says."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": self.client_id,
            "sub": "alice",
            "iat": now,
            "exp": now + 600,
            "nonce": nonce,
            **self.claims,
            **more,
        }
        kept = {name: value for name, value in claims.items() if value is not None}
        if self.sign is not None:
            return self.sign(self, kept)
        key = self.keys[0]
        return jwt.encode({"alg": "RS256", "kid": key.kid}, kept, key)

    def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "end_session_endpoint": f"{self.issuer}/end",
            "authorization_response_iss_parameter_supported": True,
            **self.metadata,
        }

    def _tokens(self, form: dict[str, str]) -> bytes:
        answer: dict[str, Any] = {
            "access_token": "an-access-token",
            "token_type": "Bearer",
            "expires_in": 600,
            "refresh_token": f"refresh-token-{len(self.token_requests)}",
            "id_token": self.id_token(self.nonces.get(form.get("code", ""))),
        }
        return self.token_answer(answer) if self.token_answer else json.dumps(answer).encode()


def new_key() -> RSAKey:
    return RSAKey.generate_key(2048, parameters={"use": "sig", "alg": "RS256"}, auto_kid=True)


def unsigned(_provider: FakeProvider, claims: dict[str, Any]) -> str:
    """Algorithm "none": what no client may believe."""
    return f"{_part({'alg': 'none'})}.{_part(claims)}."


def signed_with_public_key(provider: FakeProvider, claims: dict[str, Any]) -> str:
    """HS256 with the public key as the secret: the confusion of algorithms."""
    signed = f"{_part({'alg': 'HS256'})}.{_part(claims)}"
    mac = hmac.digest(provider.keys[0].as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{_encoded(mac)}"


def signed_by_stranger(provider: FakeProvider, claims: dict[str, Any]) -> str:
    """Another key under the provider's key id."""
    return jwt.encode({"alg": "RS256", "kid": provider.keys[0].kid}, claims, new_key())


def signed_with_lone_surrogate(provider: FakeProvider, claims: dict[str, Any]) -> str:
    """Half a character, which JSON can write and no database can keep."""
    key = provider.keys[0]
    content = json.dumps(claims | {"name": "\ud800"}).encode()
    return jws.serialize_compact({"alg": "RS256", "kid": key.kid}, content, key)


def _part(value: dict[str, Any]) -> str:
    return _encoded(json.dumps(value).encode())


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode("ascii").rstrip("=")


@asynccontextmanager
async def fake_provider() -> AsyncIterator[FakeProvider]:
    """A provider on loopback while the block runs."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        provider = FakeProvider(f"http://127.0.0.1:{port}")

        async def serve(stream: trio.SocketStream) -> None:
            head = b""
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some(65536)
                if not data:
                    return
                head += data
            head, _, body = head.partition(b"\r\n\r\n")
            request, *lines = head.decode("latin-1").split("\r\n")
            fields = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines)
            }
            while len(body) < int(fields.get("content-length", "0")):
                body += await stream.receive_some(65536)
            if provider.is_silent:
                await trio.sleep_forever()
            answer = provider.answer(request.split()[1], fields, body)
            if request.split()[1] == "/token":
                provider.asked.set()
                if provider.holds is not None:
                    await provider.holds.wait()
            status = b"404 Not Found" if answer is None else b"200 OK"
            answer = answer or b"{}"
            await stream.send_all(
                b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                b"Connection: close\r\n\r\n%s" % (status, len(answer), answer)
            )

        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield provider
        nursery.cancel_scope.cancel()
