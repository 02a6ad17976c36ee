"""A context that trusts one certificate. A module of its own: it cannot be made without `ssl`."""

from __future__ import annotations

import ssl

__all__ = ["PinnedContext"]


class PinnedContext(ssl.SSLContext):
    """A client context that trusts exactly one certificate: the one `pin` is the SHA-256 of."""

    pin: str = ""
