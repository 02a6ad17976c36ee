"""Remote assistance as a running part of the agent: its desk, its files, who listens where."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from tunnelmux.agent.assist.control import open_control, serve_control
from tunnelmux.agent.assist.desk import AssistDesk, HeldLease
from tunnelmux.agent.assist.diary import Diary
from tunnelmux.agent.assist.memory import AssistMemory
from tunnelmux.agent.assist.orders import Order
from tunnelmux.agent.serial import read_serial
from tunnelmux.config import AgentConfig
from tunnelmux.config.assist import AssistConfig
from tunnelmux.config.state_dir import default_state_dir
from tunnelmux.observability import get_logger

__all__ = ["AssistService", "assist_file", "desk_of"]

_log = get_logger("agent.assist")

_NO_OPINION = 2


def assist_file(config: AgentConfig, ending: str, environ: Mapping[str, str] | None = None) -> Path:
    """Where the agent keeps a file of the switch: `state`, `log` or `sock`. Raises ConfigError."""
    device = config.device
    folder = device.state_dir or default_state_dir(
        "tunnelmux-agent", os.environ if environ is None else environ
    )
    return folder / f"{device.name}.assist.{ending}"


def desk_of(config: AgentConfig) -> AssistDesk:
    """The desk of a device, as its files have it. Raises ConfigError."""
    memory = diary = None
    if _is_on(config):
        memory = AssistMemory(assist_file(config, "state"))
        diary = Diary(config.assist.log or assist_file(config, "log"))
    lease_only = _lease_only(config)
    return AssistDesk(
        config.assist, _names(config), lease_only=lease_only, memory=memory, diary=diary
    )


class AssistService:
    """The desk of a running agent, and what goes on around it while `run` runs.

    Raises ConfigError when a file it needs cannot be used.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._is_on = _is_on(config)
        self.desk = desk_of(config)
        self.desk.on_ask = self._begin_hook
        self._nursery: trio.Nursery | None = None
        self._control: socket.socket | None = None

    @property
    def is_on(self) -> bool:
        """Whether this device may take leases."""
        return self._is_on

    async def learn_serial(self) -> str:
        """The serial number, read anew."""
        self.desk.serial = await read_serial(self._config.device)
        return self.desk.serial

    def configure(self, config: AgentConfig) -> None:
        """Take another configuration: what it would not take any more ends."""
        self._config = config
        self.desk.configure(config.assist, _names(config), _lease_only(config))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Listen for those at the device while the block runs. Raises ConfigError."""
        if not self._is_on:
            yield
            return
        path = assist_file(self._config, "sock")
        with open_control(path) as self._control:
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    async def run(self) -> None:
        """Watch the times and serve those at the device, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self.desk.run)
            if self._control is not None:
                self._nursery.start_soon(serve_control, self._control, self.desk, self._make_code)

    async def _make_code(self, order: Order) -> dict[str, Any]:  # noqa: ARG002
        await trio.lowlevel.checkpoint()
        problem = "this device makes no codes: set assist.account_keys in agent.toml"
        return {"problem": problem, "status": self.desk.status()}

    # -- the hook -----------------------------------------------------------------------------

    def _begin_hook(self, lease: HeldLease) -> None:
        if self._config.assist.hook and self._nursery is not None:
            self._nursery.start_soon(self._ask_hook, self._config.assist, lease)

    async def _ask_hook(self, config: AssistConfig, lease: HeldLease) -> None:
        offer = lease.offer
        told = {
            "TUNNELMUX_LEASE": offer.id,
            "TUNNELMUX_WHO": offer.who,
            "TUNNELMUX_REASON": offer.reason,
            "TUNNELMUX_SERVICES": ",".join(offer.services),
            "TUNNELMUX_SECONDS": f"{offer.seconds:.0f}",
        }
        status = _NO_OPINION
        try:
            with trio.move_on_after(config.ask_timeout):
                done = await trio.run_process(
                    config.hook,
                    stdin=subprocess.DEVNULL,
                    check=False,
                    env={**os.environ, **told},
                )
                status = done.returncode
        except OSError as error:
            _log.error("hook not run", program=config.hook[0], cause=error.strerror or str(error))
        if status != _NO_OPINION:
            # It may be answered meanwhile: the first answer counts.
            self.desk.answer(offer.id, status == 0, by=f"its hook {config.hook[0]}")


def _is_on(config: AgentConfig) -> bool:
    return config.assist.mode != "off"


def _names(config: AgentConfig) -> list[str]:
    return [service.name for service in config.services]


def _lease_only(config: AgentConfig) -> list[str]:
    return [service.name for service in config.services if service.lease_only]
