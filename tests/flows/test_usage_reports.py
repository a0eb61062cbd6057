"""Single calls, page by page, and hours and minutes: nothing twice, nothing left out, and a bound on what is read."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.request_records import CATALOG, HAIKU, NOW, SONNET, UsageWorld, a_record
from tollgate.domain.rollups import RowKind, total
from tollgate.flows.usage_reports import CallPage, UsageReports, Wanted
from tollgate.storage.requests import RequestOutcome, RequestPosition

EVER = Wanted(datetime(2020, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC))


class World(UsageWorld):
    """What `u1` did."""

    def add(self, began_at: datetime, **changes: Any) -> str:  # noqa: ANN401  any field of RequestRecord
        record = a_record(began_at, **changes)
        self.put(record)
        return record.request_id

    def expire(self, swept_at: datetime, name: str, outcome: str = "expired") -> str:
        self.put_expired(swept_at, reservation=name, outcome=outcome)
        return f"~{name}.n1"

    def bounded(self, **bounds: int) -> UsageReports:
        return UsageReports(self.roll_ups, self.requests, self.meters, CATALOG, self, **bounds)

    def walk(self, wanted: Wanted, limit: int, *, oldest_first: bool = False) -> list[list[str]]:
        """Names of the calls of each page, to the end."""
        read = self.reports.oldest_calls if oldest_first else self.reports.newest_calls
        pages: list[list[str]] = []
        after: RequestPosition | None = None
        while len(pages) < 200:
            page = read("main", "u1", wanted, after, limit)
            assert len(page.calls) <= limit
            pages.append(names(page))
            after = page.next
            if after is None:
                return pages
        raise AssertionError("the pages do not end")


def names(page: CallPage) -> list[str]:
    return [call.position.request_id for call in page.calls]


@pytest.fixture
def world() -> World:
    return World()


def test_no_calls_are_one_empty_page(world: World) -> None:
    assert world.walk(EVER, 20) == world.walk(EVER, 20, oldest_first=True) == [[]]


@pytest.mark.parametrize("calls", [4, 5, 6])
def test_a_page_says_honestly_whether_there_is_another(world: World, calls: int) -> None:
    told = [world.add(NOW - timedelta(seconds=number)) for number in range(calls)]
    page = world.reports.newest_calls("main", "u1", EVER, None, 5)
    assert names(page) == told[:5]
    assert (page.next is not None) is (calls > 5)


@pytest.mark.parametrize("seed", range(8))
def test_pages_tell_every_call_once_and_in_order_crashed_ones_among_them(world: World, seed: int) -> None:
    rng = random.Random(seed)
    told: list[tuple[datetime, str]] = []
    for number in range(60):
        at = NOW - timedelta(seconds=rng.randrange(50))
        if rng.random() < 0.3:
            told.append((at, world.expire(at, f"r{number}", rng.choice(["expired", "corrected"]))))
        else:
            told.append((at, world.add(at, request_id=f"req_{number}")))
    for limit in (1, 7, 60, 100):
        newest = [name for page in world.walk(EVER, limit) for name in page]
        oldest = [name for page in world.walk(EVER, limit, oldest_first=True) for name in page]
        assert newest == [name for _, name in sorted(told, reverse=True)]
        assert oldest == newest[::-1]


@pytest.mark.parametrize(
    "choose",
    [
        lambda: Wanted(EVER.since, EVER.before, model=SONNET),
        lambda: Wanted(EVER.since, EVER.before, key_id="key_2"),
        lambda: Wanted(EVER.since, EVER.before, outcome="truncated"),
        lambda: Wanted(EVER.since, EVER.before, model=SONNET, key_id="key_2"),
        lambda: Wanted(NOW - timedelta(seconds=30), NOW - timedelta(seconds=10)),
        lambda: Wanted(EVER.since, EVER.before, outcome="expired"),
        lambda: Wanted(EVER.since, EVER.before, outcome="corrected"),
        lambda: Wanted(EVER.since, EVER.before, model="claude-of-another-name"),
    ],
)
def test_a_filter_tells_what_fits_and_nothing_else(world: World, choose: Callable[[], Wanted]) -> None:
    rng, wanted = random.Random(7), choose()
    fits: list[tuple[datetime, str]] = []
    for number in range(80):
        at = NOW - timedelta(seconds=number)
        model, key = rng.choice([HAIKU, SONNET]), rng.choice(["key_1", "key_2"])
        outcome = rng.choice([RequestOutcome.COMPLETE, RequestOutcome.TRUNCATED])
        name = world.add(at, model=model, credential_id=key, outcome=outcome)
        asked = (wanted.model, model), (wanted.key_id, key), (wanted.outcome, outcome.value)
        if wanted.since <= at < wanted.before and all(one in (None, other) for one, other in asked):
            fits.append((at, name))
    for number, outcome_name in enumerate(["expired", "corrected", "expired"]):
        at = NOW - timedelta(seconds=15, milliseconds=number)
        name = world.expire(at, f"r{number}", outcome_name)
        if wanted.model is wanted.key_id is None and wanted.outcome in (None, outcome_name):
            fits.append((at.replace(microsecond=0), name))
    assert [name for page in world.walk(wanted, 9) for name in page] == [name for _, name in sorted(fits, reverse=True)]


def test_a_filter_that_hardly_anything_fits_reads_no_more_than_its_bound(world: World) -> None:
    reports = world.bounded(read_at_most=40, read_at_once=10)
    last = world.add(NOW - timedelta(days=1), model=SONNET)
    for number in range(50):
        world.add(NOW - timedelta(seconds=number))
    world.client.calls.clear()
    wanted = Wanted(EVER.since, EVER.before, model=SONNET)
    page = reports.newest_calls("main", "u1", wanted, None, 20)
    assert names(page) == []
    assert page.next is not None, "there is more to look at, and it says so"
    assert world.client.calls == ["Query"] * (1 + 4)
    assert names(reports.newest_calls("main", "u1", wanted, page.next, 20)) == [last]


def test_a_call_tells_what_the_ledger_charged(world: World) -> None:
    world.add(NOW)
    world.add(NOW - timedelta(seconds=1), booked=False, reservation_id="r9", nonce="n1", charged_tokens=150)
    world.expire(NOW - timedelta(seconds=2), "r9")
    calls = world.reports.newest_calls("main", "u1", EVER, None, 5).calls
    assert [(call.key.kind, call.sums.charged_tokens) for call in calls] == [
        (RowKind.REQUEST, 150),
        (RowKind.UNBOOKED, 0),
        (RowKind.EXPIRED, 300),
    ]


def test_buckets_hold_what_began_in_them(world: World) -> None:
    start, width = NOW.replace(minute=0), timedelta(hours=1)
    edges = [start, start + width - timedelta(microseconds=1), start + width, start + 2 * width]
    for at in edges:
        world.add(at)
    world.expire(start + timedelta(minutes=5), "r1")
    found = world.reports.buckets("main", "u1", start, start + 2 * width, width)
    assert found.through_at == start + 2 * width
    assert {at: total(rows.values()).charged_tokens for at, rows in found.rows.items()} == {
        start: 600,
        start + width: 150,
    }


def test_buckets_beyond_what_may_be_read_are_left_for_the_next_page(world: World) -> None:
    width = timedelta(minutes=1)
    for number in range(12):
        world.add(NOW + number * timedelta(seconds=15))
    found = world.bounded(bucket_records_at_most=5).buckets("main", "u1", NOW, NOW + 3 * width, width)
    assert found.through_at == NOW + 2 * width
    assert [total(rows.values()).requests for rows in found.rows.values()] == [4, 4]
