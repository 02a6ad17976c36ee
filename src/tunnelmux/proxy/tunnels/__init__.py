"""Tunnels: connections of agents, the known devices, and how devices get their tokens."""

from __future__ import annotations
