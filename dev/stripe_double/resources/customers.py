"""Customers: who pays."""

from __future__ import annotations

from collections.abc import Callable

from dev.stripe_double.errors import missing
from dev.stripe_double.forms import Json
from dev.stripe_double.resources.catalog import update
from dev.stripe_double.routes import Routes
from dev.stripe_double.store import Store, merge_metadata

_COPIED = ("address", "description", "email", "name", "phone", "preferred_locales", "shipping")


class Customers:
    def __init__(self, store: Store, end_subscriptions: Callable[[str], None]) -> None:
        self._store = store
        self._end_subscriptions = end_subscriptions

    def routes(self) -> Routes:
        return {
            "POST /v1/customers": self.create,
            "GET /v1/customers": self.browse,
            "GET /v1/customers/{customer}": self.retrieve,
            "POST /v1/customers/{customer}": self.update,
            "DELETE /v1/customers/{customer}": self.delete,
        }

    def create(self, params: Json) -> Json:
        made = self._store.make("customer", **{key: params.get(key) for key in _COPIED if key in params})
        made.update(
            balance=params.get("balance", 0),
            invoice_prefix=made["id"][4:12].upper(),
            invoice_settings={
                "custom_fields": None,
                "default_payment_method": None,
                "footer": None,
                "rendering_options": None,
            }
            | params.get("invoice_settings", {}),
            metadata=merge_metadata(None, params.get("metadata", {})),
            next_invoice_sequence=1,
            tax_exempt=params.get("tax_exempt", "none"),
        )
        self._store.emit("customer.created", self._store.put(made))
        return made

    def browse(self, params: Json) -> Json:
        rows = [
            row
            for row in self._store.all("customer")
            if not row.get("deleted") and params.get("email", row["email"]) == row["email"]
        ]
        return self._store.page(rows, params, "/v1/customers")

    def retrieve(self, _: Json, identifier: str) -> Json:
        customer = self._store.get("customer", identifier, "id")
        # A deleted customer is still answered, as its tombstone.
        return _tombstone(customer) if customer.get("deleted") else customer

    def update(self, params: Json, identifier: str) -> Json:
        customer = live_customer(self._store, identifier)
        settings = params.get("invoice_settings", {})
        changed = update(customer, {key: value for key, value in params.items() if key != "invoice_settings"})
        if settings:
            changed["invoice_settings"] = dict(customer["invoice_settings"])
            customer["invoice_settings"].update(settings)
        self._store.emit("customer.updated", customer, changed)
        return customer

    def delete(self, _: Json, identifier: str) -> Json:
        customer = live_customer(self._store, identifier)
        self._end_subscriptions(identifier)
        self._store.emit("customer.deleted", customer)
        customer["deleted"] = True
        return _tombstone(customer)


def live_customer(store: Store, identifier: str, param: str = "customer") -> Json:
    """A customer that can still buy; deleted ones are as if they had never been."""
    customer = store.get("customer", identifier, param)
    if customer.get("deleted"):
        raise missing("customer", identifier, param)
    return customer


def known_customer(store: Store, params: Json) -> None:
    """A list by customer wants one that exists, or has existed."""
    if "customer" in params:
        store.get("customer", params["customer"], "customer")


def _tombstone(customer: Json) -> Json:
    return {"id": customer["id"], "object": "customer", "deleted": True}
