"""What a single value must look like, in the file of either program."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnelmux.config import (
    AgentConfig,
    Device,
    DeviceConfig,
    HttpIngress,
    Ingress,
    InvalidSetting,
    LimitsConfig,
    ProxyConfig,
    ProxyEndpoint,
    RegistrySource,
    Secret,
    ServiceConfig,
    TcpIngress,
    TunnelListener,
)
from tunnelmux.config.access import AccessConfig
from tunnelmux.config.api import RegistryConfig
from tunnelmux.config.rules import Address, parse_address
from tunnelmux.limits import IngressLimits, Limits

DEV1 = DeviceConfig(name="dev1", token=Secret("abc"))
WEB = ServiceConfig(name="web", target="http://127.0.0.1:8000")
ENDPOINT = ProxyEndpoint(url="ws://proxy.example:3800", token=Secret("abc"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:3800", ("0.0.0.0", 3800)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_addresses(text, address):
    assert parse_address("listen", text) == address
    assert str(Address(*address)) == text


@pytest.mark.parametrize("text", ["", "3800", "host", "host:", "host:x", "host:65536", "host:-1",
                                  "host:²", ":3800", "::1:3800", "a b:1", "a\0:1"])  # fmt: skip
def test_no_addresses(text):
    with pytest.raises(InvalidSetting, match=r"^listen: "):
        TunnelListener(listen=text)


@pytest.mark.parametrize("name", ["dev1", "a", "7", "a-b", "x" * 63])
def test_names(name):
    assert DeviceConfig(name=name, token=Secret("abc")).name == name


@pytest.mark.parametrize("name", ["", "Dev", "-a", "a-", "a_b", "a.b", "é", "x" * 64, "a\n"])
def test_no_names(name):
    with pytest.raises(InvalidSetting, match="use 1 to 63 of a-z, 0-9"):
        DeviceConfig(name=name, token=Secret("abc"))


@pytest.mark.parametrize("name", ["web--dev1", "xn--bcher-kva"])
def test_two_hyphens_separate_service_and_device(name):
    with pytest.raises(InvalidSetting, match="separates service and device"):
        ServiceConfig(name=name, target="tcp://127.0.0.1:22")


@pytest.mark.parametrize(
    ("target", "scheme", "address"),
    [
        ("http://127.0.0.1:8000", "http", ("127.0.0.1", 8000)),
        ("http://printer/", "http", ("printer", 80)),
        ("https://printer", "http", ("printer", 443)),
        ("https://127.0.0.1:8443/", "http", ("127.0.0.1", 8443)),
        ("tcp://[::1]:22", "tcp", ("::1", 22)),
        ("8000", "http", ("127.0.0.1", 8000)),
        ("unix:/run/app.sock", "http", None),
        ("tcp+unix:/run/app.sock", "tcp", None),
    ],
)
def test_targets(target, scheme, address):
    service = ServiceConfig(name="web", target=target)
    assert (service.scheme, service.address) == (scheme, address)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (
            "127.0.0.1:3000",
            (
                '^target: "127.0.0.1:3000" has no scheme: write "http://127.0.0.1:3000" for a web '
                'server, "tcp://127.0.0.1:3000" for anything else, or "unix:/path" for a Unix '
                "socket$"
            ),
        ),
        ("localhost", 'has no scheme: write "http://localhost:8000" for a web server'),
        ("nas:5000/x", 'has no scheme: write "http://nas:5000" for a web server'),
        ("", 'has no scheme: write "http://127.0.0.1:8000" for a web server'),
        ("/run/app.sock", 'has no scheme: write "unix:/run/app.sock" for HTTP at a Unix socket'),
        ("web server", "^target: is no target: write it like"),
        ("anna:hunter2@nas:80", "^target: is no target: write it like"),
        ("0", "is not a port from 1 to 65535: write the one at which the web server listens"),
        ("65536", 'is not a port from 1 to 65535: .*, such as "8000"$'),
        ("9" * 5000, 'is not a port from 1 to 65535: .*, such as "8000"$'),
        ("22", 'write "tcp://127.0.0.1:22" for SSH'),
        (
            "ftp://anna:hunter2@nas",
            (
                '^target: "ftp://" is no scheme of a target: use http://, https://, tcp://, '
                "unix:/path or tcp[+]unix:/path$"
            ),
        ),
        ("ws://127.0.0.1:80", "write http:// in its place, which takes WebSockets as well$"),
        ("ssh://127.0.0.1", "write tcp:// and the port, such as tcp://127.0.0.1:22$"),
        ("udp://127.0.0.1:53", "UDP cannot be passed on"),
        ("unix:run/app.sock", 'no path that begins with one "/"'),
        ("unix:///run/app.sock", 'no path that begins with one "/"'),
        ("unix:", 'no path that begins with one "/"'),
        ("unix:/a\0b", "odd character"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("tcp://127.0.0.1", 'has no port: write it as "tcp://127.0.0.1:22"$'),
        ("tcp://127.0.0.1:0", "has port 0"),
        ("tcp://127.0.0.1:99999", "is not a URL"),
        ("http://anna:hunter2@nas:99999", "^target: is not a URL"),
        ("http://:80", "names no host"),
        ("http://127.0.0.1/app", "end the target after the port"),
        ("http://[::1", "is not a URL"),
        ("http://a\nb", "odd character"),
    ],
)
def test_no_targets(target, problem):
    with pytest.raises(InvalidSetting, match=problem):
        ServiceConfig(name="web", target=target)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"verify": False}, r"^verify: is for https:// targets"),
        ({"ca_file": Path("ca.pem")}, r"^ca_file: is for https:// targets"),
        ({"rewrite": False}, r"^rewrite: is of no use without host"),
        ({"server_name": "x"}, r"^server_name: is for https:// targets"),
        (
            {"target": "https://x", "verify": False, "ca_file": Path("ca.pem")},
            r"^ca_file: is of no use with verify = false",
        ),
        ({"target": "https://x", "server_name": "a b"}, r"^server_name: is not a name"),
        ({"target": "tcp+unix:/x", "host": "x"}, r"^host: is for targets that speak HTTP"),
    ],
)
def test_keys_that_a_target_has_no_use_for(changes, problem):
    with pytest.raises(InvalidSetting, match=problem):
        ServiceConfig(**{"name": "web", "target": "http://127.0.0.1"} | changes)


def test_a_password_in_a_url_is_refused_and_not_shown():
    with pytest.raises(InvalidSetting, match="must not hold a user name") as caught:
        ServiceConfig(name="web", target="http://user:hunter2@127.0.0.1/")
    assert "hunter2" not in str(caught.value)


def test_names_are_unique():
    with pytest.raises(InvalidSetting, match=r'^devices.name: "dev1" is there twice'):
        ProxyConfig(devices=[DEV1, DeviceConfig(name="dev1", token=Secret("def"))])
    with pytest.raises(InvalidSetting, match=r'^services.name: "web" is there twice'):
        AgentConfig(proxy=ENDPOINT, device=Device(name="dev1"), services=[WEB, WEB])


def test_tokens_are_unique():
    config = ProxyConfig(devices=[DEV1, DeviceConfig(name="dev2", token=Secret("abc"))])
    with pytest.raises(InvalidSetting, match=r'"dev2" has the same token as "dev1"') as caught:
        config.read_token_hashes()
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    "tokens", [{}, {"token": Secret("abc"), "token_sha256": "0" * 64}], ids=["none", "two"]
)
def test_a_device_has_exactly_one_token(tokens):
    with pytest.raises(InvalidSetting, match="exactly one of token, token_sha256 and token_file"):
        DeviceConfig(name="dev1", **tokens)


@pytest.mark.parametrize("value", ["abc", "0" * 63, "A" * 64, "g" * 64])
def test_no_token_hashes(value):
    with pytest.raises(InvalidSetting, match="must be 64 hexadecimal digits, lower case"):
        DeviceConfig(name="dev1", token_sha256=value)


def test_a_tcp_port_leads_to_a_device_that_exists():
    port = TcpIngress(listen="127.0.0.1:2222", device="dev2", service="ssh")
    with pytest.raises(
        InvalidSetting, match=r'^ingress.tcp\[0\].device: there is no device "dev2"'
    ):
        ProxyConfig(devices=[DEV1], ingress=Ingress(tcp=[port]))


def test_two_listeners_cannot_share_an_address():
    http = HttpIngress(listen="0.0.0.0:3800")
    public = AccessConfig(let_in=["public"])
    with pytest.raises(InvalidSetting, match=r"is also tunnel.listen: give each listener"):
        ProxyConfig(ingress=Ingress(http=http), access=public)
    anywhere = HttpIngress(listen="0.0.0.0:0")
    ProxyConfig(
        tunnel=TunnelListener(listen="0.0.0.0:0"), ingress=Ingress(http=anywhere), access=public
    )


@pytest.mark.parametrize("network", ["10.0.0.0/8", "::1", "192.0.2.7"])
def test_networks(network):
    assert HttpIngress(listen="[::]:0", trusted_proxies=[network]).trusted_proxies == [network]


@pytest.mark.parametrize("network", ["10.0.0.1/8", "10.0.0.0/33", "localhost"])
def test_no_networks(network):
    with pytest.raises(InvalidSetting, match="write a network such as"):
        HttpIngress(listen="[::]:0", trusted_proxies=[network])


@pytest.mark.parametrize("domain", ["", ".example", "example.", "*.example", "a:80", "Example"])
def test_no_domains(domain):
    with pytest.raises(InvalidSetting, match="is not a domain name"):
        HttpIngress(listen="[::]:0", domain=domain)


def test_a_certificate_needs_its_key(tmp_path):
    with pytest.raises(InvalidSetting, match=r"^tls_key: is missing"):
        TunnelListener(tls_certificate=tmp_path)
    with pytest.raises(InvalidSetting, match=r"^tls_certificate: is missing"):
        HttpIngress(listen="[::]:0", tls_key=tmp_path)


@pytest.mark.parametrize(
    "url", ["http://h", "tcp://h:1", "tls://h:1", "ws://", "h:3800", "ws://h:0"]
)
def test_no_tunnel_endpoints(url):
    with pytest.raises(InvalidSetting, match=r"^url: "):
        ProxyEndpoint(url=url, token=Secret("abc"))


def test_a_pin_needs_tls():
    pin = "sha256:" + "0" * 64
    with pytest.raises(InvalidSetting, match="of no use without TLS"):
        ProxyEndpoint(url="ws://h", token=Secret("abc"), pin=pin)
    assert ProxyEndpoint(url="wss://h", token=Secret("abc"), pin=pin).is_encrypted


PAIRS = ":".join(["AB"] * 32)


@pytest.mark.parametrize(
    "written",
    [
        "sha256:" + "ab" * 32,
        "ab" * 32,
        PAIRS,
        f"sha256 Fingerprint={PAIRS}",
        f"SHA256 Fingerprint={PAIRS}\n",
        f" sha256:{PAIRS.lower()}",
    ],
)
def test_a_pin_is_taken_as_openssl_prints_it(written):
    endpoint = ProxyEndpoint(url="wss://h", token=Secret("abc"), pin=written)
    assert endpoint.pin == "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    "written", ["", "sha256:", "00" * 31, "00" * 33, "SHA1 Fingerprint=00", "0x"]
)
def test_what_is_no_pin_is_told_how_to_get_one(written):
    with pytest.raises(InvalidSetting, match=r"64 hexadecimal digits.*openssl x509"):
        ProxyEndpoint(url="wss://h", token=Secret("abc"), pin=written)


def test_an_agent_without_services_is_of_no_use():
    with pytest.raises(InvalidSetting, match=r"add a \[\[services\]\] table"):
        AgentConfig(proxy=ENDPOINT, device=Device(name="dev1"))


SSH = ServiceConfig(name="ssh", target="tcp://127.0.0.1:22")


@pytest.mark.parametrize(
    ("services", "default"),
    [
        ([SSH], "ssh"),
        ([SSH, WEB], "web"),
        ([WEB, ServiceConfig(name="ui", target="http://127.0.0.1:81", default=True)], "ui"),
    ],
    ids=["the first", "the first http one", "the marked one"],
)
def test_the_default_service(services, default):
    config = AgentConfig(proxy=ENDPOINT, device=Device(name="dev1"), services=services)
    assert config.default_service.name == default


def test_there_is_one_default_service():
    services = [
        ServiceConfig(name=name, target="http://127.0.0.1:81", default=True) for name in ("a", "b")
    ]
    with pytest.raises(InvalidSetting, match="only one can be the default, not a and b"):
        AgentConfig(proxy=ENDPOINT, device=Device(name="dev1"), services=services)


def test_service_and_device_fit_into_one_label():
    with pytest.raises(InvalidSetting, match="is 64 long and a host name's label holds 63"):
        AgentConfig(proxy=ENDPOINT, device=Device(name="d" * 59), services=[WEB])
    AgentConfig(proxy=ENDPOINT, device=Device(name="d" * 58), services=[WEB])


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (Limits(max_streams=0), "max_streams: 0 is not above 0"),
        (Limits(accept_backlog=-1), "accept_backlog: -1 is not above 0"),
        (Limits(max_streams=2**62), "is not above 0 and at most 1099511627776"),
        (Limits(linger=float("inf")), "linger: inf is not above 0 and at most 2592000"),
        (Limits(linger=float("nan")), "linger: nan is not above 0"),
        (Limits(max_frame_payload=65_537), "max_frame_payload: 65537 is not from 1 to 65536"),
        (Limits(flush_size=16_395), "flush_size: 16395 is not from 16396 to 16777216"),
        (Limits(max_stream_window=1), "max_stream_window: 1 is not from 262144 to 2147483647"),
    ],
)
def test_limits_that_limit_nothing_or_everything(limits, problem):
    with pytest.raises(InvalidSetting, match=problem):
        LimitsConfig(session=limits)


def test_waiting_for_a_device_can_be_turned_off():
    config = LimitsConfig(ingress=IngressLimits(reconnect_wait=0))
    assert config.ingress.reconnect_wait == 0


@pytest.mark.parametrize("path", ["", "tunnel", "/a?b", "/a#b", "/a b", "/é"])
def test_no_tunnel_paths(path):
    with pytest.raises(InvalidSetting, match="is not a path"):
        TunnelListener(path=path)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "192.0.2.7", "[::1]:80"])
def test_host_fields(host):
    assert ServiceConfig(name="web", target="http://127.0.0.1", host=host).host == host


@pytest.mark.parametrize("host", ["", "a b", "a\r\nb: c", "a:x", "::1", "a/b"])
def test_no_host_fields(host):
    with pytest.raises(InvalidSetting, match="is not a host"):
        ServiceConfig(name="web", target="http://127.0.0.1", host=host)


def test_a_host_field_is_for_http_targets():
    with pytest.raises(InvalidSetting, match="leave it out for tcp"):
        ServiceConfig(name="ssh", target="tcp://127.0.0.1:22", host="localhost")


def test_a_tcp_port_may_lead_to_a_device_that_only_the_registry_knows():
    port = TcpIngress(listen="127.0.0.1:2222", device="dev1--acme", service="ssh")
    registry = RegistrySource(url=Secret("sqlite:////r.db"))
    ProxyConfig(ingress=Ingress(tcp=[port]), registry=registry)
    with pytest.raises(InvalidSetting, match="there is no device"):
        ProxyConfig(ingress=Ingress(tcp=[port]))
    for name in ("dev1--", "--acme", "a--b--c", "Dev1--acme"):
        with pytest.raises(InvalidSetting, match="device"):
            TcpIngress(listen="127.0.0.1:2222", device=name, service="ssh")


def test_the_registrys_url_is_given_once_and_never_shown(tmp_path):
    file = tmp_path / "url"
    file.write_text("postgresql://u:hunter2@h/d\n")
    with pytest.raises(InvalidSetting, match="keep one of them"):
        RegistrySource(url=Secret("sqlite:////r.db"), url_file=file)
    source = RegistrySource(url_file=file)
    assert source.read_url() == Secret("postgresql://u:hunter2@h/d")
    assert "hunter2" not in repr(source.read_url())
    assert RegistrySource().read_url() is None
    with pytest.raises(InvalidSetting, match="internal_url"):
        RegistrySource(internal_url="not a url")


def test_the_api_takes_the_registrys_url_from_a_file_too(tmp_path):
    file = tmp_path / "url"
    file.write_text("postgresql://u:hunter2@h/d\n")
    with pytest.raises(InvalidSetting, match="keep one of them"):
        RegistryConfig(url=Secret("sqlite:////r.db"), url_file=file)
    with pytest.raises(InvalidSetting, match="url: is missing"):
        RegistryConfig()
    assert RegistryConfig(url_file=file).require_url() == Secret("postgresql://u:hunter2@h/d")
    assert not RegistryConfig(url_file=file).has_password
    assert RegistryConfig(url=Secret("postgresql://u:hunter2@h/d")).has_password
    assert not RegistryConfig(url=Secret("postgresql://u@h/d")).has_password
    file.write_text("two\nlines\n")
    with pytest.raises(InvalidSetting, match=r"url_file: .* one line") as problem:
        RegistryConfig(url_file=file).read_url()
    assert "two" not in str(problem.value)
