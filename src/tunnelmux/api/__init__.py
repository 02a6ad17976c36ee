"""tunnelmux-api: where people and programs sign in, pair devices, and steer the proxies.

A back end for the browser (BFF): people sign in by OpenID Connect only, and the browser holds
nothing but one cookie. Everything it knows stands in the registry; it holds no tunnel.
"""

from __future__ import annotations
