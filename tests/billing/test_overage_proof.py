"""Overage under every fault: what finalized invoices bill is what the ledger says is owed, to the unit.

What is carried, written off or unbillable is in the account, and added up with what is billed it is what is owed.
A failure prints its seed; `python -m tests.billing.overage --seed N --trace` replays it.
"""

from __future__ import annotations

import sys

import pytest

from tests.billing.overage.runner import Summary, run_seed, run_seeds
from tests.billing.overage.scenario import CHANGES, READINGS, Options

SEEDS = range(50)
"""What less than half a minute of processor buys; thousands are run before each release (docs/overage.md)."""
JOBS = 2

REACHED = """
fault_lost_request fault_lost_answer fault_late fault_throttled fault_failed fault_failed_applied stripe_lost_request
stripe_lost_answer stripe_failed stripe_busy stripe_down all_down delayed landed_late_200 landed_late_400 second_copies
kills leases_ended late_events looks_again judged_windows overage_billed overage_reported overage_unbillable
"""


@pytest.mark.alone
@pytest.mark.slow
def test_invoices_bill_what_is_owed_whatever_happened(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary()
    summary.add_all(run_seeds(SEEDS, jobs=JOBS))

    with capsys.disabled():
        sys.stdout.write(f"\noverage: seeds {SEEDS.start}:{SEEDS.stop}, {summary.figures()}\n")
    assert summary.told_failures() == []
    steps = [f"did_{name}" for name, weight in CHANGES if weight > 2]
    assert [name for name in (*REACHED.split(), *steps) if not summary.seen[name]] == []


@pytest.mark.parametrize("last_by", READINGS)
def test_without_faults_each_invoice_bills_its_own_period(last_by: str) -> None:
    summary = Summary()
    summary.add_all(run_seeds(range(500, 504), Options(faults=False, last_by=last_by)))

    assert summary.failures == []
    assert summary.seen["judged_windows"] > 4
    for name in ("overage_corrected", "metric_OverageBilledOtherwise", "hourly_failed", "kills"):
        assert summary.seen[name] == 0, name


def test_one_integer_replays_a_run_event_by_event() -> None:
    first: list[str] = []
    second: list[str] = []
    run_seed(3, trace=first.append)
    run_seed(3, trace=second.append)

    assert len(first) > 100
    assert first == second
