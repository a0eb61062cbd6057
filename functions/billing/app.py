"""Billing: what there is to buy, checkout, the portal, plan changes, invoices, overage, the first API key."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from aws_lambda_powertools.event_handler.openapi.params import Query
from aws_lambda_powertools.utilities.typing import LambdaContext

from tollgate.domain.errors import (
    ConflictError,
    NotFoundError,
    PaymentFailedError,
    PermissionDeniedError,
    StoreUnavailableError,
    StripeRefusedError,
    StripeUnavailableError,
    UpstreamUnavailableError,
)
from tollgate.domain.principals import Account
from tollgate.domain.subscriptions import Interval
from tollgate.edge.api_key_documents import NewKeyDocument
from tollgate.edge.api_key_views import new_key_document
from tollgate.edge.billing_documents import (
    BillingStatusDocument,
    CheckoutDocument,
    CheckoutForm,
    InvoicePageDocument,
    OverageDocument,
    OverageForm,
    PlanChangeDocument,
    PlanChangeForm,
    PlansDocument,
    PortalDocument,
    PortalForm,
)
from tollgate.edge.billing_views import (
    changed_document,
    checkout_document,
    estimate_document,
    invoice_page_document,
    order_of,
    overage_document,
    plans_document,
    status_document,
)
from tollgate.edge.http_api import HttpApi, refusals
from tollgate.flows.billing_pages import list_invoices, open_portal
from tollgate.flows.choose_overage import choose_overage
from tollgate.flows.current_usage import find_current_usage
from tollgate.flows.first_key import fetch_first_key
from tollgate.wiring import BillingTools, build_billing

api: HttpApi[BillingTools] = HttpApi(build_billing)


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """However long Stripe takes, an answer of ours comes before Lambda and API Gateway give up."""
    api.tools.stripe_deadline.begin(context.get_remaining_time_in_millis())
    return api.handle(event, context)


OUTAGES = (StoreUnavailableError, UpstreamUnavailableError)
"""The table, or a secret of ours, is out of reach."""
STRIPE = (StripeUnavailableError, StripeRefusedError, *OUTAGES)

AfterId = Annotated[
    str | None, Query(pattern=r"^in_[A-Za-z0-9_]{1,80}$", description="Id of the last invoice already seen.")
]


# --- Open


@api.get("/billing/plans", responses=refusals())
def list_plans() -> PlansDocument:
    """What there is to buy, cheapest first, after what everybody has."""
    return plans_document(api.tools.catalog, api.tools.default_plan_id)


# --- The caller's own


@api.get("/billing/status", responses=refusals(*OUTAGES))
def get_status() -> BillingStatusDocument:
    """Plan, payments, quota and overage. After a return from checkout this is what was bought."""
    now = datetime.fromtimestamp(api.tools.clock.now_seconds(), UTC)
    return status_document(api.tools.statuses.find(api.caller()), api.tools.catalog, now)


BOUGHT = (ConflictError, NotFoundError, PermissionDeniedError, *STRIPE)


@api.post("/billing/checkout", status_code=HTTPStatus.CREATED, responses=refusals(*BOUGHT))
def open_checkout(form: CheckoutForm) -> CheckoutDocument:
    """A page on which the plan is paid; the same page when the same is asked again."""
    order = order_of(form, api.tools.return_urls)
    return checkout_document(api.tools.checkouts.open(_account(), order))


VISIT = (ConflictError, PermissionDeniedError, *STRIPE)


@api.post("/billing/portal", status_code=HTTPStatus.CREATED, responses=refusals(*VISIT))
def visit_portal(form: PortalForm) -> PortalDocument:
    """A visit to the billing portal: card, invoices, ending the subscription."""
    return_url = api.tools.return_urls.check("return_url", form.return_url)
    return PortalDocument(url=open_portal(_account(), api.tools.subscriptions, api.tools.stripe, return_url))


CHANGE = (ConflictError, NotFoundError, PaymentFailedError, *STRIPE)


@api.post("/billing/change-plan", responses=refusals(*CHANGE))
def change_plan(form: PlanChangeForm) -> PlanChangeDocument:
    """Another plan: a dearer one now, a cheaper one when the paid period is over; or what that would cost."""
    plans, interval = api.tools.plans, None if form.interval is None else Interval(form.interval)
    if form.preview:
        return estimate_document(plans.estimate(_account(), form.plan, interval))
    return changed_document(plans.change(_account(), form.plan, interval))


@api.get("/billing/invoices", responses=refusals(NotFoundError, *STRIPE))
def get_invoices(limit: Annotated[int, Query(ge=1, le=100)] = 10, after: AfterId = None) -> InvoicePageDocument:
    """Invoices, newest first."""
    page = list_invoices(_account(), api.tools.subscriptions, api.tools.stripe, limit, after)
    return invoice_page_document(page)


@api.post("/billing/overage", responses=refusals(PermissionDeniedError, *OUTAGES))
def set_overage(form: OverageForm) -> OverageDocument:
    """Whether calls go on when the quota is used up, and for how much; in force at the next call."""
    tools = api.tools
    account = choose_overage(api.caller(), tools.accounts, tools.ledger, enabled=form.enabled, cap_cents=form.cap_cents)
    return overage_document(account, find_current_usage(account, tools.meters, tools.ledger, tools.clock).meter)


FIRST_KEY = (ConflictError, PermissionDeniedError, *OUTAGES)


@api.post("/billing/first-key", status_code=HTTPStatus.CREATED, responses=refusals(*FIRST_KEY))
def get_first_key() -> NewKeyDocument:
    """The API key that came with the first payment. This answer is the only one that shows it."""
    minted = fetch_first_key(_account(), api.tools.subscriptions, api.tools.keys)
    return new_key_document(minted, api.tools.clock.now_seconds())


def _account() -> Account:
    """The caller's, as stored now. Raises AuthenticationError, also when the account was deleted."""
    return api.tools.accounts.find(api.caller(), fresh=True)
