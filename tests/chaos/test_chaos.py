"""The bounded part of `make chaos`: everything fails for half a minute, and the books hold.

A failure names the seed of its round: `python -m tests.chaos --only storm --rounds 1 --seed N --dry` replays its
calls, faults, kills and clocks; only how the processes interleave is the machine's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.chaos import scorecard
from tests.chaos.campaigns import Part, cut_calls, cuts, storm
from tests.chaos.plans import draw_call, skew_seconds, table_fates
from tests.chaos.shapes import LINE_ENDS, shape
from tests.support.recorded_streams import STREAMS

ROUNDS = 2
SLOTS = 10
CUT_STEP = 61
"""A prime, and not the same bytes in every line end."""

engine = [pytest.mark.engine, pytest.mark.slow, pytest.mark.alone]
REACHED = """
kills timeouts reserved settled swept top_ups tombstones commits_checked delivered_whole landed_after_the_sweep
table_lost_before_apply table_lost_after_apply table_duplicate table_duplicate_second_answer table_late
table_late_after_sweep table_throttled table_conflict table_failed table_failed_applied table_slow table_silent
upstream_reset upstream_cut upstream_ended upstream_hung_up upstream_garbage upstream_error_event
upstream_refused
"""


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module", params=[pytest.param("storm", marks=engine)])
def stormed(tmp_path_factory: pytest.TempPathFactory) -> Part:
    folder = tmp_path_factory.mktemp("storm")
    return storm(folder, 7, kills=10**9, faults=10**9, slots=SLOTS, most_rounds=ROUNDS, say=silent)


def test_in_a_storm_every_token_is_booked_once_and_nobody_waits(
    stormed: Part, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        figures = stormed.figures
        sys.stdout.write(
            f"\nchaos: {figures['calls']} calls, {figures['kills']} kills, {stormed.total('table_')} table faults,"
            f" {stormed.total('upstream_')} upstream faults, {stormed.seconds:.0f} s\n"
        )
    assert stormed.violations == []


def test_a_storm_meets_every_kind_of_misfortune(stormed: Part) -> None:
    assert [name for name in REACHED.split() if not stormed.figures[name]] == []


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.alone
def test_a_stream_cut_anywhere_is_booked_to_the_token(tmp_path: Path) -> None:
    part = cuts(tmp_path, 11, slots=6, step=CUT_STEP, say=silent)
    assert part.violations == []
    assert part.figures["cuts_checked"] == part.figures["stream_cuts"] > 300


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.alone
def test_the_books_notice_a_ledger_that_settles_twice(tmp_path: Path) -> None:
    part = storm(tmp_path, 0, kills=1, faults=1, slots=SLOTS, most_rounds=1, mutant="settle_twice", say=silent)
    assert part.kinds["billed_twice"]
    assert part.kinds["sums_wrong"]


def test_one_integer_gives_the_same_plan() -> None:
    def plan(seed: int) -> list[object]:
        calls = [draw_call(seed, slot, number) for slot in range(3) for number in range(20)]
        fates = [fates.next() for call in calls for fates in [table_fates(call)] for _ in range(5)]
        return [*calls, *fates, *(skew_seconds(seed, 0, number) for number in range(9))]

    assert plan(5) == plan(5)
    assert plan(5) != plan(6)


def test_a_whole_run_cuts_every_stream_after_every_byte() -> None:
    places = {(call.shape, call.line_end, call.at) for call in cut_calls(0, 1, LINE_ENDS)}
    assert places == {
        (name, line_end, position)
        for name in STREAMS
        for line_end in LINE_ENDS
        for position in range(len(shape(name, line_end).data) + 1)
    }
    assert len(places) > 10_000


def test_the_scorecard_keeps_what_another_part_was_run_to(tmp_path: Path) -> None:
    path = tmp_path / "chaos.json"
    part = Part("cuts", 3)
    part.figures["stream_cuts"] = 12_000
    scorecard.write(part, path)
    failed = Part("webhooks", 4)
    failed.found("webhook", "seed 9: x")
    scorecard.write(failed, path)
    card = json.loads(path.read_text())
    assert card["targets"]["stream_cuts"] == {"wanted": 10_000, "met": True}
    assert card["found"]["webhook_schedules_failed"] == 1
    assert card["counts"]["kills"] == 0
    assert "found: {'webhook_schedules_failed': 1}" in scorecard.summary(path)
