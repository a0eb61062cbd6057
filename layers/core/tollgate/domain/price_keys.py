"""How a price at Stripe says which plan it sells: by its metadata, else by its lookup key, never by its position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tollgate.domain.subscriptions import Interval

PLAN_FIELD: Final = "tollgate_plan"
"""Metadata of our products and prices: the plan's id."""
INTERVAL_FIELD: Final = "tollgate_interval"
OWNED_FIELD: Final = "tollgate"
"""Metadata of everything that `tollgate plans sync` made; what lacks it is never touched."""

_PREFIX: Final = "tollgate_"


def price_lookup_key(plan_id: str, interval: Interval) -> str:
    """`tollgate_pro_month`: at most one active price has it, that at which the plan is sold now."""
    return f"{_PREFIX}{plan_id}_{interval}"


def price_metadata(plan_id: str, interval: Interval) -> dict[str, str]:
    """What a price keeps when its lookup key has moved on to a newer one: subscribers stay on it, and on their plan."""
    return {PLAN_FIELD: plan_id, INTERVAL_FIELD: str(interval)}


def plan_of_price(metadata: Mapping[str, str], lookup_key: str | None) -> tuple[str, Interval] | None:
    """The plan that a price sells and how often it is paid; None when it is no plan of ours."""
    plan_id, interval = metadata.get(PLAN_FIELD), metadata.get(INTERVAL_FIELD)
    if not (plan_id and interval) and lookup_key is not None and lookup_key.startswith(_PREFIX):
        plan_id, _, interval = lookup_key.removeprefix(_PREFIX).rpartition("_")
    if not plan_id or interval not in set(Interval):
        return None
    return plan_id, Interval(interval)
