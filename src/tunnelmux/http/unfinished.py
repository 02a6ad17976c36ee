"""How much of request heads that are not complete yet is held for the connections of one peer."""

from __future__ import annotations

from tunnelmux.http.refusal import Refusal, Refused

__all__ = ["UnfinishedHeads"]

_FREE = 4096
# Bytes of each head that do not count: few heads have more, and no flood of others keeps them out.


class UnfinishedHeads:
    """Counts their bytes, up to `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0
        """Bytes that are held now, without the first few of each head."""

    def hold(self, before: int, size: int) -> int:
        """A head, of which `before` bytes are counted, has `size`. Returns how many are counted
        now, to be given back with `release`. Raises Refused where that would be too many."""
        more = max(0, size - _FREE) - before
        if self.held + more > self._most:
            message = (
                f"Request heads that are not complete yet have {self._most} bytes together: try "
                "again in a moment, or raise limits.max_unfinished_heads."
            )
            raise Refused(Refusal(503, "device-busy", message, retry_after=1))
        self.held += more
        return before + more

    def release(self, counted: int) -> None:
        """That head is complete, or given up."""
        self.held -= counted
