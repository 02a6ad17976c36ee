"""What there is to configure, read off the types, for the tests that hold prose to it.

`python -m support.settings` (in tests/) writes docs/configuration.md and the limits in the sample
files anew.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tunnelmux.config import AgentConfig, AgentLimitsConfig, ProxyConfig
from tunnelmux.config.api import ApiConfig
from tunnelmux.config.gateway import GatewayConfig
from tunnelmux.config.load import environment_names
from tunnelmux.config.schema import Setting, Table, table_of

_ROOT = Path(__file__).parents[2]
PAGE = _ROOT / "docs" / "configuration.md"
PROGRAMS: dict[str, type] = {
    "proxy": ProxyConfig,
    "agent": AgentConfig,
    "api": ApiConfig,
    "gateway": GatewayConfig,
}

_INTRODUCTION = """\
# Configuration

`tunnelmux-proxy`, `tunnelmux-agent`, `tunnelmux-api` and `tunnelmux-gateway` each read one TOML
file (`--config FILE`, or the variable `TUNNELMUX_CONFIG`), then `TUNNELMUX_*` environment
variables, then flags; each later source wins, key by key. A variable is the key's path with
underscores: `[tunnel] listen` is `TUNNELMUX_TUNNEL_LISTEN`. Lists of text are separated by commas
there; keys in `[[lists of tables]]` have no variable. Names of files that are not absolute start
from the folder of the configuration file. An unknown key or variable is refused; one that was
renamed works for a release, with a warning.

The command `check` of each validates a configuration and prints what comes out of it, secrets
hidden. Samples with comments: `cmd/tunnelmux-proxy/proxy.toml`, `cmd/tunnelmux-agent/agent.toml`,
`cmd/tunnelmux-api/api.toml`, `cmd/tunnelmux-gateway/gateway.toml`.

This page is made from the program by `python -m support.settings` in `tests/`.
"""


def headed_settings(table: Table, path: str = "") -> Iterator[tuple[str, str, Setting]]:
    """Every setting as its table's header in the file, its key, and itself."""
    header = path
    for name in table.names():
        entry = table.find(name)
        if isinstance(entry, Table):
            inner = f"{path.strip('[]')}.{name}".strip(".")
            yield from headed_settings(entry, f"[[{inner}]]" if entry.is_list else f"[{inner}]")
        elif entry is not None:
            yield header, name, entry


def default_text(setting: Setting) -> str:
    """The default as TOML, or "" where there is none."""
    if setting.default is None or setting.default == "":
        return ""
    return json.dumps(setting.default)


def sample_file(program: str) -> Path:
    """The commented sample configuration of tunnelmux-`program`."""
    return _ROOT / "cmd" / f"tunnelmux-{program}" / f"{program}.toml"


def sample_with_limits(program: str) -> str:
    """The sample's text as it is, but for its last table, which is made anew."""
    text, header, _ = sample_file(program).read_text().rpartition("[limits]\n")
    return (
        text
        + header
        + "".join(
            f"# {key} = {default_text(setting)}\n"
            for table, key, setting in headed_settings(table_of(PROGRAMS[program]))
            if table == "[limits]"
        )
    )


def configuration_page() -> str:
    """The text of docs/configuration.md."""
    parts = [_INTRODUCTION]
    for program, config in PROGRAMS.items():
        table = table_of(config)
        variables = {path: name for name, path in environment_names(table).items()}
        parts.append(f"\n## {program}.toml\n")
        parts.extend(_sections(table, "", variables))
    return "".join(parts)


def _sections(table: Table, path: str, variables: dict[str, str]) -> Iterator[str]:
    settings = [name for name in table.names() if isinstance(table.find(name), Setting)]
    if settings:
        header = f"[[{path}]]" if table.is_list else f"[{path}]"
        yield f"\n### `{header}`\n\n{textwrap.fill(_doc(table.cls), 100)}\n\n"
        if table.cls is AgentLimitsConfig:
            left_out = ", ".join(f"`{name}`" for name in sorted(AgentLimitsConfig.left_out))
            yield f"Its keys are those of proxy.toml, without {left_out}.\n"
            settings = []
        for name in settings:
            yield _entry(table, name, variables.get(f"{path}.{name}"))
    for name, entry in table.keys.items():
        if isinstance(entry, Table):
            yield from _sections(entry, f"{path}.{name}".strip("."), variables)


def _entry(table: Table, name: str, variable: str | None) -> str:
    owner = next((part for part in table.flat.values() if name in part.keys), table)
    setting = owner.keys[name]
    assert isinstance(setting, Setting)
    facts: list[str] = [setting.kind if setting.kind != "texts" else "list of text"]
    if setting.choices:
        facts = [" or ".join(f'`"{choice}"`' for choice in setting.choices)]
    if name in owner.required:
        facts.append("required")
    elif default := default_text(setting):
        facts.append(f"default `{default}`")
    if variable is not None:
        facts.append(f"`{variable}`")
    text = f"- `{name}` ({', '.join(facts)}): {_field_docs(owner.cls)[name]}"
    return (
        textwrap.fill(
            text, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        + "\n"
    )


def _doc(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").split())


def _field_docs(cls: type) -> dict[str, str]:
    """The string that stands under each field in the source of the class, or of one above it."""
    docs: dict[str, str] = {}
    for part in cls.__mro__:
        if part.__module__.startswith("tunnelmux."):
            docs = _own_field_docs(part) | docs
    return docs


def _own_field_docs(cls: type) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, doc in zip(body.body, body.body[1:], strict=False):
        match field, doc:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(configuration_page())
    for name in PROGRAMS:
        sample_file(name).write_text(sample_with_limits(name))
