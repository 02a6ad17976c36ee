"""The Unix socket by which `tunnelmux-agent assist` reaches the running agent."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import trio

from tunnelmux.agent.assist.desk import AssistDesk
from tunnelmux.agent.assist.orders import MAX_ORDER, Order, obey, read_order
from tunnelmux.agent.assist.socket_path import socket_path
from tunnelmux.commands import LineSplitter
from tunnelmux.errors import ConfigError
from tunnelmux.observability import get_logger

__all__ = ["MakeCode", "open_control", "serve_control"]

_log = get_logger("agent.assist")

_ORDER_TIMEOUT = 10.0
_MAX_CALLERS = 32
# Concurrent connections; each is a person's terminal.

MakeCode = Callable[[Order], Awaitable[dict[str, Any]]]
"""Makes a lease with a code; see `AssistService`."""


def open_control(path: Path) -> socket.socket:
    """The listening socket, for this user only. Replaces a socket file that no agent listens on.

    Raises ConfigError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            _remove_stale(path)
        # Bound under a temporary name, so that it appears with its mode set and listening.
        hidden = path.with_name(".s")
        hidden.unlink(missing_ok=True)
        with socket_path(hidden) as name:
            listener.bind(name)
        hidden.chmod(0o600)
        listener.listen(_MAX_CALLERS)
        hidden.rename(path)
    except ConfigError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot make the socket {path} for `assist` ({error.strerror}): let this program's "
            "user write in its folder, or set device.state_dir"
        ) from error
    return listener


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            with socket_path(path) as name:
                probe.connect(name)
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(None, "another agent with this name is running", str(path))


async def serve_control(listener: socket.socket, desk: AssistDesk, make_code: MakeCode) -> NoReturn:
    """Serve connections until cancelled."""
    accepting = trio.socket.from_stdlib_socket(listener)
    places = trio.CapacityLimiter(_MAX_CALLERS)
    async with trio.open_nursery() as nursery:
        while True:
            connection, _ = await accepting.accept()
            nursery.start_soon(_serve, trio.SocketStream(connection), desk, make_code, places)


async def _serve(
    stream: trio.SocketStream, desk: AssistDesk, make_code: MakeCode, places: trio.CapacityLimiter
) -> None:
    async with stream:
        try:
            async with places:
                await _serve_one(stream, desk, make_code)
        except trio.BrokenResourceError:
            pass  # the person has gone
        except Exception:  # noqa: BLE001 - a bug met by one caller must not end the agent
            _log.exception("unhandled error in connection", visitor="assist")


async def _serve_one(stream: trio.SocketStream, desk: AssistDesk, make_code: MakeCode) -> None:
    order = read_order(await _read_line(stream))
    if isinstance(order, str):
        await _send(stream, {"problem": order, "status": desk.status()})
    elif order.do == "watch":
        await _watch(stream, desk)
    elif order.do == "code":
        await _send(stream, await make_code(order))
    else:
        await _send(stream, obey(desk, order, by="at its terminal"))


async def _read_line(stream: trio.abc.ReceiveStream) -> bytes:
    """What the caller sends in its first line; a line that is too long, or late, is cut."""
    splitter = LineSplitter()
    with trio.move_on_after(_ORDER_TIMEOUT):
        while splitter.waiting <= MAX_ORDER:
            piece = await stream.receive_some()
            if not piece:
                break
            if lines := splitter.feed(piece):
                return lines[0]
    return splitter.take()


async def _watch(stream: trio.SocketStream, desk: AssistDesk) -> None:
    """Send the status now and after each change, until the caller leaves."""
    async with trio.open_nursery() as nursery:

        async def notice_end() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
            nursery.cancel_scope.cancel(reason="the caller has gone")

        nursery.start_soon(notice_end)
        while True:
            number = desk.last_event
            await _send(stream, {"problem": None, "status": desk.status()})
            await desk.wait_after(number)


async def _send(stream: trio.SocketStream, answer: dict[str, Any]) -> None:
    with trio.move_on_after(_ORDER_TIMEOUT):
        await stream.send_all(json.dumps(answer).encode("ascii") + b"\n")
        return
    raise trio.BrokenResourceError("it does not read")
