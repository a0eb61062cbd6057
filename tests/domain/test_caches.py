"""What a container may remember: bounded in number and in age."""

from __future__ import annotations

import pytest

from tollgate.domain.caches import AgingCache


def a_cache(max_entries: int = 3) -> AgingCache[str, int]:
    return AgingCache(max_entries=max_entries, max_age_seconds=50)


@pytest.mark.parametrize(("age_seconds", "found"), [(49.9, 1), (50, None), (50.1, None)])
def test_a_value_is_served_for_less_than_its_longest_age(age_seconds: float, found: int | None) -> None:
    cache = a_cache()
    cache.put("a", 1, 1000)
    assert cache.get("a", 1000 + age_seconds) == found


def test_reading_does_not_prolong_a_life() -> None:
    cache = a_cache()
    cache.put("a", 1, 1000)
    assert cache.get("a", 1049) == 1
    assert cache.get("a", 1051) is None


def test_a_clock_that_was_set_back_ends_the_life() -> None:
    cache = a_cache()
    cache.put("a", 1, 1000)
    assert cache.get("a", 999) is None


def test_the_oldest_entry_makes_room_for_a_new_one() -> None:
    cache = a_cache()
    for name in "abcd":
        cache.put(name, 1, 1000)
    assert len(cache) == 3
    assert [cache.get(name, 1000) for name in "abcd"] == [None, 1, 1, 1]


def test_storing_again_renews_value_and_age_and_takes_no_second_place() -> None:
    cache = a_cache()
    cache.put("a", 1, 1000)
    cache.put("b", 1, 1000)
    cache.put("a", 2, 1040)
    cache.put("c", 1, 1040)
    cache.put("d", 1, 1040)
    assert cache.get("b", 1040) is None
    assert cache.get("a", 1089) == 2
