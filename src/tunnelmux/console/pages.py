"""Pages: one Jinja2 template each, and the filters they use. Every value is escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import jinja2

from tunnelmux.console.assets import Assets

__all__ = ["PAGE_HEADERS", "Pages"]

PAGE_HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types tunnelmux",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
"""The security fields of every answer of the console: nothing inline, nothing from other origins.
"""

_STEPS = ((60, "s"), (60, "min"), (24, "h"), (float("inf"), "d"))
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Pages:
    """The templates, read once."""

    def __init__(
        self, assets: Assets, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("tunnelmux.console", "templates"),
            autoescape=True,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.globals |= {"asset": assets.url, "integrity": assets.integrity}

        def for_long(moment: datetime) -> str:
            return _duration((now() - moment).total_seconds())

        environment.filters |= {
            "for_long": for_long,
            "ago": lambda moment: f"{for_long(moment)} ago",
            "iso": lambda moment: moment.astimezone(UTC).isoformat(timespec="seconds"),
            "moment": lambda moment: f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
            "size": _size,
            "lasted": lambda end, begin: _duration((end - begin).total_seconds()),
        }
        self._environment = environment

    def render(self, page: str, /, **values: Any) -> str:
        """The HTML of `page`, the name of a template without its ending."""
        return self._environment.get_template(f"{page}.html").render(page=page, **values)


def _duration(seconds: float) -> str:
    """The largest unit alone: `3 d`, `12 min`."""
    left = max(0.0, seconds)
    for step, unit in _STEPS:
        if left < step:
            return f"{int(left)} {unit}"
        left /= step
    raise AssertionError("unreachable")


def _size(count: int) -> str:
    amount = float(count)
    for unit in _UNITS[:-1]:
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} {_UNITS[-1]}"
