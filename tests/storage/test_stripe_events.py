"""Events in the table: leased, done, and what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.support.moto_table import CountedTable, moto_table
from tests.support.subscriptions import NOW
from tollgate.domain.subscriptions import RemoteRefund
from tollgate.storage.stripe_events import LEASE_SECONDS, Lease, Part, Start, StripeEvents

MINE = Lease("evt_1", Part.DELIVERY, "me")
THEIRS = Lease("evt_1", Part.DELIVERY, "they")
REFUND = RemoteRefund("re_1", "ch_1", "cus_1", 2900, "usd", "succeeded", NOW)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        yield table


@pytest.fixture
def events(table: CountedTable) -> StripeEvents:
    return StripeEvents(table)


def test_an_event_is_taken_by_one_and_is_done_for_ever(events: StripeEvents) -> None:
    assert events.begin(MINE, NOW) is Start.NEW
    assert events.begin(THEIRS, NOW) is Start.BUSY
    events.finish(MINE, NOW)
    assert events.begin(THEIRS, NOW) is Start.DONE
    assert events.begin(THEIRS, NOW + timedelta(days=29)) is Start.DONE


@pytest.mark.parametrize(
    ("seconds", "start"), [(LEASE_SECONDS, Start.BUSY), (LEASE_SECONDS + 1, Start.NEW)], ids=["at", "above"]
)
def test_a_lease_ends_by_time(events: StripeEvents, seconds: int, start: Start) -> None:
    events.begin(MINE, NOW)
    assert events.begin(THEIRS, NOW + timedelta(seconds=seconds)) is start


def test_who_gives_an_event_back_lets_the_next_begin_at_once(events: StripeEvents) -> None:
    events.begin(MINE, NOW)
    events.abandon(MINE)
    assert events.begin(THEIRS, NOW) is Start.NEW


def test_who_lost_the_lease_ends_nothing(events: StripeEvents) -> None:
    later = NOW + timedelta(seconds=LEASE_SECONDS + 1)
    events.begin(MINE, NOW)
    events.begin(THEIRS, later)

    events.finish(MINE, later)
    events.abandon(MINE)

    assert events.begin(replace(MINE, owner="third"), later) is Start.BUSY


def test_a_begin_whose_answer_was_lost_is_still_ours(events: StripeEvents) -> None:
    events.begin(MINE, NOW)
    assert events.begin(MINE, NOW) is Start.NEW


def test_what_is_left_to_the_queue_is_done_apart(events: StripeEvents) -> None:
    events.begin(MINE, NOW)
    events.finish(MINE, NOW)
    assert events.begin(replace(MINE, part=Part.WORK), NOW) is Start.NEW


def test_events_go_by_themselves_after_a_month(events: StripeEvents, table: CountedTable) -> None:
    events.begin(MINE, NOW)
    events.finish(MINE, NOW)
    [item] = table.items()
    assert int(item["expires_at"]["N"]) == int((NOW + timedelta(days=30)).timestamp())
    assert item["Type"] == {"S": "StripeEvent"}


def test_a_refund_is_recorded_once_whoever_tells_it(events: StripeEvents, table: CountedTable) -> None:
    assert events.record_refund("main", "u1", REFUND)
    assert not events.record_refund("main", "u1", replace(REFUND, status="failed", amount_cents=1))
    assert events.record_refund("main", "u1", replace(REFUND, id="re_2", charge_id=None))
    assert sorted(item["amount_cents"]["N"] for item in table.items()) == ["2900", "2900"]


def test_refused_usage_is_recorded_once(events: StripeEvents, table: CountedTable) -> None:
    assert events.record_meter_error("evt_1", "billing.meter.error_report_triggered", "mtr_1", NOW)
    assert not events.record_meter_error("evt_1", "billing.meter.error_report_triggered", "mtr_1", NOW)
    assert events.record_meter_error("evt_2", "billing.meter.no_meter_found", None, NOW)
    assert {item["Type"]["S"] for item in table.items()} == {"MeterError"}
