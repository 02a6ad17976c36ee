"""Ids of commands."""

from __future__ import annotations

import secrets
import time

__all__ = ["new_command_id"]


def new_command_id() -> str:
    """`cmd_`, the time in milliseconds and 48 random bits: the format that main servers use."""
    return f"cmd_{time.time_ns() // 1_000_000}_{secrets.token_hex(6)}"
