"""The device's decisions about leases: the switch, questions to the person, and ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import trio

from tunnelmux.agent.assist.clock import SteadyClock
from tunnelmux.agent.assist.diary import Diary
from tunnelmux.agent.assist.memory import AssistMemory, KeptLease, KeptState
from tunnelmux.agent.assist.offers import LeaseAnswer, LeaseOffer
from tunnelmux.config.assist import AssistConfig
from tunnelmux.observability import RepeatedLines, get_logger

__all__ = ["AssistDesk", "HeldLease", "LeaseVisit"]

_log = get_logger("agent.assist")

_KEPT_EVENTS = 500
_KEPT_ENDS = 200
# Ended leases that are remembered, because a proxy that was away may offer them again.

_HOUR = 3600.0

_SAVE = 30.0
# Seconds between two writes of the time left, while a lease runs: see `SteadyClock.recall`.

_LOOK = 1.0
# Seconds between two checks of the clock while a lease runs: Trio's own clock stops while the
# machine sleeps.

Switch = Literal["unset", "on", "off"]


@dataclass(slots=True, kw_only=True, eq=False)
class HeldLease:
    """A lease that the device has accepted, or that waits for an answer."""

    offer: LeaseOffer
    began: float
    until: float
    """On the desk's clock, as `began`."""
    asked_until: float | None = None
    """Until when it waits for an answer."""
    said: str = ""
    """Who accepted it."""
    visits: set[LeaseVisit] = field(default_factory=set)

    @property
    def is_given(self) -> bool:
        """Whether the device accepted it."""
        return self.asked_until is None


@dataclass(slots=True, eq=False)
class LeaseVisit:
    """A stream to a service that ends with its lease."""

    service: str
    lease_id: str | None
    cut: Callable[[], object]
    began: float
    from_far: str = ""


class AssistDesk:
    """Decides about leases. All calls are synchronous; `run` watches deadlines. The device's own
    configuration limits what servers and people can grant.
    """

    def __init__(
        self,
        config: AssistConfig,
        services: Iterable[str],
        *,
        serial: str = "",
        lease_only: Iterable[str] = (),
        memory: AssistMemory | None = None,
        diary: Diary | None = None,
        clock: SteadyClock | None = None,
    ) -> None:
        self.serial = serial
        self.clock = clock or SteadyClock()
        self._memory = memory
        self._diary = diary or Diary(None)
        self._switch: Switch = "unset"
        self._switch_until: float | None = None
        self._switch_services: frozenset[str] = frozenset()
        self._leases: dict[str, HeldLease] = {}
        self._ended: dict[str, str] = {}
        self._loose: set[LeaseVisit] = set()
        self._lines = RepeatedLines("assistance")
        self._new = 0.0
        self._new_at = self.clock.now()
        self._events: deque[tuple[int, dict[str, Any]]] = deque(maxlen=_KEPT_EVENTS)
        self._last = 0
        self._news = trio.Event()
        self._is_loud = False
        self.is_silent = False
        """Whether events have stopped."""
        self.on_ask: Callable[[HeldLease], object] = lambda _lease: None
        """Called with each question; for the hook."""
        self.on_lease_end: Callable[[str], object] = lambda _lease_id: None
        """Called with the id of each lease that ended."""
        # Read before the first write.
        kept = memory.read() if memory is not None else None
        self._set(config, services, lease_only)
        if kept is not None:
            self._recall(kept)

    def configure(
        self, config: AssistConfig, services: Iterable[str], lease_only: Iterable[str]
    ) -> None:
        """Apply a new configuration. Leases that it does not allow end."""
        self._set(config, services, lease_only)
        if config.mode == "off":
            self._end_all("remote assistance was turned off in this device's configuration")
        for lease in list(self._leases.values()):
            if not set(lease.offer.services) <= set(self._services):
                self._end(lease, "its services are not offered any more")
        self._tell_state()

    def _set(
        self, config: AssistConfig, services: Iterable[str], lease_only: Iterable[str]
    ) -> None:
        self.config = config
        self._services = tuple(config.services or services)
        self._lease_only = frozenset(lease_only)

    # -- looking ----------------------------------------------------------------------------------

    @property
    def mode(self) -> Literal["off", "ask", "allow"]:
        """How requests are answered now: `off`, `ask` or `allow`."""
        if self.config.mode == "off" or self._switch == "off":
            return "off"
        return "allow" if self._switch == "on" else self.config.mode

    @property
    def leases(self) -> list[HeldLease]:
        """Leases that run or wait for an answer."""
        return list(self._leases.values())

    def state_line(self) -> dict[str, Any]:
        """The state of the switch, for proxies."""
        state = {
            "type": "state",
            "mode": self.mode,
            "services": list(self._services),
            "longest": self.config.longest,
            "hours": self.config.hours,
        }
        if self._switch == "on" and self._switch_until is not None:
            # Seconds: a person here has switched assistance on, for so long.
            state["on_for"] = round(max(0.0, self._switch_until - self.clock.now()), 1)
        return state

    def status(self) -> dict[str, Any]:
        """The status for a person at the device."""
        now = self.clock.now()
        until = self._switch_until
        return {
            "serial": self.serial,
            "configured": self.config.mode,
            "mode": self.mode,
            "switch": self._switch,
            "makes_codes": self.config.mode != "off" and self.config.account_keys is not None,
            "seconds_left": None if until is None else round(max(0.0, until - now), 1),
            "services": sorted(self._switch_services or self._services),
            "leases": [self._shown(lease, now) for lease in self._leases.values()],
        }

    def _shown(self, lease: HeldLease, now: float) -> dict[str, Any]:
        offer = lease.offer
        asked = lease.asked_until
        return {
            "id": offer.id,
            "kind": offer.kind,
            "who": offer.who,
            "reason": offer.reason,
            "services": list(offer.services),
            "rights": list(offer.rights),
            "recorded": offer.recorded,
            "sealed": offer.sealed,
            "state": "running" if lease.is_given else "asked",
            "answer_within": None if asked is None else round(max(0.0, asked - now), 1),
            "seconds_left": round(max(0.0, lease.until - now), 1),
            "connections": [
                {
                    "service": visit.service,
                    "seconds": round(now - visit.began, 1),
                    "from": visit.from_far,
                }
                for visit in lease.visits
            ],
        }

    def events_after(self, number: int) -> list[tuple[int, dict[str, Any]]]:
        """Events after this number."""
        return [(at, event) for at, event in self._events if at > number]

    async def wait_after(self, number: int) -> None:
        """Return when there is an event after this number, or events have stopped."""
        while self._last <= number and not self.is_silent:
            await self._news.wait()

    def fall_silent(self) -> None:
        """Stop events, because the agent stops and its proxy must not wait for more."""
        self.is_silent = True
        self._news.set()

    @property
    def last_event(self) -> int:
        """The number of the last event."""
        return self._last

    # -- the switch -------------------------------------------------------------------------------

    def objection_to_time(self, seconds: float) -> str | None:
        """Why assistance cannot last this long here, or None."""
        if 60 <= seconds <= self.config.longest:
            return None
        return f"the time must be 60 s to {self.config.longest:g} s, which is assist.longest"

    def objection_to_services(self, services: Iterable[str]) -> str | None:
        """Why there is no assistance with these services, or None."""
        unknown = set(services) - set(self._services)
        if not unknown:
            return None
        return f"there is no assistance with {min(unknown)}: see assist.services in agent.toml"

    @property
    def services(self) -> tuple[str, ...]:
        """Services that assistance may include."""
        return self._services

    def turn_on(
        self, seconds: float | None = None, services: Iterable[str] = (), *, by: str
    ) -> str | None:
        """Accept requests for a time. Returns why that is not possible, or None."""
        if self.config.mode == "off":
            return 'this device offers no assistance: set assist.mode to "ask" in agent.toml first'
        wanted = frozenset(services) or frozenset(self._services)
        seconds = self.config.longest if seconds is None else seconds
        problem = self.objection_to_services(wanted) or self.objection_to_time(seconds)
        if problem is not None:
            return problem
        self._switch, self._switch_until = "on", self.clock.now() + seconds
        self._switch_services = wanted
        self._write("switched on", by=by, seconds=seconds, services=sorted(wanted))
        for lease in self._leases.values():
            if not lease.is_given and wanted.issuperset(lease.offer.services):
                self._give(lease, by)
        self._tell_state()
        return None

    def turn_off(self, *, by: str) -> int:
        """Refuse all requests from now on, and end all leases. Returns how many."""
        self._switch, self._switch_until = "off", None
        self._switch_services = frozenset()
        count = len(self._leases)
        self._end_all(f"assistance was switched off on the device ({by})")
        self._write("switched off", by=by, leases_ended=count)
        self._tell_state()
        return count

    # -- offers -----------------------------------------------------------------------------------

    def offer(self, offer: LeaseOffer) -> LeaseAnswer:
        """Take a proxy's offer of a lease, which may be a repetition."""
        known = self._leases.get(offer.id)
        if offer.id in self._ended:
            return LeaseAnswer("refused", self._ended[offer.id])
        if known is not None:
            return self._offered_again(known, offer)
        crowd = self._crowd()
        if crowd is not None:
            return LeaseAnswer("refused", crowd)  # no word of it is kept: there may be any number
        refusal = self._objection(offer)
        if refusal is not None:
            return self._refuse(offer, refusal)
        now = self.clock.now()
        lease = HeldLease(offer=offer, began=now, until=now + offer.seconds)
        self._leases[offer.id] = lease
        if self._switch == "on" and self._switch_services.issuperset(offer.services):
            self._give(lease, "the switch, which is on")
        elif self.config.mode == "allow":
            self._give(lease, "its configuration")
        else:
            self._ask(lease)
        return LeaseAnswer("given" if lease.is_given else "asked")

    def _crowd(self) -> str | None:
        """Why there are too many leases for one more, or None; counts it then."""
        limits = self.config
        if len(self._leases) >= limits.max_leases:
            return f"the device has {limits.max_leases} leases already"
        waiting = sum(not lease.is_given for lease in self._leases.values())
        if waiting >= limits.max_waiting_leases:
            return f"{waiting} requests wait for an answer at the device already"
        now = self.clock.now()
        passed = (now - self._new_at) / _HOUR
        self._new = max(0.0, self._new - passed * limits.max_new_leases)
        self._new_at = now
        if self._new + 1 > limits.max_new_leases:
            return "the device was offered too many leases: try again in some minutes"
        self._new += 1
        return None

    def _objection(self, offer: LeaseOffer) -> str | None:
        if self.config.mode == "off":
            return "this device offers no assistance"
        if self._switch == "off":
            return "assistance is switched off on the device"
        missing = sorted(set(offer.services) - set(self._services))
        if missing or not offer.services:
            return f"the device offers no assistance with {', '.join(missing) or 'nothing'}"
        # One second of tolerance for the time on the network.
        if not 0 < offer.seconds <= self.config.longest + 1:
            return f"the device takes {self.config.longest / 3600:g} h at most"
        there = time.localtime(self.clock.wall())
        if not self.config.is_open_at(there.tm_hour * 60 + there.tm_min):
            return f"the device takes requests {self.config.hours} by its clock"
        return None

    def _offered_again(self, lease: HeldLease, offer: LeaseOffer) -> LeaseAnswer:
        """Take the offer of a known lease, after a reconnect or with a later end."""
        now = self.clock.now()
        until = now + offer.seconds
        if set(offer.services) != set(lease.offer.services):
            self._end(lease, "the proxy offered it in two versions")
            return LeaseAnswer("refused", self._ended[offer.id])
        if until > lease.until + 2:
            if until - lease.began > self.config.longest + 2:
                reason = f"the device takes {self.config.longest / 3600:g} h at most, in all"
                self._write("extension refused", lease=offer.id, reason=reason)
                return LeaseAnswer("given" if lease.is_given else "asked", reason)
            self._write("extended", lease=offer.id, seconds=round(offer.seconds))
            lease.until = until
            self._wake()
            self._save()
        elif until < lease.until:
            is_earlier = until < lease.until - 2  # not by the time on the network alone
            lease.until = until
            if is_earlier:
                self._save()
        return LeaseAnswer("given" if lease.is_given else "asked")

    def _refuse(self, offer: LeaseOffer, reason: str) -> LeaseAnswer:
        self._remember_end(offer.id, reason)
        self._write("refused", lease=offer.id, who=offer.who, why=offer.reason, reason=reason)
        self._tell({"type": "refused", "lease": offer.id, "reason": reason}, save=True)
        return LeaseAnswer("refused", reason)

    def _ask(self, lease: HeldLease) -> None:
        lease.asked_until = self.clock.now() + self.config.ask_timeout
        offer = lease.offer
        self._write("asked", lease=offer.id, who=offer.who, why=offer.reason)
        self._tell({"type": "asked", "lease": offer.id}, save=True)
        self._wake()
        self.on_ask(lease)

    def answer(self, lease_id: str, yes: bool, *, by: str) -> str | None:
        """Take the answer of a person at the device. Returns why that is not possible, or None."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.is_given:
            return "there is no such request now: it was answered, or is over"
        if yes:
            self._give(lease, by)
        else:
            self._end(lease, f"the device refused ({by})")
        return None

    def _give(self, lease: HeldLease, by: str) -> None:
        lease.asked_until = None
        lease.said = by
        if self._switch == "on" and self._switch_until is not None:
            lease.until = min(lease.until, self._switch_until)
        offer = lease.offer
        self._write(
            "agreed",
            lease=offer.id,
            who=offer.who,
            why=offer.reason,
            services=list(offer.services),
            seconds=round(lease.until - self.clock.now()),
            by=by,
        )
        self._tell({"type": "answer", "lease": offer.id, "given": True, "by": by}, save=True)
        self._wake()

    def hold_code(self, offer: LeaseOffer) -> None:
        """Add a lease that the device itself makes, for the holder of its code."""
        now = self.clock.now()
        lease = HeldLease(offer=offer, began=now, until=now + offer.seconds, said="its code")
        self._leases[offer.id] = lease
        self._write("code made", lease=offer.id, seconds=round(offer.seconds))
        self._tell(self.open_line(lease), save=True)
        self._wake()

    def open_line(self, lease: HeldLease) -> dict[str, Any]:
        """The event for proxies about a lease with a code."""
        now = self.clock.now()
        return {
            "type": "open",
            "lease": lease.offer.id,
            "services": list(lease.offer.services),
            "key": lease.offer.key,
            "began": round(lease.began - now, 3),
            "seconds": round(lease.until - now, 3),
        }

    # -- ends -------------------------------------------------------------------------------------

    def withdraw(self, lease_id: str, reason: str) -> int:
        """End a lease that the server has ended. Returns how many connections this cut."""
        lease = self._leases.get(lease_id)
        if lease is None:
            self._remember_end(lease_id, reason)
            return 0
        count = len(lease.visits)
        self._end(lease, reason)
        return count

    def stop(self, lease_id: str, *, by: str) -> str | None:
        """End one lease from the device. Returns why that is not possible, or None."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return "there is no such lease now"
        self._end(lease, f"ended on the device ({by})")
        return None

    def _end_all(self, reason: str) -> None:
        for lease in list(self._leases.values()):
            self._end(lease, reason)

    def _end(self, lease: HeldLease, reason: str) -> None:
        offer = lease.offer
        del self._leases[offer.id]
        self._remember_end(offer.id, reason)
        for visit in list(lease.visits):
            visit.cut()
        # Streams without a named lease may go on if another lease allows them.
        for visit in list(self._loose):
            if not self._covering(visit.service):
                visit.cut()
        event: dict[str, Any] = {"type": "end", "lease": offer.id, "reason": reason}
        if not lease.is_given:
            event = {"type": "answer", "lease": offer.id, "given": False, "reason": reason}
        self._write("ended" if lease.is_given else "refused", lease=offer.id, reason=reason)
        self.on_lease_end(offer.id)
        self._tell(event, save=True)

    def _remember_end(self, lease_id: str, reason: str) -> None:
        self._ended[lease_id] = reason
        while len(self._ended) > _KEPT_ENDS:
            del self._ended[next(iter(self._ended))]

    # -- visits -----------------------------------------------------------------------------------

    def _covering(self, service: str) -> list[HeldLease]:
        return [
            lease
            for lease in self._leases.values()
            if lease.is_given and service in lease.offer.services
        ]

    def objection(self, service: str, lease_id: str | None) -> str | None:
        """Why a stream to this service is not allowed now, or None."""
        if lease_id is not None:
            lease = self._leases.get(lease_id)
            if lease is None or not lease.is_given:
                return f"its lease is over, or this device has not agreed: {lease_id[:64]}"
            if service not in lease.offer.services:
                return f'its lease is not about the service "{service}"'
            return None
        if service in self._lease_only and not self._covering(service):
            return f'the service "{service}" is reached during a lease only, and there is none now'
        return None

    def enter(
        self, service: str, lease_id: str | None, cut: Callable[[], object], from_far: str = ""
    ) -> LeaseVisit | None:
        """Register a stream, for which `cut` is called when its lease ends; None where it depends
        on no lease. End it with `leave`.
        """
        if lease_id is None and service not in self._lease_only:
            return None
        visit = LeaseVisit(service, lease_id, cut, self.clock.now(), from_far)
        if lease_id is None:
            self._loose.add(visit)
        elif (lease := self._leases.get(lease_id)) is not None:
            lease.visits.add(visit)
            self._write("connected", lease=lease_id, service=service, who=lease.offer.who)
            self._tell({"type": "visits", "lease": lease_id})
        return visit

    def leave(self, visit: LeaseVisit | None, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """Remove a stream that has ended."""
        if visit is None:
            return
        self._loose.discard(visit)
        if visit.lease_id is None:
            return
        lease = self._leases.get(visit.lease_id)
        if lease is not None:
            lease.visits.discard(visit)
        self._write(
            "disconnected",
            lease=visit.lease_id,
            service=visit.service,
            seconds=round(self.clock.now() - visit.began, 1),
            bytes_to_device=bytes_in,
            bytes_from_device=bytes_out,
        )
        self._tell({"type": "visits", "lease": visit.lease_id})

    # -- times ------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Watch deadlines until cancelled."""
        saved = self.clock.now()
        while True:
            self._is_loud = False
            due = self._look()
            if due is None:
                await self._sleep_until_news()
                continue
            now = self.clock.now()
            if now - saved >= _SAVE:
                self._save()
                saved = now
            with trio.move_on_after(min(_LOOK, max(0.0, due - now))):
                await self._sleep_until_news()

    async def _sleep_until_news(self) -> None:
        while not self._is_loud:
            await self._news.wait()

    def _look(self) -> float | None:
        """End leases whose time is over. Returns when to check again, or None."""
        now = self.clock.now()
        for lease in list(self._leases.values()):
            if lease.asked_until is not None and lease.asked_until <= now:
                seconds = self.config.ask_timeout
                self._end(lease, f"no answer at the device within {seconds:g} s")
            elif lease.until <= now:
                self._end(lease, "its time is over")
        if self._switch_until is not None and self._switch_until <= now:
            self._switch, self._switch_until = "unset", None
            self._switch_services = frozenset()
            self._write("switch went off by itself", by="its time")
            self._tell_state()
        times = [lease.asked_until or lease.until for lease in self._leases.values()]
        if self._switch_until is not None:
            times.append(self._switch_until)
        return min(times, default=None)

    # -- telling ----------------------------------------------------------------------------------

    def _tell_state(self) -> None:
        self._tell(self.state_line(), save=True)
        self._wake()

    def _tell(self, event: dict[str, Any], *, save: bool = False) -> None:
        if save:
            self._save()
        self._last += 1
        self._events.append((self._last, event))
        self._news.set()
        self._news = trio.Event()

    def note(self, what: str, **details: Any) -> None:
        """Write down, for the person here, what happened to a lease's visitors."""
        self._write(what, **details)

    def _wake(self) -> None:
        """Have `run` check the deadlines again."""
        self._is_loud = True
        self._news.set()
        self._news = trio.Event()

    def _write(self, what: str, **details: Any) -> None:
        if self._lines.may_write(what):
            _log.info("assistance", what=what, **details)
        self._diary.write(what, details)

    # -- over restarts ----------------------------------------------------------------------------

    def _save(self) -> None:
        if self._memory is None:
            return
        keep = self.clock.keep
        self._memory.write(
            KeptState(
                switch=self._switch,
                until=None if self._switch_until is None else keep(self._switch_until),
                services=sorted(self._switch_services),
                leases=[
                    KeptLease(
                        offer=lease.offer,
                        age=self.clock.now() - lease.began,
                        until=keep(lease.until),
                        said=lease.said,
                    )
                    for lease in self._leases.values()
                    if lease.is_given
                ],
                ended=dict(self._ended),
            )
        )

    def _recall(self, kept: KeptState) -> None:
        now = self.clock.now()
        self._ended = dict(kept.ended)
        self._switch = kept.switch
        self._switch_services = frozenset(kept.services)
        if kept.until is not None:
            self._switch_until = self.clock.recall(kept.until)
        if self.config.mode == "off":
            return
        for one in kept.leases:
            self._leases[one.offer.id] = HeldLease(
                offer=one.offer,
                began=now - one.age,
                until=min(self.clock.recall(one.until), now - one.age + self.config.longest + 2),
                said=one.said,
            )
        self._look()
        self._tell_state()
