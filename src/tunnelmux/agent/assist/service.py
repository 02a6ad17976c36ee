"""Remote assistance as a running part of the agent: its desk, its files and its listeners."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from tunnelmux.agent.assist.account_keys import AccountKeys
from tunnelmux.agent.assist.code import derive_key, new_code
from tunnelmux.agent.assist.control import open_control, serve_control
from tunnelmux.agent.assist.desk import AssistDesk, HeldLease
from tunnelmux.agent.assist.diary import Diary
from tunnelmux.agent.assist.memory import AssistMemory
from tunnelmux.agent.assist.offers import LeaseOffer
from tunnelmux.agent.assist.orders import Order
from tunnelmux.agent.serial import read_serial
from tunnelmux.config import Address, AgentConfig
from tunnelmux.config.assist import AssistConfig
from tunnelmux.config.state_dir import default_state_dir
from tunnelmux.errors import ConfigError
from tunnelmux.observability import get_logger

__all__ = ["AssistService", "assist_file"]

_log = get_logger("agent.assist")

_NO_OPINION = 2


def assist_file(config: AgentConfig, ending: str, environ: Mapping[str, str] | None = None) -> Path:
    """The path of a file of the switch: `state`, `log` or `sock`. Raises ConfigError."""
    device = config.device
    folder = device.state_dir or default_state_dir(
        "tunnelmux-agent", os.environ if environ is None else environ
    )
    return folder / f"{device.name}.assist.{ending}"


def _desk_of(config: AgentConfig) -> AssistDesk:
    """The desk of a device, restored from its files. Raises ConfigError."""
    memory = diary = None
    if _is_on(config):
        memory = AssistMemory(assist_file(config, "state"))
        file = config.assist.log or assist_file(config, "log")
        diary = Diary(file, most_of_a_kind=config.assist.max_log_lines)
    lease_only = _lease_only(config)
    return AssistDesk(
        config.assist, _names(config), lease_only=lease_only, memory=memory, diary=diary
    )


class AssistService:
    """The desk of a running agent, with its listeners and files, while `run` runs. Raises
    ConfigError when a file it needs cannot be used.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._is_on = _is_on(config)
        self.desk = _desk_of(config)
        self.desk.on_ask = self._begin_hook
        self.desk.on_lease_end = self._close_accounts
        self._account = _account(config)
        self.page_address: Address | None = None
        """The address of the page, once it listens."""
        self._nursery: trio.Nursery | None = None
        self._control: socket.socket | None = None

    @property
    def is_on(self) -> bool:
        """Whether this device may take leases."""
        return self._is_on

    async def learn_serial(self) -> str:
        """Set the serial number, which was read again."""
        self.desk.serial = await read_serial(self._config.device)
        return self.desk.serial

    def configure(self, config: AgentConfig) -> None:
        """Apply a new configuration: leases that it does not allow end."""
        self._config = config
        self._account = _account(config)
        self.desk.configure(config.assist, _names(config), _lease_only(config))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within the block, listen for people at the device. Raises ConfigError."""
        if not self._is_on:
            yield
            return
        path = assist_file(self._config, "sock")
        self._close_accounts()  # left by an agent that was killed
        with open_control(path) as self._control:
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                if self._config.assist.account_words == "dropbear":
                    # dropbear has no expiry, so without an agent the line would stay.
                    self._end_codes()

    async def run(self) -> None:
        """Watch deadlines and serve people at the device, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self.desk.run)
            address = self._config.assist.page_address
            if self._is_on and address is not None:
                await self._open_page(address)
            if self._control is not None:
                self._nursery.start_soon(serve_control, self._control, self.desk, self._make_code)

    async def _open_page(self, address: Address) -> None:
        # Imported here: most agents have no page.
        from tunnelmux.agent.assist.page import AssistPage
        from tunnelmux.transports.tcp import bound_addresses, open_listeners

        assert self._nursery is not None  # set before this runs
        try:
            listeners = await open_listeners(*address)
        except ConfigError as error:
            # The device goes on without the page: the switch works in a terminal.
            _log.error("no page for assistance", cause=str(error))
            return
        bound = Address(address.host, bound_addresses(listeners)[0][1])
        self.page_address = bound
        page = AssistPage(self.desk, self._make_code, bound, self._config.assist.page_origins)
        self._nursery.start_soon(page.serve, listeners)
        _log.info("page for assistance", address=str(bound))

    # -- codes --------------------------------------------------------------------------------

    async def _make_code(self, order: Order) -> dict[str, Any]:
        """Open the account to the holder of a new code, which is shown only once."""
        # Imported here: most agents make no codes.
        from tunnelmux.registry.ids import new_id

        seconds = order.seconds or self.desk.config.longest
        services = tuple(dict.fromkeys(order.services)) or self.desk.services
        # The id identifies the lease and is half of the salt, so it must be random.
        lease_id, code = new_id(), new_code()
        problem = self._objection_to_code(seconds, services)
        if problem is not None:
            return {"problem": problem, "status": self.desk.status()}
        key = await trio.to_thread.run_sync(derive_key, code, lease_id, self.desk.serial)
        problem = self._open_account(lease_id, key.public, seconds)
        if problem is not None:
            return {"problem": problem, "status": self.desk.status()}
        self.desk.hold_code(
            LeaseOffer(
                id=lease_id,
                who="the holder of the code",
                reason="opened here with a code",
                services=services,
                rights=("shell", "exec"),
                seconds=seconds,
                recorded=True,
                sealed=True,
                kind="code",
                key=key.fingerprint,
            )
        )
        made = {"lease": lease_id, "code": code.reveal(), "serial": self.desk.serial}
        return {"problem": None, "status": self.desk.status()} | made

    def _objection_to_code(self, seconds: float, services: tuple[str, ...]) -> str | None:
        if self.desk.config.mode == "off":
            return 'this device offers no assistance: set assist.mode to "ask" in agent.toml first'
        if self._account is None:
            return "this device makes no codes: set assist.account_keys in agent.toml"
        if not self.desk.serial:
            return "this device has no serial number: set device.serial in agent.toml"
        return self.desk.objection_to_services(services) or self.desk.objection_to_time(seconds)

    def _open_account(self, lease_id: str, public: str, seconds: float) -> str | None:
        assert self._account is not None  # it was looked for
        try:
            self._account.add(lease_id, public, self.desk.clock.wall() + seconds)
        except OSError as error:
            return f"the key cannot be put into {self._account.path}: {error.strerror or error}"
        return None

    def _close_accounts(self, _lease_id: str = "") -> None:
        """Remove the lines of leases that do not run."""
        if self._account is None:
            return
        try:
            count = self._account.keep_only([lease.offer.id for lease in self.desk.leases])
        except OSError as error:
            file, cause = str(self._account.path), error.strerror or str(error)
            _log.error("keys of leases not taken out", file=file, cause=cause)
        else:
            if count:
                _log.info("keys of leases taken out", file=str(self._account.path), count=count)

    def _end_codes(self) -> None:
        for lease in self.desk.leases:
            if lease.offer.kind == "code":
                self.desk.stop(lease.offer.id, by="the agent stopped")

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
            # The person may have answered meanwhile: the first answer counts.
            self.desk.answer(offer.id, status == 0, by=f"its hook {config.hook[0]}")


def _account(config: AgentConfig) -> AccountKeys | None:
    assist = config.assist
    if assist.mode == "off" or assist.account_keys is None:
        return None
    return AccountKeys(assist.account_keys, assist.account_words, assist.account_from)


def _is_on(config: AgentConfig) -> bool:
    return config.assist.mode != "off"


def _names(config: AgentConfig) -> list[str]:
    return [service.name for service in config.offered]


def _lease_only(config: AgentConfig) -> list[str]:
    return [service.name for service in config.offered if service.lease_only]
