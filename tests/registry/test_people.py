"""Users, members and invitations, on both databases."""

from __future__ import annotations

import json

import pytest
from structlog.testing import capture_logs

from support.registries import ANN, WallClock
from tunnelmux.config import Secret
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import Installation, Invitation, Registry, TenantRegistry, User

ISSUER = "https://id.example.com"


@pytest.fixture
def installation(registry: Registry) -> Installation:
    return registry.installation(by=ANN)


async def sign_in(installation: Installation, subject: str, **more: object) -> User:
    return await installation.users.sign_in(issuer=ISSUER, subject=subject, **more)  # type: ignore[arg-type]


async def test_a_user_is_issuer_and_subject_whatever_the_email(installation: Installation) -> None:
    ann = await sign_in(installation, "1", email="ann@example.com", name="Ann")
    again = await sign_in(installation, "1", email="ann@new.example.com", name="Ann N.")
    bob = await sign_in(installation, "2", email="ann@example.com")
    elsewhere = await installation.users.sign_in(issuer="https://else.example.com", subject="1")
    assert again.id == ann.id
    assert again.email == "ann@new.example.com"
    assert len({ann.id, bob.id, elsewhere.id}) == 3
    assert await installation.users.memberships(bob.id) == []


async def test_an_identity_is_never_cut_short(installation: Installation) -> None:
    with pytest.raises(RegistryRefused) as refused:
        await sign_in(installation, "x" * 256)
    assert refused.value.field == "subject"


async def test_the_first_owner_is_made_from_outside_once(
    installation: Installation, acme: TenantRegistry
) -> None:
    made = await installation.users.grant(acme.tenant_id, "owner", issuer=ISSUER, subject="1")
    assert isinstance(made, User)
    assert await acme.members.role_of(made.id) == "owner"
    with pytest.raises(RegistryRefused) as refused:
        await installation.users.grant(acme.tenant_id, "owner", issuer=ISSUER, subject="2")
    assert refused.value.code == "has_owner"
    await installation.users.grant(acme.tenant_id, "owner", issuer=ISSUER, subject="2", force=True)
    assert len((await acme.members.page()).items) == 2


async def test_a_role_by_email_waits_for_that_verified_email_at_that_issuer(
    installation: Installation, acme: TenantRegistry
) -> None:
    waiting = await installation.users.grant(
        acme.tenant_id, "owner", issuer=ISSUER, email="ann@example.com"
    )
    assert isinstance(waiting, Invitation)
    other = await installation.users.sign_in(
        issuer="https://else.example.com",
        subject="9",
        email="ann@example.com",
    )
    unproven = await sign_in(installation, "8")
    ann = await sign_in(installation, "1", email="Ann@Example.com")
    assert await acme.members.role_of(other.id) is None
    assert await acme.members.role_of(unproven.id) is None
    assert await acme.members.role_of(ann.id) == "owner"
    later = await sign_in(installation, "7", email="ann@example.com")
    assert await acme.members.role_of(later.id) is None


async def test_an_invitation_works_once_and_never_lowers_a_role(
    installation: Installation, acme: TenantRegistry, clock: WallClock
) -> None:
    ann, bob = await sign_in(installation, "1"), await sign_in(installation, "2")
    _, secret = await acme.invitations.add("ann@example.com", "operator", lifetime=60)
    membership = await installation.users.accept_invitation(ann.id, secret)
    assert (membership.tenant_name, membership.role) == ("acme", "operator")
    for user, given, code in (
        (bob, secret, "invitation_used"),
        (bob, Secret("tmi_no"), "invitation_unknown"),
    ):
        with pytest.raises(RegistryRefused) as refused:
            await installation.users.accept_invitation(user.id, given)
        assert refused.value.code == code
    _, lower = await acme.invitations.add("ann@example.com", "viewer", lifetime=60)
    assert (await installation.users.accept_invitation(ann.id, lower)).role == "operator"
    invitation, late = await acme.invitations.add("bob@example.com", "viewer", lifetime=60)
    clock.pass_time(61)
    with pytest.raises(RegistryRefused) as refused:
        await installation.users.accept_invitation(bob.id, late)
    assert refused.value.code == "invitation_expired"
    await acme.invitations.revoke(invitation.id)
    with pytest.raises(RegistryRefused) as refused:
        await installation.users.accept_invitation(bob.id, late)
    assert refused.value.code == "invitation_unknown"


async def test_a_tenant_keeps_an_owner(installation: Installation, acme: TenantRegistry) -> None:
    ann = await installation.users.grant(acme.tenant_id, "owner", issuer=ISSUER, subject="1")
    for attempt in (acme.members.set_role(ann.id, "admin"), acme.members.remove(ann.id)):
        with pytest.raises(RegistryRefused) as refused:
            await attempt
        assert refused.value.code == "last_owner"
    bob = await installation.users.grant(
        acme.tenant_id, "owner", issuer=ISSUER, subject="2", force=True
    )
    await acme.members.remove(ann.id)
    assert [member.user.id for member in (await acme.members.page()).items] == [bob.id]
    with pytest.raises(NoSuchRecord):
        await acme.members.set_role(ann.id, "viewer")


async def test_claims_make_and_take_memberships_and_leave_granted_ones(
    installation: Installation, acme: TenantRegistry, other: TenantRegistry
) -> None:
    ann = await sign_in(installation, "1", claims={"acme": "operator", "no-such": "owner"})
    assert await acme.members.role_of(ann.id) == "operator"
    await installation.users.grant(other.tenant_id, "admin", issuer=ISSUER, subject="1", force=True)
    await sign_in(installation, "1", claims={"other": "viewer"})
    assert await acme.members.role_of(ann.id) is None
    assert await other.members.role_of(ann.id) == "admin"
    assert [m.source for m in await installation.users.memberships(ann.id)] == ["grant"]


async def test_the_last_owner_by_a_claim_ends_with_it_and_that_is_said(
    installation: Installation, acme: TenantRegistry, other: TenantRegistry
) -> None:
    """The provider decides: who is owner no more there must not stay it here."""
    ann = await sign_in(installation, "1", claims={"acme": "owner", "other": "owner"})
    bob = await sign_in(installation, "2", claims={"other": "owner"})
    with capture_logs() as lines:
        await sign_in(installation, "1", claims={"acme": "viewer"})
    assert await acme.members.role_of(ann.id) == "viewer"
    (line,) = [line for line in lines if line["event"] == "tenant without owner"]
    assert (line["log_level"], line["tenant"], line["user"]) == ("warning", "acme", ann.id)
    assert "admin grant --tenant acme" in line["fix"]
    last = (await acme.audit.export())[-1]
    assert (last.action, json.loads(last.before)) == ("tenant.without_owner", {"owner": ann.id})
    assert await other.members.role_of(bob.id) == "owner"
    assert (await acme.audit.verify()).broken_at is None
    # The way out.
    await installation.users.grant(acme.tenant_id, "owner", issuer=ISSUER, subject="3")


async def test_a_disabled_user_is_nothing_and_cannot_sign_in(
    installation: Installation, acme: TenantRegistry
) -> None:
    ann = await installation.users.grant(acme.tenant_id, "owner", issuer=ISSUER, subject="1")
    await installation.users.set_enabled(ann.id, False)
    assert await acme.members.role_of(ann.id) is None
    with pytest.raises(RegistryRefused) as refused:
        await sign_in(installation, "1")
    assert refused.value.code == "user_disabled"
    await installation.users.set_enabled(ann.id, True)
    assert await acme.members.role_of(ann.id) == "owner"


async def test_another_tenants_members_and_invitations_do_not_exist(
    installation: Installation, acme: TenantRegistry, other: TenantRegistry
) -> None:
    ann = await installation.users.grant(acme.tenant_id, "owner", issuer=ISSUER, subject="1")
    invitation, _ = await acme.invitations.add("bob@example.com", "viewer", lifetime=60)
    assert (await other.members.page()).items == []
    assert (await other.invitations.page()).items == []
    for attempt in (
        other.members.set_role(ann.id, "viewer"),
        other.members.remove(ann.id),
        other.invitations.revoke(invitation.id),
    ):
        with pytest.raises(NoSuchRecord):
            await attempt
