"""A price says its plan by metadata, else by its lookup key, and says nothing when it is not ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.domain.price_keys import plan_of_price, price_lookup_key, price_metadata
from tollgate.domain.subscriptions import Interval

plan_ids = st.from_regex(r"[a-z][a-z0-9_-]{0,15}", fullmatch=True)


@given(plan_ids, st.sampled_from(Interval))
def test_a_lookup_key_leads_back_to_its_plan(plan_id: str, interval: Interval) -> None:
    assert plan_of_price({}, price_lookup_key(plan_id, interval)) == (plan_id, interval)


@given(plan_ids, st.sampled_from(Interval), st.none() | st.text())
def test_metadata_is_believed_before_any_lookup_key(plan_id: str, interval: Interval, key: str | None) -> None:
    assert plan_of_price(price_metadata(plan_id, interval), key) == (plan_id, interval)


@pytest.mark.parametrize(
    "lookup_key",
    [None, "", "pro_month", "tollgate_", "tollgate_month", "tollgate__month", "tollgate_pro_week", "tollgate_overage"],
)
def test_what_is_not_ours_is_no_plan(lookup_key: str | None) -> None:
    assert plan_of_price({}, lookup_key) is None


@pytest.mark.parametrize("metadata", [{"tollgate_plan": "pro"}, {"tollgate_interval": "month"}])
def test_half_of_the_metadata_is_none(metadata: dict[str, str]) -> None:
    assert plan_of_price(metadata, None) is None
    assert plan_of_price(metadata, "tollgate_max_year") == ("max", Interval.YEAR)
