"""Every guard of a proof's code switched off, one at a time, by a patch of its source: each must be caught.

`before` must occur exactly once in the module, so a change of the code that moves a guard fails here and is looked at.
A mutant runs in a process of its own, in which the patched module is loaded in place of the real one.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import multiprocessing.connection
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

from tests.support.seeded_runs import forkserver

if TYPE_CHECKING:
    from tests.support.seeded_runs import Outcome

_CORE = Path(__file__).resolve().parents[2] / "layers" / "core"
_OURS = ("tollgate", "dev", "tests")
"""Packages whose modules hold on to what a mutant replaces."""


@dataclass(frozen=True, slots=True)
class Edit:
    """`before` becomes `after` in one function (or assignment) of a module, where it must stand exactly once."""

    where: str
    """How the definition begins: `def settle(`, `_RESERVE_IF: `."""
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One guard switched off."""

    name: str
    module: str
    edits: tuple[Edit, ...]
    seeds: int
    """It is caught within this many seeds, beginning with `first_seed`."""
    survives_because: str = ""
    """Why hardly any seed or none catches it; empty: it must be caught."""
    first_seed: int = 0
    """For the rare ones shortly before a seed that catches it: a hint that saves time, not a promise."""


def one_edit(name: str, module: str, where: str, before: str, after: str, seeds: int) -> Mutant:
    """The usual one."""
    return Mutant(name, module, (Edit(where, before, after),), seeds)


# ---- applying one


def patched_source(mutant: Mutant) -> str:
    """The module's text with the edits made. ValueError when one of them no longer fits."""
    text = _path_of(mutant.module).read_text()
    for edit in mutant.edits:
        begin, end = _scope(text, edit.where)
        scope = text[begin:end]
        if scope.count(edit.before) != 1:
            found = scope.count(edit.before)
            raise ValueError(f"mutant {mutant.name!r}: found {found} times in {edit.where!r}: {edit.before!r}")
        text = text[:begin] + scope.replace(edit.before, edit.after) + text[end:]
    return text


def _scope(text: str, where: str) -> tuple[int, int]:
    """From the line that begins with `where` to the next definition of its depth or less."""
    starts = list(re.finditer(rf"^( *){re.escape(where)}", text, re.MULTILINE))
    if len(starts) != 1:
        raise ValueError(f"{len(starts)} definitions begin with {where!r}")
    depth = len(starts[0].group(1))
    following = re.compile(rf"^ {{0,{depth}}}[^\s)\]}}]", re.MULTILINE).search(text, starts[0].end())
    return starts[0].start(), following.start() if following else len(text)


def _path_of(module: str) -> Path:
    return _CORE / Path(*module.split(".")).with_suffix(".py")


class _Loader(importlib.abc.InspectLoader):
    def __init__(self, module: str, source: str) -> None:
        self._module = module
        self._source = source

    def get_source(self, fullname: str) -> str:
        return self._source

    def get_code(self, fullname: str) -> CodeType | None:
        return compile(self._source, f"<mutant of {self._module}>", "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._module = mutant.module
        self._loader = _Loader(mutant.module, patched_source(mutant))

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        return importlib.util.spec_from_loader(fullname, self._loader)


def become(mutant: Mutant) -> None:
    """From now on this process has the mutant's module. Only for a process that ends after it."""
    for name in [name for name in sys.modules if name.split(".")[0] in _OURS and name != __name__]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Finder(mutant))


# ---- running them


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant."""

    mutant: Mutant
    seeds: int
    """Seeds run."""
    caught: int
    """By how many of them."""
    first_seed: int | None
    kinds: dict[str, int]
    """Kind of violation to seeds that showed it."""

    @property
    def right(self) -> bool:
        return bool(self.caught or self.mutant.survives_because)


def try_mutants(
    mutants: tuple[Mutant, ...], runner: str, *, jobs: int, full_seeds: int | None = None
) -> Iterator[Verdict]:
    """Each in its own process, `jobs` at a time; up to its first catch, or through `full_seeds` seeds from 0.

    `runner`: the module whose `run_seed` looks for violations.
    """
    for mutant in mutants:
        patched_source(mutant)  # here, where its error is seen
    context = forkserver(runner)
    waiting = list(reversed(mutants))
    running: list[tuple[Mutant, Connection]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            context.Process(target=_run_mutant, args=(mutant, runner, full_seeds, sender), daemon=True).start()
            sender.close()
            running.append((mutant, receiver))
        ready = multiprocessing.connection.wait([receiver for _, receiver in running])
        for mutant, receiver in [entry for entry in running if entry[1] in ready]:
            running.remove((mutant, receiver))
            with receiver:
                yield Verdict(mutant, *receiver.recv())


def _run_mutant(mutant: Mutant, runner: str, full_seeds: int | None, sender: Connection) -> None:
    become(mutant)
    run_seed = importlib.import_module(runner).run_seed
    first_seed, count = (mutant.first_seed, mutant.seeds) if full_seeds is None else (0, full_seeds)
    kinds: Counter[str] = Counter()
    caught: list[int] = []
    seeds = 0
    for seed in range(first_seed, first_seed + count):
        # A crash alone may only say that the patch does not run, and so may an error that ends the run: without its
        # guard, an update may count down a number that is gone already.
        found: set[str] = set()
        with suppress(Exception):
            outcome: Outcome = run_seed(seed)
            found = {violation.kind for violation in outcome.violations} - {"crash"}
        seeds += 1
        kinds.update(found)
        caught += [seed] if found else []
        if found and full_seeds is None:
            break
    sender.send((seeds, len(caught), next(iter(caught), None), dict(sorted(kinds.items()))))
    sender.close()
