"""The program of a proxy as the one before it starts it, with a descriptor as last argument."""

from __future__ import annotations

import os
import socket
import sys

from tunnelmux.cli.outcome import run_command
from tunnelmux.cli.proxy import proxy as command
from tunnelmux.cli.starts import SuccessorStart

__all__ = ["main"]

_PROGRAM = "tunnelmux-proxy"


def main() -> None:
    """What the program before this one starts."""
    *arguments, descriptor = sys.argv[1:]
    sys.argv[1:] = arguments  # with which this one will start the next
    os.set_inheritable(int(descriptor), False)
    run_command(command, _PROGRAM, arguments, SuccessorStart(socket.socket(fileno=int(descriptor))))


if __name__ == "__main__":
    main()
