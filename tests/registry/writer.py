"""A process that writes to a registry, for tests of two at once and of one that dies.

`python writer.py URL TENANT add NAME COUNT` adds devices; `… hold` is killed in a transaction;
`… fill` writes until the disk is full, and prints what it is told.
"""

from __future__ import annotations

import sys
import time

import trio

from tunnelmux.config import Secret
from tunnelmux.errors import RegistryError
from tunnelmux.registry import Actor, TenantRegistry, open_registry
from tunnelmux.registry.sql import devices

ACTOR = Actor.program("writer")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def add(tenant: TenantRegistry, name: str, count: int) -> None:
    for number in range(count):
        await tenant.devices.add(f"{name}-{number}")
    say(f"added {count}")


async def hold(tenant: TenantRegistry) -> None:
    """Add a device, and stop for ever before its transaction ends."""

    def stop(*_: object, **__: object) -> None:
        say("inside")
        time.sleep(600)

    devices.find_device = stop  # type: ignore[assignment]  # what `add` does last
    await tenant.devices.add("half")


async def fill(tenant: TenantRegistry) -> None:
    number = 0
    try:
        while True:
            await tenant.devices.add(f"full-{number}", labels={"padding": "x" * 250})
            number += 1
    except RegistryError as error:
        say(f"{type(error).__name__} {error}")
    count, check = await tenant.devices.count(), await tenant.audit.verify()
    say(f"kept {count == number} {check.problem == ''}")


async def main() -> None:
    url, tenant_id, task, *arguments = sys.argv[1:]
    async with open_registry(Secret(url), timeout=20) as registry:
        if tenant_id == "default":
            tenants = registry.installation(ACTOR).tenants
            tenant_id = (await tenants.find_named("default")).id
        tenant = registry.tenant(tenant_id, by=ACTOR)
        if task == "add":
            await add(tenant, arguments[0], int(arguments[1]))
        elif task == "hold":
            await hold(tenant)
        else:
            await fill(tenant)


if __name__ == "__main__":
    trio.run(main)
