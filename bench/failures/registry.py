"""A registry for an installation that is broken: PostgreSQL with the devices, and tunnelmux-api."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from bench.peers.ours import start_daemon
from bench.processes import HOST, Started, StartFailure, read_all_stats

__all__ = ["Database", "fill", "socket_folder", "start_api"]

PROGRAMS = Path("/usr/lib/postgresql")
USER = "postgres"
"""PostgreSQL does not run as root."""

API = """\
[api]
listen = "{host}:{port}"
public_url = "http://{host}:{port}"
[registry]
url = "{url}"
[oidc]
issuer = "http://{host}:9"
client_id = "nobody-signs-in-here"
[browser_sessions]
key_file = "{keys}"
"""


class Database:
    """A PostgreSQL server on a Unix socket, with a database for the registry."""

    def __init__(self, started: Started, folder: Path) -> None:
        found = sorted(PROGRAMS.glob("*/bin/postgres"))
        if not found:
            raise StartFailure("there is no PostgreSQL: apt-get install postgresql")
        self._started = started
        self._folder = folder
        self._programs = found[-1].parent
        self._starts = 0
        self._pid = 0
        self.url = f"postgresql://{USER}@/postgres?host={folder}"
        if os.geteuid() == 0:
            entry = pwd.getpwnam(USER)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        made = [*self._command("initdb"), "-A", "trust", "-U", USER, "--no-sync"]
        done = subprocess.run(made, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartFailure(f"initdb: {done.stderr.strip()[-600:]}")

    def _command(self, program: str) -> list[str]:
        drop = []
        if os.geteuid() == 0:
            drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
        return [*drop, str(self._programs / program), "-D", str(self._folder / "data")]

    async def start(self) -> None:
        """Start the server, or start it again; returns when it takes connections."""
        self._starts += 1
        options = ("-c", "listen_addresses=", "-c", f"unix_socket_directories={self._folder}")
        command = [*self._command("postgres"), *options]
        # Until it is reaped, the server before it counts as running for the lock on its data.
        while not self._started.has_ended(self._pid):  # noqa: ASYNC110  no event says so
            await trio.sleep(0.05)
        self._pid = self._started.start(f"postgresql-{self._starts}", command)
        with trio.fail_after(60):
            while not await trio.to_thread.run_sync(self._answers):  # noqa: ASYNC110
                await trio.sleep(0.1)  # no event says so

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send this to every process of the server."""
        for pid in [self._pid, *children_of(self._pid)]:
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(pid, number)


def children_of(parent: int) -> Sequence[int]:
    return [pid for pid, stat in read_all_stats().items() if stat.parent == parent]


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A folder for a server's socket and its data. The socket's path has at most 107 bytes, and the
    server's user has to get there."""
    folder = Path(tempfile.mkdtemp(prefix="tunnelmux-pg-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def fill(url: str, names: Sequence[str]) -> list[str]:
    """Make the tables, and these devices in the default tenant; their tokens."""
    from tunnelmux.config import Secret
    from tunnelmux.registry import Actor, open_registry
    from tunnelmux.registry.sql import upgrade_database

    await trio.to_thread.run_sync(upgrade_database, Secret(url))
    async with open_registry(Secret(url)) as registry:
        [tenant] = (await registry.installation(Actor.program("bench")).tenants.page()).items
        devices = registry.tenant(tenant.id, Actor.program("bench")).devices
        return [(await devices.add(name))[1].reveal() for name in names]


def start_api(started: Started, url: str, port: int, called: str) -> int:
    """tunnelmux-api with that registry. Its process id."""
    from tunnelmux.api.browser_sessions.keys import new_key_line

    keys = started.folder / "session-keys"
    if not keys.exists():
        keys.touch(mode=0o600)
        keys.write_text(new_key_line())
    text = API.format(host=HOST, port=port, url=url, keys=keys)
    return start_daemon(started, "api", text, called)
