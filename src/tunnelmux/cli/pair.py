"""`tunnelmux-agent pair`: from a code to a configuration file that works."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunnelmux.cli.interrupts import run_interruptible
from tunnelmux.config import InvalidSetting, ServiceConfig

if TYPE_CHECKING:
    from tunnelmux.agent.pairing import Joined, PairingServer, Waiting

__all__ = ["pair"]

_EXAMPLES = """\b
Examples:
  tunnelmux-agent pair BCDF-GHJK --url https://tunnels.example.com \\
      --service web=8000
      With a code from the console; then: tunnelmux-agent --config agent.toml
  tunnelmux-agent pair --url https://tunnels.example.com
      Show a code and wait until it is confirmed in the console.
  tunnelmux-agent pair --install-key-file KEYFILE --url https://tunnels.example.com
      With a key for many devices, from an image or a script.
\b
Exit status: 0 paired, 1 failed, 2 wrong option or file, 3 refused."""


@click.command(epilog=_EXAMPLES)
@click.argument("code", required=False)
@click.option("--url", required=True, metavar="URL", help="Where tunnelmux-api is.")
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("agent.toml"),
    show_default=True,
    help="The file to write; the token goes into FILE with the ending .token.",
)
@click.option("--name", metavar="NAME", help="This device's name.  [default: its host name]")
@click.option("--serial", default="", metavar="SERIAL", help="Its serial number.")
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME=TARGET",
    help="A local service to write into the file, like web=8000; repeatable.",
)
@click.option(
    "--install-key-file",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file that holds an install key, in place of a code.",
)
@click.option(
    "--ca-file",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="PEM file of the authority that signed the server's certificate.",
)
@click.option(
    "--http-proxy", metavar="URL", help="The HTTP proxy that leads out.  [default: HTTPS_PROXY]"
)
@click.option("--no-qr", is_flag=True, help="Show the link as text only.")
def pair(**options: Any) -> None:
    """Pair this device with a CODE from the console, or with one that it shows itself."""
    _Pairing(**options).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairing:
    """One run of the command, made from its options."""

    code: str | None
    url: str
    file: Path
    name: str | None
    serial: str
    services: tuple[str, ...]
    install_key_file: Path | None
    ca_file: Path | None
    http_proxy: str | None
    no_qr: bool

    def run(self) -> None:
        if self.code is not None and self.install_key_file is not None:
            raise click.UsageError("give a CODE or --install-key-file, not both")
        services = [_service(text) for text in self.services]

        from tunnelmux.agent.pairing import PairingServer, check_writable, write_configuration

        check_writable(self.file)
        key = self.install_key_file.read_text().strip() if self.install_key_file else None
        server = PairingServer(
            self.url, ca_file=self.ca_file, http_proxy=self.http_proxy, environ=os.environ
        )
        joined = run_interruptible(self._join, server, key)
        token_file = write_configuration(self.file, joined, serial=self.serial, services=services)
        click.echo(f"Paired as {joined.device}. Wrote {self.file} and {token_file}.")
        if not services:
            click.echo(f"Add a [[services]] table to {self.file} for each service to offer.")
        click.echo(f"Start it with: tunnelmux-agent --config {self.file}")

    async def _join(self, server: PairingServer, key: str | None) -> Joined:
        from tunnelmux.agent.pairing import Joined, host_key_fingerprint

        name = self.name or _host_label()
        if self.code is not None:
            return await server.exchange(self.code, name=name, serial=self.serial)
        if key is not None:
            answer = await server.install(key, name=name, serial=self.serial)
            if isinstance(answer, Joined):
                return answer
            click.echo("This key needs an approval: waiting until the device is confirmed.")
            return await server.wait(answer)
        fingerprint = host_key_fingerprint()
        waiting = await server.request(name=name, serial=self.serial, fingerprint=fingerprint)
        self._show(waiting, name, fingerprint)
        return await server.wait(waiting)

    def _show(self, waiting: Waiting, name: str, fingerprint: str) -> None:
        link = f"{waiting.confirm_url}?code={waiting.code}"
        if not self.no_qr and sys.stdout.isatty():
            import segno

            segno.make(link, error="m").terminal(compact=True)
        click.echo(f"Confirm this device at {waiting.confirm_url} with the code")
        click.echo(f"\n    {waiting.code}\n")
        click.echo(f"or open {link}")
        click.echo(f"It shows there as {name}, {fingerprint}.")
        click.echo(f"Waiting for {waiting.expires_in / 60:.0f} minutes …")


def _service(text: str) -> tuple[str, str]:
    name, equals, target = text.partition("=")
    if not equals or not name or not target:
        message = f'"{text}" is not NAME=TARGET: write it like web=8000 or ssh=tcp://127.0.0.1:22'
        raise click.BadParameter(message, param_hint="--service")
    try:
        ServiceConfig(name=name, target=target)
    except InvalidSetting as error:
        # Checked now, and not after the code was used.
        raise click.BadParameter(f"{text}: {error.problem}", param_hint="--service") from None
    return name, target


def _host_label() -> str:
    """The host's name as a device name: one label of letters, digits and single hyphens."""
    label = re.sub(r"[^a-z0-9]+", "-", platform.node().partition(".")[0].lower()).strip("-")
    return label[:40].strip("-") or "device"  # as long as the registry takes names
