"""The console's looks: templates, stylesheet and scripts, and the code that renders pages from
them.

It knows no registry and no access rules: `api/routes/console.py` says who sees what, and gives each
page what the REST API would answer. It needs Jinja2 (extra `api`).
"""

from __future__ import annotations

from tunnelmux.console.assets import Asset, Assets
from tunnelmux.console.conditions import Condition, condition_of
from tunnelmux.console.pages import PAGE_HEADERS, Pages

__all__ = ["PAGE_HEADERS", "Asset", "Assets", "Condition", "Pages", "condition_of"]
