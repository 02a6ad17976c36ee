"""The limits of api.toml reach the registry."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from support.apis import live_api
from support.registries import ANN
from tunnelmux.config.api import ApiLimits
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import RecordLimits

AUDIT = {"audit_per_day": 11, "audit_per_day_of_tenant": 10}


async def test_each_key_is_the_limit_of_its_kind(tmp_path: Path) -> None:
    kinds = [name for name in asdict(RecordLimits()) if name not in AUDIT]
    chosen = {name: number for number, name in enumerate(kinds, 20)}
    limits = ApiLimits(**{f"max_{name}": number for name, number in chosen.items()})
    async with live_api(tmp_path, limits=limits, registry=AUDIT) as api:
        database = api.running.api.registry._database  # type: ignore[attr-defined]
        assert asdict(database.limits) == chosen | AUDIT


async def test_what_one_tenant_writes_into_its_audit_is_bounded_by_the_key(tmp_path: Path) -> None:
    async with live_api(tmp_path, registry=AUDIT) as api:
        registry = api.running.api.registry
        tenant = await registry.installation(ANN).tenants.find_named("default")
        devices = registry.tenant(tenant.id, by=ANN).devices
        for number in range(5):  # two entries each
            await devices.add(f"cam{number}")
        with pytest.raises(RegistryRefused, match="10 changes of one tenant"):
            await devices.add("cam5")
