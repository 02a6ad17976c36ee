"""How far an address can be reached from, and that a way keeps to it."""

from __future__ import annotations

import pytest

from tunnelmux.config.http_proxy import HttpProxy
from tunnelmux.transports import WayOut, reach_of
from tunnelmux.transports.reach import Reach


@pytest.mark.parametrize(
    ("host", "reach"),
    [
        ("127.0.0.1", Reach.MACHINE),
        ("127.255.1.2", Reach.MACHINE),
        ("::1", Reach.MACHINE),
        ("0.0.0.0", Reach.MACHINE),
        ("::", Reach.MACHINE),
        ("::ffff:127.0.0.1", Reach.MACHINE),
        ("localhost", Reach.MACHINE),
        ("LocalHost.", Reach.MACHINE),
        ("a.localhost", Reach.MACHINE),
        ("127.1", Reach.MACHINE),
        ("2130706433", Reach.MACHINE),
        ("0x7f000001", Reach.MACHINE),
        ("169.254.169.254", Reach.LINK),
        ("::ffff:169.254.169.254", Reach.LINK),
        ("fe80::1%eth0", Reach.LINK),
        ("10.0.0.1", Reach.SITE),
        ("172.16.9.9", Reach.SITE),
        ("192.168.0.1", Reach.SITE),
        ("100.64.0.1", Reach.SITE),
        ("::ffff:10.0.0.1", Reach.SITE),
        ("fd00::1", Reach.SITE),
        ("fec0::1", Reach.SITE),
        ("93.184.215.14", Reach.WORLD),
        ("2606:2800:21f::1", Reach.WORLD),
        ("proxy.example.com", Reach.WORLD),
        ("node-1", Reach.WORLD),
    ],
)
def test_each_kind_of_address(host: str, reach: Reach) -> None:
    assert reach_of(host) is reach


def test_a_server_that_is_told_of_is_no_further_inside_than_who_tells() -> None:
    teller = WayOut()
    assert WayOut().least_reach is Reach.MACHINE  # what is configured may be anywhere
    assert WayOut(told_by=teller).least_reach is Reach.WORLD  # nothing is known yet
    teller.good["proxy"] = "10.0.0.1"
    assert WayOut(told_by=teller).least_reach is Reach.SITE
    teller.good["proxy"] = "127.0.0.1"
    assert WayOut(told_by=teller).least_reach is Reach.MACHINE
    through = HttpProxy("proxy.example", 3128)
    assert WayOut(through, told_by=WayOut()).least_reach is Reach.MACHINE
