"""One command to be run over SSH, as plain data: the request, what happens, the result.

The names on the wire are those of the relay service's `execute_command` and `command_result`, so
that existing main servers work unchanged. An `Executor` runs commands: a device's agent itself, or
the proxy on behalf of one.
"""

from __future__ import annotations

from tunnelmux.commands.events import (
    EXIT_FAILED,
    EXIT_FORBIDDEN,
    EXIT_TIMEOUT,
    MAX_MESSAGE,
    REASONS,
    CameBy,
    Event,
    Exited,
    InvalidEvent,
    Output,
    SshUse,
    Started,
    StreamName,
    Truncated,
    as_sentence,
    decode_event,
    encode_event,
    failure,
)
from tunnelmux.commands.executor import Executor
from tunnelmux.commands.ids import new_command_id
from tunnelmux.commands.lines import LineSplitter
from tunnelmux.commands.order import EventOrder
from tunnelmux.commands.request import CommandRequest, InvalidCommand
from tunnelmux.commands.result import CommandResult, ResultBuilder, collect

__all__ = [
    "EXIT_FAILED",
    "EXIT_FORBIDDEN",
    "EXIT_TIMEOUT",
    "MAX_MESSAGE",
    "REASONS",
    "CameBy",
    "CommandRequest",
    "CommandResult",
    "Event",
    "EventOrder",
    "Executor",
    "Exited",
    "InvalidCommand",
    "InvalidEvent",
    "LineSplitter",
    "Output",
    "ResultBuilder",
    "SshUse",
    "Started",
    "StreamName",
    "Truncated",
    "as_sentence",
    "collect",
    "decode_event",
    "encode_event",
    "failure",
    "new_command_id",
]
