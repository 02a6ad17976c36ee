"""What a proxy that is not ours can do to a device's token, and what the device does about it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from support.fake_proxy import FakeProxy, No, fake_proxy
from tunnelmux import Session
from tunnelmux.agent import AgentRefused, RunningAgent, run_agent
from tunnelmux.agent.earlier_tokens import FRESH, MAX_EARLIER, EarlierTokens
from tunnelmux.config import (
    AgentConfig,
    BackoffConfig,
    Device,
    JoinInvitation,
    ProxyEndpoint,
    Secret,
    encode_join,
)
from tunnelmux.config.private_file import write_private
from tunnelmux.errors import ConfigError
from tunnelmux.transports import UpgradeRequest
from tunnelmux.wire import PROVED

StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
MakeConfig = Callable[..., AgentConfig]
FAST = BackoffConfig(minimum=0.01, maximum=0.02)


class Good:
    """A proxy's answers: it knows one token, and refuses the others for good."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: UpgradeRequest) -> No | list[tuple[bytes, bytes]]:
        if request.token != self.token:
            return No(401, "unauthorized", "no device has this token")
        return No(200, PROVED) if request.header("Tunnelmux-Prove") else []


def believes_all(request: UpgradeRequest) -> No | list[tuple[bytes, bytes]]:
    """The answers of a proxy that wants to be the only one: each token is good."""
    return No(200, PROVED) if request.header("Tunnelmux-Prove") else []


async def give(session: Session, token: str) -> tuple[int, str]:
    """Give the agent of this session another token; the status of its answer, and its body."""
    body = json.dumps({"token": token}).encode()
    head = (
        b"POST http://agent.tunnelmux/v1/credential HTTP/1.1\r\nHost: agent.tunnelmux\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    stream = await session.open_stream()
    await stream.send_all(head + body)
    with trio.fail_after(30):
        answer = b"".join([data async for data in stream])
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2].decode()


def events(logs: list[Any]) -> list[str]:
    return [line["event"] for line in logs]


def at(proxy: FakeProxy, token_file: Path) -> ProxyEndpoint:
    return ProxyEndpoint(url=proxy.url, token_file=token_file)


@pytest.mark.parametrize("times", [1, MAX_EARLIER])
async def test_a_hostile_proxy_does_not_lock_a_device_out_of_a_good_one(
    make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path, times: int
) -> None:
    file = tmp_path / "token"
    file.write_text("good-token\n")
    async with fake_proxy(believes_all) as hostile, trio.open_nursery() as nursery:
        await nursery.start(run_agent, make_config(proxy=at(hostile, file), backoff=FAST))
        session = await hostile.next_session()
        for number in range(times):
            assert (await give(session, f"evil-{number}"))[0] == 200
        status, said = await give(session, "one-more")
        assert status == (200 if times < MAX_EARLIER else 403), said
        nursery.cancel_scope.cancel()
    async with fake_proxy(Good("good-token")) as good:
        with structlog.testing.capture_logs() as logs:
            agent = await start_agent(make_config(proxy=at(good, file), backoff=FAST))
            with trio.fail_after(30):
                await agent.wait_connected()
        assert events(logs).count("token put back") == 1
        assert file.read_text().strip() == "good-token"
        assert good.requests[-1].token == "good-token"
        assert "evil" not in repr(logs) and "good-token" not in repr(logs)


async def test_the_old_token_is_beside_the_new_one_for_its_owner_only(
    make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    async with fake_proxy(believes_all) as proxy:
        await start_agent(make_config(proxy=at(proxy, file), backoff=FAST))
        assert await give(await proxy.next_session(), "second") == (
            200,
            '{"proved": true, "cause": null}\n',
        )
    beside = tmp_path / "token.earlier"
    assert beside.stat().st_mode & 0o777 == 0o600
    assert EarlierTokens(file).of(Secret("second")) == [Secret("first")]


async def test_what_was_joined_is_kept_as_well(
    make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    def hostile_answer(request: UpgradeRequest) -> No | list[tuple[bytes, bytes]]:
        given = request.token == "once"
        return [(b"Tunnelmux-Token", b"joined")] if given else believes_all(request)

    device = Device(name="dev1", state_dir=tmp_path)
    async with fake_proxy(hostile_answer) as hostile:
        line = encode_join(JoinInvitation(url=hostile.url, token=Secret("once")))
        endpoint = ProxyEndpoint(url=hostile.url, join=Secret(line))
        async with trio.open_nursery() as nursery:
            await nursery.start(run_agent, make_config(proxy=endpoint, device=device))
            assert (await give(await hostile.next_session(), "evil"))[0] == 200
            nursery.cancel_scope.cancel()
        hostile.answer = Good("joined")
        config = make_config(proxy=endpoint, device=device, backoff=FAST)
        again = await start_agent(config)
        with trio.fail_after(30):
            await again.wait_connected()
        assert [request.token for request in hostile.requests[-2:]] == ["evil", "joined"]
    assert json.loads((tmp_path / "dev1.json").read_bytes())["token"] == "joined"


async def test_a_token_that_nobody_asked_for_is_ignored(
    make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    answers = iter([b"joined", b"evil"])
    device = Device(name="dev1", state_dir=tmp_path)
    async with fake_proxy(lambda _request: [(b"Tunnelmux-Token", next(answers))]) as proxy:
        line = encode_join(JoinInvitation(url=proxy.url, token=Secret("once")))
        endpoint = ProxyEndpoint(url=proxy.url, join=Secret(line))
        with structlog.testing.capture_logs() as logs:
            config = make_config(proxy=endpoint, device=device, backoff=FAST)
            agent = await start_agent(config)
            with trio.fail_after(30):
                await agent.wait_connected()
                (await proxy.next_session()).abort()
                await proxy.next_session()
                await agent.wait_connected()
                while "token ignored" not in events(logs):  # noqa: ASYNC110  no event says so
                    await trio.sleep(0.01)
            proxy.answer = Good("joined")
            again = await start_agent(config)
            with trio.fail_after(30):
                await again.wait_connected()
            assert proxy.requests[-1].token == "joined"
    assert json.loads((tmp_path / "dev1.json").read_bytes())["token"] == "joined"
    (ignored,) = [line for line in logs if line["event"] == "token ignored"]
    assert "evil" not in repr(ignored)


async def test_an_agent_that_took_the_place_of_another_says_so(
    make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    fields = [(b"Tunnelmux-Token", b"joined"), (b"Tunnelmux-Replaced", b"yes")]
    device = Device(name="dev1", state_dir=tmp_path)
    async with fake_proxy(lambda _request: fields) as proxy:
        line = encode_join(JoinInvitation(url=proxy.url, token=Secret("once")))
        endpoint = ProxyEndpoint(url=proxy.url, join=Secret(line))
        with structlog.testing.capture_logs() as logs:
            agent = await start_agent(make_config(proxy=endpoint, device=device))
            with trio.fail_after(30):
                await agent.wait_connected()
    (said,) = [line for line in logs if line["event"] == "joined in place of another"]
    assert (said["log_level"], said["device"]) == ("warning", "dev1")


async def test_a_token_that_a_person_wrote_down_is_shown_alone(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("third")
    EarlierTokens(file).keep(Secret("first"), replaced_by=Secret("second"))
    async with fake_proxy(Good("first")) as proxy:
        with pytest.raises(AgentRefused), trio.fail_after(30):
            await run_agent(make_config(proxy=at(proxy, file)))
        assert [request.token for request in proxy.requests] == ["third"]


async def test_a_device_that_no_proxy_knows_ends_when_all_were_shown(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("second")
    EarlierTokens(file).keep(Secret("first"), replaced_by=Secret("second"))
    async with fake_proxy(Good("none")) as proxy:
        with pytest.raises(AgentRefused), trio.fail_after(30):
            await run_agent(make_config(proxy=at(proxy, file), backoff=FAST))
        assert [request.token for request in proxy.requests] == ["second", "first"]
    assert file.read_text() == "second"


@pytest.mark.parametrize("written", [0, 1, 2])
async def test_a_crash_at_each_step_leaves_a_token_that_is_good(
    make_config: MakeConfig,
    start_agent: StartAgent,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: int,
) -> None:
    """After so many files were written the agent dies; both tokens are good then, or the old."""
    file = tmp_path / "token"
    file.write_text("first")
    writes = 0

    def write(path: Path, content: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes > written:
            raise OSError(5, "power cut")
        write_private(path, content)

    for module in ("credentials", "earlier_tokens"):
        monkeypatch.setattr(f"tunnelmux.agent.{module}.write_private", write)
    async with fake_proxy(believes_all) as proxy, trio.open_nursery() as nursery:
        await nursery.start(run_agent, make_config(proxy=at(proxy, file)))
        await give(await proxy.next_session(), "second")
        nursery.cancel_scope.cancel()
    monkeypatch.undo()
    # No proof came about before the last write, so the registry may have dropped the new one.
    for known in ("first", "second") if written == 2 else ("first",):
        async with fake_proxy(Good(known)) as good, trio.open_nursery() as nursery:
            file_before = file.read_bytes()
            await nursery.start(run_agent, make_config(proxy=at(good, file), backoff=FAST))
            await good.next_session()
            nursery.cancel_scope.cancel()
        file.write_bytes(file_before)


def test_a_place_is_free_again_a_day_later(tmp_path: Path) -> None:
    file = tmp_path / "token"
    now = 1_000_000.0
    tokens = [Secret(f"token-{number}") for number in range(MAX_EARLIER + 2)]
    kept = EarlierTokens(file, now=lambda: now)
    for before, after in pairwise(tokens[: MAX_EARLIER + 1]):
        kept.keep(before, replaced_by=after)
        now += 1
    with pytest.raises(ConfigError, match="within a day"):
        kept.keep(tokens[-2], replaced_by=tokens[-1])
    now += FRESH
    kept.keep(tokens[-2], replaced_by=tokens[-1])
    assert kept.of(tokens[-1]) == tokens[-2:0:-1]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"[" * 50_000, b'{"tokens": [{}]}', b"\xff"]
)
def test_a_damaged_file_holds_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token.earlier").write_bytes(content)
    assert EarlierTokens(tmp_path / "token").of(Secret("t")) == []


async def test_the_wish_of_a_stranger_makes_no_wait_longer(
    make_config: MakeConfig, start_agent: StartAgent
) -> None:
    headers = ((b"Retry-After", b"3600"),)
    async with fake_proxy(lambda _request: No(503, None, headers=headers)) as stranger:
        config = make_config(proxy=ProxyEndpoint(url=stranger.url, token=Secret("t")), backoff=FAST)
        await start_agent(config)
        with trio.fail_after(30):
            while len(stranger.requests) < 3:  # noqa: ASYNC110  no event says so
                await trio.sleep(0.01)


async def test_the_wish_of_a_proxy_is_kept(make_config: MakeConfig) -> None:
    headers = ((b"Retry-After", b"3600"),)
    async with fake_proxy(lambda _request: No(503, "proxy-draining", headers=headers)) as proxy:
        config = make_config(proxy=ProxyEndpoint(url=proxy.url, token=Secret("t")), backoff=FAST)
        with structlog.testing.capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                await nursery.start(run_agent, config)
                with trio.fail_after(30):
                    while "not connected" not in events(logs):  # noqa: ASYNC110  no event says so
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
    (line,) = [line for line in logs if line["event"] == "not connected"]
    assert line["retry_in"] >= 3600
