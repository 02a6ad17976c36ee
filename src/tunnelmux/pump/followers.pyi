"""Followers of the two directions of one HTTP connection, without any I/O.

The relay uses the C face in `followers.pxd`; this one is for tests and the fuzzer.
"""

from typing import Literal, Protocol, final, type_check_only

@type_check_only
class Judge(Protocol):
    """Reads what the scanner declines; `tunnelmux.http.judge.HeadJudge` is one."""

    def answer(
        self, raw: bytes, method: bytes
    ) -> tuple[bytes, int, int, bool, bool, bool, bool, bool] | str:
        """The head to pass on in place of this head of an answer, or why there can be none."""
    def trailers(self, raw: bytes) -> bytes | None:
        """The trailer section to pass on in place of this one; None when it is malformed."""

REQUEST_TABLE: dict[int, dict[int, int]]
"""For each state of a request: what can happen, and the state after it."""

ANSWER_TABLE: dict[int, dict[int, int]]
"""The same for an answer."""

@final
class RequestFollower:
    """Follows what a visitor sends: requests one after the other, each a head, a body and trailers."""

    def __init__(
        self, judge: Judge, *, max_head_bytes: int = 65536, max_head_fields: int = 256
    ) -> None: ...
    @property
    def judge(self) -> Judge:
        """Reads trailer fields."""
    @property
    def state(
        self,
    ) -> Literal[
        "idle", "head", "ready", "length", "chunks", "trailers", "done", "declined", "broken"
    ]:
        """How far it is in the request."""
    @property
    def kept_bytes(self) -> bytes:
        """The bytes of a head that were not passed on."""
    @property
    def problem(self) -> str | None:
        """What is wrong with a request that is "broken"."""
    @property
    def steps(self) -> int:
        """How many bytes of the request's head and trailers were looked at so far."""
    def feed(self, data: bytes, *, fields: bytes = b"") -> tuple[int, bytes]:
        """How many bytes of *data* were taken, and the bytes to pass on; *fields* are added to a head.
        Takes nothing behind the end of a request before `finish`."""
    def finish(self) -> None:
        """The request that is "done" was answered: the next one may begin."""

@final
class AnswerFollower:
    """Follows what a target answers: heads, also interim ones, bodies and trailers."""

    def __init__(
        self,
        judge: Judge,
        *,
        max_head_bytes: int = 65536,
        max_head_fields: int = 256,
        max_interim_heads: int = 16,
    ) -> None: ...
    @property
    def judge(self) -> Judge:
        """Reads heads that the scanner declines, and trailer fields."""
    @property
    def state(
        self,
    ) -> Literal[
        "none",
        "head",
        "doubt",
        "length",
        "chunks",
        "trailers",
        "until end",
        "done",
        "missing",
        "refused",
        "broken",
        "unasked",
    ]:
        """How far it is in the answer."""
    @property
    def status(self) -> int:
        """The final status, or 0 before it was read."""
    @property
    def closes(self) -> bool:
        """Whether the target's connection ends after this answer."""
    @property
    def announces(self) -> bool:
        """Whether the answer, which has no body, names a length or chunks. Some targets send what
        they name all the same, maybe later: the next answer must not be looked for behind it, but
        for one whose connection is a visitor's own."""
    @property
    def until_end(self) -> bool:
        """Whether the body ends with the connection."""
    @property
    def binds(self) -> bool:
        """Whether the answer is part of a login that belongs to the connection."""
    @property
    def content(self) -> int:
        """How many bytes of the body came so far, with their framing."""
    @property
    def problem(self) -> str | None:
        """What is wrong with an answer that is "missing", "refused" or "broken"."""
    @property
    def steps(self) -> int:
        """How many bytes of the answer's heads and trailers were looked at so far."""
    def asked(self, method: bytes, *, is_last: bool = False) -> None:
        """Call it when a request with this method was sent. When it *is_last*, the visitor's
        connection ends after the answer."""
    def feed(self, data: bytes, *, now: float = 0.0) -> tuple[int, bytes]:
        """How many bytes of *data* were taken, and the bytes to pass on to the visitor. Fewer than all
        are taken when the answer is over or refused."""
    def end(self) -> None:
        """Call it when the target's connection has ended."""
