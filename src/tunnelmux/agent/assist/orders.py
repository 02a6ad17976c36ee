"""Orders of a person at the device to the switch, from a terminal or a page."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from tunnelmux.agent.assist.desk import AssistDesk
from tunnelmux.json_text import BadJson, read_json

__all__ = ["MAX_ORDER", "Order", "obey", "read_order"]

MAX_ORDER = 16_384
"""Bytes of one order."""

Word = Annotated[str, msgspec.Meta(max_length=64)]


class Order(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One order: `on` and `off`, `yes`, `no` and `stop` for one lease, `status`, `watch`; `code`
    makes a lease for the holder of the code."""

    do: Literal["on", "off", "yes", "no", "stop", "status", "watch", "code"]
    seconds: float | None = None
    services: Annotated[list[Word], msgspec.Meta(max_length=64)] = []
    lease: Word = ""


def read_order(data: bytes) -> Order | str:
    """The order, or a text that says what is wrong with it."""
    if len(data) > MAX_ORDER:
        return "it is too long"
    try:
        return read_json(data, Order)
    except BadJson as error:
        return f"it cannot be understood: {error}"


def obey(desk: AssistDesk, order: Order, *, by: str) -> dict[str, Any]:
    """Execute the order. The answer has the status after it, and `problem` if it failed."""
    problem: str | None = None
    match order.do:
        case "on":
            problem = desk.turn_on(order.seconds, order.services, by=by)
        case "off":
            desk.turn_off(by=by)
        case "yes" | "no":
            problem = desk.answer(order.lease, order.do == "yes", by=by)
        case "stop":
            problem = desk.stop(order.lease, by=by)
        case _:
            pass
    return {"problem": problem, "status": desk.status()}
