"""Browser sessions: one signed cookie with an opaque id; everything else stays on the server."""

from __future__ import annotations
