"""Stripe's billing, as this product asks it: subscriptions, checkout, the portal, plan changes, invoices.

Answers are values of `tollgate.domain`, made from the objects of API 2026-10-28.endive. Every method raises
StripeUnavailableError (ask again: every write is safe to repeat), StripeRefusedError, and UpstreamUnavailableError when
our own secret cannot be read. Whose plan a price is, is told by its metadata or lookup key, never by its position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tollgate.domain.billing import (
    ChangeOutcome,
    CheckoutSession,
    CheckoutStatus,
    CheckoutWish,
    Invoice,
    InvoicePage,
    PlanChange,
    Quote,
    QuoteLine,
    RemoteCustomer,
)
from tollgate.domain.errors import StripeRefusedError
from tollgate.domain.plans import TaxKind
from tollgate.domain.price_keys import (
    OWNED_FIELD,
    plan_of_price,
    price_lookup_key,
    price_metadata,
)
from tollgate.domain.subscriptions import (
    Interval,
    RemoteDispute,
    RemoteRefund,
    RemoteSubscription,
    SubscriptionStatus,
)
from tollgate.providers.stripe_client import StripeConnection, StripeDeadline, plain, stripe_errors

if TYPE_CHECKING:
    import stripe

TENANT_FIELD: Final = "tollgate_tenant"
USER_FIELD: Final = "tollgate_user"
CLAIM_FIELD: Final = "tollgate_claim"
PAGE: Final = 100

_MISSING: Final = "resource_missing"
_OWING: Final = frozenset({SubscriptionStatus.PAST_DUE, SubscriptionStatus.UNPAID})
_OPEN_DISPUTES: Final = frozenset({"needs_response", "under_review"})
"""A `warning_…` is an inquiry: no money has moved, and most of them end so."""
_LOST: Final = "lost"
_AFTER_TRIAL: Final = frozenset({SubscriptionStatus.ACTIVE, SubscriptionStatus.PAST_DUE})
_LIVE_SCHEDULES: Final = frozenset({"active", "not_started"})


class StripeBilling:
    """The one that flows are given. Holds the client, and nothing between calls."""

    def __init__(
        self,
        secret: Callable[[], str],
        *,
        base_url: str | None = None,
        http_client: stripe.HTTPClient | None = None,
        deadline: StripeDeadline | None = None,
    ) -> None:
        """`secret` gives the key of the moment; `base_url` and `http_client`: another Stripe, another wire."""
        self._stripe = StripeConnection(secret, base_url=base_url, http_client=http_client, deadline=deadline)

    # ---- customers

    def create_customer(self, tenant_id: str, user_id: str, email: str | None, *, idempotency_key: str) -> str:
        """A new customer's id; under the same key and e-mail the same one, for 24 hours."""
        params: dict[str, Any] = {"metadata": {TENANT_FIELD: tenant_id, USER_FIELD: user_id}}
        if email is not None:
            params["email"] = email
        customer = self._ask(lambda api: api.v1.customers.create(_any(params), _keyed(idempotency_key)))
        return str(customer["id"])

    def find_customer(self, customer_id: str) -> RemoteCustomer | None:
        """None when this account never had it; one that was deleted is known for ever."""
        found = self._find(lambda api: api.v1.customers.retrieve(customer_id))
        if found is None:
            return None
        metadata = found.get("metadata") or {}
        deleted = bool(found.get("deleted"))
        return RemoteCustomer(customer_id, metadata.get(TENANT_FIELD), metadata.get(USER_FIELD), deleted)

    def customer_of(self, kind: str, object_id: str) -> str | None:
        """The customer of a subscription, invoice, charge, payment intent or checkout session; None: no such thing."""
        readers: Mapping[str, Callable[[stripe.StripeClient], Any]] = {
            "customer": lambda api: api.v1.customers.retrieve(object_id),
            "subscription": lambda api: api.v1.subscriptions.retrieve(object_id),
            "invoice": lambda api: api.v1.invoices.retrieve(object_id),
            "charge": lambda api: api.v1.charges.retrieve(object_id),
            "payment_intent": lambda api: api.v1.payment_intents.retrieve(object_id),
            "checkout.session": lambda api: api.v1.checkout.sessions.retrieve(object_id),
        }
        found = self._find(readers[kind]) if kind in readers else None
        if found is None:
            return None
        return object_id if kind == "customer" else _id(found.get("customer"))

    # ---- subscriptions

    def find_subscription(self, subscription_id: str) -> RemoteSubscription | None:
        found = self._find(lambda api: api.v1.subscriptions.retrieve(subscription_id, _any({"expand": ["schedule"]})))
        return None if found is None else self._completed(found)

    def list_subscriptions(self, customer_id: str) -> tuple[RemoteSubscription, ...]:
        """All that the customer ever had, newest first, also those that are over; none for a customer who is gone."""
        params = {"customer": customer_id, "status": "all", "limit": PAGE, "expand": ["data.schedule"]}
        try:
            found = self._all(lambda api: api.v1.subscriptions.list(_any(params)))
        except StripeRefusedError as error:
            if error.stripe_code == _MISSING:
                return ()
            raise
        return tuple(self._completed(subscription) for subscription in found)

    def keep_at_period_end(self, subscription_id: str, *, keep: bool) -> RemoteSubscription:
        """Let it go on, or end with what is paid for."""
        params = {"cancel_at_period_end": not keep, "expand": ["schedule"]}
        return self._completed(self._ask(lambda api: api.v1.subscriptions.update(subscription_id, _any(params))))

    def cancel_subscription(self, subscription_id: str, *, invoice_now: bool = False) -> None:
        """End it at once, without any money back. One that has ended, or never was, is no error.

        `invoice_now` bills the overage that Stripe knows of; without it, that is never billed.
        """
        params = {"prorate": False, "invoice_now": invoice_now}
        try:
            self._ask(lambda api: api.v1.subscriptions.cancel(subscription_id, _any(params)))
        except StripeRefusedError:
            found = self.find_subscription(subscription_id)
            if found is not None and not found.status.ended:
                raise

    # ---- checkout and portal

    def create_checkout(self, wish: CheckoutWish, *, idempotency_key: str) -> CheckoutSession:
        """A page on which the user pays. Under the same key and wish the same one.

        Raises StripeRefusedError with `idempotency_error` when the key was used for another wish.
        """
        keys = [price_lookup_key(wish.plan_id, wish.interval)]
        if wish.overage_lookup_key is not None:
            keys.append(wish.overage_lookup_key)
        prices = self._prices(keys)
        items = [{"price": prices[key]} | ({"quantity": 1} if not number else {}) for number, key in enumerate(keys)]
        params = _checkout_params(wish) | {"line_items": items}
        return _session(self._ask(lambda api: api.v1.checkout.sessions.create(_any(params), _keyed(idempotency_key))))

    def find_checkout(self, session_id: str) -> CheckoutSession | None:
        found = self._find(lambda api: api.v1.checkout.sessions.retrieve(session_id))
        return None if found is None else _session(found)

    def list_checkouts(self, customer_id: str) -> tuple[CheckoutSession, ...]:
        """Those that can be paid still."""
        params = {"customer": customer_id, "status": "open", "limit": PAGE}
        return tuple(map(_session, self._all(lambda api: api.v1.checkout.sessions.list(_any(params)))))

    def expire_checkout(self, session_id: str) -> CheckoutSession | None:
        """The session, which cannot be paid any more; or which was, just before. None: there is no such session."""
        try:
            return _session(self._ask(lambda api: api.v1.checkout.sessions.expire(session_id)))
        except StripeRefusedError:
            found = self.find_checkout(session_id)
            if found is not None and found.open:
                raise
            return found

    def find_promotion(self, code: str, customer_id: str | None) -> str | None:
        """The id of the promotion code that the customer would type, when it is active and not for others only.

        The same code may be several, each for one customer; the customer's own comes first.
        """
        params = {"code": code, "active": True, "limit": PAGE}
        found = self._ask(lambda api: api.v1.promotion_codes.list(_any(params)))["data"]
        ids = {_id(one.get("customer")): str(one["id"]) for one in found}
        return ids.get(customer_id) or ids.get(None)

    def create_portal(self, customer_id: str, return_url: str) -> str:
        """Where the customer sees invoices, changes the card and cancels; the address is good for minutes."""
        params: dict[str, Any] = {"customer": customer_id, "return_url": return_url}
        settings = {"active": True, "limit": PAGE}
        made = self._all(lambda api: api.v1.billing_portal.configurations.list(_any(settings)))
        if ours := next((one for one in made if OWNED_FIELD in (one.get("metadata") or {})), None):
            params["configuration"] = ours["id"]
        return str(self._ask(lambda api: api.v1.billing_portal.sessions.create(_any(params)))["url"])

    # ---- plan changes

    def change_plan(self, change: PlanChange) -> ChangeOutcome:
        """Put the subscription on the other plan now, and charge at once what it costs.

        Where the charge fails, Stripe keeps everything as it was until the invoice is paid at `payment_url`; for a
        change that is to be paid or refused it raises PaymentFailedError, and nothing waits.
        """
        params = _change_params(change, self._change_items(change)) | {
            "payment_behavior": "error_if_incomplete" if change.paid_or_refused else "pending_if_incomplete",
            "expand": ["schedule", "latest_invoice"],
        }
        found = self._ask(lambda api: api.v1.subscriptions.update(change.subscription.id, _any(params)))
        invoice = found.get("latest_invoice") or {}
        pending = found.get("pending_update") is not None
        return ChangeOutcome(self._completed(found), invoice.get("hosted_invoice_url") if pending else None)

    def quote_change(self, change: PlanChange, *, at_once: bool) -> tuple[Quote | None, Quote]:
        """What `change_plan` would charge now, unless it is not to be now; and what each period would cost after it,
        without credits for what is paid already.
        """
        items = self._change_items(change)
        subscription = {"subscription": change.subscription.id}
        regular = {"items": items, "proration_behavior": "none"}
        later = subscription | {"subscription_details": regular, "preview_mode": "recurring"}
        each_period = _quote(self._ask(lambda api: api.v1.invoices.create_preview(_any(later))))
        if not at_once:
            return None, each_period
        now = subscription | {"subscription_details": _change_params(change, items)}
        return _quote(self._ask(lambda api: api.v1.invoices.create_preview(_any(now)))), each_period

    def schedule_change(self, change: PlanChange) -> RemoteSubscription:
        """Put the subscription on the other plan when the paid period is over. Safe to repeat, and to change again."""
        subscription = change.subscription
        if subscription.schedule_id is None:
            start = {"from_subscription": subscription.id}
            schedule = self._ask(lambda api: api.v1.subscription_schedules.create(_any(start)))
        else:
            kept = subscription.schedule_id
            schedule = self._ask(lambda api: api.v1.subscription_schedules.retrieve(kept))
        keys = [price_lookup_key(change.plan_id, change.interval)]
        if change.overage_lookup_key is not None:
            keys.append(change.overage_lookup_key)
        prices = self._prices(keys)
        items = [{"price": prices[key]} | ({"quantity": 1} if not number else {}) for number, key in enumerate(keys)]
        later = {
            "items": items,
            "metadata": price_metadata(change.plan_id, change.interval),
            "proration_behavior": "none",
            "duration": {"interval": str(change.interval), "interval_count": 1},
        }
        params = {
            "phases": [_running_phase(schedule, subscription), later],
            "end_behavior": "release",
            "proration_behavior": "none",
        }
        self._ask(lambda api: api.v1.subscription_schedules.update(str(schedule["id"]), _any(params)))
        found = self._ask(lambda api: api.v1.subscriptions.retrieve(subscription.id, _any({"expand": ["schedule"]})))
        return self._completed(found)

    def release_schedule(self, schedule_id: str) -> None:
        """Forget a change that was to come. One that has come, or was forgotten already, is no error."""
        try:
            self._ask(lambda api: api.v1.subscription_schedules.release(schedule_id))
        except StripeRefusedError:
            found = self._find(lambda api: api.v1.subscription_schedules.retrieve(schedule_id))
            if found is not None and found["status"] in _LIVE_SCHEDULES:
                raise

    # ---- invoices, charges, events

    def list_invoices(self, customer_id: str, limit: int, after: str | None) -> InvoicePage:
        """Newest first. Raises StripeRefusedError with `resource_missing` for an `after` that is no invoice."""
        params: dict[str, Any] = {"customer": customer_id, "limit": limit}
        if after is not None:
            params["starting_after"] = after
        found = self._ask(lambda api: api.v1.invoices.list(_any(params)))
        return InvoicePage(tuple(map(_invoice, found["data"])), bool(found["has_more"]))

    def find_charge(self, charge_id: str) -> str | None:
        """Its customer."""
        return self.customer_of("charge", charge_id)

    def find_dispute(self, dispute_id: str) -> RemoteDispute | None:
        found = self._find(lambda api: api.v1.disputes.retrieve(dispute_id, _any({"expand": ["charge"]})))
        if found is None:
            return None
        charge = found["charge"]
        return RemoteDispute(
            id=found["id"],
            charge_id=_id(charge) or "",
            customer_id=_id(charge.get("customer")) if isinstance(charge, dict) else None,
            open=found["status"] in _OPEN_DISPUTES,
            lost=found["status"] == _LOST,
            subscription_id=self._subscription_paid_by(charge) if found["status"] == _LOST else None,
        )

    def _subscription_paid_by(self, charge: Any) -> str | None:  # noqa: ANN401  id or object
        """By way of the invoice: a charge names only its payment."""
        intent = _id(charge.get("payment_intent")) if isinstance(charge, dict) else None
        if intent is None:
            return None
        payment = {"type": "payment_intent", "payment_intent": intent}
        params = {"payment": payment, "expand": ["data.invoice"], "limit": PAGE}
        for paid in self._all(lambda api: api.v1.invoice_payments.list(_any(params))):
            parent = paid["invoice"].get("parent") or {}
            if subscription_id := _id((parent.get("subscription_details") or {}).get("subscription")):
                return subscription_id
        return None

    def find_refund(self, refund_id: str) -> RemoteRefund | None:
        found = self._find(lambda api: api.v1.refunds.retrieve(refund_id, _any({"expand": ["charge"]})))
        return None if found is None else _refund(found)

    def list_refunds(self, charge_id: str) -> tuple[RemoteRefund, ...]:
        params = {"charge": charge_id, "limit": PAGE, "expand": ["data.charge"]}
        return tuple(map(_refund, self._all(lambda api: api.v1.refunds.list(_any(params)))))

    def find_event(self, event_id: str) -> dict[str, Any] | None:
        """The event as a webhook brings it: a snapshot, or a thin one of v2 where there is no such snapshot."""
        found = self._find(lambda api: api.v1.events.retrieve(event_id))
        return found or self._find(lambda api: api.v2.core.events.retrieve(event_id))

    def list_events(self, since: datetime, *, types: Iterable[str] = ()) -> Iterable[dict[str, Any]]:
        """Snapshots since then, newest first; Stripe keeps them for 30 days."""
        params: dict[str, Any] = {"created": {"gte": int(since.timestamp())}, "limit": PAGE}
        if wanted := list(types):
            params["types"] = wanted
        return self._all(lambda api: api.v1.events.list(_any(params)))

    # ---- helpers

    def _ask(self, call: Callable[[stripe.StripeClient], Any]) -> dict[str, Any]:
        client = self._stripe.client()
        with stripe_errors():
            return plain(call(client))

    def _find(self, call: Callable[[stripe.StripeClient], Any]) -> dict[str, Any] | None:
        try:
            return self._ask(call)
        except StripeRefusedError as error:
            if error.stripe_code in {_MISSING, "not_found"}:
                return None
            raise

    def _all(self, call: Callable[[stripe.StripeClient], Any]) -> list[dict[str, Any]]:
        """Every page of a list."""
        client = self._stripe.client()
        with stripe_errors():
            return [plain(one) for one in call(client).auto_paging_iter()]

    def _prices(self, lookup_keys: Iterable[str]) -> dict[str, str]:
        """Price ids by lookup key. Raises StripeRefusedError: the plan was never synced."""
        wanted = list(lookup_keys)
        params = {"lookup_keys": wanted, "active": True, "limit": PAGE}
        found = self._ask(lambda api: api.v1.prices.list(_any(params)))["data"]
        prices = {str(price["lookup_key"]): str(price["id"]) for price in found}
        if absent := [key for key in wanted if key not in prices]:
            raise StripeRefusedError(
                "This plan cannot be bought right now. The operator has not set it up at Stripe.",
                stripe_code=_MISSING,
                stripe_param=absent[0],
            )
        return prices

    def _change_items(self, change: PlanChange) -> list[dict[str, Any]]:
        """The items that put the subscription on the other plan. An overage item stays: what it counted is owed."""
        keys = [price_lookup_key(change.plan_id, change.interval)]
        lacks_overage = change.overage_lookup_key is not None and change.subscription.metered_item_id is None
        if lacks_overage and change.overage_lookup_key is not None:
            keys.append(change.overage_lookup_key)
        prices = self._prices(keys)
        item: dict[str, Any] = {"price": prices[keys[0]], "quantity": 1}
        if change.subscription.plan_item_id is not None:
            item["id"] = change.subscription.plan_item_id
        return [item, *({"price": prices[key]} for key in keys[1:])]

    def _completed(self, found: dict[str, Any]) -> RemoteSubscription:
        """With what the subscription itself does not tell: all of its items, and since when a payment is owed."""
        if found["items"].get("has_more"):
            params = {"subscription": found["id"], "limit": PAGE}
            found["items"]["data"] = self._all(lambda api: api.v1.subscription_items.list(_any(params)))
        subscription = self._told_if_unpaid(_subscription(found))
        if subscription.status not in _OWING:
            return subscription
        params = {"subscription": subscription.id, "status": "open", "limit": PAGE}
        open_invoices = self._all(lambda api: api.v1.invoices.list(_any(params)))
        since = [
            _instant((invoice.get("status_transitions") or {}).get("finalized_at") or invoice["created"])
            for invoice in open_invoices
        ]
        return replace(subscription, owed_since_at=min(since, default=None))

    def _told_if_unpaid(self, subscription: RemoteSubscription) -> RemoteSubscription:
        """With whether a trial was followed by a payment, or by an invoice that a coupon or credit has paid.

        An invoice of nothing that was made before the trial's end, as at its beginning, is no payment.
        """
        ended_at = subscription.trial_end_at
        if ended_at is None or subscription.status not in _AFTER_TRIAL:
            return subscription
        # The newest hundred are enough: of those after a trial, the newest is.
        params = {"subscription": subscription.id, "status": "paid", "limit": PAGE}
        invoices = self._ask(lambda api: api.v1.invoices.list(_any(params)))["data"]
        paid = any(one["amount_paid"] > 0 or _instant(one["created"]) >= ended_at for one in invoices)
        return replace(subscription, trial_unpaid=not paid)


# --- From Stripe's objects


def _subscription(found: Mapping[str, Any]) -> RemoteSubscription:
    plan_item, plan, metered = _sorted_items(found["items"]["data"])
    ends_at = _moment(found.get("cancel_at"))
    if ends_at is None and found.get("cancel_at_period_end") and plan_item is not None:
        ends_at = _instant(plan_item["current_period_end"])
    schedule, pending = _pending(found.get("schedule"))
    return RemoteSubscription(
        id=found["id"],
        customer_id=_id(found["customer"]) or "",
        status=SubscriptionStatus(found["status"]),
        created_at=_instant(found["created"]),
        plan_id=plan[0] if plan else None,
        interval=plan[1] if plan else None,
        plan_item_id=plan_item["id"] if plan_item else None,
        period_start_at=_instant(plan_item["current_period_start"]) if plan_item else None,
        period_end_at=_instant(plan_item["current_period_end"]) if plan_item else None,
        metered_item_id=metered["id"] if metered else None,
        metered_start_at=_instant(metered["current_period_start"]) if metered else None,
        metered_end_at=_instant(metered["current_period_end"]) if metered else None,
        anchor_at=_instant(found["billing_cycle_anchor"]),
        trial_end_at=_moment(found.get("trial_end")),
        cancel_at=ends_at,
        pending_plan_id=pending[0] if pending else None,
        pending_interval=pending[1] if pending else None,
        pending_at=pending[2] if pending else None,
        schedule_id=schedule,
    )


def _sorted_items(
    items: Iterable[dict[str, Any]],
) -> tuple[dict[str, Any] | None, tuple[str, Interval] | None, dict[str, Any] | None]:
    """The plan's item with its plan, and the metered one, in whatever order and company they come."""
    plan_item, plan, metered = None, None, None
    for item in items:
        price = item["price"]
        known = plan_of_price(price.get("metadata") or {}, price.get("lookup_key"))
        if known is not None and plan is None:
            plan_item, plan = item, known
        elif known is None and (price.get("recurring") or {}).get("usage_type") == "metered":
            metered = metered or item
    return plan_item, plan, metered


def _pending(
    schedule: Any,  # noqa: ANN401  id, object or null
) -> tuple[str | None, tuple[str, Interval, datetime] | None]:
    """The schedule that is in force, and the plan that its next phase is for: our phases say it in their metadata."""
    if not isinstance(schedule, dict):
        return (schedule if isinstance(schedule, str) else None), None
    if schedule["status"] not in _LIVE_SCHEDULES:
        return None, None
    running_until = (schedule.get("current_phase") or {}).get("end_date", 0)
    for phase in schedule.get("phases") or []:
        plan = plan_of_price(phase.get("metadata") or {}, None)
        if phase["start_date"] >= running_until and plan is not None:
            return schedule["id"], (*plan, _instant(phase["start_date"]))
    return schedule["id"], None


def _session(found: Mapping[str, Any]) -> CheckoutSession:
    return CheckoutSession(
        id=found["id"],
        customer_id=_id(found.get("customer")),
        status=CheckoutStatus(found["status"]),
        url=found.get("url"),
        expires_at=_instant(found["expires_at"]),
        subscription_id=_id(found.get("subscription")),
        claim=(found.get("metadata") or {}).get(CLAIM_FIELD),
    )


def _invoice(found: Mapping[str, Any]) -> Invoice:
    return Invoice(
        id=found["id"],
        number=found.get("number"),
        status=found.get("status") or "draft",
        created_at=_instant(found["created"]),
        currency=found["currency"],
        total_cents=found["total"],
        paid_cents=found["amount_paid"],
        due_cents=found["amount_remaining"],
        url=found.get("hosted_invoice_url"),
        pdf_url=found.get("invoice_pdf"),
    )


def _quote(found: Mapping[str, Any]) -> Quote:
    lines = found["lines"]["data"]
    return Quote(
        amount_cents=found["amount_due"],
        currency=found["currency"],
        # The overage item has a line of its own, of nothing as long as nothing is reported.
        lines=tuple(QuoteLine(line.get("description") or "", line["amount"]) for line in lines if line["amount"]),
    )


def _refund(found: Mapping[str, Any]) -> RemoteRefund:
    charge = found.get("charge")
    return RemoteRefund(
        id=found["id"],
        charge_id=_id(charge),
        customer_id=_id(charge.get("customer")) if isinstance(charge, dict) else None,
        amount_cents=found["amount"],
        currency=found["currency"],
        status=found.get("status") or "pending",
        created_at=_instant(found["created"]),
    )


# --- To Stripe's parameters


def _checkout_params(wish: CheckoutWish) -> dict[str, Any]:
    owner = {TENANT_FIELD: wish.tenant_id, USER_FIELD: wish.user_id}
    subscription: dict[str, Any] = {"billing_mode": {"type": "flexible"}, "metadata": owner}
    if wish.trial_days:
        subscription["trial_period_days"] = wish.trial_days
        subscription["trial_settings"] = {"end_behavior": {"missing_payment_method": "cancel"}}
    params: dict[str, Any] = {
        "mode": "subscription",
        "customer": wish.customer_id,
        "client_reference_id": wish.user_id,
        "success_url": wish.success_url,
        "cancel_url": wish.cancel_url,
        "expires_at": int(wish.expires_at.timestamp()),
        "metadata": owner | {CLAIM_FIELD: wish.claim},
        "subscription_data": subscription,
    }
    if wish.promotion_id is not None:
        params["discounts"] = [{"promotion_code": wish.promotion_id}]
    elif wish.promotion_codes:
        params["allow_promotion_codes"] = True
    if wish.tax is TaxKind.STRIPE_TAX:
        params["automatic_tax"] = {"enabled": True}
        params["tax_id_collection"] = {"enabled": True}
        params["customer_update"] = {"address": "auto", "name": "auto"}
    elif wish.tax is TaxKind.MANAGED:
        params["managed_payments"] = {"enabled": True}
    return params


def _change_params(change: PlanChange, items: list[dict[str, Any]]) -> dict[str, Any]:
    params: dict[str, Any] = {"items": items, "proration_behavior": "always_invoice"}
    if change.goes_on:
        params["cancel_at_period_end"] = False
    if change.ends_trial:
        params["trial_end"] = "now"
    elif change.restarts:
        params["billing_cycle_anchor"] = {"type": "now"}
    return params


def _running_phase(schedule: Mapping[str, Any], subscription: RemoteSubscription) -> dict[str, Any]:
    """The schedule's running phase as it is, ending when the paid period does.

    Not simply the first: a change that has come leaves its schedule in its last phase for one more period.
    """
    begun_at = (schedule.get("current_phase") or {}).get("start_date")
    phases = schedule["phases"]
    phase = next((one for one in phases if one["start_date"] == begun_at), phases[0])
    ends_at = subscription.period_end_at
    running: dict[str, Any] = {
        "start_date": phase["start_date"],
        "end_date": phase["end_date"] if ends_at is None else int(ends_at.timestamp()),
        "items": [
            {"price": _id(item["price"])} | ({"quantity": item["quantity"]} if item.get("quantity") else {})
            for item in phase["items"]
        ],
        "proration_behavior": "none",
    }
    if phase.get("trial_end"):
        running["trial_end"] = phase["trial_end"]
    if discounts := [_kept_discount(discount) for discount in phase.get("discounts") or []]:
        running["discounts"] = discounts
    return running


def _kept_discount(discount: Mapping[str, Any]) -> dict[str, str]:
    for kind in ("discount", "promotion_code", "coupon"):
        if kept := _id(discount.get(kind)):
            return {kind: kept}
    return {}


def _keyed(idempotency_key: str) -> Any:  # noqa: ANN401  the SDK's request options
    return {"idempotency_key": idempotency_key}


def _any(params: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The SDK's parameter types are of its generator's making; the double checks every request against them."""
    return params


def _id(value: Any) -> str | None:  # noqa: ANN401  an id, an expanded object, or null
    if isinstance(value, dict):
        return str(value["id"])
    return value if isinstance(value, str) else None


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else _instant(seconds)
