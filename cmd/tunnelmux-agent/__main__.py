"""`python cmd/tunnelmux-agent …` runs the installed tunnelmux-agent."""

from __future__ import annotations

import sys

from tunnelmux.cli.agent import main

sys.exit(main())
