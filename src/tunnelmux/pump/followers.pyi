"""The two directions of one HTTP connection, read along while they pass, without any I/O.

The relay uses the C face in `followers.pxd`; this one is for tests and the fuzzer.
"""

from typing import Literal, Protocol, final, type_check_only

@type_check_only
class Judge(Protocol):
    """Decides about what the scanner declines; `tunnelmux.http.judge.HeadJudge` is one."""

    def answer(
        self, raw: bytes, method: bytes
    ) -> tuple[bytes, int, int, bool, bool, bool, bool] | str:
        """What goes on in place of the head of an answer, or why nothing can."""
    def trailers(self, raw: bytes) -> bytes | None:
        """What goes on in place of a trailer section; None when it is none."""

REQUEST_TABLE: dict[int, dict[int, int]]
"""For each state of a request: what can happen, and the state after it."""

ANSWER_TABLE: dict[int, dict[int, int]]
"""The same for an answer."""

@final
class RequestFollower:
    """What a visitor sends: one request after the other, each with its head, body and trailers."""

    def __init__(
        self, judge: Judge, *, max_head_bytes: int = 65536, max_head_fields: int = 256
    ) -> None: ...
    @property
    def judge(self) -> Judge:
        """Who is asked about trailer fields."""
    @property
    def state(
        self,
    ) -> Literal[
        "idle", "head", "ready", "length", "chunks", "trailers", "done", "declined", "broken"
    ]:
        """Where it is in the request."""
    @property
    def kept_bytes(self) -> bytes:
        """The bytes of a head that did not go on."""
    @property
    def problem(self) -> str | None:
        """What is wrong with a request that is "broken"."""
    @property
    def steps(self) -> int:
        """Bytes of the request's head and trailers looked at so far."""
    def feed(self, data: bytes, *, fields: bytes = b"") -> tuple[int, bytes]:
        """How many bytes of *data* were taken, and what goes on; a head gets these *fields*. Takes
        nothing behind the end of a request before `finish`."""
    def finish(self) -> None:
        """The request that is "done" was answered: the next one may begin."""

@final
class AnswerFollower:
    """What a target answers: heads, interim ones too, bodies and trailers."""

    def __init__(
        self, judge: Judge, *, max_head_bytes: int = 65536, max_head_fields: int = 256
    ) -> None: ...
    @property
    def judge(self) -> Judge:
        """Who is asked about heads that leave a doubt, and about trailer fields."""
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
        """Where it is in the answer."""
    @property
    def status(self) -> int:
        """The final status, or 0 before it was read."""
    @property
    def closes(self) -> bool:
        """Whether the target's connection ends after this answer."""
    @property
    def until_end(self) -> bool:
        """Whether the body ends with the connection."""
    @property
    def binds(self) -> bool:
        """Whether the answer is part of a login that belongs to the connection."""
    @property
    def content(self) -> int:
        """Bytes of the body so far, with their framing."""
    @property
    def problem(self) -> str | None:
        """What is wrong with an answer that is "missing", "refused" or "broken"."""
    @property
    def steps(self) -> int:
        """Bytes of the answer's heads and trailers looked at so far."""
    def asked(self, method: bytes, *, is_last: bool = False) -> None:
        """A request with this method was sent; after one that *is_last* the visitor leaves."""
    def feed(self, data: bytes) -> tuple[int, bytes]:
        """How many bytes of *data* were taken, and what goes on to the visitor. Fewer than all were
        taken when the answer is over, or refused."""
    def end(self) -> None:
        """The target's connection ended."""
