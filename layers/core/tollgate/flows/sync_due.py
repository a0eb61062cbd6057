"""Look again at subscribers whose time has come: a grace that ends, or an event of Stripe's that should be here by now.

Harmless when late, doubled or killed half way: each subscriber leaves the index only by the write that settles it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from tollgate.domain.errors import StoreUnavailableError, StripeUnavailableError, UpstreamUnavailableError
from tollgate.domain.shards import rotated
from tollgate.domain.sources import Clock, UserReport
from tollgate.flows.apply_subscription import SubscriptionSync
from tollgate.storage.subscriptions import DUE_SHARDS, DueSubscriber, Subscriptions


@dataclass(frozen=True, slots=True)
class DueReport:
    """What one run did."""

    synced_subscribers: int
    refused_subscribers: int
    complete: bool
    """False: the deadline came first, or Stripe did not answer; the next run goes on."""


def sync_due(
    *,
    subscriptions: Subscriptions,
    sync: SubscriptionSync,
    clock: Clock,
    report: UserReport,
    deadline_at_seconds: float,
) -> DueReport:
    """Sync every subscriber that is due. Raises StoreUnavailableError; running it again is always right."""
    synced = refused = left = 0
    silent = False
    for due in _due(subscriptions, clock):
        if clock.now_seconds() >= deadline_at_seconds:
            return DueReport(synced, refused, complete=False)
        try:
            sync.sync(due.tenant_id, due.user_id)
        except (StripeUnavailableError, UpstreamUnavailableError) as error:  # Stripe, or the secret for it
            report("due_subscribers_left", error, tenant_id=due.tenant_id, user_id=due.user_id)
            if silent:
                return DueReport(synced, refused, complete=False)
            silent, left = True, left + 1  # for one that is one customer's trouble, for two it is an outage
        except StoreUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001  one whom Stripe refuses, or whose items are broken, keeps nobody
            report("due_subscriber_refused", error, tenant_id=due.tenant_id, user_id=due.user_id)
            refused += 1
        else:
            silent = False
            synced += 1
    return DueReport(synced, refused, complete=not left)


def _due(subscriptions: Subscriptions, clock: Clock) -> Iterator[DueSubscriber]:
    now = datetime.fromtimestamp(int(clock.now_seconds()), UTC)
    for shard in rotated(DUE_SHARDS, now):
        yield from subscriptions.list_due(shard, now)
