"""All that Lambda would keep of what a process says, for tests that look for what must not be in it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

OF_THE_TEST = ("moto", "responses", "asyncio")
"""Who logs, but only here."""


@contextmanager
def everything_written(to: io.StringIO) -> Iterator[None]:
    """What Lambda would keep: both outputs, and what every library says to its logger."""
    root, handler = logging.getLogger(), logging.StreamHandler(to)
    before = root.level
    for name in OF_THE_TEST:
        logging.getLogger(name).setLevel(logging.WARNING)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with redirect_stdout(to), redirect_stderr(to):
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
