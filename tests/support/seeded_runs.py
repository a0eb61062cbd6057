"""Runs of a proof, each by its seed: over processes, and what they found and reached added up."""

from __future__ import annotations

import multiprocessing
import os
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running


@dataclass(frozen=True, slots=True)
class Violation:
    kind: str
    at: float
    message: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.at:.3f}: {self.message}"


@dataclass(slots=True)
class Outcome:
    seed: int
    violations: list[Violation]
    seen: Counter[str]
    """How often what happened."""
    most: Counter[str] = field(default_factory=Counter)
    """The largest of what only grows and shrinks."""


@dataclass(slots=True)
class Summary(ABC):
    """Many runs added up."""

    runs: int = 0
    failures: list[tuple[int, Violation]] = field(default_factory=list)
    """(seed, first violation)."""
    seen: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.seen.update(outcome.seen)
        self.most |= outcome.most
        if outcome.violations:
            self.failures.append((outcome.seed, outcome.violations[0]))

    def add_all(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self.add(outcome)

    @abstractmethod
    def figures(self) -> str:
        """One line for people."""

    def told_failures(self) -> list[str]:
        """By seed."""
        return [f"seed {seed}: {violation}" for seed, violation in sorted(self.failures, key=lambda one: one[0])]

    def sum_of(self, *beginnings: str) -> int:
        """Of all that was seen under names that begin so."""
        return sum(number for name, number in self.seen.items() if name.startswith(beginnings))


def over_processes(
    run: Callable[[int], Outcome], seeds: Iterable[int], *, jobs: int, chunk: int, preload: str
) -> Iterator[Outcome]:
    """Outcomes in any order, over `jobs` processes that begin with the module `preload`."""
    if jobs == 1:
        yield from map(run, seeds)
        return
    with forkserver(preload).Pool(jobs) as pool:
        yield from pool.imap_unordered(run, seeds, chunksize=chunk)


def forkserver(preload: str) -> ForkServerContext:
    """Starts processes that have this module already, unless the server runs for another one: then they load it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    # It starts with the paths of the environment only, and says nothing when it cannot find what to load.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context
