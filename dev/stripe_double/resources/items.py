"""Items of subscriptions: checked before they are made, each with a billing period of its own."""

from __future__ import annotations

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json, Value
from dev.stripe_double.periods import end_after
from dev.stripe_double.resources.catalog import is_metered
from dev.stripe_double.store import Store

ITEMS_AT_MOST = 20


def check_quantity(price: Json, given: Json, path: str) -> None:
    """Licensed prices are bought in a number; metered ones are counted."""
    if is_metered(price) and "quantity" in given:
        raise StripeRefusal(
            f"Quantity should not be specified where usage_type is `metered`. Remove `quantity` from `{path}`",
            param=f"{path}[quantity]",
        )


def recurring_price(store: Store, identifier: Value, path: str) -> Json:
    if not identifier:
        raise StripeRefusal("You must pass a `price` for a new item.", param=f"{path}[price]")
    price = store.get("price", identifier, f"{path}[price]")
    if not price["active"]:
        raise StripeRefusal(
            "The price specified is inactive. This field only accepts active prices.", param=f"{path}[price]"
        )
    if price["recurring"] is None:
        raise StripeRefusal(
            "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring`.",
            param=f"{path}[price]",
        )
    return price


def check_together(prices: list[Json], billing_mode: str) -> None:
    """What prices cannot be on one subscription."""
    if not prices:
        raise StripeRefusal("A subscription must have at least one active plan.", param="items")
    if len(prices) > ITEMS_AT_MOST:
        raise StripeRefusal(f"A subscription can have at most {ITEMS_AT_MOST} items.", param="items")
    if len({price["id"] for price in prices}) < len(prices):
        raise StripeRefusal("Cannot add multiple subscription items with the same price.", param="items")
    if len({price["currency"] for price in prices}) > 1:
        raise StripeRefusal("All prices on a subscription must have the same `currency`.", param="items")
    paces = {(price["recurring"]["interval"], price["recurring"]["interval_count"]) for price in prices}
    if len(paces) > 1 and billing_mode != "flexible":
        raise StripeRefusal(
            "All prices on a subscription must have the same `recurring.interval` and `recurring.interval_count` "
            "unless its `billing_mode` is `flexible`.",
            param="items",
        )


def make_item(store: Store, subscription: str, price: Json, given: Json) -> Json:
    """Not stored yet and without a period: a change may be only a preview."""
    made = store.make(
        "subscription_item",
        current_period_end=0,
        current_period_start=0,
        metadata=given.get("metadata") or {},
        plan=_plan(store, price),
        price=price,
        subscription=subscription,
        tax_rates=[],
    )
    if not is_metered(price):
        made["quantity"] = given.get("quantity", 1)
    return made


def give_price(store: Store, item: Json, price: Json) -> None:
    item.update(price=price, plan=_plan(store, price))
    if is_metered(price):
        item.pop("quantity", None)
    else:
        item.setdefault("quantity", 1)


def first_period(item: Json, anchor: int, moment: int) -> tuple[int, int]:
    return moment, end_after(anchor, item["price"]["recurring"], moment)


def _plan(store: Store, price: Json) -> Json:
    """The older name of a recurring price, which items still carry."""
    recurring = price["recurring"]
    made = store.make(
        "plan",
        active=price["active"],
        amount=price["unit_amount"],
        amount_decimal=price["unit_amount_decimal"],
        billing_scheme=price["billing_scheme"],
        created=price["created"],
        currency=price["currency"],
        interval=recurring["interval"],
        interval_count=recurring["interval_count"],
        meter=recurring["meter"],
        metadata=dict(price["metadata"]),
        nickname=price["nickname"],
        product=price["product"],
        usage_type=recurring["usage_type"],
    )
    made["id"] = price["id"]
    return made
