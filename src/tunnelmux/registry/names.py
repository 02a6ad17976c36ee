"""The rules for names: each is one label of a host name, and a host name leads to one device only.

`dev1.DOMAIN` and `web--dev1.DOMAIN` belong to the default tenant, `dev1--acme.DOMAIN` and
`web--dev1--acme.DOMAIN` to the tenant `acme`. A label with one `--` could be read both ways. So a
tenant never has the name of a device of the default tenant. A label has at most 63 bytes (RFC 1035
section 2.3.4).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from tunnelmux.config import InvalidSetting
from tunnelmux.config.rules import check_label
from tunnelmux.errors import RegistryRefused

__all__ = [
    "DEFAULT_TENANT",
    "check_device_name",
    "check_labels",
    "check_tenant_name",
    "check_text",
    "device_label",
    "tenant_in_label",
]

DEFAULT_TENANT = "default"
"""The tenant whose devices have no tenant in their host names."""

MAX_DEVICE_NAME = 40
"""Bytes. With a tenant of 12 or a service of 20 the host name still fits into one label."""
MAX_TENANT_NAME = 20
MAX_LABELS = 32
MAX_LABEL_KEY = 63
MAX_LABEL_VALUE = 255
MAX_NETWORKS = 32
_MAX_HOST_LABEL = 63


def check_tenant_name(name: str) -> None:
    """Raise RegistryRefused for a tenant name that cannot be part of a host name."""
    _check("name", name, MAX_TENANT_NAME)


def check_device_name(name: str, tenant: str) -> None:
    """Raise RegistryRefused for a device name that cannot be part of a host name of this tenant."""
    _check("name", name, MAX_DEVICE_NAME)
    label = device_label(name, tenant)
    if len(label) > _MAX_HOST_LABEL:
        raise RegistryRefused(
            f'"{label}" has {len(label)} characters, and a host name\'s label has at most '
            f"{_MAX_HOST_LABEL}: choose a shorter name",
            code="invalid",
            field="name",
        )


def device_label(name: str, tenant: str) -> str:
    """The label of the device's host name; the proxy knows the device by it."""
    return name if tenant == DEFAULT_TENANT else f"{name}--{tenant}"


def tenant_in_label(label: str) -> str:
    """The tenant that a device's label names; empty for the default one."""
    return label.partition("--")[2]


def check_text(field: str, text: str, most: int, *, least: int = 0) -> str:
    """The text without white space around it. Raises RegistryRefused when it is too short, too long
    or not printable."""
    text = text.strip()
    if not least <= len(text) <= most or (text and not text.isprintable()):
        raise RegistryRefused(
            f"{field} must be {least} to {most} printable characters", code="invalid", field=field
        )
    return text


def check_networks(field: str, texts: Sequence[str]) -> list[str]:
    """Networks as `ipaddress` writes them; refused when there are too many or one is none."""
    if len(texts) > MAX_NETWORKS:
        raise RegistryRefused(
            f"{field} must be {MAX_NETWORKS} networks at most", code="invalid", field=field
        )
    try:
        return [str(ipaddress.ip_network(text)) for text in texts]
    except ValueError:
        raise RegistryRefused(
            f'{field} must be networks, like "192.0.2.0/24" or "2001:db8::1"',
            code="invalid",
            field=field,
        ) from None


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """A device's labels, sorted. Raises RegistryRefused for too many, or one that is too long."""
    if len(labels) > MAX_LABELS:
        raise RegistryRefused(
            f"a device has at most {MAX_LABELS} labels", code="invalid", field="labels"
        )
    for key, value in labels.items():
        check_text("labels", key, MAX_LABEL_KEY, least=1)
        check_text("labels", value, MAX_LABEL_VALUE)
    return dict(sorted(labels.items()))


def _check(field: str, name: str, most: int) -> None:
    try:
        check_label(field, name)
    except InvalidSetting as error:
        raise RegistryRefused(str(error), code="invalid", field=field) from None
    if len(name) > most:
        raise RegistryRefused(
            f'"{name}" is too long: use at most {most} characters', code="invalid", field=field
        )
