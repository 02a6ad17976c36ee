"""The proxy's listening sockets: they can be changed while in use, and errors name the fix."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio

from tunnelmux.access.addresses import AddressLists
from tunnelmux.config import Address, SocketIOListener, TcpIngress, TunnelListener
from tunnelmux.errors import ConfigError
from tunnelmux.observability import RepeatedLines, get_logger
from tunnelmux.pump.data_pump import DataPump
from tunnelmux.relay import reset_socket
from tunnelmux.transports.admission import Place, source_of
from tunnelmux.transports.lobby import Lobby
from tunnelmux.transports.tcp import (
    bound_addresses,
    configure_socket,
    open_listeners,
    python_socket,
    set_socket_options,
)

if TYPE_CHECKING:
    from tunnelmux.pump.sockets import BareSocket

__all__ = ["Binder", "ListenerPlan", "ListenerSet", "listeners_of", "lists_of"]

_log = get_logger("proxy.listeners")

_ACCEPTED_AT_ONCE = 64
# Connections accepted before other tasks run.

_FAILED_ACCEPT_PAUSE = 0.1
# Seconds before accepting again when the system has, for example, no descriptor left. The
# connection would be offered again at once, in a busy loop.


def accept_from(listener: socket.socket) -> tuple[socket.socket, tuple[Any, ...]]:
    """The next connection and its peer's address. Raises BlockingIOError when there is none."""
    return listener.accept()


class Places(Protocol):
    """Gives out the places of a listener."""

    def enter_or_wait(
        self, connection: socket.socket, remote: str, seated: Callable[[Place], object], /
    ) -> bool:
        """Call `seated` with a place for the connection from `remote` (`host:port`), now or later;
        False when there is none."""

    def turn_out_waiting(self) -> None:
        """End the connections that wait for a place."""


class Binder:
    """Makes listening sockets; by default in this process."""

    take_visitor: Callable[[str, BareSocket, str], None] | None = None
    """Serves a visitor's connection, by slot and address, that another program let go of."""

    async def open(self, slot: str, address: Address) -> list[trio.SocketListener]:  # noqa: ARG002
        """The sockets that listen at *address*. Raises ConfigError."""
        return await open_listeners(address.host, address.port)

    def closed(self, slot: str, address: Address) -> None:
        """Note that the slot no longer listens there."""

    async def takes_agents(self) -> None:
        """This process would take agents now. Returns when it is to take visitors as well."""

    def feeds(self, slot: str) -> bool:  # noqa: ARG002
        """Whether connections of that slot come by `ListenerSet.adopt`, and are not accepted
        here."""
        return False


@dataclass(frozen=True, kw_only=True)
class ListenerPlan:
    """The plan of one listener."""

    key: str
    """The setting it comes from, for error messages."""
    address: Address
    handler: Callable[..., Awaitable[None]]
    """Serves one connection. Gets its stream and the peer's address as `host:port`, and with an
    `admission` the connection's place, which it must give back.
    """
    nursery: trio.Nursery
    """Owns the connections, so that closing the listener ends none of them."""
    take: Callable[[BareSocket, str], bool] | None = None
    """Asked first, where there is a pump: answers whether it took the connection, which then is
    its to close. It saves a task where connections come by the thousand."""
    take_passed: Callable[[BareSocket, str], bool] | None = None
    """The same for a connection that another worker passed to this one, and which goes no
    further. By default `take`."""
    after_batch: Callable[[], None] | None = None
    """Called when all connections that came together were given to `take`."""
    addresses: AddressLists = field(default_factory=AddressLists)
    """Addresses that may connect; others are reset."""
    admission: Places | None = None
    """Gives a place to each connection; one without a place is reset."""
    bytes_count: bool = True
    """Whether a first byte ends the silence of a connection that has a place. If not, its handler
    says when it gives way to others no more."""
    says_no: bool = False
    """Whether the handler also gets connections without a place, to refuse them."""


@dataclass
class _Open:
    """An open listener. Its plan can be replaced while it listens."""

    plan: ListenerPlan
    sockets: list[trio.SocketListener]
    accepting: dict[trio.SocketListener, socket.socket] = field(default_factory=dict)
    """The same sockets, to accept several connections in one turn."""
    pumped: list[_PumpedListener] = field(default_factory=list)
    """The sockets that the pump watches."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """What ends the tasks that accept."""

    def __post_init__(self) -> None:
        for listener in self.sockets:
            own = socket.socket(fileno=os.dup(listener.socket.fileno()))
            own.setblocking(False)
            self.accepting[listener] = own

    @property
    def address(self) -> Address:
        return Address(*bound_addresses(self.sockets)[0])

    def close(self) -> None:
        # Closed here and not by the accepting tasks, so that the port is free on return.
        for listening in self.pumped:
            listening.stop()
        for listener, own in self.accepting.items():
            own.close()
            listener.socket.close()


class ListenerSet:
    """The listeners of one proxy, by slot; `nursery` owns the tasks that accept. A pump, if there
    is one, accepts for listeners whose connections need no task. *binder* makes sockets."""

    def __init__(
        self, nursery: trio.Nursery, pump: DataPump | None = None, binder: Binder | None = None
    ) -> None:
        self._binder = binder or Binder()
        self._nursery = nursery
        self._pump = pump
        self._open: dict[str, _Open] = {}
        self._held: list[str] = []
        self._pass_visitor: Callable[[str, int, str], bool] | None = None
        self._lobbies: dict[bool, Lobby] = {}
        self._is_closed = False
        self._turned_away = RepeatedLines("connection refused")

    def address(self, slot: str) -> Address | None:
        """The address of the slot's listener, or None when it has none."""
        entry = self._open.get(slot)
        return entry.address if entry else None

    def sockets_at(self, slot: str, address: Address) -> list[int]:
        """Copies of the sockets of that slot, if its plan has this address; the caller closes
        them."""
        entry = self._open.get(slot)
        if entry is None or entry.plan.address != address:
            return []
        return [os.dup(listener.socket.fileno()) for listener in entry.sockets]

    def release(self) -> None:
        """Accept from the listeners that `apply` has only opened."""
        held, self._held = self._held, []
        for slot in held:
            if slot in self._open:
                self._begin(slot, self._open[slot])

    def pause_slot(self, slot: str) -> None:
        """Accept nothing there for now."""
        if slot in self._open:
            self._open[slot].scope.cancel(reason="another process accepts there")

    def resume_slot(self, slot: str) -> None:
        """Accept there again."""
        if slot in self._open:
            self._open[slot].scope = trio.CancelScope()
            self._begin(slot, self._open[slot])

    async def apply(
        self, plans: Mapping[str, ListenerPlan], *, held: Collection[str] = ()
    ) -> list[ConfigError]:
        """Open, replace and close listeners to match `plans`. Returns the failures. A slot with an
        unchanged address keeps its socket and uses the new plan for new connections. A slot that
        cannot move to its new address stays at the old one. New ones in `held` accept after
        `release`.
        """
        for slot in self._open.keys() - plans.keys():
            entry = self._open.pop(slot)
            self._close(slot, entry)
        problems = []
        for slot, plan in plans.items():
            kept = self._open.get(slot)
            if kept is not None and kept.plan.address == plan.address:
                kept.plan = plan
                continue
            try:
                await self._listen(slot, plan, is_held=slot in held)
            except ConfigError as problem:
                problems.append(problem)
        return problems

    def give_up(self, pass_visitor: Callable[[str, int, str], bool]) -> None:
        """Close all listeners: the next program has them now. It also gets the visitors that
        another worker still passes here (slot, descriptor, address)."""
        self._pass_visitor = pass_visitor
        self.close()

    def close(self) -> None:
        """Close all listeners; connections go on."""
        self._is_closed = True
        for entry in self._open.values():
            entry.close()
            if entry.plan.admission is not None:
                entry.plan.admission.turn_out_waiting()
        self._open.clear()
        for lobby in self._lobbies.values():
            lobby.close()

    async def _listen(self, slot: str, plan: ListenerPlan, *, is_held: bool) -> None:
        try:
            sockets = await self._binder.open(slot, plan.address)
        except ConfigError as error:
            raise ConfigError(f"{plan.key}: {error}") from error
        entry = _Open(plan, sockets)
        if self._is_closed:  # meanwhile: a drain does not wait for a reload
            entry.close()
            return
        if (old := self._open.get(slot)) is not None:
            self._close(slot, old)
        self._open[slot] = entry
        _log.info("listening", setting=plan.key, address=str(entry.address))
        if is_held:
            self._held.append(slot)
        else:
            self._begin(slot, entry)

    def _begin(self, slot: str, entry: _Open) -> None:
        """Accept from its sockets."""
        for listener in entry.sockets:
            if self._binder.feeds(slot):
                continue
            if self._pump is not None and entry.plan.take is not None:
                own = entry.accepting[listener]
                entry.pumped.append(_PumpedListener(self, entry, own, self._pump))
            else:
                self._nursery.start_soon(self._accept_all, entry, listener)

    def _close(self, slot: str, entry: _Open) -> None:
        _log.info("no longer listening", address=str(entry.address))
        entry.close()
        self._binder.closed(slot, entry.plan.address)

    def listens(self, slot: str) -> bool:
        """Whether a visitor who came to such a listener would be served by way of this one."""
        return slot in self._open or self._pass_visitor is not None

    def serve_passed(self, slot: str, connection: BareSocket, remote: str) -> None:
        """Serve a visitor's connection that came to the same listener of another worker."""
        entry = self._open.get(slot)
        if entry is None and self._pass_visitor is not None:
            self._pass_visitor(slot, connection.detach(), remote)
        elif entry is None:
            connection.reset()
        else:
            plan = entry.plan
            self.serve(plan, connection, remote, plan.take_passed or plan.take)

    def serve_released(self, slot: str, connection: BareSocket, remote: str) -> None:
        """Serve a visitor's connection that came to that listener of the program before this
        one."""
        entry = self._open.get(slot)
        if entry is None:
            connection.reset()
        else:
            self.serve(entry.plan, connection, remote, entry.plan.take)
            if entry.plan.after_batch is not None:
                entry.plan.after_batch()

    def serve(
        self,
        plan: ListenerPlan,
        connection: BareSocket,
        remote: str,
        take: Callable[[BareSocket, str], bool] | None,
    ) -> None:
        """Serve a connection that the pump accepted."""
        try:
            if plan.addresses and not plan.addresses.admit(remote.rpartition(":")[0].strip("[]")):
                self._turn_away(plan, python_socket(connection), remote)
                return
            if take is None or not take(connection, remote):
                self.handle_soon(plan, python_socket(connection), remote)
        except Exception:  # noqa: BLE001  a bug met by one connection must not end the listener
            _log.exception("unhandled error in connection", listener=plan.key)
            connection.close()

    def adopt(self, slot: str, connection: socket.socket) -> None:
        """Serve a connection that another process accepted."""
        entry = self._open.get(slot)
        try:
            if entry is None or self._is_closed:
                connection.close()
            else:
                self._accept(entry, connection, connection.getpeername())
        except OSError:
            connection.close()  # it has left already

    async def _accept_all(self, entry: _Open, listener: trio.SocketListener) -> None:
        with entry.scope:
            await self._accept_on(entry, listener)

    async def _accept_on(self, entry: _Open, listener: trio.SocketListener) -> None:
        while True:
            try:
                await trio.lowlevel.wait_readable(listener.socket)
                for _ in range(_ACCEPTED_AT_ONCE):
                    self._accept(entry, *accept_from(entry.accepting[listener]))
            except BlockingIOError:
                continue
            except (trio.ClosedResourceError, ValueError):
                return
            except OSError as error:
                if entry.accepting[listener].fileno() < 0:
                    return
                await self._after_failed_accept(entry, error)

    def _accept(self, entry: _Open, connection: socket.socket, address: tuple[Any, ...]) -> None:
        plan = entry.plan
        remote = str(Address(*address[:2]))
        if not plan.addresses.admit(address[0]):
            self._turn_away(plan, connection, remote)
            return
        connection.setblocking(False)
        if plan.admission is None:
            self.handle_soon(plan, connection, remote)
            return
        seated = partial(self._enter_lobby, plan, connection, remote)
        if not plan.admission.enter_or_wait(connection, remote, seated):
            if plan.says_no:
                self.handle_soon(plan, connection, remote)
            else:
                reset_socket(connection)

    def _turn_away(self, plan: ListenerPlan, connection: socket.socket, remote: str) -> None:
        if self._turned_away.may_write(source_of(remote)):
            _log.info("connection refused", setting=plan.key, remote=remote, reason="access-denied")
        reset_socket(connection)

    def _enter_lobby(
        self, plan: ListenerPlan, connection: socket.socket, remote: str, place: Place
    ) -> None:
        lobby = self._lobbies.get(plan.bytes_count)
        if lobby is None:
            lobby = self._lobbies[plan.bytes_count] = Lobby(bytes_count=plan.bytes_count)
            self._nursery.start_soon(lobby.run)
        go_on = partial(self.handle_soon, plan, connection, remote, place)
        lobby.enter(connection, place, go_on)

    async def _after_failed_accept(self, entry: _Open, error: OSError) -> None:
        if error.errno == errno.ECONNABORTED:
            return  # the peer left before it was accepted
        _log_failed_accept(entry, error)
        await trio.sleep(_FAILED_ACCEPT_PAUSE)

    def pause(self, listening: _PumpedListener) -> None:
        """Pause accepting after a failure."""
        self._nursery.start_soon(self._resume, listening)

    async def _resume(self, listening: _PumpedListener) -> None:
        await trio.sleep(_FAILED_ACCEPT_PAUSE)
        listening.resume()

    def handle_soon(
        self,
        plan: ListenerPlan,
        connection: socket.socket,
        remote: str,
        place: Place | None = None,
    ) -> None:
        """Serve one connection in a task of its own."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        plan.nursery.start_soon(self._handle, plan, stream, remote, place)

    async def _handle(
        self, plan: ListenerPlan, stream: trio.SocketStream, remote: str, place: Place | None
    ) -> None:
        try:
            # No TCP_USER_TIMEOUT: the kernel would also cut visitors who pause reading a download.
            configure_socket(stream, user_timeout=None)
            await plan.handler(stream, remote, *([] if place is None else [place]))
        except Exception:  # noqa: BLE001  as the next line says
            # A bug in one connection must not end the others.
            _log.exception("unhandled error in connection", listener=plan.key)
        finally:
            if place is not None:
                place.leave()
            await trio.aclose_forcefully(stream)


class _PumpedListener:
    """One listening socket in the pump, which accepts in batches and without a task."""

    def __init__(
        self, listeners: ListenerSet, entry: _Open, listening: socket.socket, pump: DataPump
    ) -> None:
        self._listeners = listeners
        self._entry = entry
        # Accepted connections inherit the options, so none has to be set on each.
        set_socket_options(listening, user_timeout=None)
        self._acceptor = pump.new_acceptor(listening, self)

    def stop(self) -> None:
        self._acceptor.stop()

    def resume(self) -> None:
        self._acceptor.again()

    def on_news(self) -> None:
        """Called by the pump when a connection may be waiting."""
        try:
            arrived = self._acceptor.accept(_ACCEPTED_AT_ONCE)
        except OSError as error:
            _log_failed_accept(self._entry, error)
            self._listeners.pause(self)
            return
        plan = self._entry.plan
        for connection, remote in arrived:
            self._listeners.serve(plan, connection, remote, plan.take)
        if plan.after_batch is not None:
            plan.after_batch()


def listeners_of(descriptors: Sequence[int]) -> list[trio.SocketListener]:
    """Listeners on these sockets, which they own from now on."""
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for one in sockets:
        one.setblocking(False)
    return [trio.SocketListener(trio.socket.from_stdlib_socket(one)) for one in sockets]


def lists_of(listener: TunnelListener | SocketIOListener | TcpIngress) -> AddressLists:
    """The addresses that may connect to this listener."""
    return AddressLists(listener.allow_from, listener.deny_from)


def _log_failed_accept(entry: _Open, error: OSError) -> None:
    _log.error(
        "no connection can be accepted; if files ran out, raise LimitNOFILE (ulimit -n)",
        listener=str(entry.plan.address),
        error=error.strerror,
    )
