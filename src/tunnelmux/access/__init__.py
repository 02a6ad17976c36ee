"""Proofs of visitors: password hashes, address lists, and texts that one of our programs signs and
another one verifies. No I/O, no clock.
"""

from __future__ import annotations
