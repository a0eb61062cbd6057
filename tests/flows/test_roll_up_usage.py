"""Days of use: exact to now, each record once, whatever is late, doubled or dies."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta

import pytest

from tests.flows.test_relay_message import COMPLETE, World
from tests.support.fake_upstream import FakeUpstream
from tests.support.ledger_world import Counting
from tests.support.request_records import CATALOG, HAIKU, NOW, SONNET, UsageWorld, a_record
from tests.support.scripted_dynamodb import Fate
from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.plans import ExpiryPolicy
from tollgate.domain.rollups import RowKind, Sums, total
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.roll_up_usage import (
    LONGEST_CALL_SECONDS,
    ROLL_UP_LAG_SECONDS,
    WORTH_ROLLING_UP,
    RecordsGoneError,
    UsageRollUps,
)
from tollgate.storage.requests import RequestOutcome, Requests
from tollgate.storage.rollups import DayRollUps

TODAY = NOW.date()
YESTERDAY = TODAY - timedelta(days=1)
LATEST_SECONDS = LONGEST_CALL_SECONDS + 15 * 60
"""After its begin, a record can land this late: the longest call, then the longest way of its last request."""


def test_no_use_is_no_rows_and_writes_nothing() -> None:
    world = UsageWorld()
    assert world.days(date(2026, 1, 1), TODAY) == {}
    assert list(world.memory.items()) == []


def test_a_call_is_in_its_day_as_soon_as_its_record_is_there() -> None:
    world = UsageWorld()
    world.put(a_record(NOW - timedelta(seconds=1)), a_record(NOW - timedelta(days=1)))
    assert world.days(YESTERDAY, TODAY) == {YESTERDAY: 150, TODAY: 150}


def test_a_day_begins_and_ends_at_midnight_utc() -> None:
    world = UsageWorld()
    midnight = datetime(2026, 11, 19, tzinfo=UTC)
    instants = [midnight - timedelta(microseconds=1), midnight, midnight + timedelta(microseconds=1)]
    world.put(*(a_record(instant) for instant in instants))
    expected = {date(2026, 11, 18): 150, date(2026, 11, 19): 300}
    assert world.days(date(2026, 11, 18), TODAY) == expected
    assert world.days(date(2026, 11, 18), TODAY) == expected


def test_figures_are_kept_by_everything_that_reports_group_by() -> None:
    world = UsageWorld()
    yesterday = NOW - timedelta(days=1)
    world.put(
        a_record(yesterday, counts=TokenCounts(10, 5, 3, 2, 1), web_searches=2, web_fetches=1),
        a_record(yesterday + timedelta(seconds=1), model=SONNET, credential_id="key_2", speed="fast"),
        a_record(yesterday + timedelta(seconds=2), period_id="2026-11-15T103000Z", inference_geo="us"),
        a_record(yesterday + timedelta(seconds=3), prompt_tokens=200_001, outcome=RequestOutcome.DEADLINE),
    )
    rows = world.roll_ups.days("main", "u1", YESTERDAY, TODAY).rows[YESTERDAY]
    world.forget_records()
    assert world.roll_ups.days("main", "u1", YESTERDAY, TODAY).rows[YESTERDAY] == rows
    assert {(key.model, key.key_id, key.speed, key.inference_geo, key.period_id, key.long_prompt) for key in rows} == {
        (HAIKU, "key_1", None, None, "2026-11", False),
        (SONNET, "key_2", "fast", None, "2026-11", False),
        (HAIKU, "key_1", None, "us", "2026-11-15T103000Z", False),
        (HAIKU, "key_1", None, None, "2026-11", True),
    }
    [first] = [sums for sums in rows.values() if sums.web_searches]
    assert (first.counts, first.web_fetches, first.outcomes) == (TokenCounts(10, 5, 3, 2, 1), 1, {"complete": 1})
    assert first.unexplained_picousd == 0
    assert first.web_search_picousd > 0


def test_a_cost_that_one_price_does_not_explain_is_not_split_and_not_lost() -> None:
    """Several models may have worked on one answer."""
    world = UsageWorld()
    world.put(a_record(NOW, cost_picousd=1_234_567))
    [sums] = world.roll_ups.days("main", "u1", TODAY, TODAY).rows[TODAY].values()
    assert (sums.cost_picousd, sums.unexplained_picousd) == (1_234_567, 1_234_567)


def test_every_outcome_that_leaves_a_record_is_counted_by_name() -> None:
    names = {outcome.value for outcome in RequestOutcome} - {RequestOutcome.REFUSED.value}
    for name in names:
        assert Sums(**{name: 1}).outcomes == {name: 1}


def test_a_year_of_days_costs_four_reads_and_no_write() -> None:
    """However many days there are: the mark, the days, the expired reservations, the records since the mark."""
    world = UsageWorld()
    world.put(*(a_record(NOW - timedelta(days=day)) for day in range(1, 60)))
    world.days(TODAY - timedelta(days=365), TODAY)
    world.client.calls.clear()
    world.days(TODAY - timedelta(days=365), TODAY)
    assert world.client.calls == ["GetItem", "Query", "Query", "Query"]


# --- Watermarks


@pytest.mark.parametrize("early_seconds", [-1, 0, 1])
def test_a_record_that_lands_as_late_as_it_can_is_counted(early_seconds: int) -> None:
    """Whenever the roll-up ran before: nothing so young is behind a watermark."""
    world = UsageWorld()
    began_at = world.now
    world.put(a_record(began_at - timedelta(hours=5)))
    world.advance(seconds=LATEST_SECONDS - early_seconds)
    world.roll_ups.roll_up_days("main", "u1")
    world.put(a_record(began_at))
    world.advance(days=1)
    assert world.days(TODAY, TODAY) == {TODAY: 300}
    world.roll_ups.roll_up_days("main", "u1")
    world.forget_records()
    assert world.days(TODAY, TODAY) == {TODAY: 300}


@pytest.mark.parametrize(("age_seconds", "rolled_up"), [(-1, False), (0, False), (1, True)])
def test_only_what_is_old_enough_is_rolled_up(age_seconds: int, rolled_up: bool) -> None:
    world = UsageWorld()
    world.put(a_record(NOW - timedelta(seconds=ROLL_UP_LAG_SECONDS + age_seconds)))
    rolled = world.roll_ups.roll_up_days("main", "u1")
    assert (rolled.records, rolled.complete) == (int(rolled_up), True)
    assert rolled.through_at == NOW - timedelta(seconds=ROLL_UP_LAG_SECONDS)


def test_rolling_up_again_changes_nothing() -> None:
    world = UsageWorld()
    world.put(*(a_record(NOW - timedelta(hours=hour)) for hour in range(1, 60)))
    world.roll_ups.roll_up_days("main", "u1")
    before = sorted((sk, str(item)) for _, sk, item in world.memory.items())
    for _ in range(3):
        assert world.roll_ups.roll_up_days("main", "u1").records == 0
    assert sorted((sk, str(item)) for _, sk, item in world.memory.items()) == before


@pytest.mark.parametrize("hours_later", [0, 3])
def test_a_run_killed_at_any_call_and_run_again_counts_each_record_once(hours_later: int) -> None:
    expected = {date(2026, 11, 18): 150 * 12, date(2026, 11, 19): 150 * 24, TODAY: 150 * 12}
    for call in range(12):
        for fate in (Fate.NEVER_ARRIVED, Fate.APPLIED_NEVER_ANSWERED):
            world = UsageWorld()
            world.put(*(a_record(NOW - timedelta(hours=hour)) for hour in range(1, 49)))
            world.client.next_calls(*[Fate.FINE] * call, fate)
            try:
                world.roll_ups.roll_up_days("main", "u1")
            except StoreUnavailableError:
                assert world.days(date(2026, 11, 18), TODAY) == expected, call
            world.client.heal()
            world.advance(hours=hours_later)
            world.roll_ups.roll_up_days("main", "u1")
            world.advance(days=2)
            world.roll_ups.roll_up_days("main", "u1")
            world.forget_records()
            assert world.days(date(2026, 11, 18), TODAY) == expected, call


def test_a_run_that_another_overtakes_counts_nothing_twice() -> None:
    """The other one comes between any two of its calls."""
    for call in range(1, 12):
        world = UsageWorld()
        world.put(*(a_record(NOW - timedelta(hours=hour)) for hour in range(1, 49)))
        _interrupt(world, call, lambda world=world: world.new_roll_ups().roll_up_days("main", "u1"))
        world.roll_ups.roll_up_days("main", "u1")
        world.advance(days=2)
        world.roll_ups.roll_up_days("main", "u1")
        world.forget_records()
        assert sum(world.days(date(2026, 11, 18), TODAY).values()) == 150 * 48, call


def _interrupt(world: UsageWorld, call: int, doing) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Let something happen before the given call from now on."""
    plain, left = world.client._call, [call]

    def counted(operation: str, request: dict[str, object]) -> object:
        left[0] -= 1
        if left[0] == 0:
            doing()
        return plain(operation, request)

    world.client._call = counted  # type: ignore[method-assign,assignment]


def test_what_is_read_in_one_go_is_bounded_and_the_next_run_goes_on() -> None:
    world = UsageWorld()
    world.put(*(a_record(NOW - timedelta(minutes=40 + minute)) for minute in range(100)))
    small = world.new_roll_ups(records_at_most=30)
    runs = [small.roll_up_days("main", "u1") for _ in range(4)]
    assert [(run.records, run.complete) for run in runs] == [(30, False), (30, False), (30, False), (10, True)]
    assert world.days(TODAY, TODAY) == {TODAY: 150 * 100}


def test_records_of_one_instant_are_not_torn_apart_by_a_bound() -> None:
    world = UsageWorld()
    began_at = NOW - timedelta(hours=1)
    world.put(*(a_record(began_at, request_id=f"req_{number}") for number in range(5)))
    world.put(a_record(began_at + timedelta(seconds=1)))
    small = world.new_roll_ups(records_at_most=2)
    assert [small.roll_up_days("main", "u1").records for _ in range(2)] == [5, 1]
    assert world.days(TODAY, TODAY) == {TODAY: 900}


def test_a_deadline_ends_a_run_between_two_days() -> None:
    world = UsageWorld()
    world.put(*(a_record(NOW - timedelta(days=day)) for day in range(1, 5)))
    run = world.roll_ups.roll_up_days("main", "u1", deadline_at_seconds=world.seconds)
    assert (run.records, run.complete) == (0, False)
    assert world.roll_ups.roll_up_days("main", "u1", deadline_at_seconds=world.seconds + 1).complete


def test_more_than_one_go_can_read_is_told_as_not_exact() -> None:
    world = UsageWorld()
    world.put(*(a_record(NOW - timedelta(seconds=second)) for second in range(1, 11)))
    use = world.new_roll_ups(records_at_most=4).days("main", "u1", TODAY, TODAY)
    assert not use.exact
    assert use.counted_through_at == NOW - timedelta(seconds=6)
    assert total(use.rows[TODAY].values()).requests == 4


def test_looking_rolls_up_whole_days_and_a_running_one_when_it_is_worth_it() -> None:
    world = UsageWorld()
    world.put(a_record(NOW - timedelta(days=1)), a_record(NOW - timedelta(hours=1)))
    world.days(TODAY, TODAY)
    assert [rolled.day for rolled in world.stored.list_days("main", "u1", YESTERDAY, TODAY)] == [YESTERDAY]
    world.put(*(a_record(NOW - timedelta(hours=1, milliseconds=number)) for number in range(WORTH_ROLLING_UP)))
    before = world.days(TODAY, TODAY)
    assert [rolled.day for rolled in world.stored.list_days("main", "u1", YESTERDAY, TODAY)] == [YESTERDAY, TODAY]
    assert world.days(TODAY, TODAY) == before


# --- Calls whose end the ledger did not answer


def test_a_crashed_call_has_a_row_of_its_own_on_the_day_it_was_found() -> None:
    world = UsageWorld()
    world.put(a_record(NOW - timedelta(days=1)))
    world.put_expired(NOW - timedelta(days=1, hours=1), reservation="r2")
    for _ in range(2):
        rows = world.roll_ups.days("main", "u1", YESTERDAY, TODAY).rows[YESTERDAY]
        [expired] = [sums for key, sums in rows.items() if key.kind is RowKind.EXPIRED]
        assert expired == Sums(requests=1, charged_tokens=300, written_off_tokens=400, expired=1)
        world.forget_records()


def test_a_crashed_call_is_there_before_its_day_is_over_and_a_correction_replaces_it() -> None:
    world = UsageWorld()
    world.put_expired(NOW - timedelta(minutes=10))
    assert world.days(TODAY, TODAY) == {TODAY: 300}
    world.roll_ups.roll_up_days("main", "u1")
    world.put_expired(NOW - timedelta(minutes=10), outcome="corrected", charged=120, written_off=0)
    world.put(a_record(NOW - timedelta(minutes=21), charged_tokens=120))
    assert world.days(TODAY, TODAY) == {TODAY: 120}
    rows = world.roll_ups.days("main", "u1", TODAY, TODAY).rows[TODAY]
    assert total(rows.values()).corrected == 1
    world.advance(days=2)
    world.roll_ups.roll_up_days("main", "u1")
    world.forget_records()
    assert world.days(TODAY, TODAY) == {TODAY: 120}


@pytest.mark.parametrize("hours_ago", [1, 11, 13])
def test_a_crashed_call_of_a_user_who_never_came_back_is_kept(hours_ago: int) -> None:
    """The last run before its record went was on the very day of the sweep, or before midnight."""
    world = UsageWorld()
    world.put(a_record(NOW - timedelta(hours=14)))
    world.put_expired(NOW - timedelta(hours=hours_ago))
    world.roll_ups.roll_up_days("main", "u1", until=NOW - timedelta(hours=12, minutes=5))
    expected = world.days(YESTERDAY, TODAY)
    assert sum(expected.values()) == 450
    world.forget_records()
    world.advance(days=91)
    assert world.days(YESTERDAY, TODAY) == expected


def unsettled(policy: ExpiryPolicy, *fates: Fate) -> tuple[World, UsageRollUps]:
    """A call whose settlement the table never answered, and roll-ups of it half a day later."""
    upstream = FakeUpstream()
    world = World(upstream, expiry_policy=policy)
    upstream.says(*COMPLETE[:-1], lambda: world.client.next_calls(*fates), COMPLETE[-1])
    world.send()
    assert "settlement_left_to_sweep" in world.journal.names
    world.client.heal()
    table = world.meters._table
    world.seconds += 12 * 3600
    return world, UsageRollUps(Requests(table), DayRollUps(table), world.meters, CATALOG, world, Counting())


UNANSWERED = 2
"""Tries of a settlement; see SETTLE_TRIES."""


def _agree(world: World, roll_ups: UsageRollUps) -> None:
    use, meter = roll_ups.period_use("main", "u1", world.key.period), world.meter
    assert use.exact
    assert use.booked.charged_tokens == meter.settled_tokens
    assert use.booked.written_off_tokens == meter.written_off_tokens
    assert use.booked.counts == meter.counts
    assert use.booked.cost_picousd == meter.cost_picousd
    assert use.booked.requests == meter.settled_requests


@pytest.mark.parametrize("policy", ExpiryPolicy)
def test_a_call_whose_settlement_was_left_to_the_sweep_is_charged_once(policy: ExpiryPolicy) -> None:
    """Its tokens and cost are told as unbooked, its charge with the expired ones."""
    world, roll_ups = unsettled(policy, *[Fate.NEVER_ARRIVED] * UNANSWERED)
    held = roll_ups.roll_up_days("main", "u1")
    assert (held.records, held.complete) == (0, False), "nobody knows yet what it will be charged"
    use = roll_ups.period_use("main", "u1", world.key.period)
    assert (use.booked, use.unbooked.requests, use.unbooked.charged_tokens) == (Sums(), 1, 0)
    world.ledger.sweep(world.meter, policy)
    _agree(world, roll_ups)
    assert roll_ups.roll_up_days("main", "u1").complete
    _agree(world, roll_ups)
    use = roll_ups.period_use("main", "u1", world.key.period)
    assert (use.expired.requests, use.unbooked.requests) == (1, 1)
    assert (use.unbooked.counts, use.unbooked.charged_tokens) == (TokenCounts(10, 7), 0)


def test_a_settlement_that_landed_without_an_answer_is_what_the_record_says() -> None:
    world, roll_ups = unsettled(ExpiryPolicy.STRICT, Fate.NEVER_ARRIVED, Fate.APPLIED_NEVER_ANSWERED)
    for _ in range(2):
        _agree(world, roll_ups)
        use = roll_ups.period_use("main", "u1", world.key.period)
        assert (use.requests.charged_tokens, use.unbooked) == (17, Sums())
        assert roll_ups.roll_up_days("main", "u1").complete


# --- Periods


def test_a_day_of_two_usage_periods_belongs_to_both() -> None:
    """The meter that was charged decides, not the clock: a stream is billed in the period that admitted it."""
    world = World(FakeUpstream())
    period = world.key.period
    usage = UsageWorld(period.end_at + timedelta(hours=6))
    usage.put(
        a_record(period.start_at - timedelta(seconds=2), charged_tokens=1, period_id=period.id),
        a_record(period.start_at - timedelta(seconds=1), charged_tokens=10, period_id="2026-10"),
        a_record(period.end_at - timedelta(seconds=1), charged_tokens=100, period_id=period.id),
        a_record(period.end_at, charged_tokens=1_000, period_id="2026-12"),
    )
    usage.put_expired(period.end_at + timedelta(hours=1), period=period.id, charged=10_000)
    usage.put_expired(period.end_at + timedelta(hours=1), period="2026-12", charged=100_000)
    use = usage.roll_ups.period_use("main", "u1", period)
    assert (use.requests.charged_tokens, use.expired.charged_tokens) == (101, 10_000)


# --- Rebuilding


def test_a_day_made_anew_from_its_records_heals_whatever_was_wrong() -> None:
    world = UsageWorld()
    world.put(*(a_record(NOW - timedelta(days=1, minutes=minute)) for minute in range(10)))
    world.put_expired(NOW - timedelta(days=1), reservation="r9")
    world.roll_ups.roll_up_days("main", "u1")
    right = world.roll_ups.days("main", "u1", YESTERDAY, YESTERDAY).rows
    world.put(a_record(NOW - timedelta(days=1, seconds=30)))  # later than anything can be
    assert world.roll_ups.days("main", "u1", YESTERDAY, YESTERDAY).rows == right
    rebuilt = world.roll_ups.rebuild_day("main", "u1", YESTERDAY)
    assert (rebuilt.records, rebuilt.complete) == (11, True)
    assert world.days(YESTERDAY, YESTERDAY) == {YESTERDAY: 11 * 150 + 300}


def test_a_running_day_can_be_made_anew_and_goes_on() -> None:
    world = UsageWorld()
    world.put(*(a_record(NOW - timedelta(minutes=minute)) for minute in range(1, 121)))
    world.roll_ups.roll_up_days("main", "u1")
    assert world.roll_ups.rebuild_day("main", "u1", TODAY).records == 90
    assert world.days(TODAY, TODAY) == {TODAY: 120 * 150}
    world.advance(days=1)
    world.roll_ups.roll_up_days("main", "u1")
    world.forget_records()
    assert world.days(TODAY, TODAY) == {TODAY: 120 * 150}


def test_a_day_made_anew_by_a_clock_that_is_behind_loses_nothing() -> None:
    world = UsageWorld()
    world.put(a_record(NOW - timedelta(seconds=ROLL_UP_LAG_SECONDS + 3)))
    world.roll_ups.roll_up_days("main", "u1")
    world.advance(seconds=-5)
    world.roll_ups.rebuild_day("main", "u1", TODAY)
    assert world.days(TODAY, TODAY) == {TODAY: 150}


def test_a_sweep_told_too_late_for_its_day_is_shown_as_long_as_its_record_is_there() -> None:
    world = UsageWorld()
    world.put(a_record(NOW - timedelta(hours=14)), a_record(NOW - timedelta(hours=11)))
    world.roll_ups.roll_up_days("main", "u1", until=NOW - timedelta(hours=13))
    world.roll_ups.roll_up_days("main", "u1")
    world.put_expired(NOW - timedelta(hours=12, minutes=30))
    assert world.days(YESTERDAY, YESTERDAY) == {YESTERDAY: 450}


@pytest.mark.parametrize(("days_ago", "there"), [(89, True), (90, False), (91, False)])
def test_a_day_whose_records_are_gone_is_not_made_anew(days_ago: int, there: bool) -> None:
    world = UsageWorld()
    day = TODAY - timedelta(days=days_ago)
    world.put(a_record(datetime(day.year, day.month, day.day, 23, tzinfo=UTC)))
    if there:
        assert world.roll_ups.rebuild_day("main", "u1", day).records == 1
    else:
        with pytest.raises(RecordsGoneError):
            world.roll_ups.rebuild_day("main", "u1", day)


# --- All of it at random


@pytest.mark.parametrize("seed", range(25))
def test_days_are_the_sums_of_their_records_whenever_and_however_often_they_are_rolled_up(seed: int) -> None:
    """Records come and are rolled up in turn, each as late as it may land; in the end they are gone and all is told."""
    rng, world = random.Random(seed), UsageWorld(datetime(2026, 11, 18, 20, tzinfo=UTC))
    expected: dict[date, int] = {}
    waiting: list[tuple[float, datetime]] = []
    for _ in range(120):
        world.advance(seconds=rng.choice([1, 60, 900, 3600]))
        began_at = world.now - timedelta(microseconds=rng.randrange(10**6))
        waiting.append((world.seconds + rng.uniform(0, LATEST_SECONDS - 5), began_at))
        for due in [one for one in waiting if one[0] <= world.seconds]:
            waiting.remove(due)
            _land(world, due[1], expected)
        if rng.random() < 0.3:
            world.new_roll_ups(records_at_most=rng.choice([1, 7, 10_000])).roll_up_days("main", "u1")
        if rng.random() < 0.2:
            assert world.days(date(2026, 11, 17), world.now.date()) == expected
    for due in waiting:
        _land(world, due[1], expected)
    world.advance(days=1)
    assert world.days(date(2026, 11, 17), world.now.date()) == expected
    world.advance(days=1)
    assert world.days(date(2026, 11, 17), world.now.date()) == expected
    world.forget_records()
    assert world.days(date(2026, 11, 17), world.now.date()) == expected


def _land(world: UsageWorld, began_at: datetime, expected: dict[date, int]) -> None:
    world.put(a_record(began_at))
    expected[began_at.date()] = expected.get(began_at.date(), 0) + 150
