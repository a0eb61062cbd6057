"""What a request costs upstream: exact, by the row in force when it began, and never free."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.domain.pricing import Model, PriceRow, TokenPrices, cost_picousd, dearest_model
from tollgate.domain.tokens import TokenCounts, TokenWeights

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
SMALL = TokenPrices(input=100_000, output=500_000, cache_write_5m=125_000, cache_write_1h=200_000, cache_read=10_000)
LARGE = TokenPrices(*(5 * getattr(SMALL, field.name) for field in fields(SMALL)))
ROW = PriceRow(
    effective_from=date(2026, 10, 7),
    max_prompt_tokens=None,
    standard=SMALL,
    fast=None,
    batch_permille=500,
    us_only_permille=1100,
    web_search_microusd=10_000,
)
MODEL = Model(
    id="claude-test-1",
    display_name="Test 1",
    description="A model of this file",
    context_tokens=1_000_000,
    max_output_tokens=128_000,
    created_at=datetime(2026, 10, 7, tzinfo=UTC),
    deprecated_at=None,
    retires_at=None,
    aliases=(),
    weights=TokenWeights(),
    prices=(ROW,),
)
TWO_SIZES = replace(MODEL, prices=(replace(ROW, max_prompt_tokens=100_000), replace(ROW, standard=LARGE)))
TWO_DATES = replace(MODEL, prices=(ROW, replace(ROW, effective_from=date(2026, 11, 1), standard=LARGE)))
FAST = replace(MODEL, prices=(replace(ROW, fast=LARGE),))

amounts = st.integers(0, 300_000)
counts = st.builds(TokenCounts, amounts, amounts, amounts, amounts, amounts)
# Thousands, as the loader enforces: their batch and US-only forms are whole.
prices = st.builds(TokenPrices, *[st.integers(1, 100_000).map(lambda price: price * 1000)] * 5)
rows = st.builds(
    PriceRow,
    effective_from=st.dates(date(2026, 1, 1), date(2026, 12, 31)),
    max_prompt_tokens=st.none(),
    standard=prices,
    fast=st.none() | prices,
    batch_permille=st.sampled_from([500, 1000]),
    us_only_permille=st.sampled_from([1000, 1100]),
    web_search_microusd=st.integers(0, 50_000),
)
models = st.builds(
    lambda row, weights: replace(MODEL, prices=(row,), weights=weights),
    rows,
    st.builds(TokenWeights, *[st.integers(1, 50_000)] * 5),
)
speeds = st.sampled_from([None, "standard", "fast"])
service_tiers = st.sampled_from([None, "standard", "priority", "batch"])
places = st.sampled_from([None, "global", "not_available", "us"])


@pytest.mark.parametrize("kind", [field.name for field in fields(TokenPrices)])
def test_a_million_tokens_of_a_kind_cost_its_price(kind: str) -> None:
    some = TokenCounts(**{f"{kind}_tokens": 1_000_000})

    assert cost_picousd(MODEL, some, NOON) == getattr(SMALL, kind) * 1_000_000


@given(models, counts, speeds, service_tiers, places, st.integers(0, 100))
def test_cost_is_exact(
    model: Model, some: TokenCounts, speed: str | None, tier: str | None, geo: str | None, searches: int
) -> None:
    """Nothing is rounded: the same sum in unbounded thousandths of thousandths, divided, leaves no remainder."""
    row = model.prices[0]
    price = row.fast if speed == "fast" and row.fast else row.standard
    tokens = sum(getattr(some, f"{field.name}_tokens") * getattr(price, field.name) for field in fields(price))
    factor = (row.batch_permille if tier == "batch" else 1000) * (row.us_only_permille if geo == "us" else 1000)
    assert tokens * factor % 1_000_000 == 0

    cost = cost_picousd(model, some, NOON, speed=speed, service_tier=tier, inference_geo=geo, web_searches=searches)

    assert cost == tokens * factor // 1_000_000 + searches * row.web_search_microusd * 1_000_000


@pytest.mark.parametrize(
    ("prompt_tokens", "price"),
    [(99_999, SMALL.input), (100_000, SMALL.input), (100_001, LARGE.input)],
)
def test_the_prompt_size_prices_every_token_of_the_request(prompt_tokens: int, price: int) -> None:
    some = TokenCounts(input_tokens=prompt_tokens, output_tokens=1)

    assert cost_picousd(TWO_SIZES, some, NOON) == prompt_tokens * price + 5 * price


@pytest.mark.parametrize("kind", ["cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"])
def test_cached_tokens_make_a_prompt_larger(kind: str) -> None:
    at_threshold = TokenCounts(input_tokens=1, **{kind: 99_999})
    above = TokenCounts(input_tokens=2, **{kind: 99_999})

    assert TWO_SIZES.price_row(at_threshold.prompt_tokens, NOON).standard == SMALL
    assert TWO_SIZES.price_row(above.prompt_tokens, NOON).standard == LARGE


def test_output_does_not_make_a_prompt_larger() -> None:
    long_answer = TokenCounts(input_tokens=100_000, output_tokens=128_000)

    assert TWO_SIZES.price_row(long_answer.prompt_tokens, NOON).standard == SMALL


@pytest.mark.parametrize(
    ("at", "standard"),
    [
        (datetime(2026, 10, 31, 23, 59, 59, 999_999, tzinfo=UTC), SMALL),
        (datetime(2026, 11, 1, tzinfo=UTC), LARGE),
        (datetime(2026, 11, 1, 0, 0, 0, 1, tzinfo=UTC), LARGE),
    ],
)
def test_a_price_holds_from_midnight_utc_of_its_date(at: datetime, standard: TokenPrices) -> None:
    assert TWO_DATES.price_row(1, at).standard == standard


def test_the_date_is_utc_wherever_the_instant_was_written() -> None:
    in_auckland = datetime(2026, 11, 1, 12, 59, tzinfo=timezone(timedelta(hours=13)))

    assert TWO_DATES.price_row(1, in_auckland).standard == SMALL


def test_a_new_price_never_rewrites_the_past() -> None:
    began = datetime(2026, 10, 20, tzinfo=UTC)
    some = TokenCounts(1_000, 1_000, 1_000, 1_000, 1_000)

    assert cost_picousd(TWO_DATES, some, began) == cost_picousd(MODEL, some, began)


def test_a_size_belongs_to_its_date() -> None:
    """The new date has one row for all sizes; the threshold of the old one is gone."""
    flat = replace(ROW, effective_from=date(2026, 11, 1))
    model = replace(MODEL, prices=(*TWO_SIZES.prices, flat))

    assert model.price_row(100_001, datetime(2026, 10, 31, tzinfo=UTC)).standard == LARGE
    assert model.price_row(100_001, datetime(2026, 11, 1, tzinfo=UTC)).standard == SMALL


def test_before_its_first_date_a_model_costs_what_it_cost_first() -> None:
    assert TWO_DATES.price_row(1, datetime(2020, 1, 1, tzinfo=UTC)).standard == SMALL


def test_a_naive_instant_has_no_price() -> None:
    with pytest.raises(ValueError, match="aware"):
        cost_picousd(MODEL, TokenCounts(), datetime(2026, 11, 20))  # noqa: DTZ001  what the test is about


def test_batch_halves_tokens_but_not_searches() -> None:
    some = TokenCounts(1_000, 1_000, 1_000, 1_000, 1_000)
    full = cost_picousd(MODEL, some, NOON)

    assert cost_picousd(MODEL, some, NOON, service_tier="batch") * 2 == full
    searched = cost_picousd(MODEL, some, NOON, service_tier="batch", web_searches=3)
    assert searched == full // 2 + 30_000 * 1_000_000


@pytest.mark.parametrize("service_tier", [None, "standard", "priority", "something new"])
def test_only_batch_is_cheaper(service_tier: str | None) -> None:
    some = TokenCounts(output_tokens=1_000)

    assert cost_picousd(MODEL, some, NOON, service_tier=service_tier) == cost_picousd(MODEL, some, NOON)


@pytest.mark.parametrize(
    ("place", "permille"),
    [(None, 1000), ("", 1000), ("global", 1000), ("not_available", 1000), ("us", 1100), ("somewhere new", 1100)],
)
def test_inference_in_one_place_costs_more(place: str | None, permille: int) -> None:
    some = TokenCounts(1_000, 1_000, 1_000, 1_000, 1_000)

    assert cost_picousd(MODEL, some, NOON, inference_geo=place) * 1000 == cost_picousd(MODEL, some, NOON) * permille


@pytest.mark.parametrize(
    ("speed", "standard"),
    [(None, SMALL), ("standard", SMALL), ("fast", LARGE), ("something new", LARGE)],
)
def test_fast_has_prices_of_its_own(speed: str | None, standard: TokenPrices) -> None:
    some = TokenCounts(1_000, 1_000, 1_000, 1_000, 1_000)

    assert cost_picousd(FAST, some, NOON, speed=speed) == standard.cost_picousd(some)


def test_a_model_without_fast_mode_costs_the_standard_price() -> None:
    """Upstream runs such a request at standard speed and bills it so."""
    some = TokenCounts(output_tokens=1_000)

    assert cost_picousd(MODEL, some, NOON, speed="fast") == cost_picousd(MODEL, some, NOON)


@given(st.lists(models, min_size=1, max_size=4), counts, speeds, service_tiers, places, st.integers(0, 10))
def test_no_model_costs_or_counts_more_than_the_dearest(
    known: list[Model], some: TokenCounts, speed: str | None, tier: str | None, geo: str | None, searches: int
) -> None:
    """So a model nobody has priced is never cheaper than it would be if somebody had."""
    dearest = dearest_model(tuple(known))

    for model in known:
        assert model.weights.billable_tokens(some) <= dearest.weights.billable_tokens(some)
        cheaper, dearer = (
            cost_picousd(one, some, NOON, speed=speed, service_tier=tier, inference_geo=geo, web_searches=searches)
            for one in (model, dearest)
        )
        assert cheaper <= dearer


def test_the_dearest_has_the_smallest_discount_and_the_largest_surcharge() -> None:
    plain = replace(MODEL, prices=(replace(ROW, batch_permille=900, us_only_permille=1000),))
    counts = TokenCounts(input_tokens=1_000)
    price = 1_000 * SMALL.input

    dearest = dearest_model((MODEL, plain))

    assert cost_picousd(dearest, counts, NOON, service_tier="batch") == price * 9 // 10
    assert cost_picousd(dearest, counts, NOON, inference_geo="us") == price * 11 // 10


def test_the_dearest_takes_whatever_any_model_takes() -> None:
    small = replace(MODEL, context_tokens=200_000, max_output_tokens=64_000)

    dearest = dearest_model((small, MODEL))

    assert (dearest.context_tokens, dearest.max_output_tokens) == (1_000_000, 128_000)


def test_the_dearest_of_one_model_costs_what_it_costs() -> None:
    some = TokenCounts(1_000, 1_000, 1_000, 1_000, 1_000)

    assert cost_picousd(dearest_model((MODEL,)), some, NOON) == cost_picousd(MODEL, some, NOON)
