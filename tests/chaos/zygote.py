"""Starts function processes fast: everything is imported once, each process is a fork that runs Lambda's bootstrap.

A process killed a thousand times would else spend most of the run on importing botocore. Nothing is built at import
(a tidy test sees to it), so a fork is as fresh as a start. The shim lives here too: a clock that is wrong by so many
seconds, and shorter waits between retries. One line of JSON in, the process id out; children are reaped by the kernel.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAYERS = (ROOT / "layers" / "core", ROOT / "layers" / "stream_runtime")
WAITS = 0.1
"""Of botocore's pauses between retries, and of the ledger's own: the time goes into calls instead."""


class Zygote:
    """The process that forks the others."""

    def __init__(self, mutant: str | None = None) -> None:
        """`mutant`: of tests.chaos.mutants, applied in every process; the books must notice."""
        self.mutant = mutant
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*LAYERS, ROOT)))},
            text=True,
            bufsize=1,
        )

    def start(self, environment: dict[str, str], log: Path, skew_seconds: float) -> int:
        """The id of a new function process."""
        order = {
            "environment": environment,
            "log": str(log),
            "skew_seconds": skew_seconds,
            "mutant": self.mutant,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def main() -> None:
    import functions.claude.app  # noqa: F401  not awslambdaric: its native part reads the environment when loaded

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_function(order)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def _become_function(order: dict[str, Any]) -> None:
    """Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(order["environment"])
    random.seed()  # a fork has its parent's generator; ids come from the kernel and differ anyway
    _shift_time(order["skew_seconds"])
    if order["mutant"] is not None:
        from tests.chaos.mutants import MUTANTS

        MUTANTS[order["mutant"]]()
    from tollgate_runtime.__main__ import main as run_function

    try:
        run_function()
    finally:
        os._exit(1)


def _shift_time(skew_seconds: float) -> None:
    import awslambdaric.lambda_context

    true_time, true_sleep = time.time, time.sleep
    # The deadline comes by the host's clock, which on Lambda is the process's own.
    awslambdaric.lambda_context.time = SimpleNamespace(time=true_time)
    time.time = lambda: true_time() + skew_seconds
    time.sleep = lambda seconds: true_sleep(float(seconds) * WAITS)


if __name__ == "__main__":
    main()
