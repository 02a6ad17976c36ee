"""The log of a device's agent, read over a stream of its tunnel."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import msgspec
import trio

from tunnelmux.commands import LineSplitter
from tunnelmux.errors import TunnelmuxError
from tunnelmux.http import ClientConnection
from tunnelmux.http.body import BadBody
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits
from tunnelmux.wire import AGENT_AUTHORITY, LOGS_PATH

__all__ = ["LogLine", "LogRefused", "read_log"]

_ANSWER = 15.0
# Seconds in which the agent has to answer: it has the lines in its memory.

_SILENCE = 45.0
# Seconds without a byte after which the device is lost: three of the agent's heartbeats.

_LONGEST_LINE = 65_536
_LONGEST_REFUSAL = 65_536


class LogLine(msgspec.Struct, kw_only=True):
    """A line of an agent's log. `missing` says how many are not kept any more; then the rest is
    empty. The first has a position only: where the lines begin."""

    at: datetime | None = None
    level: str = ""
    component: str = ""
    event: str = ""
    fields: dict[str, Any] = {}
    """All else that the line says, by name."""
    position: str = ""
    """Where it stands in the log, to go on from there later."""
    missing: int = 0


class LogRefused(TunnelmuxError):
    """The agent does not show its log. The message says why."""


class _Wire(msgspec.Struct):
    process: str = ""
    number: int = 0
    line: dict[str, Any] | None = None
    missing: int = 0


class _Problem(msgspec.Struct):
    detail: str = ""


@asynccontextmanager
async def read_log(
    stream: trio.abc.Stream, *, lines: int, follow: bool, after: str = ""
) -> AsyncIterator[AsyncIterator[LogLine]]:
    """The last lines, or those after the position `after`, and with `follow` what comes, for the
    length of the block. The stream stays the caller's to close.

    Raises LogRefused, PeerGone when the tunnel is lost, BadBody for what is no log, TooSlowError
    when nothing comes for 45 s.
    """
    client = ClientConnection(stream, IngressLimits())
    process, _, number = after.partition(".")
    query: dict[str, Any] = {"lines": lines, "follow": int(follow)}
    if number.isdigit():
        query |= {"process": process, "after": number}
    # In the absolute form: by Host alone, it would be for a service.
    target = b"http://%b%b?%b" % (AGENT_AUTHORITY, LOGS_PATH, urlencode(query).encode("ascii"))
    with trio.fail_after(_ANSWER):
        await client.send_request(b"GET", target, [(b"Host", AGENT_AUTHORITY)])
        while (head := await client.read_head()).is_interim:
            pass
        if head.status != 200:
            raise LogRefused(await _why(client, head.status))
    async with contextlib.aclosing(_read(client)) as found:
        yield found


async def _why(client: ClientConnection, status: int) -> str:
    body = await client.read_body_start(_LONGEST_REFUSAL)
    if status == 404:
        return "its agent is too old to show its log: update it"
    with contextlib.suppress(BadJson):
        if said := read_json(body, _Problem).detail:
            return said
    return f"its agent answered {status}"


async def _read(client: ClientConnection) -> AsyncGenerator[LogLine, None]:
    splitter, end = LineSplitter(), False
    while not end:
        with trio.fail_after(_SILENCE):
            data, end = await client.read_body()
        for line in splitter.feed(data):
            if (found := _line(line)) is not None:
                yield found
        if splitter.waiting > _LONGEST_LINE:
            raise BadBody(f"a line is longer than {_LONGEST_LINE} bytes")


def _line(text: bytes) -> LogLine | None:
    try:
        said = read_json(text, _Wire)
    except BadJson as exc:
        raise BadBody(f"a line cannot be understood: {exc}") from exc
    if said.missing:
        return LogLine(missing=said.missing)
    position = f"{said.process}.{said.number}" if said.process else ""
    if said.line is None:
        return LogLine(position=position) if position else None  # else a sign of life
    fields = said.line
    return LogLine(
        at=_time(fields.pop("timestamp", None)),
        level=str(fields.pop("level", "")),
        component=str(fields.pop("component", "")),
        event=str(fields.pop("event", "")),
        fields=fields,
        position=position,
    )


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
