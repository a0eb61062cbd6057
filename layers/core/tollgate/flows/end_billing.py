"""Nothing is billed any more to who deletes their account."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tollgate.providers.stripe_billing import StripeBilling
    from tollgate.storage.subscriptions import Subscriptions


def end_billing(
    tenant_id: str,
    user_id: str,
    subscriptions: Subscriptions,
    stripe: StripeBilling,
    flush_overage: Callable[[str, str], None],
) -> None:
    """End what the user pays for, at once, and what could still be bought. Safe to repeat; asks Stripe only for who has
    ever opened a checkout.

    `flush_overage` tells Stripe of the overage so far, which the last invoice bills; it raises nothing, because nobody
    is kept from being deleted by what they owe. What was paid ahead is not given back, and invoices stay:
    both are the seller's to decide, in Stripe's dashboard. Raises StripeUnavailableError, StripeRefusedError.
    """
    customer_id = subscriptions.find(tenant_id, user_id).customer_id
    if customer_id is None:
        return
    for session in stripe.list_checkouts(customer_id):
        stripe.expire_checkout(session.id)
    # After the checkouts: one that was paid meanwhile is a subscription now.
    found = stripe.list_subscriptions(customer_id)
    alive = [one for one in found if one.plan_id is not None and not one.status.ended]
    if alive:
        flush_overage(tenant_id, user_id)
    for subscription in alive:
        stripe.cancel_subscription(subscription.id, invoice_now=True)
