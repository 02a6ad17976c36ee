"""`python cmd/tunnelmux-api …` runs the installed tunnelmux-api."""

from __future__ import annotations

import sys

from tunnelmux.cli.api import main

sys.exit(main())
