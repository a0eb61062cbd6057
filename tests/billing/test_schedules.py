"""Webhook schedules under every fault: entitlements end up as Stripe's books say, and each effect happens once.

A failure prints its seed; `python -m tests.billing --seed N --trace` replays it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.billing.runner import Summary, run_seed, run_seeds
from tests.billing.scenario import SUBSCRIBED, Options

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(300)
"""What half a minute of processor buys; ten thousand are run before each release (docs/billing-webhooks.md)."""
JOBS = 2

REACHED = """
fault_lost_request fault_lost_answer fault_late fault_throttled fault_failed fault_failed_applied
fault_conflict stripe_lost_request stripe_lost_answer stripe_failed stripe_busy queue_lost_request
queue_lost_answer kills timeouts leases_ended thin answered_conflict answered_store_unavailable
answered_stripe_unavailable stripe_event_duplicate stripe_event_handled stripe_event_ignored
second_subscription_ended payment_failed payment_disputed dispute_closed payment_returned fraud_warning
subscription_ended trial_will_end projections calls_settled meters
"""


@pytest.mark.alone
@pytest.mark.slow
def test_entitlements_are_right_in_the_end_whatever_happened(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary()
    summary.add_all(run_seeds(SEEDS, jobs=JOBS))

    with capsys.disabled():
        sys.stdout.write(f"\nwebhooks: seeds {SEEDS.start}:{SEEDS.stop}, {summary.figures()}\n")
    assert summary.told_failures() == []
    steps = [f"did_{name}" for name, _ in SUBSCRIBED]
    assert [name for name in (*REACHED.split(), *steps) if not summary.seen[name]] == []


def test_without_faults_only_a_crowd_at_one_subscriber_sends_a_delivery_back() -> None:
    """Each of a dozen at once looks at Stripe anew when another was first; after six rounds Stripe is to come again."""
    summary = Summary()
    summary.add_all(run_seeds(range(12), Options(faults=False, adversarial=False)))

    assert summary.failures == []
    assert summary.seen["projections"] > 100
    assert summary.seen["answered_store_unavailable"] * 50 <= summary.seen["deliveries"]
    for name in ("answered_stripe_unavailable", "hourly_failed", "redriven", "kills"):
        assert summary.seen[name] == 0, name


def test_functions_that_outlive_their_lease_do_no_harm() -> None:
    outcomes = run_seeds(range(1000, 1012), Options(adversarial=True))

    assert [(outcome.seed, outcome.violations) for outcome in outcomes if outcome.violations] == []


def test_one_integer_replays_a_run_event_by_event() -> None:
    first: list[str] = []
    second: list[str] = []
    run_seed(3, trace=first.append)
    run_seed(3, trace=second.append)

    assert len(first) > 100
    assert first == second


def test_a_run_is_the_same_in_another_process() -> None:
    """Nothing depends on the hash seed, the process or what ran before."""

    def output(hash_seed: str) -> str:
        command = [sys.executable, "-m", "tests.billing", "--seed", "5", "--trace"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    assert output("1") == output("2")
