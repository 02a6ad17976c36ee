"""What the audit keeps of long details, and what it says of the rest."""

from __future__ import annotations

import hashlib
import json

from support.registries import WallClock, add_lease
from tunnelmux.registry import Registry, TenantRegistry, shortened
from tunnelmux.registry.audit_details import MOST_TEXT


async def test_of_a_long_text_the_audit_tells_length_and_digest(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    lease = await add_lease(acme, clock, approved=True)
    await registry.fleet.answer_lease(lease.id, lease.device_id, given=True)
    command = "echo \u00e9; " * 1000
    short = {"kind": "exec", "account": "root", "recording": "r1", "reason": "the person left"}
    details: dict[str, object] = {**short, "text": command, "to_device": 5, "from_device": 7}
    entry = await acme.leases.note(lease.id, "session", details)
    kept = json.loads(entry.after)
    assert command.startswith(kept["text"])
    # What the short ones leave of the room is the long one's.
    assert len(kept["text"]) == MOST_TEXT - sum(map(len, short.values()))
    assert kept["text_length"] == len(command)
    digest = hashlib.sha256(command.encode()).hexdigest()
    assert kept["text_sha256"] == digest
    assert {key: kept[key] for key in short} == short
    assert (kept["to_device"], kept["from_device"]) == (5, 7)
    await acme.leases.use(lease.id, {"text": "x" * MOST_TEXT})
    used = json.loads((await acme.leases.report(lease.id))[-1].after)
    assert used == {"text": "x" * MOST_TEXT, "uses": 1}


def test_long_texts_share_the_room() -> None:
    kept = shortened({"a": "a" * 9000, "b": "b" * 9000, "c": "c" * 96, "d": [1]})
    assert [len(str(kept[key])) for key in "abc"] == [2000, 2000, 96]
    assert (kept["a_length"], kept["b_length"], kept["d"]) == (9000, 9000, [1])
    assert "c_length" not in kept
