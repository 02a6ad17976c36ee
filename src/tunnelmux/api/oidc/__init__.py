"""OpenID Connect as a back end for the browser: the code flow with PKCE."""

from __future__ import annotations
