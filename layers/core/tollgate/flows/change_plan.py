"""Another plan for a subscription that is there: dearer at once, cheaper when the paid period is over.

What comes at once begins new periods, paid and of usage (`tollgate.domain.plan_changes.restarts`). Two that come at
once would begin two, so one at a time has the turn to change a user's plan.

Stripe is asked what is, told what shall be, and then everything is read again from Stripe (`SubscriptionSync`): the
very next call is on the new plan, and a notice of the change that comes later finds nothing to do. Every step bears
being repeated; an answer that was lost is found as "it is so already".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tollgate.domain.billing import PlanChange, Quote
from tollgate.domain.errors import ConflictError, PaymentFailedError, StoreUnavailableError
from tollgate.domain.plan_changes import Step, bills_overage, may_change, restarts, sells, step_to
from tollgate.domain.plans import Plan
from tollgate.domain.principals import Account
from tollgate.domain.subscriptions import (
    Interval,
    RemoteSubscription,
    Subscriber,
    SubscriptionStatus,
    choose_subscription,
)
from tollgate.flows.checkout import not_sold

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog
    from tollgate.domain.sources import Clock, IdSource
    from tollgate.flows.apply_subscription import SubscriptionSync
    from tollgate.providers.stripe_billing import StripeBilling
    from tollgate.storage.subscriptions import Subscriptions

_OWNER_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class Planned:
    """What is done about a wish."""

    step: Step
    change: PlanChange
    gives_up: bool
    """The wish is the plan that nobody pays for."""

    @property
    def comes_at(self) -> datetime | None:
        """None: now, or nothing comes."""
        if self.step is not Step.AT_PERIOD_END:
            return None
        return self.change.subscription.period_end_at


@dataclass(frozen=True, slots=True)
class Estimate:
    """What it would cost."""

    planned: Planned
    due_now: Quote | None
    """None: nothing."""
    each_period: Quote | None
    """What follows, without credits for what is paid already; None: nothing is paid any more."""


@dataclass(frozen=True, slots=True)
class Changed:
    planned: Planned
    subscriber: Subscriber
    payment_url: str | None
    """Where the change is paid, when the card was declined: until then nothing has changed."""


class PlanChanger:
    """Changes plans. Every method raises StripeUnavailableError, StripeRefusedError and StoreUnavailableError."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        stripe: StripeBilling,
        sync: SubscriptionSync,
        catalog: Catalog,
        clock: Clock,
        ids: IdSource,
        flush_overage: Callable[[str, str], None],
        *,
        default_plan_id: str | None = None,
    ) -> None:
        """`flush_overage`: of a tenant's user, `tollgate.flows.flush_overage`. `default_plan_id`: what nobody pays for;
        None: the catalog's own. Raises CatalogError: no such plan.
        """
        self._subscriptions = subscriptions
        self._stripe = stripe
        self._sync = sync
        self._catalog = catalog
        self._clock = clock
        self._ids = ids
        self._flush_overage = flush_overage
        self._default_plan = catalog.plan(default_plan_id or catalog.default_plan_id)

    def estimate(self, account: Account, plan_id: str, interval: Interval | None) -> Estimate:
        """What `change` would do, by Stripe's own reckoning. Raises as `change` does."""
        planned = self._plan(account, plan_id, interval)
        if planned.gives_up:
            return Estimate(planned, due_now=None, each_period=None)
        due_now, each_period = self._stripe.quote_change(planned.change, at_once=planned.step is Step.NOW)
        return Estimate(planned, due_now, each_period)

    def change(self, account: Account, plan_id: str, interval: Interval | None) -> Changed:
        """Do it, and bring the user to where Stripe is then. `interval` None: as it is paid now.

        Raises NotFoundError (`plan_not_sold`), ConflictError (`not_subscribed`, `subscription_not_active`,
        `payment_pending`; `conflict`: another request changes the plan just now), PaymentFailedError: nothing has
        changed, and what was to come still comes.
        """
        with self._alone(account):
            planned = self._plan(account, plan_id, interval)
            payment_url = self._do(account, planned)
            synced = self._sync.sync(account.tenant_id, account.user_id)
        return Changed(planned, synced.subscriber, payment_url)

    @contextmanager
    def _alone(self, account: Account) -> Iterator[None]:
        """The turn to change this user's plan. Who dies with it keeps others waiting until it ends by itself."""
        tenant_id, user_id, owner = account.tenant_id, account.user_id, self._ids.new_id(_OWNER_LENGTH)
        if self._subscriptions.find(tenant_id, user_id).customer_id is None:
            raise _not_subscribed()
        now = datetime.fromtimestamp(self._clock.now_seconds(), UTC)
        if not self._subscriptions.take_turn(tenant_id, user_id, owner, now):
            raise ConflictError("The plan is being changed by another request just now. Try again.")
        try:
            yield
        finally:
            with suppress(StoreUnavailableError):  # it ends by itself
                self._subscriptions.give_back_turn(tenant_id, user_id, owner)

    def _plan(self, account: Account, plan_id: str, interval: Interval | None) -> Planned:
        subscription = self._alive(account)
        paid_every = interval or subscription.interval or Interval.MONTH
        wanted = self._catalog.plans.get(plan_id)
        gives_up = plan_id == self._default_plan.id
        current = self._catalog.plans.get(subscription.plan_id or "")
        # A plan that is not sold any more may be kept.
        kept = wanted is not None and current == wanted and subscription.interval is paid_every
        if wanted is None or not (gives_up or kept or sells(wanted, paid_every)):
            raise not_sold()
        if not gives_up and not may_change(subscription.status):
            raise ConflictError(
                "The subscription waits for a payment. Pay it in the billing portal (POST /billing/portal) first.",
                error_code="subscription_not_active",
            )
        step = step_to(subscription, current, wanted, paid_every, gives_up=gives_up)
        return Planned(step, self._change_of(subscription, wanted, paid_every, step), gives_up)

    def _change_of(self, subscription: RemoteSubscription, wanted: Plan, interval: Interval, step: Step) -> PlanChange:
        return PlanChange(
            subscription=subscription,
            plan_id=wanted.id,
            interval=interval,
            overage_lookup_key=self._overage_key(wanted),
            restarts=restarts(step, subscription.status),
            ends_trial=subscription.status is SubscriptionStatus.TRIALING and wanted.trial_days == 0,
            goes_on=subscription.cancel_at is not None,
            # Else the change that was to come could not be put back: one that waits may be paid for at any time.
            paid_or_refused=_comes_by_schedule(subscription),
        )

    def _overage_key(self, plan: Plan | None) -> str | None:
        return self._catalog.billing.overage_lookup_key if plan is not None and bills_overage(plan) else None

    def _alive(self, account: Account) -> RemoteSubscription:
        """The subscription that counts, by Stripe's word."""
        subscriber = self._subscriptions.find(account.tenant_id, account.user_id)
        customer_id = subscriber.customer_id
        found = (
            None if customer_id is None else choose_subscription(self._stripe.list_subscriptions(customer_id)).counts
        )
        if found is None or found.status.ended:
            raise _not_subscribed()
        if found.status is SubscriptionStatus.INCOMPLETE:
            raise ConflictError(
                "The first payment of the subscription is not finished. Finish it in the billing portal (POST"
                " /billing/portal).",
                error_code="payment_pending",
            )
        return found

    def _do(self, account: Account, planned: Planned) -> str | None:
        """Tell Stripe. A change that was to come is forgotten first: Stripe would refuse, or come back to it."""
        change = planned.change
        subscription = change.subscription
        if planned.step is Step.NONE:
            return None
        comes_later = planned.step is Step.AT_PERIOD_END and not planned.gives_up
        # Ended in the portal meanwhile: beside a schedule, Stripe does not let that be taken back.
        ends_first = subscription.cancel_at is not None
        if subscription.schedule_id is not None and (ends_first or not comes_later):
            self._stripe.release_schedule(subscription.schedule_id)
        if planned.step is Step.NOW:
            return self._change_now(account, change)
        if planned.gives_up:
            self._stripe.keep_at_period_end(subscription.id, keep=False)
            return None
        if subscription.cancel_at is not None:
            subscription = self._stripe.keep_at_period_end(subscription.id, keep=True)
        if comes_later:
            self._stripe.schedule_change(replace(change, subscription=subscription))
        return None

    def _change_now(self, account: Account, change: PlanChange) -> str | None:
        """The change of a subscription without a schedule; the address where it is paid if it waits for that."""
        if change.restarts:
            # Stripe bills the overage of the period that ends now in the same second.
            self._flush_overage(account.tenant_id, account.user_id)
        try:
            return self._stripe.change_plan(change).payment_url
        except PaymentFailedError:
            self._put_back(change.subscription)
            raise

    def _put_back(self, subscription: RemoteSubscription) -> None:
        """Let the change come that was to come before it was released."""
        plan_id, interval = subscription.pending_plan_id, subscription.pending_interval
        if plan_id is None or interval is None or not _comes_by_schedule(subscription):
            return
        released = replace(subscription, schedule_id=None)
        key = self._overage_key(self._catalog.plans.get(plan_id))
        self._stripe.schedule_change(PlanChange(released, plan_id, interval, key))


def _comes_by_schedule(subscription: RemoteSubscription) -> bool:
    """Another plan is to come; it does not where the subscription ends before."""
    return subscription.pending_plan_id is not None and subscription.cancel_at is None


def _not_subscribed() -> ConflictError:
    return ConflictError(
        "There is no subscription to change. Buy a plan with POST /billing/checkout.", error_code="not_subscribed"
    )
