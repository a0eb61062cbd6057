"""Request records on moto: every field comes back, and pages hold exactly the stretch asked for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.moto_table import CountedTable, moto_table
from tests.support.request_records import NOW, a_record
from tollgate.domain.tokens import TokenCounts
from tollgate.storage.meters import Meters
from tollgate.storage.requests import RequestOutcome, RequestPosition, RequestRecord, Requests

EVER = RequestPosition(datetime(2020, 1, 1, tzinfo=UTC)), RequestPosition(datetime(2099, 1, 1, tzinfo=UTC))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        yield table


def found(table: CountedTable, since: RequestPosition, before: RequestPosition) -> list[RequestRecord]:
    pages = Requests(table).pages("main", "u1", since, before)
    return [record for page in pages for record in page]


def test_a_record_comes_back_as_it_was_put(table: CountedTable) -> None:
    plain = a_record()
    full = a_record(
        NOW + timedelta(microseconds=1),
        counts=TokenCounts(1, 2, 3, 4, 5),
        outcome=RequestOutcome.OVER_QUOTA,
        estimated=True,
        written_off_tokens=9,
        first_byte_ms=None,
        served_model=None,
        speed="fast",
        service_tier="batch",
        inference_geo="us",
        web_searches=2,
        web_fetches=3,
        upstream_request_id="req_up",
        price_max_prompt_tokens=200_000,
        booked=False,
        nonce="abcdef",
    )
    for record in (plain, full):
        Requests(table).put(record)
    assert found(table, *EVER) == [plain, full]


def test_a_record_from_before_the_ledgers_answer_was_kept_counts_as_booked(table: CountedTable) -> None:
    Requests(table).put(a_record())
    [item] = table.items()
    del item["booked"], item["nonce"]
    table.client.put_item(TableName=table.name, Item=item)
    [record] = found(table, *EVER)
    assert (record.booked, record.nonce) == (True, "")


@pytest.mark.parametrize(("offset_us", "inside"), [(-1, False), (0, True), (1, True)])
def test_a_stretch_begins_with_its_first_instant(table: CountedTable, offset_us: int, inside: bool) -> None:
    Requests(table).put(a_record(NOW + timedelta(microseconds=offset_us)))
    assert bool(found(table, RequestPosition(NOW), EVER[1])) is inside


@pytest.mark.parametrize(("offset_us", "inside"), [(-1, True), (0, False), (1, False)])
def test_and_ends_before_its_last(table: CountedTable, offset_us: int, inside: bool) -> None:
    Requests(table).put(a_record(NOW + timedelta(microseconds=offset_us)))
    assert bool(found(table, EVER[0], RequestPosition(NOW))) is inside


def test_a_stretch_that_ends_before_it_begins_holds_nothing_and_is_not_asked_for(table: CountedTable) -> None:
    """DynamoDB would refuse the question."""
    Requests(table).put(a_record(NOW))
    assert found(table, RequestPosition(NOW + timedelta(days=1)), RequestPosition(NOW)) == []
    assert table.calls["Query"] == 0


def test_a_named_end_is_left_out(table: CountedTable) -> None:
    for name in "abc":
        Requests(table).put(a_record(request_id=name))
    assert [record.request_id for record in found(table, EVER[0], RequestPosition(NOW, "b"))] == ["a"]
    assert [record.request_id for record in found(table, RequestPosition(NOW, "b"), EVER[1])] == ["b", "c"]


def test_other_users_and_other_items_are_not_in_it(table: CountedTable) -> None:
    Requests(table).put(a_record(user_id="u2"))
    Requests(table).put(a_record(tenant_id="other"))
    Requests(table).put(a_record(user_id="u1#REQUEST"))
    assert found(table, *EVER) == []


@pytest.mark.parametrize("newest_first", [False, True])
def test_pages_follow_each_other_without_gap_or_repetition(table: CountedTable, newest_first: bool) -> None:
    instants = [NOW + timedelta(seconds=number) for number in range(10)]
    for instant in instants:
        Requests(table).put(a_record(instant))
    table.calls.clear()
    pages = list(Requests(table).pages("main", "u1", *EVER, newest_first=newest_first, page_size=4))
    assert [record.began_at for page in pages for record in page] == (instants[::-1] if newest_first else instants)
    assert max(map(len, pages)) == 4
    assert table.calls["Query"] == len(pages)


def test_pages_are_read_when_they_are_asked_for(table: CountedTable) -> None:
    for number in range(10):
        Requests(table).put(a_record(NOW + timedelta(seconds=number)))
    table.calls.clear()
    next(Requests(table).pages("main", "u1", *EVER, page_size=2))
    assert table.calls == {"Query": 1}


def test_a_users_expired_reservations_are_their_own(table: CountedTable) -> None:
    assert list(Meters(table).list_expired("main", "u1")) == []
