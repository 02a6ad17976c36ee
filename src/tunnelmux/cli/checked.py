"""What `check` looks at beyond the configuration itself: what the daemons open when they start."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from tunnelmux.config.registry import RegistryAddress
from tunnelmux.errors import ConfigError

__all__ = ["check_certificates", "check_registry_url"]


def check_certificates(pairs: Mapping[str, tuple[Path | None, Path | None]]) -> None:
    """Load each certificate with its key, by the setting that names it. Raises ConfigError."""
    for setting, (certificate, key) in pairs.items():
        if certificate is None or key is None:
            continue
        # Imported here: most files name no certificate, and Trio takes a moment to import.
        from tunnelmux.transports.tls import server_context

        try:
            server_context(certificate, key)
        except ConfigError as error:
            raise ConfigError(f"{setting}: {error}") from None


def check_registry_url(registry: RegistryAddress) -> None:
    """See that the registry's URL is one of a database that is supported; it is not connected to.
    Raises ConfigError.
    """
    url = registry.read_url()
    if url is None or importlib.util.find_spec("sqlalchemy") is None:
        return  # without the library the daemon itself says how to install it
    from tunnelmux.registry.sql.database import parse_url

    parse_url(url)
