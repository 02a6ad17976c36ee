"""Visitors: HTTP and TCP ingress, from an accepted socket to a stream of a device's session."""

from __future__ import annotations
