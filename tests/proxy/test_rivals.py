"""Two agents with one credential are told from one that connects again."""

from __future__ import annotations

import contextlib

import trio
from structlog.testing import capture_logs

from support.agents import TunnelBench, gone
from tunnelmux.proxy.tunnels.rivals import Rivals


def connect(rivals: Rivals, instance: str | None, *, live: bool = True) -> str | None:
    return rivals.connected("dev1", instance, f"address of {instance}", others_live=live)


def test_two_processes_that_replace_each_other_in_turn_are_rivals() -> None:
    rivals = Rivals()
    assert connect(rivals, "a", live=False) is None
    assert connect(rivals, "b") is None, "a new process of the same device looks like that"
    assert connect(rivals, "a") == "address of b"
    assert connect(rivals, "b") == "address of a"


def test_three_clones_are_rivals_as_well() -> None:
    rivals = Rivals()
    found = [connect(rivals, name, live=number > 0) for number, name in enumerate("abcabc")]
    assert found == [None, None, None, "address of c", "address of a", "address of b"]


def test_a_device_that_reconnects_or_is_restarted_is_no_rival_of_itself() -> None:
    rivals = Rivals()
    for name in ("a", "a", "a", "b", "b", "c", "d", "e", "f", "f"):
        assert connect(rivals, name) is None


def test_one_that_comes_back_after_the_other_has_left_is_no_rival() -> None:
    rivals = Rivals()
    connect(rivals, "a", live=False)
    connect(rivals, "b")
    assert connect(rivals, "a", live=False) is None


def test_agents_that_do_not_name_their_process_are_never_told_apart() -> None:
    rivals = Rivals()
    assert [connect(rivals, name) for name in (None, "", "x" * 65, None)] == [None] * 4
    rivals.forget("dev1")


def test_devices_are_watched_each_for_itself_and_forgotten() -> None:
    rivals = Rivals()
    for device in ("dev1", "dev2"):
        assert rivals.connected(device, "a", "1", others_live=True) is None
        assert rivals.connected(device, "b", "2", others_live=True) is None
    rivals.forget("dev1")
    assert rivals.connected("dev1", "a", "1", others_live=True) is None
    assert rivals.connected("dev2", "a", "1", others_live=True) == "2"


async def test_the_proxy_says_at_both_ends_that_there_are_two(nursery: trio.Nursery) -> None:
    bench = TunnelBench(nursery)
    with capture_logs() as logs:
        async with contextlib.AsyncExitStack() as stack:
            answers = []
            for number, instance in enumerate(["aaaa", "bbbb", "aaaa"]):
                dialled = bench.dial(remote=f"192.0.2.{number}:5000", instance=instance)
                answers.append((await stack.enter_async_context(dialled)).headers)
                await bench.arrived()
        await gone(bench)
    assert [answer.get(b"tunnelmux-rival") for answer in answers] == [
        None,
        None,
        b"192.0.2.1:5000",
    ]
    (line,) = [line for line in logs if line["event"] == "two agents with one credential"]
    assert (line["device"], line["remote"]) == ("dev1", "192.0.2.2:5000")
    assert (line["rival"], line["log_level"]) == ("192.0.2.1:5000", "warning")
    assert "a token of its own" in line["fix"]
    ended = [line for line in logs if line["event"] == "session ended"]
    assert {line["remote"]: line.get("replaced_by") for line in ended} == {
        "192.0.2.0:5000": "192.0.2.1:5000",
        "192.0.2.1:5000": "192.0.2.2:5000",
        "192.0.2.2:5000": None,
    }
