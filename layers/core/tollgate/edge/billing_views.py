"""Between the documents of billing and the values behind them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tollgate.domain.plans import Plan
from tollgate.domain.principals import NANOUSD_PER_CENT, Account
from tollgate.domain.return_urls import ReturnUrls
from tollgate.domain.subscriptions import Interval, OpenCheckout, RemoteSubscription, Subscriber, SubscriptionStatus
from tollgate.edge.billing_documents import (
    BillingStatusDocument,
    CheckoutDocument,
    CheckoutForm,
    InvoiceDocument,
    InvoicePageDocument,
    OpenCheckoutDocument,
    OverageDocument,
    PendingChangeDocument,
    PlanChangeDocument,
    PlanOfferDocument,
    PlansDocument,
    QuoteDocument,
    QuoteLineDocument,
    SubscriptionDocument,
)
from tollgate.edge.documents import UsageDocument
from tollgate.edge.errors import rfc3339
from tollgate.edge.views import plan_view, usage_view
from tollgate.flows.checkout import Order
from tollgate.flows.choose_overage import cap_cents_of

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog
    from tollgate.domain.billing import CheckoutSession, Invoice, InvoicePage, Quote
    from tollgate.domain.ledger import Meter
    from tollgate.flows.billing_status import BillingStatus
    from tollgate.flows.change_plan import Changed, Estimate, Planned


def order_of(form: CheckoutForm, urls: ReturnUrls) -> Order:
    """What the form orders. Raises PermissionDeniedError for a page that is not the operator's."""
    return Order(
        plan_id=form.plan,
        interval=Interval(form.interval),
        success_url=urls.check("success_url", form.success_url),
        cancel_url=urls.check("cancel_url", form.cancel_url),
        promotion=form.promotion,
    )


def plans_document(catalog: Catalog, default_plan_id: str) -> PlansDocument:
    """What is sold, cheapest first, and what everybody has; not the plans that the operator gives."""
    shown = [plan for plan in catalog.plans.values() if plan.sold or plan.id == default_plan_id]
    shown.sort(key=lambda plan: (plan.id != default_plan_id, plan.price_cents, plan.id))
    billing = catalog.billing
    return PlansDocument(
        currency=billing.currency,
        tax=billing.tax.value,
        promotion_codes=billing.promotion_codes,
        data=[_offer(plan, default=plan.id == default_plan_id) for plan in shown],
    )


def _offer(plan: Plan, *, default: bool) -> PlanOfferDocument:
    offer = {
        "default": default,
        "sold": plan.sold,
        "price_cents": plan.price_cents,
        "annual_price_cents": plan.annual_price_cents,
        "trial_days": plan.trial_days,
        "trial_quota_tokens": plan.trial_quota_tokens,
        "overage_opt_in": plan.overage_opt_in,
        "overage_price_microusd_per_1k_tokens": plan.overage_price_microusd_per_1k_tokens,
    }
    return PlanOfferDocument.model_validate(plan_view(plan) | offer)


def checkout_document(session: CheckoutSession) -> CheckoutDocument:
    return CheckoutDocument(id=session.id, url=session.url or "", expires_at=rfc3339(session.expires_at))


def status_document(status: BillingStatus, catalog: Catalog, now: datetime) -> BillingStatusDocument:
    subscriber, usage, billing = status.subscriber, status.usage, catalog.billing
    shown = UsageDocument.model_validate(usage_view(usage))
    return BillingStatusDocument(
        plan=shown.plan,
        paid=usage.account.profile.paid,
        subscription=_subscription(subscriber, timedelta(days=billing.grace_days)),
        period=shown.period,
        tokens=shown.tokens,
        overage=overage_document(usage.account, usage.meter),
        currency=billing.currency,
        portal_available=subscriber.customer_id is not None,
        first_key_available=subscriber.first_key_due,
        checkout=_open_checkout(subscriber.checkout, now),
    )


def overage_document(account: Account, meter: Meter | None) -> OverageDocument:
    own_cents = account.profile.overage_cap_cents
    owed_nanousd = 0 if meter is None else meter.overage_nanousd
    return OverageDocument(
        allowed=not account.plan.hard and account.plan.overage_cap_tokens > 0,
        chosen=None if own_cents is None else own_cents > 0,
        cap_cents=own_cents or None,
        plan_cap_cents=cap_cents_of(account.listed_plan),
        tokens=0 if meter is None else meter.overage_tokens,
        cost_cents=owed_nanousd // NANOUSD_PER_CENT,
        cost_nanousd=owed_nanousd,
    )


def estimate_document(estimate: Estimate) -> PlanChangeDocument:
    return _change(estimate.planned, preview=True, due_now=estimate.due_now, each_period=estimate.each_period)


def changed_document(changed: Changed) -> PlanChangeDocument:
    return _change(changed.planned, preview=False, payment_url=changed.payment_url)


def invoice_page_document(page: InvoicePage) -> InvoicePageDocument:
    documents = [_invoice(invoice) for invoice in page.invoices]
    return InvoicePageDocument(data=documents, has_more=page.has_more, last_id=documents[-1].id if documents else None)


def _subscription(subscriber: Subscriber, grace: timedelta) -> SubscriptionDocument | None:
    found = subscriber.subscription
    if found is None:
        return None
    status, since = found.status, subscriber.past_due_since_at
    goes_on = not found.status.ended and found.cancel_at is None
    return SubscriptionDocument(
        state=status.value,
        plan=found.plan_id,
        interval=None if found.interval is None else found.interval.value,
        renews_at=_instant(found.period_end_at) if goes_on else None,
        ends_at=None if status.ended else _instant(found.cancel_at),
        trial_ends_at=_instant(found.trial_end_at) if status is SubscriptionStatus.TRIALING else None,
        grace_ends_at=_instant(since + grace) if since and status is SubscriptionStatus.PAST_DUE else None,
        pending_change=_pending(found),
    )


def _pending(found: RemoteSubscription) -> PendingChangeDocument | None:
    """None too where it ends before: the portal can cancel over a change that was to come, which then never comes."""
    if found.pending_plan_id is None or found.pending_at is None or found.status.ended:
        return None
    if found.cancel_at is not None and found.cancel_at <= found.pending_at:
        return None
    return PendingChangeDocument(plan=found.pending_plan_id, at=rfc3339(found.pending_at))


def _open_checkout(checkout: OpenCheckout | None, now: datetime) -> OpenCheckoutDocument | None:
    if checkout is None or checkout.expires_at <= now:
        return None
    return OpenCheckoutDocument(
        plan=checkout.plan_id,
        interval=checkout.interval.value,
        url=checkout.url,
        expires_at=rfc3339(checkout.expires_at),
    )


def _change(
    planned: Planned,
    *,
    preview: bool,
    due_now: Quote | None = None,
    each_period: Quote | None = None,
    payment_url: str | None = None,
) -> PlanChangeDocument:
    return PlanChangeDocument(
        preview=preview,
        effect=planned.step.value,
        plan=planned.change.plan_id,
        interval=planned.change.interval.value,
        effective_at=_instant(planned.comes_at),
        due_now=_quote(due_now),
        each_period=_quote(each_period),
        payment_url=payment_url,
    )


def _quote(quote: Quote | None) -> QuoteDocument | None:
    if quote is None:
        return None
    lines = [QuoteLineDocument(description=line.description, amount_cents=line.amount_cents) for line in quote.lines]
    return QuoteDocument(amount_cents=quote.amount_cents, currency=quote.currency, lines=lines)


def _invoice(invoice: Invoice) -> InvoiceDocument:
    return InvoiceDocument(
        id=invoice.id,
        number=invoice.number,
        state=invoice.status,
        created_at=rfc3339(invoice.created_at),
        currency=invoice.currency,
        total_cents=invoice.total_cents,
        paid_cents=invoice.paid_cents,
        due_cents=invoice.due_cents,
        url=invoice.url,
        pdf_url=invoice.pdf_url,
    )


def _instant(instant: datetime | None) -> str | None:
    return None if instant is None else rfc3339(instant)
