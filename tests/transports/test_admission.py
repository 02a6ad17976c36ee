"""Places for connections that have not said what they want: who gets one, and who gives way."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from tunnelmux.http.fields import TrustedProxies
from tunnelmux.transports.admission import Admission, Place, source_of


class Crowd:
    """Connections that note who had to give way."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.ended: list[str] = []

    def come(self, remote: str, *, speaks: bool = False) -> Place | None:
        place = self.admission.enter(remote)
        if place is not None:
            place.on_give_way = lambda: self.ended.append(remote)
            if speaks:
                place.has_spoken()
        return place


@pytest.mark.parametrize(
    ("remote", "source"),
    [
        ("192.0.2.7:50000", "192.0.2.7"),
        ("[2001:db8:1:2:aaaa::1]:50000", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::ffff]:1", "2001:db8:1:2::/64"),
        ("[2001:db8:1:3::1]:1", "2001:db8:1:3::/64"),
        ("[::ffff:192.0.2.7]:1", "192.0.2.7"),
        ("[fe80::1%eth0]:1", "fe80::/64"),
    ],
)
async def test_an_address_is_one_of_ipv4_or_a_64_of_ipv6(remote: str, source: str) -> None:
    assert source_of(remote) == source


async def test_the_oldest_silent_one_of_an_address_gives_way_to_its_next() -> None:
    crowd = Crowd(Admission("tunnel", limit=100, per_address=3))
    other = crowd.come("192.0.2.1:1")
    for port in range(2000):
        assert crowd.come(f"192.0.2.9:{port}") is not None
    assert len(crowd.admission) == 4
    assert crowd.ended == [f"192.0.2.9:{port}" for port in range(1997)]
    assert other is not None and other.is_held


async def test_who_speaks_keeps_its_place_and_the_next_of_its_address_is_refused() -> None:
    crowd = Crowd(Admission("tunnel", limit=100, per_address=2))
    places = [crowd.come(f"192.0.2.9:{port}", speaks=True) for port in range(2)]
    assert crowd.come("192.0.2.9:2") is None
    assert crowd.come("192.0.2.8:2") is not None
    assert all(place is not None and place.is_held for place in places)
    assert (crowd.ended, crowd.admission.refused) == ([], 1)
    assert places[0] is not None
    places[0].leave()
    places[0].leave()
    assert crowd.come("192.0.2.9:3") is not None


async def test_when_all_places_are_taken_the_oldest_silent_one_gives_way() -> None:
    crowd = Crowd(Admission("tunnel", limit=3, per_address=3))
    crowd.come("192.0.2.1:1", speaks=True)
    crowd.come("192.0.2.2:1")
    crowd.come("192.0.2.3:1")
    assert crowd.come("192.0.2.4:1", speaks=True) is not None
    assert crowd.ended == ["192.0.2.2:1"]
    assert crowd.admission.make_room()
    assert crowd.ended == ["192.0.2.2:1", "192.0.2.3:1"]
    assert not crowd.admission.make_room()


async def test_when_all_speak_the_address_with_most_gives_way_to_one_that_has_fewer() -> None:
    crowd = Crowd(Admission("tunnel", limit=4, per_address=4))
    crowd.come("192.0.2.1:1", speaks=True)
    for port in range(3):
        crowd.come(f"192.0.2.9:{port}", speaks=True)
    assert crowd.come("192.0.2.2:1", speaks=True) is not None
    assert crowd.ended == ["192.0.2.9:0"]
    # Now one has two places and two have one: who comes with one more would change nothing.
    assert crowd.come("192.0.2.1:2") is None
    assert crowd.come("192.0.2.9:4") is None
    assert crowd.come("192.0.2.3:1") is not None
    assert crowd.ended == ["192.0.2.9:0", "192.0.2.9:1"]


async def test_a_known_address_gets_the_place_of_a_stranger_who_has_spoken() -> None:
    """Of as many addresses as there are places, none has more than another."""
    known = {"192.0.2.1", "2001:db8:1:2::/64"}
    crowd = Crowd(Admission("cluster", limit=4, per_address=2, known=known))
    for number in range(4):
        assert crowd.come(f"198.51.100.{number}:1", speaks=True) is not None
    assert crowd.come("198.51.100.9:1") is None
    assert crowd.come("192.0.2.1:1", speaks=True) is not None
    assert crowd.come("192.0.2.1:2", speaks=True) is not None
    assert crowd.come("192.0.2.1:3", speaks=True) is None  # its share
    assert crowd.ended == ["198.51.100.0:1", "198.51.100.1:1"]
    for port in range(2):
        assert crowd.come(f"[2001:db8:1:2::7]:{port}", speaks=True) is not None
    assert len(crowd.ended) == len(crowd.admission) == 4
    assert crowd.come("[2001:db8:1:2::7]:3") is None  # all places are those of known ones


async def test_a_crowd_of_many_addresses_displaces_its_own() -> None:
    """Who needs two round trips from elsewhere once lost its place within a moment."""
    crowd = Crowd(Admission("socketio", limit=256, per_address=128, by_share=True))
    strangers = [f"192.0.2.{number % 250}:{number}" for number in range(256)]
    for stranger in strangers:
        crowd.come(stranger)
    good = crowd.come("203.0.113.7:1")
    for number in range(2000):
        assert crowd.come(f"192.0.2.{number % 250}:{number}") is not None
    assert good is not None and good.is_held
    assert len(crowd.admission) == 256


async def test_who_came_just_now_does_not_give_way_to_the_next_of_a_crowd_that_speaks() -> None:
    crowd = Crowd(Admission("socketio", limit=20, per_address=128))
    for number in range(20):
        crowd.come(f"192.0.2.{number % 5}:{number}", speaks=True)
    good = crowd.come("203.0.113.1:1")
    for number in range(200):
        crowd.come(f"192.0.2.{number % 5}:{number}")
    assert good is not None and good.is_held


async def test_when_all_of_many_addresses_speak_those_that_have_most_give_way() -> None:
    crowd = Crowd(Admission("ingress.http", limit=20, per_address=128))
    for number in range(20):
        crowd.come(f"192.0.2.{number % 9}:{number}", speaks=True)
    # Two addresses have three places, seven have two.
    for number in range(11):
        assert crowd.come(f"203.0.113.{number}:1", speaks=True) is not None
    assert crowd.come("203.0.113.99:1") is None
    assert sorted(crowd.ended) == sorted(f"192.0.2.{number % 9}:{number}" for number in range(11))


async def test_a_load_balancer_is_held_to_the_common_limit_only() -> None:
    balancers = TrustedProxies.parse(["10.0.0.0/8"])
    crowd = Crowd(Admission("tunnel", limit=4, per_address=2, exempt=balancers))
    places = [crowd.come(f"10.0.0.1:{port}", speaks=True) for port in range(4)]
    assert None not in places
    assert crowd.come("10.0.0.1:4") is None


async def test_a_burst_may_go_over_the_share_of_its_address_for_its_grace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    crowd = Crowd(Admission("ingress.http", limit=300, per_address=10, grace=1.0))
    burst = [crowd.come(f"192.0.2.9:{port}") for port in range(200)]
    assert None not in burst and crowd.ended == []
    for place in burst[:150]:
        assert place is not None
        place.leave()
    await trio.sleep(1)
    crowd.come("192.0.2.9:1000")
    assert len(crowd.ended) == 41
    # With all places taken, no silence is granted any more.
    for number in range(400):
        assert crowd.come(f"198.51.100.1:{number}") is not None
    assert len(crowd.admission) == 300


async def test_a_flood_is_a_line_now_and_then_that_says_how_many(
    autojump_clock: trio.testing.MockClock,
) -> None:
    crowd = Crowd(Admission("tunnel", limit=10, per_address=1))
    with capture_logs() as logs:
        for port in range(1001):
            crowd.come(f"192.0.2.9:{port}")
        assert len(logs) == 1
        await trio.sleep(60)
        crowd.come("192.0.2.9:5000")
    assert [line["count"] for line in logs] == [1, 1000]
    assert logs[1]["event"] == "connections gave way"
    assert (logs[1]["listener"], logs[1]["address"]) == ("tunnel", "192.0.2.9")
