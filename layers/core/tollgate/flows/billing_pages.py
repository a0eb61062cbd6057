"""What Stripe shows of a user: invoices, and the portal where the card is changed and a subscription ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollgate.domain.billing import InvoicePage
from tollgate.domain.errors import ConflictError, NotFoundError, StripeRefusedError
from tollgate.domain.principals import Account

if TYPE_CHECKING:
    from tollgate.providers.stripe_billing import StripeBilling
    from tollgate.storage.subscriptions import Subscriptions


def list_invoices(
    account: Account, subscriptions: Subscriptions, stripe: StripeBilling, limit: int, after: str | None
) -> InvoicePage:
    """Newest first; none for who never bought anything. Raises NotFoundError when `after` is none of the user's."""
    customer_id = subscriptions.find(account.tenant_id, account.user_id).customer_id
    if customer_id is None:
        return InvoicePage((), has_more=False)
    if after is not None and stripe.customer_of("invoice", after) != customer_id:
        raise NotFoundError("after: there is no such invoice.")
    return stripe.list_invoices(customer_id, limit, after)


def open_portal(account: Account, subscriptions: Subscriptions, stripe: StripeBilling, return_url: str) -> str:
    """The address of the billing portal. Raises ConflictError (`not_subscribed`) for who never bought anything."""
    customer_id = subscriptions.find(account.tenant_id, account.user_id).customer_id
    try:
        if customer_id is not None:
            return stripe.create_portal(customer_id, return_url)
    except StripeRefusedError as error:
        if error.stripe_param != "customer":
            raise
    raise ConflictError(
        "There is nothing to show yet: nothing was bought. Buy a plan with POST /billing/checkout.",
        error_code="not_subscribed",
    )
