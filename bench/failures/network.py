"""Parts of an installation with a network between them that can be cut: namespaces (ip-netns(8)),
which need root."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.processes import StartFailure

__all__ = ["Network", "own_network"]

NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of unshare(2) and setns(2), which Python has from 3.12 on."""

BRIDGE = "bridge"
HUB = "10.203.0.1"
"""The bridge's address: from there visitors and devices reach every part."""


class Network:
    """A bridge in this process's namespace, and a namespace for each part behind it."""

    def __init__(self) -> None:
        self._parts: dict[str, str] = {}
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{HUB}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")

    def add(self, part: str) -> str:
        """A namespace for this part; its address."""
        space = f"tunnelmux-{os.getpid()}-{part}"
        address = f"10.203.0.{10 + len(self._parts)}"
        run("ip", "netns", "add", space)
        self._parts[part] = space
        port = port_of(part)
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", port, "master", BRIDGE, "up")
        run("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            run("ip", "-n", space, "link", "set", device, "up")
        return address

    def within(self, part: str) -> list[str]:
        """What to put before a command that runs as this part. It becomes that command: the process
        id stays."""
        return ["ip", "netns", "exec", self._parts[part]]

    def cut(self, *parts: str) -> None:
        """Drop every packet between these parts; each still reaches the others, and visitors it."""
        self._isolate(parts, "on")

    def mend(self, *parts: str) -> None:
        """End a cut."""
        self._isolate(parts, "off")

    def _isolate(self, parts: Sequence[str], state: str) -> None:
        for part in parts:
            run("bridge", "link", "set", "dev", port_of(part), "isolated", state)

    def close(self) -> None:
        for space in self._parts.values():
            subprocess.run(["ip", "netns", "delete", space], check=False)


def port_of(part: str) -> str:
    """The bridge's end of the way to this part."""
    return f"to-{part}"


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartFailure(f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def own_network() -> Iterator[Network]:
    """Have this thread, and what it starts, in a network namespace of its own."""
    if os.geteuid() != 0 or shutil.which("bridge") is None:
        raise StartFailure("a network that can be cut needs root, and ip and bridge of iproute2")
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        call("unshare", NEW_NETWORK)
        try:
            network = Network()
            try:
                yield network
            finally:
                network.close()
        finally:
            call("setns", before, NEW_NETWORK)
    finally:
        os.close(before)


def call(name: str, *arguments: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        raise StartFailure(f"{name}: {os.strerror(ctypes.get_errno())}")
