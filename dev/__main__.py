"""`python -m dev`: the whole of Tollgate on one port of this machine. `make dev` runs it; dev/README.md explains it."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The stack seeds its data with the product's own modules, where the layer keeps them.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "layers" / "core"))
    from dev.cli import main

    sys.exit(main(sys.argv[1:]))
