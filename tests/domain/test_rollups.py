"""Sums of use: they add up, and the parts of a cost are the cost."""

from __future__ import annotations

import random
from dataclasses import fields
from datetime import UTC, date, datetime

import pytest

from tollgate.catalog.loader import load_catalog
from tollgate.domain.money import decimal, dollars
from tollgate.domain.pricing import cost_parts, cost_picousd
from tollgate.domain.rollups import Sums, days_between, end_of, start_of, total
from tollgate.domain.tokens import TokenCounts


def test_sums_add_field_by_field_in_any_order() -> None:
    rng, names = random.Random(1), [field.name for field in fields(Sums)]
    parts = [Sums(**{name: rng.randrange(10**15) for name in names}) for _ in range(20)]
    whole = total(parts)
    assert all(getattr(whole, name) == sum(getattr(part, name) for part in parts) for name in names)
    rng.shuffle(parts)
    assert total(parts) == whole
    assert total([]) == Sums()


def test_the_parts_of_a_cost_are_the_cost_for_every_model_mode_and_size() -> None:
    rng, at = random.Random(2), datetime(2026, 11, 20, tzinfo=UTC)
    for model in load_catalog("default").models.values():
        for _ in range(40):
            counts = TokenCounts(*(rng.choice([0, rng.randrange(300_000)]) for _ in range(5)))
            ways = {
                "speed": rng.choice([None, "standard", "fast"]),
                "service_tier": rng.choice([None, "standard", "batch", "priority"]),
                "inference_geo": rng.choice([None, "global", "us", "not_available"]),
            }
            searches = rng.randrange(4)
            cost = cost_picousd(model, counts, at, web_searches=searches, **ways)
            assert cost_parts(model, counts, at, web_searches=searches, **ways).total_picousd == cost


def test_days_include_both_ends() -> None:
    day = date(2026, 2, 28)
    assert days_between(day, date(2026, 3, 1)) == [day, date(2026, 3, 1)]
    assert days_between(day, day) == [day]
    assert end_of(day) == start_of(date(2026, 3, 1))


@pytest.mark.parametrize(
    ("picousd", "text"),
    [
        (0, "$0.00"),
        (498_000_000, "$0.000498"),
        (499_999, "$0.00"),
        (500_000, "$0.000001"),
        (10**12, "$1.00"),
        (1_500_000_000_000, "$1.50"),
        (1_234_567_890 * 10**12 + 120_000_000_000, "$1,234,567,890.12"),
        (-2_500_000_000_000, "-$2.50"),
    ],
)
def test_dollars_for_people(picousd: int, text: str) -> None:
    assert dollars(picousd) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (1, "0.0000000001"), (10**10, "1"), (12_378_912 * 10**5, "123.78912"), (-5, "-0.0000000005")],
)
def test_decimals_are_exact(amount: int, text: str) -> None:
    assert decimal(amount, 10**10) == text
