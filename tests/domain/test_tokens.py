"""Token counts, and what they count as."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.domain.tokens import TokenCounts, TokenWeights

amounts = st.integers(0, 2_000_000)
counts = st.builds(TokenCounts, amounts, amounts, amounts, amounts, amounts)
weights = st.builds(
    TokenWeights,
    st.integers(0, 100_000),
    st.integers(1, 100_000),
    st.integers(0, 100_000),
    st.integers(0, 100_000),
    st.integers(0, 100_000),
)


def test_the_prompt_is_everything_that_went_in() -> None:
    assert TokenCounts(1, 1000, 20, 300, 4000).prompt_tokens == 4321
    assert TokenCounts(1, 1000, 20, 300, 4000).total_tokens == 5321


@given(counts, counts)
def test_counts_add_kind_by_kind(one: TokenCounts, other: TokenCounts) -> None:
    total = one + other

    assert total == other + one
    assert total.total_tokens == one.total_tokens + other.total_tokens
    assert total.cache_read_tokens == one.cache_read_tokens + other.cache_read_tokens


@given(counts)
def test_without_weights_every_token_counts_as_one(some: TokenCounts) -> None:
    assert TokenWeights().billable_tokens(some) == some.total_tokens


@pytest.mark.parametrize(("output_tokens", "billable"), [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2)])
def test_a_part_of_a_billable_token_counts_whole(output_tokens: int, billable: int) -> None:
    assert TokenWeights(output=1).billable_output(output_tokens) == billable


def test_kinds_are_rounded_up_together_not_each() -> None:
    halves = TokenWeights(500, 500, 500, 500, 500)

    assert halves.billable_tokens(TokenCounts(1, 1, 1, 1, 1)) == 3


@given(weights, counts)
def test_each_kind_counts_by_its_own_weight(some_weights: TokenWeights, some: TokenCounts) -> None:
    thousandths = sum(
        amount * weight
        for amount, weight in [
            (some.input_tokens, some_weights.input),
            (some.output_tokens, some_weights.output),
            (some.cache_write_5m_tokens, some_weights.cache_write_5m),
            (some.cache_write_1h_tokens, some_weights.cache_write_1h),
            (some.cache_read_tokens, some_weights.cache_read),
        ]
    )

    billable = some_weights.billable_tokens(some)

    assert billable * 1000 >= thousandths > (billable - 1) * 1000


@given(weights, counts)
def test_bounds_hold_for_any_split_of_a_prompt_into_kinds(some_weights: TokenWeights, some: TokenCounts) -> None:
    """What W1 reserves before anybody knows the split is enough for whatever comes."""
    reserved = some_weights.billable_prompt_bound(some.prompt_tokens) + some_weights.billable_output(some.output_tokens)

    assert some_weights.billable_tokens(some) <= reserved


@given(weights, amounts)
def test_the_bound_is_reached_by_the_dearest_kind(some_weights: TokenWeights, prompt_tokens: int) -> None:
    """So it reserves no more than it must."""
    kinds = ["input", "cache_write_5m", "cache_write_1h", "cache_read"]
    dearest = max(kinds, key=lambda kind: getattr(some_weights, kind))
    worst = TokenCounts(**{f"{dearest}_tokens": prompt_tokens})

    assert some_weights.billable_prompt_bound(prompt_tokens) == some_weights.billable_tokens(worst)


@given(weights, amounts, amounts)
def test_a_longer_prompt_never_has_a_smaller_bound(some_weights: TokenWeights, one: int, more: int) -> None:
    assert some_weights.billable_prompt_bound(one) <= some_weights.billable_prompt_bound(one + more)


@given(weights, st.integers(0, 10_000_000))
def test_affordable_output_is_the_exact_inverse(some_weights: TokenWeights, budget_tokens: int) -> None:
    """The most output the budget pays for: that much fits, one token more does not."""
    most = some_weights.affordable_output(budget_tokens)

    assert some_weights.billable_output(most) <= budget_tokens
    assert some_weights.billable_output(most + 1) > budget_tokens


@given(weights, st.integers(-10_000_000, 0))
def test_nothing_left_affords_no_output(some_weights: TokenWeights, budget_tokens: int) -> None:
    assert some_weights.affordable_output(budget_tokens) == 0
