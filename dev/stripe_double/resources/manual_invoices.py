"""Invoices made by hand: of invoice items alone, with no subscription behind them."""

from __future__ import annotations

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.resources.customers import live_customer
from dev.stripe_double.resources.invoices import Invoices
from dev.stripe_double.resources.lines import invoice_item_line
from dev.stripe_double.resources.pending import PendingItems
from dev.stripe_double.routes import Routes
from dev.stripe_double.store import Store


class ManualInvoices:
    def __init__(self, store: Store, invoices: Invoices, pending: PendingItems) -> None:
        self._store = store
        self._invoices = invoices
        self._pending = pending

    def routes(self) -> Routes:
        return {
            "POST /v1/invoiceitems": self.create_item,
            "POST /v1/invoices": self.create,
        }

    def create_item(self, params: Json) -> Json:
        """Pending until the next invoice, or at once on the draft that is named."""
        item = self._pending.create(params)
        if "invoice" in params:
            self._invoices.add_line(params["invoice"], invoice_item_line(self._store, item))
        return item

    def create(self, params: Json) -> Json:
        if "subscription" in params or "from_invoice" in params:
            raise StripeRefusal(
                "The double draws up invoices by hand for a `customer` only.", status=501, kind="api_error"
            )
        if "customer" not in params:
            raise StripeRefusal("Missing required param: customer.", code="parameter_missing", param="customer")
        customer = live_customer(self._store, params["customer"])
        included = params.get("pending_invoice_items_behavior", "exclude") == "include"
        lines = self._pending.lines({"id": None, "customer": customer["id"]}) if included else []
        return self._invoices.draw_by_hand(customer["id"], params, lines)
