"""The state of switch and leases, kept over restarts of the agent and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from tunnelmux.agent.assist.clock import Moment
from tunnelmux.agent.assist.offers import LeaseOffer
from tunnelmux.config.private_file import write_private
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.observability import get_logger

__all__ = ["AssistMemory", "KeptLease", "KeptState"]

_log = get_logger("agent.assist")


class KeptLease(msgspec.Struct, kw_only=True):
    """A lease that the device has accepted."""

    offer: LeaseOffer
    age: float
    until: Moment
    said: str


class KeptState(msgspec.Struct, kw_only=True):
    """The whole state."""

    switch: Literal["unset", "on", "off"] = "unset"
    until: Moment | None = None
    services: list[str] = []
    leases: list[KeptLease] = []
    ended: dict[str, str] = {}


class AssistMemory:
    """The state's file, readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told = False

    def read(self) -> KeptState | None:
        """The kept state; None without one. An unreadable file counts as switched off: damage must
        not open a device.
        """
        try:
            content = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            _log.error("switch not read", file=str(self.path), cause=error.strerror)
            return KeptState(switch="off")
        try:
            return read_json(content, KeptState)
        except BadJson:
            _log.error("switch not read", file=str(self.path), cause="the file is damaged")
            return KeptState(switch="off")

    def write(self, state: KeptState) -> None:
        """Write the state. A failure is logged once, and the agent goes on."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self.path, msgspec.json.encode(state))
        except OSError as error:
            if not self._told:
                effect = "the switch is forgotten with a restart"
                _log.error(
                    "switch not kept", file=str(self.path), cause=error.strerror, effect=effect
                )
            self._told = True
        else:
            self._told = False
