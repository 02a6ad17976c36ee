"""The routes, one module for each kind of thing."""

from __future__ import annotations
