"""Bytes both ways between two streams, with every ending told apart."""

from __future__ import annotations

from tunnelmux.relay.joined import join
from tunnelmux.relay.splice import RelayResult, abort, relay, reset_socket

__all__ = ["RelayResult", "abort", "join", "relay", "reset_socket"]
