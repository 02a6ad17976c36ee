"""A folder with a configuration file in it, and a way to read the refusal it earns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tunnelmux.config import AgentConfig, Flag, ProxyConfig, load_agent_config, load_proxy_config
from tunnelmux.errors import ConfigError


class Program:
    """`proxy.load("[tunnel] …")` writes the text to a file and loads it."""

    def __init__(self, file: Path, load: Callable[..., ProxyConfig | AgentConfig]) -> None:
        self.file = file
        self._load = load
        self.warnings: list[str] = []

    def load(
        self, text: str | None = "", environ: Mapping[str, str] = {}, flags: Sequence[Flag] = ()
    ):
        if text is not None:
            self.file.write_text(text)
            self.file.chmod(0o600)
        file = self.file if text is not None else None
        return self._load(file, environ=environ, flags=flags, warn=self.warnings.append)

    def refusal(self, text: str | None = "", **sources) -> str:
        """The one sentence, with the file's name in place of its path."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, **sources)
        message = str(caught.value)
        assert "\n" not in message
        return message.replace(str(self.file), self.file.name)


@pytest.fixture
def proxy(tmp_path: Path) -> Program:
    return Program(tmp_path / "proxy.toml", load_proxy_config)


@pytest.fixture
def agent(tmp_path: Path) -> Program:
    return Program(tmp_path / "agent.toml", load_agent_config)
