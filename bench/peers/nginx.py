"""An nginx with TLS in front: of the origin itself, and of tunnels that read HTTP."""

from __future__ import annotations

from dataclasses import replace

from bench.origin import Origin, find_nginx
from bench.peers.ours import make_certificate
from bench.peers.programs import reported_version
from bench.peers.tunnel import Peer, Running
from bench.processes import HOST, Started, free_ports

# As for the origin: one process. Connections to what is behind it are kept.
CONFIGURATION = """\
daemon off;
master_process off;
pid {folder}/front.pid;
error_log {folder}/front-error.log error;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/front-body;
    proxy_temp_path {folder}/front-proxy;
    fastcgi_temp_path {folder}/front-fastcgi;
    uwsgi_temp_path {folder}/front-uwsgi;
    scgi_temp_path {folder}/front-scgi;
    upstream behind {{
        server {host}:{behind};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {host}:{port} ssl backlog=4096;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:visitors:10m;
        location / {{
            proxy_pass http://behind;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
{fields}
        }}
    }}
}}
"""


def start_front(started: Started, behind: Running) -> tuple[int, int]:
    """Its port and its process; it sends the header lines that lead to the origin."""
    nginx = find_nginx()
    assert nginx is not None  # the origin is one as well
    certificate, key, _pin = make_certificate(started.folder, "front")
    (port,) = free_ports(1)
    pairs = [header.split(": ", 1) for header in behind.headers]
    fields = "\n".join(f"            proxy_set_header {name} {value};" for name, value in pairs)
    file = started.folder / "front.conf"
    file.write_text(
        CONFIGURATION.format(
            folder=started.folder,
            host=HOST,
            port=port,
            behind=behind.http,
            certificate=certificate,
            key=key,
            fields=fields,
        )
    )
    error_log = str(started.folder / "front-error.log")
    process = started.start("front", [nginx, "-e", error_log, "-c", str(file)])
    started.wait_for_port(port)
    return port, process


class BehindNginx(Peer):
    """Another tunnel, with nginx in front of it, whose processor time is not counted."""

    def __init__(self, name: str, tunnel: Peer, *, columns: tuple[str, ...]) -> None:
        super().__init__(
            name, f"{tunnel.what} behind nginx with TLS", visitors="nginx", columns=columns
        )
        self._tunnel = tunnel
        self.ours = tunnel.ours

    def prepare(self) -> None:
        self._tunnel.prepare()
        self.version = self._tunnel.version

    def start(self, started: Started, origin: Origin) -> Running:
        running = self._tunnel.start(started, origin)
        port, _process = start_front(started, running)
        return replace(running, http=port, echo=None, headers=(), secure=True)


class NginxAlone(Peer):
    """No tunnel: the same nginx straight to the origin. Its processor time is the one counted."""

    tunnel = False

    def prepare(self) -> None:
        self.version = reported_version(find_nginx() or "nginx", "-v")

    def start(self, started: Started, origin: Origin) -> Running:
        port, process = start_front(started, Running(origin.http, None, None))
        return Running(port, process, None, secure=True)
