"""`tunnelmux login` where others at its address begin many sign-ins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from click.testing import CliRunner
from trio.testing import MockClock

from tunnelmux.cli import sign_in
from tunnelmux.cli.fleet.api_client import ApiClient
from tunnelmux.cli.fleet.errors import FleetError
from tunnelmux.cli.fleet.model import Account


class Server:
    """Answers as tunnelmux-api does; at first with `refusals`."""

    def __init__(self, refusals: list[str], wait: float = 0) -> None:
        self.wait = wait
        self.refusals = refusals
        self.asked: list[Mapping[str, Any]] = []

    async def post(self, path: str, kind: type[Any], content: Mapping[str, Any]) -> object:
        assert path == "/api/auth/terminal"
        self.asked.append(content)
        if self.refusals:
            code = self.refusals.pop(0)
            message = "too many sign-ins were begun from here"
            raise FleetError(message, code=code, wait=self.wait)
        return "waiting"


async def test_it_asks_again_while_too_many_others_ask(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(["too_many_requests"] * 5)
    start = trio.current_time()
    assert await sign_in._ask(cast("ApiClient", server), {"client": "x"}) == "waiting"
    assert 2.5 <= trio.current_time() - start <= 7.5
    assert capsys.readouterr().err.count("too many sign-ins were begun from here") == 1


async def test_it_waits_as_long_as_the_server_says(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(["too_many_requests"] * 5, wait=4)
    start = trio.current_time()
    assert await sign_in._ask(cast("ApiClient", server), {"client": "x"}) == "waiting"
    assert 20 <= trio.current_time() - start <= 25
    assert "Trying again for 135 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "wait"),
    [(b"2", 2), (b"3600", 60), (b"9" * 20, 0), (b"-1", 0), (b"soon", 0), (b"", 0)],
)
def test_the_servers_wish_is_read(field: bytes, wait: float) -> None:
    client = ApiClient("https://a.example", None, environ={})
    with pytest.raises(FleetError, match="too many") as refused:
        client.refuse(429, b'{"code": "too_many_requests", "detail": "too many"}', field)
    assert (refused.value.code, refused.value.wait) == ("too_many_requests", wait)


async def test_it_gives_up_in_the_end_and_at_once_for_other_reasons(
    autojump_clock: MockClock,
) -> None:
    endless = Server(["too_many_requests"] * 100)
    with pytest.raises(FleetError, match="too many sign-ins"):
        await sign_in._ask(cast("ApiClient", endless), {"client": "x"})
    assert len(endless.asked) == 31
    other = Server(["invalid"])
    with pytest.raises(FleetError):
        await sign_in._ask(cast("ApiClient", other), {"client": "x"})
    assert len(other.asked) == 1


@pytest.mark.parametrize(
    ("server", "shown"), [("https://a.example", True), ("https://b.example", False)]
)
def test_its_last_token_goes_to_its_own_server_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, shown: bool
) -> None:
    file = tmp_path / "tunnelmux" / "login.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"server": "https://a.example", "token": "tma_earlier"}))
    file.chmod(0o600)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    asked: list[dict[str, str]] = []

    async def ask(_client: ApiClient, said: dict[str, str]) -> None:
        asked.append(said)
        raise FleetError("enough")

    monkeypatch.setattr(sign_in, "_ask", ask)
    CliRunner().invoke(sign_in.login, [server, "--no-browser"])
    (said,) = asked
    assert said.get("earlier") == ("tma_earlier" if shown else None)


def test_a_person_whose_provider_tells_no_name_reads_a_whole_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def confirmed(*_: object) -> Account:
        account = Account(server="https://a.example", way="api", tenant="default", role="owner")
        await trio.lowlevel.checkpoint()
        return account

    monkeypatch.setattr(sign_in, "_login", confirmed)
    env = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": ""}
    result = CliRunner().invoke(sign_in.login, ["https://a.example"], env=env)
    assert result.stdout.startswith("You are signed in, owner of default, at https://a.example."), (
        result.output
    )
