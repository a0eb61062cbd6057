"""What becomes of a wish for another plan: now, when the paid period is over, or nothing. No I/O, no clock."""

from __future__ import annotations

from enum import StrEnum

from tollgate.domain.plans import Plan
from tollgate.domain.subscriptions import Interval, RemoteSubscription, SubscriptionStatus


class Step(StrEnum):
    """What is done about the wish."""

    NONE = "none"
    """It is so already."""
    NOW = "now"
    """More is bought: at once, and paid at once."""
    AT_PERIOD_END = "at_period_end"
    """Less is bought, or nothing any more: what is paid for is kept until then."""
    KEEP = "keep"
    """The plan stays after all: what was to come is forgotten."""


def step_to(
    subscription: RemoteSubscription, current: Plan | None, wanted: Plan, interval: Interval, *, gives_up: bool
) -> Step:
    """`current`: the subscription's plan, as far as the catalog knows it. `gives_up`: `wanted` is what nobody pays for.

    A dearer plan, or a year instead of months, comes at once; a cheaper one, or months instead of a year, at the
    period's end. Prices are compared by the month.
    """
    if gives_up:
        return Step.NONE if subscription.cancel_at is not None else Step.AT_PERIOD_END
    if current is not None and current.id == wanted.id and subscription.interval is interval:
        coming = subscription.cancel_at is not None or subscription.schedule_id is not None
        return Step.KEEP if coming else Step.NONE
    cheaper = current is not None and wanted.price_cents < current.price_cents
    shorter = subscription.interval is Interval.YEAR and interval is Interval.MONTH
    return Step.AT_PERIOD_END if cheaper or shorter else Step.NOW


def restarts(step: Step, status: SubscriptionStatus) -> bool:
    """Whether paid and usage periods begin anew: with all that comes at once, but in a trial, where nothing is paid.

    Time is given back by its share of the period and a quota is not, so beside a quota that is added to the running
    period it would be bought for what the period's last hour costs.
    """
    return step is Step.NOW and status is not SubscriptionStatus.TRIALING


def may_change(status: SubscriptionStatus) -> bool:
    """Only who owes nothing buys something else."""
    return status in (SubscriptionStatus.ACTIVE, SubscriptionStatus.TRIALING)


def sells(plan: Plan, interval: Interval) -> bool:
    """Whether the plan can be bought so."""
    return plan.sold and (interval is Interval.MONTH or plan.annual_price_cents is not None)


def bills_overage(plan: Plan) -> bool:
    """Whether a subscription to the plan needs the overage price beside its own."""
    return not plan.hard and plan.overage_cap_tokens > 0 and plan.overage_price_microusd_per_1k_tokens > 0
