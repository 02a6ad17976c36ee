"""How a person proves who they are: by a registered SSH key, a certificate by an authority that
their tenant trusts, a ticket, or in a browser.

asyncssh calls `validate_public_key` both before and after it has checked a signature, and does not
say which. A key proves something only once the signature is good, so the one function that sees key
and signature together is replaced (`Proof.check`).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal

from asyncssh import KeyImportError
from asyncssh.public_key import SSHOpenSSHCertificate, decode_ssh_certificate

from tunnelmux.errors import NoSuchRecord, RegistryError
from tunnelmux.gateway.authority import Authority, Person
from tunnelmux.gateway.confirmation import Asked, Confirmations
from tunnelmux.gateway.guest import Bridge
from tunnelmux.gateway.names import Login, parse_login
from tunnelmux.observability import BoundedLines
from tunnelmux.registry import SshDevice
from tunnelmux.transports.admission import source_of

__all__ = ["Proof", "fingerprint_of"]

_MAY_BE_DEVICE = re.compile(r"[^\s@#]{1,128}")
# A user name with a device after an @ belongs to a person.

_CERTIFICATE = "-cert-v01@openssh.com"

_REFUSALS_PER_TRY = 4
# Refusals that asyncssh gives for one try at most: a client first asks which ways in there are, and
# whether a key would do.

_MOST_PRINCIPALS = 32
# Names of one certificate that are looked up; a person has one or two addresses.

Check = Callable[[str, bytes, bytes, bytes], Awaitable[bool]]


def fingerprint_of(blob: bytes) -> str:
    """As `ssh-keygen -l` prints it."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii")
    return "SHA256:" + digest.rstrip("=")


def _kind_of(blob: bytes) -> str:
    """The type that a key's blob begins with (RFC 4253 section 6.6)."""
    size = int.from_bytes(blob[:4], "big")
    return blob[4 : 4 + size].decode("latin-1")


class Proof:
    """What one connection has proved about its person or device."""

    def __init__(
        self,
        bridge: Bridge,
        authority: Authority,
        confirmations: Confirmations,
        lines: BoundedLines,
        check: Check,
        address: str,
        max_tries: int,
        *,
        takes_devices: bool,
    ) -> None:
        """`check` is asyncssh's own, of one connection."""
        self._takes_devices = takes_devices
        self.login: Login | None = None
        """What the user name asks for; None where it cannot be understood."""
        self.person: Person | None = None
        """The person, once proved."""
        self.device: SshDevice | None = None
        """The device, where a device that connects by SSH is proved."""
        self.tries = 0
        """Keys and other credentials that were shown."""
        self.unknown = ""
        """The fingerprint of an unknown key that was shown."""
        self.is_away = False
        """Whether the registry did not answer."""
        self._bridge = bridge
        self._authority = authority
        self._confirmations = confirmations
        self._lines = lines
        self._check = check
        self._address = address
        self._max_tries = max_tries
        self._user = ""
        self._refusals = 0
        self._known: dict[str, Person | None] = {}
        self._asked: Asked | None = None

    @property
    def is_spent(self) -> bool:
        """Whether the connection has used up its attempts."""
        return self.tries > self._max_tries or self._refusals > _REFUSALS_PER_TRY * self._max_tries

    def count_refusal(self) -> None:
        """Count a refusal: each tells which methods there are."""
        self._refusals += 1

    def begin(self, user: str) -> None:
        """Begin with a new user name; what was proved for another one does not count."""
        self._user = user
        self.login = parse_login(user)
        self.person = None
        self.device = None

    async def check(self, user: str, key: bytes, message: bytes, signature: bytes) -> bool:
        """Called in place of asyncssh's own check, which it calls: remembers who has signed."""
        self.tries += 1
        if self.is_spent:
            return False
        device = await self._device_of(fingerprint_of(key))
        if device is not None:
            if not await self._check(user, key, message, signature):
                return False
            if message:
                self.device = device
            return True
        if self.login is None or self.login.ticket is not None:
            return False
        if _kind_of(key).endswith(_CERTIFICATE):
            return await self._check_certificate(key, message, signature)
        person = await self._person_of(fingerprint_of(key))
        if person is None or not await self._check(user, key, message, signature):
            return False
        if message:
            self.person = person if person.key_id else await self._registered(person, key)
        return True

    async def _check_certificate(self, key: bytes, message: bytes, signature: bytes) -> bool:
        """Whether a certificate names a member of a tenant that trusts its authority, is valid now
        and from this address, and has signed."""
        try:
            certificate = decode_ssh_certificate(key)
        except KeyImportError:
            return False
        if not isinstance(certificate, SSHOpenSSHCertificate):
            return False
        principals = list(certificate.principals)[:_MOST_PRINCIPALS]
        if not principals:
            return False  # OpenSSH would take one without names for any user
        authority = fingerprint_of(certificate.signing_key.public_data)
        try:
            person = await self._bridge.in_trio(
                self._authority.person_of_certificate, authority, principals
            )
        except NoSuchRecord:
            person = None
        except RegistryError as exc:
            self._tell_away(exc)
            return False
        if person is None or not await self._check(principals[0], key, message, signature):
            return False
        if message:
            self.person = person
        return True

    async def redeem(self) -> bool:
        """Whether the ticket in the user name is good. Asking uses it up."""
        self.tries += 1
        if self.is_spent or self.login is None or self.login.ticket is None:
            return False
        try:
            self.person = await self._bridge.in_trio(
                self._authority.person_of_ticket, self.login.ticket, self._address
            )
        except (RegistryError, NoSuchRecord) as exc:
            self._tell_away(exc)
        return self.person is not None

    async def ask(self) -> str | None:
        """A code with which the person confirms in a browser that the unknown key is theirs; None
        where there is no such key, or too many codes were asked for."""
        self.tries += 1
        if self.is_spent or not self.unknown:
            return None
        try:
            self._asked = await self._bridge.in_trio(
                self._confirmations.ask, self.unknown, self._address
            )
        except RegistryError as exc:
            self._say("no code for a key", "info", exc)
            return None
        return self._asked.code

    async def wait_confirmed(self) -> bool:
        """Whether the person confirms before the code expires."""
        if self._asked is None:
            return False
        asked, self._asked = self._asked, None
        try:
            self.person = await self._bridge.in_trio(
                self._confirmations.wait, asked, self.unknown, self._address
            )
        except (RegistryError, NoSuchRecord) as exc:
            self._tell_away(exc)
        return self.person is not None

    async def _registered(self, person: Person, key: bytes) -> Person:
        """The person with the id of this key, which was confirmed in a browser and has signed; as
        before where it cannot be registered now."""
        line = f"{_kind_of(key)} {base64.b64encode(key).decode('ascii')}"
        register = self._confirmations.register
        try:
            key_id = await self._bridge.in_trio(register, fingerprint_of(key), line)
        except RegistryError as exc:
            self._tell_away(exc)
            return person
        return replace(person, key_id=key_id)

    async def _device_of(self, fingerprint: str) -> SshDevice | None:
        """The device that has this key, if the user name is its serial number or name."""
        if not self._takes_devices or not _MAY_BE_DEVICE.fullmatch(self._user):
            return None
        try:
            found = await self._bridge.in_trio(self._authority.device_of_key, fingerprint)
        except RegistryError as exc:
            self._tell_away(exc)
            return None
        return found if found is not None and found.is_called(self._user) else None

    async def _person_of(self, fingerprint: str) -> Person | None:
        if fingerprint not in self._known:
            try:
                person = await self._bridge.in_trio(self._find, fingerprint)
            except NoSuchRecord:
                person = None
            except RegistryError as exc:
                self._tell_away(exc)
                return None
            self._known[fingerprint] = person
        if self._known[fingerprint] is None:
            self.unknown = fingerprint
        return self._known[fingerprint]

    async def _find(self, fingerprint: str) -> Person | None:
        known = await self._authority.person_of_key(fingerprint)
        return known or self._confirmations.owner(fingerprint)

    def _tell_away(self, exc: Exception) -> None:
        self.is_away = True
        self._say("identity not looked up", "warning", exc)

    def _say(self, event: str, level: Literal["info", "warning"], exc: Exception) -> None:
        source = source_of(self._address)
        self._lines.write(event, source, level=level, address=self._address, problem=str(exc))
