"""Files that are no TOML: the message has the line, the cause and the correction, and no value."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnelmux.config.toml_text import read_toml
from tunnelmux.errors import ConfigError

MISTAKES = {
    "no quotes": ("url = wss://x.example", 'put the value in quotes: url = "…"'),
    "no quotes around a name": ("name = dev1", 'put the value in quotes: name = "…"'),
    "no quotes around an address": ("listen = 127.0.0.1:80", 'put the value in quotes: listen = "'),
    "typographic quotes": ("url = “wss://x”", 'put straight quotes around the value: url = "…"'),
    "no closing quote": ('name = "dev1', "close the quotes at the end of the value of name"),
    "a path of Windows": (
        'token_file = "C:\\Users\\x"',
        "a backslash in double quotes stands for more: write token_file = '…'",
    ),
    "Python's truth": ("verify = False", "write verify = true or verify = false, in small"),
    "yes": ("verify = yes # really", "write verify = true or verify = false, in small"),
    "a unit": ("connect_timeout = 10s", "write the number of connect_timeout without a unit"),
    "a comma": ('url = "wss://x",', "end the line after the value of url"),
    "a comment of C": ('url = "wss://x" // mine', "end the line after the value of url"),
    "no value": ("url =", 'url has no value: write url = "…"'),
    "only a comment": ("url = # later", 'url has no value: write url = "…"'),
    "a colon": ('url: "wss://x"', 'write url = "…", with "=" and not ":"'),
    "a comment of INI": ("; mine", "a comment begins with #"),
    "an open header": ("[device", "close the name of the table, as in [device]"),
    "an open list": ('users = ["a" "b"]', 'write the list as users = ["a", "b"]: each text in'),
    "twice the key": ('a = "x"\na = "y"', "a is there already: keep one of the two"),
    "twice the table": (
        "[services]\n[services]",
        (
            "[services] is there already: put all of its keys under one; if it may be there "
            "several times, write each as [[services]]"
        ),
    ),
    "JSON": ('{"proxy": 1}', "each line is KEY = VALUE, [TABLE], or a comment"),
    "nothing of it": ("hello", "each line is KEY = VALUE, [TABLE], or a comment"),
}


def refusal(file: Path, content: bytes) -> str:
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_toml(file)
    return str(caught.value).removeprefix(f"{file}: ")


@pytest.mark.parametrize(("text", "fix"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_line_and_correction(
    text: str, fix: str, tmp_path: Path
) -> None:
    said = refusal(tmp_path / "f.toml", f"# one\n{text}\n".encode())
    assert said.startswith(f"line {2 + text.count(chr(10))} is not TOML (")
    assert f"): {fix}" in said
    windows = refusal(tmp_path / "f.toml", f"# one\n{text}\n".replace("\n", "\r\n").encode())
    assert windows.partition("): ")[2] == said.partition("): ")[2]


def test_a_mistake_at_the_end_is_told_with_the_last_line(tmp_path: Path) -> None:
    said = refusal(tmp_path / "f.toml", b'# one\nname = "dev1')
    assert said.startswith("line 2 is not TOML (")
    assert "close the quotes at the end of the value of name" in said


@pytest.mark.parametrize(
    "line",
    [
        "token = hunter2",
        'token = "hunter2',
        'token = "hunter2",',
        "token = 'a\\' hunter2",
        "hunter2",
    ],
)
def test_no_value_is_shown(line: str, tmp_path: Path) -> None:
    assert "hunter2" not in refusal(tmp_path / "f.toml", line.encode())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x = " + b"[" * 5000 + b"]" * 5000, "lists in lists go too deep"),
        (b"x = " + b"9" * 6000, "a number has too many digits"),
        (b"# caf\xe9", "line 1 is not UTF-8 text: save the file as UTF-8"),
    ],
)
def test_odd_content_is_a_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / "f.toml", content).startswith(said)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_bytes(b'\xef\xbb\xbf[device]\r\nname = "dev1"\r\n')
    assert read_toml(file) == {"device": {"name": "dev1"}}
