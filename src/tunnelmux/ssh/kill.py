"""Ends a command on the server by running a second one, which kills it.

SSH has a message for signals, but it is not enough. OpenSSH does not obey it for root and other
sessions that run as the daemon itself. Dropbear gives it to the shell only, not to the shell's
children. And a closed channel leaves its command running.

So a second command sends the signals and looks which processes are left. It finds the right ones
although the user's command is unchanged: a server starts every command of a connection as a child
of one process, OpenSSH each in its own session (and process group), and each command of ours has a
mark in its environment. Debian, Red Hat and others let `LC_*` through (AcceptEnv). Where the mark
does not arrive, all commands of the connection are ended together, once none of them is wanted any
more. Dropbear takes no variables and has all commands of a connection in one group, so there each
connection gets one command at a time.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

__all__ = ["MARK_VARIABLE", "Killing", "kill_command", "new_mark", "read_killing"]

MARK_VARIABLE = "LC_TUNNELMUX"
"""The environment variable that carries the mark."""

# A script for a POSIX shell, without a single quote, backslash, exclamation mark or line break, so
# that any login shell passes it on as it is. $1 is the mark, or empty for every command of the
# connection; $2 tenths of a second between SIGTERM and SIGKILL; $3 is "any" when this runs on
# another connection than the command, else empty.
#
# s  lists all processes but zombies in $t, as PID:PARENT:GROUP. j splits one entry.
# b  says whether a process has to be ended (is in $l); h whether it carries the mark.
# i  finds the processes to end: children of this shell's parent ($p) that carry the mark. With
#    "any" those that carry the mark, and whose parent does not and is not init. Without a mark all
#    those children, and all of this shell's group ($r) if that parent leads it (Dropbear).
# w  adds their descendants. k signals all of them and their groups, a counts those that are left.
#
# It prints how many commands it found, and how many processes are left.
_SCRIPT = (
    "m=$1 g=$2 y=$3 p=$PPID t= l= n=0 f= r=;"
    " s() { t=; if [ -r /proc/self/stat ]; then"
    " for d in /proc/[0-9]*; do { read -r e < $d/stat; } 2>/dev/null || continue;"
    ' c=${d#/proc/}; e=${e##*) }; set -- $e; [ $1 = Z ] || t="$t $c:$2:$3"; done;'
    " else t=$(ps -A -o pid= -o ppid= -o pgid= -o stat= | while read -r c x q e;"
    " do case $e in Z*) ;; *) echo $c:$x:$q;; esac; done); fi; };"
    " j() { c=${1%%:*}; q=${1##*:}; x=${1#*:}; x=${x%%:*}; };"
    " b() { for d in $l; do [ $d = $1 ] && return 0; done; return 1; };"
    " h() { for d in $f; do [ $d = /proc/$1/environ ] && return 0; done; return 1; };"
    " i() { [ -z $m ] || f=$(grep -ls LC_TUNNELMUX=$m /proc/[0-9]*/environ 2>/dev/null);"
    " for e in $t; do j $e; [ $c = $$ ] && r=$q; done;"
    " for e in $t; do j $e;"
    " if [ $c = $$ ] || [ $c = $p ] || [ $x = $$ ]; then continue; fi;"
    " if [ $y ]; then if h $x || [ $x = 1 ]; then continue; fi; h $c || continue;"
    " elif [ $m ]; then [ $x = $p ] || continue; h $c || continue;"
    " elif [ $x = $p ]; then :; elif [ $r = $p ] && [ $q = $p ]; then :; else continue; fi;"
    ' l="$l $c"; n=$((n+1)); done; };'
    " w() { while :; do v=$n; for e in $t; do j $e;"
    ' if b $x && [ $c -ne $$ ]; then b $c || { l="$l $c"; n=$((n+1)); }; fi; done;'
    " [ $n -gt $v ] || break; done; };"
    " k() { for c in $l; do kill -s $1 -- -$c; kill -s $1 $c; done 2>/dev/null; };"
    " a() { s; w; n=0; for e in $t; do j $e; if b $c || b $q; then n=$((n+1)); fi; done; };"
    " z() { sleep 0.1 2>/dev/null || { sleep 1; u=$((u+9)); }; u=$((u+1)); };"
    " s; i; o=$n; w; k TERM; u=0; while a; [ $n -gt 0 ] && [ $u -lt $g ]; do z; done;"
    " [ $n -eq 0 ] || k KILL; u=0; while a; [ $n -gt 0 ] && [ $u -lt 10 ]; do z; done;"
    " echo $o $n"
)


@dataclass(frozen=True, slots=True)
class Killing:
    """The result of one run of the killing command."""

    found: int
    """How many of the commands that it had to end were running."""

    left: int
    """How many of their processes still run."""

    @property
    def is_done(self) -> bool:
        """Whether it found a command and ended all of its processes."""
        return self.found > 0 and self.left == 0


def new_mark() -> str:
    """A mark for one command. It cannot be guessed, so no other process can fake it."""
    return secrets.token_hex(8)


def kill_command(mark: str | None, grace: float, *, anywhere: bool = False) -> str:
    """The command that ends the marked command, or without a mark all of the connection.

    With `anywhere` it is run on another connection than the command. SIGTERM first, SIGKILL after
    `grace` seconds.
    """
    tenths = max(1, round(grace * 10))
    where = "any" if anywhere else ""
    return f"exec /bin/sh -c '{_SCRIPT}' sh '{mark or ''}' {tenths} '{where}'"


def read_killing(output: bytes) -> Killing | None:
    """Read what the killing command printed; None when that is something else."""
    words = output.split()
    if len(words) != 2 or not all(word.isdigit() and len(word) < 10 for word in words):
        return None
    return Killing(int(words[0]), int(words[1]))
