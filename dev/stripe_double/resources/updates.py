"""The API of subscriptions: read, update with or without proration, preview, pause, resume, cancel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dev.stripe_double.errors import StripeRefusal, missing
from dev.stripe_double.forms import Json
from dev.stripe_double.resources.catalog import is_metered, update
from dev.stripe_double.resources.changes import Change, Changes
from dev.stripe_double.resources.customers import known_customer
from dev.stripe_double.resources.discounts import Discounts
from dev.stripe_double.resources.invoices import Invoices
from dev.stripe_double.resources.payments import OK, Payments
from dev.stripe_double.resources.pending import PendingItems
from dev.stripe_double.resources.subscriptions import ENDED, INCOMPLETE_FOR, Subscriptions
from dev.stripe_double.resources.terms import cancellation, declined, live_items
from dev.stripe_double.routes import Routes
from dev.stripe_double.shapes import page
from dev.stripe_double.store import Store

_PLAIN = ("description", "metadata", "default_payment_method", "days_until_due", "trial_settings", "collection_method")
_WITH_PENDING = {
    "add_invoice_items",
    "cancel_at_period_end",
    "billing_cycle_anchor",
    "discounts",
    "expand",
    "items",
    "off_session",
    "payment_behavior",
    "proration_behavior",
    "proration_date",
    "trial_end",
    "trial_from_plan",
}
"""What a pending update can hold back."""


@dataclass
class _HeldBack:
    invoice: str
    change: Change
    ends: Json


class Updates:
    def __init__(
        self,
        store: Store,
        subscriptions: Subscriptions,
        changes: Changes,
        invoices: Invoices,
        payments: Payments,
        discounts: Discounts,
        pending: PendingItems,
    ) -> None:
        self._store = store
        self._subscriptions = subscriptions
        self._changes = changes
        self._invoices = invoices
        self._payments = payments
        self._discounts = discounts
        self._pending = pending
        self._held_back: dict[str, _HeldBack] = {}
        self.items_changed: Callable[[Json], None] = lambda _subscription: None
        """A schedule's current phase follows what is changed beside it."""

    def routes(self) -> Routes:
        return {
            "POST /v1/subscriptions": self.create,
            "GET /v1/subscriptions": self.browse,
            "GET /v1/subscriptions/{subscription_exposed_id}": self.retrieve,
            "POST /v1/subscriptions/{subscription_exposed_id}": self.update,
            "DELETE /v1/subscriptions/{subscription_exposed_id}": self.cancel,
            "POST /v1/subscriptions/{subscription}/pause": self.pause,
            "POST /v1/subscriptions/{subscription}/resume": self.resume,
            "GET /v1/subscription_items": self.browse_items,
            "GET /v1/subscription_items/{item}": self.retrieve_item,
            "POST /v1/invoices/create_preview": self.preview,
        }

    def create(self, params: Json) -> Json:
        if "customer" not in params:
            raise StripeRefusal("Missing required param: customer.", code="parameter_missing", param="customer")
        if not params.get("items"):
            raise StripeRefusal("Missing required param: items.", code="parameter_missing", param="items")
        if params.get("payment_behavior") == "pending_if_incomplete":
            raise StripeRefusal(
                "`pending_if_incomplete` is only for updates of subscriptions.", param="payment_behavior"
            )
        return self._subscriptions.start(params["customer"], params["items"], params)

    def browse(self, params: Json) -> Json:
        known_customer(self._store, params)
        status = params.get("status", "live")
        rows = [
            row
            for row in self._store.all("subscription")
            if _has_status(row, status)
            and params.get("customer", row["customer"]) == row["customer"]
            and ("price" not in params or any(one["price"]["id"] == params["price"] for one in live_items(row)))
        ]
        return self._store.page(rows, params, "/v1/subscriptions")

    def retrieve(self, _: Json, identifier: str) -> Json:
        return self._store.get("subscription", identifier, "id")

    def browse_items(self, params: Json) -> Json:
        if "subscription" not in params:
            raise StripeRefusal("Missing required param: subscription.", code="parameter_missing", param="subscription")
        subscription = self._store.get("subscription", params["subscription"], "subscription")
        return self._store.page(live_items(subscription), params, "/v1/subscription_items")

    def retrieve_item(self, _: Json, identifier: str) -> Json:
        return self._store.get("subscription_item", identifier, "item")

    # Updating

    def update(self, params: Json, identifier: str) -> Json:
        subscription = self._store.get("subscription", identifier, "id")
        self._check(subscription, params)
        ends = cancellation(subscription, params, self._store.now)
        if "discounts" in params:
            self._discounts.check(params["discounts"] or [], subscription["customer"])
        previous: Json = {}
        if params.keys() & {"items", "billing_cycle_anchor", "trial_end"}:
            # May be refused (402), so it comes before anything else is changed.
            change = self._changes.work_out(subscription, params)
            self._drop(subscription)
            previous |= self._take(subscription, change, params, ends)
            ends = {} if subscription["pending_update"] else ends
        previous |= update(subscription, {key: params[key] for key in _PLAIN if key in params})
        previous |= update(subscription, ends)
        previous |= self._other(subscription, params)
        if previous:
            self._store.emit("customer.subscription.updated", subscription, previous)
        self._subscriptions.watch_cancellation(subscription)
        return subscription

    def _check(self, subscription: Json, params: Json) -> None:
        status = subscription["status"]
        if status in ENDED and params.keys() - {"metadata", "cancellation_details", "expand"}:
            raise StripeRefusal("A canceled subscription can only update its cancellation_details and metadata.")
        if status == "incomplete" and "items" in params:
            raise StripeRefusal("You cannot update the items of a subscription whose first invoice is unpaid.")
        if params.get("payment_behavior") == "pending_if_incomplete" and params.keys() - _WITH_PENDING:
            names = ", ".join(sorted(params.keys() - _WITH_PENDING))
            raise StripeRefusal(
                "When `payment_behavior` is set to `pending_if_incomplete`, you can only pass the following supported "
                f"parameters. Unsupported: {names}.",
                param="payment_behavior",
            )
        if subscription["schedule"] and params.keys() & {"cancel_at", "cancel_at_period_end"}:
            raise StripeRefusal(
                f"The subscription is managed by the subscription schedule `{subscription['schedule']}`, and updating "
                "any cancelation behavior directly is not allowed. Please update the schedule instead."
            )
        if params.get("trial_end") not in (None, "now"):
            raise StripeRefusal(
                "The double ends trials (`now`) and does not move them.",
                status=501,
                kind="api_error",
                param="trial_end",
            )

    def _take(self, subscription: Json, change: Change, params: Json, ends: Json) -> Json:
        """Bill the change and put it in place, as `payment_behavior` and `proration_behavior` say."""
        behaviour = params.get("payment_behavior", "allow_incomplete")
        at_once = change.resets or params.get("proration_behavior") == "always_invoice"
        if not change.lines or not at_once:
            for line in change.lines:
                self._pending.keep(subscription, line)
            return self._apply(subscription, change)
        lines = self._pending.lines(subscription) + change.lines
        would_owe = self._invoices.compose(subscription, "subscription_update", lines)["amount_due"] > 0
        fails = would_owe and self._payments.will(subscription["customer"]) != OK
        if fails and behaviour == "error_if_incomplete":
            raise declined()
        if fails and behaviour == "pending_if_incomplete":
            return self._hold_back(subscription, change, lines, ends)
        previous = self._apply(subscription, change)
        invoice = self._invoices.draw(subscription, "subscription_update", lines, proration_date=change.at)
        self._invoices.bill_now(invoice, attempt=behaviour != "default_incomplete")
        if behaviour == "default_incomplete" and would_owe:
            self._subscriptions.change(subscription, status="past_due")
        return previous | {"latest_invoice": invoice["id"]}

    def _apply(self, subscription: Json, change: Change) -> Json:
        previous = self._changes.apply(subscription, change)
        self.items_changed(subscription)
        return previous

    def _hold_back(self, subscription: Json, change: Change, lines: list[Json], ends: Json) -> Json:
        """The change waits for its payment for 23 hours; until then the subscription is as it was."""
        expires_at = self._store.now + INCOMPLETE_FOR
        subscription["pending_update"] = {
            "billing_cycle_anchor": self._store.now if change.resets else None,
            "cancel_at_period_end": ends.get("cancel_at_period_end"),
            "discount": None,
            "discounts": None,
            "expires_at": expires_at,
            "metadata": None,
            "subscription_items": change.items,
            "trial_end": self._store.now if change.ends_trial else None,
            "trial_from_plan": None,
        }
        invoice = self._invoices.draw(subscription, "subscription_update", lines, proration_date=change.at)
        self._held_back[subscription["id"]] = _HeldBack(invoice["id"], change, ends)
        self._invoices.bill_now(invoice)
        self._store.at(expires_at, lambda: self._let_go(subscription, expires_at))
        return {"pending_update": None, "latest_invoice": invoice["id"]}

    def paid(self, subscription: Json, invoice: Json) -> None:
        """The invoice a change waits for is paid: the change takes place."""
        held = self._held_back.get(subscription["id"])
        if held is None or held.invoice != invoice["id"] or subscription["pending_update"] is None:
            return
        del self._held_back[subscription["id"]]
        subscription["pending_update"] = None
        previous = self._apply(subscription, held.change) | update(subscription, held.ends)
        self._subscriptions.watch_cancellation(subscription)
        self._store.emit("customer.subscription.pending_update_applied", subscription)
        self._store.emit("customer.subscription.updated", subscription, previous)

    def _let_go(self, subscription: Json, expires_at: int) -> None:
        held = subscription["pending_update"]
        if held is not None and held["expires_at"] == expires_at:
            self._drop(subscription)
            self._store.emit("customer.subscription.updated", subscription)

    def _drop(self, subscription: Json) -> None:
        """An update that waits is over when its time is, or when another one comes; its invoice is void then."""
        held = self._held_back.pop(subscription["id"], None)
        if held is None or subscription["pending_update"] is None:
            return
        subscription["pending_update"] = None
        invoice = self._store.get("invoice", held.invoice)
        if invoice["status"] == "open":
            self._invoices.void(invoice)
        self._store.emit("customer.subscription.pending_update_expired", subscription)

    def _other(self, subscription: Json, params: Json) -> Json:
        previous: Json = {}
        if "discounts" in params:
            previous["discounts"] = list(subscription["discounts"])
            given = params["discounts"] or []
            subscription["discounts"] = self._discounts.attach(given, subscription["customer"], subscription["id"])
        if "pause_collection" in params:
            previous["pause_collection"] = subscription["pause_collection"]
            given = params["pause_collection"]
            subscription["pause_collection"] = {"resumes_at": None, **given} if given else None
        if "cancellation_details" in params:
            subscription["cancellation_details"] = {
                "comment": None,
                "feedback": None,
                "reason": "cancellation_requested",
                **params["cancellation_details"],
            }
        if "automatic_tax" in params:
            subscription["automatic_tax"]["enabled"] = params["automatic_tax"]["enabled"]
        return previous

    # Preview

    def preview(self, params: Json) -> Json:
        """The invoice that an edit would make now, or the next renewal; nothing is changed."""
        if "schedule" in params or "schedule_details" in params or "subscription" not in params:
            raise StripeRefusal(
                "The double previews changes of an existing `subscription`.", status=501, kind="api_error"
            )
        subscription = self._store.get("subscription", params["subscription"], "subscription")
        if params.get("customer", subscription["customer"]) != subscription["customer"]:
            raise StripeRefusal("The subscription belongs to another customer.", param="customer")
        if subscription["status"] in ENDED:
            raise StripeRefusal(
                f"No upcoming invoices for customer: {subscription['customer']}",
                status=404,
                code="invoice_upcoming_none",
            )
        details = params.get("subscription_details", {})
        change = self._changes.work_out(subscription, details)
        at_once = change.resets or details.get("proration_behavior") == "always_invoice"
        lines = self._pending.lines(subscription) + change.lines
        if params.get("preview_mode") == "recurring":
            # What each period costs: no credits, nothing that is owed once.
            at_once, lines = False, [line for item in change.items for line in self._recurring(subscription, item)]
        elif not at_once:
            lines += self._next_lines(subscription, change)
        reason = "subscription_update" if at_once else "upcoming"
        made = self._invoices.compose(subscription, reason, lines)
        made["id"] = f"upcoming_{made['id']}"
        made["parent"]["subscription_details"]["subscription_proration_date"] = change.at if change.lines else None
        made["lines"] = page(lines, f"/v1/invoices/upcoming/lines?subscription={subscription['id']}")
        for line in lines:
            line["invoice"] = made["id"]
        return made

    def _recurring(self, subscription: Json, item: Json) -> list[Json]:
        lines = self._subscriptions.renewal_lines(subscription, [item])
        return [line for line in lines if not is_metered(item["price"])]

    def _next_lines(self, subscription: Json, change: Change) -> list[Json]:
        if subscription["cancel_at_period_end"]:
            return self._subscriptions.usage_lines(subscription, change.items, self._store.now)
        ends = [item["current_period_end"] for item in change.items if item["current_period_end"]]
        due = [item for item in change.items if item["current_period_end"] == min(ends)]
        return self._subscriptions.renewal_lines(subscription, due)

    # Pausing and ending

    def pause(self, _: Json, identifier: str) -> Json:
        subscription = self._store.get("subscription", identifier, "subscription")
        if subscription["status"] not in ("active", "trialing", "past_due"):
            raise StripeRefusal(f"A subscription that is {subscription['status']} cannot be paused.")
        self._subscriptions.pause(subscription, "pause_requested")
        return subscription

    def resume(self, params: Json, identifier: str) -> Json:
        subscription = self._store.get("subscription", identifier, "subscription")
        if subscription["status"] != "paused":
            raise StripeRefusal("Only paused subscriptions can be resumed.")
        unchanged = params.get("billing_cycle_anchor", {}).get("type") == "unchanged"
        self._subscriptions.resume(subscription, unchanged=unchanged)
        return subscription

    def cancel(self, params: Json, identifier: str) -> Json:
        subscription = self._store.get("subscription", identifier, "id")
        if subscription["status"] in ENDED:
            raise missing("subscription", identifier, "id")
        if params.get("prorate"):
            raise StripeRefusal("The double does not prorate a cancellation.", status=501, kind="api_error")
        if params.get("invoice_now"):
            # Usage of this very second counts too: there is no later period for it.
            until = self._store.now + 1
            usage = self._subscriptions.usage_lines(subscription, live_items(subscription), until)
            lines = self._pending.lines(subscription) + [line for line in usage if line["quantity"]]
            if lines:
                self._invoices.bill_now(self._invoices.draw(subscription, "subscription_update", lines))
        self._subscriptions.end(subscription)
        return subscription


def _has_status(subscription: Json, wanted: str) -> bool:
    """Without a status, everything that has not ended is listed."""
    status = subscription["status"]
    match wanted:
        case "all":
            return True
        case "live":
            return status not in ENDED
        case "ended":
            return status in ENDED
    return bool(status == wanted)
