"""What a user is entitled to, worked out from Stripe's own objects. Shares no line with the code under test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

GRACE_SECONDS = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Truth:
    plan_id: str
    anchor: int | None
    """Epoch seconds; None: that of the account."""
    trial: bool
    overage_blocked: bool
    paid: bool
    first_key: bool
    """A first key has been earned by now (it may have been long ago)."""


@dataclass(frozen=True, slots=True)
class Books:
    """One customer's part of the double's world."""

    subscriptions: list[Json]
    invoices: list[Json]
    disputes: list[Json]
    payments: list[Json]
    """Which payment paid which invoice."""


def books_of(world: Any, customer_id: str) -> Books:  # noqa: ANN401  the double's world
    charges = {one["id"] for one in world.all("charge") if one["customer"] == customer_id}
    invoices = {one["id"] for one in world.all("invoice") if one["customer"] == customer_id}
    return Books(
        [one for one in world.all("subscription") if one["customer"] == customer_id],
        [one for one in world.all("invoice") if one["customer"] == customer_id],
        [one for one in world.all("dispute") if one["charge"] in charges],
        [one for one in world.all("invoice_payment") if one["invoice"] in invoices],
    )


def plan_of(subscription: Json) -> str | None:
    for item in subscription["items"]["data"]:
        plan = item["price"]["metadata"].get("tollgate_plan")
        if plan:
            return str(plan)
    return None


def living(books: Books) -> list[Json]:
    return [
        one
        for one in books.subscriptions
        if plan_of(one) is not None and one["status"] not in ("canceled", "incomplete_expired")
    ]


def truth_of(books: Books | None, now: float, disputed: bool) -> Truth | None:
    """`books`: None where the user has no customer (any more).

    None where Stripe's books do not say: past due without an open invoice, as when the older invoice was paid while the
    latest is a draft still. What is remembered of the failure counts then, until the draft is due.
    """
    alive = [] if books is None else living(books)
    if books is None or not alive:
        return Truth("free", None, trial=False, overage_blocked=False, paid=not disputed, first_key=False)
    # At the end of a run at most one is left.
    subscription = alive[0]
    disputed = disputed or subscription["id"] in _taken_back(books)
    status, plan = subscription["status"], plan_of(subscription)
    served = status in ("active", "trialing")
    blocked = False
    if status == "past_due":
        owed = [
            invoice["status_transitions"]["finalized_at"] or invoice["created"]
            for invoice in books.invoices
            if invoice["status"] == "open" and _subscription_of(invoice) == subscription["id"]
        ]
        if not owed:
            return None
        served = blocked = now < min(owed) + GRACE_SECONDS
    if not served or plan is None:
        return Truth("free", None, trial=False, overage_blocked=False, paid=not disputed, first_key=False)
    paid_once = _paid_once(subscription, books)
    return Truth(
        plan,
        subscription["billing_cycle_anchor"],
        trial=not paid_once,
        overage_blocked=blocked and paid_once,
        paid=not disputed,
        first_key=plan == "pro" and paid_once and status == "active",
    )


def _paid_once(subscription: Json, books: Books) -> bool:
    """What has a trial is paid for by an invoice of more than nothing, or by one that came after the trial."""
    trial_end = subscription["trial_end"]
    if subscription["status"] == "trialing":
        return False
    return trial_end is None or any(
        invoice["amount_paid"] > 0 or invoice["created"] >= trial_end
        for invoice in books.invoices
        if invoice["status"] == "paid" and _subscription_of(invoice) == subscription["id"]
    )


def _taken_back(books: Books) -> set[str | None]:
    """Subscriptions, a payment for which was disputed and lost."""
    payments = {one["payment_intent"] for one in books.disputes if one["status"] == "lost"}
    invoices = {one["invoice"] for one in books.payments if one["payment"]["payment_intent"] in payments}
    return {_subscription_of(one) for one in books.invoices if one["id"] in invoices}


def _subscription_of(invoice: Json) -> str | None:
    details = (invoice.get("parent") or {}).get("subscription_details") or {}
    found: str | None = details.get("subscription")
    return found
