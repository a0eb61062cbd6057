"""Products and prices, coupons and promotion codes: what is sold, and for how much."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.routes import Routes
from dev.stripe_double.store import Store, merge_metadata

CURRENCIES = {"usd", "eur", "gbp", "chf", "jpy", "cad", "aud", "sek", "nok", "dkk", "pln"}


class Catalog:
    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> Routes:
        return {
            "POST /v1/products": self.create_product,
            "GET /v1/products": self.list_products,
            "GET /v1/products/{id}": self.retrieve_product,
            "POST /v1/products/{id}": self.update_product,
            "DELETE /v1/products/{id}": self.delete_product,
            "POST /v1/prices": self.create_price,
            "GET /v1/prices": self.list_prices,
            "GET /v1/prices/{price}": self.retrieve_price,
            "POST /v1/prices/{price}": self.update_price,
        }

    def create_product(self, params: Json) -> Json:
        fields = {key: value for key, value in params.items() if key not in ("default_price_data", "expand", "id")}
        made = self._store.make("product", **{"active": True, "type": "service", **fields})
        made["id"] = params.get("id", made["id"])
        if self._store.find(made["id"]):
            raise StripeRefusal("Product already exists.", code="resource_already_exists", param="id")
        made["updated"] = self._store.now
        self._store.put(made)
        if "default_price_data" in params:
            price = self.create_price({**params["default_price_data"], "product": made["id"]})
            made["default_price"] = price["id"]
        self._store.emit("product.created", made)
        return made

    def list_products(self, params: Json) -> Json:
        rows = [
            row
            for row in self._store.all("product")
            if params.get("active", row["active"]) == row["active"] and row["id"] in params.get("ids", [row["id"]])
        ]
        return self._store.page(rows, params, "/v1/products")

    def retrieve_product(self, _: Json, identifier: str) -> Json:
        return self._store.get("product", identifier)

    def update_product(self, params: Json, identifier: str) -> Json:
        product = self._store.get("product", identifier)
        update(product, params)
        product["updated"] = self._store.now
        self._store.emit("product.updated", product)
        return product

    def delete_product(self, _: Json, identifier: str) -> Json:
        self._store.get("product", identifier)
        if any(price["product"] == identifier for price in self._store.all("price")):
            raise StripeRefusal("This product cannot be deleted because it has one or more user-created prices.")
        product = self._store.get("product", identifier)
        self._store.drop(identifier)
        self._store.emit("product.deleted", product)
        return {"id": identifier, "object": "product", "deleted": True}

    def create_price(self, params: Json) -> Json:
        self._check_price(params)
        product = params.get("product") or self.create_product(params["product_data"])["id"]
        recurring = _recurring(params.get("recurring"))
        decimal = _unit_amount(params)
        made = self._store.make(
            "price",
            active=params.get("active", True),
            billing_scheme=params.get("billing_scheme", "per_unit"),
            currency=params["currency"],
            metadata=merge_metadata(None, params.get("metadata", {})),
            nickname=params.get("nickname"),
            product=product,
            recurring=recurring,
            tax_behavior=params.get("tax_behavior", "unspecified"),
            type="recurring" if recurring else "one_time",
            unit_amount=int(decimal) if decimal == decimal.to_integral_value() else None,
            unit_amount_decimal=format(decimal.normalize(), "f"),
        )
        self._claim_lookup_key(made, params)
        self._store.put(made)
        self._store.emit("price.created", made)
        return made

    def _check_price(self, params: Json) -> None:
        if ("product" in params) == ("product_data" in params):
            raise StripeRefusal("You must specify either `product` or `product_data`.", param="product")
        if "product" in params:
            self._store.get("product", params["product"], "product")
        if ("unit_amount" in params) == ("unit_amount_decimal" in params):
            raise StripeRefusal(
                "You must specify exactly one of `unit_amount` and `unit_amount_decimal`.", param="unit_amount"
            )
        if params["currency"] not in CURRENCIES:
            raise StripeRefusal(f"Invalid currency: {params['currency']}.", param="currency")
        if params.get("unit_amount", 0) < 0:
            raise StripeRefusal("This value must be greater than or equal to 0.", param="unit_amount")
        recurring = params.get("recurring") or {}
        metered = recurring.get("usage_type") == "metered"
        if metered and "meter" not in recurring:
            raise StripeRefusal(
                "Metered prices must be backed by a meter; create one and pass its id as `recurring[meter]`.",
                param="recurring[meter]",
            )
        if "meter" in recurring:
            if not metered:
                raise StripeRefusal("A price with a meter must be metered.", param="recurring[usage_type]")
            meter = self._store.get("billing.meter", recurring["meter"], "recurring[meter]")
            if meter["status"] != "active":
                raise StripeRefusal(f"The meter {meter['id']} is inactive.", param="recurring[meter]")

    def _claim_lookup_key(self, price: Json, params: Json) -> None:
        key = params.get("lookup_key")
        if key is None:
            return
        for other in self._store.all("price"):
            if other["lookup_key"] == key and other["id"] != price["id"]:
                if not params.get("transfer_lookup_key"):
                    raise StripeRefusal(
                        f"A price (`{other['id']}`) already uses that lookup key.",
                        code="resource_already_exists",
                        param="lookup_key",
                    )
                other["lookup_key"] = None
                self._store.emit("price.updated", other, {"lookup_key": key})
        price["lookup_key"] = key or None

    def list_prices(self, params: Json) -> Json:
        if len(params.get("lookup_keys", [])) > 10:
            raise StripeRefusal("Array lookup_keys exceeded maximum 10 allowed elements.", param="lookup_keys")
        rows = [
            row
            for row in self._store.all("price")
            if all(params.get(key, row[key]) == row[key] for key in ("active", "product", "currency", "type"))
            and ("lookup_keys" not in params or row["lookup_key"] in params["lookup_keys"])
            and _recurs_as(row["recurring"], params.get("recurring", {}))
        ]
        return self._store.page(rows, params, "/v1/prices")

    def retrieve_price(self, _: Json, identifier: str) -> Json:
        return self._store.get("price", identifier)

    def update_price(self, params: Json, identifier: str) -> Json:
        price = self._store.get("price", identifier)
        self._claim_lookup_key(price, params)
        update(price, {key: value for key, value in params.items() if key not in ("lookup_key", "transfer_lookup_key")})
        self._store.emit("price.updated", price)
        return price


def _recurring(given: Json | None) -> Json | None:
    if given is None:
        return None
    return {
        "interval": given["interval"],
        "interval_count": given.get("interval_count", 1),
        "meter": given.get("meter"),
        "trial_period_days": given.get("trial_period_days"),
        "usage_type": given.get("usage_type", "licensed"),
    }


def _recurs_as(recurring: Json | None, wanted: Json) -> bool:
    return all(recurring is not None and recurring[key] == value for key, value in wanted.items())


def _unit_amount(params: Json) -> Decimal:
    return Decimal(str(params.get("unit_amount", params.get("unit_amount_decimal"))))


def update(thing: Json, params: Json) -> Json:
    """Plain fields replaced, metadata merged, "" clears; answers what they were before (for the event)."""
    previous: Json = {}
    for key, value in params.items():
        if key == "expand" or key not in thing:
            continue
        new = merge_metadata(thing[key], value) if key == "metadata" else None if value == "" else value
        if new != thing[key]:
            previous[key] = thing[key]
            thing[key] = new
    return previous


def is_metered(price: Json) -> bool:
    return bool(price["recurring"] and price["recurring"]["usage_type"] == "metered")


def amount_of(price: Json, quantity: int) -> int:
    """Whole cents: fractions of a cent are rounded half up once, on the whole line."""
    return int((Decimal(price["unit_amount_decimal"]) * quantity).quantize(Decimal(1), ROUND_HALF_UP))
