"""`python cmd/tunnelmux-proxy …` runs the installed tunnelmux-proxy."""

from __future__ import annotations

import sys

from tunnelmux.cli.proxy import main

sys.exit(main())
