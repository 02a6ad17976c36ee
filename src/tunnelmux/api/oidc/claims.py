"""Which memberships a provider's claims give, by the settings `tenant_claim` and `role_claim`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunnelmux.config.api import OIDCConfig
from tunnelmux.registry import ROLES, Role

__all__ = ["memberships_of"]

_MOST_VALUES = 1000
# Groups of one claim that are read; more are ignored.


def memberships_of(claims: Mapping[str, Any], config: OIDCConfig) -> dict[str, Role] | None:
    """The roles by tenant name; None where the configuration maps no claims at all.

    Of several rows that fit, the highest role counts. A value without a row gives nothing.
    """
    if config.role_claim is None:
        return None
    values = set(_texts(claims.get(config.role_claim)))
    own_tenants = _texts(claims.get(config.tenant_claim)) if config.tenant_claim else []
    given: dict[str, Role] = {}
    for row in config.roles:
        if row.value not in values:
            continue
        for tenant in [row.tenant] if row.tenant is not None else own_tenants:
            known = given.get(tenant)
            if known is None or ROLES.index(row.role) > ROLES.index(known):
                given[tenant] = row.role
    return given


def _texts(value: object) -> list[str]:
    """A claim is one text or a list of them; anything else counts as absent."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [item for item in value[:_MOST_VALUES] if isinstance(item, str)]
    return []
