"""What a person may do with a device, as the registry says at this moment.

The registry is asked each time: what was allowed a minute ago may not be allowed now.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tunnelmux.config import Secret
from tunnelmux.errors import NoSuchRecord, RegistryError, RegistryRefused
from tunnelmux.gateway.names import forward_names
from tunnelmux.observability import get_logger
from tunnelmux.registry import Actor, Device, FleetLease, Lease, Registry, Right, SshDevice
from tunnelmux.registry.names import DEFAULT_TENANT
from tunnelmux.registry.people import ROLES, Membership

__all__ = ["Access", "AccessDenied", "Authority", "Person"]

_log = get_logger("gateway")

_NOT_FROM_HERE = "your organisation does not let its people use SSH from this address"

_LISTED = 200
# Devices of one tenant in the list to choose from: more do not fit on a screen.


class AccessDenied(Exception):
    """The person may not do this; the message says why, and is shown to them."""


@dataclass(frozen=True, slots=True)
class Person:
    """A person who has proved who they are."""

    user_id: str
    name: str
    key_id: str = ""
    """The id of the SSH key that proved it; empty for a ticket."""
    authority: str = ""
    """The fingerprint of the authority that signed their certificate; empty for other proofs."""
    tenant_id: str = ""
    """The only tenant that this proof is good for; `device_id` the only device. Empty for all."""
    device_id: str = ""
    lease_id: str = ""
    """The lease of the person who holds a device's code, and is no user; else empty."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a person may do with a device at this moment."""

    person: Person
    tenant_id: str
    device: Device
    lease: Lease | None
    """The lease that allows it; None where the person's role does."""
    rights: frozenset[Right]

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services that the person may reach."""
        offered = self.device.state.services
        if self.lease is None:
            return offered
        return tuple(name for name in offered if name in self.lease.services)

    @property
    def lease_id(self) -> str:
        """The lease's id, or empty."""
        return self.lease.id if self.lease is not None else ""

    @property
    def ends(self) -> datetime | None:
        """When it ends by itself."""
        return self.lease.ends if self.lease is not None else None

    @property
    def recorded(self) -> bool:
        """Whether sessions may end at the gateway, which records them."""
        return self.lease is None or self.lease.recorded

    @property
    def sealed(self) -> bool:
        """Whether sessions may go through it encrypted (`ssh -J`)."""
        return self.lease is None or self.lease.sealed

    def need(self, right: Right) -> None:
        """Raise AccessDenied where this right is missing."""
        if right not in self.rights:
            had = ", ".join(sorted(self.rights)) or "nothing"
            raise AccessDenied(
                f'you may {had} on "{self.device.name}", and this needs the right {right}: ask '
                "for it in a lease"
            )


class Authority:
    """Asks the registry."""

    def __init__(self, registry: Registry, standing_rights: Iterable[Right]) -> None:
        self._registry = registry
        self._standing = frozenset(standing_rights)
        program = Actor.program("tunnelmux-gateway")
        self._installation = registry.installation(program)

    async def person_of_key(self, fingerprint: str) -> Person | None:
        """The person who has registered this key; None for an unknown key. Raises RegistryError."""
        key = await self._installation.ssh_keys.find(fingerprint)
        if key is None:
            found = await self._registry.fleet.code_lease(fingerprint)
            return _holder_of(found) if found is not None else None
        user = await self._installation.users.find(key.user_id)
        return Person(user.id, user.email or user.name or user.id, key.id)

    async def device_of_key(self, fingerprint: str) -> SshDevice | None:
        """Which device logs in with that key; None where none does. Raises RegistryError."""
        return await self._registry.ssh_devices.find(fingerprint)

    async def person_of_ticket(self, ticket: Secret, address: str) -> Person | None:
        """The person of a ticket that is good once; None for a used one. Raises RegistryError."""
        found = await self._registry.redeem_ticket(ticket, address=address)
        if found is None:
            return None
        user = await self._installation.users.find(found.user_id)
        name = user.email or user.name or user.id
        return Person(user.id, name, tenant_id=found.tenant_id, device_id=found.device_id)

    async def person_of_certificate(
        self, authority: str, principals: Sequence[str]
    ) -> Person | None:
        """The member that a certificate of this authority names, in the tenant that trusts the
        authority; None where no member has that name, or several do. Raises RegistryError."""
        found = await self._installation.ssh_keys.certified(authority, principals)
        if found is None:
            return None
        user = await self._installation.users.find(found.user_id)
        return Person(user.id, user.email, authority=authority, tenant_id=found.tenant_id)

    async def logged_in(self, person: Person, address: str) -> None:
        """Write down that the person's key was used."""
        if person.key_id and not person.lease_id:
            await self._installation.ssh_keys.used(person.key_id, address)

    async def access(self, person: Person, device: str, address: str) -> Access:
        """What the person may do with the device of this name, label or serial number. An empty
        name means the device of their ticket.

        Raises AccessDenied and RegistryError. A device that does not exist, and one that the person
        may not know of, are refused in the same words.
        """
        if person.lease_id:
            return await self._by_code(person, device, address)
        found: list[Access] = []
        seen = False
        memberships = await self._memberships(person)
        allowed = await self._from_here(memberships, address)
        if memberships and not allowed:
            raise AccessDenied(_NOT_FROM_HERE)
        for membership in allowed:
            record = await self._find(membership, device, person)
            if record is not None:
                seen = True
                access = await self._judge(person, membership, record, address)
                if access is not None:
                    found.append(access)
        if len(found) == 1:
            return found[0]
        if found:
            labels = ", ".join(access.device.label for access in found)
            raise AccessDenied(f'"{device}" is in several of your organisations: write {labels}')
        if seen:
            raise AccessDenied(
                f'nothing lets you into "{device}" now: ask for a lease, or wait until it begins'
            )
        raise AccessDenied(f'you reach no device called "{device}"')

    async def forward(
        self, person: Person, host: str, port: int, address: str
    ) -> tuple[Access, str]:
        """The service that `host:port` means, and the access to it; raises as `access` does."""
        meanings = forward_names(host, port)
        denied: AccessDenied | None = None
        for device, services in meanings:
            try:
                access = await self.access(person, device, address)
            except AccessDenied as exc:
                denied = denied or exc
                continue
            service = next((name for name in services if name in access.services), None)
            if service is not None:
                return access, service
            offered = ", ".join(access.services) or "none"
            denied = AccessDenied(
                f'"{device}" has no service {services[0]} for you (it has {offered})'
            )
        if denied is None:
            denied = AccessDenied(
                f"port {port} of {host} is no service: write SERVICE--{host}, as in web--{host}:80"
            )
        raise denied

    async def reachable(self, person: Person, address: str) -> list[Access]:
        """The connected devices that a user may use, by label. Raises RegistryError."""
        found: list[Access] = []
        for membership in await self._from_here(await self._memberships(person), address):
            tenant = self._registry.tenant(membership.tenant_id, self._actor(person, address))
            page = await tenant.devices.page(limit=_LISTED)
            for device in page.items:
                if device.state.online and not (person.device_id and device.id != person.device_id):
                    access = await self._judge(person, membership, device, address)
                    if access is not None:
                        found.append(access)
        return sorted(found, key=lambda access: access.device.label)

    async def again(self, access: Access, address: str) -> Access | None:
        """The access as it is now; None where the person has lost it. Raises RegistryError."""
        if access.person.lease_id:
            try:
                return await self._by_code(access.person, "", address)
            except AccessDenied:
                return None
        memberships = await self._memberships(access.person)
        for membership in await self._from_here(memberships, address):
            if membership.tenant_id == access.tenant_id:
                tenant = self._registry.tenant(membership.tenant_id, self._actor(access.person, ""))
                try:
                    device = await tenant.devices.find(access.device.id)
                    if access.lease is None:
                        return await self._judge(access.person, membership, device, address)
                    lease = await tenant.leases.find(access.lease.id)
                except NoSuchRecord:
                    return None
                if not device.enabled or device.quarantine:
                    return None
                if lease.state(datetime.now(UTC)) not in ("running", "used_up"):
                    return None
                rights = frozenset(lease.rights)
                return Access(access.person, access.tenant_id, device, lease, rights)
        return None

    async def use(self, access: Access, address: str, details: dict[str, object]) -> None:
        """Count a use of the access's lease and write it down. Raises AccessDenied where it is
        over, RegistryError."""
        if access.lease is None:
            return
        tenant = self._registry.tenant(access.tenant_id, self._actor(access.person, address))
        try:
            await tenant.leases.use(access.lease.id, details)
        except (RegistryRefused, NoSuchRecord) as exc:
            too_many = isinstance(exc, RegistryRefused) and exc.code == "too_many"
            raise AccessDenied(str(exc) if too_many else "your lease is over") from exc

    async def note(
        self, access: Access, address: str, what: str, details: dict[str, object]
    ) -> None:
        """Write down what happened under a lease, where there is one. If the registry is away, the
        entry goes to the log."""
        if access.lease is None:
            return
        tenant = self._registry.tenant(access.tenant_id, self._actor(access.person, address))
        try:
            await tenant.leases.note(access.lease.id, what, details)
        except RegistryError as exc:
            _log.error(
                "not written down",
                what=what,
                lease=access.lease.id,
                details=details,
                problem=str(exc),
            )

    async def _by_code(self, person: Person, text: str, address: str) -> Access:
        """What the holder of a code may: the services of that one device. The account's line of
        authorized_keys forwards no X11 (`restrict`)."""
        tenant = self._registry.tenant(person.tenant_id, self._actor(person, address))
        try:
            device = await tenant.devices.find(person.device_id)
            lease = await tenant.leases.find(person.lease_id)
        except NoSuchRecord as exc:
            raise AccessDenied("your lease is over") from exc
        if not _lies_in(address, (await tenant.ssh.find()).addresses):
            raise AccessDenied(_NOT_FROM_HERE)
        names = {name.casefold() for name in (device.name, device.label, device.serial) if name}
        if text and text.casefold() not in names:
            raise AccessDenied(f'you reach no device called "{text}"')
        if lease.state(datetime.now(UTC)) != "running":
            raise AccessDenied("your lease is over")
        if not device.enabled or device.quarantine:
            raise AccessDenied(f'nothing lets you into "{device.name}" now')
        rights = frozenset(lease.rights) - {"x11"}
        return Access(person, person.tenant_id, device, lease, rights)

    def _actor(self, person: Person, address: str) -> Actor:
        if person.lease_id:
            # The person is no user: the device itself has let them in.
            return Actor(kind="device", id=person.device_id, name=person.name, address=address)
        return Actor(kind="user", id=person.user_id, name=person.name, address=address)

    async def _memberships(self, person: Person) -> list[Membership]:
        users = self._installation.users
        if not (await users.find(person.user_id)).enabled:
            return []
        if person.key_id:
            keys = await self._installation.ssh_keys.of_user(person.user_id)
            if all(key.id != person.key_id for key in keys):
                return []  # it was removed after the log-in
        if person.authority:
            tenant = self._registry.tenant(person.tenant_id, self._actor(person, ""))
            if not await tenant.ssh.trusts(person.authority):
                return []
        return [
            membership
            for membership in await users.memberships(person.user_id)
            if membership.tenant_enabled
            and (not person.tenant_id or membership.tenant_id == person.tenant_id)
        ]

    async def _from_here(self, memberships: list[Membership], address: str) -> list[Membership]:
        """The memberships in tenants whose people may use the gateway from this address."""
        program = Actor.program("tunnelmux-gateway")
        return [
            membership
            for membership in memberships
            if _lies_in(
                address,
                (await self._registry.tenant(membership.tenant_id, program).ssh.find()).addresses,
            )
        ]

    async def _find(self, membership: Membership, text: str, person: Person) -> Device | None:
        """The tenant's device of this name, serial number or label; None where there is none."""
        tenant = self._registry.tenant(membership.tenant_id, self._actor(person, ""))
        if not text and person.device_id:
            try:
                return await tenant.devices.find(person.device_id)
            except NoSuchRecord:
                return None
        names = [text.lower()]
        suffix = f"--{membership.tenant_name}"
        if membership.tenant_name != DEFAULT_TENANT and text.lower().endswith(suffix):
            names.append(text.lower().removesuffix(suffix))
        for name in names:
            try:
                device = await tenant.devices.find_called(name)
            except NoSuchRecord:
                continue
            return device if person.device_id in ("", device.id) else None
        return None

    async def _judge(
        self, person: Person, membership: Membership, device: Device, address: str
    ) -> Access | None:
        if not device.enabled or device.quarantine:
            return None
        tenant_id = membership.tenant_id
        if self._standing and ROLES.index(membership.role) >= ROLES.index("operator"):
            return Access(person, tenant_id, device, None, self._standing)
        tenant = self._registry.tenant(tenant_id, self._actor(person, address))
        for lease in await tenant.leases.running(holder=person.user_id, device_id=device.id):
            if _lies_in(address, lease.addresses):
                return Access(person, tenant_id, device, lease, frozenset(lease.rights))
        return None


def _holder_of(found: FleetLease) -> Person:
    lease = found.lease
    name = "the holder of the code"
    return Person(
        "",
        name,
        lease.id,
        tenant_id=found.tenant_id,
        device_id=lease.device_id,
        lease_id=lease.id,
    )


def _lies_in(address: str, networks: tuple[str, ...]) -> bool:
    if not networks:
        return True
    parsed = ipaddress.ip_address(address)
    return any(parsed in ipaddress.ip_network(network, strict=False) for network in networks)
