"""The book of live visits: a cheap note when each begins, moves to another device, and ends."""

from collections.abc import Callable
from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class VisitEntry:
    """One visit as the book keeps it."""

    way: Any
    """How it came in: `http` and `tcp` are the ways of visitors, all others calls of the back end."""
    device: str
    """The device it leads to. With HTTP it is the device of the last request, empty before the first."""
    service: str | None
    """The service asked for; None is the device's default one."""
    visitor: str
    """The visitor's address, as `host:port`."""
    scheme: str
    """The scheme it came in by: http, https, tcp."""
    counts_as: str
    """The address that its limits are about: the visitor's, or the one that a trusted proxy names for its
    last request. Empty where that is not known: it has no limit then."""
    lease: str
    """The id of the lease it is under, with which it ends; empty for none."""
    named: str
    """The group that the visitor named, where `device` was chosen from one; else empty."""
    number: int
    """Counts up from 1 in each process; 0 before the visit was added."""
    began: float
    """When it began, on the book's clock."""
    session: Any
    """The session it goes over, once there is one."""
    stream: int | None
    """The id of its stream on the session, once there is one."""
    waits_for: Any
    until: float
    """When its wait becomes too long, on the book's clock."""
    cut_reason: str | None
    """Why it was cut, in words; None when it was not."""
    by: Any
    """What admitted its last request, if access was checked."""
    count: Callable[[], tuple[int, int]] | None
    """Returns the bytes from and to the visitor so far."""
    on_cut: Callable[[], object] | None
    """Ends it now, from outside its task: for example, resets its stream. Does not raise."""
    on_late: Callable[[], object] | None
    """Called when `until` has passed."""

    def __init__(
        self,
        register: VisitBook,
        way: str,
        *,
        device: str,
        service: str | None,
        visitor: str,
        scheme: str = "tcp",
    ) -> None:
        """A visit that begins now; it is live from `VisitBook.add` on."""

    @property
    def _register(self) -> Any:
        """The book it was made for."""

    @property
    def is_from_outside(self) -> bool:
        """Whether it is a visitor's, not a call of the back end."""

    @property
    def source(self) -> str:
        """The address, or the network, whose visits are counted together for limits."""

    @property
    def is_counted(self) -> bool:
        """Whether `max_streams_per_visitor` applies to it."""

@disjoint_base
class VisitBook:
    """The live visits, in the order in which they began: found by number, device and address."""

    wakes_at: float
    """The time for which the timer is set."""

    def __init__(self, clock: Callable[[], float], source_of: Callable[[str], str]) -> None:
        """*source_of* returns the address or network as which `host:port` counts for limits."""

    @property
    def live(self) -> dict[int, Any]:
        """All live visits, by number."""

    @property
    def due(self) -> list[tuple[float, int]]:
        """A heap of times and numbers; a visit is in it once, rarely twice."""

    def __len__(self) -> int: ...
    def add(self, visit: VisitEntry) -> None:
        """Add a visit to the live ones."""

    def remove(self, visit: VisitEntry) -> None:
        """Remove a visit that is over. Harmless when it is not in the book."""

    def move(self, visit: VisitEntry, device: str) -> None:
        """Note that the visit leads to another device from now on."""

    def count_as(self, visit: VisitEntry, address: str) -> None:
        """Note that limits are about this address from now on (`VisitEntry.counts_as`)."""

    def of_device(self, device: str) -> list[Any]:
        """The live visits of a device, the oldest first."""

    def count_of(self, device: str) -> int:
        """How many live visits a device has, idle ones among them."""

    def of_way(self, way: str) -> int:
        """How many live visits came in this way."""

    def by_way(self) -> dict[str, int]:
        """How many live visits there are, by way; a way that was used once stays in it, with 0."""

    def of_address(self, way: str, remote: str) -> int:
        """How many live visits of this way come from the address of `remote` (`host:port`)."""

    def crowd(self, device: str, remote: str, enough: int) -> int:
        """How many live visits of a device come from the address of `remote` (`host:port`). When
        there are `enough` or more, idle ones are not counted."""

    def note_time(self, visit: VisitEntry) -> bool:
        """Note the visit's `until`. True when the timer has to go off earlier than it is set."""

    def pop_due(self, now: float) -> Any:
        """The next visit whose noted time has passed; None when there is none."""
