"""Access control for visitors: the rules of services, and the proofs of visitors."""

from __future__ import annotations
