"""A socket in the pump that nobody reads yet, or any more."""

from typing import final

from tunnelmux._pump import Member, Pump

@final
class SocketWatch(Member):
    """Tells its owner once, when there is something to read or an end, and leaves the pump then."""

    def __init__(self, pump: Pump, socket: object, owner: object) -> None:
        """*socket* is connected and has a `fileno()` that the pump does not have yet."""
    @property
    def socket(self) -> object:
        """The socket, as it was given."""
    @property
    def error(self) -> Exception | None:
        """Why it will not be told, when the pump was stopped; else None."""
    def cancel(self) -> None:
        """Leave the pump now."""
