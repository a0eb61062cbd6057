"""Another plan for a subscription that is there: dearer at once, cheaper when the paid period is over.

Stripe is asked what is, told what shall be, and then everything is read again from Stripe (`SubscriptionSync`): the
very next call is on the new plan, and a notice of the change that comes later finds nothing to do. Every step bears
being repeated; an answer that was lost is found as "it is so already".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from tollgate.domain.billing import PlanChange, Quote
from tollgate.domain.errors import ConflictError
from tollgate.domain.plan_changes import Step, bills_overage, may_change, sells, step_to
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
    from tollgate.flows.apply_subscription import SubscriptionSync
    from tollgate.providers.stripe_billing import StripeBilling
    from tollgate.storage.subscriptions import Subscriptions


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
        *,
        default_plan_id: str | None = None,
    ) -> None:
        """`default_plan_id`: what nobody pays for; None: the catalog's own. Raises CatalogError: no such plan."""
        self._subscriptions = subscriptions
        self._stripe = stripe
        self._sync = sync
        self._catalog = catalog
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
        `payment_pending`), PaymentFailedError.
        """
        planned = self._plan(account, plan_id, interval)
        payment_url = self._do(planned)
        synced = self._sync.sync(account.tenant_id, account.user_id)
        return Changed(planned, synced.subscriber, payment_url)

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
        return Planned(step, self._change_of(subscription, wanted, paid_every), gives_up)

    def _change_of(self, subscription: RemoteSubscription, wanted: Plan, interval: Interval) -> PlanChange:
        trialing = subscription.status is SubscriptionStatus.TRIALING
        return PlanChange(
            subscription=subscription,
            plan_id=wanted.id,
            interval=interval,
            overage_lookup_key=self._catalog.billing.overage_lookup_key if bills_overage(wanted) else None,
            restarts=interval is not subscription.interval and not trialing,
            ends_trial=trialing and wanted.trial_days == 0,
            goes_on=subscription.cancel_at is not None,
        )

    def _alive(self, account: Account) -> RemoteSubscription:
        """The subscription that counts, by Stripe's word."""
        subscriber = self._subscriptions.find(account.tenant_id, account.user_id)
        customer_id = subscriber.customer_id
        found = (
            None if customer_id is None else choose_subscription(self._stripe.list_subscriptions(customer_id)).counts
        )
        if found is None or found.status.ended:
            raise ConflictError(
                "There is no subscription to change. Buy a plan with POST /billing/checkout.",
                error_code="not_subscribed",
            )
        if found.status is SubscriptionStatus.INCOMPLETE:
            raise ConflictError(
                "The first payment of the subscription is not finished. Finish it in the billing portal (POST"
                " /billing/portal).",
                error_code="payment_pending",
            )
        return found

    def _do(self, planned: Planned) -> str | None:
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
            return self._stripe.change_plan(change).payment_url
        if planned.gives_up:
            self._stripe.keep_at_period_end(subscription.id, keep=False)
            return None
        if subscription.cancel_at is not None:
            subscription = self._stripe.keep_at_period_end(subscription.id, keep=True)
        if comes_later:
            self._stripe.schedule_change(replace(change, subscription=subscription))
        return None
