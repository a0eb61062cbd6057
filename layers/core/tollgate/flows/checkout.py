"""Buy a plan: one customer for each user, one open checkout, and never a second subscription.

Four things stand in the way of a second one, each enough for what it can see:
- the customer is made by us and stored before anything is sold to it, so all that a user buys is in one list at Stripe;
- the place for an open checkout is claimed by a conditional write before Stripe makes the session, and the claim is
  Stripe's idempotency key: two requests at once get the same session, and so does one whose answer was lost;
- a session that is not the claim's is ended before another is handed out, and one that came too late is by its maker;
- then Stripe is asked for what is alive, not only our own record, which an event may not have reached yet.

What is bought past all of this, outside of our own checkout, is ended by `SubscriptionSync`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from tollgate.domain.billing import CheckoutSession, CheckoutStatus, CheckoutWish
from tollgate.domain.errors import ConflictError, NotFoundError, StoreUnavailableError, StripeRefusedError
from tollgate.domain.plan_changes import bills_overage, sells
from tollgate.domain.plans import Plan
from tollgate.domain.principals import Account
from tollgate.domain.sources import Clock, IdSource
from tollgate.domain.subscriptions import Interval, OpenCheckout, RemoteSubscription, Subscriber, SubscriptionStatus
from tollgate.flows.apply_subscription import Look

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog
    from tollgate.flows.apply_subscription import SubscriptionSync
    from tollgate.providers.stripe_billing import StripeBilling
    from tollgate.storage.subscriptions import Subscriptions

OPEN_SECONDS: Final = 2 * 3600
"""How long a checkout can be paid. Stripe takes from half an hour to a day."""
SHORTEST_SECONDS: Final = 45 * 60
"""One that ends sooner is replaced: the user needs time, and Stripe refuses to make one of less than half an hour."""
MAX_ROUNDS: Final = 4


@dataclass(frozen=True, slots=True)
class Order:
    """What a user wants to buy. The addresses are checked already."""

    plan_id: str
    interval: Interval
    success_url: str
    cancel_url: str
    promotion: str | None = None

    @property
    def fingerprint(self) -> str:
        """Tells two orders apart."""
        parts = (self.plan_id, self.interval.value, self.success_url, self.cancel_url, self.promotion or "")
        return sha256("\n".join(parts).encode()).hexdigest()[:16]


class Checkouts:
    """Opens checkouts. Every method raises StripeUnavailableError, StripeRefusedError and StoreUnavailableError."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        stripe: StripeBilling,
        sync: SubscriptionSync,
        catalog: Catalog,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._subscriptions = subscriptions
        self._stripe = stripe
        self._sync = sync
        self._catalog = catalog
        self._clock = clock
        self._ids = ids

    def open(self, account: Account, order: Order) -> CheckoutSession:
        """The page on which the order is paid; the same one while it can be paid and nothing else was ordered.

        Raises NotFoundError (`plan_not_sold`, `promotion_not_found`), ConflictError (`already_subscribed`,
        `payment_pending`, `checkout_in_progress`).
        """
        plan = self._sold_plan(order)
        promotion_id = self._promotion(account, order)
        for _ in range(MAX_ROUNDS):
            subscriber = self._with_customer(account)
            checkout = self._claimed(subscriber, order)
            if checkout is None:
                continue
            had = self._refuse_subscribed(subscriber, checkout)
            trial_days = 0 if _had_trial(subscriber, had) else plan.trial_days
            if checkout.session_id is None:
                wish = self._wish(subscriber, checkout, order, promotion_id, trial_days)
                session = self._made(subscriber, wish)
            else:
                session = self._still_open(subscriber, checkout, checkout.session_id)
            if session is not None:
                return session
        raise StoreUnavailableError("This account's billing is being changed at the same moment. Try again.")

    # ---- before anything is written

    def _sold_plan(self, order: Order) -> Plan:
        plan = self._catalog.plans.get(order.plan_id)
        if plan is None or not sells(plan, order.interval):
            raise not_sold()
        return plan

    def _promotion(self, account: Account, order: Order) -> str | None:
        if order.promotion is None:
            return None
        if not self._catalog.billing.promotion_codes:
            raise _no_promotion()
        customer_id = self._subscriptions.find(account.tenant_id, account.user_id).customer_id
        found = self._stripe.find_promotion(order.promotion, customer_id)
        if found is None:
            raise _no_promotion()
        return found

    def _with_customer(self, account: Account) -> Subscriber:
        """The subscriber, whose customer is stored before anything is sold to it."""
        tenant_id, user_id = account.tenant_id, account.user_id
        subscriber = self._subscriptions.find(tenant_id, user_id)
        if subscriber.customer_id is not None:
            return subscriber
        # The version moves when a customer is dropped because it was deleted at Stripe: the key must move then, or
        # Stripe would answer with the deleted one for a day. Without a key, each lost answer would leave a customer.
        email = account.profile.email
        about = sha256(f"{subscriber.version}\n{email or ''}".encode()).hexdigest()[:16]
        customer_id = self._stripe.create_customer(
            tenant_id, user_id, email, idempotency_key=f"tollgate-customer-{tenant_id}-{user_id}-{about}"
        )
        self._subscriptions.claim_customer(tenant_id, user_id, customer_id)
        return self._subscriptions.find(tenant_id, user_id)

    # ---- the one place

    def _claimed(self, subscriber: Subscriber, order: Order) -> OpenCheckout | None:
        """The checkout of this order, claimed now or before; None: somebody else wrote meanwhile.

        Whatever was ordered before, and can still be paid, cannot be any more when this returns.
        """
        now, there = self._now(), subscriber.checkout
        if there is not None and _is_for(there, order) and there.expires_at - now > timedelta(seconds=SHORTEST_SECONDS):
            return there
        if there is not None and there.session_id is not None:
            self._end(subscriber, there.session_id)
        claim = OpenCheckout(
            claim=f"{order.fingerprint}-{self._ids.new_id(16)}",
            plan_id=order.plan_id,
            interval=order.interval,
            expires_at=now + timedelta(seconds=OPEN_SECONDS),
        )
        seen = None if there is None else there.claim
        if not self._subscriptions.claim_checkout(subscriber.tenant_id, subscriber.user_id, claim, instead_of=seen):
            return None
        for session in self._stripe.list_checkouts(_customer(subscriber)):
            if session.claim != claim.claim:
                self._end(subscriber, session.id)
        return claim

    def _refuse_subscribed(self, subscriber: Subscriber, checkout: OpenCheckout) -> tuple[RemoteSubscription, ...]:
        """All that the user ever bought, none of it alive. Raises ConflictError for what is alive, by Stripe's word.

        Asked after the claim: what was bought by a checkout that had the place before is there by now.
        """
        had = self._stripe.list_subscriptions(_customer(subscriber))
        alive = [one for one in had if one.plan_id is not None and not one.status.ended]
        if not alive:
            return had
        if checkout.session_id is not None:
            self._stripe.expire_checkout(checkout.session_id)
        self._subscriptions.free_checkout(subscriber.tenant_id, subscriber.user_id, checkout.claim)
        self._sync.sync(subscriber.tenant_id, subscriber.user_id)
        raise _subscribed(alive[0])

    def _still_open(self, subscriber: Subscriber, checkout: OpenCheckout, session_id: str) -> CheckoutSession | None:
        """The claim's session while it can be paid; None: it cannot any more, and its place is free."""
        session = self._stripe.find_checkout(session_id)
        if session is not None and session.open:
            return session
        if session is not None:
            self._refuse_paid(subscriber, session)
        self._subscriptions.free_checkout(subscriber.tenant_id, subscriber.user_id, checkout.claim)
        return None

    def _made(self, subscriber: Subscriber, wish: CheckoutWish) -> CheckoutSession | None:
        """A session for the claim, or the one that was made for it before; None: look at everything again."""
        tenant_id, user_id = subscriber.tenant_id, subscriber.user_id
        try:
            session = self._stripe.create_checkout(wish, idempotency_key=f"tollgate-checkout-{wish.claim}")
        except StripeRefusedError as error:
            # Stripe remembers the claim with what was asked and answered: what is asked now needs another one. Either
            # a session was made for it, and a price or the right to a trial has changed since; or its customer is gone.
            self._subscriptions.free_checkout(tenant_id, user_id, wish.claim)
            if error.stripe_code == "idempotency_error":
                return None
            if error.stripe_param == "customer" and self._is_customer_gone(subscriber):
                return None
            if wish.promotion_id is not None and (error.stripe_param or "").startswith("discounts"):
                # It is for first orders, or for dearer ones; or it was used up just now.
                raise _no_promotion() from error
            raise
        if not self._subscriptions.note_checkout(tenant_id, user_id, wish.claim, session.id, session.url or ""):
            self._end(subscriber, session.id)
            raise ConflictError(
                "Another checkout of this account was opened at the same moment. Use that one, or ask again.",
                error_code="checkout_in_progress",
            )
        return session

    def _is_customer_gone(self, subscriber: Subscriber) -> bool:
        """Whether the customer was deleted at Stripe; it is forgotten here then, and the next round makes another."""
        synced = self._sync.sync(subscriber.tenant_id, subscriber.user_id, Look(customer=True))
        return synced.subscriber.customer_id != subscriber.customer_id

    def _end(self, subscriber: Subscriber, session_id: str) -> None:
        """Nobody can pay this session any more. Raises ConflictError when somebody did, just before."""
        ended = self._stripe.expire_checkout(session_id)
        if ended is not None:
            self._refuse_paid(subscriber, ended)

    def _refuse_paid(self, subscriber: Subscriber, session: CheckoutSession) -> None:
        """Raises ConflictError when the session was paid, and what it bought is alive or on its way."""
        if session.status is not CheckoutStatus.COMPLETE:
            return
        synced = self._sync.sync(subscriber.tenant_id, subscriber.user_id, Look(checkout_id=session.id))
        bought = synced.subscriber.subscription
        if bought is not None and not bought.status.ended:
            raise _subscribed(bought)
        if session.subscription_id is None:
            raise ConflictError("The checkout was paid just now. Ask again in a moment.", error_code="payment_pending")

    def _wish(
        self, subscriber: Subscriber, checkout: OpenCheckout, order: Order, promotion_id: str | None, trial_days: int
    ) -> CheckoutWish:
        billing, plan = self._catalog.billing, self._catalog.plan(order.plan_id)
        return CheckoutWish(
            tenant_id=subscriber.tenant_id,
            user_id=subscriber.user_id,
            customer_id=_customer(subscriber),
            claim=checkout.claim,
            plan_id=order.plan_id,
            interval=order.interval,
            overage_lookup_key=billing.overage_lookup_key if bills_overage(plan) else None,
            success_url=order.success_url,
            cancel_url=order.cancel_url,
            expires_at=checkout.expires_at,
            trial_days=trial_days,
            promotion_codes=billing.promotion_codes,
            promotion_id=promotion_id,
            tax=billing.tax,
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now_seconds()), UTC)


def not_sold() -> NotFoundError:
    """The same for a plan that does not exist as for one that cannot be bought, or not by the year."""
    return NotFoundError(
        "plan: not sold, or not with this interval; GET /billing/plans lists what is", error_code="plan_not_sold"
    )


def _no_promotion() -> NotFoundError:
    """The same for one that is for others: who asks learns nothing about them."""
    return NotFoundError(
        "promotion: there is no such promotion code for this order, or not any more", error_code="promotion_not_found"
    )


def _subscribed(subscription: RemoteSubscription) -> ConflictError:
    if subscription.status is SubscriptionStatus.INCOMPLETE:
        return ConflictError(
            "The first payment of a subscription is not finished. Finish it in the billing portal (POST"
            " /billing/portal), or ask again tomorrow.",
            error_code="payment_pending",
        )
    return ConflictError(
        "There is a subscription already. Change it with POST /billing/change-plan; nothing was charged.",
        error_code="already_subscribed",
    )


def _is_for(checkout: OpenCheckout, order: Order) -> bool:
    return checkout.claim.startswith(f"{order.fingerprint}-")


def _had_trial(subscriber: Subscriber, had: tuple[RemoteSubscription, ...]) -> bool:
    """One trial for each user, whatever became of it; our own record outlives a customer that was deleted."""
    return subscriber.had_trial or any(one.trial_end_at is not None for one in had)


def _customer(subscriber: Subscriber) -> str:
    if subscriber.customer_id is None:
        # It was deleted at Stripe between two reads.
        raise StoreUnavailableError("This account's billing is being changed at the same moment. Try again.")
    return subscriber.customer_id
