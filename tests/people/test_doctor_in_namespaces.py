"""doctor against each fault that it knows, made on purpose: a machine of its own with a real API, a
real proxy, and a real nginx in front of both. The person's machine and the device's are asked at
the same time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trustme

from support.installation import COMMAND
from support.namespace import Namespace, namespace
from support.programs import require_program
from support.tenants import person
from support.tree import ROOT
from tunnelmux.config import Secret
from tunnelmux.registry import open_registry

if TYPE_CHECKING:
    from support.apis import LiveApi

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROXY = """
[tunnel]
listen = "127.0.0.1:3800"
[[devices]]
name = "dev1"
token = "the-token-of-dev1-is-long"
"""

AGENT = """
[proxy]
url = "wss://{host}:{port}/tunnel/connect"
token = "the-token-of-dev1-is-long"
ca_file = "{folder}/ca.pem"
[device]
name = "dev1"
[[services]]
name = "web"
target = "http://127.0.0.1:3721"
"""

NGINX = """
daemon off;
user root root;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_http_version 1.1;
{servers}
}}
"""

SERVER = """
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_protocols {protocols};
        ssl_certificate {folder}/{certificate}.pem;
        ssl_certificate_key {folder}/{certificate}.key;
        location /tunnel/ {{ proxy_pass http://127.0.0.1:{tunnel}; {fields} }}
        location / {{ proxy_pass http://127.0.0.1:{api}; {fields} }}
    }}
"""

UPGRADE = (
    "proxy_set_header Host $host; proxy_set_header Upgrade $http_upgrade; "
    'proxy_set_header Connection "upgrade";'
)

WELL, STRIPPED, EXPIRED, STRANGER, AWAY, PORTAL, FAR, THIN, OLD = range(8443, 8452)


Asked = subprocess.Popen[bytes]
Told = dict[str, dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A person's machine and a device in one, and the server that both mean."""

    place: Namespace
    folder: Path
    token: str
    """Of a person at the API."""

    def ask(self, *before: str, **where: Any) -> tuple[Told, Told]:
        """What the person and the device are told, by check."""
        person, device = self.begin(*before, **where)
        return told(person), told(device)

    def begin(
        self, *before: str, host: str = "proxy.test", port: int = WELL, **env: str
    ) -> tuple[Asked, Asked]:
        """Start to ask both; `before` are words in front of the command."""
        config = self.folder / f"agent-{host}-{port}.toml"
        config.touch(mode=0o600)
        config.write_text(AGENT.format(host=host, port=port, folder=self.folder))
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith("TUNNELMUX_")
        }
        whole = {
            **kept,
            "HOME": str(self.folder),
            "TERM": "xterm",
            "TUNNELMUX_SERVER": f"https://{host}:{port}",
            "TUNNELMUX_TOKEN": self.token,
            **env,
        }
        words = [*before, *COMMAND, "doctor", "--json", "--timeout", "20"]
        return (
            self.place.open([*words, "--ca-file", f"{self.folder}/ca.pem"], whole),
            self.place.open([*words, "--agent", str(config)], whole),
        )


def told(process: Asked) -> Told:
    """What came of it."""
    said, complaint = process.communicate(timeout=120)
    assert process.returncode in {0, 1}, complaint
    found = {item["check"]: item for item in json.loads(said)}
    assert (process.returncode == 1) == any(item["outcome"] == "bad" for item in found.values())
    return found


def _certificate(folder: Path, name: str, authority: trustme.CA, days: int) -> None:
    ends = datetime.now(UTC) + timedelta(days=days)
    made = authority.issue_cert("proxy.test", not_after=ends)
    (folder / f"{name}.key").write_bytes(made.private_key_pem.bytes())
    (folder / f"{name}.pem").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))


async def _sign_in(file: Path) -> str:
    """What `tunnelmux login` would leave: a token of a person at that API."""
    async with open_registry(Secret(f"sqlite:///{file}")) as registry:
        api = SimpleNamespace(running=SimpleNamespace(api=SimpleNamespace(registry=registry)))
        return (await person(cast("LiveApi", api), "ada")).token


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    nginx = require_program("nginx", "nginx-light")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name, ca, days in (
        ("good", authority, 90),
        ("old", authority, -1),
        ("x", trustme.CA(), 90),
    ):
        _certificate(folder, name, ca, days)
    servers = [
        (WELL, "good", 3800, 3721, UPGRADE),
        (STRIPPED, "good", 3800, 3721, ""),
        (EXPIRED, "old", 3800, 3721, UPGRADE),
        (STRANGER, "x", 3800, 3721, UPGRADE),
        (AWAY, "good", 1, 1, UPGRADE),
        (OLD, "good", 3800, 3721, UPGRADE),
    ]
    text = "".join(
        SERVER.format(
            folder=folder,
            port=port,
            certificate=name,
            tunnel=tunnel,
            api=api,
            fields=fields,
            protocols="TLSv1.2" if port == OLD else "TLSv1.2 TLSv1.3",
        )
        for port, name, tunnel, api, fields in servers
    )
    text += f"    server {{ listen 127.0.0.1:{PORTAL}; return 200 'Welcome to our WLAN'; }}\n"
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, servers=text))
    (folder / "proxy.toml").touch(mode=0o600)
    (folder / "proxy.toml").write_text(PROXY)
    env = {**os.environ, "HOME": str(folder)}
    with namespace(folder, "127.0.0.1 localhost\n") as place:
        place.serve("dns")
        place.resolve_by("nameserver 127.0.0.1\n")
        words = [sys.executable, str(ROOT / "cmd" / "tunnelmux-proxy")]
        place.start([*words, "--config", str(folder / "proxy.toml")], "listening", env)
        words = [sys.executable, str(ROOT / "cmd" / "tunnelmux-api"), "--quickstart"]
        place.start(
            [*words, "--state-dir", str(folder / "api"), "--listen", "127.0.0.1:3721"],
            "listening",
            env,
        )
        command = [nginx, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        place.start(command, "", env)
        place.serve("relay", str(FAR), str(WELL), "0.3", "0")
        place.serve("relay", str(THIN), str(WELL), "0", "8000")
        for port in (3800, 3721, WELL, PORTAL):
            place.wait_for_port(port)
        [file] = (folder / "api").glob("*.db")
        yield Machine(place=place, folder=folder, token=trio.run(_sign_in, file))


def faults(found: Told) -> dict[str, str]:
    """The checks that are not good; a machine that is busy is slow."""
    return {
        name: item["outcome"]
        for name, item in found.items()
        if item["outcome"] != "good" and name not in {"round trip", "throughput"}
    }


def test_all_is_well(machine: Machine) -> None:
    human, device = machine.ask()
    assert faults(human) == faults(device) == {}
    assert human["account"]["said"] == "ada@example.com, owner"
    assert "TLSv1.3, certificate good for 89 d" in device["TLS"]["said"]
    assert device["service"]["said"] == "web at 127.0.0.1:3721 answers"
    assert human["throughput"]["outcome"] == device["throughput"]["outcome"] == "good"
    rate = r"[\d.]+ [KMG]iB/s"
    time = r"(less than 1 s|\d+ (s|min|h|d))"
    assert re.fullmatch(
        rf"at least {rate} from there \(.*\): 10 MiB take {time}", human["throughput"]["said"]
    )
    assert re.fullmatch(
        rf"{rate} to the proxy, {rate} from it: 10 MiB take {time} to a visitor and {time} to this "
        "device",
        device["throughput"]["said"],
    )
    assert device["token"]["said"] == "the proxy knows this device"
    assert list(human)[-1] == list(device)[-1] == "descriptors"


@pytest.mark.parametrize(
    ("where", "check", "says", "fix"),
    [
        ({"port": 9}, "connection", "connection refused", "check that the server runs"),
        ({"port": PORTAL}, "TLS", "", "does not speak TLS"),
        ({"port": OLD}, "TLS", "protocol", "offers no TLS 1.3"),
        ({"port": EXPIRED}, "TLS", "expired", "renew it"),
        ({"port": STRANGER}, "TLS", "certificate", "private authority"),
        ({"port": AWAY}, "server", "it answers 502", "look into its log"),
        ({"port": STRIPPED}, "WebSocket", "not by tunnelmux", "proxy_http_version 1.1"),
        (
            {"HTTPS_PROXY": "http://127.0.0.1:9"},
            "connection",
            "127.0.0.1:9",
            "the HTTP proxy comes from HTTPS_PROXY",
        ),
        (
            {"HTTPS_PROXY": f"http://127.0.0.1:{PORTAL}"},
            "connection",
            "40",
            "let it pass CONNECT to proxy.test:8443",
        ),
    ],
    ids=[
        "refused",
        "portal",
        "old",
        "expired",
        "stranger",
        "away",
        "stripped",
        "no-proxy",
        "proxy",
    ],
)
def test_what_stands_in_the_way(
    machine: Machine, where: dict[str, object], check: str, says: str, fix: str
) -> None:
    for found in machine.ask(**where):  # type: ignore[arg-type]
        assert faults(found) == {check: "bad"}, found
        assert says in found[check]["said"], found
        assert fix in found[check]["fix"], found


def test_names(machine: Machine) -> None:
    for found in machine.ask(host="typo.test"):
        assert faults(found) == {"names": "bad"}
        assert found["names"]["said"] == "typo.test has no address: the name is not known"
        assert "check the spelling" in found["names"]["fix"]
    machine.place.resolve_by("nameserver 127.0.0.77\noptions attempts:1 timeout:1\n")
    try:
        for found in machine.ask():
            assert faults(found) == {"names": "bad"}
            assert found["names"]["said"] == "no DNS server answered for proxy.test"
            assert "/etc/resolv.conf" in found["names"]["fix"]
    finally:
        machine.place.resolve_by("nameserver 127.0.0.1\n")


def test_clocks(machine: Machine) -> None:
    faketime = require_program("faketime", "faketime")
    for found in machine.ask(faketime, "+5 hours"):
        assert faults(found) == {"clock": "bad"}
        assert "5 h ahead of the server's" in found["clock"]["said"]
        assert "timedatectl set-ntp true" in found["clock"]["fix"]
    for found in machine.ask(faketime, "1999-01-01 00:00:00"):
        assert faults(found) == {"TLS": "bad"}
        assert "not yet valid" in found["TLS"]["said"]
        assert "this machine's clock says 1999-01-01" in found["TLS"]["fix"]


def test_a_way_that_is_long_or_thin(machine: Machine) -> None:
    far, thin = machine.begin(port=FAR), machine.begin(port=THIN)
    for found in map(told, far):
        assert faults(found) == {}
        assert found["round trip"]["outcome"] == "warning"
        assert "a shell will feel slow" in found["round trip"]["fix"]
    for found, says in zip(map(told, thin), ("from there", "to the proxy"), strict=True):
        assert faults(found) == {}
        assert found["throughput"]["outcome"] == "warning"
        assert re.match(rf"(at least )?[\d.]+ (KiB|B)/s {says}", found["throughput"]["said"])
        assert re.search(r"10 MiB take \d+ (min|h|d)", found["throughput"]["said"])
        assert "see what else uses this line" in found["throughput"]["fix"]


def test_few_descriptors(machine: Machine) -> None:
    prlimit = require_program("prlimit", "util-linux")
    for found in machine.ask(prlimit, "--nofile=200:300"):
        assert faults(found) == {"descriptors": "warning"}
        assert found["descriptors"]["said"] == "200 files and sockets at once, 300 at most"
        assert "ulimit -n" in found["descriptors"]["fix"]
