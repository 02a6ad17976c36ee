"""`tunnelmux demo`: the whole system in one process, checked and shown."""

from __future__ import annotations
