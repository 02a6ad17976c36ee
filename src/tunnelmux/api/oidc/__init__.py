"""OpenID Connect for the browser's back end: the code flow with PKCE."""

from __future__ import annotations
