"""People and programs of a tenant, made in the registry as signing in and inviting would."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from support.apis import LiveApi
from tunnelmux.api.access import SCOPES
from tunnelmux.registry import Actor, LeaseTerms, Recorded, Role, new_id

__all__ = [
    "BODIES",
    "HOST_KEYS",
    "TEST",
    "Person",
    "a_recording",
    "everything",
    "objects_of",
    "person",
]

TEST = Actor.program("tests")

SSH_KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHV8UtMQ1eUuXHUDYhAvEMNpVIFzRHnbCxR4lEGFIzNq ada@work"
)

HOST_KEYS = tuple("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + mark * 43 for mark in "AB")
"""What the SSH server of a device shows, before and after it was installed anew."""


BODIES: dict[str, Any] = {
    "PUT /api/auth/tenant": {"tenant_id": "{tenant_id}"},
    "POST /api/auth/terminal": {"client": "x"},
    "POST /api/auth/terminal/poll": {"device_code": "x"},
    "PATCH /api/tenant": {"display_name": "x"},
    "PATCH /api/tenant/ssh": {"record_input": True},
    "POST /api/tenants": {"name": "made"},
    "PATCH /api/tenants/{tenant_id}": {"display_name": "x"},
    "PUT /api/members/{user_id}": {"role": "viewer"},
    "POST /api/invitations": {"email": "new@example.com", "role": "viewer"},
    "POST /api/invitations/accept": {"secret": "x"},
    "POST /api/exec": {"devices": ["*"], "host": "h", "username": "u", "command": "c"},
    "POST /api/devices": {"name": "made"},
    "POST /api/devices/bulk": {"ids": ["{device_id}"], "action": "disable"},
    "PATCH /api/devices/{device_id}": {"name": "other"},
    "PUT /api/devices/{device_id}/quarantine": {"reason": "x"},
    "POST /api/devices/{serial}/ssh-keys": {"key": SSH_KEY},
    "POST /api/devices/{device_id}/ssh-host-keys/accept": {"fingerprints": ["SHA256:x"]},
    "POST /api/devices/{device_id}/inspections": {"service": "web"},
    "PUT /api/devices/{device_id}/access": {"let_in": ["login"]},
    "PUT /api/devices/{device_id}/access/{service}": {"let_in": ["login"]},
    "POST /api/devices/{device_id}/links": {"service": "web"},
    "POST /api/pairings": {},
    "POST /api/pairings/find": {"code": "BCDF-GHJK"},
    "POST /api/pairings/{pairing_id}/approve": {"name": "made"},
    "POST /api/install-keys": {"name": "made"},
    "POST /api/install-keys/{key_id}/revoke": {"devices": "keep"},
    "POST /api/pairing/exchange": {"code": "BCDF-GHJK"},
    "POST /api/pairing/requests": {},
    "POST /api/pairing/requests/poll": {"secret": "x"},
    "POST /api/pairing/install": {"key": "x"},
    "POST /api/leases": {"device": "{device_id}", "services": ["web"], "seconds": 600},
    "POST /api/leases/{lease_id}/deny": {"reason": "x"},
    "POST /api/leases/{lease_id}/extend": {"seconds": 7200},
    "POST /api/leases/{lease_id}/end": {"reason": "x"},
    "POST /api/ssh-keys": {"key": SSH_KEY, "name": "x"},
    "POST /api/access-tokens": {"name": "made", "role": "viewer"},
}
"""A body that is valid, for each route that takes one as JSON."""


@dataclass
class Person:
    """A member of a tenant, with an access token that may all that the person may."""

    user_id: str
    tenant_id: str
    token: str


async def person(
    api: LiveApi, name: str, role: Role = "owner", *, tenant: str = "default"
) -> Person:
    """A person with this role; the tenant is made where there is none of that name."""
    registry = api.running.api.registry
    installation = registry.installation(TEST)
    known = {item.name: item for item in (await installation.tenants.page()).items}
    home = known.get(tenant) or await installation.tenants.add(tenant)
    user = await installation.users.sign_in(
        issuer="https://id.example.com", subject=name, email=f"{name}@example.com", name=name
    )
    await installation.users.grant(
        home.id, role, issuer=user.issuer, subject=user.subject, force=True
    )
    _, token = await registry.tenant(home.id, TEST).access_tokens.add(
        f"{name}'s", user_id=user.id, role=role, scopes=tuple(SCOPES)
    )
    return Person(user.id, home.id, token.reveal())


async def objects_of(api: LiveApi, owner: Person, mark: str = "secret") -> dict[str, str]:
    """One object of each kind in a tenant, by the name of its parameter in paths. `mark` is in
    all texts of these."""
    tenant = api.running.api.registry.tenant(owner.tenant_id, TEST)
    device, _ = await tenant.devices.add(f"{mark}-device", serial=f"{mark}-serial")
    pairing, _ = await tenant.pairings.make_code(name=f"{mark}-pairing")
    key, _ = await tenant.install_keys.add(f"{mark}-key", lifetime=3600, max_uses=1)
    invitation, _ = await tenant.invitations.add(f"{mark}@example.com", "viewer", lifetime=3600)
    link = await tenant.service_links.add(device.id, "web", lifetime=3600, once=False)
    token, _ = await tenant.access_tokens.add(f"{mark}-token", user_id=owner.user_id, role="viewer")
    now = datetime.now(UTC)
    terms = LeaseTerms(
        device_id=device.id,
        services=("ssh",),
        holder=owner.user_id,
        reason=f"{mark}-reason",
        starts=now,
        ends=now + timedelta(hours=1),
    )
    lease, _ = await tenant.leases.add(terms, approved=False)
    installation = api.running.api.registry.installation(TEST)
    own_key = SSH_KEY.replace("UtMQ", mark[:4])  # a key is one person's
    ssh_key = await installation.ssh_keys.add(owner.user_id, own_key, f"{mark}-ssh-key")
    device_key = await tenant.device_ssh_keys.add(device.id, own_key, 3600)
    recording = a_recording(device.id, owner.user_id)
    await tenant.recordings.begin(recording)
    return {
        "tenant_id": owner.tenant_id,
        "device_id": device.id,
        "pairing_id": pairing.id,
        "key_id": key.id,
        "invitation_id": invitation.id,
        "token_id": token.id,
        "link_id": link.id,
        "lease_id": lease.id,
        "device_key_id": device_key.id,
        "recording_id": recording.id,
        "ssh_key_id": ssh_key.id,
        "user_id": owner.user_id,
        "service": "web",
    }


def a_recording(device_id: str, user_id: str, **more: Any) -> Recorded:
    """A recording that begins now, with a file of a day."""
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "id": new_id(),
        "device_id": device_id,
        "device_label": "secret-device",
        "user_id": user_id,
        "user_name": "ada",
        "account": "root",
        "address": "192.0.2.7",
        "lease_id": "",
        "kind": "exec",
        "command": "secret-command",
        "gateway": "gw",
        "began": now,
        "expires": now + timedelta(days=1),
    }
    return Recorded(**(values | more))


async def everything(api: LiveApi, owner: Person) -> dict[str, Any]:
    """All that a tenant's owner can see, apart from the use of the token it is seen with."""
    return {
        path: (await api.call("GET", f"/api/{path}", owner.token)).json()
        for path in (
            "devices",
            "pairings",
            "install-keys",
            "invitations",
            "members",
            "leases",
            "recordings",
            "ssh-keys",
            "audit",
        )
    }
