"""`python -m sigma9_core COMMAND`, and the entry point of `sigma9 COMMAND`."""

from __future__ import annotations

import sys

from sigma9_core.cli.frame import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
