"""Inspections: the requests of one service, kept for a while for a person to read,
secrets masked."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from datetime import datetime

import msgspec

from tunnelmux.observability.logs import without_secrets

__all__ = [
    "BODY_KEPT",
    "HIDDEN",
    "InspectedRequest",
    "Inspection",
    "curl_command",
    "masked_fields",
    "masked_target",
]

BODY_KEPT = 65_536
"""Bytes kept of each body, where bodies are kept: enough for a person to read."""

HIDDEN = "***"
"""Written in place of a secret."""

_SECRET = re.compile(
    r"auth|cookie|token|secret|passw|passphrase|credential|session|signature|api[-_]?key|csrf|xsrf"
    r"|jwt|private[-_]?key",
    re.IGNORECASE,
)
_SECRET_PARAMETER = frozenset({"code", "state", "sig", "key", "ticket", "nonce"})
_HAS_URL = frozenset({"location", "content-location", "referer", "link", "refresh"})
_PARAMETER = re.compile(r"(?<=[?&#;])([^?=&#;\s]+)=([^&#;\s>\"']*)")
_USER_INFO = re.compile(r"(?<=//)[^/@\s]+@")


class Inspection(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is inspected, and until when. Afterwards nothing of it is kept."""

    id: str
    device: str
    service: str
    began: datetime
    until: datetime
    bodies: bool
    """Whether bodies are kept too, up to 64 KiB each."""
    asked_by: str
    seen: int
    """Requests since it began; the oldest may have been dropped."""
    forgotten: int = 0
    """Requests that were dropped to make room."""

    def with_more(self, other: Inspection) -> Inspection:
        """The same, with what another process has seen of it."""
        return msgspec.structs.replace(
            self, seen=self.seen + other.seen, forgotten=self.forgotten + other.forgotten
        )


class InspectedRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One request and its answer. Heads are as the visitor sent and received them, with `***` in
    place of possible secrets; sizes are in bytes of content, times in seconds.
    """

    id: str
    at: datetime
    """When it came."""
    visitor: str
    scheme: str
    host: str
    method: str
    target: str
    """Path and query."""
    headers: list[tuple[str, str]]
    status: int = 0
    """HTTP status; 0 while there is no answer."""
    reason: str = ""
    """The `Tunnelmux-Reason` of an answer that the proxy itself gave."""
    answer_headers: list[tuple[str, str]] = []
    bytes_in: int = 0
    bytes_out: int = 0
    answered_after: float | None = None
    """From the request to the answer's head."""
    seconds: float | None = None
    """From the request to the end of the answer; null while it goes on."""
    is_websocket: bool = False
    messages_in: int = 0
    """Messages of a WebSocket from the visitor."""
    messages_out: int = 0
    problem: str = ""
    replay_of: str = ""
    """The id of the request that this one repeats."""
    body: bytes | None = None
    """The first bytes of the request's content; null in lists, and where bodies are not kept."""
    answer_body: bytes | None = None


def masked_fields(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """The fields of a head with possible secrets masked: names of cookies and schemes of
    credentials stay.
    """
    return [(name.decode("latin-1"), _masked(name, value)) for name, value in fields]


def _masked(name: bytes, value: bytes) -> str:
    key, text = name.decode("latin-1").lower(), value.decode("latin-1")
    if key == "cookie":
        return "; ".join(_named_only(pair) for pair in text.split(";"))
    if key == "set-cookie":
        pair, *attributes = text.split(";")
        return ";".join([_named_only(pair), *attributes])
    if key in ("authorization", "proxy-authorization"):
        scheme, mark, _ = text.partition(" ")
        return f"{scheme} {HIDDEN}" if mark else HIDDEN
    if key == "www-authenticate":
        return text
    if _SECRET.search(key):
        return HIDDEN
    return masked_target(text) if key in _HAS_URL else without_secrets(text)


def _named_only(pair: str) -> str:
    name, mark, _ = pair.strip().partition("=")
    return f"{name}={HIDDEN}" if mark else HIDDEN


def masked_target(target: str) -> str:
    """A path and query, or a URL, without the values of parameters that may be secrets."""

    def mask(match: re.Match[str]) -> str:
        name = match[1]
        hides = name.lower() in _SECRET_PARAMETER or _SECRET.search(name)
        return f"{name}={HIDDEN if hides else match[2]}"

    return without_secrets(_USER_INFO.sub(f"{HIDDEN}@", _PARAMETER.sub(mask, target)))


_NOT_FOR_CURL = frozenset({"host", "content-length", "connection", "transfer-encoding", "upgrade"})


def curl_command(request: InspectedRequest) -> str:
    """The request as a curl command for a shell. Masked fields are left out of the head; in the URL
    `***` stays. A body that is not text, or was not kept, becomes a file name to fill in.
    """
    words = ["curl"]
    if request.method != "GET":
        words += ["--request", shlex.quote(request.method)]
    for name, value in request.headers:
        if HIDDEN not in value and name.lower() not in _NOT_FOR_CURL:
            words += ["--header", shlex.quote(f"{name}: {value}")]
    if request.bytes_in:
        words += ["--data-binary", _curl_body(request)]
    words.append(shlex.quote(f"{request.scheme}://{request.host}{request.target}"))
    return " ".join(words)


def _curl_body(request: InspectedRequest) -> str:
    try:
        text = (request.body or b"").decode()
    except UnicodeDecodeError:
        text = ""
    is_whole = len(request.body or b"") == request.bytes_in
    if not is_whole or not text or "\0" in text or text.startswith("@"):
        return "@body"
    return shlex.quote(text)
