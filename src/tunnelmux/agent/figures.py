"""The counters of an agent, and the state of its session, as plain numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from typing import NamedTuple

from tunnelmux.errors import ConfigError, ConnectError, ConnectRefused
from tunnelmux.http import REASONS
from tunnelmux.mux import Session

__all__ = ["AgentFigures", "TargetFailure"]


class TargetFailure(NamedTuple):
    """A failure of a service's target."""

    service: str
    reason: str
    """One of `http.refusal.REASONS`, such as target-refused."""


class AgentFigures:
    """The counters of one agent since its start."""

    def __init__(self) -> None:
        self.sessions = 0
        """Sessions with the proxy, including the present ones."""
        self.reconnects = 0
        """Sessions that followed an earlier one."""
        self.connect_failures: Counter[str] = Counter()
        """Failed attempts to make one, by the proxy's reason, `unreachable` or `configuration`."""
        self.streams = 0
        """Streams of visitors, including the present ones."""
        self.relays: Counter[str] = Counter()
        """Ended raw connections to targets, by outcome: `finished` or `broken`."""
        self.requests: Counter[str] = Counter()
        """Requests that the agent itself forwarded, by class of status."""
        self.target_failures: Counter[TargetFailure] = Counter()
        self.last_failures: dict[TargetFailure, datetime] = {}
        self.changed_at = datetime.now(UTC)
        """When the present session began or the last one ended."""
        self.why = "no attempt has been made yet"
        """Why there is no session; empty while there is one."""
        self._live: list[Session] = []
        self._bytes_to_proxy = 0
        self._bytes_from_proxy = 0
        self._window_stalls = 0

    # -- the session ------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Whether there is a session now."""
        return bool(self._live)

    @property
    def sessions_now(self) -> int:
        """Sessions that are up."""
        return len(self._live)

    @property
    def bytes_to_proxy(self) -> int:
        """Bytes of all sessions, counted as in the proxy's metrics."""
        return self._bytes_to_proxy + sum(session.bytes_sent for session in self._live)

    @property
    def bytes_from_proxy(self) -> int:
        """The same in the other direction."""
        return self._bytes_from_proxy + sum(session.bytes_received for session in self._live)

    @property
    def window_stalls(self) -> int:
        """How often a stream of any session waited because the proxy had not read."""
        return self._window_stalls + sum(session.window_stalls for session in self._live)

    def session_began(self, session: Session, *, again: bool) -> None:
        """Record a new session; `again` when there was one before it that it follows."""
        self.sessions += 1
        self.reconnects += again
        self._live.append(session)
        self.why = ""
        self.changed_at = datetime.now(UTC)

    def session_ended(self, session: Session, why: str) -> None:
        """Record the end of a session."""
        self._live.remove(session)
        self._bytes_to_proxy += session.bytes_sent
        self._bytes_from_proxy += session.bytes_received
        self._window_stalls += session.window_stalls
        if not self._live:
            self.changed_at = datetime.now(UTC)
            self.why = why

    def attempt_failed(self, error: ConnectError | ConfigError) -> None:
        """Count a failed attempt. The time since when there is no session stays unchanged."""
        reason = "unreachable" if isinstance(error, ConnectError) else "configuration"
        if isinstance(error, ConnectRefused) and error.reason in REASONS:
            reason = error.reason
        self.connect_failures[reason] += 1
        self.why = str(error)

    # -- the targets ------------------------------------------------------------------------

    def target_failed(self, service: str, reason: str) -> None:
        """Count a target that refused, broke or did not answer. Other reasons do not count."""
        if not reason.startswith("target-"):
            return
        failure = TargetFailure(service, reason)
        self.target_failures[failure] += 1
        self.last_failures[failure] = datetime.now(UTC)

    def keep_services(self, names: Collection[str]) -> None:
        """Remove the counters of services that are not declared any more."""
        for failure in [one for one in self.target_failures if one.service not in names]:
            del self.target_failures[failure]
            del self.last_failures[failure]

    def request_served(self, status: int) -> None:
        """Count a request; `status` is 0 where the visitor left before the answer."""
        self.requests[f"{status // 100}xx" if status else "none"] += 1
