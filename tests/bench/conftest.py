"""The benchmark lies beside the tests, not in the package: it is found by its folder."""

from __future__ import annotations

import sys

from support.tree import ROOT

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
