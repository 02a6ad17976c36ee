"""The agent: the daemon on a device. It dials the proxy and serves the device's declared
services.
"""

from __future__ import annotations

from tunnelmux.agent.app import RunningAgent, run_agent
from tunnelmux.agent.refusal import AgentRefused

__all__ = ["AgentRefused", "RunningAgent", "run_agent"]
