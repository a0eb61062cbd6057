"""Invoice items: amounts that wait for the next invoice, among them prorations that were not invoiced at once."""

from __future__ import annotations

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.resources.catalog import amount_of, update
from dev.stripe_double.resources.customers import live_customer
from dev.stripe_double.resources.lines import invoice_item_line
from dev.stripe_double.routes import Routes
from dev.stripe_double.store import Store


class PendingItems:
    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> Routes:
        return {
            "GET /v1/invoiceitems": self.browse,
            "GET /v1/invoiceitems/{invoiceitem}": self.retrieve,
            "POST /v1/invoiceitems/{invoiceitem}": self.update,
            "DELETE /v1/invoiceitems/{invoiceitem}": self.delete,
        }

    def create(self, params: Json) -> Json:
        customer = live_customer(self._store, params.get("customer", ""))
        price = self._store.find(params.get("pricing", {}).get("price"))
        if (price is None) == ("amount" not in params):
            raise StripeRefusal("You must specify exactly one of `amount` and `pricing`.", param="amount")
        if price is None and "currency" not in params:
            raise StripeRefusal("Missing required param: currency.", code="parameter_missing", param="currency")
        quantity = params.get("quantity", 1)
        now = self._store.now
        return self._item(
            customer["id"],
            params.get("subscription"),
            amount=amount_of(price, quantity) if price else params["amount"],
            currency=price["currency"] if price else params["currency"],
            description=params.get("description"),
            discountable=params.get("discountable", True),
            metadata=params.get("metadata") or {},
            period=params.get("period") or {"start": now, "end": now},
            quantity=quantity,
            quantity_decimal=str(quantity),
        )

    def keep(self, subscription: Json, line: Json) -> Json:
        """A proration waits as an invoice item."""
        return self._item(
            subscription["customer"],
            subscription["id"],
            amount=line["amount"],
            currency=line["currency"],
            description=line["description"],
            discountable=line["discountable"],
            metadata={},
            period=dict(line["period"]),
            pricing=line["pricing"],
            proration=True,
            quantity=line["quantity"],
            quantity_decimal=str(line["quantity"]),
        )

    def _item(self, customer: str, subscription: str | None, **fields: object) -> Json:
        parent = {
            "type": "subscription_details",
            "subscription_details": {"subscription": subscription, "subscription_item": None},
        }
        made = self._store.make(
            "invoiceitem", customer=customer, date=self._store.now, parent=parent if subscription else None, **fields
        )
        self._store.emit("invoiceitem.created", self._store.put(made))
        return made

    def waiting(self, subscription: Json) -> list[Json]:
        """Items of this subscription, and the customer's that name none."""
        return [
            item
            for item in self._store.all("invoiceitem")
            if item["invoice"] is None
            and item["customer"] == subscription["customer"]
            and _subscription(item) in (None, subscription["id"])
        ]

    def lines(self, subscription: Json) -> list[Json]:
        """What they add to the next invoice; the invoice that keeps such a line takes its item."""
        return [invoice_item_line(self._store, item) for item in self.waiting(subscription)]

    def browse(self, params: Json) -> Json:
        rows = [
            row
            for row in self._store.all("invoiceitem")
            if params.get("customer", row["customer"]) == row["customer"]
            and params.get("invoice", row["invoice"]) == row["invoice"]
            and params.get("pending", row["invoice"] is None) == (row["invoice"] is None)
        ]
        return self._store.page(rows, params, "/v1/invoiceitems")

    def retrieve(self, _: Json, identifier: str) -> Json:
        return self._store.get("invoiceitem", identifier, "invoiceitem")

    def update(self, params: Json, identifier: str) -> Json:
        item = self._store.get("invoiceitem", identifier, "invoiceitem")
        update(item, params)
        return item

    def delete(self, _: Json, identifier: str) -> Json:
        item = self._store.get("invoiceitem", identifier, "invoiceitem")
        if item["invoice"] is not None:
            raise StripeRefusal("You cannot delete an invoice item that is attached to an invoice.")
        self._store.drop(identifier)
        self._store.emit("invoiceitem.deleted", item)
        return {"id": identifier, "object": "invoiceitem", "deleted": True}


def _subscription(item: Json) -> str | None:
    return item["parent"]["subscription_details"]["subscription"] if item["parent"] else None
