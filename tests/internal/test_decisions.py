"""Who may reach a service, asked of a proxy with workers: any of them answers for all."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from support.internal import running_bench
from tunnelmux.config.access import AccessConfig, ServiceAccess
from tunnelmux.proxy.internal.answers import Answer
from tunnelmux.sessions.decisions import DecidingRule, Decision


@dataclass
class Other:
    """Another worker, which has this answer."""

    allowed: bool
    names: tuple[str, ...] = ("worker-2",)

    async def ask_all(self, _method: bytes, target: bytes, _body: bytes = b"") -> list[Answer]:
        assert target.startswith(b"/internal/access?device=dev1&")
        rule = DecidingRule(source="registry", scope="all", let_in=["login"])
        answer = Decision(
            device="dev1", service="web", allowed=self.allowed, rule=rule, reason="theirs"
        )
        return [Answer.of(answer)]

    def stream(self, _name: str, _target: bytes) -> object:
        raise AssertionError("nothing is streamed")


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("theirs", [True, False])
async def test_who_not_every_worker_lets_in_is_refused(own: bool, theirs: bool) -> None:
    """One worker may have heard of a change that another has not heard of yet."""
    async with running_bench() as bench:
        if not own:
            rule = ServiceAccess(device="dev1", service="web", let_in=["login"])
            bench.gate.configure(AccessConfig(rules=[rule]), is_local=True)
        bench.server.others = Other(theirs)  # type: ignore[assignment]
        found = await bench.client.decide_access("dev1", "web", "user-1")
    assert found.allowed == (own and theirs)
    assert (found.reason == "theirs") == (own and not theirs)
