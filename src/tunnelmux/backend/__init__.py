"""The client of the internal API for back ends, as a library on Trio."""

from __future__ import annotations

from tunnelmux.backend.client import ApiCallFailed, ForwardedResponse, ProxyClient
from tunnelmux.backend.commands import CommandEvents, DeviceResult

__all__ = ["ApiCallFailed", "CommandEvents", "DeviceResult", "ForwardedResponse", "ProxyClient"]
