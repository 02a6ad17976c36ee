"""Targets that are asked whether they are well, and what visitors get while they are not."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest
import structlog
import trio

from support.fake_proxy import FakeProxy
from tunnelmux.agent import RunningAgent
from tunnelmux.agent.health import HealthChecks
from tunnelmux.agent.monitoring import describe_health
from tunnelmux.agent.targets import TargetConnector
from tunnelmux.config import AgentConfig, ServiceConfig
from tunnelmux.config.rules import InvalidSetting
from tunnelmux.limits import IngressLimits

StartTarget = Callable[[Callable[[trio.SocketStream], Awaitable[None]]], Awaitable[int]]
StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
MakeConfig = Callable[..., AgentConfig]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BROKEN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
SILENT = b""
INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"

CHECKED = ServiceConfig(name="web", target="http://127.0.0.1:8000", check="/healthz")


class Network(TargetConnector):
    """A target that answers each connection as the test says."""

    def __init__(
        self, service: ServiceConfig, answers: list[bytes | OSError], nursery: trio.Nursery
    ) -> None:
        super().__init__(service)
        self._nursery = nursery
        self.answers = answers
        """One for each connection; the last for all that follow. OSError: it cannot be made."""
        self.asked: list[bytes] = []
        self.times: list[float] = []

    async def _dial(self) -> trio.SocketStream:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.times.append(trio.current_time())
        if isinstance(answer, OSError):
            raise answer
        here, there = trio.socket.socketpair()
        self._nursery.start_soon(self._answer, trio.SocketStream(there), answer)
        return trio.SocketStream(here)

    async def _answer(self, stream: trio.SocketStream, answer: bytes) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                self.asked.append(bytes(await stream.receive_some()))
                await stream.send_all(answer)
                await stream.receive_some()


async def checked(
    nursery: trio.Nursery, service: ServiceConfig, *answers: bytes | OSError
) -> tuple[HealthChecks, Network]:
    network = Network(service, list(answers), nursery)
    checks = HealthChecks(IngressLimits())
    checks.configure([(service, network)])
    nursery.start_soon(checks.run)
    return checks, network


async def rounds(count: int) -> None:
    """Let so many checks of CHECKED be over, and the next not have begun."""
    await trio.sleep(count * CHECKED.check_interval - 1)


async def test_a_target_is_down_after_failures_in_a_row_and_up_after_one_that_succeeds(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    with structlog.testing.capture_logs() as lines:
        answers = (OK, BROKEN, OK, BROKEN, BROKEN, BROKEN, INTERIM + OK)
        checks, network = await checked(nursery, CHECKED, *answers)
        assert checks.down("web") == ""  # what has just started must not be refused
        await rounds(1)
        began = [health.since for health in checks]
        assert began != [None]
        for expected in ("", "", "", "answered GET /healthz with 503"):
            await trio.sleep(CHECKED.check_interval)
            assert checks.down("web") == expected
        assert checks.down("other") == ""
        await trio.sleep(2 * CHECKED.check_interval)
        assert checks.down("web") == ""
        assert [health.since for health in checks] != began
    assert network.asked[0].startswith(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n")
    assert [(line["event"], line.get("cause")) for line in lines] == [
        ("service down", "answered GET /healthz with 503"),
        ("service up", None),
    ]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (SILENT, "gave no answer to GET /healthz within 3 s"),
        (b"SSH-2.0-x\r\n\r\n", "did not answer GET /healthz: it did not answer in HTTP"),
        (ConnectionRefusedError(111, "refused"), "refused the connection: check that it runs"),
        (OSError(113, "No route to host"), "cannot be reached from the device: "),
    ],
    ids=["silent", "not HTTP", "refused", "no route"],
)
async def test_what_is_wrong_is_said_without_the_address(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    answer: bytes | OSError,
    says: str,
) -> None:
    checks, network = await checked(nursery, CHECKED, answer)
    await rounds(2)
    assert checks.down("web").startswith(says)
    assert "127.0.0.1" not in checks.down("web")
    assert network.times == [0, CHECKED.check_interval]


async def test_tcp_is_a_connection_and_nothing_more(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    service = ServiceConfig(name="db", target="tcp://127.0.0.1:5432", check="tcp", check_failures=1)
    checks, network = await checked(nursery, service, OK, ConnectionRefusedError(111, "refused"))
    await rounds(1)
    assert checks.down("db") == ""
    await trio.sleep(service.check_interval)
    assert checks.down("db").startswith("refused the connection")
    assert [data for data in network.asked if data] == []


async def test_another_configuration_begins_anew_where_it_says_something_else(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    checks, network = await checked(nursery, CHECKED, BROKEN)
    await rounds(2)
    assert checks.down("web")
    checks.configure([(CHECKED, network)])
    assert checks.down("web")
    other = ServiceConfig(name="web", target="http://127.0.0.1:8000", check="/other")
    checks.configure([(other, network)])
    assert checks.down("web") == ""
    await rounds(1)
    assert network.asked[-1].startswith(b"GET /other ")
    checks.configure([(ServiceConfig(name="web", target="http://127.0.0.1:8000"), network)])
    asked = len(network.asked)
    await rounds(5)
    assert (list(checks), len(network.asked)) == ([], asked)


async def test_visitors_of_a_target_that_is_down_are_told_at_once(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    nursery: trio.Nursery,
) -> None:
    answers = {b"GET": BROKEN}
    visits = []

    async def target(stream: trio.SocketStream) -> None:
        asked = bytes(await stream.receive_some())
        if b"GET /healthz" not in asked:
            visits.append(asked)
        await stream.send_all(answers[b"GET"])
        await stream.receive_some()

    port = await start_target(target)
    service = ServiceConfig(
        name="web", target=f"http://127.0.0.1:{port}", check="/healthz", check_failures=1
    )
    agent = await start_agent(make_config(service))
    session = await proxy.next_session()
    with trio.fail_after(30):
        while not agent.health.down("web"):
            await trio.lowlevel.checkpoint()
    for request in (b"GET /", b"CONNECT web"):
        stream = await session.open_stream()
        await stream.send_all(request + b" HTTP/1.1\r\nHost: web\r\n\r\n")
        answer = b""
        with trio.fail_after(30):
            while b"\r\n\r\n" not in answer:
                answer += await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"Tunnelmux-Reason: target-down\r\n" in answer
        await stream.aclose()
    assert visits == []
    [told] = describe_health(agent)["services"]
    assert (told["service"], told["up"]) == ("web", False)
    assert told["why"] == "answered GET /healthz with 503"
    answers[b"GET"] = OK
    well = ServiceConfig(name="web", target=service.target, check="/ready", check_failures=1)
    await agent.reload(make_config(well))
    assert agent.health.down("web") == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"check": "healthz"}, 'neither "tcp" nor a path'),
        ({"check": "/a b"}, 'neither "tcp" nor a path'),
        ({"target": "tcp://127.0.0.1:1"}, 'write "tcp"'),
        ({"check_interval": 0.5}, "not from 1 to 3600"),
        ({"check_interval": 3601.0}, "not from 1 to 3600"),
        ({"check_timeout": 11.0}, "at most check_interval"),
        ({"check_interval": 1.0}, r"at most check_interval \(1\): set check_timeout too"),
        ({"check_timeout": 0.0}, "not above 0"),
        ({"check_failures": 0}, "not from 1 to 100"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, object], says: str) -> None:
    settings = {"name": "web", "target": "http://127.0.0.1:1", "check": "/healthz"} | changes
    with pytest.raises(InvalidSetting, match=says):
        ServiceConfig(**settings)
