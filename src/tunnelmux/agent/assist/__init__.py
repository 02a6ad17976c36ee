"""Remote assistance at the device: the switch, the leases it took, and who is told of them."""

from __future__ import annotations

from tunnelmux.agent.assist.desk import AssistDesk
from tunnelmux.agent.assist.offers import LeaseAnswer, LeaseOffer

__all__ = ["AssistDesk", "LeaseAnswer", "LeaseOffer"]
