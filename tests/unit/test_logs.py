"""What an operator, and a program that reads the logs, sees."""

from __future__ import annotations

import io
import json
import logging
import re

import pytest

from tunnelmux.observability import configure_logs, frequent_line, get_logger
from tunnelmux.observability.lines import line_about, time_of_day, write_lines
from tunnelmux.observability.logs import holding_lines, write_held
from tunnelmux.pump.lines import LineBuffer

log = get_logger("test")
log_visit = frequent_line("test", "visit", "device", "stream", "seconds", "reason")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def output():
    return io.StringIO()


def json_lines(output: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_an_event_is_one_line_of_json(output):
    configure_logs("info", "json", stream=output)
    log.info("session opened", device="dev1", streams=3)
    log.warning("session lost", device="dev1", cause="a\nb")
    first, second = json_lines(output)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", first.pop("timestamp"))
    assert first == {
        "event": "session opened",
        "level": "info",
        "component": "test",
        "device": "dev1",
        "streams": 3,
    }
    assert second["cause"] == "a\nb"


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_traceback_does_nothing_to_a_terminal_either(output, format):
    configure_logs("info", format, stream=output)
    error = ConnectionError("the peer said \x1b]0;x\x07\x9b2J\r")
    log.error("unhandled error", exc_info=error)
    text = output.getvalue()
    assert "the peer said" in text
    assert {char for char in text if not char.isprintable()} == {"\n"}


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_frequent_line_looks_like_any_other(format):
    lines = []
    for write in (
        lambda: log_visit("dév\n1", None, 0.25, "x"),
        lambda: log.info("visit", device="dév\n1", stream=None, seconds=0.25, reason="x"),
    ):
        output = io.StringIO()
        configure_logs("info", format, stream=output)
        write()
        [line] = output.getvalue().splitlines(keepends=True)
        now = re.search(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{6}Z)?", line)
        lines.append(line.replace(now[0], "NOW"))
    assert lines[0] == lines[1]


def test_a_frequent_line_has_the_time_of_day(monkeypatch, output):
    monkeypatch.setattr("time.time_ns", lambda: 1_767_225_599_000_042_000)
    configure_logs("info", "json", stream=output)
    log_visit("dev1", 1, 0.5, "x")
    assert json_lines(output)[0]["timestamp"] == "2025-12-31T23:59:59.000042Z"


def test_frequent_lines_wait_for_each_other_and_keep_the_order(output):
    configure_logs("info", "json", stream=output)
    told = []
    with holding_lines(lambda: told.append("told")):
        log_visit("dev1", 1, 0.1, None)
        log_visit("dev1", 2, 0.1, None)
        assert (output.getvalue(), told) == ("", ["told"])
        log.info("another")
        assert [line.get("stream") for line in json_lines(output)] == [1, 2, None]
        log_visit("dev1", 3, 0.1, None)
        assert told == ["told", "told"]
        write_held()
        log_visit("dev1", 4, 0.1, None)
        assert [line.get("stream") for line in json_lines(output)] == [1, 2, None, 3]
    log_visit("dev1", 5, 0.1, None)
    assert [line.get("stream") for line in json_lines(output)] == [1, 2, None, 3, 4, 5]


def test_so_many_frequent_lines_wait_and_no_more(output):
    configure_logs("info", "json", stream=output)
    with holding_lines(lambda: None):
        for number in range(2000):
            log_visit("dev1", number, 0.1, None)
        assert 2000 - len(json_lines(output)) <= 512


def test_a_frequent_line_obeys_the_level(output):
    configure_logs("warning", "json", stream=output)
    log_visit("dev1", 1, 0.5, "x")
    assert output.getvalue() == ""


def test_an_event_is_one_line_of_text(output):
    configure_logs("info", "text", stream=output)
    log.info("session opened", device="dev1", cause="a\nb\x1b[31m", lines="x\u2028y")
    assert output.getvalue().count("\n") == 1
    assert len(output.getvalue().splitlines()) == 1
    assert "\x1b" not in output.getvalue()
    assert "session opened" in output.getvalue()
    assert "device=dev1" in output.getvalue()


def test_auto_is_colour_for_people_and_json_for_programs(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, pipe = Terminal(), io.StringIO()
    configure_logs(stream=terminal)
    log.info("hello")
    assert "\x1b[" in terminal.getvalue()
    configure_logs(stream=pipe)
    log.info("hello")
    assert json_lines(pipe)[0]["event"] == "hello"


def test_no_color_is_obeyed(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    configure_logs(stream=terminal)
    log.info("hello")
    assert "hello" in terminal.getvalue()
    assert "\x1b[" not in terminal.getvalue()


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("error", 1)])
def test_less_important_lines_are_not_written(output, level, count):
    configure_logs(level, "json", stream=output)
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("e")
    assert len(json_lines(output)) == count


SECRET = "hunter2"
LEAKS = {
    "a key that says so": {"token": SECRET},
    "bytes": {"password": SECRET.encode()},
    "a longer key": {"proxy_token": SECRET, "private_key": SECRET, "internal_secret": SECRET},
    "header fields": {"headers": {"Authorization": f"Bearer {SECRET}"}},
    "a list of header fields": {"headers": [(b"authorization", f"Bearer {SECRET}".encode())]},
    "a header field with a name that says so": {"headers": [(b"Cookie", SECRET.encode())]},
    "basic credentials": {"field": f"Basic {SECRET}"},
    "a URL": {"url": f"ws://proxy:3800/tunnel/connect?a=1&token={SECRET}"},
    "a join string": {"line": f"tunnelmux-join:{SECRET}"},
    "a password in a URL": {"url": f"http://user:{SECRET}@10.0.0.1:8080/x"},
    "a password in an error": {"error": OSError(f"cannot reach https://:{SECRET}@h")},
    "a printed password": {"config": "{'password': '" + SECRET + '\', "secret": "' + SECRET},
    "a password of a form": {"body": f"user=a&password={SECRET}&b=2"},
    "cookies in a text": {"head": f"GET / HTTP/1.1\r\nCookie: a=b; c={SECRET}\r\n"},
    "an exception": {"error": ValueError(f"GET /?token={SECRET}&b=2")},
    "a printed mapping": {"config": "{'token': '" + SECRET + "'}"},
    "a PEM file": {"text": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----"},
}


@pytest.mark.parametrize("format", ["json", "text"])
@pytest.mark.parametrize("fields", LEAKS.values(), ids=LEAKS)
def test_secrets_do_not_get_through(output, fields, format):
    configure_logs("info", format, stream=output)
    log.info("event", device="dev1", **fields)
    assert SECRET not in output.getvalue()
    assert "***" in output.getvalue()
    assert "dev1" in output.getvalue()


@pytest.mark.parametrize("format", ["json", "text"])
def test_nor_in_the_text_of_a_traceback_or_an_event(output, format):
    configure_logs("info", format, stream=output)

    def fail() -> None:
        raise ValueError("GET /tunnel/connect?token=" + SECRET)

    try:
        fail()
    except ValueError:
        log.exception("failed with token=hunter2")
    assert SECRET not in output.getvalue()
    assert "ValueError: GET /tunnel/connect?token=***" in output.getvalue()


def test_what_is_no_secret_stays(output):
    configure_logs("info", "json", stream=output)
    log.info("ok", token_file="/etc/t", url="ws://h/?a=1", rtt=0.25, missing=None, tokens=3)
    log.info("ok", a="ws://h:80/a@b:c@d", b="the secret of [internal]: set secret_file", c="a:b@c")
    line, other = json_lines(output)
    assert other["a"] == "ws://h:80/a@b:c@d"
    assert "secret_file" in other["b"]
    assert (line["token_file"], line["url"], line["tokens"]) == ("/etc/t", "ws://h/?a=1", 3)
    assert (line["rtt"], line["missing"]) == (0.25, None)


def test_json_is_json_whatever_is_logged(output):
    configure_logs("info", "json", stream=output)
    log.info("odd", rtt=float("nan"), data=b"\xff\x00", thing=object, parts={1: {"a"}})
    (line,) = json_lines(output)
    assert line["rtt"] == "nan"
    assert line["parts"] == {"1": ["a"]}


def test_libraries_log_in_the_same_shape(output):
    configure_logs("info", "json", stream=output)
    logging.getLogger("trio-websocket").warning("odd frame, token=%s", SECRET)
    logging.getLogger("trio-websocket").info("chatter")
    (line,) = json_lines(output)
    assert line["component"] == "trio-websocket"
    assert line["event"] == "odd frame, token=***"


def test_a_reader_that_went_away_stops_nothing():
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    configure_logs("info", "json", stream=Broken())
    log.info("nobody reads this")


def test_configuring_again_takes_effect_for_loggers_in_use(output):
    bound = log.bind(device="dev1")
    configure_logs("error", "json", stream=io.StringIO())
    bound.info("before")
    configure_logs("info", "json", stream=output)
    log.info("after")
    logging.getLogger("x").warning("once")
    assert [line["event"] for line in json_lines(output)] == ["after", "once"]


def requests_carried(*paths):
    """The lines about requests for these paths, as the pump hands them over."""
    lines = LineBuffer(time_of_day)
    about = line_about("test", "request", device="dév1").encode("ascii")
    for path in paths:
        lines.add_request(about, 3, b"GET", path.encode("latin-1"), 200, 1, 2**40, 7.0, 7.25)
    doubtful = lines.doubtful
    write_lines(lines.take(), doubtful=doubtful)
    assert len(lines) == 0
    assert not lines.doubtful


@pytest.mark.parametrize("format", ["json", "text"])
@pytest.mark.parametrize(
    "path", ["/", '/a"b\\c%20', "/x=1:2", '/token=secret\\"x', "/é\x7f\x1b[31m"]
)
def test_a_line_of_the_pump_looks_like_any_other(format, path):
    lines = []
    for write in (
        lambda: requests_carried(path),
        lambda: log.info(
            "request",
            device="dév1",
            stream=3,
            method="GET",
            path=path,
            status=200,
            bytes_in=1,
            bytes_out=2**40,
            seconds=0.25,
        ),
    ):
        output = io.StringIO()
        configure_logs("info", format, stream=output)
        write()
        [line] = output.getvalue().splitlines()
        now = re.search(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{6}Z)?", line)
        line = line.replace(now[0], "NOW")
        lines.append(json.loads(line) if format == "json" else line)
    assert lines[0] == lines[1]
    assert "secret" not in str(lines)


def test_the_lines_are_in_order_and_have_the_time_to_the_millisecond(output):
    configure_logs("info", "json", stream=output)
    times = iter([b"A", b"B", b"C"])
    lines = LineBuffer(lambda: next(times))
    about = line_about("test", "request").encode("ascii")
    for number, now in enumerate([7.0, 7.0009, 7.0011, 7.002, 19.3456]):
        lines.add_request(about, 3, b"GET", b"/%d?token=x" % number, 200, 0, 0, 7.0, now)
    write_lines(lines.take(), doubtful=True)
    assert [(line["timestamp"], line["path"]) for line in json_lines(output)] == [
        ("A", "/0?token=***"),
        ("A", "/1?token=***"),
        ("B", "/2?token=***"),
        ("B", "/3?token=***"),
        ("C", "/4?token=***"),
    ]
    assert [line["seconds"] for line in json_lines(output)] == [
        0,
        0.0009,
        0.0011,
        0.002,
        12.3456,
    ]


def test_the_time_of_day_of_a_line():
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time_of_day())


HOSTILE = {
    "a line break": "a\r\nb\u2028c\u2029d\x0be\x85f",
    "an escape sequence": "\x1b]0;x\x07\x9b2J\x08\x7f",
    "a NUL": "a\0b",
    "marks that turn a text round": "\u202egpj.exe\u2066\u200f",
    "nothing to see": "\u200b\ufeff\u00ad",
    "a lone surrogate": "\udcff\ud800",
    "an end of JSON": '"}, {"event": "forged", "x": "\\"',
    "64 KB": "x" * 65_536,
    "64 KB that grow": "\x1b" * 65_536,
    "a traceback of someone else": 'Traceback (most recent call last):\n  File "x"',
}


@pytest.mark.parametrize(
    "where", ["a text", "bytes", "in a mapping", "an error", "an event", "frequent"]
)
@pytest.mark.parametrize("format", ["json", "text"])
@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_what_strangers_say_is_one_short_line_that_shows_as_it_is(said, format, where):
    data = io.BytesIO()
    configure_logs("info", format, stream=io.TextIOWrapper(data, "utf-8", write_through=True))
    match where:
        case "a text":
            log.info("said", text=said)
        case "bytes":
            log.info("said", text=said.encode("utf-8", "surrogatepass"))
        case "in a mapping":
            log.info("said", text={"x": [said]})
        case "an error":
            log.info("said", text=ConnectionError(said))
        case "an event":
            log.info(said)
        case "frequent":
            log_visit(said, 1, 0.5, said)
    line = data.getvalue().decode("utf-8")
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert 0 < len(line) < 2 * 6 * 4096 + 1000
    if format == "json":
        assert json.loads(line).get("event") != "forged"


def test_a_traceback_keeps_its_end_where_it_is_long(output):
    configure_logs("info", "json", stream=output)
    log.error("unhandled error", exc_info=ValueError("x" * 100_000 + " the end"))
    (line,) = json_lines(output)
    assert line["exception"].endswith("x the end")
    assert len(line["exception"]) <= 32_768


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_long_path_costs_a_line_of_the_pump_no_more_than_any_other(output, format):
    configure_logs("info", format, stream=output)
    requests_carried("/" + "\xff" * 65_536, "/")
    first, second = output.getvalue().splitlines()
    assert len(second) < 1000
    assert len(first) < 6 * 4096 + 1000
    if format == "json":
        assert json.loads(first)["path"] == "/" + "\xff" * 4095 + "…"
