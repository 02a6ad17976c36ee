"""The routes, one module for each kind of object."""

from __future__ import annotations
