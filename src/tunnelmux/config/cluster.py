"""The settings of a cluster: how this proxy and the others reach each other."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from tunnelmux.config.join import TUNNEL_URL_SCHEMES
from tunnelmux.config.redis_url import RedisPlace
from tunnelmux.config.rules import (
    Address,
    InvalidSetting,
    check_one_line,
    parse_address,
    split_url,
)
from tunnelmux.config.secret import Secret
from tunnelmux.config.token_file import read_token_file
from tunnelmux.wire import AgentNode, list_nodes, read_nodes

__all__ = ["ClusterConfig"]

_NODE = re.compile(r"[A-Za-z0-9._-]{1,128}")
_AGENT_URL = "wss://proxy-1.example.com/tunnel/connect"
_ANY = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - looked for, not bound


def _check_url(key: str, url: Secret) -> None:
    try:
        RedisPlace.parse(url.reveal())
    except ValueError as error:
        raise InvalidSetting(key, str(error)) from None


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This proxy is one node of several: a visitor at any of them reaches a device at any other.
    Without this table it is alone. A reload does not change it."""

    redis: Secret | None = None
    """Where the nodes find each other: `redis://:password@host:6379`, `rediss://` for TLS,
    `unix:///path/of/socket`, or `redis+sentinel://:password@host:26379,host:26379/name`."""

    redis_file: Path | None = None
    """A file whose only content is that URL: it may hold a password."""

    redis_ca: Path | None = None
    """PEM file with the authorities to trust with `rediss://`; default: the system's."""

    listen: str
    """`host:port` where other nodes reach this one. Only nodes can connect to it: each uses a
    certificate that it made at its start and published in Redis.
    """

    address: str | None = None
    """`host:port` that the other nodes dial; by default `listen`."""

    node: str | None = None
    """The name of this node, unique in the cluster; by default the name of the machine."""

    agent_url: str | None = None
    """The URL by which agents reach this node and no other, as `proxy.url` in agent.toml has it:
    `wss://proxy-1.example.com/tunnel/connect`. Agents of other nodes are told of it, and keep a
    second session here. Without it, they do not."""

    failure_domain: str | None = None
    """What fails as a whole with this node, such as its rack or site: agents prefer a second
    session in another one, and visitors are led to a node in the same one."""

    def __post_init__(self) -> None:
        if (self.redis is None) == (self.redis_file is None):
            raise InvalidSetting(
                "redis", 'is needed, or redis_file: write redis = "redis://:password@10.0.0.5:6379"'
            )
        if self.redis is not None:
            _check_url("redis", self.redis)
        listen = parse_address("listen", self.listen)
        if self.address is not None:
            parse_address("address", self.address)
        elif listen.host in _ANY:
            raise InvalidSetting(
                "address",
                f'is missing: other nodes cannot dial "{self.listen}"; write the address of this '
                'machine that they reach, like "10.0.0.7:3803"',
            )
        if self.node is not None and not _NODE.fullmatch(self.node):
            raise InvalidSetting(
                "node",
                f'"{self.node}" cannot be a name: use 1 to 128 of a-z, A-Z, 0-9, ".", "_", "-"',
            )

        if self.failure_domain is not None and not _NODE.fullmatch(self.failure_domain):
            raise InvalidSetting(
                "failure_domain",
                f'"{self.failure_domain}" cannot be a name: use 1 to 128 of a-z, A-Z, 0-9, ".", '
                '"_", "-"',
            )
        if self.agent_url is not None:
            self._check_agent_url(self.agent_url)

    @staticmethod
    def _check_agent_url(url: str) -> None:
        split_url("agent_url", url, TUNNEL_URL_SCHEMES, _AGENT_URL)
        if read_nodes(list_nodes([AgentNode("a", url)]).decode("ascii")) != [AgentNode("a", url)]:
            raise InvalidSetting(
                "agent_url", f'must be short, without "," and ";": write it as "{_AGENT_URL}"'
            )

    @property
    def listen_address(self) -> Address:
        """`listen`, parsed."""
        return parse_address("listen", self.listen)

    @property
    def has_password(self) -> bool:
        """Whether `redis` holds a password, so that the file it is in must not be readable
        by all."""
        return self.redis is not None and bool(RedisPlace.parse(self.redis.reveal()).password)

    def read_redis(self) -> Secret:
        """The URL, from its file when that is the source; raises InvalidSetting."""
        if self.redis_file is not None:
            url = read_token_file("redis_file", self.redis_file, check_one_line)
            _check_url("redis_file", url)
            return url
        assert self.redis is not None  # one of the two is set, see __post_init__
        return self.redis
