"""The directory in Redis when Redis fails, and the ways to reach one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trustme

from support.origin import serving
from support.programs import require_program
from support.proxies import free_port
from support.redis_server import RedisServer, run_redis
from tunnelmux.directory import Heard, Held, Node, Swept
from tunnelmux.directory.event_stream import EventStream
from tunnelmux.directory.redis import RedisDirectory
from tunnelmux.directory.resp import RedisFailed, open_redis
from tunnelmux.directory.scripts import SCRIPTS, whole
from tunnelmux.errors import ConfigError, DirectoryAway

ME = Node(name="a", incarnation="1")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with run_redis() as server:
        yield server


@asynccontextmanager
async def joined(url: str, **options: Path) -> AsyncIterator[RedisDirectory]:
    async with open_redis(url, **options) as redis:
        directory = RedisDirectory(redis, "a", "1", timeout=20)
        await directory.beat(ME, Heard())
        await directory.republish([])
        yield directory


@pytest.mark.slow
async def test_a_frozen_redis_is_away_within_a_second(server: RedisServer) -> None:
    async with open_redis(server.url) as redis:
        directory = RedisDirectory(redis, "a", "1")
        patient = RedisDirectory(redis, "a", "1", timeout=30)
        await patient.beat(ME, Heard())
        os.kill(server.pid, signal.SIGSTOP)
        try:
            began = trio.current_time()
            with pytest.raises(DirectoryAway, match=r"Redis gave no answer within 1 s"):
                await directory.claim("dev1", "i1")
            assert trio.current_time() - began < 20
        finally:
            os.kill(server.pid, signal.SIGCONT)
        # What was asked for happened all the same, later: it has to be claimed again or released.
        new = await patient.claim("dev1", "i1")
        assert [place.generation for place in await patient.find("dev1")] == [new.generation]


async def test_what_a_killed_redis_kept_is_said_again(server: RedisServer) -> None:
    async with joined(server.url) as directory:
        claim = await directory.claim("dev1", "i1")
        heard = (await directory.beat(ME, Heard())).heard
        server.kill()
        with pytest.raises(DirectoryAway, match=r"Redis: "):
            await directory.find("dev1")
        server.start()
        beat = await directory.beat(ME, heard)
        assert beat.resync
        assert beat.nodes == {"a": ME}
        assert await directory.find("dev1") == []
        await directory.republish([Held("dev1", "i1", claim.generation)])
        [place] = await directory.find("dev1")
        assert place.generation == claim.generation
        assert not (await directory.beat(ME, beat.heard)).resync
        # Generations survive the loss of all that was kept.
        newer = await directory.claim("dev1", "i2", least=claim.generation)
        assert newer.generation > claim.generation


async def test_a_replica_that_missed_writes_is_told_all_again(server: RedisServer) -> None:
    async with joined(server.url) as directory:
        await directory.claim("dev1", "i1")
        server.command("HINCRBY", "tunnelmux:writes", "a|1", "-1")
        server.command("DEL", *[f"tunnelmux:places:{number}" for number in range(16)])
        assert (await directory.beat(ME, Heard())).resync


async def test_nobody_is_dead_for_what_redis_slept_itself(server: RedisServer) -> None:
    async with joined(server.url) as directory:
        other = Node(name="b", incarnation="1")
        await directory.beat(other, Heard())
        asleep = """
        for _, me in ipairs({'a|1', 'b|1'}) do redis.call('ZADD', 'tunnelmux:live', 1, me) end
        redis.call('SET', 'tunnelmux:last', redis.call('TIME')[1] * 1000 - 10000)
        return 1
        """
        server.command("EVAL", asleep, "0")
        assert set((await directory.beat(ME, Heard())).nodes or ()) == {"a", "b"}


async def test_a_wrong_password_is_said_without_showing_any() -> None:
    with run_redis("--requirepass", "correct-horse") as server:
        async with joined(server.url.replace("unix://", "unix://:correct-horse@")) as directory:
            assert (await directory.claim("dev1", "i1")).generation
        async with open_redis(server.url.replace("unix://", "unix://:wrong-horse@")) as redis:
            directory = RedisDirectory(redis, "a", "1", timeout=20)
            with pytest.raises(DirectoryAway) as caught:
                await directory.find("dev1")
            assert "horse" not in str(caught.value)


def documented_rule() -> list[str]:
    """The user of docs/cluster.md, as ACL SETUSER takes it."""
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    [line] = re.findall(r"^user (tunnelmux on .*)$", page, flags=re.MULTILINE)
    return str(line).split()


async def test_a_user_who_may_do_no_more_than_the_page_says(server: RedisServer) -> None:
    rule = documented_rule()
    server.command("ACL", "SETUSER", *rule)
    url = server.url.replace("unix://", "unix://tunnelmux:THE-PASSWORD@")
    heard: list[str] = []
    stream = EventStream(10, lambda _epoch, _last: None, lambda _number, text: heard.append(text))
    async with joined(url) as directory, trio.open_nursery() as nursery:
        other = RedisDirectory(directory._redis, "b", "1", timeout=20)
        await other.beat(Node(name="b", incarnation="1"), Heard())
        await other.republish([])
        first = await directory.claim("dev1", "i1")
        second = await other.claim("dev1", "i2")
        assert (await directory.beat(ME, Heard())).superseded == [("dev1", first.generation)]
        assert await other.release("dev1", second.generation)
        assert await directory.sweep("{device}") == Swept(0)
        await other.leave()
        with pytest.raises(RedisFailed, match="NOPERM"):
            await directory._redis.wait_entry("another:program", "0", 0.01)
        await nursery.start(stream.run, directory._redis)
        stream.publish("event")
        with trio.fail_after(30):
            while not heard:  # noqa: ASYNC110  no event says so
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    # Those of branches that are taken when Redis holds odd values, too.
    text = "".join(whole(name, lease=0, most_places=0, shards=0) for name in SCRIPTS)
    used = set(re.findall(r"redis\.p?call\('([A-Z]+)'", text))
    assert used <= {word.removeprefix("+").upper() for word in rule if word.startswith("+")}


@contextmanager
def on_free_port(start: Callable[[int], RedisServer]) -> Iterator[tuple[RedisServer, int]]:
    """A server on a port that it takes before others do; it is asked to try others."""
    for _ in range(20):
        port = free_port()
        server = start(port)
        try:
            server.start()
        except OSError:
            continue
        try:
            yield server, port
        finally:
            server.kill()
        return
    pytest.fail("no free port was found")


async def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    program = require_program("redis-server", "redis-server")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca_file, chain, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    certificate.cert_chain_pems[0].write_to_path(str(chain))
    certificate.private_key_pem.write_to_path(str(key))
    files = ["--tls-cert-file", str(chain), "--tls-key-file", str(key)]
    with TemporaryDirectory(prefix="redis-") as folder:

        def make(port: int) -> RedisServer:
            options = ["--tls-port", str(port), *files, "--tls-auth-clients", "no"]
            return RedisServer(program, Path(folder), *options)

        with on_free_port(make) as (_, port):
            url = f"rediss://127.0.0.1:{port}"
            async with joined(url, ca_file=ca_file) as directory:
                assert (await directory.claim("dev1", "i1")).generation
            async with open_redis(url) as redis:
                with pytest.raises(DirectoryAway):
                    await RedisDirectory(redis, "a", "1", timeout=20).find("dev1")


async def test_the_primary_is_found_by_its_sentinels(tmp_path: Path) -> None:
    program = require_program("redis-server", "redis-server")
    with TemporaryDirectory(prefix="redis-") as folder:

        def make(port: int) -> RedisServer:
            return RedisServer(program, Path(folder), "--port", str(port))

        with on_free_port(make) as (_, port), running_sentinel(program, tmp_path, port) as sentinel:
            url = f"redis+sentinel://127.0.0.1:{sentinel}/main"
            async with joined(url) as directory:
                claim = await directory.claim("dev1", "i1")
                [place] = await directory.find("dev1")
                assert place.generation == claim.generation


async def test_a_replica_that_the_sentinels_name_is_not_used() -> None:
    """They are behind for a moment when another server has become the primary."""
    asked: list[bytes] = []

    async def replica(stream: trio.SocketStream) -> None:
        async for words in stream:
            asked.append(bytes(words).split(b"\r\n")[2])
            await stream.send_all(b"*3\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:6379\r\n")

    async with serving(replica) as found:
        named = f"*2\r\n${len(found.host)}\r\n{found.host}\r\n$5\r\n{found.port:05}\r\n"

        async def sentinel(stream: trio.SocketStream) -> None:
            async for _ in stream:
                await stream.send_all(named.encode())

        async with (
            serving(sentinel) as address,
            open_redis(f"redis+sentinel://{address}/main") as redis,
        ):
            directory = RedisDirectory(redis, "a", "1", timeout=20)
            with pytest.raises(DirectoryAway, match=r"is not the primary now"):
                await directory.find("dev1")
    assert asked == [b"ROLE"]


@contextmanager
def running_sentinel(program: str, folder: Path, primary: int) -> Iterator[int]:
    """One Sentinel that watches the server on that port, as `main`; gives its own port."""
    for _ in range(20):
        port = free_port()
        settings = folder / f"sentinel-{port}.conf"
        settings.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder}/sentinel-{port}.log\n"
            f"sentinel monitor main 127.0.0.1 {primary} 1\n"
        )
        process = subprocess.Popen([program, str(settings), "--sentinel"])
        try:
            log = folder / f"sentinel-{port}.log"
            until = time.monotonic() + 30
            while process.poll() is None and time.monotonic() < until:
                if log.exists() and "+monitor master main" in log.read_text():
                    yield port
                    return
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait(30)
    pytest.fail("no Sentinel could be started")


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.5",
        "redis://",
        "redis://:secret-word@10.0.0.5:port",
        "redis+sentinel://10.0.0.5:26379",
        "redis://10.0.0.5/zero",
    ],
)
async def test_what_is_no_url_of_a_redis_is_said_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"write it like redis://") as caught:
        async with open_redis(url):
            pass
    assert "secret-word" not in str(caught.value)


OKAY = b"*7\r\n$2\r\nok\r\n:1\r\n:1\r\n*0\r\n$1\r\n1\r\n*0\r\n*0\r\n"
"""What the script of a beat answers."""


@pytest.mark.parametrize(
    "answer",
    [
        b":abc\r\n",
        b"$abc\r\n",
        b"*abc\r\n",
        b"$-5\r\n",
        b"\xff\xfe\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"*1\r\n" * 5000,
        b"*99999999\r\n" + b":1\r\n" * 3000,
        b"$99999999\r\n",
        b"$-1\r\n",
        b"*0\r\n",
        b":1\r\n",
        b"$3\r\n\xff\xff\xff\r\n",
        b"+OK\r\n",
        OKAY.replace(b"*0", b"*1\r\n$3\r\nodd", 1),
        OKAY.replace(b"*0", b"*1\r\n*2\r\n$3\r\nodd\r\n*0", 1),
        OKAY.replace(b":1", b"$1\r\nx"),
    ],
    ids=lambda answer: repr(answer[:20]),
)
async def test_what_is_no_answer_of_ours_means_that_redis_is_away(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.directory.resp._LARGEST_REPLY", 1_000_000)

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for _ in stream:
                await stream.send_all(answer)

    async with serving(serve) as address, open_redis(f"redis://{address}") as redis:
        directory = RedisDirectory(redis, "a", "1", timeout=20)
        with pytest.raises(DirectoryAway):
            await directory.beat(ME, Heard())
        with pytest.raises(DirectoryAway):
            await directory.claim("dev1", "i1")
