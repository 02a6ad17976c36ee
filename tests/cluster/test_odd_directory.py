"""A Redis that holds odd values, and nodes that say odd things: the other nodes go on."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from support.nodes import Nodes, running_nodes
from support.redis_server import RedisServer
from tunnelmux.config import Address, LimitsConfig
from tunnelmux.directory import Node
from tunnelmux.directory.redis import _shard
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.cluster.identity import NodeIdentity
from tunnelmux.proxy.cluster.words import DeviceThere

ENDLESS = "99999999999999.0"
"""When the lease of a planted node ends."""

GARBAGE = base64.b64encode(b"no certificate at all").decode()
LONG_PORT = "127.0.0.1:" + "9" * 5000
MINE = NodeIdentity.made_for("odd").certificate

ODD_NODES = {
    "no-json": "not json",
    "no-record": '{"name": 5}',
    "empty": "",
    "no-base64": Node(name="no-base64", incarnation="1", address="127.0.0.1:1", certificate="!"),
    "no-der": Node(name="no-der", incarnation="1", address="127.0.0.1:1", certificate=GARBAGE),
    "no-certificate": Node(name="no-certificate", incarnation="1", address="127.0.0.1:1"),
    "no-port": Node(name="no-port", incarnation="1", address="nowhere", certificate=MINE),
    "far-port": Node(name="far-port", incarnation="1", address="127.0.0.1:99999", certificate=MINE),
    "long-port": Node(name="long-port", incarnation="1", address=LONG_PORT, certificate=MINE),
    "no-host": Node(name="no-host", incarnation="1", address="a\0b:80", certificate=MINE),
    ".": Node(name=".", incarnation="1", address="127.0.0.1:1", certificate=MINE),
    "knötchen": Node(name="knötchen", incarnation="1", address="127.0.0.1:1", certificate=MINE),
    "huge": Node(name="huge", incarnation="1", internal_url="http://" + "x" * 20_000_000),
}
"""What another program, or a node that lies, may write into the list of nodes."""


@pytest.fixture
async def nodes(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nodes]:
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    limits = LimitsConfig(ingress=IngressLimits(reconnect_wait=0.1))
    async with running_nodes(redis, limits=limits) as nodes:
        yield nodes


def plant(redis: RedisServer, device: str, places: str) -> None:
    redis.command("HSET", _shard(device), device, places)


def plant_node(redis: RedisServer, name: str) -> None:
    record = ODD_NODES[name]
    text = record if isinstance(record, str) else msgspec.json.encode(record).decode()
    redis.command("HSET", "tunnelmux:nodes", name, text)
    redis.command("ZADD", "tunnelmux:live", ENDLESS, f"{name}|1")
    redis.command("HSET", "tunnelmux:incarnations", name, "1")


async def test_odd_values_in_redis_harm_no_node(
    nodes: Nodes, redis: RedisServer, web: Address
) -> None:
    for name in ODD_NODES:
        plant_node(redis, name)
    plant(redis, "dev1", f"{'9' * 400}|no-port|1|i")
    redis.command("XADD", "tunnelmux:inbox:" + me(nodes, "a"), "*", "odd", "message")
    redis.command("INCR", "tunnelmux:version")
    with trio.fail_after(30):
        while "no-port" not in nodes.known_to("a"):  # noqa: ASYNC110
            await trio.sleep(0.02)

    async with nodes.agent("b", {"web": f"http://{web}"}):
        assert (await nodes.get("a")).status == 200
    for name in ODD_NODES:
        plant_node(redis, name)  # again: nodes that had to wait may have taken Redis for a new one
        plant(redis, "dev2", f"7|{name}|1|i")
        assert (await nodes.get("a", device="dev2")).reason == "device-offline", name


def me(nodes: Nodes, name: str) -> str:
    """The node as Redis has it."""
    membership = nodes[name].store.membership  # type: ignore[attr-defined]
    return f"{name}|{membership.me.incarnation}"


THERE = {
    "generation": 1,
    "connected_at": "2026-01-01T00:00:00Z",
    "last_heartbeat": "2026-01-01T00:00:00Z",
    "credential": "00" * 32,
    "relayed": {"": "web", "web": "web"},
    "timeouts": {"web": 3600},
}
"""What a node answers about one of its devices."""


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 0},
        {"generation": 2**60},
        {"credential": "zz"},
        {"credential": "00\n"},
        {"connected_at": "2026-01-01T00:00:00"},
        {"last_heartbeat": "2026-01-01T00:00:00"},
        {"default_service": "web\r\nHost: other"},
        {"relayed": {"web": "web\n"}},
        {"relayed": {"wéb": "web"}},
        {"relayed": {f"s{number}": "web" for number in range(200)}},
        {"timeouts": {"web": -1}},
        {"timeouts": {"web": 1e300}},
    ],
    ids=str,
)
def test_what_no_honest_node_says_about_a_device_is_not_believed(change: object) -> None:
    msgspec.json.decode(msgspec.json.encode(THERE), type=DeviceThere)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(THERE | change), type=DeviceThere)  # type: ignore[operator]
