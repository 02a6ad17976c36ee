"""The gateway as a client of a device's sshd, through the device's tunnel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import asyncssh

from tunnelmux.errors import NoSuchRecord, RegistryError
from tunnelmux.gateway.devices import DeviceSocket
from tunnelmux.gateway.guest import Lane
from tunnelmux.registry import Device, DeviceHostKeys
from tunnelmux.ssh import HostKeyCheck, HostKeys, SshFailure
from tunnelmux.ssh.back_pressure import BackPressure

__all__ = ["CIPHERS", "KEY_EXCHANGES", "HostKeyPins", "SshdRefused", "log_in"]

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""Offered to people's clients. Their order decides, and ChaCha20 costs half as much again."""

_TO_DEVICES = (*CIPHERS, "aes128-ctr", "aes256-ctr")
# Dropbear has no GCM.

KEY_EXCHANGES = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
)

_SSH_PORT = 22

_UNSENT = 8 * 1024 * 1024
# Bytes that a device may leave unread: the windows of a person's ten sessions, and some more.

_CHANGED = (
    "the host key of the device's sshd has changed: it shows {shown}. If sshd was installed anew, "
    "an operator accepts its new keys on the device's page of the console, or with: tunnelmux "
    "device host-keys {device} --accept. If it was not, another machine may be answering in its "
    "place"
)

_NOT_LET_IN = (
    'the device\'s sshd does not let the account "{account}" in with what was shown: does it trust '
    "the gateway's authority (TrustedUserCAKeys) and is its clock right (a certificate is good for "
    "five minutes), or does it have your key?"
)


class HostKeyPins(Protocol):
    """Where the host keys of devices are kept: `Devices` of the registry."""

    async def host_keys(self, device_id: str, /) -> DeviceHostKeys:
        """Those that are known."""

    async def pin_host_key(self, device_id: str, key: str, /) -> DeviceHostKeys:
        """Pin this one where none is pinned; those that are known then."""

    async def report_host_keys(self, device_id: str, keys: Sequence[str], /) -> DeviceHostKeys:
        """Have a person decide about these."""


class SshdRefused(Exception):
    """The device's sshd refused the login; the message says why."""


async def log_in(
    lane: Lane,
    device_socket: DeviceSocket,
    account: str,
    client_keys: list[Any],
    pins: HostKeyPins,
    device: Device,
    peer: str,
    *,
    timeout: float,
) -> Any:
    """A connection to the sshd at the other end of `device_socket`, which it closes at its end.

    Awaited in asyncio. Its host key must be a pinned one; where the device has reported none, the
    first that is met is pinned. Its packets take the turns of `peer`, the person that it is for.
    Raises SshdRefused.
    """
    try:
        known = await lane.in_trio(pins.host_keys, device.id)
        check = HostKeys("tofu").check_pinned(device.id, _SSH_PORT, known.pinned)
    except (RegistryError, NoSuchRecord) as exc:
        device_socket.reset()
        raise SshdRefused("the device's host key cannot be looked up now: try again") from exc
    except SshFailure as exc:
        device_socket.reset()
        raise SshdRefused(str(exc)) from exc
    try:
        connection = await asyncio.wait_for(
            asyncssh.connect(
                device.id,
                _SSH_PORT,
                tunnel=device_socket,
                client_factory=lambda: _Client(check, peer),
                username=account,
                client_keys=client_keys,
                agent_path=None,
                config=None,
                encryption_algs=list(_TO_DEVICES),
                compression_algs=None,
                x509_trusted_certs=None,
                preferred_auth="publickey",
                keepalive_interval=15,
                **check.options(""),
            ),
            timeout,
        )
    except asyncssh.PermissionDenied as exc:
        raise SshdRefused(_NOT_LET_IN.format(account=account)) from exc
    except asyncssh.HostKeyNotVerifiable as exc:
        raise await _changed(lane, pins, device, check.refused) from exc
    except TimeoutError as exc:
        raise SshdRefused(f"the device's sshd did not answer within {timeout:g} s") from exc
    except (OSError, asyncssh.Error) as exc:
        raise SshdRefused(f"the device's sshd closed the connection: {exc}") from exc
    if check.seen is not None:
        try:
            known = await lane.in_trio(pins.pin_host_key, device.id, check.seen)
        except (RegistryError, NoSuchRecord) as exc:
            connection.abort()
            raise SshdRefused("the device's host key cannot be kept now: try again") from exc
        if check.seen not in known.pinned:
            # The device has reported others meanwhile, or another gateway has met another.
            connection.abort()
            raise await _changed(lane, pins, device, check.seen)
    return connection


async def _changed(lane: Lane, pins: HostKeyPins, device: Device, key: str) -> SshdRefused:
    """The refusal of a key that is none of the pinned ones, which a person may now accept."""
    with contextlib.suppress(RegistryError, NoSuchRecord):  # then the device itself reports it
        await lane.in_trio(pins.report_host_keys, device.id, (key,))
    shown = asyncssh.import_public_key(key)
    text = f"{shown.get_algorithm()} {shown.get_fingerprint()}"
    return SshdRefused(_CHANGED.format(shown=text, device=device.label))


class _Client(asyncssh.SSHClient):
    """Judges the device's host key."""

    def __init__(self, check: HostKeyCheck, peer: str) -> None:
        self._check = check
        self._peer = peer

    def validate_host_public_key(self, _host: str, _addr: str, _port: int, key: Any) -> bool:
        return self._check.accept(key)

    def connection_made(self, conn: Any) -> None:
        BackPressure(conn, asyncio.get_running_loop(), _UNSENT, self._peer)
