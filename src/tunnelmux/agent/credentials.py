"""The token that the agent sends, and the file for one it got by joining."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tunnelmux.agent.earlier_tokens import EarlierTokens
from tunnelmux.config import Device, ProxyEndpoint, Secret, hash_token
from tunnelmux.config.private_file import write_private
from tunnelmux.config.state_dir import default_state_dir
from tunnelmux.errors import ConfigError

__all__ = ["Credentials"]


class Credentials:
    """The device's token: from the configuration, or from the state file after a join.

    A join line carries a token that works once. The proxy answers its first use with a permanent
    token, which is kept in the state file (mode 0600) together with the hash of its invitation, so
    that a new join line in the configuration replaces an old token.
    """

    def __init__(
        self, proxy: ProxyEndpoint, device: Device, environ: Mapping[str, str] | None = None
    ) -> None:
        self._proxy = proxy
        self._learned: Secret | None = None
        self._invitation: str | None = None
        self.path: Path | None = None
        """The state file; None when the configuration holds the token itself."""
        if proxy.join is not None:
            self._invitation = hash_token(proxy.read_token())
            folder = device.state_dir or default_state_dir(
                "tunnelmux-agent", os.environ if environ is None else environ
            )
            self.path = folder / f"{device.name}.json"

    @property
    def source(self) -> str:
        """The source of the token of `read()`, as a phrase for messages."""
        if self._learned is not None:
            return f"the token in {self.path} (remove that file to use a new join line)"
        if self._proxy.join is not None:
            return "the join line (it works once; ask for a new one)"
        if self._proxy.token_file is not None:
            return f"the token in {self._proxy.token_file}"
        return "proxy.token in the agent's configuration"

    def read(self) -> Secret:
        """The token to send now. Raises ConfigError when its file cannot be read, or, before a join
        line's token is used up, when the answer could not be stored.
        """
        if self.path is not None:
            if self._learned is None:
                self._learned = self._load()
            if self._learned is not None:
                return self._learned
            self._make_folder()
        return self._proxy.read_token()

    def learn(self, token: Secret) -> None:
        """Store the permanent token from the proxy. Raises ConfigError when it cannot be written;
        the running agent uses it anyway.
        """
        if self.path is None:
            return
        self._learned = token
        content = {"invitation_sha256": self._invitation, "token": token.reveal()}
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self.path, json.dumps(content).encode())
        except OSError as exc:
            raise ConfigError(
                f"cannot keep the token of this device in {self.path} ({exc.strerror}); make the "
                "folder writable and join again before the agent is restarted"
            ) from exc

    @property
    def kept_in(self) -> Path | None:
        """The file with the token, or None when the configuration itself has it."""
        return self.path if self.path is not None else self._proxy.token_file

    @property
    def has_joined(self) -> bool:
        """Whether the token of `read()` is the permanent one that joining gave."""
        return self._learned is not None

    def earlier(self, token: Secret) -> list[Secret]:
        """The tokens that this one replaced, the latest first; reads a local file."""
        kept_in = self.kept_in
        return EarlierTokens(kept_in).of(token) if kept_in is not None else []

    def replace(self, before: Secret, token: Secret) -> None:
        """Store a new token in place of `before`, which is kept beside it.

        Raises ConfigError, with the old one still in its place, when that cannot be written or when
        too many were replaced.
        """
        self._check_place()
        assert self.kept_in is not None  # it was checked just now
        EarlierTokens(self.kept_in).keep(before, replaced_by=token)
        self.put(token)

    def put(self, token: Secret) -> None:
        """Write a token down where the device's stands, in one step and for its owner only.

        Raises ConfigError, with the old one still there, when it cannot be written.
        """
        self._check_place()
        if self.path is not None:
            before = self._learned
            try:
                self.learn(token)
            except ConfigError:
                self._learned = before
                raise
            return
        file = self._proxy.token_file
        assert file is not None  # it was checked above
        try:
            write_private(file, token.reveal().encode() + b"\n")
        except OSError as exc:
            raise ConfigError(
                f"cannot write {file} ({exc.strerror}); let this program's user write it and the "
                "folder it is in"
            ) from exc

    def _check_place(self) -> None:
        if self.path is not None and self._learned is None:
            raise ConfigError("the device has not joined yet, so there is no token to replace")
        if self.kept_in is None:
            raise ConfigError(
                "the token stands in the agent's configuration itself: put it into a file of its "
                "own and name that with proxy.token_file"
            )

    def _load(self) -> Secret | None:
        assert self.path is not None
        try:
            content = json.loads(self.path.read_bytes())
            if content["invitation_sha256"] != self._invitation:
                return None  # the configuration has a newer join line
            return Secret(str(content["token"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise ConfigError(
                f"cannot read {self.path} ({exc.strerror}); let this program's user read it"
            ) from exc
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{self.path} is damaged; remove it and join again with a new line"
            ) from None

    def _make_folder(self) -> None:
        assert self.path is not None
        folder = self.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as exc:
            raise ConfigError(
                f"cannot write to {folder} ({exc.strerror}), where the token of this device is to "
                "be kept; make it writable or set device.state_dir"
            ) from exc
