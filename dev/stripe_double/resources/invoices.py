"""Invoices: drawn up, finalized an hour later with usage read again, collected, tried again, written off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.resources.catalog import amount_of, is_metered, update
from dev.stripe_double.resources.customers import known_customer
from dev.stripe_double.resources.discounts import Discounts
from dev.stripe_double.resources.meters import Meters
from dev.stripe_double.resources.payments import DELAYED, OK, REQUIRES_ACTION, Payments
from dev.stripe_double.routes import Routes
from dev.stripe_double.shapes import page
from dev.stripe_double.store import DAY, HOUR, Store

LINES_EMBEDDED = 10
"""An invoice carries its first ten lines; the others are read from `/lines`."""
FINALIZED_AFTER = HOUR


@dataclass(frozen=True)
class Dunning:
    """What happens to an unpaid renewal: days after each failure until the next attempt, then the outcome."""

    retry_days: tuple[int, ...] = (3, 5, 7)
    outcome: str = "canceled"
    """canceled, unpaid, past_due (leave it) or paused."""
    pause_at_first_failure: bool = False


class Listener(Protocol):
    """Subscriptions, told what became of their invoices."""

    def invoice_paid(self, invoice: Json) -> None: ...

    def invoice_failed(self, invoice: Json, *, final: bool) -> None: ...


class Invoices:
    def __init__(self, store: Store, meters: Meters, payments: Payments, discounts: Discounts) -> None:
        self._store = store
        self._meters = meters
        self._payments = payments
        self._discounts = discounts
        self.dunning = Dunning()
        self.listener: Listener
        self._lines: dict[str, list[Json]] = {}
        self._intents: dict[str, str] = {}
        self._numbers = 0
        self.page_url = "https://invoice.stripe.com/i/{id}"
        """Where an invoice's page is; the loopback server puts its own here."""

    def routes(self) -> Routes:
        return {
            "GET /v1/invoices": self.browse,
            "GET /v1/invoices/{invoice}": self.retrieve,
            "POST /v1/invoices/{invoice}": self.update,
            "GET /v1/invoices/{invoice}/lines": self.list_lines,
            "POST /v1/invoices/{invoice}/finalize": self.finalize_by_api,
            "POST /v1/invoices/{invoice}/pay": self.pay_by_api,
            "POST /v1/invoices/{invoice}/void": self.void_by_api,
            "POST /v1/invoices/{invoice}/mark_uncollectible": self.write_off_by_api,
        }

    # Drawing up

    def compose(self, subscription: Json, reason: str, lines: list[Json]) -> Json:
        """An invoice as it would be now; nothing is kept, so it serves previews too."""
        made = self._blank(subscription["customer"], subscription["currency"], reason, lines)
        made.update(
            default_payment_method=subscription["default_payment_method"],
            discounts=list(subscription["discounts"]),
            parent={
                "type": "subscription_details",
                "quote_details": None,
                "subscription_details": {
                    "metadata": dict(subscription["metadata"]),
                    "subscription": subscription["id"],
                    "subscription_proration_date": None,
                },
            },
        )
        made["automatic_tax"]["enabled"] = subscription["automatic_tax"]["enabled"]
        self._total(made, lines)
        return made

    def _blank(self, customer_id: str, currency: str, reason: str, lines: list[Json]) -> Json:
        customer = self._store.get("customer", customer_id)
        now = self._store.now
        starts = [line["period"]["start"] for line in lines] or [now]
        made = self._store.make(
            "invoice",
            account_country="US",
            account_name="Tollgate test account",
            attempted=False,
            auto_advance=True,
            automatic_tax=_no_tax(),
            billing_reason=reason,
            collection_method="charge_automatically",
            currency=currency,
            customer=customer_id,
            customer_email=customer["email"],
            customer_name=customer["name"],
            customer_tax_exempt="none",
            metadata={},
            period_end=now,
            period_start=min(*starts, now),
            status="draft",
            total_taxes=[],
        )
        made["issuer"]["type"] = "self"
        return made

    def draw_by_hand(self, customer_id: str, params: Json, lines: list[Json]) -> Json:
        """An invoice of no subscription; it stays a draft unless it is told to advance."""
        made = self._blank(customer_id, params.get("currency", "usd"), "manual", lines)
        made.update(
            auto_advance=params.get("auto_advance", False),
            collection_method=params.get("collection_method", "charge_automatically"),
            description=params.get("description"),
            metadata=params.get("metadata") or {},
        )
        self._keep(made, lines)
        self.leave_as_draft(made, auto_advance=made["auto_advance"])
        return made

    def _keep(self, invoice: Json, lines: list[Json]) -> None:
        self._lines[invoice["id"]] = lines
        self._total(invoice, lines)
        self._store.put(invoice)
        for line in lines:
            item = self._store.find((line["parent"]["invoice_item_details"] or {}).get("invoice_item"))
            if item is not None:
                item["invoice"] = invoice["id"]

    def add_line(self, invoice_id: str, line: Json) -> None:
        invoice = self._store.get("invoice", invoice_id, "invoice")
        if invoice["status"] != "draft":
            raise StripeRefusal("This invoice is no longer editable.", code="invoice_not_editable", param="invoice")
        self._keep(invoice, [*self._lines[invoice_id], line])

    def _total(self, invoice: Json, lines: list[Json]) -> None:
        for line in lines:
            line.update(invoice=invoice["id"], discount_amounts=[])
        invoice["total_discount_amounts"] = self._discounts.apply(lines, invoice["discounts"])
        subtotal = sum(line["amount"] for line in lines)
        total = subtotal - sum(one["amount"] for one in invoice["total_discount_amounts"])
        customer = self._store.get("customer", invoice["customer"])
        starting = customer["balance"] if invoice["status"] == "draft" else invoice["starting_balance"]
        due = max(0, total + starting)
        invoice.update(
            amount_due=due,
            amount_remaining=due,
            lines=page(
                lines[:LINES_EMBEDDED], f"/v1/invoices/{invoice['id']}/lines", has_more=len(lines) > LINES_EMBEDDED
            ),
            starting_balance=starting,
            subtotal=subtotal,
            subtotal_excluding_tax=subtotal,
            total=total,
            total_excluding_tax=total,
        )

    def draw(self, subscription: Json, reason: str, lines: list[Json], *, proration_date: int | None = None) -> Json:
        """A draft that is kept, and told."""
        invoice = self.compose(subscription, reason, lines)
        invoice["parent"]["subscription_details"]["subscription_proration_date"] = proration_date
        self._keep(invoice, lines)
        subscription["latest_invoice"] = invoice["id"]
        return invoice

    def leave_as_draft(self, invoice: Json, *, auto_advance: bool = True) -> None:
        """Renewals wait an hour, in which late usage still counts."""
        invoice["auto_advance"] = auto_advance
        if auto_advance:
            invoice["automatically_finalizes_at"] = self._store.now + FINALIZED_AFTER
            self._store.at(self._store.now + FINALIZED_AFTER, lambda: self._finalize_if_due(invoice))
        self._store.emit("invoice.created", invoice)

    def _finalize_if_due(self, invoice: Json) -> None:
        if invoice["status"] == "draft" and invoice["auto_advance"]:
            self.finalize(invoice)
            self.collect(invoice)

    def bill_now(self, invoice: Json, card: str | None = None, *, attempt: bool = True) -> str:
        """First invoices and prorations are finalized and charged at once."""
        self._store.emit("invoice.created", invoice)
        self.finalize(invoice)
        return self.collect(invoice, card) if attempt or not invoice["amount_due"] else "open"

    # Finalization

    def finalize(self, invoice: Json) -> None:
        lines = self._lines[invoice["id"]]
        for line in lines:
            self._read_usage(line, invoice)
        self._total(invoice, lines)
        customer = self._store.get("customer", invoice["customer"])
        # A total below nought becomes credit of the customer, and credit pays later invoices.
        balance = invoice["starting_balance"] + invoice["total"]
        customer["balance"] = min(0, balance)
        self._numbers += 1
        invoice.update(
            automatically_finalizes_at=None,
            effective_at=self._store.now,
            ending_balance=customer["balance"],
            hosted_invoice_url=self.page_url.format(id=invoice["id"]),
            invoice_pdf=f"https://pay.stripe.com/invoice/{self._store.account_id}/{invoice['id']}/pdf",
            number=f"{customer['invoice_prefix']}-{self._numbers:04d}",
            status="open",
        )
        invoice["status_transitions"]["finalized_at"] = self._store.now
        self._store.emit("invoice.finalized", invoice)

    def _read_usage(self, line: Json, invoice: Json) -> None:
        details = line["parent"]["subscription_item_details"]
        price = self._store.find(line["pricing"]["price_details"]["price"]) if line["pricing"] else None
        if details is None or details["proration"] or price is None or not is_metered(price):
            return
        quantity = self.usage(price, invoice["customer"], (line["period"]["start"], line["period"]["end"]))
        amount = amount_of(price, quantity)
        line.update(amount=amount, quantity=quantity, quantity_decimal=str(quantity), subtotal=amount)

    def usage(self, price: Json, customer: str, period: tuple[int, int]) -> int:
        return self._meters.quantity(price["recurring"]["meter"], customer, *period)

    # Collection

    def collect(self, invoice: Json, card: str | None = None) -> str:
        """One attempt to be paid."""
        if invoice["amount_due"] == 0:
            self._paid(invoice)
            return OK
        invoice["attempted"] = True
        attempt = self._payments.pay(invoice, self._intents.get(invoice["id"]), card)
        self._intents[invoice["id"]] = attempt.intent["id"]
        if attempt.outcome == OK:
            self._payments.record(invoice, attempt.intent)
            invoice["attempt_count"] += 1
            self._paid(invoice)
            return OK
        if attempt.outcome == DELAYED:
            return DELAYED
        if attempt.outcome == REQUIRES_ACTION:
            self._store.emit("invoice.payment_action_required", invoice)
        invoice["attempt_count"] += 1
        self._failed(invoice)
        return attempt.outcome

    def _paid(self, invoice: Json) -> None:
        invoice.update(amount_paid=invoice["amount_due"], amount_remaining=0, next_payment_attempt=None, status="paid")
        invoice["attempted"] = True
        invoice["status_transitions"]["paid_at"] = self._store.now
        self._store.emit("invoice.paid", invoice)
        self._store.emit("invoice.payment_succeeded", invoice)
        self.listener.invoice_paid(invoice)

    def _failed(self, invoice: Json) -> None:
        tries = invoice["attempt_count"]
        retried = invoice["billing_reason"] != "subscription_create" and invoice["auto_advance"]
        days = self.dunning.retry_days[tries - 1] if retried and tries <= len(self.dunning.retry_days) else None
        final = retried and days is None
        invoice["next_payment_attempt"] = self._store.now + days * DAY if days else None
        if days:
            moment = invoice["next_payment_attempt"]
            self._store.at(moment, lambda: self._retry(invoice, moment))
        self._store.emit("invoice.payment_failed", invoice)
        self.listener.invoice_failed(invoice, final=final)

    def _retry(self, invoice: Json, moment: int) -> None:
        if invoice["status"] == "open" and invoice["next_payment_attempt"] == moment:
            self.collect(invoice)

    def stop_collecting(self, subscription_id: str) -> None:
        """After a cancellation open invoices stay, but nobody tries them any more."""
        for invoice in self._store.all("invoice"):
            if subscription_of(invoice) == subscription_id and invoice["status"] == "open":
                invoice.update(auto_advance=False, next_payment_attempt=None)

    def void(self, invoice: Json) -> None:
        invoice.update(next_payment_attempt=None, status="void", amount_remaining=invoice["amount_due"])
        invoice["status_transitions"]["voided_at"] = self._store.now
        self._store.emit("invoice.voided", invoice)

    def write_off(self, invoice: Json, reason: str) -> None:
        invoice.update(next_payment_attempt=None, status="uncollectible")
        invoice["status_details"] = {"uncollectible": {"reason": reason}}
        invoice["status_transitions"]["marked_uncollectible_at"] = self._store.now
        self._store.emit("invoice.marked_uncollectible", invoice)

    # API

    def browse(self, params: Json) -> Json:
        known_customer(self._store, params)
        rows = [
            row
            for row in self._store.all("invoice")
            if params.get("customer", row["customer"]) == row["customer"]
            and params.get("status", row["status"]) == row["status"]
            and params.get("subscription", subscription_of(row)) == subscription_of(row)
        ]
        return self._store.page(rows, params, "/v1/invoices")

    def retrieve(self, _: Json, identifier: str) -> Json:
        return self._store.get("invoice", identifier, "invoice")

    def update(self, params: Json, identifier: str) -> Json:
        invoice = self._store.get("invoice", identifier, "invoice")
        self._store.emit("invoice.updated", invoice, update(invoice, params))
        return invoice

    def list_lines(self, params: Json, identifier: str) -> Json:
        self._store.get("invoice", identifier, "invoice")
        # Lines keep the order they were made in; everything else is listed newest first.
        return self._store.page(self._lines[identifier][::-1], params, f"/v1/invoices/{identifier}/lines")

    def _act(self, identifier: str, allowed: tuple[str, ...], action: Callable[[Json], object]) -> Json:
        invoice = self._store.get("invoice", identifier, "invoice")
        if invoice["status"] not in allowed:
            raise StripeRefusal(
                f"This action is not possible: the invoice is {invoice['status']}.", code="invoice_not_editable"
            )
        action(invoice)
        return invoice

    def finalize_by_api(self, _: Json, identifier: str) -> Json:
        return self._act(identifier, ("draft",), self.finalize)

    def pay_by_api(self, _: Json, identifier: str) -> Json:
        def pay(invoice: Json) -> None:
            if invoice["status"] == "draft":
                self.finalize(invoice)
            if invoice["status"] != "paid" and self.collect(invoice) != OK:
                raise StripeRefusal(
                    "Your card was declined.",
                    status=402,
                    kind="card_error",
                    code="card_declined",
                    decline_code="generic_decline",
                )

        if self._store.get("invoice", identifier, "invoice")["status"] == "paid":
            raise StripeRefusal("Invoice is already paid", code="invoice_already_paid")
        return self._act(identifier, ("draft", "open", "uncollectible"), pay)

    def void_by_api(self, _: Json, identifier: str) -> Json:
        return self._act(identifier, ("open", "uncollectible"), self.void)

    def write_off_by_api(self, _: Json, identifier: str) -> Json:
        return self._act(identifier, ("open",), lambda invoice: self.write_off(invoice, "user_forgiven"))


def subscription_of(invoice: Json) -> str | None:
    details = (invoice["parent"] or {}).get("subscription_details")
    return str(details["subscription"]) if details else None


def _no_tax() -> Json:
    return {"disabled_reason": None, "enabled": False, "liability": None, "provider": None, "status": None}
