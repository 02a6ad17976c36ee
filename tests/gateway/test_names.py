"""User names and forwards, read without a network."""

from __future__ import annotations

import pytest

from tunnelmux.gateway.menu import Menu
from tunnelmux.gateway.names import Login, forward_names, parse_login


@pytest.mark.parametrize(
    ("user", "account", "device"),
    [
        ("root@SN123", "root", "SN123"),
        ("root#cam1", "root", "cam1"),
        ("svc$@cam1--acme", "svc$", "cam1--acme"),
        ("Admin", "Admin", ""),
    ],
)
def test_what_a_user_name_asks_for(user: str, account: str, device: str) -> None:
    assert parse_login(user) == Login(account, device)


@pytest.mark.parametrize(
    "user",
    [
        "",
        "@cam1",
        "root@",
        "root@cam1@x",
        "a b@cam1",
        "root@-x",
        "-oProxyCommand=x",
        "r\x00t",
        "ticket-",
    ],
)
def test_what_is_no_user_name(user: str) -> None:
    assert parse_login(user) is None


def test_a_ticket_is_a_secret_with_or_without_an_account() -> None:
    login = parse_login("ticket-abc_DEF@root")
    assert login is not None
    assert login.ticket is not None
    assert (login.account, login.ticket.reveal()) == ("root", "abc_DEF")
    assert "abc_DEF" not in repr(login)
    alone = parse_login("ticket-abc")
    assert alone is not None
    assert alone.account == ""


def test_what_a_forward_may_mean() -> None:
    assert forward_names("sn123", 22) == [("sn123", ("ssh",))]
    assert forward_names("web--sn123", 80) == [
        ("web--sn123", ("web", "http")),
        ("sn123", ("web",)),
    ]
    assert forward_names("db--cam1--acme", 5432) == [("cam1--acme", ("db",))]
    assert forward_names("cam1", 8080) == []
    assert forward_names("cam1\n", 22) == []


def test_a_list_is_narrowed_by_typing_and_chosen_from_by_number() -> None:
    menu = Menu([f"cam{number}" for number in range(1, 61)])
    assert b"   1  cam1\r\n" in menu.screen()
    assert b"and 10 more" in menu.screen()
    answer = menu.typed(b"cam5")
    assert answer.echo == b"cam5"
    narrowed = menu.typed(b"\r")
    assert narrowed.device == "cam5"
    menu = Menu(["cam1", "cam2", "door1"])
    assert b"cam1" in menu.typed(b"cam\r").echo
    assert menu.typed(b"2\n").device == "cam2"
    pasted = menu.typed(b"cam\r1\rls\r")
    assert (pasted.device, pasted.rest) == ("cam1", b"ls\r")
    assert menu.typed(b"xx\x7f\x7fdoor\r").device == "door1"
    assert b"No device has that" in menu.typed(b"\x1b[Anothing\r").echo
    assert menu.typed(b"\x04").leaves
    assert len(menu.typed(b"y" * 10_000).echo) == 64
