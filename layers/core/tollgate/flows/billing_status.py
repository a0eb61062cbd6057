"""How a user stands: plan, payments, what is used of it. Whoever comes back from a checkout sees what it bought."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tollgate.domain.errors import StripeRefusedError, StripeUnavailableError, UpstreamUnavailableError
from tollgate.domain.principals import Principal
from tollgate.domain.sources import Clock, Report
from tollgate.domain.subscriptions import Subscriber
from tollgate.flows.apply_subscription import Look
from tollgate.flows.current_usage import CurrentUsage, find_current_usage

if TYPE_CHECKING:
    from tollgate.flows.accounts import Accounts
    from tollgate.flows.apply_subscription import SubscriptionSync
    from tollgate.flows.ledger import Ledger
    from tollgate.providers.stripe_billing import StripeBilling
    from tollgate.storage.meters import Meters
    from tollgate.storage.subscriptions import Subscriptions


@dataclass(frozen=True, slots=True)
class BillingStatus:
    subscriber: Subscriber
    usage: CurrentUsage


class BillingStatuses:
    """Looks up how users stand. Raises StoreUnavailableError."""

    def __init__(
        self,
        accounts: Accounts,
        subscriptions: Subscriptions,
        stripe: StripeBilling,
        sync: SubscriptionSync,
        meters: Meters,
        ledger: Ledger,
        clock: Clock,
        report: Report,
    ) -> None:
        self._accounts = accounts
        self._subscriptions = subscriptions
        self._stripe = stripe
        self._sync = sync
        self._meters = meters
        self._ledger = ledger
        self._clock = clock
        self._report = report

    def find(self, principal: Principal) -> BillingStatus:
        """As our own record has it; Stripe is asked only while a checkout is open, whose payment nobody may have told
        us yet. Where Stripe does not answer then, that is reported, and the record is shown.
        """
        self._accounts.find(principal)
        subscriber = self._subscriptions.find(principal.tenant_id, principal.user_id)
        if self._has_been_paid(subscriber):
            subscriber = self._subscriptions.find(principal.tenant_id, principal.user_id)
        account = self._accounts.find(principal, fresh=True)
        return BillingStatus(subscriber, find_current_usage(account, self._meters, self._ledger, self._clock))

    def _has_been_paid(self, subscriber: Subscriber) -> bool:
        """Whether the open checkout is over; what came of it is in force then."""
        checkout, now = subscriber.checkout, datetime.fromtimestamp(self._clock.now_seconds(), UTC)
        if checkout is None or checkout.session_id is None or checkout.expires_at <= now:
            return False
        try:
            session = self._stripe.find_checkout(checkout.session_id)
            if session is not None and session.open:
                return False
            self._sync.sync(subscriber.tenant_id, subscriber.user_id, Look(checkout_id=checkout.session_id))
        except (StripeUnavailableError, StripeRefusedError, UpstreamUnavailableError) as error:
            self._report("open_checkout_unknown", error)
            return False
        return True
