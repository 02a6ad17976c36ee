"""`python cmd/tunnelmux-gateway …` runs the installed tunnelmux-gateway."""

from __future__ import annotations

import sys

from tunnelmux.cli.gateway import main

sys.exit(main())
