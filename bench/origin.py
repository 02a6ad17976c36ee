"""What the tunnels lead to: nginx with three bodies and WebSocket echoes, and a plain echo."""

from __future__ import annotations

import shutil
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

from bench.processes import HOST, Started, free_ports
from bench.tree import ROOT
from bench.websocket import PATH

SMALL, LARGE, BULK = "/small", "/large", "/bulk"
SIZES = {SMALL: 100, LARGE: 100 * 1024, BULK: 256 * 1024 * 1024}
"""Bytes of each body. A bulk transfer asks for its body again and again on one connection."""

# One process: it needs no more, and as root it would not change to a user who cannot read here.
CONFIGURATION = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log error;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    open_file_cache max=16;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port} backlog=4096;
        root {folder}/bodies;
        default_type application/octet-stream;
        location {websocket_path} {{
            proxy_pass http://{host}:{websocket};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Origin:
    """Ports on the loopback."""

    http: int
    echo: int


def find_nginx() -> str | None:
    """Debian keeps it where an ordinary user's PATH does not look."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


class OriginProcesses(AbstractContextManager[Origin]):
    """nginx and the echoes, for the length of a block."""

    def __init__(self, started: Started, nginx: str) -> None:
        self._started = started
        self._nginx = nginx

    def __enter__(self) -> Origin:
        started = self._started.__enter__()
        origin = Origin(*free_ports(2))
        (websocket,) = free_ports(1)
        bodies = started.folder / "bodies"
        bodies.mkdir(exist_ok=True)
        for path, size in SIZES.items():
            (bodies / path.strip("/")).write_bytes(b"x" * size)
        configuration = started.folder / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(
                folder=started.folder,
                host=HOST,
                port=origin.http,
                websocket=websocket,
                websocket_path=PATH,
            )
        )
        # Before it reads its configuration it opens a log of its own choice: give it ours.
        error_log = str(started.folder / "nginx-error.log")
        started.start("nginx", [self._nginx, "-e", error_log, "-c", str(configuration)])
        environment = {"PYTHONPATH": str(ROOT)}
        for name, port in (("echo", origin.echo), ("websocket", websocket)):
            started.start(name, [sys.executable, "-m", f"bench.{name}", str(port)], environment)
        for port in (origin.http, origin.echo, websocket):
            started.wait_for_port(port)
        return origin

    def __exit__(self, *error: object) -> None:
        self._started.__exit__(*error)
