"""The real ledger and relay under every fault of the model: nothing lost, nothing twice, nothing beyond the quota.

A failure prints its seed; `python -m tests.simulation --seed N --trace` replays it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.runner import Summary, run_seed, run_seeds
from tests.simulation.scenario import Options
from tollgate.domain.plans import ExpiryPolicy

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(15_000, 20_000)
"""A minute and a half of processor, which reaches even the rarest below; `make simulate` runs a hundred thousand."""
JOBS = 2

REACHED = {
    "messages": (
        "fault_lost_request fault_lost_answer fault_late fault_throttled fault_failed fault_failed_applied"
        " fault_conflict db_unanswered db_answered_after_retry"
    ),
    "processes": "kill_sigkill kill_deadline freezes stalled_before_settling soft_deadline id_collisions",
    "upstream": "upstream_refused upstream_not_reached upstream_lost_before_head upstream_cut prompt_above_bound",
    "refusals": (
        "refused_quota refused_requests refused_rate_limited refused_from_memory refused_too_many_streams"
        " refused_contention refused_duplicate_request refused_idempotency_key_reused refused_store"
    ),
    "the ledger": (
        "reserved reserved_after_the_end clamped settled released settled_twice settled_late late_corrections"
        " swept swept_running swept_dead swept_done tombstones tombstones_dropped settle_unanswered"
        " top_ups top_up_granted top_up_refused top_up_unanswered slices stopped_for_quota rate_idle rate_busy"
    ),
    "pools": "pool_taken refused_pool",
    "plans": (
        "meters_created meters_resized meters_carried meters_left meters_found_again periods_moved plan_changes"
        " plan_change_raced plan_change_superseded stale_account overage_choices own_caps overage_banked"
        " downgrades_below_use"
    ),
    "the relay": (
        "relayed_complete relayed_truncated relayed_upstream_error relayed_deadline relayed_over_quota"
        " relayed_refused records"
    ),
}


@pytest.mark.alone
@pytest.mark.slow
def test_the_ledger_holds_under_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary()
    for outcome in run_seeds(SEEDS, jobs=JOBS):
        summary.add(outcome)

    with capsys.disabled():
        sys.stdout.write(f"\nsimulation: seeds {SEEDS.start}:{SEEDS.stop}, {summary.figures()}\n")
    failures = [f"seed {seed}: {violation}" for seed, violation in sorted(summary.failures, key=lambda one: one[0])]
    assert failures == []
    assert [name for names in REACHED.values() for name in names.split() if not summary.seen[name]] == []
    assert summary.largest_item > 1024, "meters that cost two write units were not reached"
    assert summary.most_open > 27, "more open reservations than fit into 1 KB were not reached"


@pytest.mark.parametrize("policy", ExpiryPolicy)
@pytest.mark.parametrize("adversarial", [False, True])
def test_each_expiry_policy_holds_also_when_functions_outlive_their_deadline(
    policy: ExpiryPolicy, adversarial: bool
) -> None:
    options = Options(policy=policy, adversarial=adversarial)

    assert [outcome.violations for outcome in run_seeds(range(40), options) if outcome.violations] == []


def test_healthy_traffic_needs_no_tombstone_no_sweep_and_no_second_write() -> None:
    summary = Summary()
    for outcome in run_seeds(range(150), Options(faults=False)):
        summary.add(outcome)

    assert summary.failures == []
    assert summary.seen["settled"] > 500
    for name in ("tombstones", "swept", "late_corrections", "refused_store", "refused_contention", "settle_unanswered"):
        assert summary.seen[name] == 0, name


@pytest.mark.parametrize("seed", [3, 11])
def test_one_integer_replays_a_run_event_by_event(seed: int) -> None:
    first: list[str] = []
    second: list[str] = []
    run_seed(seed, trace=first.append)
    run_seed(seed, trace=second.append)

    assert len(first) > 20
    assert first == second


def test_a_run_is_the_same_in_another_process() -> None:
    """Nothing depends on the hash seed, the process or what ran before."""

    def output(hash_seed: str) -> str:
        command = [sys.executable, "-m", "tests.simulation", "--seed", "17", "--trace"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    assert output("1") == output("2")


def test_different_seeds_give_different_runs() -> None:
    traces = []
    for seed in (21, 22):
        lines: list[str] = []
        run_seed(seed, trace=lines.append)
        traces.append(lines)

    assert traces[0] != traces[1]
