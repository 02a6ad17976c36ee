"""The state of a device in one word, with its reason and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

__all__ = ["Condition", "condition_of"]


@dataclass(frozen=True, slots=True)
class Condition:
    """A device's state as people read it."""

    mark: Literal["online", "offline", "refused"]
    """Which of the three dots stands beside it."""
    word: str
    reason: str
    """Why it is not online; empty while it is."""
    since: datetime | None
    advice: str = ""
    """What to do about it."""


def condition_of(
    *, enabled: bool, quarantine: str, online: bool, since: datetime | None, reason: str
) -> Condition:
    """The condition of a device. The first obstacle decides: a device that is refused cannot be
    online.
    """
    if quarantine:
        return Condition(
            "refused", "in quarantine", quarantine, since, "Release it to let it connect again."
        )
    if not enabled:
        advice = "Enable it to let it connect again."
        return Condition("refused", "disabled", "an operator disabled it", since, advice)
    if online:
        return Condition("online", "online", "", since)
    if since is None:
        advice = "Pair it, and look at the agent's log on the device: tunnelmux-agent check."
        return Condition("offline", "never seen", "it has not connected yet", None, advice)
    advice = "Look whether the device has power and a network; its agent dials by itself."
    return Condition("offline", "offline", reason or "its tunnel ended", since, advice)
