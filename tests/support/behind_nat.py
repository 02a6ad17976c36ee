"""Two machines behind NAT routers of their own, and a server on the public network between them, in
network namespaces: neither of the two can be dialled by anyone.

    device 192.168.7.2 -- router 198.51.100.2 -- 198.51.100.1 server
    person 192.168.7.2 -- router 203.0.113.2 -- 203.0.113.1 server
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["SERVER", "Nets", "nets_behind_nat"]

SERVER = "198.51.100.1"
"""Where the device finds the server; the person does at 203.0.113.1."""

PLACES = ("server", "device", "person", "droute", "proute")

# What came from inside goes out under the router's address, and only answers come back in.
RULES = """
table ip nat {
    chain post {
        type nat hook postrouting priority 100
        oifname "out" masquerade
    }
}
table ip filter {
    chain forward {
        type filter hook forward priority 0
        policy drop
        iifname "in" accept
        ct state established,related accept
    }
    chain input {
        type filter hook input priority 0
        policy drop
        ct state established accept
    }
}
"""


@dataclass(frozen=True)
class Nets:
    """The names of the namespaces."""

    prefix: str
    ip: str

    def at(self, place: str, *words: str) -> list[str]:
        """The words of a command that runs there."""
        return [self.ip, "netns", "exec", f"{self.prefix}-{place}", *words]

    def run(self, place: str, *words: str, send: str = "", check: bool = True) -> bool:
        """Run a command there to its end; whether it went well."""
        done = subprocess.run(
            self.at(place, *words),
            input=send.encode(),
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert not check or done.returncode == 0, (words, done.stderr)
        return done.returncode == 0

    def lose(self, cable: str, *, lost: bool) -> None:
        """Cut the cable between the server and a router, or mend it: `left` is the device's,
        `right` the person's. It is cut at the server: a router whose own end goes down forgets
        all that it translates."""
        self.run("server", self.ip, "link", "set", cable, "down" if lost else "up")


@contextmanager
def nets_behind_nat(program: Callable[[str, str], str]) -> Iterator[Nets]:
    """The namespaces for the length of the block, which has to be root's."""
    ip, nft = program("ip", "iproute2"), program("nft", "nftables")
    nets = Nets(f"tm{secrets.token_hex(3)}", ip)

    def host(*words: str) -> None:
        subprocess.run([ip, *words], check=True, timeout=60)

    def join(one: str, name: str, address: str, other: str, there: str, address_there: str) -> None:
        ends = f"{nets.prefix}a", f"{nets.prefix}b"
        host("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for end, place, new, at in (
            (ends[0], one, name, address),
            (ends[1], other, there, address_there),
        ):
            host("link", "set", end, "netns", f"{nets.prefix}-{place}", "name", new)
            nets.run(place, ip, "address", "add", at, "dev", new)
            nets.run(place, ip, "link", "set", new, "up")

    made = []
    try:
        for place in PLACES:
            host("netns", "add", f"{nets.prefix}-{place}")
            made.append(place)
            nets.run(place, ip, "link", "set", "lo", "up")
        join("device", "eth0", "192.168.7.2/24", "droute", "in", "192.168.7.1/24")
        join("person", "eth0", "192.168.7.2/24", "proute", "in", "192.168.7.1/24")
        join("droute", "out", "198.51.100.2/30", "server", "left", "198.51.100.1/30")
        join("proute", "out", "203.0.113.2/30", "server", "right", "203.0.113.1/30")
        for place, gateway in (
            ("device", "192.168.7.1"),
            ("person", "192.168.7.1"),
            ("droute", "198.51.100.1"),
            ("proute", "203.0.113.1"),
        ):
            nets.run(place, ip, "route", "add", "default", "via", gateway)
        for place in ("droute", "proute"):
            nets.run(place, nft, "-f", "-", send=RULES)
            nets.run(place, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        yield nets
    finally:
        for place in made:
            subprocess.run([ip, "netns", "delete", f"{nets.prefix}-{place}"], check=False)
