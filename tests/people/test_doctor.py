"""doctor and explain: each fault that they know, made on purpose."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
import trustme

import tunnelmux
from support.http_proxy import connect_proxy
from support.installation import Installation
from support.origin import serving
from tunnelmux.agent.link import ProxyLink
from tunnelmux.cli.doctor.findings import Finding
from tunnelmux.cli.doctor.server import Probe, Server
from tunnelmux.cli.doctor.throughput import check_throughput
from tunnelmux.config import Device, ProxyEndpoint, Secret
from tunnelmux.config.http_proxy import parse_http_proxy
from tunnelmux.config.join import JoinInvitation, encode_join
from tunnelmux.transports import client_context

Answer = Callable[[bytes], bytes]


def http(status: str = "200 OK", *fields: str, body: str = "fine") -> bytes:
    lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", body]
    return "\r\n".join(lines).encode()


def well(head: bytes) -> bytes:
    """What a server of ours says."""
    if b"websocket" in head.lower():
        return http("401 Unauthorized", "Tunnelmux-Reason: unauthorized")
    if b"/big" in head:
        return http(body="x" * 200_000)
    return http("200 OK", f"Date: {datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT")


@asynccontextmanager
async def server(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def handle(connection: trio.SocketStream) -> None:
        stream: trio.abc.Stream = connection
        if tls is not None:
            stream = trio.SSLStream(connection, tls, server_side=True, https_compatible=True)
        head = b""
        try:
            async with stream:
                while data := await stream.receive_some():
                    head += data
                    if not head.startswith(b"GET "):
                        return  # it speaks HTTP and nothing else
                    if head.endswith(b"\r\n\r\n"):
                        await stream.send_all(answer(head))
                        if not answer(head).startswith(b"HTTP/"):
                            return
                        head = b""
        except (trio.BrokenResourceError, OSError):
            return

    async with serving(handle) as address:
        yield address.port


def probe(port: int, host: str = "127.0.0.1", **more: object) -> Probe:
    where = {key: more.pop(key) for key in ("tls", "http_proxy") if key in more}
    return Probe(
        Server(host=host, port=port, **where),  # type: ignore[arg-type]
        upgrade_path="/tunnel/connect",
        plain_path="/healthz",
        download_path="/big",
        upgrade_answers=frozenset({401}),
        upgrade_marks=(b"tunnelmux-reason",),
        download_time=0.05,
        **more,  # type: ignore[arg-type]
    )


def not_good(findings: Iterable[Finding]) -> list[Finding]:
    """A round trip is slow on a busy machine, and that is no fault of the way."""
    return [item for item in findings if item.outcome != "good" and item.check != "round trip"]


async def found(of: Probe) -> dict[str, Finding]:
    return {finding.check: finding async for finding in of.run()}


async def test_all_is_well() -> None:
    async with server(well) as port:
        seen = await found(probe(port))
    assert not_good(seen.values()) == []
    assert list(seen) == [
        *("names", "connection", "server", "clock", "WebSocket", "round trip", "throughput")
    ]
    assert seen["throughput"].said.startswith("at least ")


async def test_a_name_that_nobody_has() -> None:
    (seen,) = (await found(probe(80, host="nobody.invalid"))).values()
    assert (seen.check, seen.outcome) == ("names", "bad")
    assert "nobody.invalid has no address" in seen.said
    assert "resolv.conf" in seen.fix


async def test_nothing_listens_there() -> None:
    seen = await found(probe(1))
    assert seen["connection"].outcome == "bad"
    assert "connection refused" in seen["connection"].said
    assert list(seen) == ["names", "connection"]


async def test_an_http_proxy_that_lets_nothing_out() -> None:
    async with server(well) as port, connect_proxy() as proxy:
        way = parse_http_proxy("x", f"http://127.0.0.1:{proxy.port}")
        seen = await found(probe(port, http_proxy=way))
        assert f"through the HTTP proxy 127.0.0.1:{proxy.port}" in seen["connection"].said
        assert seen["WebSocket"].outcome == "good"
        proxy.answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        seen = await found(probe(port, http_proxy=way))
        assert (list(seen)[-1], seen["connection"].outcome) == ("connection", "bad")
        assert "403" in seen["connection"].said
        assert "NO_PROXY" in seen["connection"].fix


async def test_certificates_that_end_or_that_nobody_signed() -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    contexts = {}
    for name, ca, left in (("good", authority, 90), ("soon", authority, 5), ("x", stranger, 90)):
        ends = datetime.now(UTC) + timedelta(days=left)
        contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1", not_after=ends).configure_cert(contexts[name])
    trusting = client_context()
    authority.configure_trust(trusting)
    for name, outcome, says in (
        ("good", "good", "certificate good for 89 d"),
        ("soon", "warning", "certificate good for 4 d"),
        ("x", "bad", "self-signed certificate in certificate chain|unable to get local issuer"),
    ):
        async with server(well, contexts[name]) as port:
            seen = await found(probe(port, tls=trusting))
        assert seen["TLS"].outcome == outcome, seen["TLS"]
        assert any(part in seen["TLS"].said for part in says.split("|")), seen["TLS"]
        assert ("server" in seen) == (outcome != "bad")


async def test_a_port_without_tls() -> None:
    async with server(well) as port:
        seen = await found(probe(port, tls=client_context()))
    assert seen["TLS"].outcome == "bad"


async def test_a_clock_that_is_wrong() -> None:
    async with server(well) as port:
        late = probe(port, now=datetime.now(UTC) + timedelta(hours=5))
        seen = await found(late)
    assert seen["clock"].outcome == "bad"
    assert "5 h ahead of the server's" in seen["clock"].said
    assert "timedatectl" in seen["clock"].fix


async def test_a_proxy_in_between_that_takes_the_upgrade_away() -> None:
    async with server(lambda _head: http("200 OK", "Server: middlebox/1.0")) as port:
        seen = await found(probe(port))
    assert seen["WebSocket"].outcome == "bad"
    assert "answered with 200 by middlebox/1.0, not by tunnelmux" in seen["WebSocket"].said
    assert "proxy_http_version" in seen["WebSocket"].fix
    assert seen["clock"].outcome == "unknown"


async def test_a_server_that_does_not_serve() -> None:
    async with server(lambda _head: http("503 Service Unavailable")) as port:
        seen = await found(probe(port))
    assert (list(seen)[-1], seen["server"].outcome) == ("server", "bad")


async def test_an_answer_that_does_not_end_is_not_kept() -> None:
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 100_000

    async with server(lambda _: endless) as port:
        seen = await found(probe(port, timeout=5.0))
    assert seen["server"].said == "it answers (200)"


async def test_a_refusal_is_no_measurement_of_the_throughput() -> None:
    def refuse(head: bytes) -> bytes:
        return http("401 Unauthorized", body="no") if b"/big" in head else well(head)

    async with server(refuse) as port:
        seen = await found(probe(port))
    assert (seen["throughput"].outcome, seen["throughput"].said) == (
        "unknown",
        "nothing to download",
    )


async def test_what_speaks_no_http() -> None:
    async with server(lambda _head: b"SSH-2.0-OpenSSH_9.2\r\n") as port:
        seen = await found(probe(port))
    assert seen["server"].outcome == "bad"
    assert "no HTTP answer" in seen["server"].said


# -- what a device is told of its token and its throughput ----------------------------------------


def link_to(port: int) -> ProxyLink:
    url = f"ws://127.0.0.1:{port}/tunnel/connect"
    return ProxyLink(ProxyEndpoint(url=url, token=Secret("of-dev1")), Device(name="dev1"))


@pytest.mark.parametrize(
    ("answer", "check", "outcome", "said", "fix"),
    [
        (
            http("401 Unauthorized", "Tunnelmux-Reason: unauthorized"),
            *("token", "bad", "401 Unauthorized", "proxy.token in the agent's configuration"),
        ),
        (
            http("403 Forbidden", "Tunnelmux-Reason: device-disabled"),
            *("token", "bad", "403 Forbidden", "give the device one that the proxy knows"),
        ),
        (
            http("404 Not Found", "Tunnelmux-Reason: bad-request"),
            *("throughput", "unknown", "the proxy is older than this program", ""),
        ),
        (
            http("503 Service Unavailable", "Tunnelmux-Reason: device-busy"),
            *("throughput", "unknown", "not measured: ", ""),
        ),
        (
            b"SSH-2.0-OpenSSH_9.2\r\n",
            "throughput",
            "bad",
            "closed the connection without",
            "way out",
        ),
    ],
    ids=["unknown", "disabled", "older", "busy", "cut"],
)
async def test_a_way_that_cannot_be_measured(
    answer: bytes, check: str, outcome: str, said: str, fix: str
) -> None:
    async with server(lambda _head: answer) as port:
        (seen,) = await check_throughput(link_to(port), 20)
    assert (seen.check, seen.outcome) == (check, outcome)
    assert said in seen.said
    assert fix in seen.fix


async def test_what_is_no_measurement_breaks_off(nursery: trio.Nursery) -> None:
    async def echo(session: tunnelmux.Session) -> None:
        async for stream in session:
            await stream.send_all(b"hello\n")

    url = "ws://127.0.0.1:0/tunnel/connect/measure"
    [(_, port)] = await nursery.start(tunnelmux.serve, echo, url)
    (seen,) = await check_throughput(link_to(port), 20)
    assert (seen.check, seen.outcome) == ("throughput", "bad")
    assert "the answer of the proxy cannot be read" in seen.said


async def test_a_join_line_is_not_used_up(tmp_path: Path) -> None:
    line = encode_join(
        JoinInvitation(
            url="wss://127.0.0.1:9/tunnel/connect", token=Secret("once"), pin="sha256:" + "0" * 64
        )
    )
    endpoint = ProxyEndpoint(join=Secret(line))
    (seen,) = await check_throughput(
        ProxyLink(endpoint, Device(name="dev1", state_dir=tmp_path / "state")), 20
    )
    assert (seen.check, seen.outcome) == ("token", "unknown")
    assert "start the agent" in seen.fix
    assert not (tmp_path / "state").exists()


def as_findings(text: bytes) -> dict[str, Finding]:
    return {item.check: item for item in msgspec.json.decode(text, type=list[Finding])}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_person_is_told_that_all_is_well(installation: Installation, way: str) -> None:
    done = installation.run("doctor", "--json", env=installation.way(way))
    seen = as_findings(done.stdout)
    assert (not_good(seen.values()), done.returncode) == ([], 0)
    assert {"names", "connection", "server", "WebSocket", "account", "descriptors"} <= seen.keys()
    text = installation.run("doctor", env=installation.way(way)).stdout.decode()
    assert "WebSocket    the upgrade gets through" in text


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_device_is_told_what_its_agent_lacks(installation: Installation, tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.touch(mode=0o600)
    config.write_text(installation.configurations["dev1"])
    done = installation.run("doctor", "--agent", str(config), "--json", env=installation.by_api)
    seen = {item.said: item for item in msgspec.json.decode(done.stdout, type=list[Finding])}
    by_check = {item.check: item for item in seen.values()}
    for check in ("clock", "WebSocket", "token", "throughput"):
        assert by_check[check].outcome == "good", by_check
    assert "(of 5: " in by_check["round trip"].said
    closed = next(item for said, item in seen.items() if said.startswith("closed at "))
    assert closed.outcome == "bad"
    assert "nothing listens there" in closed.said
    assert done.returncode == 1
    # It did not take the place of the agent that runs.
    assert installation.json("ls", "dev1")[0]["state"] == "online"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_explain_tells_each_state_apart(installation: Installation, way: str) -> None:
    env = installation.way(way)
    done = installation.run("explain", "dev1", "--json", env=env)
    seen = as_findings(done.stdout)
    assert done.returncode == 5
    assert {name: item.outcome for name, item in seen.items()} == {
        "known": "good",
        "connected": "good",
        "web": "good",
        "ssh": "good",
        "echo": "good",
        "closed": "bad",
    }
    assert "visitors get 502" in seen["closed"].said
    done = installation.run("explain", "dev1", "none", env=env)
    assert done.returncode == 5
    assert "404 unknown-service" in done.stdout.decode()
    assert "it has web, ssh, echo, closed" in done.stdout.decode()
    assert installation.run("explain", "dev1", "web", env=env).returncode == 0
    assert installation.run("explain", "nobody", env=env).returncode == 4


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_explain_says_why_a_device_is_away(installation: Installation) -> None:
    done = installation.run("explain", "dev3", "--json")
    never = json.loads(done.stdout)[-1]
    assert (done.returncode, never["outcome"]) == (5, "bad")
    assert "it is not connected, and never was: visitors get 503" in never["said"]
    installation.here(partial(installation.add_device, "forbidden", {}))
    installation.run("device", "disable", "forbidden")
    done = installation.run("explain", "forbidden")
    assert "it is disabled: visitors get 503" in done.stdout.decode()
    assert "tunnelmux device enable forbidden" in done.stdout.decode()
