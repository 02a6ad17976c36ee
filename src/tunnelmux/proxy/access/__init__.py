"""Who may visit: the rules of services, and what visitors show to be let in by them."""

from __future__ import annotations
