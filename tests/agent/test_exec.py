"""`POST /v1/exec` on a stream from the proxy, with a real sshd behind it."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio

from support.fake_proxy import FakeProxy
from support.ssh_client import Asker, processes_with, until
from support.sshd import SshServer, running_sshd
from tunnelmux import Session, Stream
from tunnelmux.agent import RunningAgent
from tunnelmux.commands import (
    CommandRequest,
    Event,
    Exited,
    Output,
    Started,
    decode_event,
)
from tunnelmux.config import AgentConfig, AuditConfig, Device, ExecConfig, LimitsConfig
from tunnelmux.errors import ConfigError
from tunnelmux.limits import ExecLimits, IngressLimits

MakeConfig = Callable[..., AgentConfig]
StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]

ALL = {"enabled": True, "hosts": ["*"], "users": ["*"], "commands": ["*"]}
ANYWHERE = {"commandId": "c1", "host": "h", "username": "u", "command": "true"}


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, str]:
        return dict(json.loads(self.body)["error"])


def post(body: bytes, *fields: str, method: str = "POST") -> bytes:
    head = [
        f"{method} http://agent.tunnelmux/v1/exec HTTP/1.1",
        "Host: agent.tunnelmux",
        f"Content-Length: {len(body)}",
        *fields,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


async def ask(session: Session, request: bytes) -> Answer:
    stream = await session.open_stream()
    await stream.send_all(request)
    await stream.send_eof()
    with trio.fail_after(20):
        received = b"".join([data async for data in stream])
    return parsed(received)


def parsed(received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body, rest = b"", body
        while rest != b"0\r\n\r\n":
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return Answer(int(status.split()[1]), headers, body)


def events_of(answer: Answer) -> list[Event]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [decode_event(line) for line in answer.body.splitlines()]


@pytest.fixture
async def start(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path
) -> Callable[..., Awaitable[Session]]:
    """`await start(commands=["uptime"])` is the session of an agent with that [exec]."""

    async def connect(limits: dict[str, object] | None = None, **settings: object) -> Session:
        settings = ALL | settings | {"limits": ExecLimits(**(limits or {}))}  # type: ignore[arg-type]
        config = make_config(
            exec=ExecConfig(**settings),  # type: ignore[arg-type]
            audit=AuditConfig(file=tmp_path / "audit.jsonl"),
            device=Device(name="dev1", state_dir=tmp_path / "state"),
        )
        await start_agent(config)
        return await proxy.next_session()

    return connect


@pytest.fixture
async def sshd(
    tmp_path: Path, debian_program: Callable[[str, str], str]
) -> AsyncIterator[SshServer]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    async with running_sshd(folder, debian_program) as server:
        yield server


def body_of(request: CommandRequest) -> bytes:
    return json.dumps(request.to_json()).encode()


def audit(tmp_path: Path) -> list[dict[str, object]]:
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# -- commands that run ----------------------------------------------------------------------


@pytest.mark.slow
async def test_events_come_as_lines(start, sshd: SshServer, tmp_path: Path) -> None:
    session = await start()
    request = Asker(sshd)("printf out; printf err >&2; exit 3")
    answer = await ask(session, post(body_of(request), "Tunnelmux-Asked-By: J%C3%BCrgen"))
    assert answer.status == 200
    begun, *output, end = events_of(answer)
    assert isinstance(begun, Started) and begun.command_id == request.command_id
    assert sorted(output, key=str) == [Output("stderr", b"err"), Output("stdout", b"out")]
    assert isinstance(end, Exited) and (end.exit_code, end.reason) == (3, None)
    (record,) = audit(tmp_path)
    assert record["asked_by"] == "Jürgen"
    assert record["command"] == request.command and record["exit_code"] == 3
    assert (record["host"], record["user"]) == ("127.0.0.1", sshd.user)
    assert (record["stdout_bytes"], record["stderr_bytes"]) == (3, 3)
    assert "PRIVATE KEY" not in (tmp_path / "audit.jsonl").read_text()
    assert (tmp_path / "state" / "dev1.known_hosts").exists()


@pytest.mark.slow
async def test_the_result_is_one_object_for_who_accepts_json(start, sshd: SshServer) -> None:
    session = await start()
    request = Asker(sshd)(r"printf 'a\377'; exit 4", stdin=b"unread")
    answer = await ask(session, post(body_of(request), "Accept: application/json"))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert json.loads(answer.body) == {
        "commandId": request.command_id,
        "result": {
            "stdout": "a\N{REPLACEMENT CHARACTER}",
            "stderr": "",
            "exitCode": 4,
            "encoding": "utf-8, invalid bytes replaced",
        },
    }


@pytest.mark.slow
async def test_a_failure_to_connect_is_an_end_with_a_reason(start, tmp_path: Path) -> None:
    session = await start()
    content = ANYWHERE | {"host": "127.0.0.1", "port": 1, "password": "never-shown"}
    answer = await ask(session, post(json.dumps(content).encode()))
    assert answer.status == 200
    (end,) = events_of(answer)
    assert isinstance(end, Exited) and (end.exit_code, end.reason) == (255, "refused")
    (record,) = audit(tmp_path)
    assert record["reason"] == "refused"
    assert "never-shown" not in (tmp_path / "audit.jsonl").read_text()


@pytest.mark.slow
async def test_output_comes_at_once_and_a_reset_kills_the_command(
    start, sshd: SshServer, tmp_path: Path
) -> None:
    session = await start()
    word = f"30.{secrets.randbelow(10**12):012}"
    stream: Stream = await session.open_stream()
    await stream.send_all(post(body_of(Asker(sshd)(f"echo live; sleep {word}"))))
    received = b""
    with trio.fail_after(30):
        while b'"stdout"' not in received:
            received += await stream.receive_some()
    # Its command line is empty for a moment while the shell makes way for it.
    await until(lambda: bool(processes_with(word)), "it runs")
    stream.reset()
    await until(lambda: not processes_with(word), "the remote process is gone")
    await until(lambda: (tmp_path / "audit.jsonl").stat().st_size > 0, "it is in the audit")
    (record,) = audit(tmp_path)
    assert record["reason"] == "cancelled"


@pytest.mark.slow
async def test_the_end_of_the_session_kills_its_commands(start, sshd: SshServer) -> None:
    session = await start()
    word = f"30.{secrets.randbelow(10**12):012}"
    stream: Stream = await session.open_stream()
    await stream.send_all(post(body_of(Asker(sshd)(f"sleep {word}"))))
    await until(lambda: bool(processes_with(word)), "it runs")
    await session.aclose()
    await until(lambda: not processes_with(word), "the remote process is gone")


@pytest.mark.slow
async def test_one_command_too_many_is_busy(start, sshd: SshServer) -> None:
    session = await start({"max_concurrent": 1})
    ask_for = Asker(sshd)
    stream: Stream = await session.open_stream()
    await stream.send_all(post(body_of(ask_for("echo live; sleep 1"))))
    await stream.send_eof()
    await stream.receive_some()
    answer = await ask(session, post(body_of(ask_for("true"))))
    assert (answer.status, answer.error["code"]) == (503, "BUSY")
    assert answer.headers["tunnelmux-reason"] == "busy"
    with trio.fail_after(30):
        assert b'"exitCode":0' in b"".join([data async for data in stream])
    answer = await ask(session, post(body_of(ask_for("true"))))
    assert answer.status == 200


# -- commands that do not -------------------------------------------------------------------


async def test_off_is_the_default_and_reads_no_body(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    assert not AgentConfig.__struct_defaults__[
        AgentConfig.__struct_fields__.index("exec") - len(AgentConfig.__struct_fields__)
    ].enabled
    await start_agent(make_config())
    session = await proxy.next_session()
    answer = await ask(session, post(json.dumps(ANYWHERE).encode()))
    assert (answer.status, answer.error["code"]) == (403, "FORBIDDEN")
    assert answer.error["message"] == "This device runs no commands: exec.enabled is off there."


@pytest.mark.parametrize("key", ["hosts", "users", "commands"])
async def test_what_the_lists_do_not_allow_is_forbidden(start, tmp_path: Path, key: str) -> None:
    session = await start(**{key: []})
    answer = await ask(session, post(json.dumps(ANYWHERE).encode()))
    assert (answer.status, answer.error["code"]) == (403, "FORBIDDEN")
    assert f"add it to exec.{key}" in answer.error["message"]
    assert answer.headers["tunnelmux-reason"] == "forbidden"
    (record,) = audit(tmp_path)
    assert (record["reason"], record["exit_code"]) == ("forbidden", 126)


async def test_forbidden_commands_do_not_fill_the_audit(start, tmp_path: Path) -> None:
    session = await start(commands=[])
    for _ in range(62):
        answer = await ask(session, post(json.dumps(ANYWHERE | {"command": "x" * 10_000}).encode()))
        assert answer.status == 403
    records = audit(tmp_path)
    assert len(records) == 60
    assert all(len(str(record["command"])) == 4096 for record in records)
    info = await ask(session, b"GET http://agent.tunnelmux/v1/info HTTP/1.1\r\nHost: a\r\n\r\n")
    assert json.loads(info.body)["exec"]["refused"] == 62


async def test_a_longer_time_than_allowed_is_forbidden(start) -> None:
    session = await start({"max_timeout": 5.0})
    answer = await ask(session, post(json.dumps(ANYWHERE | {"timeout": 5001}).encode()))
    assert (answer.status, answer.error["code"]) == (403, "FORBIDDEN")
    assert "at most 5 s" in answer.error["message"]


@pytest.mark.parametrize(
    ("content", "code", "field"),
    [
        (b"no json", "INVALID_JSON", None),
        (b"[" * 60_000, "INVALID_JSON", None),
        (b"[]", "INVALID_COMMAND", ""),
        ({"commandId": None}, "INVALID_COMMAND", "commandId"),
        ({"host": 5}, "INVALID_COMMAND", "host"),
        ({"port": "22"}, "INVALID_COMMAND", "port"),
        ({"timeout": 0}, "INVALID_COMMAND", "timeout"),
        ({"timeout": -1}, "INVALID_COMMAND", "timeout"),
        ({"privateKey": 7}, "INVALID_COMMAND", "privateKey"),
    ],
)
async def test_a_malformed_command_is_told_what_is_wrong(
    start, content: bytes | dict[str, object], code: str, field: str | None
) -> None:
    session = await start()
    body = json.dumps(ANYWHERE | content).encode() if isinstance(content, dict) else content
    answer = await ask(session, post(body))
    assert (answer.status, answer.error["code"]) == (400, code)
    assert answer.error.get("field") == field


async def test_a_request_over_the_limit_is_413(start) -> None:
    session = await start({"max_request": 200})
    body = json.dumps(ANYWHERE | {"stdin": "A" * 400}).encode()
    answer = await ask(session, post(body))
    assert (answer.status, answer.error["code"]) == (413, "BODY_TOO_LARGE")


async def test_no_more_requests_are_read_at_once_than_commands_may_run(start) -> None:
    """1,024 streams with a body of 1 MB each that never ends were a gigabyte."""
    session = await start({"max_concurrent": 2})
    body = json.dumps(ANYWHERE | {"command": "x" * 1_000_000}).encode()
    unfinished = [await session.open_stream() for _ in range(2)]
    for stream in unfinished:  # more than buffers and window take: the agent has begun to read
        await stream.send_all(post(body)[:900_000])
    answer = await ask(session, post(body)[:200])
    assert (answer.status, answer.error["code"]) == (503, "BUSY")
    assert answer.headers["tunnelmux-reason"] == "busy"
    unfinished[0].reset()
    with trio.fail_after(30):
        while (answer := await ask(session, post(b"no JSON"))).status == 503:
            await trio.lowlevel.checkpoint()
    assert (answer.status, answer.error["code"]) == (400, "INVALID_JSON")


async def test_only_post_is_taken(start) -> None:
    session = await start()
    answer = await ask(session, post(b"", method="GET"))
    assert (answer.status, answer.error["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "POST"


async def test_a_body_that_does_not_come_is_408(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent
) -> None:
    limits = LimitsConfig(ingress=IngressLimits(response_timeout=0.2))
    await start_agent(make_config(exec=ExecConfig(**ALL), limits=limits))
    session = await proxy.next_session()
    stream = await session.open_stream()
    await stream.send_all(post(b"x" * 50)[:-10])
    with trio.fail_after(20):
        received = b"".join([data async for data in stream])
    assert parsed(received).status == 408


async def test_a_visitors_host_field_does_not_lead_to_the_agent(start) -> None:
    session = await start()
    request = post(json.dumps(ANYWHERE).encode()).replace(b"http://agent.tunnelmux/", b"/")
    answer = await ask(session, request)
    assert answer.status == 404  # there is no HTTP service here


async def test_info_tells_of_commands(start) -> None:
    session = await start()
    request = b"GET http://agent.tunnelmux/v1/info HTTP/1.1\r\nHost: agent.tunnelmux\r\n\r\n"
    content = json.loads((await ask(session, request)).body)
    assert content["exec"]["enabled"] is True
    assert (content["exec"]["running"], content["exec"]["connections"]) == (0, 0)


# -- the agent around it --------------------------------------------------------------------


def test_an_agent_without_exec_imports_neither_asyncssh_nor_asyncio_bridges() -> None:
    code = (
        "import sys, tunnelmux, tunnelmux.agent, tunnelmux.cli.agent, tunnelmux.proxy\n"
        "print([n for n in ('asyncssh', 'trio_asyncio', 'tunnelmux.ssh') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


async def test_when_ssh_cannot_be_imported_only_commands_fail(start, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tunnelmux.ssh", None)
    session = await start()
    answer = await ask(session, post(json.dumps(ANYWHERE).encode()))
    assert (answer.status, answer.error["code"]) == (503, "UNAVAILABLE")
    info = b"GET http://agent.tunnelmux/v1/info HTTP/1.1\r\nHost: agent.tunnelmux\r\n\r\n"
    assert (await ask(session, info)).status == 200


async def test_an_audit_file_that_cannot_be_written_stops_the_agent(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    from tunnelmux.agent import run_agent

    config = make_config(exec=ExecConfig(**ALL), audit=AuditConfig(file=tmp_path / "no" / "file"))
    with pytest.raises(ConfigError, match=r"^audit\.file: "):
        await run_agent(config)
