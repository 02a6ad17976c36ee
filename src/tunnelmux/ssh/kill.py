"""Ending a command for good: what is run on the server when asking nicely is not possible.

SSH has a message for signals, but OpenSSH does not obey it for root and other sessions that run as
the daemon itself, and a closed channel leaves its command running. So a second command is run on
the same connection, which sends the signals. It knows what to end without any change to what the
user asked for: OpenSSH starts every command of a connection as a child of one process, in a session
(and process group) of its own, and each command of ours carries a mark in its environment. Debian,
Red Hat and others let `LC_*` through (AcceptEnv); where the mark does not arrive, all commands of
the connection are ended at once, when none of them is wanted any more.
"""

from __future__ import annotations

import secrets

__all__ = ["MARK_VARIABLE", "kill_command", "new_mark"]

MARK_VARIABLE = "LC_TUNNELMUX"
"""The environment variable that carries the mark."""

# Words of a POSIX shell, without a single quote, backslash, exclamation mark or line break, so that
# any login shell passes them on as they are. `f` lists the children of the parent of this shell
# that are not this shell and carry the mark ($m; any, when it is empty). `k` signals their process
# groups, `a` counts those that are left. It prints how many there were, and how many are left.
_SCRIPT = (
    "m=$1 g=$2 p=$PPID;"
    " h() { [ -z $m ] || grep -q LC_TUNNELMUX=$m /proc/$1/environ 2>/dev/null; };"
    " f() { l=; n=0;"
    " if [ -r /proc/self/stat ]; then"
    " for d in /proc/[0-9]*; do { read -r s < $d/stat; } 2>/dev/null || continue;"
    " s=${s##*) }; set -- $s; c=${d#/proc/};"
    ' if [ $2 = $p ] && [ $1 != Z ] && [ $c != $$ ] && h $c; then l=$l" "$c; n=$((n+1)); fi;'
    " done;"
    " elif [ -z $m ]; then"
    " for c in $(ps -A -o pid= -o ppid= | while read -r c q;"
    " do if [ $q = $p ] && [ $c != $$ ]; then echo $c; fi; done); do"
    ' if kill -0 $c 2>/dev/null; then l=$l" "$c; n=$((n+1)); fi; done; fi; };'
    " k() { for c in $l; do kill -s $1 -- -$c 2>/dev/null || kill -s $1 $c 2>/dev/null; done; };"
    " a() { n=0; for c in $l; do if kill -s 0 -- -$c 2>/dev/null; then n=$((n+1)); fi; done; };"
    " z() { sleep 0.1 2>/dev/null || { sleep 1; i=$((i+9)); }; i=$((i+1)); };"
    " f; w=$n; k TERM; i=0; while a; [ $n -gt 0 ] && [ $i -lt $g ]; do z; done;"
    " k KILL; i=0; while a; [ $n -gt 0 ] && [ $i -lt 5 ]; do z; done;"
    " echo $w $n"
)


def new_mark() -> str:
    """A mark for one command. Nobody can guess it, so nobody's process can pass for that one."""
    return secrets.token_hex(8)


def kill_command(mark: str | None, grace: float) -> str:
    """What to run to end the marked command, or without a mark every command of the connection.

    SIGTERM first, SIGKILL after `grace` seconds.
    """
    tenths = max(1, round(grace * 10))
    return f"exec /bin/sh -c '{_SCRIPT}' sh '{mark or ''}' {tenths}"
