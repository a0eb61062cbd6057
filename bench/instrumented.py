"""A function with a stop-watch on its own CPU: inside database calls, and outside of them.

Runs in the function's process, in place of the handler that BENCH_HANDLER names; after each invocation it writes one
line with thread CPU. With BENCH_STEPS it counts calls of functions, Python's and C's, which hardly depend on the
machine; the CPU in the line then means nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from types import FrameType
from typing import Any

import botocore.client

_COUNTS_STEPS = os.environ.get("BENCH_STEPS") == "1"
_make_api_call = botocore.client.BaseClient._make_api_call  # type: ignore[attr-defined]

_module, _, _name = os.environ["BENCH_HANDLER"].rpartition(".")
_handler = getattr(import_module(_module), _name)


class _Watch:
    """What one invocation has cost so far."""

    def __init__(self) -> None:
        self.database_seconds = 0.0
        self.calls = 0
        self.steps = [0, 0]
        """Outside of database calls, and inside."""
        self.in_database = False

    def step(self, _frame: FrameType, what: str, _argument: object) -> None:
        if what in ("call", "c_call"):
            self.steps[self.in_database] += 1


_watch = _Watch()


def _timed_call(self: Any, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
    began = time.thread_time()
    _watch.in_database = True
    try:
        return _make_api_call(self, *arguments, **named)
    finally:
        _watch.in_database = False
        _watch.database_seconds += time.thread_time() - began
        _watch.calls += 1


botocore.client.BaseClient._make_api_call = _timed_call  # type: ignore[attr-defined]


def handler(event: dict[str, Any], context: Any) -> Any:  # noqa: ANN401
    """As the handler's own, plus one line `{"bench": …}` on standard output."""
    global _watch  # noqa: PLW0603  one process, one thread
    _watch = _Watch()
    began = time.thread_time()
    sys.setprofile(_watch.step if _COUNTS_STEPS else None)
    try:
        answer = _handler(event, context)
    finally:
        sys.setprofile(None)
    total = time.thread_time() - began
    line = {
        "total_us": int(total * 1e6),
        "database_us": int(_watch.database_seconds * 1e6),
        "calls": _watch.calls,
        "steps": _watch.steps[0],
        "database_steps": _watch.steps[1],
    }
    print(json.dumps({"bench": line}), flush=True)
    return answer
