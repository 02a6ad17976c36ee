"""Who may call: the rules of the configuration, and TLS with certificates on both sides."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trustme

from support.proxies import agent_of, free_port, proxy_config, running
from support.streams import next_bytes
from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.config import InternalListener, InvalidSetting, ProxyConfig, Secret
from tunnelmux.config.load import load_proxy_config
from tunnelmux.errors import ConfigError
from tunnelmux.proxy import RunningProxy, run_proxy
from tunnelmux.sessions import CLEANUP_INTERVAL
from tunnelmux.transports import client_context


def with_internal(listener: InternalListener | None) -> ProxyConfig:
    return msgspec.structs.replace(proxy_config(http=None), internal=listener)


# -- what may listen where ---------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["127.0.0.1:3801", "127.9.9.9:1", "[::1]:3801", "localhost:1"])
def test_on_this_machine_nothing_is_needed(listen: str) -> None:
    assert not InternalListener(listen=listen).asks_for_credentials


@pytest.mark.parametrize("listen", ["0.0.0.0:3801", "[::]:3801", "192.0.2.1:3801", "proxy.local:1"])
def test_beyond_this_machine_it_is_refused_with_the_reason_and_the_fix(listen: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        InternalListener(listen=listen)
    sentence = str(caught.value)
    assert sentence.startswith("listen: ") and listen in sentence
    assert "reached from other machines" in sentence
    assert "secret" in sentence and "client_ca" in sentence and "127.0.0.1" in sentence
    InternalListener(listen=listen, secret=Secret("something"))
    InternalListener(listen=listen, secret_file=Path("secret"))
    files = {"tls_certificate": Path("c"), "tls_key": Path("k")}
    InternalListener(listen=listen, client_ca=Path("ca"), **files)
    with pytest.raises(InvalidSetting):  # TLS alone lets everybody in
        InternalListener(listen=listen, **files)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"secret": Secret("a"), "secret_file": Path("b")}, "secret"),
        ({"secret": Secret("")}, "secret"),
        ({"secret": Secret("white space")}, "secret"),
        ({"client_ca": Path("ca")}, "client_ca"),
        ({"tls_key": Path("k")}, "tls_certificate"),
        ({"listen": "nonsense"}, "listen"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], key: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        InternalListener(**settings)  # type: ignore[arg-type]
    assert caught.value.key == key
    assert "white" not in str(caught.value)


def test_the_port_of_another_listener_cannot_be_had_twice() -> None:
    with pytest.raises(InvalidSetting, match="internal"):
        ProxyConfig(internal=InternalListener(listen="0.0.0.0:3800", secret=Secret("a")))


def test_file_and_environment(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-the-file\n")
    file = tmp_path / "proxy.toml"
    file.write_text('[internal]\nsecret_file = "secret"\n')
    config = load_proxy_config(file, environ={})
    assert config.internal is not None
    assert config.internal.listen == "127.0.0.1:3801"
    assert config.internal.read_secret() == Secret("from-the-file")
    # A later source's secret replaces an earlier one's file.
    config = load_proxy_config(file, environ={"TUNNELMUX_INTERNAL_SECRET": "from-outside"})
    assert config.internal is not None
    assert config.internal.read_secret() == Secret("from-outside")
    assert load_proxy_config(None, environ={}).internal is None

    (tmp_path / "secret").unlink()
    with pytest.raises(ConfigError, match=r"internal\.secret_file: .*cannot be read"):
        load_proxy_config(file, environ={})


def test_a_secret_that_everybody_may_read_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text('[internal]\nsecret = "abc"\n')
    file.chmod(0o644)
    warnings: list[str] = []
    load_proxy_config(file, environ={}, warn=warnings.append)
    assert len([sentence for sentence in warnings if f"chmod o-r {file}" in sentence]) == 1
    assert "abc" not in repr(load_proxy_config(file, environ={}))


def test_a_secret_that_crosses_the_network_in_the_clear_is_warned_of(tmp_path: Path) -> None:
    warnings: list[str] = []
    environ = {"TUNNELMUX_INTERNAL_SECRET": "abc", "TUNNELMUX_INTERNAL_LISTEN": "0.0.0.0:3801"}
    load_proxy_config(None, environ=environ, warn=warnings.append)
    [sentence] = [sentence for sentence in warnings if sentence.startswith("internal.listen: ")]
    assert "0.0.0.0:3801" in sentence and "tls_certificate" in sentence


def test_an_expiry_that_would_close_idle_sessions_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text("[limits]\nkeepalive_interval = 80.0\nkeepalive_timeout = 10.0\n")
    with pytest.raises(ConfigError, match=r"session_expiry.*raise it"):
        load_proxy_config(file, environ={})


# -- TLS ---------------------------------------------------------------------------------------


class Certificates:
    """Authorities of both sides, as files."""

    def __init__(self, folder: Path) -> None:
        self.server_ca, self.client_ca, self.other_ca = (trustme.CA() for _ in range(3))
        server = self.server_ca.issue_cert("localhost", "127.0.0.1")
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        server.private_key_pem.write_to_path(self.key)
        for index, blob in enumerate(server.cert_chain_pems):
            blob.write_to_path(self.certificate, append=index > 0)
        self.client_ca_file, self.server_ca_file = folder / "callers.pem", folder / "ca.pem"
        self.client_ca.cert_pem.write_to_path(self.client_ca_file)
        self.server_ca.cert_pem.write_to_path(self.server_ca_file)

    def listener(self, *, mutual: bool, secret: str | None = None) -> InternalListener:
        return InternalListener(
            listen="127.0.0.1:0",
            secret=Secret(secret) if secret else None,
            tls_certificate=self.certificate,
            tls_key=self.key,
            client_ca=self.client_ca_file if mutual else None,
        )

    def context(self, issuer: trustme.CA | None) -> ssl.SSLContext:
        context = client_context(self.server_ca_file)
        if issuer is not None:
            issuer.issue_cert("backend.example").configure_cert(context)
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def client_of(
    proxy: RunningProxy, context: ssl.SSLContext, secret: str | None = None
) -> ProxyClient:
    return ProxyClient(f"https://{proxy.internal_address}", secret=secret, ssl_context=context)


async def test_a_certificate_is_enough_and_none_or_a_strangers_is_not(
    certificates: Certificates,
) -> None:
    async with (
        running(with_internal(certificates.listener(mutual=True))) as proxy,
        agent_of(proxy) as agent,
    ):
        client = client_of(proxy, certificates.context(certificates.client_ca))
        [session] = await client.list_sessions()
        assert session.device_id == "dev1"
        stream = await client.open_stream(session.token)
        await stream.send_all(b"over TLS")
        theirs = await agent.accept_stream()
        assert await next_bytes(theirs, 8) == b"over TLS"
        # TLS has no half-close: the end of one direction is the end of both.
        await theirs.send_all(b"goodbye")
        await theirs.send_eof()
        assert await next_bytes(stream, 7) == b"goodbye"
        assert await stream.receive_some() == b""
        await stream.aclose()
        for stranger in (None, certificates.other_ca):
            with pytest.raises(Exception, match=r"did not answer|TLS with"):
                await client_of(proxy, certificates.context(stranger)).list_sessions()


async def test_with_both_a_caller_needs_both(certificates: Certificates) -> None:
    listener = certificates.listener(mutual=True, secret="the-secret")
    async with running(with_internal(listener)) as proxy:
        context = certificates.context(certificates.client_ca)
        assert await client_of(proxy, context, "the-secret").list_sessions() == []
        with pytest.raises(ApiCallFailed, match="UNAUTHORIZED"):
            await client_of(proxy, context).list_sessions()
        with pytest.raises(Exception, match=r"did not answer|TLS with"):
            await client_of(proxy, certificates.context(None), "the-secret").list_sessions()


async def test_a_silent_handshake_is_given_up(certificates: Certificates) -> None:
    config = with_internal(certificates.listener(mutual=True))
    limits = msgspec.structs.replace(config.limits)
    ingress = type(limits.ingress)(handshake_timeout=0.1)
    config = msgspec.structs.replace(
        config, limits=msgspec.structs.replace(limits, ingress=ingress)
    )
    async with running(config) as proxy:
        assert proxy.internal_address is not None
        stream = await trio.open_tcp_stream(*proxy.internal_address)
        async with stream:
            with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()


async def test_a_file_that_holds_no_authority_is_named(certificates: Certificates) -> None:
    certificates.client_ca_file.write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"internal\.client_ca: .*callers\.pem"):
        await run_proxy(with_internal(certificates.listener(mutual=True)))


# -- as part of the proxy ----------------------------------------------------------------------


@asynccontextmanager
async def running_with_secret(secret: str = "first"):  # type: ignore[no-untyped-def]
    listener = InternalListener(listen=f"127.0.0.1:{free_port()}", secret=Secret(secret))
    async with running(with_internal(listener)) as proxy:
        yield proxy, listener


def caller_of(proxy: RunningProxy, secret: str) -> ProxyClient:
    return ProxyClient(f"http://{proxy.internal_address}", secret=secret)


async def test_without_the_table_nothing_listens() -> None:
    async with running(with_internal(None)) as proxy:
        assert proxy.internal_address is None


async def test_a_reload_changes_the_secret_and_closes_the_port() -> None:
    async with running_with_secret() as (proxy, listener), agent_of(proxy) as agent:
        assert await caller_of(proxy, "first").list_sessions()
        new = msgspec.structs.replace(listener, secret=Secret("second"))
        await proxy.reload(with_internal(new))
        with pytest.raises(ApiCallFailed, match="UNAUTHORIZED"):
            await caller_of(proxy, "first").list_sessions()
        assert await caller_of(proxy, "second").list_sessions()
        address = proxy.internal_address
        await proxy.reload(with_internal(None))
        assert proxy.internal_address is None
        with pytest.raises(OSError):
            await trio.open_tcp_stream(*address)
        assert not agent.is_closed


async def test_a_drain_is_seen_through_the_api_and_ends_with_the_last_stream() -> None:
    async with running_with_secret() as (proxy, _), agent_of(proxy) as agent:
        client = caller_of(proxy, "first")
        [session] = await client.list_sessions()
        raw = await client.open_stream(session.token)
        await raw.send_all(b"unfinished")
        theirs = await agent.accept_stream()
        async with client.events() as events, trio.open_nursery() as nursery:
            nursery.start_soon(proxy.drain, 30)
            with trio.fail_after(20):
                assert [event async for event in events] == []  # ended in order
            with pytest.raises(ApiCallFailed, match="DRAINING"):
                await client._call("GET", "/readyz")
            await theirs.send_all(b"finished")
            await theirs.send_eof()
            await raw.send_eof()
            received = b""
            while data := await raw.receive_some():
                received += data
            assert received == b"finished"
            await raw.aclose()
        assert proxy.report.cut == 0
        assert proxy.report.seconds < 5


async def test_silent_sessions_are_closed_by_the_proxy_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert CLEANUP_INTERVAL == 30
    monkeypatch.setattr("tunnelmux.proxy.app.CLEANUP_INTERVAL", 0.05)
    async with running_with_secret() as (proxy, _), agent_of(proxy) as agent:
        handle = await proxy.store.find_device("dev1")
        assert handle is not None
        handle.session.last_received -= 91  # type: ignore[attr-defined]
        handle._heartbeat = handle._connected_at.replace(year=2000)  # type: ignore[attr-defined]
        with trio.fail_after(20):
            await agent.wait_closed()
        assert handle.end_reason == "it was silent for more than 90 s"
        assert await caller_of(proxy, "first").list_sessions() == []
