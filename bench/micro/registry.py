"""The registry with 10,000 devices: a page of a list, and a token looked up.

On SQLite, and on the empty PostgreSQL database that TUNNELMUX_BENCH_POSTGRESQL names, when it does.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime

import sqlalchemy as sa
import trio

from tunnelmux.config import Secret
from tunnelmux.registry import Actor, DeviceFilter, Registry, new_id, open_registry
from tunnelmux.registry.sql import schema, upgrade_database
from tunnelmux.registry.sql.database import Database

DEVICES = 10_000
CALLS = 200
WRITES = 100
Figures = Iterator[tuple[str, float, str]]


def run() -> Figures:
    with tempfile.TemporaryDirectory(prefix="tunnelmux-bench-") as folder:
        yield from measure("SQLite", f"sqlite:///{folder}/registry.db")
    if url := os.environ.get("TUNNELMUX_BENCH_POSTGRESQL"):
        yield from measure("PostgreSQL", url)


def measure(kind: str, url: str) -> Figures:
    upgrade_database(Secret(url))
    database = Database(Secret(url), connections=1, timeout=60)
    tenant_id, digests = database.run_here(fill, write=True)
    lookup = sa.select(schema.credentials.c.device_id).where(
        schema.credentials.c.digest == sa.bindparam("digest")
    )

    def statements(connection: sa.Connection) -> list[float]:
        times = []
        for digest in digests[:CALLS]:
            began = time.perf_counter()
            connection.execute(lookup, {"digest": digest}).one()
            times.append(time.perf_counter() - began)
        return times

    times = database.run_here(statements, write=False)
    database.close()
    yield f"{kind}: a token, the statement alone", 1000 * statistics.median(times), "ms"
    for what, figure in trio.run(calls, url, tenant_id, digests):
        yield f"{kind}: {what}", figure, "ms"


def fill(connection: sa.Connection) -> tuple[str, list[str]]:
    """A tenant with 10,000 devices, and one as large beside it; and the digests of the first's."""
    now = datetime.now(UTC)
    tenants = [new_id(), new_id()]
    zero = {"audit_number": 0, "audit_hash": "0" * 64, "created": now}
    rows = [{"id": key, "name": f"bench{key[-8:]}"} | zero for key in tenants]
    connection.execute(schema.tenants.insert(), rows)
    found: list[str] = []
    for tenant_id in tenants:
        ids = [new_id() for _ in range(DEVICES)]
        base = [{"tenant_id": tenant_id, "device_id": key} for key in ids]
        devices = [
            {
                "id": key,
                "tenant_id": tenant_id,
                "name": f"dev-{number:06d}",
                "label": f"dev-{number:06d}--{tenant_id[-12:]}",
                "labels": {"site": f"s{number % 50}"},
                "created": now,
            }
            for number, key in enumerate(ids)
        ]
        digests = [hashlib.sha256(key.encode()).hexdigest() for key in ids]
        credentials = [
            row | {"id": new_id(), "digest": digest, "state": "active", "created": now}
            for row, digest in zip(base, digests, strict=True)
        ]
        connection.execute(schema.devices.insert(), devices)
        connection.execute(schema.device_states.insert(), [row | {"services": []} for row in base])
        connection.execute(schema.credentials.insert(), credentials)
        found = found or digests
    connection.execute(sa.text("ANALYZE"))  # what autovacuum does after so many new rows
    return tenants[0], found


async def calls(url: str, tenant_id: str, digests: list[str]) -> list[tuple[str, float]]:
    async with open_registry(Secret(url), migrate=False) as registry:
        return await time_calls(registry, tenant_id, digests)


async def time_calls(
    registry: Registry, tenant_id: str, digests: list[str]
) -> list[tuple[str, float]]:
    devices = registry.tenant(tenant_id, by=Actor.program("bench")).devices
    page = await devices.page()
    site = DeviceFilter(labels=(("site", "s8"),))
    token = iter(digests)
    number = iter(range(CALLS))
    return [
        ("a page of 50", await median(devices.page)),
        ("the page behind it", await median(lambda: devices.page(after=page.next))),
        ("a page of 50 by label", await median(lambda: devices.page(where=site))),
        ("a token, from Trio and back", await median(lambda: registry.fleet.identify(next(token)))),
        (
            "a change with its audit",
            await median(lambda: devices.add(f"new-{next(number)}"), WRITES),
        ),
    ]


async def median(call: Callable[[], Awaitable[object]], times: int = CALLS) -> float:
    """Milliseconds of one call."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)
