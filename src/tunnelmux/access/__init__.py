"""Proofs of visitors: passwords as they are kept, and texts that are signed by one of our programs
and believed by another. Without I/O and clock."""

from __future__ import annotations
