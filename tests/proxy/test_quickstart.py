"""A proxy that needs no file: what it prints lets one device in."""

from __future__ import annotations

import json
import shlex
import ssl
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from cryptography import x509
from structlog.testing import capture_logs

from tunnelmux.cli.fleet.errors import NotAllowed
from tunnelmux.cli.fleet.opening import DEFAULT_URL, find_place, open_fleet
from tunnelmux.config import (
    DeviceConfig,
    HttpIngress,
    Ingress,
    InternalListener,
    JoinInvitation,
    ProxyConfig,
    Secret,
    TunnelListener,
    decode_join,
    encode_join,
)
from tunnelmux.config.access import AccessConfig
from tunnelmux.config.quickstart_state import INTERNAL_SECRET
from tunnelmux.errors import ConfigError, ConnectError, ConnectRefused
from tunnelmux.mux import Session, open_session
from tunnelmux.proxy import RunningProxy, quickstart
from tunnelmux.proxy.quickstart import (
    invite,
    own_address,
    reload_quickstart,
    run_quickstart,
)
from tunnelmux.transports import client_context, connect_websocket

ANY_PORT = ProxyConfig(
    tunnel=TunnelListener(listen="127.0.0.1:0"),
    ingress=Ingress(http=HttpIngress(listen="127.0.0.1:0")),
)


@asynccontextmanager
async def quickstarted(
    state_dir: Path,
    announce: Callable[[str], None],
    host: str | None = "127.0.0.1",
    config: ProxyConfig = ANY_PORT,
) -> AsyncIterator[RunningProxy]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(
            partial(run_quickstart, state_dir, host, config=config, announce=announce)
        )
        nursery.cancel_scope.cancel()


def join_in(text: str) -> str:
    """The join string in the one line of `text` that is a command."""
    [line] = [line for line in text.splitlines() if line.startswith("tunnelmux-agent ")]
    words = shlex.split(line)
    return words[words.index("--join") + 1]


@asynccontextmanager
async def joined(join: str, device: str = "dev1") -> AsyncIterator[tuple[Session, str | None]]:
    """Connect with a join string, as an agent would; the session and the token it was given."""
    invitation = decode_join("join", join)
    async with connect_websocket(
        invitation.url,
        headers=[
            (b"Authorization", b"Bearer " + invitation.token.reveal().encode()),
            (b"Tunnelmux-Device", device.encode()),
        ],
        ssl_context=client_context(pin=invitation.pin),
    ) as websocket:
        token = dict(websocket.response_headers).get(b"tunnelmux-token")
        async with open_session(websocket, is_client=True) as session:
            yield session, token.decode() if token is not None else None


async def test_without_a_public_host_devices_are_sent_where_the_proxy_listens(
    tmp_path: Path,
) -> None:
    printed: list[str] = []
    async with quickstarted(tmp_path, printed.append, host=None) as proxy:
        url = decode_join("join", join_in(printed[0])).url
        assert url == f"wss://{proxy.tunnel_address}/tunnel/connect"


async def test_the_printed_line_lets_one_device_in_over_pinned_tls(tmp_path: Path) -> None:
    printed: list[str] = []
    async with quickstarted(tmp_path, printed.append) as proxy:
        [text] = printed
        join = join_in(text)
        assert decode_join("join", join).url == (
            f"wss://127.0.0.1:{proxy.tunnel_address.port}/tunnel/connect"
        )
        assert "15 minutes" in text and str(proxy.http_address) in text
        async with joined(join) as (_, token):
            assert token is not None
            assert await proxy.store.wait_for_device("dev1", trio.current_time() + 30) is not None
        with pytest.raises(ConnectRefused) as caught:
            async with joined(join, "dev2"):
                pass
        assert (caught.value.status, caught.value.reason) == (401, "token-expired")


async def test_an_agent_with_another_pin_does_not_send_its_token(tmp_path: Path) -> None:
    printed: list[str] = []
    async with quickstarted(tmp_path, printed.append):
        invitation = decode_join("join", join_in(printed[0]))
        with pytest.raises(ConnectError, match="is not the pinned one"):
            async with connect_websocket(
                invitation.url, ssl_context=client_context(pin="sha256:" + "0" * 64)
            ):
                pass


async def test_a_stranger_without_tls_is_one_log_line(tmp_path: Path) -> None:
    printed: list[str] = []
    async with (
        quickstarted(tmp_path, printed.append) as proxy,
        joined(join_in(printed[0])) as (session, _),
    ):
        with capture_logs() as logs, trio.fail_after(20):
            async with await trio.open_tcp_stream(*proxy.tunnel_address) as stranger:
                await stranger.send_all(b"GET /tunnel/connect HTTP/1.1\r\n\r\n")
                while await receive_or_end(stranger):
                    pass
        [line] = [line for line in logs if line["event"] == "tunnel handshake failed"]
        assert "TLS" in line["cause"]
        await session.ping()


async def receive_or_end(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


async def test_more_devices_are_invited_while_the_proxy_runs(tmp_path: Path) -> None:
    async with quickstarted(tmp_path, lambda _: None) as proxy:
        for device in ("dev1", "dev2"):
            invitation = await trio.to_thread.run_sync(invite, tmp_path)
            assert invitation.join in invitation.command
            async with joined(invitation.join, device):
                found = await proxy.store.wait_for_device(device, trio.current_time() + 30)
                assert found is not None


async def test_a_reload_takes_the_file_and_the_devices_anew_and_keeps_the_certificate(
    tmp_path: Path,
) -> None:
    async with quickstarted(tmp_path, lambda _: None) as proxy:
        first, second = [await trio.to_thread.run_sync(invite, tmp_path) for _ in range(2)]
        async with joined(first.join, "dev1") as (session, _), joined(second.join, "dev2") as kept:
            for device in ("dev1", "dev2"):
                assert await proxy.store.wait_for_device(device, trio.current_time() + 30)
            remove_from_devices_json(tmp_path, "dev1")
            config = msgspec.structs.replace(
                ANY_PORT, devices=[DeviceConfig(name="dev3", token=Secret("its-own-token"))]
            )
            await reload_quickstart(proxy, tmp_path, "127.0.0.1", config=config)
            with trio.fail_after(20):
                await session.wait_closed()
            assert await kept[0].ping() >= 0
            assert proxy.devices.names == ["dev2", "dev3"]
        again = await trio.to_thread.run_sync(invite, tmp_path)
        assert decode_join("join", again.join).pin == decode_join("join", first.join).pin
        async with joined(again.join, "dev1"):
            assert await proxy.store.wait_for_device("dev1", trio.current_time() + 30)


async def test_a_reload_with_damaged_devices_changes_nothing(tmp_path: Path) -> None:
    async with quickstarted(tmp_path, lambda _: None) as proxy:
        made = await trio.to_thread.run_sync(invite, tmp_path)
        async with joined(made.join) as (session, _):
            assert await proxy.store.wait_for_device("dev1", trio.current_time() + 30)
            await trio.Path(tmp_path / "devices.json").write_text("[{")
            with pytest.raises(ConfigError, match=r"devices\.json is damaged"):
                await reload_quickstart(proxy, tmp_path, "127.0.0.1", config=ANY_PORT)
            assert await session.ping() >= 0
            assert proxy.devices.names == ["dev1"]


def remove_from_devices_json(folder: Path, name: str) -> None:
    file = folder / "devices.json"
    kept = [entry for entry in json.loads(file.read_bytes()) if entry["name"] != name]
    file.write_text(json.dumps(kept))


async def test_a_line_names_no_device_that_is_there_unless_it_is_to_be_replaced(
    tmp_path: Path,
) -> None:
    config = msgspec.structs.replace(
        ANY_PORT, devices=[DeviceConfig(name="dev2", token=Secret("its-own-token"))]
    )
    async with quickstarted(tmp_path, lambda _: None, config=config):
        names = []
        for _ in range(3):
            made = await trio.to_thread.run_sync(invite, tmp_path)
            assert f"--name {made.device} " in made.command
            names.append(made.device)
            async with joined(made.join, made.device) as (_, token):
                assert token is not None
        assert names == ["dev1", "dev3", "dev4"]
        replacing = await trio.to_thread.run_sync(partial(invite, tmp_path, replace="dev3"))
        assert "--name dev3 " in replacing.command
        with pytest.raises(ConnectRefused, match="and no other"):
            async with joined(replacing.join, "dev5"):
                pass
        async with joined(replacing.join, "dev3") as (_, token):
            assert token is not None
    for name, problem in (
        ("dev2", "is in proxy.toml"),
        ("dev9", "has joined .these have: dev1, dev3, dev4"),
    ):
        with pytest.raises(ConfigError, match=problem):
            invite(tmp_path, replace=name)


async def test_later_starts_print_no_line_and_remember_the_public_host(tmp_path: Path) -> None:
    printed: list[str] = []
    async with quickstarted(tmp_path, printed.append, host="vps.example.com"):
        pass
    # The line may have been lost before a device joined with it: there is another.
    async with quickstarted(tmp_path, printed.append, host=None) as proxy:
        port = proxy.tunnel_address.port
        join = decode_join("join", join_in(printed[1]))
        assert join.url == f"wss://vps.example.com:{port}/tunnel/connect"
        await reload_quickstart(proxy, tmp_path, config=ANY_PORT)
        async with joined(join_to(join, f"wss://127.0.0.1:{port}/tunnel/connect")):
            pass
    async with quickstarted(tmp_path, printed.append, host=None) as proxy:
        assert "tunnelmux-join:" not in printed[2]
        assert "These may connect: dev1." in printed[2]
        assert '"tunnelmux-proxy invite" prints the line for another' in printed[2]
        made = await trio.to_thread.run_sync(invite, tmp_path)
        assert decode_join("join", made.join).url.startswith("wss://vps.example.com:")


def join_to(join: JoinInvitation, url: str) -> str:
    """The same invitation, at an address that this machine can reach."""
    return encode_join(msgspec.structs.replace(join, url=url))


async def test_lines_made_one_after_the_other_are_for_different_devices(tmp_path: Path) -> None:
    now = 0.0
    async with quickstarted(tmp_path, lambda _: None):
        make = partial(invite, tmp_path, clock=lambda: now)
        made = [await trio.to_thread.run_sync(make) for _ in range(2)]
        # The first start made one that suggests dev1, in real time.
        assert [invitation.device for invitation in made] == ["dev2", "dev3"]
        now += 15 * 60 + 1
        # Nobody can join with those any more.
        assert (await trio.to_thread.run_sync(make)).device == "dev2"


async def test_after_a_restart_certificate_and_devices_are_the_same(tmp_path: Path) -> None:
    printed: list[str] = []
    async with (
        quickstarted(tmp_path, printed.append),
        joined(join_in(printed[0])) as (_, token),
    ):
        pass
    async with quickstarted(tmp_path, printed.append, host="localhost") as proxy:
        made = await trio.to_thread.run_sync(invite, tmp_path)
        first, second = (decode_join("join", line) for line in (join_in(printed[0]), made.join))
        assert first.pin == second.pin
        async with (
            connect_websocket(
                second.url,
                headers=[(b"Authorization", f"Bearer {token}".encode())],
                ssl_context=client_context(pin=first.pin),
            ) as websocket,
            open_session(websocket, is_client=True),
        ):
            assert await proxy.store.wait_for_device("dev1", trio.current_time() + 30) is not None


async def test_the_certificate_names_the_host_and_its_key_is_private(tmp_path: Path) -> None:
    async with quickstarted(tmp_path, lambda _: None, host="proxy.example.com"):
        pass
    pem = (tmp_path / "tunnel.crt").read_text()
    assert ssl.PEM_cert_to_DER_cert(pem)
    names = (
        x509.load_pem_x509_certificate(pem.encode())
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    assert names.get_values_for_type(x509.DNSName) == ["proxy.example.com", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert stat.S_IMODE((tmp_path / "tunnel.key").stat().st_mode) == 0o600


async def test_nothing_in_the_state_directory_lets_anybody_in(tmp_path: Path) -> None:
    printed: list[str] = []
    async with quickstarted(tmp_path, printed.append):
        invitation = decode_join("join", join_in(printed[0])).token.reveal()
        async with joined(join_in(printed[0])) as (_, token):
            assert token is not None
    contents = contents_of(tmp_path)
    assert contents.keys() >= {"devices.json", "tunnel.crt", "quickstart.json"}
    assert not [name for name, text in contents.items() if invitation in text or token in text]


def contents_of(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_an_invitation_without_a_proxy_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--quickstart first"):
        invite(tmp_path)


async def test_a_host_that_no_certificate_can_name_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="public_host"):
        await run_quickstart(tmp_path, "bücher.example", config=ANY_PORT)


async def test_a_state_directory_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        await run_quickstart(tmp_path / "file", config=ANY_PORT)


def test_the_default_host_is_an_address_of_this_machine() -> None:
    assert own_address() not in ("", "0.0.0.0")


@pytest.mark.parametrize(
    ("host", "domain"),
    [("vps.example.com", "vps.example.com"), ("192.0.2.7", "localhost"), ("fd00::1", "localhost")],
)
async def test_visitors_of_all_machines_come_in_when_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, domain: str
) -> None:
    monkeypatch.setattr(quickstart, "_PUBLIC_LISTEN", "0.0.0.0:0")
    config = ProxyConfig(
        tunnel=TunnelListener(listen="127.0.0.1:0"), access=AccessConfig(let_in=["public"])
    )
    printed: list[str] = []
    async with trio.open_nursery() as nursery:
        start = partial(run_quickstart, tmp_path, host, config=config, announce=printed.append)
        proxy = await nursery.start(partial(start, public=True))
        address, http = proxy.http_address, proxy.config.ingress.http
        assert (address.host, http.domain) == ("0.0.0.0", domain)
        shown = f"DEVICE.{host}" if domain == host else f"[{host}]" if ":" in host else host
        assert f"Visitors come in at http://{shown}:{address.port}" in printed[0]
        assert f"curl http://127.0.0.1:{address.port}/ " in printed[0]
        nursery.cancel_scope.cancel()


async def test_commands_of_the_same_user_find_the_proxy_by_themselves(tmp_path: Path) -> None:
    state_dir = tmp_path / "tunnelmux-proxy"
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    printed: list[str] = []
    async with quickstarted(state_dir, printed.append) as proxy, joined(join_in(printed[0])):
        place = find_place(None, None, None, environ)
        assert place.url == f"http://{proxy.internal_address}"
        async with open_fleet(place) as fleet:
            assert [device.name for device in await fleet.devices()] == ["dev1"]
        without_secret = find_place(place.url, None, None, environ)
        async with open_fleet(without_secret) as fleet:
            with pytest.raises(NotAllowed):
                await fleet.devices()
        secret = (state_dir / INTERNAL_SECRET).read_text()
        await reload_quickstart(proxy, state_dir, config=ANY_PORT)
        assert find_place(None, None, None, environ) == place
    assert find_place(None, None, None, environ).url == DEFAULT_URL
    async with quickstarted(state_dir, printed.append):
        assert (state_dir / INTERNAL_SECRET).read_text() != secret
    assert stat.S_IMODE((state_dir / INTERNAL_SECRET).stat().st_mode) == 0o600


async def test_an_address_that_a_killed_proxy_left_is_not_used(tmp_path: Path) -> None:
    state_dir = tmp_path / "tunnelmux-proxy"
    async with quickstarted(state_dir, lambda _: None):
        left = (state_dir / "quickstart.json").read_bytes()
    (state_dir / "quickstart.json").write_bytes(left)
    place = find_place(None, None, None, {"XDG_STATE_HOME": str(tmp_path)})
    assert place.url == DEFAULT_URL


async def test_a_second_start_by_mistake_keeps_no_command_from_the_first_proxy(
    tmp_path: Path,
) -> None:
    state_dir = tmp_path / "tunnelmux-proxy"
    async with quickstarted(state_dir, lambda _: None) as proxy:
        listening = TunnelListener(listen=str(proxy.tunnel_address))
        same = msgspec.structs.replace(ANY_PORT, tunnel=listening)
        with pytest.raises(ConfigError, match="in use"):
            await run_quickstart(state_dir, "127.0.0.1", config=same)
        place = find_place(None, None, None, {"XDG_STATE_HOME": str(tmp_path)})
        assert place.url == f"http://{proxy.internal_address}"
        async with open_fleet(place) as fleet:
            assert await fleet.devices() == []


async def test_an_internal_api_of_its_own_configuration_is_kept(tmp_path: Path) -> None:
    internal = InternalListener(listen="127.0.0.1:0", secret=Secret("s" * 32))
    config = msgspec.structs.replace(ANY_PORT, internal=internal)
    async with quickstarted(tmp_path, lambda _: None, config=config) as proxy:
        assert proxy.config.internal == internal
        assert json.loads((tmp_path / "quickstart.json").read_bytes())["internal_url"] is None


async def test_processes_that_share_a_folder_learn_who_joined_and_who_was_replaced(
    tmp_path: Path,
) -> None:
    async with (
        quickstarted(tmp_path, lambda _: None) as one,
        quickstarted(tmp_path, lambda _: None) as other,
    ):
        # What a parent does for its workers.
        one._tunnel.tell_enrolled = other._tunnel.take_enrolled
        other._tunnel.tell_enrolled = one._tunnel.take_enrolled
        made = await trio.to_thread.run_sync(invite, tmp_path)  # leads to the later one
        async with joined(made.join, "dev1") as (session, _):
            assert await other.store.wait_for_device("dev1", trio.current_time() + 30)
            assert one.devices.names == ["dev1"]
            replacing = await trio.to_thread.run_sync(partial(invite, tmp_path, replace="dev1"))
            at_one = f"wss://{one.tunnel_address}/tunnel/connect"
            join = join_to(decode_join("join", replacing.join), at_one)
            async with joined(join, "dev1"):
                with trio.fail_after(30):
                    await session.wait_closed()
                assert await one.store.wait_for_device("dev1", trio.current_time() + 30)
