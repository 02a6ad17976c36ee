"""One line per event on standard error: text for people, JSON for programs.

Events are short and fixed (`"session opened"`), variable parts are fields (`device="dev1"`). Code
must never log a secret; the redaction here is a second line of defence.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, TextIO

from tunnelmux.light_imports import StandIn, hidden
from tunnelmux.observability.recent import recent

# `import structlog` imports rich, where that is installed, for tracebacks in colours, and asyncio
# for methods that log from coroutines. Neither is used here, and together they need 6 MiB.
with hidden({"asyncio": StandIn("asyncio"), "greenlet": None, "rich": None}):
    import structlog
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

__all__ = ["LONGEST_TEXT", "LogFormat", "LogLevel", "configure_logs", "get_logger", "shortened"]

LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

LONGEST_TEXT = 4096
"""Characters of one text in a line: strangers choose paths, names and versions, and a head has
64 KiB of them. A command that is recorded is as long at most."""

_LONGEST_TRACEBACK = 32_768

_HIDDEN = "***"
_FIRST = ("timestamp", "level", "component", "event")
_SECRET_KEY = re.compile(
    r"(?:^|[_-])(?:token|password|passphrase|secret|private[_-]key|api[_-]?key|authorization|cookie|join)$",
    re.IGNORECASE,
)
_SECRETS_IN_TEXT = (
    # ?token=… in a URL, and token=… / "token": "…" wherever a mapping was printed
    (re.compile(r"(token[\"']?\s*[=:]\s*[\"']?)[^\s&\"',;)}\]]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(api_?key[\"']?\s*[=:]\s*[\"']?)[^\s&\"',;)}\]]+", re.IGNORECASE), r"\1***"),
    # user:…@ in a URL, but for the word `password` in examples
    (re.compile(r"(://[^\s/@:]*:)(?!password@)[^\s/@]+@"), r"\1***@"),
    (
        re.compile(
            r"((?:password|passphrase|secret)(?:=|[\"']\s*:\s*)[\"']?)[^\s&\"',;)}\]]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    (re.compile(r"(cookie:\s)[^\s=;]+=[^\r\n]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(\b(?:Bearer|Basic)\s+)[\w\-.~+/]+=*", re.IGNORECASE), r"\1***"),
    (re.compile(r"tunnelmux-join:[\w\-=]+"), "tunnelmux-join:***"),
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.DOTALL),
        "*** private key ***",
    ),
)
_JSON = json.JSONEncoder(ensure_ascii=True)
# Few texts hold a secret, and one search costs a fraction of five substitutions.
_MAY_HOLD_SECRET = re.compile(
    r"token|api_?key|bearer|basic|tunnelmux-join|PRIVATE KEY|passw|passph|secret|cookie:|://[^\s/@]*@",
    re.IGNORECASE,
)


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines carry `component=name`. It follows `configure_logs` at any time."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


_process_fields: dict[str, str] = {}


def process_fields() -> dict[str, str]:
    """What every line of this process says of it."""
    return _process_fields


def name_process(**fields: str) -> None:
    """Say this in every line from now on: once, before anything is served."""
    _process_fields.update(fields)
    structlog.contextvars.bind_contextvars(**fields)


def configure_logs(
    level: LogLevel = "info", format: LogFormat = "auto", *, stream: TextIO | None = None
) -> None:
    """Set up logging; call it once at start-up.

    `auto` is text when `stream` (standard error by default) is a terminal, and JSON otherwise.
    What libraries log through the standard library comes out in the same shape, from warnings up.
    """
    global _json_writer, _is_wanted  # noqa: PLW0603  as structlog's own configuration
    write_held()
    stream = sys.stderr if stream is None else stream
    is_terminal = stream.isatty()
    as_text = format == "text" or (format == "auto" and is_terminal)
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_component,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Before redaction, so that the text of exceptions is redacted too.
        structlog.processors.format_exc_info,
        _redact,
    ]
    if as_text:
        colors = is_terminal and not os.environ.get("NO_COLOR")
        processors += [_keep_recent, _escape_controls, _text_renderer(colors)]
    else:
        processors.append(_render_json)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: _LineWriter(stream, *names, is_json=not as_text),
        cache_logger_on_first_use=False,
    )
    _is_wanted = level in {"debug", "info"}
    _json_writer = None if as_text else _LineWriter(stream, is_json=True)
    _adopt_standard_library(level)


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return _JSON.encode(event)


def _keep_recent(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Where lines are text, those that are kept are made of JSON all the same."""
    if (lines := recent()) is not None:
        lines.add(_JSON.encode(event))
    return event


def _text_renderer(colors: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=colors,
        pad_event_to=24,
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,
    )


class _LineWriter:
    """Writes finished lines. A broken pipe is ignored: the daemon must outlive its log reader."""

    def __init__(self, stream: TextIO, name: str | None = None, *, is_json: bool = False) -> None:
        self._stream = stream
        self._is_json = is_json
        self.name = name

    def msg(self, message: str) -> None:
        if _held:  # keeps the order: the held lines are older
            message = "\n".join([*_held, message])
            _held.clear()
        if self._is_json and (lines := recent()) is not None:
            lines.add(message)
        try:
            # One write, so that lines of threads and of other processes do not mix.
            self._stream.write(message + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def msg_soon(self, message: str) -> None:
        """Hold the line for `write_held` within `holding_lines`; else write it now."""
        if not _on_held or len(_held) >= _MOST_HELD:
            self.msg(message)
            return
        _held.append(message)
        if len(_held) == 1:
            for tell in _on_held:
                tell()

    debug = info = warning = error = critical = exception = log = msg


@contextlib.contextmanager
def holding_lines(on_held: Callable[[], object]) -> Iterator[None]:
    """Within the block, hold frequent lines until `write_held`. `on_held` is called when the first
    one is held. Other lines write the held ones first, to keep the order.
    """
    _on_held.append(on_held)
    try:
        yield
    finally:
        _on_held.remove(on_held)
        write_held()


def write_held() -> None:
    """Write the held lines with one call."""
    if _held and _json_writer is not None:
        _json_writer.msg(_held.pop())  # writes the other held lines as well


_held: list[str] = []
_on_held: list[Callable[[], object]] = []
_MOST_HELD = 512
# Lines that may be held, some 200 bytes each.

_json_writer: _LineWriter | None = None
_is_wanted = True


def wants_info() -> bool:
    """Whether lines of level `info` are written."""
    return _is_wanted


def json_writer() -> _LineWriter | None:
    """The writer for finished JSON lines; None when the format is text, or when structlog was
    configured differently since, as its test capture does.
    """
    ours = structlog.get_config()["processors"][-1:] == [_render_json]
    return _json_writer if ours else None


class _StandardLibraryHandler(logging.Handler):
    """Passes records of libraries to our logger, for our format and redaction."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger(record.name).log(
            record.levelno, record.getMessage(), exc_info=record.exc_info or None
        )


def _adopt_standard_library(level: LogLevel) -> None:
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, _StandardLibraryHandler)]
    root.addHandler(_StandardLibraryHandler())
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


def _add_component(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if logger.name is not None:
        event["component"] = logger.name
    return event


def _redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # Fields that every line has come first, so that lines align.
    ordered: EventDict = {key: event.pop(key) for key in _FIRST if key in event}
    ordered.update(event)
    for key, value in ordered.items():
        if _names_secret(key):
            ordered[key] = _HIDDEN
        elif type(value) is str:
            if _MAY_HOLD_SECRET.search(value) is not None:
                value = without_secrets(value)  # noqa: PLW2901  before it is cut, to be recognised
            ordered[key] = shortened(value) if key != "exception" else _end_of(value)
        elif type(value) is not int:
            ordered[key] = _plain(value)
    return ordered


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape what is not printable: a visitor's bytes must not forge lines, control a terminal, or
    show a text in another order than it has.
    """
    return {
        # A traceback has lines, and may hold a peer's words.
        key: _escaped(value, "\t\n" if key == "exception" else "\t")
        if isinstance(value, str) and not value.isprintable()
        else value
        for key, value in event.items()
    }


def _escaped(text: str, kept: str) -> str:
    return "".join(
        char
        if char.isprintable() or char in kept
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


@lru_cache(maxsize=1024)
def _names_secret(name: str) -> bool:
    return _SECRET_KEY.search(name) is not None


def _is_secret(key: object) -> bool:
    name = key.decode("latin-1") if isinstance(key, bytes) else str(key)
    return _SECRET_KEY.search(name) is not None


def _plain(value: Any) -> Any:
    """`value` as a JSON value, with secrets removed."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(k): _HIDDEN if _is_secret(k) else _plain(v) for k, v in value.items()}
        case (str() | bytes() as name, _) if _is_secret(name):  # a header field
            return [_plain(name), _HIDDEN]
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case bytes() | bytearray():
            text = bytes(value).decode("utf-8", "backslashreplace")
        case BaseException():
            text = str(value) or type(value).__name__
        case _:
            text = str(value)
    return shortened(without_secrets(text))


def shortened(text: str) -> str:
    """The text as a line may have it; of one that is too long, its beginning."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _end_of(traceback: str) -> str:
    """A traceback as a line may have it: its end says most."""
    return traceback if len(traceback) <= _LONGEST_TRACEBACK else traceback[-_LONGEST_TRACEBACK:]


def without_secrets(text: str) -> str:
    if _MAY_HOLD_SECRET.search(text) is None:
        return text
    for pattern, replacement in _SECRETS_IN_TEXT:
        text = pattern.sub(replacement, text)
    return text
