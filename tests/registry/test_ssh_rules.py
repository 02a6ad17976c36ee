"""A tenant's rules for SSH, and whom a certificate by its authority is about, on both databases."""

from __future__ import annotations

import base64
import struct

import pytest

from support.registries import ANN
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import Registry, SshRules, TenantRegistry, parse_public_key


def key(letter: bytes) -> str:
    blob = b"".join(struct.pack(">I", len(part)) + part for part in (b"ssh-ed25519", letter * 32))
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


async def member(registry: Registry, tenant: TenantRegistry, name: str, email: str) -> str:
    users = registry.installation(ANN).users
    person = await users.sign_in(issuer="https://id.example.com", subject=name, email=email)
    await users.grant(
        tenant.tenant_id, "viewer", issuer=person.issuer, subject=person.subject, force=True
    )
    return person.id


async def test_a_tenant_says_how_its_sessions_are_recorded(
    acme: TenantRegistry, other: TenantRegistry
) -> None:
    assert await acme.ssh.find() == SshRules()
    changed = await acme.ssh.change(record_input=True)
    assert changed == await acme.ssh.find() == SshRules(record_input=True)
    assert (await acme.ssh.change(on_recording_failure="continue")).record_input
    assert await other.ssh.find() == SshRules()
    (last, *_) = (await acme.audit.page(limit=1)).items
    assert last.action == "tenant.change_ssh"
    before = (await acme.audit.page(limit=1)).items
    await acme.ssh.change(on_recording_failure="continue")
    assert (await acme.audit.page(limit=1)).items == before


async def test_a_tenant_says_from_where_its_people_may_come(acme: TenantRegistry) -> None:
    changed = await acme.ssh.change(addresses=["192.0.2.0/24", "2001:db8::1"])
    assert changed == await acme.ssh.find()
    assert changed.addresses == ("192.0.2.0/24", "2001:db8::1/128")
    assert (await acme.ssh.change(record_input=True)).addresses == changed.addresses
    for wrong in (["here"], ["192.0.2.1/24"], ["192.0.2.0/24"] * 33):
        with pytest.raises(RegistryRefused) as refused:
            await acme.ssh.change(addresses=wrong)
        assert (refused.value.code, refused.value.field) == ("invalid", "addresses")
    assert (await acme.ssh.change(addresses=[])).addresses == ()


async def test_a_certificate_is_about_the_one_member_of_the_tenant_that_trusts_it(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry
) -> None:
    keys = registry.installation(ANN).ssh_keys
    bob = await member(registry, acme, "bob", "Bob@example.com")
    await member(registry, other, "eve", "eve@example.com")
    authority = parse_public_key(key(b"A")).fingerprint
    assert await keys.certified(authority, ["bob@example.com"]) is None
    await acme.ssh.change(user_authorities=[key(b"A") + " comment", key(b"A")])
    assert (await acme.ssh.find()).user_authorities == (key(b"A"),)
    assert await acme.ssh.trusts(authority)
    assert not await other.ssh.trusts(authority)
    found = await keys.certified(authority, ["root", "BOB@example.com"])
    assert found is not None
    assert (found.tenant_id, found.user_id) == (acme.tenant_id, bob)
    # No member there, more than one, nobody, or disabled.
    assert await keys.certified(authority, ["eve@example.com"]) is None
    assert await keys.certified(authority, []) is None
    assert await keys.certified(authority, [""]) is None  # a member without an address
    await member(registry, acme, "bob2", "bob@example.com")
    assert await keys.certified(authority, ["bob@example.com"]) is None
    ann = await member(registry, acme, "ann", "ann@example.com")
    assert await keys.certified(authority, ["ann@example.com"]) is not None
    await registry.installation(ANN).users.set_enabled(ann, False)
    assert await keys.certified(authority, ["ann@example.com"]) is None
    await acme.ssh.change(user_authorities=[])
    assert not await acme.ssh.trusts(authority)
    with pytest.raises(RegistryRefused, match="is no SSH public key"):
        await acme.ssh.change(user_authorities=["secret"])
    with pytest.raises(RegistryRefused, match="at most 10"):
        await acme.ssh.change(user_authorities=[key(bytes([65 + n])) for n in range(11)])
