"""What an agent counts, and what it knows of its session: plain numbers, without any library."""

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
    """A target that did not do its part."""

    service: str
    reason: str
    """One of `http.refusal.REASONS`, such as target-refused."""


class AgentFigures:
    """The figures of one agent, since its start."""

    def __init__(self) -> None:
        self.sessions = 0
        """Sessions with the proxy, the present one included."""
        self.connect_failures: Counter[str] = Counter()
        """Attempts that made none: the proxy's reason, `unreachable` or `configuration`."""
        self.streams = 0
        """Streams that visitors were served on, those of now included."""
        self.relays: Counter[str] = Counter()
        """Raw connections to targets that are over, by outcome: `finished` or `broken`."""
        self.requests: Counter[str] = Counter()
        """Requests that the agent carried itself, by class of status."""
        self.target_failures: Counter[TargetFailure] = Counter()
        self.last_failures: dict[TargetFailure, datetime] = {}
        self.changed_at = datetime.now(UTC)
        """When the session began, or when there was none any more."""
        self.why = "no attempt has been made yet"
        """Why there is no session; empty while there is one."""
        self._session: Session | None = None
        self._bytes_to_proxy = 0
        self._bytes_from_proxy = 0
        self._window_stalls = 0

    # -- the session ------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Whether there is a session now."""
        return self._session is not None

    @property
    def bytes_to_proxy(self) -> int:
        """Bytes of the sessions of all times, as the proxy's metrics count them."""
        now = self._session.bytes_sent if self._session is not None else 0
        return self._bytes_to_proxy + now

    @property
    def bytes_from_proxy(self) -> int:
        """The same in the other direction."""
        now = self._session.bytes_received if self._session is not None else 0
        return self._bytes_from_proxy + now

    @property
    def window_stalls(self) -> int:
        """How often a stream had to wait for the proxy to read, in the sessions of all times."""
        now = self._session.window_stalls if self._session is not None else 0
        return self._window_stalls + now

    def session_began(self, session: Session) -> None:
        """There is one now."""
        self.sessions += 1
        self._session = session
        self.why = ""
        self.changed_at = datetime.now(UTC)

    def session_ended(self, why: str) -> None:
        """There is none any more."""
        if self._session is not None:
            self._bytes_to_proxy += self._session.bytes_sent
            self._bytes_from_proxy += self._session.bytes_received
            self._window_stalls += self._session.window_stalls
            self._session = None
            self.changed_at = datetime.now(UTC)
        self.why = why

    def attempt_failed(self, error: ConnectError | ConfigError) -> None:
        """No session was made. The time since which there is none stays what it was."""
        reason = "unreachable" if isinstance(error, ConnectError) else "configuration"
        if isinstance(error, ConnectRefused) and error.reason in REASONS:
            reason = error.reason
        self.connect_failures[reason] += 1
        self.why = str(error)

    # -- the targets ------------------------------------------------------------------------

    def target_failed(self, service: str, reason: str) -> None:
        """A target refused, broke or did not answer. Other reasons do not count."""
        if not reason.startswith("target-"):
            return
        failure = TargetFailure(service, reason)
        self.target_failures[failure] += 1
        self.last_failures[failure] = datetime.now(UTC)

    def keep_services(self, names: Collection[str]) -> None:
        """Forget what is known of services that are not declared any more."""
        for failure in [one for one in self.target_failures if one.service not in names]:
            del self.target_failures[failure]
            del self.last_failures[failure]

    def request_served(self, status: int) -> None:
        """A request was answered; `status` is 0 where the visitor was gone before."""
        self.requests[f"{status // 100}xx" if status else "none"] += 1
