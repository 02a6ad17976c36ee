"""Reading a configuration: the TOML file, then TUNNELMUX_* variables, then flags.

A later source overrides the earlier ones, key by key. Every mistake is a ConfigError of one
sentence, which names the source, the key, and the fix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import msgspec

from tunnelmux.config.advice import Warn, advise_agent, advise_proxy, warn_of_exposed
from tunnelmux.config.agent import AgentConfig
from tunnelmux.config.decode import Decoder, expand_home, nearest, parse_text
from tunnelmux.config.http_proxy import http_proxy_from_environment
from tunnelmux.config.renamed import old_paths, with_new_names
from tunnelmux.config.rules import InvalidSetting, MissingSetting
from tunnelmux.config.schema import Table, settings_of, table_of
from tunnelmux.config.toml_text import read_toml
from tunnelmux.config.unreadable import fix_for_unreadable
from tunnelmux.errors import ConfigError

if TYPE_CHECKING:  # each program imports only its own configuration
    from tunnelmux.config.api import ApiConfig
    from tunnelmux.config.gateway import GatewayConfig
    from tunnelmux.config.proxy import ProxyConfig
    from tunnelmux.config.registry import RegistryAddress

__all__ = [
    "API_VARIABLES",
    "CONFIG_VARIABLE",
    "Flag",
    "environment_names",
    "load_agent_config",
    "load_api_config",
    "load_gateway_config",
    "load_proxy_config",
]

_ENVIRONMENT_PREFIX = "TUNNELMUX_"
CONFIG_VARIABLE = "TUNNELMUX_CONFIG"
"""The environment variable that stands for `--config`."""

API_VARIABLES = frozenset(
    {"TUNNELMUX_API_URL", "TUNNELMUX_API_SECRET_FILE", "TUNNELMUX_API_CA_FILE"}
)
"""Variables that tell `tunnelmux exec` where a proxy's internal API is. They are not settings of a
daemon, and a daemon ignores them.
"""

_API_SECRETS = ("oidc.client_secret", "proxies.secret")
_AGENT_SECRETS = (
    "proxy.token",
    "proxy.join",
    "socketio.api_key",
    "proxy.http_proxy",
    "socketio.http_proxy",
)

# Groups of exclusive keys: a later source that sets one of them removes the others.
_ALTERNATIVES = (
    frozenset({"proxy.token", "proxy.token_file", "proxy.join", "proxy.join_file"}),
    frozenset({"proxy.url", "proxy.join"}),
    frozenset({"proxy.url", "proxy.join_file"}),
    frozenset({"proxy.pin", "proxy.join"}),
    frozenset({"proxy.pin", "proxy.join_file"}),
    frozenset({"internal.secret", "internal.secret_file"}),
    frozenset({"socketio.api_key", "socketio.api_key_file"}),
    frozenset({"oidc.client_secret", "oidc.client_secret_file"}),
    frozenset({"proxies.secret", "proxies.secret_file"}),
    frozenset({"registry.url", "registry.url_file"}),
)

_C = TypeVar("_C")


class Flag(NamedTuple):
    """A value from the command line.

    `name` is how the user wrote it (`--listen`), `key` the setting it stands for
    (`tunnel.listen`). Text is parsed as the setting's kind; anything else is taken as decoded
    TOML (a list of tables for `services`); None says that the flag exists and was not given.
    """

    name: str
    key: str
    value: object


def load_proxy_config(
    file: Path | None,
    *,
    environ: Mapping[str, str],
    flags: Iterable[Flag] = (),
    warn: Warn | None = None,
) -> ProxyConfig:
    """The proxy's configuration. Its token files were read once and are valid.

    `warn` is called with each sentence worth telling that is no error. Raises ConfigError.
    """
    from tunnelmux.config.proxy import ProxyConfig

    return _Sources(ProxyConfig, file, environ, flags, warn).load(
        _check_proxy_files, _proxy_secrets, advise_proxy
    )


def load_api_config(
    file: Path | None,
    *,
    environ: Mapping[str, str],
    flags: Iterable[Flag] = (),
    warn: Warn | None = None,
) -> ApiConfig:
    """The API's configuration. Its secret files were read once and are valid.

    `warn` is called with each sentence worth telling that is no error. Raises ConfigError.
    """
    from tunnelmux.config.api import ApiConfig

    return _Sources(ApiConfig, file, environ, flags, warn).load(_check_api_files, _api_secrets)


def load_gateway_config(
    file: Path | None,
    *,
    environ: Mapping[str, str],
    flags: Iterable[Flag] = (),
    warn: Warn | None = None,
) -> GatewayConfig:
    """The gateway's configuration. Its secret files were read once and are valid.

    `warn` is called with each sentence worth telling that is no error. Raises ConfigError.
    """
    from tunnelmux.config.gateway import GatewayConfig

    return _Sources(GatewayConfig, file, environ, flags, warn).load(
        _check_gateway_files, _gateway_secrets
    )


def load_agent_config(
    file: Path | None,
    *,
    environ: Mapping[str, str],
    flags: Iterable[Flag] = (),
    warn: Warn | None = None,
) -> AgentConfig:
    """The agent's configuration. Its token file was read once and is valid. HTTP proxies that the
    environment names are filled in as if they had been set.

    `warn` is called with each sentence worth telling that is no error. Raises ConfigError.
    """

    def check(config: AgentConfig) -> None:
        _check_agent_files(config)
        _find_ways_out(config, environ, warn)

    return _Sources(AgentConfig, file, environ, flags, warn).load(
        check, _agent_secrets, advise_agent
    )


def _find_ways_out(config: AgentConfig, environ: Mapping[str, str], warn: Warn | None) -> None:
    for endpoint in (config.proxy, config.socketio):
        if endpoint is not None and endpoint.url and endpoint.http_proxy is None:
            found = http_proxy_from_environment(endpoint.url, environ, warn)
            # The struct is frozen, but its caller has not seen it yet.
            msgspec.structs.force_setattr(endpoint, "http_proxy", found)


def environment_names(table: Table) -> dict[str, str]:
    """`TUNNELMUX_TUNNEL_LISTEN` → `tunnel.listen`, for every setting outside a list of tables."""
    return {_variable(path): path for path, _ in settings_of(table) if "[]" not in path}


def _variable(path: str) -> str:
    return _ENVIRONMENT_PREFIX + path.replace(".", "_").upper()


class _Sources(Generic[_C]):
    """The merged content of all sources, and which source each value came from."""

    def __init__(
        self,
        cls: type[_C],
        file: Path | None,
        environ: Mapping[str, str],
        flags: Iterable[Flag],
        warn: Warn | None,
    ) -> None:
        self._table = table_of(cls)
        self._file = file
        self._warn = warn
        self._settings = dict(settings_of(self._table))
        self._content = self._from_file(file) if file is not None else {}
        self._origin: dict[str, str] = {}
        flags = list(flags)
        self._flag_names = {flag.key: flag.name for flag in flags}
        self._overlay(self._from_environment(environ))
        self._overlay([flag for flag in flags if flag.value is not None])

    def decode(self, check: Callable[[_C], object]) -> _C:
        """The configuration object, after `check` of it. Raises ConfigError."""
        base = self._file.parent if self._file is not None else Path()
        try:
            config: _C = Decoder(self._table, base).decode(self._content)
            check(config)
        except InvalidSetting as error:
            raise self._named(error) from None
        return config

    def load(
        self,
        check: Callable[[_C], object],
        find_secrets: Callable[[_C, Callable[[str], bool]], tuple[list[Path | None], bool]],
        advise: Callable[[_C, Warn], object] | None = None,
    ) -> _C:
        """The configuration after `check`; warnings about it are given. `find_secrets(config,
        is_from_file)` gives the files that hold secrets, and whether the configuration file is one
        of them. Raises ConfigError.
        """
        config = self.decode(check)
        if self._warn is not None:
            named, is_secret = find_secrets(config, self.is_from_file)
            warn_of_exposed([*named, self._file if is_secret else None], self._warn)
            if advise is not None:
                advise(config, self._warn)
        return config

    def is_from_file(self, key: str) -> bool:
        """Whether `key` is set, and by the file."""
        table, _, name = key.rpartition(".")
        return key not in self._origin and name in self._content.get(table, {})

    def _named(self, error: InvalidSetting) -> ConfigError:
        """The error, with its source put in front."""
        if isinstance(error, MissingSetting) and self._file is None:
            flag = self._flag_names.get(error.key)
            ways = f"give {flag}, or a file with --config" if flag else "give a file with --config"
            return ConfigError(f"{error.key} is missing: {ways}")
        source = self._origin.get(error.key)
        if source is not None:
            return ConfigError(f"{source}: {error.problem}")
        return ConfigError(f"{self._file}: {error}" if self._file is not None else f"{error}")

    def _from_file(self, file: Path) -> dict[str, Any]:
        try:
            return with_new_names(
                self._table,
                read_toml(file),
                lambda old, new: self._tell_renamed(f"{file}: {old}", new),
            )
        except InvalidSetting as error:
            raise ConfigError(f"{file}: {error}") from None

    def _tell_renamed(self, old: str, new: str) -> None:
        if self._warn is not None:
            self._warn(
                f"{old} is called {new} now: rename it, the next release refuses the old name"
            )

    def _from_environment(self, environ: Mapping[str, str]) -> Iterable[Flag]:
        known = environment_names(self._table)
        old = {_variable(path): new for path, new in old_paths(self._table)}
        for name, text in sorted(environ.items()):
            if not name.startswith(_ENVIRONMENT_PREFIX) or name in {
                CONFIG_VARIABLE,
                *API_VARIABLES,
            }:
                continue
            if name in old and name not in known:
                self._tell_renamed(name, _variable(old[name]))
                yield Flag(name, old[name], text)
                continue
            if name not in known:
                guess = nearest(name, list(known))
                hint = f"did you mean {guess}?" if guess else "unset it"
                raise ConfigError(f"{name}: no setting has this environment variable: {hint}")
            yield Flag(name, known[name], text)

    def _overlay(self, values: Iterable[Flag]) -> None:
        """Put `values` over what is there; relative file names in them start from here."""
        values = list(values)
        set_now = {flag.key for flag in values}
        for group in _ALTERNATIVES:
            if group & set_now:
                for key in group - set_now:
                    self._remove(key)
        for flag in values:
            self._put(flag)

    def _put(self, flag: Flag) -> None:
        value = flag.value
        setting = self._settings.get(flag.key)
        if isinstance(value, str) and setting is not None:
            try:
                value = parse_text(setting, value)
            except ValueError as error:
                raise ConfigError(f"{flag.name}: {error}") from None
            if setting.kind == "path" and flag.value:
                value = str(Path.cwd() / expand_home(flag.name, str(value)))
        *tables, name = flag.key.split(".")
        content = self._content
        for table in tables:
            content = content.setdefault(table, {})
            if not isinstance(content, dict):
                return  # the file has a value of another type there, which decoding will refuse
        content[name] = value
        self._origin[flag.key] = flag.name

    def _remove(self, key: str) -> None:
        table, _, name = key.rpartition(".")
        content = self._content.get(table)
        if isinstance(content, dict):
            content.pop(name, None)
        self._origin.pop(key, None)


def _proxy_secrets(
    config: ProxyConfig, is_from_file: Callable[[str], bool]
) -> tuple[list[Path | None], bool]:
    named = [device.token_file for device in config.devices]
    named += [config.tunnel.tls_key, config.registry.url_file]
    if config.ingress.http is not None:
        named.append(config.ingress.http.tls_key)
        named += [more.key for more in config.ingress.http.certificates]
    if config.socketio is not None:
        named.append(config.socketio.tls_key)
    if config.cluster is not None:
        named.append(config.cluster.redis_file)
    if config.internal is not None:
        named += [config.internal.tls_key, config.internal.secret_file]
    agents = config.socketio.agents if config.socketio is not None else []
    return named, (
        any(device.token is not None for device in config.devices)
        or any(agent.api_key is not None for agent in agents)
        or is_from_file("internal.secret")
        or _has_password(config.registry, is_from_file)
        or (config.cluster is not None and config.cluster.has_password)
    )


def _api_secrets(
    config: ApiConfig, is_from_file: Callable[[str], bool]
) -> tuple[list[Path | None], bool]:
    named = [
        config.api.tls_key,
        config.registry.url_file,
        config.browser_sessions.key_file,
        config.oidc.client_secret_file,
        config.proxies.secret_file,
    ]
    in_file = any(is_from_file(key) for key in _API_SECRETS)
    return named, in_file or _has_password(config.registry, is_from_file)


def _gateway_secrets(
    config: GatewayConfig, is_from_file: Callable[[str], bool]
) -> tuple[list[Path | None], bool]:
    named = [
        config.registry.url_file,
        config.proxies.secret_file,
        config.access.authority_file,
    ]
    in_file = is_from_file("proxies.secret")
    return named, in_file or _has_password(config.registry, is_from_file)


def _agent_secrets(
    config: AgentConfig, is_from_file: Callable[[str], bool]
) -> tuple[list[Path | None], bool]:
    named: list[Path | None] = []
    if config.proxy is not None:
        named += [config.proxy.token_file, config.proxy.join_file]
    if config.socketio is not None:
        named.append(config.socketio.api_key_file)
    return named, any(is_from_file(key) for key in _AGENT_SECRETS)


def _has_password(registry: RegistryAddress, is_from_file: Callable[[str], bool]) -> bool:
    return registry.has_password and is_from_file("registry.url")


def _check_proxy_files(config: ProxyConfig) -> None:
    config.read_token_hashes()
    with _within("registry"):
        config.registry.read_url()
    _check_readable("tunnel.tls_certificate", config.tunnel.tls_certificate)
    _check_readable("tunnel.tls_key", config.tunnel.tls_key)
    if config.ingress.http is not None:
        _check_readable("ingress.http.tls_certificate", config.ingress.http.tls_certificate)
        _check_readable("ingress.http.tls_key", config.ingress.http.tls_key)
        for index, more in enumerate(config.ingress.http.certificates):
            _check_readable(f"ingress.http.certificates[{index}].certificate", more.certificate)
            _check_readable(f"ingress.http.certificates[{index}].key", more.key)
    if config.socketio is not None:
        _check_readable("socketio.tls_certificate", config.socketio.tls_certificate)
        _check_readable("socketio.tls_key", config.socketio.tls_key)
    if config.cluster is not None:
        with _within("cluster"):
            config.cluster.read_redis()
        _check_readable("cluster.redis_ca", config.cluster.redis_ca)
    if config.internal is not None:
        with _within("internal"):
            config.internal.read_secret()
        for key in ("tls_certificate", "tls_key", "client_ca"):
            _check_readable(f"internal.{key}", getattr(config.internal, key))


def _check_agent_files(config: AgentConfig) -> None:
    if config.proxy is not None:
        config.proxy.read_token()
        _check_readable("proxy.ca_file", config.proxy.ca_file)
    for index, service in enumerate(config.services):
        _check_readable(f"services[{index}].ca_file", service.ca_file)
    _check_readable("exec.known_hosts", config.exec.known_hosts)
    if config.shell.enabled:
        _check_readable("shell.authorized_keys", config.shell.authorized_keys)
        with _within("shell"):
            config.shell.find_account()
    if config.socketio is not None:
        config.socketio.read_api_key()
        _check_readable("socketio.ca_file", config.socketio.ca_file)


def _check_api_files(config: ApiConfig) -> None:
    with _within("registry"):
        config.registry.read_url()
    with _within("oidc"):
        config.oidc.read_secret()
    with _within("proxies"):
        config.proxies.read_secret()
    for key, path in (
        ("api.tls_certificate", config.api.tls_certificate),
        ("api.tls_key", config.api.tls_key),
        ("oidc.ca_file", config.oidc.ca_file),
        ("proxies.ca_file", config.proxies.ca_file),
    ):
        _check_readable(key, path)
    if not config.browser_sessions.key_file.exists():
        raise InvalidSetting(
            "browser_sessions.key_file",
            f"{config.browser_sessions.key_file} does not exist: make it with "
            f"`(umask 077; tunnelmux-api keys new > {config.browser_sessions.key_file})`",
        )


def _check_gateway_files(config: GatewayConfig) -> None:
    with _within("registry"):
        config.registry.read_url()
    with _within("proxies"):
        config.proxies.read_secret()
    for key, path in (
        ("proxies.ca_file", config.proxies.ca_file),
        ("gateway.host_certificate", config.gateway.host_certificate),
        ("access.authority_file", config.access.authority_file),
    ):
        _check_readable(key, path)


@contextlib.contextmanager
def _within(table: str) -> Iterator[None]:
    """Put the table in front of the key that an error names."""
    try:
        yield
    except InvalidSetting as error:
        raise InvalidSetting(f"{table}.{error.key}", error.problem) from None


def _check_readable(key: str, file: Path | None) -> None:
    if file is None:
        return
    try:
        file.open("rb").close()
    except OSError as error:
        fix = fix_for_unreadable(error, "check its name and who may read it")
        raise InvalidSetting(key, f"{file} cannot be read ({error.strerror}): {fix}") from None
