"""How many of a peer's records of TLS bring no data.

A KeyUpdate (RFC 8446 section 4.6.3) costs its reader as much as 20 KB of data, so a peer that sends
many of them would keep all others waiting. Records are counted and not bytes: a peer may pad its
records up to their largest size (section 5.4), so that it sends much beside its data.
"""

from ssl import SSLObject
from typing import final

@final
class RecordWatch:
    """One peer's records, from its first one on: who takes a connection over needs the watch too.

    What does not look like a record ends the count. The TLS library refuses it too, but for a hello
    of SSL 2, whose sender is not read on.
    """

    def __init__(self) -> None: ...
    def add(self, data: bytes | bytearray | memoryview) -> None:
        """These bytes of records came."""
    def add_data(self, size: int, *, is_new: bool = True) -> None:
        """So many bytes of data were decrypted, with `is_new` the first ones of their record."""
    def judge(self, tls: SSLObject) -> bool:
        """Whether the peer may be read on. Call it when all complete records were decrypted."""
    @property
    def is_over(self) -> bool:
        """Whether the peer has sent too many."""

def watch_for(tls: SSLObject) -> RecordWatch:
    """The watch over the peer of this TLS object, the same one each time. First asked for
    after its handshake, it may begin within a record, and then it counts none."""
