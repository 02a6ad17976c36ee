"""Tunnels: agents that connect, the devices they are, and how a device comes to its token."""

from __future__ import annotations
