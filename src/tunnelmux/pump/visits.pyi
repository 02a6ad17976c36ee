"""The book of live visits: what is noted at the begin, the move and the end of each, by the thousand."""

from collections.abc import Callable
from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class VisitEntry:
    """What is known of one visit."""

    way: Any
    """How it came in: `http` and `tcp` are the ways of visitors, all others calls of the back end."""
    device: str
    """Where it leads; of HTTP, where its last request went, and empty before the first."""
    service: str | None
    """The service asked for; None is the device's default one."""
    visitor: str
    """The visitor's address, as `host:port`."""
    scheme: str
    """What it came in by: http, https, tcp."""
    is_exempt: bool
    """Whether its address stands for many: a trusted proxy's does."""
    lease: str
    """The id of the lease it is under, with which it ends; empty for none."""
    named: str
    """The group that the visitor named, where `device` was chosen from one; else empty."""
    number: int
    """Counts up from 1 in each process; 0 before the book has it."""
    began: float
    """When it began, on the book's clock."""
    session: Any
    """The session it goes over, once there is one."""
    stream: int | None
    """The id of its stream on the session, once there is one."""
    waits_for: Any
    until: float
    """When it has waited too long, on the book's clock."""
    cut_reason: str | None
    """Why it was cut, in words; None when it was not."""
    by: Any
    """What let its last request in, where that was judged."""
    count: Callable[[], tuple[int, int]] | None
    """Answers the bytes from and to the visitor so far."""
    on_cut: Callable[[], object] | None
    """Ends it now, from outside of its task: resets its stream, for one. Does not raise."""
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
        """A visit that begins now, and is not live before `VisitBook.add`."""

    @property
    def _register(self) -> Any:
        """The book it was made for."""

    @property
    def is_from_outside(self) -> bool:
        """Whether a visitor makes it, and no call of the back end."""

    @property
    def source(self) -> str:
        """The address that is held to limits."""

    @property
    def is_counted(self) -> bool:
        """Whether `max_streams_per_visitor` holds for it."""

@disjoint_base
class VisitBook:
    """The live visits, in the order in which they began: found by number, device and address."""

    wakes_at: float
    """The time for which the timer is set."""

    def __init__(self, clock: Callable[[], float], source_of: Callable[[str], str]) -> None:
        """*source_of* answers the address of `host:port` that is held to limits."""

    @property
    def live(self) -> dict[int, Any]:
        """All of them, by number."""

    @property
    def due(self) -> list[tuple[float, int]]:
        """A heap of times and numbers; a visit stands in it once, or seldom twice."""

    def __len__(self) -> int: ...
    def add(self, visit: VisitEntry) -> None:
        """Have this visit among the live ones."""

    def remove(self, visit: VisitEntry) -> None:
        """The visit is over; one that is not here is no error."""

    def move(self, visit: VisitEntry, device: str) -> None:
        """The visit leads to another device from now on."""

    def of_device(self, device: str) -> list[Any]:
        """The live visits of a device, the oldest first."""

    def count_of(self, device: str) -> int:
        """How many live visits a device has, idle ones among them."""

    def of_way(self, way: str) -> int:
        """How many there are that came in this way."""

    def by_way(self) -> dict[str, int]:
        """How many live visits there are, by way; once there was one of a way, it stays."""

    def of_address(self, way: str, remote: str) -> int:
        """How many of these come from the address of `remote` (`host:port`)."""

    def crowd(self, device: str, remote: str, enough: int) -> int:
        """How many visits of a device come from the address of `remote` (`host:port`) now. From
        `enough` on, those that are idle are left out."""

    def note_time(self, visit: VisitEntry) -> bool:
        """Note when the visit has waited too long; whether the timer has to go off earlier."""

    def pop_due(self, now: float) -> Any:
        """The next visit whose noted time has passed; None when there is none."""
