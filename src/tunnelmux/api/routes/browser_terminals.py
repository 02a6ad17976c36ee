"""Terminals in the browser: a WebSocket that shows a shell on a device, through the gateway.

The gateway admits the person by a ticket made for this one shell, so that it checks, records and
ends the shell like any other. Binary messages hold output and typed input. Text messages are JSON.
The browser begins with `{"account", "columns", "rows"}`, or after a lost connection with
`{"resume", "at", …}`. Then `{"seen": BYTES}` says how much it has shown, and `{"columns", "rows"}`
gives its new size. The server sends `{"kind": "open", "resume": TOKEN}`, and at the end `{"kind":
"over", "story": WORDS}`.
"""

from __future__ import annotations

import json
from typing import Annotated

import trio
from fastapi import APIRouter, Path, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, tenant_for
from tunnelmux.api.forwarding import refuse_websocket
from tunnelmux.api.problems import Refused, registry_refusal
from tunnelmux.api.terminals import Terminal
from tunnelmux.errors import RegistryError

router = APIRouter(prefix="/api/devices", route_class=AccessRoute, tags=["terminals"])

Viewer = Annotated[Principal, need(Role.VIEWER, "leases")]

ACCOUNT = r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?$"
"""An account on a device, as the gateway accepts it."""

_FIRST_MESSAGE = 10.0
# Seconds for the browser to say which terminal it wants: its script does at once.

_RECHECK = 1.0
# Seconds between two checks of the person's rights: they end within two seconds.

_STUCK = 20.0
# Seconds after which a browser that takes nothing counts as gone; the terminal waits for it.

_GONE = (trio.TooSlowError, trio.BrokenResourceError, RuntimeError, WebSocketDisconnect)

_LONGEST = 65_536
# Bytes of one message: a long paste comes in several.


class _Wish(BaseModel):
    """The first message."""

    model_config = ConfigDict(extra="forbid")

    account: Annotated[str, Field(pattern=ACCOUNT)] = "root"
    columns: Annotated[int, Field(ge=1, le=1000)] = 80
    rows: Annotated[int, Field(ge=1, le=1000)] = 24
    resume: Annotated[str, Field(max_length=64)] = ""
    at: Annotated[int, Field(ge=0)] = 0


class _Word(BaseModel):
    """Each later text message."""

    model_config = ConfigDict(extra="forbid")

    seen: Annotated[int, Field(ge=0)] | None = None
    columns: Annotated[int, Field(ge=1, le=1000)] | None = None
    rows: Annotated[int, Field(ge=1, le=1000)] | None = None


@router.websocket("/{device_id}/terminal")
async def terminal(
    websocket: WebSocket,
    api: ApiDependency,
    principal: Viewer,
    device_id: Annotated[str, Path(max_length=64)],
) -> None:
    """A shell on a device, for a person in a browser."""
    try:
        _check(api, principal)
        device = await tenant_for(api, principal).devices.find(device_id)
    except (Refused, RegistryError) as exc:
        refusal = exc if isinstance(exc, Refused) else registry_refusal(exc)
        await refuse_websocket(websocket, refusal)
        return
    await websocket.accept()
    try:
        with trio.fail_after(_FIRST_MESSAGE):
            wish = _Wish.model_validate_json(await websocket.receive_text())
        found = await _terminal(api, principal, device.id, wish)
        await _show(websocket, api, principal, found, wish.at if wish.resume else 0)
    except (ValidationError, KeyError, trio.TooSlowError):
        await _tell_over(websocket, "the browser did not say which terminal it wants")
    except Refused as exc:
        await _tell_over(websocket, exc.detail)
    except RegistryError as exc:
        await _tell_over(websocket, registry_refusal(exc).detail)
    except WebSocketDisconnect:
        return


def _check(api: Api, principal: Principal) -> None:
    if not principal.is_browser:
        message = "Terminals are for people in a browser; in a shell, use ssh through the gateway."
        raise Refused(403, "no_browser_session", message)
    if api.terminals.problem:
        raise Refused(409, "no_gateway", api.terminals.problem)


async def _terminal(api: Api, principal: Principal, device_id: str, wish: _Wish) -> Terminal:
    if wish.resume:
        found = api.terminals.find(wish.resume, principal.user_id)
        if found is None or found.device_id != device_id or not found.has(wish.at):
            raise Refused(404, "not_found", "This terminal is over: open a new one.")
        found.resize(wish.columns, wish.rows)
        return found
    tickets = tenant_for(api, principal).tickets
    _, secret = await tickets.add(user_id=principal.user_id, device_id=device_id, lifetime=60.0)
    username = f"ticket-{secret.reveal()}@{wish.account}"
    size = (wish.columns, wish.rows)
    tenant = await api.shares.whose(principal)
    return api.terminals.open(principal.user_id, tenant, device_id, username, size)


async def _show(
    websocket: WebSocket, api: Api, principal: Principal, shown: Terminal, place: int
) -> None:
    """Show it until the terminal is over, its browser is gone, or another browser took it over."""
    story: str | None = None

    async def down() -> None:
        nonlocal story
        try:
            await _send_output(websocket, shown, place)
            story = shown.story
        except _GONE:
            pass
        nursery.cancel_scope.cancel()

    async def watch() -> None:
        nonlocal story
        try:
            while await api.identification(websocket) == principal:  # noqa: ASYNC110  no event tells
                await trio.sleep(_RECHECK)
            story = "you are signed out, or have another role now"
        except Refused:
            pass  # the registry is away: the browser comes back, and is checked again then
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async with shown.shown() as scope:
            nursery.start_soon(down)
            await _listen(websocket, shown)
        if scope.cancelled_caught:
            story = "it was opened in another window"
        nursery.cancel_scope.cancel()
    if story is not None:
        await _tell_over(websocket, story)


async def _send_output(websocket: WebSocket, shown: Terminal, place: int) -> None:
    """Send output until the terminal's end. Raises the errors in `_GONE`."""
    with trio.fail_after(_STUCK):
        await websocket.send_text(json.dumps({"kind": "open", "resume": shown.token}))
    while True:
        data, place = await shown.output_after(place)
        if not data:
            return
        for first in range(0, len(data), _LONGEST):
            with trio.fail_after(_STUCK):
                await websocket.send_bytes(data[first : first + _LONGEST])


async def _listen(websocket: WebSocket, shown: Terminal) -> None:
    """Read until the browser is gone, or sends an invalid message."""
    while (message := await websocket.receive())["type"] == "websocket.receive":
        typed: bytes | None = message.get("bytes")
        if typed is not None:
            if len(typed) > _LONGEST:
                return
            await shown.type(typed)
            continue
        try:
            word = _Word.model_validate_json(message.get("text") or "")
        except ValidationError:
            return
        if word.seen is not None:
            shown.seen(word.seen)
        if word.columns is not None and word.rows is not None:
            shown.resize(word.columns, word.rows)


async def _tell_over(websocket: WebSocket, story: str) -> None:
    with trio.move_on_after(_STUCK, shield=True):
        try:
            await websocket.send_text(json.dumps({"kind": "over", "story": story}))
            await websocket.close()
        except _GONE:
            return
