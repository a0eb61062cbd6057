"""Reports in Anthropic's shapes for who uses more than one go may read: some buckets at a time, one at least."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.request_records import CATALOG, NOW, UsageWorld, a_record
from tollgate.domain.principals import Account, Profile
from tollgate.edge.admin_reports import cost_report, usage_report
from tollgate.flows.usage_reports import UsageReports

ACCOUNT = Account.of(Profile("main", "u1", "pro", 1, datetime(2026, 1, 1, tzinfo=UTC)), CATALOG.plan("pro"))
AT_MOST = 5


class BusyWorld(UsageWorld):
    """Where one go reads five records."""

    def use(self, times: int, since: datetime) -> None:
        for number in range(times):
            self.put(a_record(since + timedelta(seconds=number)))

    def pages(self, query: str, report: Any = usage_report) -> list[list[tuple[str, int]]]:  # noqa: ANN401  of the two
        """Day and requests of each bucket, page by page."""
        reports = UsageReports(self.new_roll_ups(records_at_most=AT_MOST), self.requests, self.meters, CATALOG, self)
        told: list[list[tuple[str, int]]] = []
        page = ""
        while len(told) < 20:
            document = report(reports, ACCOUNT, query + page, self.now)
            told.append([(bucket["starting_at"][:10], _requests(bucket)) for bucket in document["data"]])
            assert document["has_more"] is (document["next_page"] is not None)
            if document["next_page"] is None:
                return told
            page = f"&page={document['next_page']}"
        raise AssertionError("the pages do not end")


def _requests(bucket: dict[str, Any]) -> int:
    described = bucket.get("tollgate")
    return described["requests"] if described else sum(each["tollgate"]["requests"] for each in bucket["results"])


@pytest.fixture
def world() -> BusyWorld:
    return BusyWorld()


@pytest.mark.parametrize("report", [usage_report, cost_report])
@pytest.mark.parametrize("requests", [AT_MOST, AT_MOST + 1, 4 * AT_MOST])
def test_a_day_of_more_calls_than_one_go_reads_is_told_whole(world: BusyWorld, report: Any, requests: int) -> None:  # noqa: ANN401
    """Calls of the last half hour are read one by one: nothing of them is rolled up yet."""
    world.use(requests, NOW - timedelta(minutes=20))
    assert world.pages("starting_at=2026-11-20T00:00:00Z", report) == [[("2026-11-20", requests)]]


def test_the_days_before_it_are_on_a_page_of_their_own(world: BusyWorld) -> None:
    world.use(3, NOW - timedelta(days=2))
    world.use(4 * AT_MOST, NOW - timedelta(minutes=20))
    pages = world.pages("starting_at=2026-11-18T00:00:00Z")
    assert [bucket for page in pages for bucket in page] == [
        ("2026-11-18", 3),
        ("2026-11-19", 0),
        ("2026-11-20", 4 * AT_MOST),
    ]


def test_days_that_wait_to_be_rolled_up_are_told_whole_too(world: BusyWorld) -> None:
    """Whoever was never looked at before: more than one go reads on each of the days."""
    for days in (3, 2, 1):
        world.use(2 * AT_MOST, NOW - timedelta(days=days))
    pages = world.pages("starting_at=2026-11-17T00:00:00Z&ending_at=2026-11-20T00:00:00Z")
    assert [bucket for page in pages for bucket in page] == [
        ("2026-11-17", 2 * AT_MOST),
        ("2026-11-18", 2 * AT_MOST),
        ("2026-11-19", 2 * AT_MOST),
    ]
