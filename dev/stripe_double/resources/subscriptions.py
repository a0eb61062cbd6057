"""Subscriptions through time: started, on trial, renewed, past due, paused, ended."""

from __future__ import annotations

from collections.abc import Callable

from dev.stripe_double.errors import StripeRefusal, missing
from dev.stripe_double.forms import Json
from dev.stripe_double.resources.catalog import is_metered
from dev.stripe_double.resources.customers import live_customer
from dev.stripe_double.resources.discounts import Discounts
from dev.stripe_double.resources.invoices import Invoices, subscription_of
from dev.stripe_double.resources.items import (
    check_quantity,
    check_together,
    first_period,
    make_item,
    recurring_price,
)
from dev.stripe_double.resources.lines import item_line
from dev.stripe_double.resources.payments import DELAYED, OK, Payments
from dev.stripe_double.resources.pending import PendingItems
from dev.stripe_double.resources.terms import cancellation, declined, live_items, trial_end_of
from dev.stripe_double.store import DAY, HOUR, Store

INCOMPLETE_FOR = 23 * HOUR
"""How long the first payment may take before Stripe gives the subscription up."""
TRIAL_WARNING = 3 * DAY
BILLED = ("active", "past_due", "unpaid")
ENDED = ("canceled", "incomplete_expired")
_ECHOED = ("description", "metadata", "payment_settings", "trial_settings", "application_fee_percent", "days_until_due")


class Subscriptions:
    def __init__(
        self, store: Store, invoices: Invoices, payments: Payments, discounts: Discounts, pending: PendingItems
    ) -> None:
        self._store = store
        self._invoices = invoices
        self._payments = payments
        self._discounts = discounts
        self._pending = pending
        self.before_renewal: Callable[[Json, int], None] = lambda _subscription, _moment: None
        """Schedules put the next phase's prices in place here, so that the renewal bills those."""
        self.on_paid: Callable[[Json, Json], None] = lambda _subscription, _invoice: None
        self.on_ended: Callable[[Json], None] = lambda _subscription: None
        self.usage_from: dict[str, int] = {}
        """Item → where its unbilled usage begins, when that is later than its period's start."""

    # Starting

    def start(self, customer: str, items: list[Json], params: Json, *, card: str | None = None) -> Json:
        """A new subscription, its first invoice and the first payment (at once, unless on trial)."""
        subscription = self._blank(live_customer(self._store, customer), items, params)
        trial_end = trial_end_of(params, self._store.now)
        behaviour = params.get("payment_behavior", "allow_incomplete")
        prices = [item["price"] for item in subscription["items"]["data"]]
        owing = trial_end is None and any(not is_metered(price) for price in prices)
        if owing and card is None and behaviour != "default_incomplete" and not self._payments.has_card(customer):
            raise StripeRefusal(
                "This customer has no attached payment source or default payment method. Please consider adding a "
                "default payment method.",
                code="resource_missing",
            )
        if behaviour == "error_if_incomplete" and owing and self._payments.will(customer, card) != OK:
            raise declined()
        self._store.put(subscription)
        for item in subscription["items"]["data"]:
            self._store.put(item)
            period = first_period(item, self._store.now, self._store.now)
            self.set_period(subscription, item, (period[0], trial_end or period[1]))
        if trial_end is not None:
            self._start_trial(subscription, trial_end)
        self._store.emit("customer.subscription.created", subscription)
        invoice = self._invoices.draw(subscription, "subscription_create", self._first_lines(subscription))
        if subscription["status"] == "incomplete":
            self._store.at(self._store.now + INCOMPLETE_FOR, lambda: self._give_up(subscription))
        if self._invoices.bill_now(invoice, card, attempt=behaviour != "default_incomplete") == DELAYED:
            # A bank debit is trusted until it comes back.
            self.change(subscription, status="active")
        self.set_cancellation(subscription, params)
        return subscription

    def _blank(self, customer: Json, items: list[Json], params: Json) -> Json:
        mode = params.get("billing_mode", {}).get("type", "flexible")
        now = self._store.now
        made = self._store.make(
            "subscription",
            billing_cycle_anchor=now,
            billing_mode={
                "type": mode,
                "flexible": {"proration_discounts": "included"} if mode == "flexible" else None,
                "updated_at": None,
            },
            collection_method=params.get("collection_method", "charge_automatically"),
            customer=customer["id"],
            default_payment_method=params.get("default_payment_method"),
            start_date=now,
            status="incomplete",
            **{key: params[key] for key in _ECHOED if key in params},
        )
        made["automatic_tax"]["enabled"] = params.get("automatic_tax", {}).get("enabled", False)
        made["invoice_settings"]["issuer"]["type"] = "self"
        made["managed_payments"] = params.get("managed_payments")
        prices = []
        for index, given in enumerate(items):
            prices.append(recurring_price(self._store, given.get("price"), f"items[{index}]"))
            check_quantity(prices[-1], given, f"items[{index}]")
        check_together(prices, mode)
        made["currency"] = prices[0]["currency"]
        data = [make_item(self._store, made["id"], price, given) for price, given in zip(prices, items, strict=True)]
        made["items"] = items_page(made["id"], data)
        made["discounts"] = self._discounts.attach(params.get("discounts") or [], customer["id"], made["id"])
        return made

    def _start_trial(self, subscription: Json, trial_end: int) -> None:
        now = self._store.now
        subscription.update(billing_cycle_anchor=trial_end, status="trialing", trial_end=trial_end, trial_start=now)
        if subscription["trial_settings"] is None:
            subscription["trial_settings"] = {"end_behavior": {"missing_payment_method": "create_invoice"}}
        # A trial shorter than the warning is warned of at once.
        self._store.at(
            max(now, trial_end - TRIAL_WARNING),
            lambda: self._warn_of_trial_end(subscription, trial_end),
        )
        self._store.at(trial_end, lambda: self._trial_over(subscription, trial_end))

    def _warn_of_trial_end(self, subscription: Json, trial_end: int) -> None:
        if subscription["status"] == "trialing" and subscription["trial_end"] == trial_end:
            self._store.emit("customer.subscription.trial_will_end", subscription)

    def _first_lines(self, subscription: Json) -> list[Json]:
        """Licensed items are paid ahead; a trial's line costs nothing."""
        free = 0 if subscription["status"] == "trialing" else None
        return [
            item_line(self._store, subscription, item, period_of(item), quantity=item["quantity"], amount=free)
            for item in subscription["items"]["data"]
            if not is_metered(item["price"])
        ]

    def _give_up(self, subscription: Json) -> None:
        if subscription["status"] != "incomplete":
            return
        self.change(subscription, status="incomplete_expired", ended_at=self._store.now)
        invoice = self._store.get("invoice", subscription["latest_invoice"])
        if invoice["status"] == "open":
            self._invoices.void(invoice)

    # Changing

    def change(self, subscription: Json, event: str = "customer.subscription.updated", **fields: object) -> None:
        """Set fields and tell; silent when nothing is different."""
        previous = {key: subscription[key] for key, value in fields.items() if subscription[key] != value}
        if previous:
            subscription.update(fields)
            self._store.emit(event, subscription, previous)

    def set_period(self, subscription: Json, item: Json, period: tuple[int, int]) -> None:
        item["current_period_start"], item["current_period_end"] = period
        self.usage_from.pop(item["id"], None)
        self._store.at(period[1], lambda: self._renew(subscription, period[1]))

    def set_cancellation(self, subscription: Json, params: Json) -> None:
        """By `cancel_at_period_end` or `cancel_at`, as the API takes them."""
        fields = cancellation(subscription, params, self._store.now)
        if fields:
            self.change(subscription, **fields)
            self.watch_cancellation(subscription)

    def watch_cancellation(self, subscription: Json) -> None:
        moment = subscription["cancel_at"]
        if moment is not None:
            self._store.at(moment, lambda: self._cancel_if_due(subscription, moment))

    def _cancel_if_due(self, subscription: Json, moment: int) -> None:
        if subscription["cancel_at"] == moment and subscription["status"] not in ENDED:
            self._final_invoice(subscription, live_items(subscription))
            self.end(subscription)

    # Renewing

    def _renew(self, subscription: Json, moment: int) -> None:
        if subscription["status"] not in BILLED:
            return
        if subscription["cancel_at"] is not None and subscription["cancel_at"] <= moment:
            self._cancel_if_due(subscription, subscription["cancel_at"])
            return
        self.before_renewal(subscription, moment)
        due = [item for item in live_items(subscription) if item["current_period_end"] == moment]
        if not due:
            return
        lines = self.renewal_lines(subscription, due)
        before = [{"id": item["id"], **_period_fields(item)} for item in due]
        for item in due:
            self.set_period(subscription, item, first_period(item, subscription["billing_cycle_anchor"], moment))
        invoice = self._invoices.draw(subscription, "subscription_cycle", self._pending.lines(subscription) + lines)
        self._store.emit(
            "customer.subscription.updated",
            subscription,
            {"items": {"data": before}, "latest_invoice": invoice["id"]},
        )
        paused = subscription["pause_collection"]
        self._invoices.leave_as_draft(invoice, auto_advance=subscription["status"] != "unpaid" and paused is None)
        if paused is not None and paused["behavior"] != "keep_as_draft":
            self._invoices.finalize(invoice)
            if paused["behavior"] == "void":
                self._invoices.void(invoice)
            else:
                self._invoices.write_off(invoice, "subscription_paused")

    def renewal_lines(self, subscription: Json, due: list[Json]) -> list[Json]:
        """Metered items for the period that ended, licensed ones for the period that begins."""
        anchor = subscription["billing_cycle_anchor"]
        lines = []
        for item in due:
            start, end = period_of(item)
            if is_metered(item["price"]):
                period = (self.usage_from.get(item["id"], start), end)
                quantity = self._invoices.usage(item["price"], subscription["customer"], period)
                lines.append(item_line(self._store, subscription, item, period, quantity=quantity))
            else:
                period = first_period(item, anchor, end)
                lines.append(item_line(self._store, subscription, item, period, quantity=item["quantity"]))
        return lines

    def usage_lines(self, subscription: Json, items: list[Json], until: int) -> list[Json]:
        """What metered items have counted and nobody has billed yet."""
        lines = []
        for item in items:
            if is_metered(item["price"]):
                period = (self.usage_from.get(item["id"], period_of(item)[0]), until)
                quantity = self._invoices.usage(item["price"], subscription["customer"], period)
                lines.append(item_line(self._store, subscription, item, period, quantity=quantity))
        return lines

    def _final_invoice(self, subscription: Json, items: list[Json]) -> None:
        """At a cancellation, usage so far and pending items are still billed, an hour later as at a renewal."""
        now = self._store.now
        lines = [line for line in self.usage_lines(subscription, items, now) if line["quantity"]]
        lines = self._pending.lines(subscription) + lines
        # Usage may still arrive in the hour before the invoice is final, so an empty one is drawn up too.
        if lines or any(is_metered(item["price"]) for item in items):
            lines = lines or self.usage_lines(subscription, items, now)
            self._invoices.leave_as_draft(self._invoices.draw(subscription, "subscription_cycle", lines))

    def _trial_over(self, subscription: Json, trial_end: int) -> None:
        if subscription["status"] == "trialing" and subscription["trial_end"] == trial_end:
            self._end_trial(subscription)

    def _end_trial(self, subscription: Json) -> None:
        self.before_renewal(subscription, self._store.now)
        has_card = subscription["default_payment_method"] or self._payments.has_card(subscription["customer"])
        behaviour = subscription["trial_settings"]["end_behavior"]["missing_payment_method"]
        over = subscription["cancel_at"] is not None and subscription["cancel_at"] <= self._store.now
        if over or (not has_card and behaviour == "cancel"):
            self.end(subscription)
        elif not has_card and behaviour == "pause":
            self.pause(subscription, "trial_end_without_payment_method")
        else:
            now = self._store.now
            self.restart_periods(subscription, now)
            self.change(subscription, billing_cycle_anchor=now, status="active", trial_end=now)
            invoice = self._invoices.draw(subscription, "subscription_cycle", self._first_lines(subscription))
            self._invoices.leave_as_draft(invoice)

    def restart_periods(self, subscription: Json, moment: int) -> None:
        for item in live_items(subscription):
            self.set_period(subscription, item, first_period(item, moment, moment))

    # What invoices report

    def invoice_paid(self, invoice: Json) -> None:
        subscription = self._store.find(subscription_of(invoice))
        if subscription is None:
            return
        if invoice["billing_reason"] != "subscription_update":
            self._discounts.spend(subscription)
        self.on_paid(subscription, invoice)
        latest = subscription["latest_invoice"] == invoice["id"]
        if subscription["status"] == "incomplete" or (subscription["status"] in ("past_due", "unpaid") and latest):
            self.change(subscription, status="active")

    def invoice_failed(self, invoice: Json, *, final: bool) -> None:
        subscription = self._store.find(subscription_of(invoice))
        if subscription is None or subscription["status"] not in ("active", "past_due"):
            return
        held_back = subscription["pending_update"] is not None and subscription["latest_invoice"] == invoice["id"]
        if held_back:
            return
        dunning = self._invoices.dunning
        if dunning.pause_at_first_failure:
            self.pause(subscription, "first_payment_failure")
            return
        self.change(subscription, status="past_due")
        if not final:
            return
        if dunning.outcome == "canceled":
            self.end(subscription, "payment_failed")
        elif dunning.outcome == "paused":
            self.pause(subscription, "final_payment_failure")
        else:
            self.change(subscription, status=dunning.outcome)

    # Pausing and ending

    def pause(self, subscription: Json, why: str) -> None:
        details = {"subscription": {"type": why}, "transitioned_at": self._store.now, "type": "subscription"}
        self.change(subscription, "customer.subscription.paused", status="paused", status_details={"paused": details})

    def resume(self, subscription: Json, *, unchanged: bool) -> None:
        now = self._store.now
        subscription.update(status="active", status_details=None)
        if not unchanged:
            subscription["billing_cycle_anchor"] = now
        over = [item for item in live_items(subscription) if not unchanged or item["current_period_end"] <= now]
        for item in over:
            self.set_period(subscription, item, first_period(item, subscription["billing_cycle_anchor"], now))
        self._store.emit("customer.subscription.resumed", subscription, {"status": "paused"})
        lines = [line for line in self._first_lines(subscription) if not unchanged or over]
        if lines:
            self._invoices.bill_now(self._invoices.draw(subscription, "subscription_update", lines))

    def end(self, subscription: Json, reason: str = "cancellation_requested") -> None:
        now = self._store.now
        if subscription["status"] in ENDED:
            raise missing("subscription", subscription["id"], "id")
        subscription.update(
            canceled_at=subscription["canceled_at"] or now,
            cancellation_details={"comment": None, "feedback": None, "reason": reason},
            ended_at=now,
            pending_update=None,
            status="canceled",
            status_details=None,
        )
        self._invoices.stop_collecting(subscription["id"])
        self._store.emit("customer.subscription.deleted", subscription)
        self.on_ended(subscription)

    def end_all_of(self, customer: str) -> None:
        for subscription in self._store.all("subscription"):
            if subscription["customer"] == customer and subscription["status"] not in ENDED:
                self.end(subscription)


def items_page(subscription: str, data: list[Json]) -> Json:
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "total_count": len(data),
        "url": f"/v1/subscription_items?subscription={subscription}",
    }


def period_of(item: Json) -> tuple[int, int]:
    return int(item["current_period_start"]), int(item["current_period_end"])


def _period_fields(item: Json) -> Json:
    return {key: item[key] for key in ("current_period_start", "current_period_end")}
