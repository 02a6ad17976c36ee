"""The listener for other nodes: joins their streams to those of devices on this node."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import trio

from tunnelmux.directory import Node
from tunnelmux.directory.membership import Membership
from tunnelmux.errors import ConnectError, SessionClosed, SessionDraining, SessionError
from tunnelmux.http import RequestHead, ServerConnection, VisitorGone, accept_connect
from tunnelmux.http.connect import CONNECT_ANSWER
from tunnelmux.http.head import first_value
from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.limits import IngressLimits, Limits
from tunnelmux.mux import Session, Stream
from tunnelmux.observability import RepeatedLines, get_logger
from tunnelmux.proxy.cluster.hops import Hops, ThereHandle
from tunnelmux.proxy.cluster.words import (
    DEVICE_PATH,
    MOVED,
    SESSION_PATH,
    SESSION_TOKEN_FIELD,
    DeviceThere,
)
from tunnelmux.pump.data_pump import DataPump
from tunnelmux.relay import abort, join
from tunnelmux.sessions import CLOSED_BY_CALL, LocalHandle, OwnHandle
from tunnelmux.wire import GENERATION_FIELD, RESERVED_FIELD

if TYPE_CHECKING:
    from tunnelmux.yamux.streams import EngineStream

__all__ = ["HopServer", "is_worker"]

_log = get_logger("proxy.cluster")


_MOST_KNOWN = 10_000
# Devices of other workers whose sessions are cached.

_CLAIM_TIMEOUT = 1.0
# Seconds for a session that has just begun to get its generation.

_LONGEST_HEAD = 256
# Bytes that are examined: the head below with the longest name is shorter.

_PLAIN_HEAD = re.compile(
    rb"CONNECT ([a-z0-9-]{1,63}) HTTP/1\.1\r\nHost: \1\r\n%s: ([1-9][0-9]{0,15})\r\n\r\n"
    % GENERATION_FIELD
)
# What `ThereHandle` sends for a visitor.


def is_worker(node: Node) -> bool:
    """Whether this is another process of this machine's proxy: the parent connects those."""
    return not node.address


class HopServer:
    """Serves other nodes on their connections to this one."""

    def __init__(self, limits: Limits, http_limits: IngressLimits) -> None:
        self.pump: DataPump | None = None
        """The pump for new hops, if there is one."""
        self.membership: Membership[OwnHandle] | None = None
        """Knows the sessions of this node; without it, there are none."""
        self.hops: Hops | None = None
        """The ways to other processes."""
        self.has_left = False
        """Whether this node has left its cluster: it tells of no device, and serves those who are
        there."""
        self.lookup: Callable[[str], Awaitable[OwnHandle]] | None = None
        """The session of this process with that token; raises SessionError."""
        self._at_workers: dict[str, ThereHandle] = {}
        self._lines = RepeatedLines("hop opened")
        self._limits = limits
        self._http_limits = http_limits

    async def serve(
        self, stream: trio.abc.Stream, name: str, remote: str, *, from_worker: bool = False
    ) -> None:
        """Serve one connection until it ends, of the node that is known to be *name*. What another
        machine asks goes on to the worker that has the device; what a worker asks does not."""
        session = Session(stream, is_client=False, limits=self._limits, pump=self.pump)
        session.on_offer = partial(self._take, session, from_worker)
        is_told = self._lines.may_write(name)
        if is_told:
            _log.info("hop opened", node=name, remote=remote)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_streams, session, nursery, from_worker)
            await session.run()
            nursery.cancel_scope.cancel()
        if is_told:
            _log.info("hop ended", node=name, remote=remote, reason=str(session.error))

    def _take(self, session: Session, from_worker: bool, offered: EngineStream) -> bool:
        """Join a visitor's stream to its device without a task, where nothing has to be waited for,
        looked up or refused. True if so; every other stream goes to `_serve_stream` untouched."""
        found = _PLAIN_HEAD.match(offered.peek(_LONGEST_HEAD))
        if found is None or self.membership is None:
            return False
        device, generation = found[1].decode("ascii"), int(found[2])
        handle = self._own(device)
        if handle is None:
            there = None if from_worker else self._at_workers.get(device)
            if there is None or there.generation != generation or (way := there.way_now()) is None:
                return False
            return session.join_offer(offered, way[0])  # the worker reads the head, and answers
        if generation != self.membership.generation_of(device):
            return False
        if not handle.has_room(self._http_limits.reserved_streams):
            return False
        return session.join_offer(
            offered, handle.session, head_size=found.end(), answer=CONNECT_ANSWER
        )

    @property
    def _members(self) -> Membership[OwnHandle]:
        if self.membership is None:
            raise Refused(Refusal(503, MOVED, "This node is no member of its cluster yet."))
        return self.membership

    async def _take_streams(
        self, session: Session, nursery: trio.Nursery, from_worker: bool
    ) -> None:
        try:
            async for stream in session:
                nursery.start_soon(self._serve_stream, stream, from_worker)
        except SessionError:
            return  # `serve` logs it

    async def _serve_stream(self, stream: Stream, from_worker: bool) -> None:
        server = ServerConnection(stream, self._http_limits)
        try:
            request = await server.read_request()
            if request is None:
                await server.close()
                return
            if request.method == b"CONNECT":
                await self._join(server, stream, request, from_worker)
            else:
                await self._tell(server, request, from_worker)
        except Refused as refused:
            try:
                await server.refuse(refused.refusal)
            except VisitorGone:
                stream.reset()
        except VisitorGone:
            stream.reset()
        except Exception:  # noqa: BLE001  a bug met by one stream must not end the others
            stream.reset()
            _log.exception("hop stream failed", effect="other streams go on")
        except BaseException:
            stream.reset()
            raise

    def _own(self, device: str) -> LocalHandle | None:
        handle = self._members.session_of(device)
        return handle if isinstance(handle, LocalHandle) and not handle.is_closed else None

    async def _at_worker(self, device: str, wanted: bytes) -> ThereHandle:
        """The session of the device at another worker, of that generation if it is known; raises
        Refused."""
        known = self._at_workers.get(device)
        if known is not None and not known.is_closed and wanted == b"%d" % known.generation:
            return known
        for place in await self._members.find(device):
            node = self._members.nodes.get(place.node)
            if node is None or not is_worker(node) or self.hops is None:
                continue
            try:
                there = await self.hops.reach(device, place)
            except ConnectError:
                continue  # that worker has just ended
            if there is not None:
                self._at_workers[device] = there
                if len(self._at_workers) > _MOST_KNOWN:
                    del self._at_workers[next(iter(self._at_workers))]
                return there
        raise _moved(f"Device {device} is not on this node.")

    async def _join(
        self, server: ServerConnection, stream: Stream, request: RequestHead, from_worker: bool
    ) -> None:
        device = request.target.decode("latin-1")
        wanted = first_value(request.headers, GENERATION_FIELD.lower()) or b""
        handle = await self._session(device, wanted, from_worker)
        is_reserved = first_value(request.headers, RESERVED_FIELD.lower()) is not None
        if (
            not is_reserved
            and isinstance(handle, LocalHandle)
            and not handle.has_room(self._http_limits.reserved_streams)
        ):
            raise _busy("device-busy", f"Device {device} has no stream left for visitors.")
        try:
            with trio.fail_after(self._http_limits.connect_timeout):
                if is_reserved:
                    onward = await handle.open_reserved_stream()
                else:
                    onward = await handle.open_stream()
        except SessionClosed:
            raise _moved(f"Device {device} has just left this node.") from None
        except SessionDraining:
            raise _busy("device-draining", f"Device {device} is about to restart.") from None
        except SessionError as error:
            raise _busy("device-busy", f"Device {device} can take no stream: {error}.") from None
        except trio.TooSlowError:
            raise _busy("device-busy", f"Device {device} took no stream in time.") from None
        try:
            early = await accept_connect(server)
        except BaseException:
            await abort(onward)
            raise
        await join(stream, onward, early)

    async def _tell(
        self, server: ServerConnection, request: RequestHead, from_worker: bool
    ) -> None:
        path = request.target.decode("latin-1")
        device = path.removeprefix(DEVICE_PATH)
        body = b""
        match request.method:
            case b"GET" if path == SESSION_PATH:
                token = first_value(request.headers, SESSION_TOKEN_FIELD.lower()) or b""
                there = await self._with_token(token.decode("latin-1"), from_worker)
                body = msgspec.json.encode(there)
            case b"GET" if device != path:
                body = msgspec.json.encode(await self._there(device, from_worker))
            case b"DELETE" if device != path:
                wanted = first_value(request.headers, GENERATION_FIELD.lower()) or b""
                await self._end(device, wanted, from_worker)
            case method:
                what = method.decode("latin-1")
                raise Refused(Refusal(400, "bad-request", f"There is no {what} {path} on a hop."))
        headers = [(b"Content-Type", b"application/json")] if body else []
        await server.send_response(200, b"OK", headers, length=len(body), first=body, end=True)
        await server.close()

    async def _there(self, device: str, from_worker: bool) -> DeviceThere:
        if self.has_left:
            raise _moved("This node has left its cluster.")
        if (handle := self._own(device)) is not None:
            return self._described(handle, self._members.generation_of(device))
        if not from_worker:
            return (await self._at_worker(device, b"")).there
        raise _moved(f"Device {device} is not at this worker.")

    async def _with_token(self, token: str, from_worker: bool) -> DeviceThere:
        if self.lookup is None or self.hops is None:
            raise _moved("This node is no member of its cluster yet.")
        members = self._members
        try:
            handle = await self.lookup(token)
        except SessionError:
            workers = [] if from_worker else filter(is_worker, members.others)
            found = await self.hops.reach_session(token, workers)
            if found is None:
                raise _moved("No session has this token here.") from None
            return found.there
        device = handle.device
        # It may have begun just now. It is found by its token before the directory has heard of it.
        with trio.move_on_after(_CLAIM_TIMEOUT):
            await members.wait_claimed(device)
        own = self._own(device)
        if own is None or own is not handle:
            raise _moved(f"That session of device {device} is not here.")
        there = self._described(own, members.generation_of(device))
        return msgspec.structs.replace(there, device=device)

    async def _end(self, device: str, wanted: bytes, from_worker: bool) -> None:
        handle = await self._session(device, wanted, from_worker)
        await handle.close(CLOSED_BY_CALL)

    async def _session(
        self, device: str, wanted: bytes, from_worker: bool
    ) -> LocalHandle | ThereHandle:
        """The session of this generation, here or at another worker. Raises Refused."""
        handle: LocalHandle | ThereHandle | None = self._own(device)
        generation = self._members.generation_of(device)
        if handle is None:
            if from_worker:
                raise _moved(f"Device {device} is not at this worker.")
            handle = there = await self._at_worker(device, wanted)
            generation = there.generation
        if wanted != b"%d" % generation:
            raise _moved(f"That session of device {device} is not here.")
        return handle

    @staticmethod
    def _described(handle: LocalHandle, generation: int) -> DeviceThere:
        if not generation:
            raise _moved(f"Device {handle.device} has just come to this node.")
        summary = handle.summary()
        return DeviceThere(
            generation=generation,
            user_id=summary.user_id,
            connected_at=summary.connected_at,
            last_heartbeat=summary.last_heartbeat,
            remote_addr=summary.remote_addr,
            credential=handle.credential.hex(),
            default_service=handle.default_service,
            relayed={name or "": service for name, service in handle.relayed.items()},
            timeouts={name or "": seconds for name, seconds in handle.timeouts.items()},
        )


def _moved(message: str) -> Refused:
    return Refused(Refusal(503, MOVED, message))


def _busy(reason: str, message: str) -> Refused:
    return Refused(Refusal(503, reason, message, retry_after=1))
