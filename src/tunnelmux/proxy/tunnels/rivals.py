"""Detect two agents with one credential, as after cloning a device's disk. Each replaces the
other's session in turn. A device that merely reconnects differs: its old process never connects
after its new one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Rivals"]

_REMEMBERED = 4
# The latest replaced processes of a device that are remembered; with more clones than this,
# detection takes longer.

_LONGEST_INSTANCE = 64
# Characters of a process's random name; ours have 16.


@dataclass(slots=True)
class _Line:
    """The known processes of one device."""

    instance: str
    address: str
    replaced: list[str] = field(default_factory=list)


class Rivals:
    """Remembers which process of a device replaced which. Its memory is bounded by the devices that
    may connect.
    """

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def connected(
        self, device: str, instance: str | None, address: str, *, others_live: bool
    ) -> str | None:
        """Record that a process of this device connected from `address`. `others_live` says whether
        it replaces a session. Returns the address of the process before it when the two replace
        each other in turn, else None. Agents that send no process name are not distinguished.
        """
        if not instance or len(instance) > _LONGEST_INSTANCE:
            return None
        line = self._lines.get(device)
        if line is None:
            self._lines[device] = _Line(instance, address)
            return None
        before, came_from = line.instance, line.address
        line.instance, line.address = instance, address
        if before == instance:
            return None
        if not others_live:
            return None
        rival = came_from if instance in line.replaced else None
        line.replaced = [*(one for one in line.replaced if one != before), before]
        del line.replaced[:-_REMEMBERED]
        return rival

    def forget(self, device: str) -> None:
        """Remove the entry of a device that may not connect any more."""
        self._lines.pop(device, None)
