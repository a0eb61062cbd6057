"""The mutation tables: each guard switched off by a patch of its source is caught, by webhook or overage schedules."""

from __future__ import annotations

import pytest

from tests.billing import mutants as webhooks
from tests.billing.overage import mutants as overage
from tests.support.mutants import Mutant, patched_source, try_mutants

JOBS = 2
QUICK = 30
"""Guards that this many seeds are enough for are tried each time; `python -m tests.billing --mutants` tries all."""
TABLES = {"tests.billing": webhooks.MUTANTS, "tests.billing.overage": overage.MUTANTS}


@pytest.mark.parametrize("mutant", [*webhooks.MUTANTS, *overage.MUTANTS], ids=lambda mutant: mutant.name)
def test_every_patch_still_fits_its_source(mutant: Mutant) -> None:
    """A guard that was moved or reworded fails here, so nobody can drop one unnoticed."""
    compile(patched_source(mutant), mutant.module, "exec")


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(("command", "least"), [("tests.billing", 10), ("tests.billing.overage", 3)])
def test_each_guard_switched_off_is_caught(command: str, least: int) -> None:
    quick = tuple(mutant for mutant in TABLES[command] if mutant.seeds <= QUICK)
    verdicts = list(try_mutants(quick, f"{command}.runner", jobs=JOBS))

    assert len(verdicts) >= least
    assert [verdict.mutant.name for verdict in verdicts if not verdict.caught] == []
