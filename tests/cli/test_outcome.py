"""Every way a command can end, as a shell sees it."""

from __future__ import annotations

import io
import sys

import click
import pytest

from tunnelmux.cli.outcome import run_command
from tunnelmux.errors import ConfigError, ConnectError, ConnectRefused, SessionLost


def end_of(monkeypatch, capsys, outcome: object, *arguments: str) -> tuple[object, str]:
    """The exit status and standard error of a command that returns or raises `outcome`."""

    @click.command()
    def command() -> object:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(sys, "argv", ["prog", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_command(command, "prog")
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (None, 0),
        (0, 0),
        (1, 1),
        (ConfigError("why"), 2),
        (ConnectError("why", retryable=False), 3),
        (ConnectRefused("why", status=401, retryable=False), 3),
        (ConnectError("why"), 1),
        (SessionLost("why"), 1),
        (ExceptionGroup("", [ExceptionGroup("", [ConfigError("why")])]), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_exit_statuses(monkeypatch, capsys, outcome, status):
    code, output = end_of(monkeypatch, capsys, outcome)
    assert code == status
    assert output.strip("\n") == ("prog: error: why" if isinstance(outcome, Exception) else "")


def test_words_from_elsewhere_do_nothing_to_the_terminal(monkeypatch, capsys):
    error = SessionLost("the device said: \x1b]0;x\x07\x1b[2J\rprog: all is well\nsecond line")
    code, output = end_of(monkeypatch, capsys, error)
    assert code == 1
    assert output == ("prog: error: the device said: �]0;x��[2J�prog: all is well\nsecond line\n")


def test_a_wrong_option_is_status_2(monkeypatch, capsys):
    code, output = end_of(monkeypatch, capsys, None, "--nope")
    assert code == 2
    assert "--nope" in output


def test_help_is_status_0(monkeypatch, capsys):
    assert end_of(monkeypatch, capsys, None, "--help") == (0, "")


@pytest.mark.parametrize(
    "bug", [ZeroDivisionError(), ExceptionGroup("", [ConfigError("why"), ZeroDivisionError()])]
)
def test_a_bug_keeps_its_traceback(monkeypatch, bug):
    @click.command()
    def command() -> None:
        raise bug

    monkeypatch.setattr(sys, "argv", ["prog"])
    with pytest.raises(type(bug)):
        run_command(command, "prog")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_a_terminal_without_utf_8_shows_a_mark_and_no_traceback(monkeypatch, encoding) -> None:
    @click.command()
    def command() -> None:
        click.echo("3 minutes …")
        raise ConfigError("café …")

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as ended:
        run_command(command, "prog", [])
    out.flush()
    err.flush()
    assert ended.value.code == 2
    assert out.buffer.getvalue() == "3 minutes …\n".encode(encoding, "replace")
    assert err.buffer.getvalue() == "prog: error: café …\n".encode(encoding, "replace")
