"""Runs in a function's place: imports its handler, builds what it works with, says what that took, as one JSON line.

Standard library only, and nothing of ours: it runs on the deployed Python among deployed files. Argument: the module of
the handler (`app` where it is deployed, `functions.auth.app` in a checkout).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time


def build_tools(module: object) -> None:
    """What the first invocation would build, in each of the forms that functions have it in."""
    names = vars(module)
    if "_tools" in names:
        names["_tools"]()
        return
    for name in ("url", "api"):
        if name in names:
            _ = names[name].tools
            return
    for build in [made for name, made in names.items() if name.startswith("build_")]:
        build()


def resident_bytes() -> int:
    """Memory of this process. Not `ru_maxrss`, in which the parent's is left over."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def main() -> None:
    """Names of modules come with it, so that a test can say which one is too many."""
    module = importlib.import_module(sys.argv[1])
    imported_seconds = time.process_time()
    build_tools(module)
    answer = {
        "import_cpu_seconds": imported_seconds,
        "cpu_seconds": time.process_time(),
        "rss_bytes": resident_bytes(),
        "modules": sorted(sys.modules),
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
