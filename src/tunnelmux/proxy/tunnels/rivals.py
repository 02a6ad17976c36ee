"""Two agents with one credential, such as a device whose disk was cloned.

Each connects, replaces the other's session, and is replaced in turn. A device that merely connects
again does not look like that: its old process never comes back after its new one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Rivals"]

_REMEMBERED = 4
# Processes of one device that were replaced, the latest of them: more clones than that replace each
# other as well, only somewhat later.

_LONGEST_INSTANCE = 64
# Characters of a process's name; ours have 16.


@dataclass(slots=True)
class _Line:
    """What is known of one device's processes."""

    instance: str
    address: str
    replaced: list[str] = field(default_factory=list)


class Rivals:
    """Watches which process of a device replaces which. Bounded by the devices that may connect."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def connected(
        self, device: str, instance: str | None, address: str, *, others_live: bool
    ) -> str | None:
        """Note that a process of this device was let in, from `address`.

        `others_live` says whether there is a session of the device that it replaces. Answers the
        address of the process before it when these two replace each other in turn; else None. An
        agent that does not name its process is never told from another.
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
        """Drop what is kept of a device that may not connect any more."""
        self._lines.pop(device, None)
