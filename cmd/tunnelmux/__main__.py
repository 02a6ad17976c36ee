"""`python cmd/tunnelmux …` runs the installed tunnelmux."""

from __future__ import annotations

import sys

from tunnelmux.cli.main import main

sys.exit(main())
