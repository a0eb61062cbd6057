"""`python -m dev.docs`: see dev/docs/cli.py."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Where the core layer's package is in a checkout; pytest and mypy know it from their settings.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "layers" / "core"))

    from dev.docs.cli import main

    raise SystemExit(main(sys.argv[1:]))
