"""Checks SSH servers by their host keys: known ones, and those pinned at the first connection."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import asyncssh

from tunnelmux.config.execution import OLD_ALGORITHMS
from tunnelmux.config.host_name import to_a_labels
from tunnelmux.config.private_file import write_private
from tunnelmux.observability import get_logger
from tunnelmux.ssh.failure import SshFailure

__all__ = ["HostKeyCheck", "HostKeyMode", "HostKeys"]

HostKeyMode = Literal["tofu", "known_hosts", "off"]
"""`tofu`: a server met for the first time is trusted, and its key pinned. `known_hosts`: only keys
in the file are trusted. `off`: every key is trusted."""

_DEFAULT_PORT = 22

_MOST_TOLD = 10
# How many servers one log line names.

_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
"""The host key algorithms that servers are offered, best first. No certificates: without their
authority's key in the known hosts they prove nothing, and without them OpenSSH uses the plain
key."""

_log = get_logger("ssh")


class HostKeys:
    """The known keys of servers. Changed in the Trio task, written from a thread."""

    def __init__(
        self,
        mode: HostKeyMode,
        *,
        known_hosts: Path | None = None,
        store: Path | None = None,
        algorithms: Sequence[str] = (),
    ) -> None:
        """`algorithms` are old ones that may be used as well; only those for host keys matter."""
        self.mode: HostKeyMode = mode
        old = OLD_ALGORITHMS["server host key"]
        self.algorithms = (*_ALGORITHMS, *(name for name in old if name in algorithms))
        self._known_hosts = known_hosts
        self._store = store
        self._file = _PinFile()
        self._stamp: tuple[int, ...] | None = None
        self._unsaved: dict[str, str] = {}
        self._writing = threading.Lock()

    def check_pinned(self, host: str, port: int, pinned: Sequence[str]) -> HostKeyCheck:
        """The same as `check`, with the pinned keys kept elsewhere; empty where there are none yet,
        and then `HostKeyCheck.seen` is to be kept. Raises SshFailure."""
        try:
            return HostKeyCheck(self, host, port, None, pinned)
        except asyncssh.KeyImportError as exc:
            raise SshFailure(
                "host-key-unknown", f"the pinned host key of {host} is damaged: remove it"
            ) from exc

    def check(self, host: str, port: int) -> HostKeyCheck:
        """The check of one server's key, for one connection.

        Reads files of a few kilobytes. Raises SshFailure when one cannot be read: a check must not
        be skipped because its file is missing.
        """
        known = self._read_known_hosts() if self.mode != "off" else None
        pinned = None
        if self.mode == "tofu":
            name = entry_name(host, port)
            pinned = self._read_store().get(name)
            if pinned is None and name in self._file.damaged:
                raise SshFailure(
                    "host-key-unknown",
                    f"the line of {name} in {self._store} is damaged: correct or remove it",
                )
        return HostKeyCheck(self, host, port, known, () if pinned is None else (pinned,))

    def pin(self, host: str, port: int, key: str) -> None:
        """Keep the key that a server showed at the first connection. Raises SshFailure when another
        connection saw another key meanwhile.
        """
        name = entry_name(host, port)
        if self._read_store().get(name, key) != key:
            raise SshFailure(
                "host-key-changed", f"{name} showed two different host keys within one moment"
            )
        self._unsaved[name] = key

    def save(self) -> None:
        """Write the pinned keys to their file; called in a thread. A failure is logged, and the
        keys then hold until the program ends.
        """
        if self._store is None:
            return
        with self._writing:
            new = dict(self._unsaved)
            try:
                file = _read_pinned(self._store)
                lines = [f"{name} {key}" for name, key in sorted((file.keys | new).items())]
                self._store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                content = "".join(f"{line}\n" for line in (*file.unusable, *lines))
                write_private(self._store, content.encode("utf-8", "surrogateescape"))
            except (OSError, SshFailure) as exc:
                _log.error(
                    "host keys not kept",
                    file=str(self._store),
                    cause=exc.strerror if isinstance(exc, OSError) else str(exc),
                    effect="after a restart, servers met now are trusted again as new ones",
                )
                return
            for name in new:
                self._unsaved.pop(name, None)

    @property
    def where(self) -> str:
        """Where pinned keys are, for a sentence a person reads."""
        return "the memory of this program" if self._store is None else str(self._store)

    def _read_known_hosts(self) -> Any:
        if self._known_hosts is None:
            return None
        try:
            return asyncssh.import_known_hosts(self._known_hosts.read_text("utf-8"))
        except (OSError, ValueError) as exc:
            cause = exc.strerror if isinstance(exc, OSError) else "it is damaged"
            raise SshFailure(
                "host-key-unknown",
                f"cannot read the known host keys in {self._known_hosts} ({cause})",
            ) from exc

    def _read_store(self) -> dict[str, str]:
        """The keys that are pinned now; a line that was removed from the file no longer counts."""
        stamp = _stamp_of(self._store)
        if stamp != self._stamp:
            self._file = _read_pinned(self._store)
            self._stamp = stamp
            if self._file.unusable:
                _log.warning(
                    "damaged lines in the pinned host keys",
                    file=self.where,
                    count=len(self._file.unusable),
                    hosts=sorted(self._file.damaged)[:_MOST_TOLD],
                    effect="servers whose name can be read there are refused, the others are not "
                    "known; correct or remove these lines",
                )
        return self._file.keys | self._unsaved


class HostKeyCheck:
    """Checks one server's key, and says afterwards what was wrong with it."""

    def __init__(
        self, keys: HostKeys, host: str, port: int, known: Any, pinned: Sequence[str]
    ) -> None:
        self._keys = keys
        self._host = host
        self._port = port
        self._known = known
        self._is_pinned = bool(pinned)
        self._trusted: list[Any] = [asyncssh.import_public_key(key) for key in pinned]
        self._authorities: Sequence[Any] = ()
        self._revoked: Sequence[Any] = ()
        self._seen: str | None = None
        self.refused = ""
        """The key that was refused, as a line without a comment."""
        self.problem: SshFailure | None = None
        """Why the key was refused."""

    def options(self, address: str) -> dict[str, Any]:
        """Options for asyncssh, for a server at that IP address."""
        if self._keys.mode == "off":
            return {"known_hosts": None, "server_host_key_algs": list(self._keys.algorithms)}
        if self._known is not None:
            port = None if self._port == _DEFAULT_PORT else self._port
            hosts, authorities, revoked, *_ = self._known.match(self._host, address, port)
            self._trusted += hosts
            self._authorities, self._revoked = authorities, revoked
        return {
            # A function, because asyncssh reads the user's own file instead of an empty list.
            "known_hosts": lambda *_: (
                *(self._trusted, self._authorities, self._revoked),
                *((), (), (), ()),
            ),
            **({} if self._authorities else {"server_host_key_algs": self._algorithms()}),
        }

    def _algorithms(self) -> list[str]:
        """The algorithms of the known keys come first, so that the server shows one of these keys.

        The others follow: so a server whose key has changed is recognised, and not taken for a
        broken one.
        """
        known = [name.decode("ascii") for key in self._trusted for name in key.sig_algorithms]
        wanted = self._keys.algorithms
        first = [name for name in wanted if name in known]
        return first + [name for name in wanted if name not in first]

    def accept(self, key: Any) -> bool:
        """Whether to accept a key that is not among the trusted ones."""
        shown = f"{key.get_algorithm()} {key.get_fingerprint()}"
        where = entry_name(self._host, self._port)
        line = " ".join(key.export_public_key().decode("ascii").split()[:2])
        if self._trusted:
            self.refused = line
            place = self._keys.where if self._is_pinned else "the known host keys"
            self.problem = SshFailure(
                "host-key-changed",
                f"the host key of {where} has changed: it shows {shown}, and {place} has another; "
                "either an attacker is in between, or the server was set up anew; if so, remove "
                "its old line there",
            )
            return False
        if self._keys.mode == "known_hosts":
            self.problem = SshFailure(
                "host-key-unknown",
                f"the host key of {where} is not known ({shown}): add it to the file of "
                "exec.known_hosts",
            )
            return False
        self._seen = line
        return True

    @property
    def seen(self) -> str | None:
        """The key that was accepted without being known, as a line without a comment."""
        return self._seen

    @property
    def must_pin(self) -> bool:
        """Whether the server was met for the first time, so that its key must be pinned."""
        return self._seen is not None

    def pin(self) -> None:
        """Keep the server's key; by now the server has proved that it has the private key."""
        assert self._seen is not None
        self._keys.pin(self._host, self._port, self._seen)
        _log.info("host key pinned", host=entry_name(self._host, self._port), file=self._keys.where)


def entry_name(host: str, port: int) -> str:
    """How a known_hosts file names a server (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
    name = host.lower().rstrip(".")
    return name if port == _DEFAULT_PORT else f"[{name}]:{port}"


def _stamp_of(store: Path | None) -> tuple[int, ...] | None:
    """Changes when the file does."""
    try:
        status = store.stat() if store is not None else None
    except OSError:
        return None  # reading the file will raise the error, if there is one
    return None if status is None else (status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(slots=True)
class _PinFile:
    """The content of the file of pinned keys."""

    keys: dict[str, str] = field(default_factory=dict)
    """The key of each server, by its name."""
    damaged: set[str] = field(default_factory=set)
    """Servers whose line cannot be used. They had a line, so they are not new."""
    unusable: list[str] = field(default_factory=list)
    """All lines that cannot be used, as they are in the file."""


def _read_pinned(store: Path | None) -> _PinFile:
    """Read the file. Raises SshFailure when that fails. Only damaged lines are left out."""
    file = _PinFile()
    if store is None:
        return file
    try:
        text = store.read_bytes().decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return file
    except OSError as exc:
        raise SshFailure(
            "host-key-unknown",
            f"cannot read the pinned host keys in {store} ({exc.strerror}); until that works, no "
            "server is trusted",
        ) from exc
    for line in text.split("\n"):
        written, _, key = line.strip().partition(" ")
        if not written or written.startswith("#"):
            continue
        name = _canonical_name(written)
        try:
            asyncssh.import_public_key(key)
        except (ValueError, asyncssh.Error):
            is_good = False
        else:
            is_good = True
        if name is not None and is_good:
            file.keys[name] = key
            continue
        file.unusable.append(line)
        if name is not None:
            file.damaged.add(name)
    return file


def _canonical_name(written: str) -> str | None:
    """The name of an entry in ASCII (earlier versions wrote others); None when it is no name."""
    match = _ENTRY.fullmatch(written)
    if match is None:
        return None
    host, port = match[1] or match[3], match[2]
    try:
        return entry_name(to_a_labels(host), _DEFAULT_PORT if port is None else int(port))
    except ValueError:
        return None


_ENTRY = re.compile(r"\[([^\[\]]{1,255})\]:([0-9]{1,5})|([^\[\]]{1,255})")
