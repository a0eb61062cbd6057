"""Coupons, promotion codes, and the discounts they become on a subscription and its invoices."""

from __future__ import annotations

from decimal import Decimal

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.periods import boundary, prorated, shared_out
from dev.stripe_double.resources.catalog import update
from dev.stripe_double.routes import Routes
from dev.stripe_double.store import Store

_PERCENT_PARTS = 10_000
"""A percentage has at most two decimals: 100 % is ten thousand parts."""


class Discounts:
    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> Routes:
        return {
            "POST /v1/coupons": self.create_coupon,
            "GET /v1/coupons": self.list_coupons,
            "GET /v1/coupons/{coupon}": self.retrieve_coupon,
            "DELETE /v1/coupons/{coupon}": self.delete_coupon,
            "POST /v1/promotion_codes": self.create_code,
            "GET /v1/promotion_codes": self.list_codes,
            "GET /v1/promotion_codes/{promotion_code}": self.retrieve_code,
            "POST /v1/promotion_codes/{promotion_code}": self.update_code,
        }

    def create_coupon(self, params: Json) -> Json:
        if ("percent_off" in params) == ("amount_off" in params):
            raise StripeRefusal("You must specify exactly one of `percent_off` and `amount_off`.", param="percent_off")
        if "amount_off" in params and "currency" not in params:
            raise StripeRefusal("You must pass currency when passing amount_off", param="currency")
        if not 0 < params.get("percent_off", 1) <= 100:
            raise StripeRefusal("Invalid percent_off: must be greater than 0 and at most 100.", param="percent_off")
        duration = params.get("duration", "once")
        if ("duration_in_months" in params) != (duration == "repeating"):
            raise StripeRefusal(
                "`duration_in_months` is required with, and only allowed with, a `repeating` duration.",
                param="duration_in_months",
            )
        names = ("amount_off", "currency", "duration_in_months", "max_redemptions", "name", "percent_off", "redeem_by")
        made = self._store.make("coupon", duration=duration, valid=True, **{name: params.get(name) for name in names})
        made["metadata"] = params.get("metadata") or {}
        made["id"] = params.get("id", made["id"])
        if self._store.find(made["id"]):
            raise StripeRefusal("Coupon already exists.", code="resource_already_exists", param="id")
        self._store.emit("coupon.created", self._store.put(made))
        return made

    def list_coupons(self, params: Json) -> Json:
        return self._store.page(self._store.all("coupon"), params, "/v1/coupons")

    def retrieve_coupon(self, _: Json, identifier: str) -> Json:
        return self._store.get("coupon", identifier, "coupon")

    def delete_coupon(self, _: Json, identifier: str) -> Json:
        gone = self._store.get("coupon", identifier, "coupon")
        self._store.drop(identifier)
        self._store.emit("coupon.deleted", gone)
        return {"id": identifier, "object": "coupon", "deleted": True}

    def create_code(self, params: Json) -> Json:
        coupon = self._store.get("coupon", params["promotion"].get("coupon", ""), "promotion[coupon]")
        code = params.get("code") or self._store.new_id("")[1:9].upper()
        if any(one["active"] and one["code"].lower() == code.lower() for one in self._store.all("promotion_code")):
            raise StripeRefusal("An active promotion code with this code already exists.", param="code")
        made = self._store.make(
            "promotion_code",
            active=params.get("active", True),
            code=code,
            customer=params.get("customer"),
            expires_at=params.get("expires_at"),
            max_redemptions=params.get("max_redemptions"),
            metadata=params.get("metadata") or {},
            promotion={"type": "coupon", "coupon": coupon["id"]},
        )
        del made["restrictions"]["currency_options"]  # there only when it was given
        made["restrictions"].update(params.get("restrictions", {}))
        self._store.emit("promotion_code.created", self._store.put(made))
        return made

    def list_codes(self, params: Json) -> Json:
        rows = [
            row
            for row in self._store.all("promotion_code")
            if params.get("active", row["active"]) == row["active"]
            and str(params.get("code", row["code"])).lower() == row["code"].lower()
            and params.get("coupon", row["promotion"]["coupon"]) == row["promotion"]["coupon"]
            and params.get("customer", row["customer"]) == row["customer"]
        ]
        return self._store.page(rows, params, "/v1/promotion_codes")

    def retrieve_code(self, _: Json, identifier: str) -> Json:
        return self._store.get("promotion_code", identifier, "promotion_code")

    def update_code(self, params: Json, identifier: str) -> Json:
        code = self._store.get("promotion_code", identifier, "promotion_code")
        self._store.emit("promotion_code.updated", code, update(code, params))
        return code

    def check(self, given: list[Json], customer: str | None) -> None:
        """What a customer may use now: the code is active, not expired, not used up, and for this customer."""
        for one in given:
            if "promotion_code" in one:
                code = self._store.get("promotion_code", one["promotion_code"], "discounts")
                spent = code["max_redemptions"] is not None and code["times_redeemed"] >= code["max_redemptions"]
                late = code["expires_at"] is not None and code["expires_at"] <= self._store.now
                other = code["customer"] is not None and code["customer"] != customer
                if not code["active"] or spent or late or other:
                    raise StripeRefusal("This promotion code cannot be redeemed.", code="promotion_code_invalid")
            elif "coupon" in one:
                self._store.get("coupon", one["coupon"], "discounts")

    def attach(self, given: list[Json], customer: str, subscription: str | None) -> list[str]:
        """Discounts from now on, out of `{coupon}` or `{promotion_code}` parameters."""
        self.check(given, customer)
        made = []
        for one in given:
            if "discount" in one:
                made.append(one["discount"])
                continue
            code = self._store.find(one.get("promotion_code"))
            if code is not None:
                code["times_redeemed"] += 1
            coupon = self._store.get("coupon", code["promotion"]["coupon"] if code else one["coupon"])
            coupon["times_redeemed"] += 1
            end = None
            if coupon["duration"] == "repeating":
                months = {"interval": "month", "interval_count": coupon["duration_in_months"]}
                end = boundary(self._store.now, months, 1)
            discount = self._store.make(
                "discount",
                customer=customer,
                end=end,
                promotion_code=code["id"] if code else None,
                source={"type": "coupon", "coupon": coupon["id"]},
                start=self._store.now,
                subscription=subscription,
            )
            made.append(self._store.put(discount)["id"])
            self._store.emit("customer.discount.created", discount)
        return made

    def apply(self, lines: list[Json], discounts: list[str]) -> list[Json]:
        """Each line's share of each discount, and their totals by discount."""
        totals = []
        for identifier in discounts:
            discount = self._store.get("discount", identifier)
            if discount["end"] is not None and discount["end"] <= self._store.now:
                continue
            open_lines = [line for line in lines if line["discountable"] and _left(line) > 0]
            shares = self._shares(discount, [_left(line) for line in open_lines])
            for line, share in zip(open_lines, shares, strict=True):
                line["discount_amounts"].append({"amount": share, "discount": identifier})
            totals.append({"amount": sum(shares), "discount": identifier})
        return totals

    def net(self, subscription: Json, amount: int) -> int:
        """What is left of an amount after the subscription's percentages; fixed amounts are not spread over time."""
        for identifier in subscription["discounts"]:
            coupon = self._store.get("coupon", self._store.get("discount", identifier)["source"]["coupon"])
            if coupon["percent_off"] is not None:
                amount -= prorated(amount, int(Decimal(str(coupon["percent_off"])) * 100), _PERCENT_PARTS)
        return amount

    def _shares(self, discount: Json, amounts: list[int]) -> list[int]:
        coupon = self._store.get("coupon", discount["source"]["coupon"])
        if coupon["percent_off"] is not None:
            parts = int(Decimal(str(coupon["percent_off"])) * 100)
            return [prorated(amount, parts, _PERCENT_PARTS) for amount in amounts]
        return shared_out(min(coupon["amount_off"], sum(amounts)), amounts)

    def spend(self, subscription: Json) -> None:
        """A discount for one invoice is gone after the first; a repeating one when its months are over."""
        kept = []
        for identifier in subscription["discounts"]:
            discount = self._store.get("discount", identifier)
            coupon = self._store.find(discount["source"]["coupon"])
            once = coupon is not None and coupon["duration"] == "once"
            over = discount["end"] is not None and discount["end"] <= self._store.now
            if once or over:
                self._store.emit("customer.discount.deleted", discount)
            else:
                kept.append(identifier)
        subscription["discounts"] = kept


def _left(line: Json) -> int:
    taken: int = sum(one["amount"] for one in line["discount_amounts"])
    return int(line["amount"]) - taken
