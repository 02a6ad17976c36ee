"""tunnelmux lease, assist: access to a device for a time, by a lease or by the device's code."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tunnelmux.cli.device_names import DEVICE
from tunnelmux.cli.fleet_options import (
    examples,
    json_option,
    place_arguments,
    place_options,
    run_at_api,
)
from tunnelmux.cli.output import Cell, Column, duration, print_fields, print_json, print_table
from tunnelmux.cli.own_command import own_command, proxy_command
from tunnelmux.errors import ConfigError
from tunnelmux.printable import printable

if TYPE_CHECKING:
    from tunnelmux.cli.fleet.by_api import ApiFleet

__all__ = ["TIME", "assist", "lease"]

_STATES = {"running": "good", "requested": "warn", "waiting": "warn", "later": "warn"}

_RIGHTS = ("shell", "exec", "sftp", "forward", "agent", "x11")
_UNITS = {"s": 1, "m": 60, "h": 3600}


class _Time(click.ParamType):  # type: ignore[type-arg]  # no generic at run time before 8.2
    """A length of time, like `90m` or `1h30m`: seconds."""

    name = "TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        parts = re.findall(r"([0-9]{1,6})([smh])", value) if isinstance(value, str) else []
        if not parts or "".join(number + unit for number, unit in parts) != value:
            self.fail(f'"{value}" is no time: write it like 90m or 2h', param, ctx)
        return float(sum(int(number) * _UNITS[unit] for number, unit in parts))


TIME = _Time()


class _Lease(msgspec.Struct):
    id: str
    state: str
    device_id: str
    services: list[str]
    rights: list[str]
    holder_name: str
    reason: str
    recorded: bool
    sealed: bool
    ends: datetime
    end_reason: str = ""
    ended_by_name: str = ""


class _Ended(msgspec.Struct):
    visits: int
    missing: list[str] = []


class _Changed(msgspec.Struct):
    lease: _Lease
    ended: _Ended


class _Page(msgspec.Struct):
    items: list[_Lease]
    next: str | None = None


class _Entry(msgspec.Struct):
    number: int
    at: datetime
    action: str
    actor_kind: str
    actor_name: str
    actor_id: str
    actor_address: str
    after: dict[str, Any] | None = None


@click.group(
    epilog=examples(
        ('tunnelmux lease request dev1 -r "ticket 7"', "An hour with its SSH server."),
        ("tunnelmux lease ls", "Which leases there are now."),
    )
)
def lease() -> None:
    """Ask for access to devices for a time, and decide about it."""


@lease.command(
    epilog=examples(
        (
            'tunnelmux lease request dev1 --services ssh --for 2h --reason "ticket 7"',
            "Two hours of shell and commands, once the device agrees.",
        ),
        ("tunnelmux lease request SN-0001 -r '…' --right sftp --right shell", "By serial number."),
    )
)
@click.argument("device", type=DEVICE)
@click.option("--services", default="ssh", show_default=True, metavar="NAMES", help="Like ssh,web.")
@click.option("--for", "seconds", type=TIME, default="1h", show_default=True, help="How long.")
@click.option("-r", "--reason", required=True, metavar="TEXT", help="Why; the device shows it.")
@click.option(
    "--right",
    "rights",
    multiple=True,
    type=click.Choice(_RIGHTS),
    help="What SSH may do; repeatable.  [default: shell, exec]",
)
@click.option("--sealed", is_flag=True, help="For ssh -J, which cannot be recorded.")
@json_option
@place_options
def request(
    device: str,
    services: str,
    seconds: float,
    reason: str,
    rights: tuple[str, ...],
    sealed: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Ask for access to DEVICE, by its name or serial number."""
    content: dict[str, Any] = {
        "device": device,
        "services": [name for name in re.split(r"[,\s]+", services) if name],
        "seconds": seconds,
        "reason": reason,
        "recorded": not sealed,
        "sealed": sealed,
    }
    if rights:
        content["rights"] = list(rights)

    async def work(fleet: ApiFleet) -> None:
        _tell(await fleet.client.post("/api/leases", _Lease, content), as_json)

    return run_at_api(options, work)


@lease.command(
    "ls",
    epilog=examples(
        ("tunnelmux lease ls --all --json", "All leases, ended ones too, for a script.")
    ),
)
@click.option("--all", "everything", is_flag=True, help="Ended ones too.")
@click.option("--mine", is_flag=True, help="Only your own.")
@json_option
@place_options
def ls_leases(everything: bool, mine: bool, as_json: bool, **options: Any) -> int:
    """List leases, the newest first."""

    async def work(fleet: ApiFleet) -> None:
        found: list[_Lease] = []
        after: str | None = None
        while True:
            page = await fleet.client.get(
                "/api/leases", _Page, living=not everything, mine=mine, limit=200, after=after
            )
            found += page.items
            if (after := page.next) is None:
                break
        if as_json:
            print_json(found)
        elif found:
            _print_leases(found)
        else:
            click.echo("There are no leases now: tunnelmux lease request asks for one.", err=True)

    return run_at_api(options, work)


def _print_leases(found: list[_Lease]) -> None:
    now = datetime.now(UTC)
    titles = ("LEASE", "STATE", "LEFT", "WHO", "SERVICES", "REASON")
    columns = [
        Column(title=title, is_number=title == "LEFT", is_spare=title == "REASON")
        for title in titles
    ]
    print_table(
        columns,
        [
            [
                one.id,
                Cell(one.state, _STATES.get(one.state, "dim")),
                duration((one.ends - now).total_seconds()) if one.state in _STATES else "",
                one.holder_name,
                ", ".join(one.services),
                one.end_reason or one.reason,
            ]
            for one in found
        ],
    )


def _deciding(word: str, text: str, path: str, *, with_reason: bool) -> None:
    @lease.command(
        word,
        help=text,
        epilog=examples(
            (f"tunnelmux lease {word} LEASE", "LEASE is an id from tunnelmux lease ls.")
        ),
    )
    @click.argument("lease_id", metavar="LEASE")
    @json_option
    @place_options
    def decide(lease_id: str, as_json: bool, reason: str = "", **options: Any) -> int:
        content = {"reason": reason} if with_reason else {}

        async def work(fleet: ApiFleet) -> None:
            target = f"/api/leases/{_checked(lease_id)}/{path}"
            if path != "end":
                _tell(await fleet.client.post(target, _Lease, content), as_json)
                return
            changed = await fleet.client.post(target, _Changed, content)
            _tell(changed.lease, as_json)
            if not as_json:
                missing = ", ".join(changed.ended.missing)
                click.echo(f"Connections cut: {changed.ended.visits}")
                if missing:
                    click.echo(f"Not confirmed by: {missing}", err=True)

        return run_at_api(options, work)

    if with_reason:
        click.option("-r", "--reason", default="", metavar="TEXT", help="Why.")(decide)


_deciding("approve", "Let the request LEASE go to its device.", "approve", with_reason=False)
_deciding("deny", "Refuse the request LEASE.", "deny", with_reason=True)
_deciding("end", "End LEASE now, and cut all connections under it.", "end", with_reason=True)


@lease.command(epilog=examples(("tunnelmux lease extend LEASE --for 30m", "Half an hour more.")))
@click.argument("lease_id", metavar="LEASE")
@click.option("--for", "seconds", type=TIME, required=True, help="How much longer.")
@json_option
@place_options
def extend(lease_id: str, seconds: float, as_json: bool, **options: Any) -> int:
    """Extend LEASE, within what the device allows."""

    async def work(fleet: ApiFleet) -> None:
        target = f"/api/leases/{_checked(lease_id)}/extend"
        _tell(await fleet.client.post(target, _Lease, {"seconds": seconds}), as_json)

    return run_at_api(options, work)


def _checked(lease_id: str) -> str:
    """The id, safe to put into a path."""
    if not re.fullmatch(r"[0-9a-f-]{36}", lease_id):
        raise click.BadParameter(
            "LEASE must be an id that `tunnelmux lease ls` shows", param_hint="LEASE"
        )
    return lease_id


def _tell(found: _Lease, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    left = duration((found.ends - datetime.now(UTC)).total_seconds())
    waits = {"requested": "waits for an operator", "waiting": "waits for the device"}
    print_fields(
        [
            ("Lease", found.id),
            ("State", Cell(waits.get(found.state, found.state), _STATES.get(found.state, "dim"))),
            ("Left", left if found.state in _STATES else ""),
            ("Who", found.holder_name),
            ("Services", ", ".join(found.services)),
            ("Rights", ", ".join(found.rights)),
            ("Reason", found.reason),
            ("Ended", f"{found.end_reason} ({found.ended_by_name})" if found.end_reason else ""),
        ]
    )


# -- assistance -----------------------------------------------------------------------------------


@click.group(epilog=examples(("tunnelmux assist report LEASE", "What was done, for the customer.")))
def assist() -> None:
    """Log in with a device's code, and print what was done."""


@assist.command(
    epilog=examples(
        ("tunnelmux assist report LEASE", "Who asked, who agreed, what was done, how it ended."),
    )
)
@click.argument("lease_id", metavar="LEASE")
@json_option
@place_options
def report(lease_id: str, as_json: bool, **options: Any) -> int:
    """Print the record of LEASE, for the customer."""

    async def work(fleet: ApiFleet) -> None:
        path, number = f"/api/leases/{_checked(lease_id)}/report", 1
        while True:
            found = await fleet.client.get(path, list[_Entry], from_number=number, limit=200)
            for entry in found:
                click.echo(msgspec.json.encode(entry) if as_json else _line(entry))
            if len(found) < 200:
                return
            number = found[-1].number + 1

    return run_at_api(options, work)


_WORDS = {
    "lease.request": "asked for it",
    "lease.approve": "approved it",
    "lease.deny": "refused it",
    "lease.consent": "agreed",
    "lease.refuse": "refused it",
    "lease.open": "opened it with a code",
    "lease.use": "began to use it",
    "lease.extend": "extended it",
    "lease.end": "ended it",
}
_SHOWN = ("device", "services", "rights", "ends", "reason", "end_reason", "service", "command")


def _line(entry: _Entry) -> str:
    what = _WORDS.get(entry.action, entry.action.removeprefix("lease.").replace("_", " "))
    who = entry.actor_name or entry.actor_id
    if entry.actor_kind == "device":
        who = f"the device {who}"
    details = entry.after or {}
    order = [*(name for name in _SHOWN if name in details), *sorted(set(details) - set(_SHOWN))]
    if entry.action in _WORDS and entry.action != "lease.use":
        order = [name for name in order if name in _SHOWN]
    more = [f"{name}: {_text(details[name])}" for name in order if details[name] not in ("", [])]
    address = f" from {entry.actor_address}" if entry.actor_address else ""
    at = entry.at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return printable(f"{at}  {who}{address} {what}" + (f" ({'; '.join(more)})" if more else ""))


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


class _SshCommand(click.Command):
    """Keeps the words after `--`, the command on the device, from the parser."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta["command"] = args[cut + 1 :]
        return super().parse_args(ctx, args[:cut])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


@assist.command(
    "ssh",
    cls=_SshCommand,
    epilog=examples(
        (
            "tunnelmux assist ssh SN-0001 --lease LEASE",
            "A shell on the device; the code is asked for.",
        ),
        ("tunnelmux assist ssh … --key-file key", "Only write the key, for plain ssh -i."),
        more="The device shows code and lease: tunnelmux-agent assist on --code. The\n"
        "connection takes the same way as tunnelmux ssh.",
    ),
)
@click.argument("device", metavar="[USER@]SERIAL")
@click.option("--code", metavar="CODE", prompt=True, help="The 16 letters.  [default: asked for]")
@click.option(
    "--lease",
    "lease_id",
    required=True,
    metavar="LEASE",
    help="The id that the device shows with the code.",
)
@click.option("--service", default="ssh", show_default=True, metavar="NAME", help="Its SSH server.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the key there and connect nowhere.",
)
@click.option(
    "-o", "settings", multiple=True, metavar="NAME=VALUE", help="For ssh, as its -o; repeatable."
)
@place_options
@click.pass_context
def assist_ssh(
    context: click.Context,
    /,
    device: str,
    code: str,
    lease_id: str,
    service: str,
    key_file: Path | None,
    settings: tuple[str, ...],
    **options: Any,
) -> int:
    """Log in to the device SERIAL with the code that it shows."""
    from tunnelmux.agent.assist.code import derive_key, normal_code

    user, at, serial = device.rpartition("@")
    normal = normal_code(code)
    if normal is None:
        raise click.BadParameter("a code has 16 letters and digits", param_hint="--code")
    key = derive_key(normal, _checked(lease_id), serial)
    if key_file is not None:
        _write_key(key_file, key.private.reveal())
        click.echo(f"Wrote {key_file}. ssh -i {shlex.quote(str(key_file))} {device}")
        return 0
    program = shutil.which("ssh")
    if program is None:
        raise ConfigError("ssh is not installed: apt-get install openssh-client")
    words = [*own_command(), "connect", *place_arguments(options), "%n", service]
    way = ["-o", f"ProxyCommand={proxy_command(words)}"]
    way += [word for setting in settings for word in ("-o", setting)]
    return _run_ssh(
        [program, *way], key.private.reveal(), [f"{user}{at}{serial}", *context.meta["command"]]
    )


def _run_ssh(ssh: list[str], private: str, target: list[str]) -> int:
    import subprocess

    with tempfile.TemporaryDirectory(prefix="tunnelmux-") as folder:
        file = Path(folder) / "key"
        _write_key(file, private)
        words = [*ssh, "-i", str(file), "-o", "IdentitiesOnly=yes", *target]
        sys.stdout.flush()
        # The key must be removed afterwards, so ssh cannot replace this process.
        return subprocess.run(words, check=False).returncode  # noqa: S603


def _write_key(file: Path, private: str) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{file} already exists: name another file, or remove it") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="ascii") as opened:
        opened.write(private)
