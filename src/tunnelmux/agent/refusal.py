"""Refusals that end the agent, because trying again with the same settings cannot help."""

from __future__ import annotations

from tunnelmux.errors import ConnectError, ConnectRefused

__all__ = ["AgentRefused", "refused_for_good"]


class AgentRefused(ConnectError):
    """The proxy refuses this agent; the message says what a person has to do.

    `reason` is the proxy's `Tunnelmux-Reason`, or None when there was no answer to carry one.
    """

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message, retryable=False)
        self.reason = reason


_FIXES = {
    "device-disabled": "enable the device in the proxy's configuration, then start the agent again",
    "device-replaced": "nothing on this machine was changed",
    "name-taken": "the join line was not used up",
    "token-expired": "ask for a new join line and give it with --join, or in the configuration",
}


def refused_for_good(error: ConnectError, *, credential: str) -> AgentRefused:
    """The AgentRefused for an unretryable `error`; `credential` names the source of the token."""
    if not isinstance(error, ConnectRefused):
        return AgentRefused(str(error))
    fix = _FIXES.get(error.reason or "")
    if fix is None:
        fix = (
            f"check {credential} against the proxy's [[devices]]"
            if error.status == 401
            else "ask the proxy's operator why this device may not connect"
        )
    return AgentRefused(f"{error}; {fix}", reason=error.reason)
