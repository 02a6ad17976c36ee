"""What can go wrong, as one tree.

::

    TunnelmuxError
    ├── ConfigError                 a setting is wrong; names the file, the key and the fix
    ├── ConnectError                no session could be made; `retryable` says whether to try again
    │   └── ConnectRefused          the other side answered, and the answer was no
    ├── SessionError                this session cannot do that, or is over
    │   ├── SessionClosed           the session has ended
    │   │   ├── SessionLost         the transport broke while it was in use
    │   │   ├── SessionTimeout      the peer fell silent
    │   │   └── SessionGoneAway     the peer ended it with an error code
    │   ├── SessionDraining         a GoAway was sent or received: no new streams
    │   ├── TooManyStreams          `Limits.max_streams` are live
    │   ├── StreamIdsExhausted      2**31 streams were opened: make a new session
    │   ├── SessionNotFound         the register knows no live session with that token
    │   ├── SessionExpired          it is registered, but was not heard from for too long
    │   ├── DeviceUnreachable       no stream to a device can be had now; `code` says why
    │   └── ProtocolError           never raised itself
    │       ├── LocalProtocolError  we were asked for something the protocol forbids
    │       └── RemoteProtocolError the peer broke the protocol; `wire_code` goes into the GoAway
    ├── StreamError                 this one stream is broken; the session is fine
    │   ├── StreamReset             by either side, with the code on the wire
    │   │   └── StreamRefused       the peer reset it before ever answering: safe to retry
    │   └── StreamClosed            used after we closed that half
    ├── RegistryError               the registry did not do what was asked
    │   ├── RegistryAway            its database does not answer; it may later
    │   ├── RegistryFailed          it answers that it cannot: full, read-only, another version
    │   ├── NoSuchRecord            there is no such thing, or it is another tenant's
    │   └── RegistryRefused         the rules forbid it; `code` says which of them
    └── DirectoryError              the directory of a cluster did not do what was asked
        ├── DirectoryAway           no answer came in time; it may have happened all the same
        └── NodeNameTaken           a process that started later uses the name of this node

`Stream` raises Trio's own `BrokenResourceError` and `ClosedResourceError`, as every Trio stream
does, with one of these as the `__cause__`. No message here ever holds a token, a password or a key.
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "ConfigError",
    "ConnectError",
    "ConnectRefused",
    "DeviceUnreachable",
    "DirectoryAway",
    "DirectoryError",
    "LocalProtocolError",
    "NoSuchRecord",
    "NodeNameTaken",
    "ProtocolError",
    "RegistryAway",
    "RegistryError",
    "RegistryFailed",
    "RegistryRefused",
    "RemoteProtocolError",
    "SessionClosed",
    "SessionDraining",
    "SessionError",
    "SessionExpired",
    "SessionGoneAway",
    "SessionLost",
    "SessionNotFound",
    "SessionTimeout",
    "StreamClosed",
    "StreamError",
    "StreamIdsExhausted",
    "StreamRefused",
    "StreamReset",
    "TooManyStreams",
    "TunnelmuxError",
]


class TunnelmuxError(Exception):
    """The root: catch this to catch everything this package raises on purpose."""


class ConfigError(TunnelmuxError):
    """A setting cannot be used. The message names the file or source, the key, and the fix."""


class ConnectError(TunnelmuxError):
    """No session could be made with the other side.

    `retryable` is False when trying again with the same settings cannot help.
    `retry_after` is the other side's own hint, in seconds, or None.
    """

    def __init__(
        self, message: str, *, retryable: bool = True, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after

    @property
    def is_ours(self) -> bool:
        """Whether a tunnelmux-proxy said so, and not something that stands before it."""
        return False


class ConnectRefused(ConnectError):
    """The other side answered the handshake with an HTTP status other than 101.

    `status` is that status, `reason` the `Tunnelmux-Reason` code it carried, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        reason: str | None = None,
        retryable: bool = True,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, retry_after=retry_after)
        self.status = status
        self.reason = reason

    @property
    def is_ours(self) -> bool:
        """Whether the answer carried our own reason field."""
        return self.reason is not None


class SessionError(TunnelmuxError):
    """A session cannot do what was asked, or is over."""


class SessionClosed(SessionError):
    """The session has ended; nothing more can be sent or received on it."""


class SessionLost(SessionClosed):
    """The transport ended or failed while streams were live, or in the middle of a frame."""


class SessionTimeout(SessionClosed):
    """No byte came from the peer for `Limits.keepalive_interval + Limits.keepalive_timeout`."""


class SessionGoneAway(SessionClosed):
    """The peer sent a GoAway with an error. `code` is the 32-bit code on the wire."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class SessionDraining(SessionError):
    """A GoAway(0) was sent or received: live streams go on, new ones cannot be opened."""


class TooManyStreams(SessionError):
    """`Limits.max_streams` streams are live. Close some, or raise the limit."""


class StreamIdsExhausted(SessionError):
    """All 2**31 ids of this side were used. Make a new session."""


class SessionNotFound(SessionError):
    """No live session has that token: it never connected, or it is gone."""


class SessionExpired(SessionError):
    """The session is registered, but its agent was not heard from for longer than it may be silent.

    Rare: mostly `cleanup_expired` has removed it by then, and SessionNotFound is raised.
    """


class DeviceUnreachable(SessionError):
    """No stream to a device can be had now.

    `code` is `device_offline` where it is not connected, `proxy_away` where this is not known,
    `lease_over` where the proxy does not know the lease that was named as running.
    """

    def __init__(
        self, message: str, *, code: Literal["device_offline", "proxy_away", "lease_over"]
    ) -> None:
        super().__init__(message)
        self.code = code


class ProtocolError(SessionError):
    """The yamux rules were broken. `wire_code` is what a GoAway says about it."""

    wire_code = 1


class LocalProtocolError(ProtocolError):
    """This side was asked for something the protocol forbids; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; the session ends and the peer is told with a GoAway(1)."""


class StreamError(TunnelmuxError):
    """One stream is broken; its session and the other streams are not."""


class StreamReset(StreamError):
    """The stream was reset. `code` is the 32-bit code (0 where the peer knows none)."""

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class StreamRefused(StreamReset):
    """The peer reset the stream, or went away, before it answered at all: safe to retry."""


class StreamClosed(StreamError):
    """That half of the stream was closed by this side before."""


class RegistryError(TunnelmuxError):
    """The registry did not do what was asked."""


class RegistryAway(RegistryError):
    """The database does not answer: it is stopped, out of reach, frozen, or busy for too long."""


class RegistryFailed(RegistryError):
    """The database cannot do it: it is full, read-only, damaged, or of another version."""


class NoSuchRecord(RegistryError):
    """There is no such record, or it belongs to another tenant, which is the same from here."""

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"there is no such {kind}")
        self.kind = kind
        self.id = id


class RegistryRefused(RegistryError):
    """The rules forbid it. `code` is stable; `field` names the input at fault, or None."""

    def __init__(self, message: str, *, code: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class DirectoryError(TunnelmuxError):
    """The directory of a cluster did not do what was asked."""


class DirectoryAway(DirectoryError):
    """No answer came in time. What was asked for may have happened all the same."""


class NodeNameTaken(DirectoryError):
    """A process that started later uses the name of this node."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f'another process that started later is node "{name}" of this cluster: give each node '
            "a name of its own ([cluster] node)"
        )
        self.name = name
