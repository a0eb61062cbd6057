"""Ends the local stack's processes when the stack itself is gone, even by `kill -9`.

Reads lines `+pid` and `-pid` from stdin. When the pipe closes, its writer is dead: every process group still listed
gets SIGTERM (ministack then saves its state), and SIGKILL three seconds later. A pipe works on every system; a death
signal (PR_SET_PDEATHSIG) is Linux only, and fires already when the *thread* that started the child ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

GRACE_SECONDS = 3.0


def main() -> int:
    groups: set[int] = set()
    for line in sys.stdin:
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    _signal_all(groups, signal.SIGTERM)
    limit = time.monotonic() + GRACE_SECONDS
    while any(_is_alive(group) for group in groups) and time.monotonic() < limit:
        time.sleep(0.05)
    _signal_all(groups, signal.SIGKILL)
    return 0


def _signal_all(groups: set[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    # Ctrl-C reaches the whole foreground group; the stack decides when it is over, not this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main())
