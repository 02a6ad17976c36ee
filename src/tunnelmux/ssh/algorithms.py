"""The algorithms that are offered to SSH servers, and the error for a server that knows none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asyncssh.encryption import get_default_encryption_algs
from asyncssh.kex import get_default_kex_algs
from asyncssh.mac import get_default_mac_algs

from tunnelmux.commands import as_sentence
from tunnelmux.config.execution import OLD_ALGORITHMS

__all__ = ["Algorithms", "explain_no_algorithm"]

_FIRST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
# Offered before asyncssh's own first choice: OpenSSL does all of these in one call, but
# chacha20-poly1305 takes several calls from Python for each packet.

_SHOWN = 1000
# Characters of a server's list that are shown; OpenSSH's longest has some 400.

_KINDS = ("key exchange", "server host key", "encryption", "encryption", "MAC", "MAC")
# The first name-lists of SSH_MSG_KEXINIT in their order (RFC 4253 section 7.1).

_NO_ALGORITHMS = ("ext-info-", "kex-strict-")
# Entries in the list of key exchanges that announce an extension (RFC 8308), not an algorithm.

_AEAD = ("-gcm@openssh.com", "chacha20-poly1305@openssh.com")
# Ciphers that need no MAC.


class Algorithms:
    """asyncssh's own algorithms, followed by the old ones that are allowed."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = allowed
        ciphers = _names(get_default_encryption_algs())
        rest = [name for name in ciphers if name not in _FIRST_CIPHERS]
        self._offered: dict[str, list[str]] = {
            "key exchange": _names(get_default_kex_algs()),
            "encryption": [*_FIRST_CIPHERS, *rest],
            "MAC": _names(get_default_mac_algs()),
        }
        for kind, offered in self._offered.items():
            offered += [name for name in OLD_ALGORITHMS[kind] if name in allowed]

    def options(self) -> dict[str, Any]:
        """Options for asyncssh. Those for host keys are HostKeyCheck's."""
        return {
            "kex_algs": self._offered["key exchange"],
            "encryption_algs": self._offered["encryption"],
            "mac_algs": self._offered["MAC"],
        }

    def offered(self, host_keys: Sequence[str] | None) -> dict[str, list[str]]:
        """The algorithms a server is offered, by kind; with `host_keys`, if they are known."""
        return self._offered | ({} if host_keys is None else {"server host key": [*host_keys]})


def _names(algorithms: Sequence[bytes]) -> list[str]:
    return [name.decode("ascii") for name in algorithms]


def explain_no_algorithm(
    kexinit: bytes, offered: Mapping[str, Sequence[str]], server: str
) -> str | None:
    """The kind of algorithm of which a server's SSH_MSG_KEXINIT has none of ours, and its own list.

    None when both sides have one of each kind in common.
    """
    for kind, theirs in zip(_KINDS, _lists_in(kexinit), strict=False):
        ours = offered.get(kind)
        if ours is None or any(name in theirs for name in ours):
            continue
        if kind == "MAC" and any(name.endswith(_AEAD) for name in _lists_in(kexinit)[2]):
            continue
        known = [name for name in theirs if not name.startswith(_NO_ALGORITHMS)]
        listed = as_sentence(", ".join(known)[:_SHOWN]) or "none"
        problem = f"{server} and this side have no {kind} algorithm in common: it has {listed}"
        usable = [name for name in OLD_ALGORITHMS[kind] if name in theirs]
        if not usable:
            return f"{problem}; update that server"
        return (
            f"{problem}; update that server, or allow an old one on the device with "
            f'exec.algorithms = ["{usable[0]}"]'
        )
    return None


def _lists_in(kexinit: bytes) -> list[list[str]]:
    """The first name-lists in SSH_MSG_KEXINIT, as far as it has those of `_KINDS`."""
    position, lists = 17, []  # the message's number and its cookie
    for _ in _KINDS:
        length = int.from_bytes(kexinit[position : position + 4], "big")
        data = kexinit[position + 4 : position + 4 + length]
        if position + 4 > len(kexinit) or len(data) < length:
            break
        lists.append(data.decode("latin-1").split(","))
        position += 4 + length
    return lists
