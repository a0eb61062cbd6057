"""Overage as money: windows, their stamps and names, and what each of them should say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tollgate.domain.ledger import Meter, MeterKey
from tollgate.domain.overage import (
    IDENTIFIER_AT_MOST,
    LINE_WAIT,
    UNIT_NANOUSD,
    BilledLine,
    MeteredItem,
    OverageAccount,
    Span,
    Window,
    book,
    count_old,
    follow,
    put_aside,
    targets,
    uncounted,
    write_off_late,
)
from tollgate.domain.periods import UsagePeriod

START = datetime(2026, 11, 20, 9, 0, 17, tzinfo=UTC)
END = datetime(2026, 12, 20, 9, 0, 17, tzinfo=UTC)
NEXT_END = datetime(2027, 1, 20, 9, 0, 17, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
WINDOW = Window("sub_1", "cus_1", START, END)
NEXT = Window("sub_1", "cus_1", END, NEXT_END)
ACCOUNT = OverageAccount("main", "ada", spans=(Span(START),), windows=(WINDOW,))


def a_meter(start_at: datetime, end_at: datetime, nanousd: int) -> Meter:
    return Meter(
        key=MeterKey("main", "ada", UsagePeriod(start_at, end_at)),
        quota_tokens=0,
        overage_cap_tokens=0,
        remaining_tokens=0,
        settled_tokens=0,
        written_off_tokens=0,
        quota_requests=0,
        remaining_requests=0,
        open_count=0,
        rate_tat_ms=0,
        plan_id="pro",
        plan_version=1,
        banked_nanousd=nanousd,
    )


def an_item(start_at: datetime, end_at: datetime, subscription_id: str = "sub_1") -> MeteredItem:
    return MeteredItem(subscription_id, "cus_1", START, start_at, end_at)


def a_line(start_at: datetime, end_at: datetime, quantity: int, *, final: bool = True) -> BilledLine:
    return BilledLine(f"in_{quantity}", "sub_1", start_at, end_at, quantity, final)


# ---- messages


def test_an_identifier_names_value_and_attempt_and_is_short_enough() -> None:
    told = WINDOW.told(7, START + MINUTE)

    assert told.identifier("prod") == "prod:cus_1:2026-11-20T090017Z:7:1"
    assert told.told(7, END).identifier("prod") != told.identifier("prod")
    assert replace(told, value=8).identifier("prod") != told.identifier("prod")
    long = replace(told, customer_id="c" * 200, value=10**14)
    other = replace(long, customer_id="d" * 200)
    assert len(long.identifier("prod")) <= IDENTIFIER_AT_MOST
    assert long.identifier("prod") != other.identifier("prod")


@pytest.mark.parametrize(
    ("now", "stamp"),
    [
        (START + 2 * MINUTE - SECOND, None),
        (START + 2 * MINUTE, START + MINUTE),
        (START + 3 * MINUTE, START + 2 * MINUTE),
        (END - 15 * MINUTE, END - 16 * MINUTE),
        (END + timedelta(minutes=40), END - 15 * MINUTE),
        (END + timedelta(days=33), END - 15 * MINUTE),
        (END + timedelta(days=35), None),
    ],
)
def test_a_stamp_is_inside_the_window_and_a_minute_old(now: datetime, stamp: datetime | None) -> None:
    assert WINDOW.next_stamp(now) == stamp


@pytest.mark.parametrize(("last", "fits"), [(63, True), (62, True), (61, False)])
def test_stamps_increase_until_the_last_minute(last: int, fits: bool) -> None:
    window = WINDOW.told(1, END - timedelta(seconds=last))
    stamp = window.next_stamp(END + MINUTE)

    assert (stamp is not None) == fits
    assert stamp is None or stamp == END - timedelta(seconds=last - 1)


# ---- what windows should say


@pytest.mark.parametrize(("nanousd", "units"), [(UNIT_NANOUSD - 1, 0), (UNIT_NANOUSD, 1), (UNIT_NANOUSD + 1, 1)])
def test_a_value_is_in_whole_units_rounded_down(nanousd: int, units: int) -> None:
    assert targets(ACCOUNT, [a_meter(START, END, nanousd)]) == (units,)


def test_what_is_less_than_a_unit_is_not_lost_but_waits_for_the_next_period() -> None:
    account = replace(ACCOUNT, windows=(WINDOW, NEXT))
    meters = [a_meter(START, END, UNIT_NANOUSD * 3 // 2), a_meter(END, NEXT_END, UNIT_NANOUSD // 2)]

    assert targets(account, meters) == (1, 1)


def test_late_usage_is_carried_into_the_next_window() -> None:
    billed = book(replace(ACCOUNT, windows=(WINDOW, NEXT)), [a_line(START, END, 10)], END).account

    assert billed.windows == (NEXT,)
    assert targets(billed, [a_meter(START, END, 25 * UNIT_NANOUSD)]) == (15,)


def test_what_was_billed_too_much_is_made_good_by_the_next_window() -> None:
    billed = book(replace(ACCOUNT, windows=(WINDOW, NEXT)), [a_line(START, END, 30)], END).account
    meters = [a_meter(START, END, 25 * UNIT_NANOUSD), a_meter(END, NEXT_END, 8 * UNIT_NANOUSD)]

    assert targets(billed, meters[:1]) == (0,)
    assert targets(billed, meters) == (3,)


def test_late_usage_can_be_written_off_and_is_seen() -> None:
    billed = book(replace(ACCOUNT, windows=(WINDOW, NEXT)), [a_line(START, END, 10)], END).account
    meters = [a_meter(START, END, 25 * UNIT_NANOUSD), a_meter(END, NEXT_END, 5 * UNIT_NANOUSD)]
    forgiven = write_off_late(billed, meters)

    assert forgiven.written_off_units == 15
    assert targets(forgiven, meters) == (5,)
    assert write_off_late(forgiven, meters) == forgiven


def test_a_period_that_goes_on_is_not_forgiven_by_an_invoice_in_the_middle_of_it() -> None:
    middle = START + timedelta(days=3)
    account = replace(ACCOUNT, windows=(), closed_through_at=middle, billed_units=10)
    running, over = a_meter(START, END, 30 * UNIT_NANOUSD), a_meter(START, middle, 30 * UNIT_NANOUSD)

    assert write_off_late(account, [running]).written_off_units == 0
    assert write_off_late(account, [over]).written_off_units == 20
    # Left by a change of plan: it ended where the next one began.
    assert write_off_late(account, [running, a_meter(middle, END, 0)]).written_off_units == 20


def test_an_open_invoice_is_not_forgiven() -> None:
    account = replace(ACCOUNT, windows=(WINDOW, NEXT), closed_through_at=START)

    assert write_off_late(account, [a_meter(START, END, 25 * UNIT_NANOUSD)]).written_off_units == 0


# ---- windows


def test_a_renewal_adds_a_window_and_a_new_anchor_cuts_the_old_one() -> None:
    renewed = follow(ACCOUNT, [an_item(END, NEXT_END)], END + MINUTE)
    moved_at = START + timedelta(days=3)
    moved = follow(ACCOUNT, [an_item(moved_at, moved_at + timedelta(days=30))], moved_at + MINUTE)

    assert [(one.start_at, one.end_at) for one in renewed.windows] == [(START, END), (END, NEXT_END)]
    assert [one.end_at for one in moved.windows] == [moved_at, moved_at + timedelta(days=30)]


@pytest.mark.parametrize("away", [-SECOND, timedelta(), timedelta(days=3)])
def test_a_new_subscription_ends_the_window_of_the_one_before(away: timedelta) -> None:
    """Also where nobody looked between: what is used from then on is for the new one to bill."""
    begin = START + timedelta(days=10)
    later = begin + timedelta(days=30)
    both = follow(ACCOUNT, [MeteredItem("sub_2", "cus_1", begin, begin, later)], begin + MINUTE)
    meters = [a_meter(START, END, 15 * UNIT_NANOUSD), a_meter(begin, later, 30 * UNIT_NANOUSD)]

    assert [(one.start_at, one.end_at) for one in both.windows] == [(START, begin), (begin, later)]
    assert targets(both, meters) == (15, 30)
    assert (begin + away in both.spans[1]) is (away >= timedelta())


def two_at_once(first_ended: datetime | None, second_ended: datetime | None) -> list[MeteredItem]:
    first = replace(an_item(START, END), ended_at=first_ended)
    begin = START + timedelta(days=10)
    return [MeteredItem("sub_2", "cus_1", begin, begin, begin + timedelta(days=30), second_ended), first]


def test_of_two_at_once_the_later_one_bills_from_its_beginning_on() -> None:
    begin, now = START + timedelta(days=10), START + timedelta(days=11)
    for first_ended in (None, begin + MINUTE):
        account = follow(ACCOUNT, two_at_once(first_ended, None), now)
        assert [(one.subscription_id, one.start_at, one.end_at) for one in account.windows] == [
            ("sub_1", START, begin),
            ("sub_2", begin, begin + timedelta(days=30)),
        ]
        assert account.spans == (Span(START, begin), Span(begin))
        assert follow(account, two_at_once(first_ended, None), now + MINUTE) == account


def test_one_that_another_outlived_leaves_nothing() -> None:
    """A second subscription that the sync has ended at once."""
    begin, now = START + timedelta(days=10), START + timedelta(days=11)
    for first_ended in (None, begin + timedelta(hours=1)):
        items = two_at_once(first_ended, begin + MINUTE)
        account = follow(ACCOUNT, items, now)
        assert [one.subscription_id for one in account.windows] == ["sub_1"]
        assert account.spans == (Span(START, first_ended),)
        assert follow(account, items, now + MINUTE) == account


def test_however_often_a_subscription_is_made_anew_what_was_billed_stays_billable() -> None:
    account, meters = OverageAccount("main", "ada"), []
    for number in range(6):
        begin = START + timedelta(days=5 * number)
        item = MeteredItem(f"sub_{number}", "cus_1", begin, begin, begin + timedelta(days=30))
        meters.append(a_meter(begin, begin + timedelta(days=30), UNIT_NANOUSD))
        account = put_aside(follow(account, [item], begin + MINUTE), meters)

    assert account.all_unbillable_nanousd == 0
    assert sum(targets(account, meters)) == 6


def test_spans_that_no_period_needs_any_more_are_let_go() -> None:
    far = START + timedelta(days=500)
    back = follow(follow(ACCOUNT, [], END), [MeteredItem("sub_2", "cus_1", far, far, far + timedelta(days=30))], far)
    assert back.spans == (Span(far),)


def test_what_an_ended_subscription_used_is_owed_also_where_nobody_looked_before() -> None:
    """Its last invoice is a draft still, and is told."""
    ended_at = START + timedelta(days=10)
    item = replace(an_item(START, END), ended_at=ended_at)
    meters = [a_meter(START, END, 15 * UNIT_NANOUSD)]
    account = put_aside(follow(OverageAccount("main", "ada"), [item], ended_at + MINUTE), meters)

    assert ([(one.start_at, one.end_at) for one in account.windows], account.spans) == (
        [(START, ended_at)],
        (Span(START, ended_at),),
    )
    assert (targets(account, meters), account.all_unbillable_nanousd) == ((15,), 0)
    assert follow(account, [item], ended_at + 2 * MINUTE) == account
    final = book(account, [a_line(START, ended_at, 15)], ended_at + timedelta(hours=1)).account
    assert follow(final, [item], ended_at + timedelta(hours=2)).windows == ()


@pytest.mark.parametrize(("late", "windows"), [(-SECOND, 1), (timedelta(), 1), (SECOND, 0)])
def test_of_one_that_ended_long_ago_no_invoice_is_waited_for_and_its_use_stays_owed(
    late: timedelta, windows: int
) -> None:
    item = replace(an_item(START, END), ended_at=END)
    meters = [a_meter(START, END, 15 * UNIT_NANOUSD)]
    account = put_aside(follow(OverageAccount("main", "ada"), [item], END + LINE_WAIT + late), meters)

    assert len(account.windows) == windows
    assert (account.open_nanousd(meters), account.all_unbillable_nanousd) == (15 * UNIT_NANOUSD, 0)


def test_one_that_was_replaced_before_anybody_looked_is_owed_by_the_next() -> None:
    ended_at, later = START + timedelta(days=10), START + timedelta(days=40)
    items = [
        MeteredItem("sub_2", "cus_1", ended_at + MINUTE, ended_at + MINUTE, later),
        replace(an_item(START, END), ended_at=ended_at),
    ]
    meters = [a_meter(START, END, 15 * UNIT_NANOUSD), a_meter(ended_at + MINUTE, later, 30 * UNIT_NANOUSD)]
    seen = put_aside(follow(OverageAccount("main", "ada"), items, ended_at + 2 * MINUTE), meters)
    given_up = book(seen, [], ended_at + LINE_WAIT + MINUTE)

    assert targets(seen, meters) == (15, 30)
    assert [one.subscription_id for one in given_up.unbilled] == ["sub_1"]
    assert targets(given_up.account, meters) == (45,)


def test_a_subscription_that_is_over_leaves_no_running_window() -> None:
    seen_at = START + timedelta(days=3)
    ended = follow(ACCOUNT, [], seen_at)
    given_up = book(ended, [], seen_at + LINE_WAIT + SECOND)

    assert ([one.end_at for one in ended.windows], ended.spans) == ([seen_at], (Span(START, seen_at),))
    assert [one.start_at for one in given_up.unbilled] == [START]


def test_a_line_is_counted_once() -> None:
    line = a_line(START, END, 10)
    once = book(ACCOUNT, [line], END).account
    twice = book(once, [line], END)

    assert (once.billed_units, twice.account.billed_units, twice.new_lines) == (10, 10, ())


def test_a_draft_counts_nothing_and_tells_where_its_window_ended() -> None:
    ended_at = START + timedelta(days=3)
    booked = book(ACCOUNT, [a_line(START, ended_at, 10, final=False)], END)

    assert (booked.account.billed_units, booked.account.windows[0].end_at) == (0, ended_at)
    assert booked.drafts == {START}


@pytest.mark.parametrize(("late", "kept"), [(-SECOND, 1), (timedelta(), 1), (SECOND, 0)])
def test_a_window_without_an_invoice_is_given_up_after_days(late: timedelta, kept: int) -> None:
    booked = book(ACCOUNT, [], END + LINE_WAIT + late)

    assert (len(booked.account.windows), len(booked.unbilled)) == (kept, 1 - kept)


def test_a_period_that_ended_unseen_is_told_while_its_invoice_is_a_draft() -> None:
    booked = book(replace(ACCOUNT, windows=(NEXT,)), [a_line(START, END, 0, final=False)], END + MINUTE)

    assert [one.start_at for one in booked.account.windows] == [START, END]
    assert targets(booked.account, [a_meter(START, END, 5 * UNIT_NANOUSD)]) == (5, 0)


# ---- what nobody can bill


def test_overage_that_no_subscription_covers_is_never_billed() -> None:
    gift = a_meter(START - timedelta(days=30), START, 9 * UNIT_NANOUSD)
    seen = put_aside(OverageAccount("main", "ada"), [gift])
    subscribed = put_aside(follow(seen, [an_item(START, END)], START + MINUTE), [gift])

    assert (subscribed.all_unbillable_nanousd, targets(subscribed, [gift])) == (9 * UNIT_NANOUSD, (0,))


def test_what_was_set_aside_follows_a_correction_downwards() -> None:
    high, low = (a_meter(START, END, units * UNIT_NANOUSD) for units in (9, 7))
    seen = put_aside(OverageAccount("main", "ada"), [high])
    corrected = put_aside(seen, [low])

    assert (seen.all_unbillable_nanousd, corrected.all_unbillable_nanousd) == (9 * UNIT_NANOUSD, 7 * UNIT_NANOUSD)
    assert corrected.open_nanousd([low]) == 0


def test_what_an_ended_subscription_still_owes_is_billed_by_the_next_one() -> None:
    ended = follow(book(ACCOUNT, [a_line(START, END, 10)], END).account, [], END + MINUTE)
    meters = [a_meter(START, END, 25 * UNIT_NANOUSD)]
    back_at = END + timedelta(days=40)
    item = MeteredItem("sub_2", "cus_1", back_at, back_at, back_at + timedelta(days=30))
    back = put_aside(follow(ended, [item], back_at + MINUTE), meters)

    assert ended.open_nanousd(meters) == 15 * UNIT_NANOUSD
    assert targets(back, meters) == (15,)


def test_old_periods_are_added_up_once() -> None:
    meters = [a_meter(START, END, 25 * UNIT_NANOUSD)]
    account = replace(ACCOUNT, windows=(NEXT,))
    young = count_old(account, meters, END + timedelta(days=5) - SECOND)
    old = count_old(account, meters, END + timedelta(days=5))

    assert (young.counted_nanousd, old.counted_nanousd) == (0, 25 * UNIT_NANOUSD)
    assert uncounted(old, meters) == ()
    assert targets(old, uncounted(old, meters)) == targets(account, meters)
