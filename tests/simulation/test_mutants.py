"""The mutation table: each guard of the ledger, switched off by a patch of its source, is caught by the simulation.

The bounded form here runs each mutant from a seed before one that is known to catch it; `python -m tests.simulation
--mutants` runs all from seed 0, through as many seeds as are asked for.
"""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS
from tests.support.mutants import Mutant, patched_source, try_mutants

JOBS = 2


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_patch_still_fits_its_source(mutant: Mutant) -> None:
    """A guard that was moved or reworded fails here, so nobody can drop one unnoticed."""
    compile(patched_source(mutant), mutant.module, "exec")


def test_a_patch_that_no_longer_fits_is_refused() -> None:
    mutant = MUTANTS[0]
    gone = Mutant(mutant.name, mutant.module, (type(mutant.edits[0])("_RESERVE_IF: ", "no such text", ""),), 1)

    with pytest.raises(ValueError, match="found 0 times"):
        patched_source(gone)


def test_survivors_are_few_and_each_has_its_reason() -> None:
    survivors = [mutant for mutant in MUTANTS if mutant.survives_because]

    assert len(survivors) <= len(MUTANTS) // 4
    assert all(len(mutant.survives_because) > 20 for mutant in survivors)


@pytest.mark.alone
@pytest.mark.slow
def test_each_guard_switched_off_is_caught() -> None:
    mutants = tuple(mutant for mutant in MUTANTS if not mutant.survives_because)
    verdicts = list(try_mutants(mutants, "tests.simulation.runner", jobs=JOBS))

    assert len(verdicts) == len(mutants)
    assert [verdict.mutant.name for verdict in verdicts if not verdict.caught] == []
