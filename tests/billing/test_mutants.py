"""The mutation table: each guard of the webhooks, switched off by a patch of its source, is caught by the schedules."""

from __future__ import annotations

import pytest

from tests.billing.mutants import MUTANTS, try_mutants
from tests.simulation.mutants import Mutant, patched_source

JOBS = 2
QUICK = 30
"""Guards that this many seeds are enough for are tried each time; `python -m tests.billing --mutants` tries all."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_patch_still_fits_its_source(mutant: Mutant) -> None:
    """A guard that was moved or reworded fails here, so nobody can drop one unnoticed."""
    compile(patched_source(mutant), mutant.module, "exec")


@pytest.mark.alone
@pytest.mark.slow
def test_each_guard_switched_off_is_caught() -> None:
    quick = tuple(mutant for mutant in MUTANTS if mutant.seeds <= QUICK)
    verdicts = list(try_mutants(quick, jobs=JOBS))

    assert len(verdicts) >= len(MUTANTS) // 2
    assert [verdict.mutant.name for verdict in verdicts if verdict.first_seed is None] == []
