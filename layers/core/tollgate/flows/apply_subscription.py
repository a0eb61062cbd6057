"""What a user pays for becomes what the user may do: fetch from Stripe, decide, write both or nothing.

Everybody who thinks that something may have changed calls `SubscriptionSync.sync`: webhooks in any order, the return
from a checkout, a plan change, the hourly run, the operator. The order that counts is made here, by compare-and-set
around the fetch: what was read before the fetch must still stand when its outcome is written, else all is done again.
So of two that fetched at different times the one with the older answer never has the last word. That holds only if each
write moves the version, also one that finds nothing new: otherwise an older answer could overtake it unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

from tollgate.domain.errors import StaleAccountError, StoreUnavailableError, StripeRefusedError, SupersededError
from tollgate.domain.principals import Account
from tollgate.domain.subscriptions import (
    LOOK_AGAIN_SECONDS,
    Entitlements,
    RemoteSubscription,
    Subscriber,
    choose_subscription,
    entitlements_of,
    has_paid,
    next_check_at,
    past_due_since,
)

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog
    from tollgate.domain.principals import Profile
    from tollgate.domain.sources import Clock, IdSource
    from tollgate.flows.ledger import Ledger
    from tollgate.providers.stripe_billing import StripeBilling
    from tollgate.storage.subscriptions import Subscriptions
    from tollgate.storage.users import Users

MAX_ROUNDS: Final = 6
"""Each lost round means that another one has just written for the same user."""
ROUND_PAUSE_SECONDS: Final = 0.05
UNKNOWN_CUSTOMER: Final = "customer_unknown"
"""Our own word, where Stripe has one for each object."""


class Journal(Protocol):
    """Where outcomes are told: `tollgate.telemetry.Telemetry`."""

    def event(self, name: str, **fields: str | int | bool | None) -> None: ...

    def measure(self, values: Mapping[str, int], *, plan_id: str | None = None, model: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Look:
    """What else to look at in the same round, because an event hints at it. Each is fetched, none is believed."""

    dispute_id: str | None = None
    checkout_id: str | None = None
    customer: bool = False
    """Whether the customer itself is still there."""


NOTHING_ELSE: Final = Look()


@dataclass(frozen=True, slots=True)
class Synced:
    """What was written."""

    subscriber: Subscriber
    entitlements: Entitlements | None
    """None: the user has no account (any more)."""


class SubscriptionSync:
    """The one way by which anything that Stripe knows comes into force."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        users: Users,
        ledger: Ledger,
        stripe: StripeBilling,
        catalog: Catalog,
        clock: Clock,
        ids: IdSource,
        journal: Journal,
        *,
        default_plan_id: str | None = None,
    ) -> None:
        """`default_plan_id`: what nobody pays for; None: the catalog's own. Raises CatalogError: no such plan."""
        self._subscriptions = subscriptions
        self._users = users
        self._ledger = ledger
        self._stripe = stripe
        self._catalog = catalog
        self._clock = clock
        self._ids = ids
        self._journal = journal
        self._default_plan = catalog.plan(default_plan_id or catalog.default_plan_id)

    def sync(self, tenant_id: str, user_id: str, look: Look = NOTHING_ELSE) -> Synced:
        """Bring the user to where Stripe is now. Safe to repeat, in any number and order, at any time.

        Raises StripeUnavailableError, StripeRefusedError, StoreUnavailableError; then nothing or everything was done.
        """
        for round_number in range(MAX_ROUNDS):
            seen = self._subscriptions.find(tenant_id, user_id)
            subscriptions = self._fetch(seen)
            decided = self._decide(seen, subscriptions, look)
            written = self._write(seen, decided)
            if written is not None:
                self._tell(seen, written)
                return written
            self._clock.pause(ROUND_PAUSE_SECONDS * 2**round_number * (0.5 + self._ids.random_bytes(1)[0] / 510))
        raise StoreUnavailableError("Others are changing this subscription at the same moment. Try again.")

    # ---- fetching

    def _fetch(self, seen: Subscriber) -> RemoteSubscription | None:
        """The subscription that counts; whatever the customer pays for beside it is ended.

        Nobody may pay twice. Two can only come about outside our own checkout, which lets a user have one.
        """
        if seen.customer_id is None:
            return None
        found, known = self._stripe.list_subscriptions(seen.customer_id), seen.subscription
        if not found and known is not None and not known.status.ended and not self._is_deleted(seen, seen.customer_id):
            raise self._unknown(seen)
        choice = choose_subscription(found)
        for surplus in choice.surplus:
            self._stripe.cancel_subscription(surplus.id)
            self._journal.measure({"SecondSubscriptions": 1, "StripeAlarms": 1})
            self._journal.event(
                "second_subscription_ended",
                tenant_id=seen.tenant_id,
                user_id=seen.user_id,
                subscription_id=surplus.id,
                plan_id=surplus.plan_id,
            )
        return choice.counts

    def _is_deleted(self, seen: Subscriber, customer_id: str) -> bool:
        customer = self._stripe.find_customer(customer_id)
        if customer is None:
            raise self._unknown(seen)
        return customer.deleted

    def _unknown(self, seen: Subscriber) -> StripeRefusedError:
        """Stripe forgets nothing: not to know is to be another account, or the other mode, by a wrong key of ours.

        Nothing is decided by what that one does not know, or everybody would lose what they pay for.
        """
        self._journal.measure({"CustomersUnknown": 1, "StripeAlarms": 1})
        self._journal.event("stripe_knows_no_customer", tenant_id=seen.tenant_id, user_id=seen.user_id)
        return StripeRefusedError(
            "Stripe does not know this account's customer. Nothing was changed.", stripe_code=UNKNOWN_CUSTOMER
        )

    def _decide(self, seen: Subscriber, subscription: RemoteSubscription | None, look: Look) -> Subscriber:
        """The subscriber as it is to be written."""
        now = self._now()
        decided = replace(
            seen,
            subscription=subscription,
            past_due_since_at=past_due_since(seen, subscription, now),
            dispute_ids=self._disputes(seen, subscription, look),
            checkout=None if self._checkout_is_over(seen, look) else seen.checkout,
            first_key_due=not seen.first_key_issued and (seen.first_key_due or self._earns_first_key(subscription)),
            had_trial=seen.had_trial or (subscription is not None and subscription.trial_end_at is not None),
            synced_at=now,
        )
        if look.customer and seen.customer_id is not None and self._is_deleted(seen, seen.customer_id):
            # Its subscriptions ended with it. The next checkout makes another customer.
            return replace(decided, customer_id=None, subscription=None, past_due_since_at=None)
        return decided

    def _disputes(self, seen: Subscriber, subscription: RemoteSubscription | None, look: Look) -> frozenset[str]:
        """Of those that are known and the one that is hinted at, the ones that count by Stripe's word."""
        known = seen.dispute_ids if look.dispute_id is None else seen.dispute_ids | {look.dispute_id}
        found = {dispute_id: self._stripe.find_dispute(dispute_id) for dispute_id in sorted(known)}
        if any(dispute is None for dispute in found.values()):
            raise self._unknown(seen)
        return frozenset(
            dispute_id for dispute_id, dispute in found.items() if dispute is not None and dispute.blocks(subscription)
        )

    def _checkout_is_over(self, seen: Subscriber, look: Look) -> bool:
        open_checkout = seen.checkout
        if look.checkout_id is None or open_checkout is None or open_checkout.session_id != look.checkout_id:
            return False
        session = self._stripe.find_checkout(look.checkout_id)
        return session is None or not session.open

    def _earns_first_key(self, subscription: RemoteSubscription | None) -> bool:
        plan = None if subscription is None else self._catalog.plans.get(subscription.plan_id or "")
        return plan is not None and plan.issue_first_key and has_paid(subscription)

    # ---- writing

    def _write(self, seen: Subscriber, decided: Subscriber) -> Synced | None:
        """Subscriber and entitlements, together or not at all; None when either has moved since it was read."""
        profile = self._users.find_profile(seen.tenant_id, seen.user_id)
        if profile is None or profile.deleted_at is not None:
            self._end_for_good(decided)
            decided = replace(decided, check_at=None)
            return _written(decided, None) if self._subscriptions.put(decided) else None
        entitlements = self._entitlements(seen, decided, profile)
        decided = replace(decided, check_at=next_check_at(decided.subscription, entitlements, self._now()))
        account = Account.of(profile, self._catalog.plans.get(profile.plan_id, self._default_plan))
        try:
            self._ledger.change_entitlements(
                account,
                entitlements,
                # One that the operator gave may be gone from the catalog: then it is served as the default.
                self._catalog.plans.get(entitlements.plan_id, self._default_plan),
                also=[self._subscriptions.part_of_transaction(decided)],
            )
        except (StaleAccountError, SupersededError):
            return None
        return _written(decided, entitlements)

    def _end_for_good(self, decided: Subscriber) -> None:
        """Whoever has deleted the account pays no more, also where a checkout was under way at that moment."""
        subscription = decided.subscription
        if subscription is None or subscription.status.ended:
            return
        self._stripe.cancel_subscription(subscription.id, invoice_now=True)
        self._journal.measure({"SubscriptionsWithoutAccount": 1, "StripeAlarms": 1})
        self._journal.event("subscription_without_account", user_id=decided.user_id, subscription_id=subscription.id)

    def _entitlements(self, seen: Subscriber, decided: Subscriber, profile: Profile) -> Entitlements:
        if seen.subscription is None and decided.subscription is None:
            # Stripe has no say in what was never paid for there: a plan that the operator gave stays.
            return Entitlements(
                profile.plan_id,
                profile.anchor_at,
                trial=profile.trial,
                overage_blocked=profile.overage_blocked,
                paid=not decided.dispute_ids,
            )
        entitlements = entitlements_of(
            decided,
            default_plan_id=self._default_plan.id,
            grace_days=self._catalog.billing.grace_days,
            now=self._now(),
        )
        if entitlements.plan_id in self._catalog.plans:
            return entitlements
        # Nothing can be served on a plan that nobody has described; somebody pays for it all the same.
        self._journal.measure({"SubscribedPlansUnknown": 1, "StripeAlarms": 1})
        self._journal.event("subscribed_plan_unknown", user_id=seen.user_id, plan_id=entitlements.plan_id)
        look_again_at = self._now() + timedelta(seconds=LOOK_AGAIN_SECONDS)
        return Entitlements(self._default_plan.id, None, paid=entitlements.paid, check_at=look_again_at)

    def _tell(self, seen: Subscriber, synced: Synced) -> None:
        subscription = synced.subscriber.subscription
        self._journal.event(
            "subscription_synced",
            tenant_id=seen.tenant_id,
            user_id=seen.user_id,
            subscription_id=None if subscription is None else subscription.id,
            status=None if subscription is None else subscription.status.value,
            plan_id=None if synced.entitlements is None else synced.entitlements.plan_id,
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now_seconds()), UTC)


def _written(decided: Subscriber, entitlements: Entitlements | None) -> Synced:
    return Synced(replace(decided, version=decided.version + 1), entitlements)
