"""Usage periods: half-open, without gap or overlap, and never drifting, whatever the anchor."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.domain.periods import UsagePeriod, period_at
from tollgate.domain.plans import PeriodKind

MICROSECOND = timedelta(microseconds=1)
CALENDAR, ANCHORED, THIRTY = PeriodKind.CALENDAR_MONTH, PeriodKind.ANCHORED_MONTH, PeriodKind.EVERY_30_DAYS
LONG_AGO = datetime(2020, 6, 15, tzinfo=UTC)

anchors = st.timedeltas(timedelta(0), timedelta(days=60 * 366)).map(lambda age: datetime(2000, 1, 1, tzinfo=UTC) + age)
# The days that some months lack, more often than chance would pick them.
late_anchors = st.builds(
    lambda year, month, day, second: (
        datetime(year, month, min(day, monthrange(year, month)[1]), tzinfo=UTC) + timedelta(seconds=second)
    ),
    st.integers(2000, 2060),
    st.integers(1, 12),
    st.integers(28, 31),
    st.integers(0, 86_399),
)
half_centuries = st.timedeltas(timedelta(0), timedelta(days=50 * 366))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@given(st.sampled_from(PeriodKind), anchors | late_anchors, half_centuries)
def test_every_instant_lies_in_its_period_and_the_end_belongs_to_the_next(
    kind: PeriodKind, anchor_at: datetime, elapsed: timedelta
) -> None:
    instant = anchor_at + elapsed
    period = period_at(kind, anchor_at, instant)

    assert instant in period
    assert period.start_at in period
    assert period.end_at not in period
    assert period_at(kind, anchor_at, period.start_at) == period
    assert period_at(kind, anchor_at, period.end_at - MICROSECOND) == period


@given(st.sampled_from(PeriodKind), anchors | late_anchors, half_centuries)
def test_neighbours_meet_without_gap_or_overlap(kind: PeriodKind, anchor_at: datetime, elapsed: timedelta) -> None:
    period = period_at(kind, anchor_at, anchor_at + elapsed)

    assert period_at(kind, anchor_at, period.end_at).start_at == period.end_at
    assert period_at(kind, anchor_at, period.start_at - MICROSECOND).end_at == period.start_at


@given(anchors | late_anchors)
def test_an_anchor_does_not_drift_in_fifty_years_of_months(anchor_at: datetime) -> None:
    period = period_at(ANCHORED, anchor_at, anchor_at)
    for _ in range(50 * 12):
        days_in_month = monthrange(period.start_at.year, period.start_at.month)[1]
        assert period.start_at.day == min(anchor_at.day, days_in_month)
        assert period.start_at.time() == anchor_at.time().replace(microsecond=0)
        following = period_at(ANCHORED, anchor_at, period.end_at)
        months = following.start_at.year * 12 + following.start_at.month
        assert months - (period.start_at.year * 12 + period.start_at.month) == 1
        period = following


@given(st.sampled_from(PeriodKind), anchors | late_anchors, half_centuries, half_centuries)
def test_two_periods_share_an_id_only_when_they_are_the_same(
    kind: PeriodKind, anchor_at: datetime, first: timedelta, second: timedelta
) -> None:
    one, other = (period_at(kind, anchor_at, anchor_at + elapsed) for elapsed in (first, second))

    assert (one.id == other.id) == (one == other)


@given(anchors, half_centuries)
def test_the_anchor_of_a_calendar_month_does_not_matter(anchor_at: datetime, elapsed: timedelta) -> None:
    instant = anchor_at + elapsed

    period = period_at(CALENDAR, anchor_at, instant)

    assert period.start_at == instant.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    assert period.id == f"{instant.year}-{instant.month:02}"


@pytest.mark.parametrize(
    ("instant", "start_at"),
    [
        ("2026-11-15T10:29:59.999999", "2026-10-15T10:30:00"),
        ("2026-11-15T10:30:00", "2026-11-15T10:30:00"),
        ("2026-11-15T10:30:00.000001", "2026-11-15T10:30:00"),
    ],
)
def test_a_period_starts_at_the_second_of_its_anchor(instant: str, start_at: str) -> None:
    period = period_at(ANCHORED, at("2026-03-15T10:30:00"), at(instant))

    assert period.start_at == at(start_at)


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (28, ["2026-01-28", "2026-02-28", "2026-03-28", "2026-04-28"]),
        (29, ["2026-01-29", "2026-02-28", "2026-03-29", "2026-04-29"]),
        (30, ["2026-01-30", "2026-02-28", "2026-03-30", "2026-04-30"]),
        (31, ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30"]),
    ],
)
def test_a_day_that_a_month_lacks_becomes_its_last_and_comes_back(day: int, expected: list[str]) -> None:
    anchor_at = at(f"2026-01-{day}T12:00:00")
    period = period_at(ANCHORED, anchor_at, anchor_at)
    starts = []
    for _ in expected:
        starts.append(period.start_at.date().isoformat())
        period = period_at(ANCHORED, anchor_at, period.end_at)

    assert starts == expected


@pytest.mark.parametrize(("year", "day"), [(2027, 28), (2028, 29), (2100, 28)])
def test_february_has_the_days_of_its_year(year: int, day: int) -> None:
    period = period_at(ANCHORED, at("2026-01-31T00:00:00"), at(f"{year}-02-28T23:59:59") + timedelta(seconds=1))

    # Without a leap day the instant is 1 March already, and still in the period that began in February.
    assert period.start_at == at(f"{year}-02-{day}T00:00:00")


def test_an_instant_before_the_anchor_has_a_period_too() -> None:
    """Clocks differ: a request may be stamped a little earlier than the profile that it created."""
    period = period_at(ANCHORED, at("2026-11-15T10:30:00"), at("2026-11-15T10:29:58"))

    assert period == UsagePeriod(at("2026-10-15T10:30:00"), at("2026-11-15T10:30:00"))


def test_the_id_names_the_month_or_the_exact_start() -> None:
    assert period_at(CALENDAR, LONG_AGO, at("2026-11-20T09:00:00")).id == "2026-11"
    assert period_at(ANCHORED, at("2026-03-15T10:30:00"), at("2026-11-20T09:00:00")).id == "2026-11-15T103000Z"


def test_an_anchor_on_the_first_at_midnight_is_the_calendar_month() -> None:
    anchored = period_at(ANCHORED, at("2026-01-01T00:00:00"), at("2026-11-20T09:00:00"))

    assert anchored == period_at(CALENDAR, LONG_AGO, at("2026-11-20T09:00:00"))


@given(st.integers(-12 * 60, 14 * 60), anchors, half_centuries)
def test_the_time_zone_an_instant_is_written_in_does_not_matter(
    offset_minutes: int, anchor_at: datetime, elapsed: timedelta
) -> None:
    elsewhere = timezone(timedelta(minutes=offset_minutes))
    instant = anchor_at + elapsed

    there = period_at(ANCHORED, anchor_at.astimezone(elsewhere), instant.astimezone(elsewhere))

    assert there == period_at(ANCHORED, anchor_at, instant)
    assert there.id.endswith("Z") or len(there.id) == len("2026-11")


@pytest.mark.parametrize("kind", PeriodKind)
def test_a_naive_instant_is_refused(kind: PeriodKind) -> None:
    """It would be read in the machine's own time zone, and the meter's key would depend on it."""
    naive = datetime(2026, 11, 20, 9)  # noqa: DTZ001  what the test is about
    with pytest.raises(ValueError, match="aware"):
        period_at(kind, LONG_AGO, naive)
    with pytest.raises(ValueError, match="aware"):
        period_at(kind, naive, LONG_AGO)


@given(anchors | late_anchors, half_centuries)
def test_thirty_days_are_thirty_days_from_the_anchor_on_for_ever(anchor_at: datetime, elapsed: timedelta) -> None:
    period = period_at(THIRTY, anchor_at, anchor_at + elapsed)
    since = period.start_at - anchor_at.replace(microsecond=0)

    assert period.end_at - period.start_at == timedelta(days=30)
    assert since % timedelta(days=30) == timedelta(0)
    assert period.start_at.time() == anchor_at.time().replace(microsecond=0)


def test_thirty_days_do_not_hear_of_summer_time() -> None:
    """Clocks in Zurich go forward on 29 March 2026: the period is as long, and ends at another hour of the wall."""
    zurich = timezone(timedelta(hours=1))
    period = period_at(THIRTY, datetime(2026, 3, 10, 9, 0, tzinfo=zurich), at("2026-03-20T00:00:00"))
    assert (period.start_at, period.end_at) == (at("2026-03-10T08:00:00"), at("2026-04-09T08:00:00"))


def test_thirty_days_before_the_anchor_are_counted_backward() -> None:
    anchor_at = at("2026-03-10T08:00:00")
    for instant, start in ((-MICROSECOND, -30), (timedelta(0), 0), (timedelta(days=30) - MICROSECOND, 0)):
        assert period_at(THIRTY, anchor_at, anchor_at + instant).start_at == anchor_at + timedelta(days=start)
