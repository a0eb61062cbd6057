"""Runs inputs by number and looks after what no single answer shows: the log, the meters, the memory."""

from __future__ import annotations

import contextlib
import io
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

import psutil

from tests.fuzz.data_plane import COOKIE, PEPPER, PROMPT, DataPlane, data_plane
from tests.fuzz.targets import TARGETS

BATCH = 500
FRESH_EVERY = 5_000
"""Inputs after which the container is a new one, so that what is stored does not count as a leak of memory."""
WARM_UP = 2_500
MOST_GROWTH_MB = 64


@dataclass(slots=True)
class Summary:
    """What many inputs came to."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    """By target and outcome."""
    failures: list[str] = field(default_factory=list)
    growth_mb: float = 0.0
    seconds: float = 0.0


def run(counts: Counter[str], seed: int) -> Summary:
    """So many inputs of each target. Input n of a target is the same in every run of this seed."""
    summary, began = Summary(), time.monotonic()
    start_bytes: int | None = None
    most_bytes = 0
    for name, total in counts.items():
        for first in range(0, total, FRESH_EVERY):
            with data_plane() as plane:
                for batch in range(first, min(first + FRESH_EVERY, total), BATCH):
                    numbers = range(batch, min(batch + BATCH, first + FRESH_EVERY, total))
                    _run_batch(plane, name, seed, numbers, summary)
                    now_bytes = psutil.Process().memory_info().rss
                    if summary.inputs >= WARM_UP and start_bytes is None:
                        start_bytes = now_bytes
                    most_bytes = max(most_bytes, now_bytes)
    summary.growth_mb = round((most_bytes - (start_bytes or most_bytes)) / 2**20, 1)
    summary.seconds = round(time.monotonic() - began, 1)
    return summary


def _run_batch(plane: DataPlane, name: str, seed: int, numbers: Iterable[int], summary: Summary) -> None:
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        for number in numbers:
            summary.inputs += 1
            try:
                outcome = run_one(plane, name, seed, number)
            except Exception as error:  # noqa: BLE001  the number must be told, whatever it is
                outcome = "failed"
                summary.failures.append(f"{replay(name, seed, number)}: {type(error).__name__}: {str(error)[:500]}")
            summary.outcomes[f"{name} {outcome}"] += 1
    _look_after(plane, log.getvalue(), f"{name}, seed {seed}, inputs {numbers}", summary)


def run_one(plane: DataPlane, name: str, seed: int, number: int) -> str:
    target, _ = TARGETS[name]
    return target(plane, Random(f"{name} {seed} {number}"))


def replay(name: str, seed: int, number: int) -> str:
    return f"python -m tests.fuzz --seed {seed} --only {name} --number {number}"


def _look_after(plane: DataPlane, log: str, where: str, summary: Summary) -> None:
    secrets = (PEPPER.decode(), PROMPT, COOKIE, *plane.keys.values())
    for line in log.splitlines():
        if any(secret in line for secret in secrets):
            summary.failures.append(f"{where}: leaked into the log: {line[:300]}")
        if '"request_failed"' in line:
            summary.failures.append(f"{where}: unhandled: {line[:500]}")
    try:
        plane.check_upstream()
        plane.check_meters()
    except AssertionError as error:
        summary.failures.append(f"{where}: {error}")
