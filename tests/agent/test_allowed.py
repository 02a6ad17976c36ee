"""[exec] hosts, users and commands: what passes, and above all what does not."""

from __future__ import annotations

import pytest

from tunnelmux.agent.allowed import AllowList
from tunnelmux.commands import CommandRequest
from tunnelmux.config import ExecConfig, InvalidSetting

ALL = ["*"]


def objection(
    hosts: list[str] = ALL,
    users: list[str] = ALL,
    commands: list[str] = ALL,
    *,
    host: str = "h",
    user: str = "u",
    command: str = "c",
) -> str | None:
    config = ExecConfig(hosts=hosts, users=users, commands=commands)
    request = CommandRequest(command_id="i", host=host, username=user, command=command)
    return AllowList(config).objection(request)


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        ([], "h", False),
        (["*"], "anything", True),
        (["db1"], "db1", True),
        (["db1"], "DB1.", True),
        (["DB1."], "db1", True),
        (["db1"], "db11", False),
        (["db?"], "db1", True),
        (["*.example.com"], "a.example.com", True),
        (["*.example.com"], "example.com.evil.org", False),
        (["192.168.1.7"], "192.168.1.7", True),
        (["192.168.1.*"], "192.168.1.7", True),
        (["192.168.1.*"], "192.168.2.7", False),
        (["192.168.1.*"], "192.168.1.example.com", False),  # an address was meant
        (["192.168.1.*"], "192.168.1.1.", False),
        (["10*"], "10.0.0.1", True),
        (["10*"], "10.evil.example", False),
        (["10-*"], "10-db", True),
        (["*1"], "db1", True),
        (["?.0.0.1"], "a.0.0.1", False),
        (["fe80*"], "fe80::1", False),  # without a colon, a name was meant
        (["fe80:*"], "fe80::1", True),
        (["2001:db8::*"], "2001:db8::7", True),
        (["*.*"], "db.example", True),
        (["m\u00fcnchen.example"], "xn--mnchen-3ya.example", True),
        (["xn--mnchen-3ya.example"], "M\u00dcNCHEN.example", True),
        (["*.m\u00fcnchen.example"], "a.m\u00fcnchen.example", True),
        (["*.example"], "m\u00fcnchen.example", True),
        (["127.0.0.0/8"], "\uff11\uff12\uff17.0.0.1", True),  # written in another width
        (["127.0.0.1"], "127\u30020\u30020\u30021", True),
        (["192.168.0.0/16"], "192.168.2.7", True),
        (["192.168.0.0/16"], "10.0.0.1", False),
        (["192.168.0.0/16"], "::ffff:192.168.2.7", True),  # the same place
        (["192.168.2.7"], "::ffff:192.168.2.7", True),
        (["::ffff:0:0/96"], "::ffff:192.168.2.7", False),
        (["0.0.0.0/0"], "localhost", False),  # a network is for addresses
        (["127.0.0.0/8"], "127.1", False),  # what else resolvers take for an address is a name
        (["127.0.0.0/8"], "2130706433", False),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["2001:db8::/32"], "2001:db8::7", True),
        (["2001:db8::7"], "2001:0db8:0::7", True),
    ],
)
def test_hosts(hosts: list[str], host: str, allowed: bool) -> None:
    refused = objection(hosts, host=host)
    assert (refused is None) == allowed
    if refused is not None:
        shown = CommandRequest(command_id="i", host=host, username="u", command="c").host
        assert refused == (
            f'this device does not allow commands on the host "{shown}": add it to exec.hosts in '
            "the agent's configuration"
        )


@pytest.mark.parametrize(
    ("users", "user", "allowed"),
    [
        ([], "root", False),
        (["*"], "root", True),
        (["deploy", "backup-*"], "backup-1", True),
        (["deploy"], "root", False),
        (["deploy"], "DEPLOY", False),
        (["a.b"], "axb", False),
    ],
)
def test_users(users: list[str], user: str, allowed: bool) -> None:
    assert (objection(users=users, user=user) is None) == allowed


STATUS = ["systemctl status *"]


@pytest.mark.parametrize(
    ("commands", "command", "allowed"),
    [
        ([], "uptime", False),
        (["*"], "rm -rf /; echo $HOME\n'x'", True),
        (["uptime"], "uptime", True),
        (["uptime"], "uptime -p", False),
        (["uptime"], "uptime\n", False),
        (["cat 'a b'; echo $x"], "cat 'a b'; echo $x", True),  # written out, it may have anything
        (STATUS, "systemctl status nginx.service", True),
        (STATUS, "systemctl status --user=x a@b_c %h", True),
        *(
            (STATUS, f"systemctl status x{mark}id", False)
            for mark in ";&|<>$`()\n\\\"'*?[]#~!{}\r\t\0"
        ),
        (["df ?"], "df h", True),
        (["df ?"], "df ;", False),
        (["* "], "id ", True),  # an asterisk with something beside it is no licence for all
        (["* "], "id; ", False),
    ],
)
def test_commands(commands: list[str], command: str, allowed: bool) -> None:
    refused = objection(commands=commands, command=command)
    assert (refused is None) == allowed
    if refused is not None:
        assert command.strip() == "" or command not in refused  # it may be long, or hold a secret


def test_every_list_must_allow_it() -> None:
    assert "exec.hosts" in str(objection(hosts=[]))
    assert "exec.users" in str(objection(users=[]))
    assert "exec.commands" in str(objection(commands=[]))
    assert objection() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hosts": ["10.0.0.1/8"]}, "hosts: 10.0.0.1/8 has host bits set"),
        ({"hosts": [" "]}, "hosts: has an empty entry"),
        ({"hosts": ["m\u00fc*.example"]}, 'hosts: has "m\u00fc*", which no name in DNS can match'),
        ({"hosts": ["\u2603.example"]}, "hosts: is not a host name that DNS can hold"),
        ({"commands": [""]}, "commands: has an empty entry"),
        ({"host_keys": "known_hosts"}, "known_hosts: is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_start(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidSetting) as info:
        ExecConfig(**settings)  # type: ignore[arg-type]
    assert str(info.value).startswith(message)
