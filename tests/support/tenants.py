"""People and programs of a tenant, made in the registry as signing in and inviting would."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from support.apis import LiveApi
from tunnelmux.api.access import SCOPES
from tunnelmux.registry import Actor, LeaseTerms, Recorded, Role, new_id

__all__ = ["HOST_KEYS", "TEST", "Person", "a_recording", "everything", "objects_of", "person"]

TEST = Actor.program("tests")

SSH_KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHV8UtMQ1eUuXHUDYhAvEMNpVIFzRHnbCxR4lEGFIzNq ada@work"
)

HOST_KEYS = tuple("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + mark * 43 for mark in "AB")
"""What the SSH server of a device shows, before and after it was installed anew."""


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


async def objects_of(api: LiveApi, owner: Person) -> dict[str, str]:
    """One object of each kind in a tenant, by the name of its parameter in paths."""
    tenant = api.running.api.registry.tenant(owner.tenant_id, TEST)
    device, _ = await tenant.devices.add("secret-device", serial="secret-serial")
    pairing, _ = await tenant.pairings.make_code(name="secret-pairing")
    key, _ = await tenant.install_keys.add("secret-key", lifetime=3600, max_uses=1)
    invitation, _ = await tenant.invitations.add("secret@example.com", "viewer", lifetime=3600)
    link = await tenant.service_links.add(device.id, "web", lifetime=3600, once=False)
    token, _ = await tenant.access_tokens.add("secret-token", user_id=owner.user_id, role="viewer")
    now = datetime.now(UTC)
    terms = LeaseTerms(
        device_id=device.id,
        services=("ssh",),
        holder=owner.user_id,
        reason="secret-reason",
        starts=now,
        ends=now + timedelta(hours=1),
    )
    lease, _ = await tenant.leases.add(terms, approved=False)
    installation = api.running.api.registry.installation(TEST)
    ssh_key = await installation.ssh_keys.add(owner.user_id, SSH_KEY, "secret-ssh-key")
    device_key = await tenant.device_ssh_keys.add(device.id, SSH_KEY, 3600)
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
