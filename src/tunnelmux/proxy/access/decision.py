"""Decides whether a person may reach a service now, and names the rule.

It uses the gate's own code, for a person who is named instead of one who shows a cookie. So the
answer is always what the gate would do.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from tunnelmux.proxy.access.proofs import Grant, Sender
from tunnelmux.proxy.access.rules import Rule
from tunnelmux.sessions.decisions import DecidingRule, Decision

if TYPE_CHECKING:
    from tunnelmux.proxy.access.sign_in import SignIn

__all__ = ["decide"]


def decide(
    rule: Rule,
    sign_in: SignIn | None,
    grant: Grant,
    device: str,
    service: str | None,
    sender: Sender | None,
) -> Decision:
    """Whether this rule admits the person of this grant, from the sender's address; without a
    sender, from an address that the lists allow."""
    shown = _shown(rule)
    answer = partial(Decision, device=device, service=service or "", rule=shown)
    about = f"{_where(rule, device, service)} {_let_in(rule)}"

    def no(why: str) -> Decision:
        return answer(allowed=False, reason=f"No: {about}; {why}.")

    if sender is not None and not rule.addresses.admit(sender.address):
        return no(f"it does not allow the address {sender.address}")
    if "public" in rule.ways:
        return answer(allowed=True, by="public", reason=f"Yes: {about}.")
    if sign_in is None or not {"login", "lease"} & rule.ways:
        return no("signing in does not help there")
    who = grant.email or grant.name or grant.user_id
    role = grant.roles.get(rule.tenant)
    if role is None:
        return no(f"{who} is no member of the tenant {rule.tenant}")
    if sign_in.admits(rule, grant, device):
        return answer(allowed=True, by="login", reason=f"Yes: {about}; {who} is {role}.")
    lease = sign_in.lease_for(rule, grant, device, service, sender)
    if lease is None:
        lacks = f"{who} is {role}" if "login" in rule.ways else ""
        if "lease" in rule.ways:
            lacks += f"{' and' if lacks else who} has no lease of it that runs now"
        return no(lacks)
    return answer(
        allowed=True,
        by="lease",
        until=lease.ends.astimezone(UTC),
        lease=lease.id,
        reason=f"Yes: {about}; {who} has a lease until {_moment(lease.ends)}.",
    )


def _shown(rule: Rule) -> DecidingRule:
    said = rule.said
    return DecidingRule(
        source=rule.place.source,
        scope=rule.place.scope,
        let_in=list(said.let_in),
        roles=list(said.roles),
        people=list(said.people),
        allow_from=list(said.allow_from),
        deny_from=list(said.deny_from),
    )


def _where(rule: Rule, device: str, service: str | None) -> str:
    place = rule.place
    if place.source == "default":
        return "no rule is written for it, so it"
    where = "proxy.toml" if place.source == "proxy.toml" else "the registry"
    if place.scope == "all":
        return f"the rule for all devices in {where}"
    what = f"{service} of {device}" if place.scope == "service" else f"all services of {device}"
    return f"the rule for {what} in {where}"


def _let_in(rule: Rule) -> str:
    """Who a rule lets in, as text."""
    said = rule.said
    if not rule.ways:
        return "lets in no visitors"
    members = "members who sign in"
    if said.roles:
        members = f"members with the role {' or '.join(said.roles)}"
        members += " and those that it names" if said.people else ""
    elif said.people:
        members = "those members that it names"
    words = {
        "public": "everybody",
        "login": members,
        "lease": "people whose lease of it runs",
        "link": "holders of a link to it",
        "basic": "users with a password",
        "token": "programs with a token",
    }
    text = "lets in " + ", ".join(words[way] for way in said.let_in)
    if said.allow_from:
        text += f", from {', '.join(said.allow_from)} only"
    if said.deny_from:
        text += f", not from {', '.join(said.deny_from)}"
    return text


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
