"""Commands over SSH: the targets that run them, and their audit."""

from __future__ import annotations
