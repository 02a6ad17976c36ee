"""Recordings in SQL."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.registry.ids import Page
from tunnelmux.registry.recordings import Recorded, RecordedEnd, Recording, Recordings
from tunnelmux.registry.sql import paging, schema
from tunnelmux.registry.sql.devices import find_device
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes

__all__ = ["SqlRecordings"]

_R = schema.recordings

_LONGEST_COMMAND = 4096
# Characters of a command in the list: the audit of its lease and the gateway's file have all of it.


class SqlRecordings(Repository, Recordings):
    """See `Recordings`."""

    @writes
    def begin(self, tx: Transaction, recorded: Recorded) -> None:
        find_device(tx, recorded.device_id)
        values = asdict(recorded)
        # A terminal may send characters that a database does not accept in a text.
        values["command"] = recorded.command.replace("\0", "�")[:_LONGEST_COMMAND]
        tx.insert(_R, **values)
        after = {name: values[name] for name in ("user_id", "device_id", "account", "kind")}
        tx.record(
            "recording.begin", "recording", recorded.id, after=after | {"lease": recorded.lease_id}
        )

    @writes
    def end(self, tx: Transaction, recording_id: str, end: RecordedEnd) -> None:
        tx.one(_R, recording_id, "recording")
        values = asdict(end)
        tx.update(_R, _R.c.id == recording_id, **values)
        tx.record("recording.end", "recording", recording_id, after=values)

    @reads
    def find(self, tx: Transaction, recording_id: str) -> Recording:
        return _recording(tx.one(_R, recording_id, "recording"))

    @reads
    def page(
        self,
        tx: Transaction,
        *,
        device_id: str | None = None,
        user_id: str | None = None,
        lease_id: str | None = None,
        text: str = "",
        limit: int = 50,
        after: str | None = None,
    ) -> Page[Recording]:
        query = tx.select(_R)
        for column, wanted in (
            (_R.c.device_id, device_id),
            (_R.c.user_id, user_id),
            (_R.c.lease_id, lease_id),
        ):
            if wanted is not None:
                query = query.where(column == wanted)
        if text:
            searched = (_R.c.device_label, _R.c.user_name, _R.c.account, _R.c.command)
            query = query.where(
                sa.or_(*(column.icontains(text, autoescape=True) for column in searched))
            )
        return paging.descending(tx, query, _R.c.id, _recording, limit=limit, after=after)

    @writes
    def note_read(self, tx: Transaction, recording_id: str) -> Recording:
        recording = _recording(tx.one(_R, recording_id, "recording"))
        tx.record("recording.read", "recording", recording_id)
        return recording


def _recording(row: Row[Any]) -> Recording:
    return Recording(**{name: getattr(row, name) for name in Recording.__dataclass_fields__})
