"""PostgreSQL on a socket in a temporary folder: Debian's, or another's (`_FOLDER`)."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest

__all__ = ["PostgreSQL", "run_postgresql"]

_STARTING = 60.0

_FOLDER = "TUNNELMUX_TEST_POSTGRESQL"
# Names the folder of another installation: the one that has bin/postgres.

_MOUNT = 'mount -t tmpfs -o "size=$1,uid=$2,gid=$3,mode=700" small "$4"; shift 4; exec "$@"'


class PostgreSQL:
    """A server that is running, or was stopped on purpose.

    With `small_disk`, a size like `24m`, it sees a disk of that size at `folder / "small"`, for a
    tablespace. That needs root.
    """

    def __init__(self, folder: Path, programs: Path, small_disk: str | None = None) -> None:
        self.folder = folder
        self._small_disk = small_disk
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "postgres")

    def _command(self, program: str, *arguments: str) -> list[str]:
        drop = []
        if self._user is not None:
            drop = ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--init-groups"]
        return [*drop, str(self._programs / program), *arguments]

    def _with_small_disk(self, command: list[str]) -> list[str]:
        """The command in a mount namespace of its own, so that nothing stays mounted after it."""
        if self._small_disk is None:
            return command
        owner = pwd.getpwnam(str(self._user))
        small = self.folder / "small"
        small.mkdir(exist_ok=True)
        mounted = [self._small_disk, str(owner.pw_uid), str(owner.pw_gid), str(small)]
        return ["unshare", "--mount", "sh", "-ec", _MOUNT, "-", *mounted, *command]

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._command(program, *arguments), "--no-sync", "--locale=C.UTF-8", "-E", "UTF8"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
        )

    @property
    def parameters(self) -> str:
        return f"host={self.folder} user=postgres dbname=postgres connect_timeout=3"

    def start(self) -> None:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "max_connections": "60",
        }
        settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._with_small_disk(
                    self._command("postgres", "-D", str(self.folder / "data"), *settings)
                ),
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        until = time.monotonic() + _STARTING
        while True:
            try:
                psycopg.connect(self.parameters).close()
            except psycopg.OperationalError:
                if time.monotonic() > until or self._process.poll() is not None:
                    pytest.fail(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()}")
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End the server at once, as a crash would: its next start recovers."""
        if self._process is not None:
            self.thaw()
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(20)
            self._process = None

    def freeze(self) -> None:
        """Stop every process of the server in its tracks (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        # Under setpriv the process is the server itself: it execs.
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for process in (str(parent), *children):
            with suppress(ProcessLookupError):  # a backend may have ended since
                os.kill(int(process), number)

    def new_database(self, more: str = "") -> str:
        """An empty database of its own, created with `more` options; its URL."""
        self._databases += 1
        name = f"test{self._databases}"
        self.administer(f"CREATE DATABASE {name} {more}")
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def administer(self, statement: str) -> None:
        """Run a statement about the server as a whole."""
        with psycopg.connect(self.parameters, autocommit=True) as connection:
            connection.execute(statement)

    def lock(self, url: str, tables: str) -> psycopg.Connection:
        """Keep everybody from these tables until the connection is closed."""
        connection = psycopg.connect(url)
        try:
            while True:
                # Transactions that are under way may have taken them in another order.
                with suppress(psycopg.errors.DeadlockDetected):
                    connection.execute(f"LOCK TABLE {tables}")
                    return connection
                connection.rollback()
        except BaseException:
            connection.close()
            raise

    def execute(self, url: str, statement: str) -> list[tuple[object, ...]]:
        """What a statement answers, run beside the registry's own connections."""
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def run_postgresql(*, small_disk: str | None = None) -> Iterator[PostgreSQL]:
    """A server of its own while the block runs, or a skip (with CI=true: a failure)."""
    if small_disk is not None and os.geteuid() != 0:
        _leave_out("a disk of a certain size can only be made by root")
    # Short: the path of a Unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        server = PostgreSQL(folder, _programs(), small_disk)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _programs() -> Path:
    """The folder of `postgres` and `initdb`."""
    if named := os.environ.get(_FOLDER):
        return Path(named) / "bin"
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_version)
    if not found:
        _leave_out("postgres is missing: apt-get install postgresql")
    return found[-1].parent


def _leave_out(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (in CI this is a failure, not a skip)", pytrace=False)
    pytest.skip(reason)


def _version(program: Path) -> int:
    return int(program.parent.parent.name)
