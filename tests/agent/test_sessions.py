from __future__ import annotations

import ssl
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import structlog
import trio
import trustme

from support.fake_proxy import FakeProxy, No, fake_proxy
from support.streams import next_bytes
from tunnelmux import Session
from tunnelmux.agent import AgentRefused, RunningAgent, run_agent
from tunnelmux.config import (
    AgentConfig,
    BackoffConfig,
    Device,
    JoinInvitation,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
    encode_join,
)
from tunnelmux.errors import ConfigError, SessionError
from tunnelmux.transports import UpgradeRequest, certificate_pin

StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
StartTarget = Callable[[Callable[[trio.SocketStream], Awaitable[None]]], Awaitable[int]]
MakeConfig = Callable[..., AgentConfig]

FAST = BackoffConfig(minimum=0.01, maximum=0.02)


async def run_to_its_end(config: AgentConfig) -> None:
    with trio.fail_after(20):
        await run_agent(config)


async def test_it_shows_its_name_and_token_and_no_secret_in_the_url(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    agent = await start_agent(make_config())
    with trio.fail_after(20):
        await agent.wait_connected()
    session = await proxy.next_session()
    (request,) = proxy.requests
    assert request.token == "dev1-token"
    assert request.header("Tunnelmux-Device") == "dev1"
    assert request.header("Tunnelmux-Services") == "nothing"
    assert request.target == "/tunnel/connect"
    assert request.subprotocols == ("tunnelmux.v1",)
    assert await session.ping() >= 0


async def test_a_lost_session_is_made_anew_and_told_in_one_line(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    with structlog.testing.capture_logs() as logs:
        await start_agent(make_config(backoff=FAST))
        (await proxy.next_session()).abort()
        second = await proxy.next_session()
        assert await second.ping() >= 0
    ended = [line for line in logs if line["event"] == "session ended"]
    assert len(ended) == 1
    assert ended[0]["reason"]
    assert {"bytes_to_proxy", "bytes_from_proxy", "duration", "device"} <= ended[0].keys()
    (again,) = [line for line in logs if line["event"] == "connecting again"]
    assert 0 <= again["retry_in"] <= 0.02


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (No(401, "unauthorized", "no device has this token"), "check proxy.token"),
        (No(401, "token-expired", "the invitation is used up"), "ask for a new join line"),
        (No(403, "device-disabled", "dev1 is disabled"), "enable the device in the proxy's"),
        (No(403, "forbidden", "not from here"), "ask the proxy's operator"),
    ],
)
async def test_a_refusal_for_good_ends_the_agent_with_what_to_do(
    make_config: MakeConfig, answer: No, words: str
) -> None:
    async with fake_proxy(lambda _request: answer) as proxy:
        config = make_config(proxy=ProxyEndpoint(url=proxy.url, token=Secret("s3cret")))
        with pytest.raises(AgentRefused) as caught:
            await run_to_its_end(config)
        assert len(proxy.requests) == 1, "never tried again"
    assert not caught.value.retryable
    assert caught.value.reason == answer.reason
    message = str(caught.value)
    assert words in message and answer.text in message and "s3cret" not in message


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, "bad-request"), (429, None), (500, None), (503, "proxy-draining")]
    + [(status, None) for status in (200, 302, 401, 403, 407)],
)
async def test_other_refusals_are_tried_again_after_the_hint(
    make_config: MakeConfig, start_agent: StartAgent, status: int, reason: str | None
) -> None:
    requests, seen = trio.open_memory_channel[UpgradeRequest](100)

    def answer(request: UpgradeRequest) -> No | list[tuple[bytes, bytes]]:
        requests.send_nowait(request)
        return No(status, reason, headers=((b"Retry-After", b"0"),))

    async with fake_proxy(answer) as proxy:
        # Without the hint the wait would be up to ten minutes.
        slow = BackoffConfig(minimum=0.02, maximum=600.0)
        config = make_config(proxy=ProxyEndpoint(url=proxy.url, token=Secret("t")), backoff=slow)
        await start_agent(config)
        with trio.fail_after(20):
            for _ in range(6):
                await seen.receive()


@pytest.mark.parametrize("is_right", [True, False])
async def test_a_pinned_proxy_is_dialled_over_tls_and_an_impostor_is_not(
    make_config: MakeConfig, is_right: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = trustme.CA().issue_cert("somewhere.example")
    certificate.configure_cert(context)
    der = ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())
    pin = certificate_pin(der) if is_right else "sha256:" + "0" * 64
    async with fake_proxy(ssl_context=context) as proxy:
        endpoint = ProxyEndpoint(url=proxy.url, token=Secret("t"), pin=pin)
        config = make_config(proxy=endpoint, backoff=FAST)
        if is_right:
            await run_until_connected(config)
        else:
            with structlog.testing.capture_logs() as logs, trio.move_on_after(0.3):
                await run_agent(config)
            assert len(logs) > 1, "it may be a login page of the network: it is tried again"
            assert "not the pinned one: expected sha256:0000" in logs[0]["cause"]
            assert proxy.requests == [], "the token was not sent"


async def test_nobody_listening_is_tried_again(
    make_config: MakeConfig, start_agent: StartAgent
) -> None:
    async with fake_proxy() as gone:
        config = make_config(proxy=ProxyEndpoint(url=gone.url, token=Secret("t")), backoff=FAST)
    with structlog.testing.capture_logs() as logs:
        await start_agent(config)
        await trio.sleep(0.2)
    assert len(logs) >= 3
    assert {line["event"] for line in logs} == {"not connected"}
    assert "connection refused" in logs[0]["cause"] and logs[0]["retry_in"] <= 0.02


async def open_streams_until_refused(session: Session) -> None:
    while True:
        (await session.open_stream()).reset()
        await session.ping()


async def test_a_drain_lets_streams_finish_and_takes_no_new_ones(
    proxy: FakeProxy, make_config: MakeConfig, nursery: trio.Nursery, start_target: StartTarget
) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    port = await start_target(echo)
    config = make_config(ServiceConfig(name="echo", target=f"tcp://127.0.0.1:{port}"))
    agent = await nursery.start(run_agent, config)
    session = await proxy.next_session()
    stream = await session.open_stream()
    await stream.send_all(b"CONNECT echo HTTP/1.1\r\nHost: echo\r\n\r\nbefore")
    received = b""
    while not received.endswith(b"before"):
        received += await stream.receive_some()
    async with trio.open_nursery() as draining:
        draining.start_soon(agent.drain, 300.0)
        with trio.fail_after(20), pytest.raises(SessionError):
            await open_streams_until_refused(session)
        await stream.send_all(b"during")
        assert await next_bytes(stream, 6) == b"during"
        await stream.send_eof()
        assert await stream.receive_some() == b""
    with trio.fail_after(20):
        await session.wait_closed()
    assert len(proxy.requests) == 1


async def test_a_drain_cuts_what_outlasts_its_grace(
    proxy: FakeProxy, make_config: MakeConfig, nursery: trio.Nursery, start_target: StartTarget
) -> None:
    async def hang(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await trio.sleep_forever()

    port = await start_target(hang)
    config = make_config(ServiceConfig(name="slow", target=f"tcp://127.0.0.1:{port}"))
    agent = await nursery.start(run_agent, config)
    session = await proxy.next_session()
    stream = await session.open_stream()
    await stream.send_all(b"CONNECT slow HTTP/1.1\r\nHost: slow\r\n\r\nx")
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
    with trio.fail_after(20):
        await agent.drain(0.05)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_a_drain_while_not_connected_ends_at_once(
    make_config: MakeConfig, nursery: trio.Nursery
) -> None:
    async with fake_proxy() as gone:
        config = make_config(proxy=ProxyEndpoint(url=gone.url, token=Secret("t")))
    agent = await nursery.start(run_agent, config)
    with trio.fail_after(20):
        await agent.drain(300.0)


# --------------------------------------------------------------------------------- joining


class Enrolling:
    """A proxy that gives a permanent token for an invitation, once."""

    def __init__(self) -> None:
        self.invitations = {"once-1", "once-2"}
        self.shown: list[str | None] = []

    def answer(self, request: UpgradeRequest) -> No | list[tuple[bytes, bytes]]:
        self.shown.append(request.token)
        if request.token in self.invitations:
            self.invitations.remove(request.token)
            return [(b"Tunnelmux-Token", b"for-ever-" + request.token.encode()[-1:])]
        if request.token in {"for-ever-1", "for-ever-2"}:
            return []
        return No(401, "token-expired", "the invitation was used before")


def joining(url: str, token: str, folder: Path) -> AgentConfig:
    line = encode_join(JoinInvitation(url=url, token=Secret(token)))
    return AgentConfig(
        proxy=ProxyEndpoint(join=Secret(line)),
        device=Device(name="dev1", state_dir=folder),
        services=[ServiceConfig(name="web", target="http://127.0.0.1:1")],
        backoff=FAST,
    )


async def run_until_connected(config: AgentConfig) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            agent = await nursery.start(run_agent, config)
            await agent.wait_connected()
            nursery.cancel_scope.cancel()


async def test_joining_trades_the_single_use_token_for_one_that_is_kept(tmp_path: Path) -> None:
    proxy_side = Enrolling()
    folder = tmp_path / "state" / "agent"
    async with fake_proxy(proxy_side.answer) as proxy:
        config = joining(proxy.url, "once-1", folder)
        with structlog.testing.capture_logs() as logs:
            await run_until_connected(config)
            await run_until_connected(config)  # as after a restart
    assert proxy_side.shown == ["once-1", "for-ever-1"]
    (kept,) = folder.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert "once" not in kept.read_text(), "the invitation is kept as a hash"
    assert "for-ever" not in repr(logs) and "once-1" not in repr(logs)


async def test_a_session_lost_after_joining_comes_back_with_the_permanent_token(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    proxy_side = Enrolling()
    async with fake_proxy(proxy_side.answer) as proxy:
        await nursery.start(run_agent, joining(proxy.url, "once-1", tmp_path))
        (await proxy.next_session()).abort()
        await proxy.next_session()
    assert proxy_side.shown[:2] == ["once-1", "for-ever-1"]
    nursery.cancel_scope.cancel()


async def test_a_new_join_line_takes_the_place_of_an_old_token(tmp_path: Path) -> None:
    proxy_side = Enrolling()
    async with fake_proxy(proxy_side.answer) as proxy:
        await run_until_connected(joining(proxy.url, "once-1", tmp_path))
        await run_until_connected(joining(proxy.url, "once-2", tmp_path))
        await run_until_connected(joining(proxy.url, "once-2", tmp_path))
    assert proxy_side.shown == ["once-1", "once-2", "for-ever-2"]


async def test_a_join_line_used_twice_says_to_get_a_new_one(tmp_path: Path) -> None:
    proxy_side = Enrolling()
    async with fake_proxy(proxy_side.answer) as proxy:
        await run_until_connected(joining(proxy.url, "once-1", tmp_path / "one"))
        with pytest.raises(AgentRefused, match="ask for a new join line"):
            await run_to_its_end(joining(proxy.url, "once-1", tmp_path / "two"))


async def test_the_single_use_token_is_not_spent_when_the_answer_cannot_be_kept(
    tmp_path: Path,
) -> None:
    proxy_side = Enrolling()
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    async with fake_proxy(proxy_side.answer) as proxy:
        with pytest.raises(ConfigError, match=r"make it writable or set device\.state_dir"):
            await run_to_its_end(joining(proxy.url, "once-1", blocked))
    assert proxy_side.shown == []


async def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "dev1.json").write_text('{"token": "x')
    with pytest.raises(ConfigError, match=r"dev1\.json is damaged; remove it and join again"):
        await run_to_its_end(joining("ws://127.0.0.1:1/", "once-1", tmp_path))


async def test_a_token_file_that_is_being_replaced_does_not_end_a_working_agent(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    endpoint = ProxyEndpoint(url=proxy.url, token_file=token)
    await start_agent(make_config(proxy=endpoint, backoff=FAST))
    session = await proxy.next_session()
    token.unlink()
    session.abort()
    await trio.sleep(0.05)
    token.write_text("second\n")
    await proxy.next_session()
    assert [request.token for request in proxy.requests] == ["first", "second"]


async def test_a_token_file_that_is_missing_from_the_start_ends_it(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    endpoint = ProxyEndpoint(url="ws://127.0.0.1:1/", token_file=tmp_path / "absent")
    config = msgspec.structs.replace(make_config(), proxy=endpoint)
    with pytest.raises(ConfigError, match="absent"):
        await run_to_its_end(config)
