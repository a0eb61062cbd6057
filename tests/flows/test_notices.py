"""Passing a usage threshold: written down once, after the settlement, and made good when that failed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.ledger_world import START, a_plan
from tests.support.moto_table import CountedTable, moto_table
from tests.support.notices import ThresholdWorld
from tollgate.domain.notices import QuotaUnit
from tollgate.domain.plans import QuotaKind

SOFT = a_plan(quota_kind=QuotaKind.SOFT, overage_cap_tokens=100_000)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        yield table


@pytest.fixture
def world(table: CountedTable) -> ThresholdWorld:
    return ThresholdWorld(table)


def test_nothing_is_written_below_the_first_threshold(world: ThresholdWorld) -> None:
    world.use(749)
    assert world.percents == []


def test_a_threshold_is_noted_when_it_is_reached_exactly(world: ThresholdWorld) -> None:
    world.use(750)
    [stored] = world.stored
    assert (stored.notice.threshold_percent, stored.notice.share.used) == (75, 750)
    assert (stored.notice.share.quota, stored.notice.plan_id) == (1000, "test")
    assert stored.notice.noticed_at == START
    assert world.due == [timedelta(0)]


def test_a_jump_over_several_notes_each_and_marks_the_highest(world: ThresholdWorld) -> None:
    world.use(1000)
    assert [(stored.notice.threshold_percent, stored.notice.highest) for stored in world.stored] == [
        (75, False),
        (90, False),
        (100, True),
    ]


def test_each_is_noted_once_whatever_processes_see_it(table: CountedTable) -> None:
    world = ThresholdWorld(table, SOFT)
    world.use(800)
    first = world.stored
    for _ in range(3):
        world.thresholds = world.new_process()
        world.use(10)
    assert world.stored == first


def test_a_user_far_beyond_the_quota_costs_no_further_write(table: CountedTable) -> None:
    """Three puts a period and process, and none for the thousandth call of overage."""
    world = ThresholdWorld(table, SOFT)
    world.use(1200)
    assert table.calls["PutItem"] == 1 + 3  # the profile's
    for _ in range(20):
        world.use(100)
    assert table.calls["PutItem"] == 1 + 3


def test_a_process_that_died_after_the_settlement_is_made_good_by_the_next_one(world: ThresholdWorld) -> None:
    world.settle(760)
    assert world.percents == []
    world.use(10)
    assert world.percents == [75]


def test_a_table_that_does_not_answer_is_survived_and_asked_again(world: ThresholdWorld) -> None:
    with world.silence("PutItem"):
        world.use(800)
    assert [name for name, _ in world.reports.lines] == ["usage_threshold_not_noted"]
    assert world.percents == []
    world.use(10)
    assert world.percents == [75]


def test_the_next_period_begins_anew(world: ThresholdWorld) -> None:
    world.use(800)
    world.clock.seconds = datetime(2026, 12, 2, tzinfo=UTC).timestamp()
    world.use(800)
    assert [stored.notice.period.id for stored in world.stored] == ["2026-11", "2026-12"]


def test_a_larger_plan_lowers_the_share_and_what_was_noted_is_not_noted_again(world: ThresholdWorld) -> None:
    world.use(800)
    world.move_to(a_plan(id="large", quota_tokens=2_000))
    world.use(100)
    world.use(600)
    assert world.percents == [75]
    world.use(300)
    assert world.percents == [75, 90]
    assert world.stored[-1].notice.plan_id == "large"


def test_requests_have_thresholds_of_their_own(table: CountedTable) -> None:
    world = ThresholdWorld(table, a_plan(quota_tokens=None, quota_requests=4))
    for _ in range(3):
        world.use(100)
    [stored] = world.stored
    assert (stored.notice.share.unit, stored.notice.share.used) == (QuotaUnit.REQUESTS, 3)


def test_a_catalog_may_name_other_thresholds(world: ThresholdWorld) -> None:
    world.thresholds = world.new_process(50)
    world.use(1000)
    assert world.percents == [50]
