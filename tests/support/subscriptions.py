"""Subscriptions as Stripe would have them, for tests about what follows from one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tollgate.domain.subscriptions import Interval, RemoteSubscription, Subscriber, SubscriptionStatus

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def a_subscription(**changes: Any) -> RemoteSubscription:  # noqa: ANN401  any field
    """An active month of Pro, ten days old; change what the test is about."""
    subscription = RemoteSubscription(
        id="sub_1",
        customer_id="cus_1",
        status=SubscriptionStatus.ACTIVE,
        created_at=NOW - 10 * DAY,
        plan_id="pro",
        interval=Interval.MONTH,
        plan_item_id="si_1",
        period_start_at=NOW - 10 * DAY,
        period_end_at=NOW + 20 * DAY,
        metered_item_id="si_2",
        metered_start_at=NOW - 10 * DAY,
        metered_end_at=NOW + 20 * DAY,
        anchor_at=NOW - 10 * DAY,
        trial_end_at=None,
        cancel_at=None,
    )
    return replace(subscription, **changes)


def a_subscriber(subscription: RemoteSubscription | None = None, **changes: Any) -> Subscriber:  # noqa: ANN401
    """`u1` of tenant `main`, version 3."""
    subscriber = Subscriber("main", "u1", version=3, customer_id="cus_1", subscription=subscription)
    return replace(subscriber, **changes)
