"""Roll-ups on moto: a day changes at once or not at all, however many models and keys it has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest

from tests.simulation.memory_table import item_size
from tests.support.moto_table import CountedTable, moto_table
from tollgate.domain.rollups import DayRollUp, RowKey, RowKind, Rows, Sums, total
from tollgate.storage.rollups import DayRollUps

DAY = date(2026, 11, 20)
NOON = datetime(2026, 11, 20, 12, 0, 0, 123_456, tzinfo=UTC)
LARGEST_ITEM = 400 * 1024


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    with moto_table(monkeypatch) as table:
        yield table


def many_rows(models: int, keys: int) -> Rows:
    """As dear in bytes as rows get."""
    return {
        RowKey(
            RowKind.REQUEST,
            "2026-11-15T103000Z",
            f"key-{key:026d}",
            f"claude-of-a-long-name-{model:03d}",
            f"claude-of-a-long-name-{model:03d}-20251001",
            "standard",
            "not_available",
            "standard",
        ): Sums(*[10**12 + key] * 26)
        for model in range(models)
        for key in range(keys)
    }


def a_day(rows: Rows | None = None, generation: str = "g1", through_at: datetime = NOON, day: date = DAY) -> DayRollUp:
    return DayRollUp(day, through_at, rows if rows is not None else many_rows(1, 1), generation)


def test_a_day_comes_back_as_it_was_put(table: CountedTable) -> None:
    odd = {
        RowKey(RowKind.EXPIRED, "2026-11"): Sums(requests=1, expired=1),
        RowKey(RowKind.UNBOOKED, "2026-11", "k", 'a "model", quoted', None, None, None, "ü", True): Sums(
            input_tokens=1
        ),
    }
    for rows in (odd, {}):
        seen = DayRollUps(table).find_day("main", "u1", DAY)
        rolled = a_day(rows, generation=f"g{len(rows)}")
        assert DayRollUps(table).put_day("main", "u1", rolled, seen)
        assert DayRollUps(table).find_day("main", "u1", DAY) == rolled


def test_days_are_listed_in_order_and_only_those_asked_for(table: CountedTable) -> None:
    days = [DAY - timedelta(days=number) for number in range(4)]
    for day in days:
        DayRollUps(table).put_day("main", "u1", a_day(day=day), None)
    DayRollUps(table).put_day("main", "u2", a_day(), None)
    DayRollUps(table).move_mark("main", "u1", NOON)
    assert [one.day for one in DayRollUps(table).list_days("main", "u1", days[2], days[1])] == [days[2], days[1]]


def test_who_has_not_seen_the_present_text_replaces_nothing(table: CountedTable) -> None:
    days = DayRollUps(table)
    first, second = a_day(generation="g1"), a_day(generation="g2")
    assert days.put_day("main", "u1", first, None)
    assert not days.put_day("main", "u1", a_day(generation="gx"), None)
    assert days.put_day("main", "u1", second, first)
    assert not days.put_day("main", "u1", a_day(generation="gy"), first)
    assert days.find_day("main", "u1", DAY) == second


def test_the_same_write_twice_is_one(table: CountedTable) -> None:
    """The first answer was lost, and the SDK or the caller sent it again."""
    days, rolled = DayRollUps(table), a_day(many_rows(2, 3))
    small = DayRollUps(table, rows_bytes_at_most=500)
    assert small.put_day("main", "u1", rolled, None)
    assert small.put_day("main", "u1", rolled, None)
    assert days.find_day("main", "u1", DAY) == rolled


def test_a_day_of_two_thousand_models_and_keys_keeps_every_item_below_dynamodbs_limit(table: CountedTable) -> None:
    rows = many_rows(20, 100)
    rolled = a_day(rows)
    assert DayRollUps(table).put_day("main", "u1", rolled, None)
    items = table.items()
    assert len(items) > 1
    assert max(map(item_size, items)) < LARGEST_ITEM
    assert {item["Type"]["S"] for item in items} == {"Day", "DayPart"}
    stored = DayRollUps(table).find_day("main", "u1", DAY)
    assert stored == rolled
    assert total(stored.rows.values()) == total(rows.values())


def test_what_a_write_replaces_leaves_nothing_behind(table: CountedTable) -> None:
    days = DayRollUps(table, rows_bytes_at_most=1_000)
    large, small = a_day(many_rows(4, 5), generation="g1"), a_day(many_rows(1, 1), generation="g2")
    assert days.put_day("main", "u1", large, None)
    assert len(table.items()) > 3
    assert days.put_day("main", "u1", small, large)
    assert len(table.items()) == 1


def test_who_loses_the_race_leaves_nothing_behind(table: CountedTable) -> None:
    days = DayRollUps(table, rows_bytes_at_most=1_000)
    winner, loser = a_day(many_rows(3, 3), generation="g1"), a_day(many_rows(4, 5), generation="g2")
    assert days.put_day("main", "u1", winner, None)
    before = table.items()
    assert not days.put_day("main", "u1", loser, None)
    assert table.items() == before
    assert days.find_day("main", "u1", DAY) == winner


def test_parts_that_no_day_names_are_not_read(table: CountedTable) -> None:
    """Their writer died before it wrote the day's own item."""
    days = DayRollUps(table, rows_bytes_at_most=1_000)
    days._put_part("main", "u1", a_day(generation="gx"), 1, "[]")
    assert days.find_day("main", "u1", DAY) is None
    rolled = a_day(many_rows(3, 3), generation="g1")
    assert days.put_day("main", "u1", rolled, None)
    assert days.find_day("main", "u1", DAY) == rolled


def test_a_day_that_is_written_anew_between_two_pages_of_a_reader_is_read_again(table: CountedTable) -> None:
    """A query is no snapshot: old head, new parts."""
    days = DayRollUps(table, rows_bytes_at_most=1_000)
    old, new = a_day(many_rows(3, 3), generation="g1"), a_day(many_rows(3, 4), generation="g2")
    assert days.put_day("main", "u1", old, None)
    [head] = [item for item in days._items("TENANT#main#USER#u1", "DAY#", "DAY#~") if item["Type"] == "Day"]
    assert days.put_day("main", "u1", new, old)
    assert days._day("main", "u1", head, []) == new


def test_the_mark_only_moves_on(table: CountedTable) -> None:
    days = DayRollUps(table)
    assert days.find_mark("main", "u1") is None
    for instant in (NOON, NOON - timedelta(seconds=1), NOON):
        days.move_mark("main", "u1", instant)
        assert days.find_mark("main", "u1") == NOON
    days.move_mark("main", "u1", NOON + timedelta(microseconds=1))
    assert days.find_mark("main", "u1") == NOON + timedelta(microseconds=1)
    assert days.find_mark("main", "u2") is None
