"""The host keys of this device's SSH server, as the server itself shows them.

The agent reports them to the proxy each time it connects, so that the gateway can pin them. It
makes only the first step of a key exchange (RFC 4253 section 7, RFC 5656 section 4), whose answer
contains the key. It does not check the signature there: it asks the target of the device's own
service, and a wrong key could only make log-ins fail.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence

import trio

from tunnelmux.agent.targets import TargetConnector
from tunnelmux.config import ServiceConfig
from tunnelmux.http import Refused
from tunnelmux.observability import get_logger

__all__ = ["SSH_SERVICE", "HostKeyScan", "ssh_service_of"]

_log = get_logger("agent")

SSH_SERVICE = "ssh"
"""The name of the service that gateways reach as a device's SSH server, unless told otherwise."""

_TIMEOUT = 2.0
# Seconds for all connections of a scan; connecting to the proxy waits for it.

_ALGORITHMS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512")
# One of each kind of key that the gateway asks for, best first.

_KEY_EXCHANGES = "curve25519-sha256,curve25519-sha256@libssh.org"
# Any 32 bytes are a public key of these (RFC 8731). A server without them reports no keys.

_CIPHERS = "aes128-ctr,aes256-ctr,aes128-gcm@openssh.com,chacha20-poly1305@openssh.com"
_MACS = "hmac-sha2-256,hmac-sha2-512,hmac-sha2-256-etm@openssh.com"

_KEXINIT, _KEX_ECDH_INIT, _KEX_ECDH_REPLY = 20, 30, 31

_LONGEST_GREETING = 8192
_LONGEST_PACKET = 35_000
# Bytes; RFC 4253 section 6.1.

_PORT = 22


class _NoAnswer(Exception):
    """The server does not go on as it should."""


def ssh_service_of(services: Sequence[ServiceConfig]) -> ServiceConfig | None:
    """The service that leads to the device's SSH server: the one called `ssh`, else the first to
    port 22."""
    raw = [service for service in services if service.scheme == "tcp"]
    for service in raw:
        if service.name == SSH_SERVICE:
            return service
    for service in raw:
        if service.address is not None and service.address.port == _PORT:
            return service
    return None


class HostKeyScan:
    """Asks one SSH server for its host keys, and remembers them."""

    def __init__(self) -> None:
        self._known: list[str] = []
        self._target = ""

    async def keys(self, service: ServiceConfig | None) -> list[str]:
        """The keys as lines `TYPE BASE64`, after two seconds at most; those of before, or none,
        where the server does not answer. A server whose first key is known is not asked for the
        others again."""
        if service is None:
            return []
        if service.target != self._target:
            self._known, self._target = [], service.target
        try:
            with trio.fail_after(_TIMEOUT):
                self._known = await self._scan(TargetConnector(service))
        except (Refused, _NoAnswer, trio.TooSlowError, trio.BrokenResourceError) as exc:
            _log.debug("host keys not read", service=service.name, cause=str(exc))
        return self._known

    async def _scan(self, target: TargetConnector) -> list[str]:
        first, offered = await _ask(target, _ALGORITHMS)
        if first in self._known:
            return self._known
        found = [first]
        for algorithm in _ALGORITHMS[1:]:
            if algorithm in offered:
                key, _ = await _ask(target, (algorithm,))
                if key not in found:
                    found.append(key)
        return found


async def _ask(target: TargetConnector, algorithms: Sequence[str]) -> tuple[str, list[str]]:
    """The key of the first of these kinds that the server has, and the algorithms of all its
    keys."""
    async with await target.dial(_TIMEOUT) as stream:
        await stream.send_all(b"SSH-2.0-tunnelmux\r\n" + _packet(_our_offer(algorithms)))
        reader = _Reader(stream)
        await reader.greeting()
        offered = _offered_in(await reader.packet(_KEXINIT))
        if not set(algorithms) & set(offered):
            raise _NoAnswer("it has no host key of a kind that the gateway asks for")
        # A client that is cut off here is one line of sshd's log, as after ssh-keyscan.
        public = secrets.token_bytes(32)
        await stream.send_all(_packet(bytes([_KEX_ECDH_INIT]) + _string(public)))
        blob, _ = _take_string((await reader.packet(_KEX_ECDH_REPLY))[1:])
    kind, _ = _take_string(blob)
    return f"{kind.decode('ascii', 'replace')} {base64.b64encode(blob).decode('ascii')}", offered


def _our_offer(algorithms: Sequence[str]) -> bytes:
    host_keys = ",".join(algorithms)
    lists = (_KEY_EXCHANGES, host_keys, _CIPHERS, _CIPHERS, _MACS, _MACS, "none", "none", "", "")
    names = b"".join(_string(names.encode("ascii")) for names in lists)
    return bytes([_KEXINIT]) + secrets.token_bytes(16) + names + b"\0" * 5


def _offered_in(payload: bytes) -> list[str]:
    """The host key algorithms of a KEXINIT."""
    _, rest = _take_string(payload[17:])
    names, _ = _take_string(rest)
    return names.decode("ascii", "replace").split(",")


def _packet(payload: bytes) -> bytes:
    """A packet in plain text (RFC 4253 section 6)."""
    padding = 8 - (len(payload) + 5) % 8
    padding += 8 if padding < 4 else 0
    size = 1 + len(payload) + padding
    return size.to_bytes(4, "big") + bytes([padding]) + payload + b"\0" * padding


def _string(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def _take_string(data: bytes) -> tuple[bytes, bytes]:
    """The string that data begins with, and what follows it."""
    size = int.from_bytes(data[:4], "big")
    if len(data) < 4 + size:
        raise _NoAnswer("its answer is cut short")
    return data[4 : 4 + size], data[4 + size :]


class _Reader:
    """Reads a server's greeting and its packets."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._data = bytearray()

    async def greeting(self) -> None:
        """Skip its lines, of which `SSH-2.0-…` is the last (RFC 4253 section 4.2)."""
        skipped = 0
        while True:
            while (end := self._data.find(b"\n")) < 0:
                if skipped + len(self._data) > _LONGEST_GREETING:
                    raise _NoAnswer("it is no SSH server")
                await self._more()
            line = bytes(self._data[:end])
            del self._data[: end + 1]
            skipped += end + 1
            if line.startswith(b"SSH-"):
                return

    async def packet(self, kind: int) -> bytes:
        """The payload of the next packet, which must be of this kind."""
        while True:
            while len(self._data) < 5:
                await self._more()
            size = int.from_bytes(self._data[:4], "big")
            if not 5 < size <= _LONGEST_PACKET:
                raise _NoAnswer("it is no SSH server")
            while len(self._data) < 4 + size:
                await self._more()
            payload = bytes(self._data[5 : 4 + size - self._data[4]])
            del self._data[: 4 + size]
            if payload[:1] == bytes([kind]):
                return payload
            if payload[:1] not in (b"\x02", b"\x04"):  # ignore, debug
                raise _NoAnswer("it does not go on with the key exchange")

    async def _more(self) -> None:
        data = await self._stream.receive_some(4096)
        if not data:
            raise _NoAnswer("it closed the connection")
        self._data += data
