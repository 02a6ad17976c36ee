"""OpenSSH: `ssh -R` to an sshd of our own."""

from __future__ import annotations

import getpass
import os
import subprocess
from pathlib import Path

from bench.origin import Origin
from bench.peers.programs import find_program, reported_version
from bench.peers.tunnel import Peer, Running, Unavailable
from bench.processes import HOST, Started, free_ports

PRIVILEGE_SEPARATION_FOLDER = Path("/run/sshd")
"""An sshd that starts as root wants it; where sshd is a service, systemd makes it."""

CIPHER = "aes128-gcm@openssh.com"

CONFIGURATION = """\
ListenAddress {host}:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
Ciphers {cipher}
"""


class OpenSsh(Peer):
    def prepare(self) -> None:
        programs = {name: find_program(name) for name in ("sshd", "ssh", "ssh-keygen")}
        missing = [name for name, path in programs.items() if path is None]
        if missing:
            raise Unavailable(f"no {missing[0]}: apt-get install openssh-server openssh-client")
        self._programs = {name: str(path) for name, path in programs.items()}
        self.version = reported_version(self._programs["ssh"], "-V").partition(",")[0]

    def start(self, started: Started, origin: Origin) -> Running:
        folder = started.folder
        for name in ("host_key", "user_key"):
            key = ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
            subprocess.run([self._programs["ssh-keygen"], *key], check=True)
        if os.geteuid() == 0:
            PRIVILEGE_SEPARATION_FOLDER.mkdir(mode=0o755, exist_ok=True)
        control, http, echo = free_ports(3)
        configuration = folder / "sshd_config"
        configuration.write_text(
            CONFIGURATION.format(host=HOST, port=control, folder=folder, cipher=CIPHER)
        )
        server = started.start(
            "server", [self._programs["sshd"], "-D", "-e", "-f", str(configuration)]
        )
        started.wait_for_port(control)
        client = started.start("client", self._client(folder, control, origin, http, echo))
        started.wait_for_port(http)
        started.wait_for_port(echo)
        return Running(http, server, client, echo)

    def _client(
        self, folder: Path, control: int, origin: Origin, http: int, echo: int
    ) -> list[str]:
        settings = (
            f"UserKnownHostsFile={folder}/known_hosts",
            f"IdentityFile={folder}/user_key",
            "StrictHostKeyChecking=no",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "BatchMode=yes",
            "ExitOnForwardFailure=yes",
            "LogLevel=ERROR",
            f"Ciphers={CIPHER}",
        )
        options = [word for setting in settings for word in ("-o", setting)]
        forwards = [
            word
            for public, target in ((http, origin.http), (echo, origin.echo))
            for word in ("-R", f"{HOST}:{public}:{HOST}:{target}")
        ]
        where = ["-p", str(control), f"{getpass.getuser()}@{HOST}"]
        return [self._programs["ssh"], "-F", "none", "-N", *options, *forwards, *where]
