"""Remote assistance at the device: the switch, the accepted leases, and their publication."""

from __future__ import annotations

from tunnelmux.agent.assist.desk import AssistDesk
from tunnelmux.agent.assist.offers import LeaseAnswer, LeaseOffer

__all__ = ["AssistDesk", "LeaseAnswer", "LeaseOffer"]
