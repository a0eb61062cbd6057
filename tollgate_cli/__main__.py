"""`tollgate` and `python -m tollgate_cli`."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Runs the command on this process's arguments and ends it."""
    # Where the core layer's package is in a checkout, and the command runs from nowhere else.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "layers" / "core"))

    from tollgate_cli.app import app  # noqa: PLC0415  findable only now

    app(prog_name="tollgate")


if __name__ == "__main__":
    main()
