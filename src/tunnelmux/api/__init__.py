"""tunnelmux-api: people and programs sign in here, pair devices, and control the proxies.

It is a back end for the browser (BFF): people sign in by OpenID Connect only, and the browser holds
one cookie and nothing else. All its data is in the registry; it holds no tunnel.
"""

from __future__ import annotations
