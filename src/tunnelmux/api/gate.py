"""The gate before all routes: it finds the caller, and refuses bad requests.

It is plain ASGI and comes before routing, so that it also protects WebSockets and paths that do not
exist. It refuses requests that two servers could read differently (RFC 9112 6.3), requests without
an identity, and requests that another site made a browser send (by `Sec-Fetch-Site` and `Origin`).
It also sees to it that a body that stops coming ends with 408, that a refusal reaches a caller that
is still sending, and that all callers have their turns.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from urllib.parse import quote

import trio
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunnelmux.api.access import Principal, is_public
from tunnelmux.api.browser_sessions.cookie import is_session_cookie, session_cookie
from tunnelmux.api.fetch_metadata import field_of, is_of_own_page, is_opened_by_person
from tunnelmux.api.identity import credential_of
from tunnelmux.api.problems import Refused, problem_response
from tunnelmux.api.turns import Changes, KnownCallers, StrangersTurn, StrangersTurns, Turn, Turns
from tunnelmux.http.fields import TrustedProxies, client_address
from tunnelmux.observability import get_logger
from tunnelmux.transports.admission import source_of

__all__ = ["PLACE", "Gate", "GateLimits"]

_log = get_logger("api")

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_DRAIN_BYTES = 8 * 1024 * 1024
# Bytes of a refused request's body that are read and thrown away: closing with unread bytes would
# reset the connection, and the answer would be lost.

_DRAIN_SECONDS = 2.0

_STRANGERS_BODY = 65_536
# Bytes of a body whose caller is not known: a code, a key, a logout token.

_LONGEST_PAGE = 2048
# Characters of a page's path and query that a person is sent back to.

PLACE = "tunnelmux.place"
"""Where the server puts the place of a connection into the state of its requests."""

_GOES_TO_DEVICE = re.compile(r"/api/devices/[^/\0]+/(?:http|ws)/[^/\0]+/")
# The path behind this is for a service of a device, which checks it itself.

_SIGNS_VISITORS_IN = "/api/access/sign-in"
# It only leads on, to an address that a proxy has signed: also in a frame, where a service's rule
# (`preflights`) allows that.

_WAITS_FOR_OTHERS = frozenset(
    {
        *("/api/auth/login", "/api/auth/callback", "/api/auth/backchannel-logout"),
        "/api/health",
    }
)
# Calls of strangers that take no turn of theirs: these wait for the provider, not for the registry,
# and what watches this program is not to wait at all.

_TENANTS_SHARE = 4
# How many times the calls of a person all people of a tenant may make at once.

Identify = Callable[[HTTPConnection, Callable[[], object]], Awaitable[Principal | None]]


@dataclass(frozen=True, slots=True)
class GateLimits:
    """How long a body may stand still, how large it may be, and what one caller may do."""

    body_stall: float = 30.0
    """Seconds in which at least one byte of a body must come."""
    max_body: int = 1024 * 1024
    """Bytes of a body, except where a route streams it (`streams`)."""
    max_calls: int = 8
    """Calls of one person at once, and of one address before it is known whose they are; more
    wait."""
    max_changes: int = 600
    """Calls of one person in a minute that may change something."""
    max_looks: int = 4
    """Credentials that are looked up at once for callers who have not shown them before."""
    max_strangers: int = 4
    """Calls of strangers that are worked on at once, except where they sign in."""


class Gate:
    """An ASGI application around another one.

    `identify` gives the Principal of a request or None; it may raise Refused. What it gets beside
    the request it calls once it knows that the credential is good. `streams` says of a
    path whether its bodies are passed on as they come and so have no size limit; such calls, and
    those of which `is_long` says that they last, have other limits than turns.
    """

    def __init__(
        self,
        app: ASGIApp,
        identify: Identify,
        *,
        trusted_proxies: TrustedProxies,
        limits: GateLimits | None = None,
        streams: Callable[[str], bool] = lambda _path: False,
        is_long: Callable[[str], bool] = lambda _path: False,
    ) -> None:
        self._app = app
        self._identify = identify
        self._trusted = trusted_proxies
        self._limits = limits or GateLimits()
        self._streams = streams
        self._is_long = is_long
        self._turns = Turns(self._limits.max_calls)
        self._known = KnownCallers()
        self._looks = StrangersTurns(
            self._limits.max_looks,
            "Too many callers show credentials that are not known here: try again in a moment.",
        )
        self._strangers = StrangersTurns(
            self._limits.max_strangers,
            "Too many callers who have not signed in wait for an answer: try again in a moment.",
        )
        self._changes = Changes(self._limits.max_changes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope["client"] = (self._client_address(scope), scope["client"][1])
        scope.setdefault("state", {})
        exchange = _Exchange(scope, receive, send, self._limits, self._streams(scope["path"]))
        async with AsyncExitStack() as held:
            refusal = _not_text(scope) or await self._identified(scope, exchange)
            if refusal is None:
                if not await exchange.collect():
                    return
                refusal = await self._take_turns(scope, held, exchange)
            if refusal is not None:
                await refusal(scope, exchange.receive, exchange.send)
                return
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except Exception:
                if exchange.started:
                    raise
                await exchange.fail()

    async def _identified(self, scope: Scope, exchange: _Exchange) -> Response | None:
        """The refusal of a request, or None once it is known whose it is."""
        try:
            refusal = _ambiguous(scope) or await self._look(scope)
            if refusal is not None or scope["type"] == "websocket":
                return refusal
            principal = scope["state"]["principal"]
            if principal is None:
                exchange.is_strangers()
            elif scope["method"] not in _SAFE_METHODS:
                self._changes.count(principal.user_id)
        except Refused as exc:
            return problem_response(exc.status, exc.code, exc.detail, headers=exc.headers)
        return None

    async def _take_turns(
        self, scope: Scope, held: AsyncExitStack, exchange: _Exchange
    ) -> Response | None:
        """Wait for the turns of a request, which end with `held`; its refusal where none come."""
        path, principal = scope["path"], scope["state"]["principal"]
        if scope["type"] == "websocket" or self._streams(path) or self._is_long(path):
            return None
        most = self._limits.max_calls
        try:
            if principal is not None:
                turn = await held.enter_async_context(self._turns.turn(principal.user_id, most))
                exchange.turns.append(turn)
            shared = f"address {source_of(scope['client'][0])}"
            if principal is not None:
                shared, most = principal.tenant_id or "", _TENANTS_SHARE * most
            if shared:
                turn = await held.enter_async_context(self._turns.turn(shared, most))
                exchange.shared.append(turn)
            if principal is None and path not in _WAITS_FOR_OTHERS:
                # A person who has signed in waits for these few at the registry, and for no more.
                waited = self._strangers.turn(scope["client"][0])
                exchange.shared.append(await held.enter_async_context(waited))
        except Refused as exc:
            return problem_response(exc.status, exc.code, exc.detail, headers=exc.headers)
        return None

    async def _look(self, scope: Scope) -> Response | None:
        """Find the caller, which takes a look into the registry, and a turn, since strangers cause
        it as well: who was known before waits for no stranger."""
        connection = HTTPConnection(scope)
        shown = credential_of(connection)
        if shown is None:
            return self._judge(scope, None)
        person = self._known.whose(shown)
        if person is not None:
            async with self._turns.turn(f"look {person}"):
                principal = await self._identify(connection, lambda: None)
        else:
            async with self._looks.turn(scope["client"][0]) as look:
                principal = await self._identify(connection, look.give_back)
        self._known.note(shown, principal.user_id if principal is not None else None)
        return self._judge(scope, principal)

    def _judge(self, scope: Scope, principal: Principal | None) -> Response | None:
        scope["state"]["principal"] = principal
        if principal is not None and (place := scope["state"].get(PLACE)) is not None:
            place.has_spoken()
        if principal is None and not is_public(scope["path"]):
            return _not_signed_in(scope)
        if principal is None or not principal.is_browser or _is_persons_own(scope):
            return None
        detail = "The request was made by another site's page: use this server's own pages."
        return problem_response(403, "cross_origin", detail)

    def _client_address(self, scope: Scope) -> str:
        address: str = scope["client"][0]
        if address not in self._trusted:
            return address
        return client_address(scope["headers"], self._trusted) or address


_CLOSE = {"connection": "close"}


class _Exchange:
    """The ASGI messages of one request: watches how the body comes and whether the answer began."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, limits: GateLimits, streams: bool
    ) -> None:
        names = {name for name, _ in scope["headers"]}
        self.started = False
        self.turns: list[Turn] = []
        """Given back where an answer goes on for as long as its reader likes."""
        self.shared: list[Turn | StrangersTurn] = []
        """Turns that others wait for, too: given back when the answer begins, since a reader may
        take its time."""
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limits = limits
        self._most = limits.max_body
        self._is_devices = _GOES_TO_DEVICE.match(scope["path"]) is not None
        self._left = None if streams else self._most
        self._whole: Message | None = None  # the body, once `collect` has read it
        self._more = scope["type"] == "http" and bool(
            names & {b"content-length", b"transfer-encoding"}
        )
        self._problem: tuple[int, str, str] | None = None
        self._end: Message | None = None  # the disconnect that `_throw_away` has taken

    async def receive(self) -> Message:
        """The next message; a disconnect when the body stalls or is too large."""
        if self._whole is not None:
            whole, self._whole = self._whole, None
            return whole
        if not self._more:
            return self._end or await self._receive()
        with trio.move_on_after(self._limits.body_stall):
            message = await self._receive()
            self._more = message.get("more_body", False)
            return self._counted(message)
        self._more = False  # nothing comes, so there is nothing to read and throw away
        detail = f"No byte of the body came for {self._limits.body_stall:g} s."
        return self._give_up(408, "slow_body", detail)

    def is_strangers(self) -> None:
        """Take less of one whose caller is not known."""
        if self._left is not None:
            self._left = self._most = min(self._left, _STRANGERS_BODY)

    async def collect(self) -> bool:
        """Read the body, unless it is streamed: nothing that others wait for is held meanwhile.
        False where the exchange is over: it did not come, and that was answered."""
        if not self._more or self._left is None:
            return True
        body, is_whole = bytearray(), False
        while not is_whole:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                if self._problem is not None:
                    self.started = True
                    await self._answer(*self._problem)
                return False
            body += message.get("body", b"")
            is_whole = not message.get("more_body", False)
        self._whole = {"type": "http.request", "body": bytes(body), "more_body": False}
        return True

    def _counted(self, message: Message) -> Message:
        if self._left is not None:
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                detail = f"A body has at most {self._most} bytes."
                return self._give_up(413, "body_too_large", detail)
        return message

    def _give_up(self, status: int, code: str, detail: str) -> Message:
        self._problem = self._problem or (status, code, detail)
        self._left = None
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass a message on. Before the last message of an answer, read what is left of the request
        for a while. After a body was given up, the answer is ours: the application was told that
        the caller has disconnected."""
        if self._problem is not None:
            if not self.started:
                self.started = True
                await self._answer(*self._problem)
            return
        self.started = True
        if message["type"] == "http.response.start":
            for turn in [*self.shared, *(self.turns if _is_endless(message) else ())]:
                turn.give_back()
        await self._pass_on(message)

    def _head(self, message: Message) -> Message:
        """The start of an answer: with the session's new cookie, unless the route has set one, and
        for no cache, unless the route says otherwise. What a device answers is the device's own."""
        headers = MutableHeaders(scope=message)
        if message["type"].startswith("websocket"):  # anycorn closes after it, and does not say so
            headers["connection"] = "close"
        if not self._is_devices:
            headers.setdefault("cache-control", "no-store")
        cookie = self._scope["state"].get("new_cookie")
        if cookie is not None and not any(
            is_session_cookie(value) for value in headers.getlist("set-cookie")
        ):
            headers.append("set-cookie", session_cookie(cookie))
            headers["cache-control"] = "no-store"
        return message

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            await self._drain()
            if self._more:
                await self._send_last(message)
            else:
                await self._end_answer(message)
        elif message["type"] == "websocket.close":
            await self._send_last(message)
        else:
            is_head = message["type"].endswith("http.response.start")
            await self._send(self._head(message) if is_head else message)

    async def _end_answer(self, message: Message) -> None:
        """Send the last message of an answer. With it the server tells the application that the
        caller has gone, at which Starlette cancels an answer that streams: within this very call,
        before the server begins to watch the connection as an idle one."""
        with trio.CancelScope(shield=True):  # the server's writes are shielded anyway
            await self._send(message)

    async def _send_last(self, message: Message) -> None:
        """Send the last message while more may come from the caller. The server announces the end
        in the queue of what came: where that is full, it would wait for room for ever."""
        problem: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._throw_away)
            try:
                await self._send(message)
            except Exception as error:  # noqa: BLE001  raised again below, outside of a group
                problem = error
            nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem

    async def _throw_away(self) -> None:
        while self._end is None:
            message = await self._receive()
            if message["type"].endswith("disconnect"):
                self._end = message

    async def fail(self) -> None:
        """Answer in place of an application that raised an error before its answer."""
        if self._problem is None:
            _log.exception("unhandled error in request", path=self._scope["path"])
            self._problem = (500, "internal_error", "The server failed; its log says how.")
        if self._scope["type"] == "http":
            await self._answer(*self._problem)
        else:
            await self._send({"type": "websocket.close", "code": 1011})

    async def _answer(self, status: int, code: str, detail: str) -> None:
        response = problem_response(status, code, detail, headers=_CLOSE)
        await response(self._scope, self.receive, self._pass_on)

    async def _drain(self) -> None:
        left = _DRAIN_BYTES
        with trio.move_on_after(_DRAIN_SECONDS):
            while self._more and left > 0:
                message = await self._receive()
                self._more = message.get("more_body", False)
                left -= len(message.get("body", b""))


def _ambiguous(scope: Scope) -> Response | None:
    """The refusal of a request whose end two servers could see in different places."""
    names = [name for name, _ in scope["headers"]]
    if names.count(b"content-length") + names.count(b"transfer-encoding") <= 1:
        return None
    detail = "Send one Content-Length or one Transfer-Encoding, not both."
    return problem_response(400, "ambiguous_length", detail, headers=_CLOSE)


def _not_text(scope: Scope) -> Response | None:
    """The refusal of a NUL in the path: PostgreSQL cannot store one in a text."""
    if "\0" not in scope["path"] or _GOES_TO_DEVICE.match(scope["path"]):
        return None
    return problem_response(404, "not_found", "Nothing has the character NUL (%00) in its name.")


def _not_signed_in(scope: Scope) -> Response:
    """401 with a problem document; a person who opens a page is sent to sign in and then back."""
    if scope.get("method") == "GET" and field_of(scope["headers"], b"sec-fetch-mode") == "navigate":
        query = scope["query_string"].decode("latin-1")
        page = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        back = page if len(page) <= _LONGEST_PAGE else "/"
        there = f"/api/auth/login?return_to={quote(back, safe='')}"
        return RedirectResponse(there, 303)
    detail = "Sign in at /api/auth/login, or send an access token as Authorization: Bearer."
    return problem_response(
        401, "not_signed_in", detail, headers={"www-authenticate": 'Bearer realm="tunnelmux"'}
    )


def _is_persons_own(scope: Scope) -> bool:
    """Whether a person caused this request, by this server's own pages or by opening a page: no
    page of another site did, whose requests have the cookie too where it is a device's."""
    fields = scope["headers"]
    # A WebSocket has no method here: browsers open them to any site.
    is_safe = scope.get("method") in _SAFE_METHODS
    if is_of_own_page(fields, unknown=is_safe):
        return True
    return is_safe and (is_opened_by_person(fields) or scope["path"] == _SIGNS_VISITORS_IN)


def _is_endless(message: Message) -> bool:
    kind = field_of(message.get("headers", ()), b"content-type")
    return kind is not None and kind.startswith("text/event-stream")
