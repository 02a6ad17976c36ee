"""Stylesheet, scripts and pictures: compressed once, under a path that contains their hash.

A file under such a folder never changes, so browsers may keep it for ever; a new version of
tunnelmux has another folder. `static` holds our own; `vendor` what `make vendor` fetched, as
vendor.json pins it. Scripts import each other by relative names, which need no import map.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

__all__ = ["Asset", "Assets"]

_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


_SOURCE_MAP = re.compile(rb"\n//# sourceMappingURL=\S+\s*\Z")
# Browsers with open developer tools would ask for a source map that is not there.


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, plain and gzipped."""

    media_type: str
    plain: bytes
    packed: bytes
    integrity: str
    """For the attribute `integrity` (Subresource Integrity)."""


class Assets:
    """All files of the console. `prefix` is the path under which they are served."""

    def __init__(self, prefix: str) -> None:
        folders = (resources.files(__package__) / name for name in ("static", "vendor"))
        found = {
            item.name: item.read_bytes()
            for folder in folders
            if folder.is_dir()
            for item in sorted(folder.iterdir(), key=lambda item: item.name)
            if item.name.rpartition(".")[2] in _TYPES
        }
        self.has_terminal = "xterm.mjs" in found and "addon-fit.mjs" in found
        """Whether xterm.js is there, which `make vendor` fetches."""
        self.files: Mapping[str, Asset] = {
            name: _packed(name, body) for name, body in found.items()
        }
        whole = hashlib.sha256()
        for name, body in found.items():
            whole.update(f"{name}\0{len(body)}\0".encode() + body)
        self.version = whole.hexdigest()[:12]
        self._prefix = prefix

    def url(self, name: str) -> str:
        """The path of a file; raises KeyError for one that is not there."""
        self.files[name]
        return f"{self._prefix}/{self.version}/{name}"

    def integrity(self, name: str) -> str:
        """The file's `integrity`; raises KeyError."""
        return self.files[name].integrity


def _packed(name: str, body: bytes) -> Asset:
    body = _SOURCE_MAP.sub(b"", body)
    digest = base64.b64encode(hashlib.sha384(body).digest()).decode("ascii")
    return Asset(
        media_type=_TYPES[name.rpartition(".")[2]],
        plain=body,
        packed=gzip.compress(body, mtime=0),
        integrity=f"sha384-{digest}",
    )
