"""What api/server.py takes of anycorn's inner parts is there, and is what it takes it for.

A version of anycorn that moves one of them fails here, and not on the first connection.
"""

from __future__ import annotations

import inspect

import anycorn
from anycorn.protocol.h11 import H11Protocol
from anycorn.tcp_server import TCPServer
from anycorn.typing import ConnectionState, LifespanState
from anycorn.worker_context import AnyioSingleTask, WorkerContext

from tunnelmux.api import server


def test_the_look_for_another_protocol_is_replaced() -> None:
    assert H11Protocol._check_protocol is server._stay_with_http_1
    assert "self._check_protocol(" in inspect.getsource(H11Protocol)


def test_a_connection_is_served_by_these_parts() -> None:
    parameters = list(inspect.signature(TCPServer.__init__).parameters)
    assert parameters == ["self", "app", "config", "context", "state", "stream"]
    assert inspect.iscoroutinefunction(TCPServer._read_data)
    assert "self._read_data()" in inspect.getsource(TCPServer.run)
    assert "self.idle_task" in inspect.getsource(TCPServer.__init__)
    assert inspect.iscoroutinefunction(AnyioSingleTask.stop)
    assert ConnectionState(LifespanState()) == {}
    assert WorkerContext(None).terminated is not None


def test_the_settings_exist() -> None:
    known = vars(anycorn.Config()) | vars(anycorn.Config)
    for name in (
        "websocket_permessage_deflate",
        "include_server_header",
        "h11_max_incomplete_size",
        "keep_alive_timeout",
        "wsgi_max_body_size",
    ):
        assert name in known, name
