"""The agent's own shell, for a device without an SSH server: `[shell]` of agent.toml."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import msgspec

from tunnelmux.config.rules import InvalidSetting, MissingSetting, check_label
from tunnelmux.limits import ShellLimits

__all__ = ["ShellConfig"]


class ShellConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An SSH server of the agent itself, for people's shells and commands. Devices with an sshd
    need none: they declare it as a service.
    """

    enabled: bool = False
    """Whether the device offers it."""

    user: str = ""
    """The account that sessions run as, whose name people log in with. Without it that of the
    agent, unless this is root: then it must be named, even if it is to be root."""

    command: list[str] = []
    """A program with its arguments that is run in each session instead of the account's login
    shell; what the person asked for is in `SSH_ORIGINAL_COMMAND`."""

    authorized_keys: Path | None = None
    """Who may log in: lines as in OpenSSH's authorized_keys, read anew for each connection. For
    tunnelmux-gateway `cert-authority` and what `tunnelmux-gateway authority` prints. These options
    are heeded: `cert-authority`, `principals`, `from`, `command`, `expiry-time`, `restrict`, `pty`
    and `no-pty`; nothing is forwarded in any case."""

    service: str = "ssh"
    """The service by which it is reached; no `[[services]]` may have the same name."""

    lease_only: bool = True
    """Whether it is reached during leases only, see `[assist]`."""

    limits: ShellLimits = ShellLimits()
    """Limits of the shell."""

    def __post_init__(self) -> None:
        check_label("service", self.service)
        if self.enabled and self.authorized_keys is None:
            raise MissingSetting(
                "authorized_keys",
                "is missing, so that none could log in: name a file with the line "
                '"cert-authority " and what `tunnelmux-gateway authority` prints',
            )
        for key in ("max_connections", "max_sessions", "login_timeout"):
            if not 0 < getattr(self.limits, key) <= 10_000:
                raise InvalidSetting(key, "must be above 0 and at most 10000")

    def find_account(self) -> pwd.struct_passwd:
        """The account of the sessions, which this process may start processes as.

        Raises InvalidSetting for `user`.
        """
        own = os.geteuid()
        if not self.user:
            if own == 0:
                raise InvalidSetting(
                    "user",
                    "is missing, and this agent runs as root, so that everyone in the shell would "
                    'be root: name an account, or write user = "root" if that is meant',
                )
            try:
                return pwd.getpwuid(own)
            except KeyError:
                raise InvalidSetting(
                    "user", f"is missing, and the agent's user id {own} has no account: name one"
                ) from None
        try:
            account = pwd.getpwnam(self.user)
        except KeyError:
            raise InvalidSetting(
                "user",
                f'there is no account "{self.user}" on this device: make it, or name another',
            ) from None
        if own not in (0, account.pw_uid):
            raise InvalidSetting(
                "user",
                f'this agent runs as user id {own} and cannot become "{self.user}": run it as '
                f'"{self.user}" or as root, or leave out user',
            )
        return account
