"""What comes back from a command: output, exit codes, and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import signal

import pytest
import trio

from support.cancellation import Outcome, at_every_checkpoint, cancelled_after
from support.ssh_client import (
    Asker,
    descriptors,
    nothing_open,
    output_of,
    processes_with,
    until,
)
from support.sshd import running_sshd
from tunnelmux.commands import Exited, Output, Started, Truncated
from tunnelmux.ssh.pool import SshPool, open_pool

pytestmark = pytest.mark.slow  # each starts an sshd


async def test_output_errors_and_exit_code_come_apart(pool: SshPool, ask: Asker) -> None:
    result = await pool.run(ask("echo out; echo err >&2; exit 3"))
    assert result.to_json() == {"stdout": "out\n", "stderr": "err\n", "exitCode": 3}


async def test_events_tell_the_story_in_order(pool: SshPool, ask: Asker) -> None:
    request = ask("printf abc; exit 5")
    async with pool.execute(request) as events:
        started, output, end = [event async for event in events]
    assert isinstance(started, Started) and started.command_id == request.command_id
    assert output == Output("stdout", b"abc")
    assert isinstance(end, Exited)
    assert (end.exit_code, end.stdout_bytes, end.stderr_bytes, end.reason) == (5, 3, 0, None)
    assert 0 < end.duration < 20


async def test_the_command_reads_its_whole_input_and_no_more(pool: SshPool, ask: Asker) -> None:
    data = bytes(range(256)) * 4096
    async with pool.execute(ask("cat", stdin=data)) as events:
        assert output_of([event async for event in events]) == data
    assert (await pool.run(ask("cat"))).stdout == ""  # no input is an empty one
    assert (await pool.run(ask("exit 4", stdin=data))).exit_code == 4  # nobody has to read it


@pytest.mark.parametrize(("name", "code"), [("KILL", 137), ("TERM", 143), ("SEGV", 139)])
async def test_a_signal_is_the_shells_128_and_its_number(
    pool: SshPool, ask: Asker, name: str, code: int
) -> None:
    result = await pool.run(ask(f"kill -{name} $$"))
    assert (result.exit_code, result.reason) == (code, None)


async def test_output_comes_while_the_command_runs_and_leaving_ends_it(
    pool: SshPool, ask: Asker, word: str
) -> None:
    async with pool.execute(ask(f"echo first; sleep {word}")) as events:
        with trio.fail_after(30):
            while not isinstance(event := await anext(events), Output):
                pass
        assert event.data == b"first\n"
        # Its command line is empty for a moment while the shell makes way for it.
        await until(lambda: bool(processes_with(word)), "it runs")
    await until(lambda: not processes_with(word), "the remote process is gone")
    await nothing_open(pool)
    assert (await pool.run(ask("echo again"))).stdout == "again\n"
    assert pool.figures.connects == 1


async def test_ten_mebibytes_arrive_whole(login, ask: Asker) -> None:
    async with open_pool(login(max_output=16 << 20)) as pool:
        digest = hashlib.sha256()
        async with pool.execute(ask("head -c 10485760 /dev/zero | tr '\\0' '\\377'")) as events:
            async for event in events:
                assert not isinstance(event, Truncated)
                if isinstance(event, Output):
                    digest.update(event.data)
        assert digest.hexdigest() == hashlib.sha256(b"\xff" * 10485760).hexdigest()


async def test_output_over_the_limit_is_thrown_away_and_said_so(login, ask: Asker) -> None:
    async with open_pool(login(max_output=1000)) as pool:
        async with pool.execute(ask("head -c 10485760 /dev/zero; echo done >&2")) as events:
            story = [event async for event in events]
        assert output_of(story) == bytes(1000)
        assert output_of(story, "stderr") == b"done\n"
        assert story[-2] == Truncated("stdout", 1000)
        assert isinstance(story[-1], Exited)
        assert (story[-1].exit_code, story[-1].stdout_bytes) == (0, 10485760)
        result = await pool.run(ask("head -c 2000 /dev/zero | tr '\\0' a"))
        assert result.truncated
        assert result.stdout == "a" * 1000 + "\n[truncated: stdout was over 1000 bytes]\n"


async def test_bytes_are_kept_in_events_and_replaced_in_texts(pool: SshPool, ask: Asker) -> None:
    request = ask(r"printf 'ok \377\000 \303\244'")
    async with pool.execute(request) as events:
        assert output_of([event async for event in events]) == b"ok \xff\x00 \xc3\xa4"
    result = (await pool.run(request)).to_json()
    assert result["stdout"] == "ok �\x00 ä"
    assert result["encoding"] == "utf-8, invalid bytes replaced"


async def test_time_over_is_124_and_the_remote_process_is_killed(
    pool: SshPool, ask: Asker, word: str
) -> None:
    result = await pool.run(ask(f"echo begun; sleep {word}", timeout=0.5))
    assert result.exit_code == 124
    assert result.reason == "timeout"
    assert result.stdout == "begun\n"
    assert result.stderr == "no end within 0.5 s: the command was killed\n"
    assert processes_with(word) == []
    await nothing_open(pool)
    assert pool.figures.killed == 1


async def test_a_command_that_ignores_sigterm_is_killed_all_the_same(
    login, ask: Asker, word: str
) -> None:
    async with open_pool(login(kill_grace=0.3)) as pool:
        result = await pool.run(ask(f"trap '' TERM; sleep {word}; sleep {word}", timeout=0.3))
        assert (result.exit_code, result.reason) == (124, "timeout")
        assert processes_with(word) == []
        await nothing_open(pool)


async def test_killing_one_command_leaves_the_others_of_its_connection_alone(
    pool: SshPool, ask: Asker, word: str
) -> None:
    async with pool.execute(ask("sleep 1.5; echo whole")) as other:
        assert isinstance(await anext(other), Started)
        assert (await pool.run(ask(f"sleep {word}", timeout=0.2))).exit_code == 124
        assert processes_with(word) == []
        assert output_of([event async for event in other]) == b"whole\n"
    assert pool.figures.connects == 1


async def test_without_the_mark_commands_are_killed_when_no_other_is_wanted(
    tmp_path, login, debian_program, word: str
) -> None:
    """Where sshd takes no variable, one command cannot be told from the others."""
    async with (
        running_sshd(tmp_path, debian_program, more="") as server,
        open_pool(login(kill_grace=0.5)) as pool,
    ):
        ask = Asker(server)
        assert (await pool.run(ask(f"sleep {word}", timeout=0.2))).exit_code == 124
        assert processes_with(word) == []  # it was alone
        go_on = tmp_path / "go-on"
        waits = f"while [ ! -e {go_on} ]; do sleep 0.1; done; echo whole"
        async with pool.execute(ask(waits)) as other:
            assert isinstance(await anext(other), Started)
            late = await pool.run(ask(f"sleep {word}", timeout=0.5))
            assert late.stderr.endswith("could not be killed and may still run\n")
            # Its command line is empty for a moment while the shell makes way for it.
            await until(lambda: bool(processes_with(word)), "it runs")
            go_on.touch()
            assert output_of([event async for event in other]) == b"whole\n"
        await until(lambda: not processes_with(word), "the late one is gone")
        await until(lambda: pool.connection_count == 0, "and so is its connection")


async def test_a_process_left_in_the_background_does_not_hold_the_end_up(
    pool: SshPool, ask: Asker, word: str
) -> None:
    try:
        with trio.fail_after(30):
            result = await pool.run(ask(f"sleep {word} & echo started"))
        assert (result.stdout, result.exit_code, result.reason) == ("started\n", 0, None)
        assert processes_with(word)  # it was wanted
        await nothing_open(pool)
    finally:
        for number in processes_with(word):
            os.kill(number, signal.SIGKILL)


async def test_a_process_left_in_the_background_that_goes_on_writing_ends_with_the_time(
    pool: SshPool, ask: Asker
) -> None:
    """The command had no end: each line of that process was waited for."""
    with trio.fail_after(20):
        result = await pool.run(
            ask(
                "(for n in 1 2 3 4 5 6 7 8 9; do sleep 1; echo $n; done) & echo hi",
                timeout=1,
            )
        )
    assert (result.exit_code, result.reason) == (0, None)
    assert result.stdout.startswith("hi\n")
    assert "8" not in result.stdout


async def test_output_nobody_reads_stops_the_command_and_loses_nothing(
    pool: SshPool, ask: Asker
) -> None:
    size = 3 << 20
    request = ask(f"head -c {size} /dev/zero; echo done >&2")
    async with pool.execute(request) as events:
        assert isinstance(await anext(events), Started)
        await until(lambda: events.channel.paused, "reading has paused")
        await trio.sleep(0.2)
        assert events.channel.received < size // 2
        story = [event async for event in events]
    assert output_of(story) == bytes(size)
    assert output_of(story, "stderr") == b"done\n"


async def test_output_that_comes_before_its_task_looks_is_not_stuck(
    pool: SshPool, ask: Asker, monkeypatch
) -> None:
    """The first window may be here before the task that opened the channel runs again."""
    opened = pool._opened

    async def late(connection, opening, run) -> None:
        await opened(connection, opening, run)
        await until(lambda: opening.channel.received == 1_000_000, "all of it is read meanwhile")

    monkeypatch.setattr(pool, "_opened", late)
    with trio.fail_after(20):
        async with pool.execute(ask("head -c 1000000 /dev/zero")) as events:
            story = [event async for event in events]
    assert isinstance(story[0], Started)
    assert len(output_of(story)) == 1_000_000


async def test_cancelling_anywhere_leaks_nothing(pool: SshPool, ask: Asker, word: str) -> None:
    await pool.run(ask("true"))
    before = (descriptors(), pool._bridge.task_count)

    async def attempt(checkpoint: int) -> Outcome:
        async def operation() -> None:
            async with pool.execute(ask("echo out; sleep 0.01")) as events:
                async for _ in events:
                    pass

        return await cancelled_after(operation, checkpoint)

    assert await at_every_checkpoint(attempt) >= 2
    for delay in (0.0, 0.005, 0.02, 0.1):
        with trio.move_on_after(delay):
            await pool.run(ask(f"sleep {word}"))
    await nothing_open(pool)
    assert processes_with(word) == []
    assert pool.figures.not_killed == 0
    await until(lambda: (descriptors(), pool._bridge.task_count) == before, "as before")


async def test_closing_the_pool_ends_its_commands(login, ask: Asker, word: str) -> None:
    before = descriptors()
    async with open_pool(login()) as pool, trio.open_nursery() as nursery:
        ends: list[int] = []

        async def one() -> None:
            result = await pool.run(ask(f"sleep {word}"))
            ends.append(result.exit_code)
            assert result.stderr == "this program is shutting down\n"

        nursery.start_soon(one)
        await until(lambda: bool(processes_with(word)), "it runs")
        await pool.close()
    assert ends == [255]
    assert processes_with(word) == []
    assert descriptors() == before


async def test_what_the_block_raises_comes_out_as_it_is(login) -> None:
    with pytest.raises(KeyError):
        async with open_pool(login()):
            raise KeyError
