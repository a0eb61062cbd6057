"""What a user is entitled to, worked out from Stripe's own objects. Shares no line with the code under test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

GRACE_SECONDS = 7 * 86_400
FIRST_PAYMENT_SECONDS = 2 * 3600


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


def books_of(world: Any, customer_id: str) -> Books:  # noqa: ANN401  the double's world
    charges = {one["id"] for one in world.all("charge") if one["customer"] == customer_id}
    return Books(
        [one for one in world.all("subscription") if one["customer"] == customer_id],
        [one for one in world.all("invoice") if one["customer"] == customer_id],
        [one for one in world.all("dispute") if one["charge"] in charges],
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
    trial_end = subscription["trial_end"]
    paid_once = status == "active" and (trial_end is None or now >= trial_end + FIRST_PAYMENT_SECONDS)
    return Truth(
        plan,
        subscription["billing_cycle_anchor"],
        trial=status == "trialing",
        overage_blocked=blocked,
        paid=not disputed,
        first_key=plan == "pro" and paid_once,
    )


def _subscription_of(invoice: Json) -> str | None:
    details = (invoice.get("parent") or {}).get("subscription_details") or {}
    found: str | None = details.get("subscription")
    return found
