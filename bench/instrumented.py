"""A function with a stop-watch on its own CPU: inside database calls, and outside of them.

Runs in the function's process, in place of the handler that BENCH_HANDLER names; after each invocation it writes one
line with thread CPU.
"""

from __future__ import annotations

import json
import os
import time
from importlib import import_module
from typing import Any

import botocore.client

_inside_seconds = 0.0
_calls = 0
_make_api_call = botocore.client.BaseClient._make_api_call  # type: ignore[attr-defined]


_module, _, _name = os.environ["BENCH_HANDLER"].rpartition(".")
_handler = getattr(import_module(_module), _name)


def _timed_call(self: Any, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
    global _inside_seconds, _calls  # noqa: PLW0603  one process, one thread, read right after the handler
    began = time.thread_time()
    try:
        return _make_api_call(self, *arguments, **named)
    finally:
        _inside_seconds += time.thread_time() - began
        _calls += 1


botocore.client.BaseClient._make_api_call = _timed_call  # type: ignore[attr-defined]


def handler(event: dict[str, Any], context: Any) -> Any:  # noqa: ANN401
    """As the handler's own, plus one line `{"bench": …}` on standard output."""
    global _inside_seconds, _calls
    _inside_seconds, _calls = 0.0, 0
    began = time.thread_time()
    answer = _handler(event, context)
    total = time.thread_time() - began
    line = {"bench": {"total_us": int(total * 1e6), "database_us": int(_inside_seconds * 1e6), "calls": _calls}}
    print(json.dumps(line), flush=True)
    return answer
