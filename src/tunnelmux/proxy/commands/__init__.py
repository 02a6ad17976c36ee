"""Commands over SSH: which target carries one, and what is written down of it."""

from __future__ import annotations
