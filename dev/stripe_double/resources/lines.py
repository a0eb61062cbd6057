"""Lines of invoices: what a period of an item costs, what a change gives back and asks for."""

from __future__ import annotations

from dev.stripe_double.forms import Json
from dev.stripe_double.resources.catalog import amount_of, is_metered
from dev.stripe_double.store import Store


def item_line(
    store: Store,
    subscription: Json,
    item: Json,
    period: tuple[int, int],
    *,
    quantity: int,
    amount: int | None = None,
    description: str | None = None,
) -> Json:
    """One item for one period."""
    price = item["price"]
    cost = amount_of(price, quantity) if amount is None else amount
    return store.make(
        "line_item",
        amount=cost,
        currency=price["currency"],
        description=description or _description(store, price, quantity),
        discount_amounts=[],
        discountable=True,
        metadata=dict(subscription["metadata"]),
        parent=_parent(subscription, item, proration=False),
        period={"start": period[0], "end": period[1]},
        pricing=_pricing(price),
        quantity=quantity,
        quantity_decimal=str(quantity),
        subtotal=cost,
        taxes=[],
    )


def proration_line(store: Store, subscription: Json, item: Json, period: tuple[int, int], amount: int) -> Json:
    """Unused time given back (negative) or remaining time asked for, of one item."""
    name = _product_name(store, item["price"])
    quantity = item.get("quantity") or 0
    made = item_line(
        store,
        subscription,
        item,
        period,
        quantity=quantity,
        amount=amount,
        description=f"{'Unused' if amount < 0 else 'Remaining'} time on {name}",
    )
    made["parent"] = _parent(subscription, item, proration=True)
    # A credit was made of the price after its discounts; a further discount would take it back.
    made["discountable"] = amount > 0
    return made


def invoice_item_line(store: Store, item: Json) -> Json:
    """A pending invoice item, drawn into an invoice."""
    return store.make(
        "line_item",
        amount=item["amount"],
        currency=item["currency"],
        description=item["description"],
        discount_amounts=[],
        discountable=item["discountable"],
        metadata=dict(item["metadata"] or {}),
        parent={
            "type": "invoice_item_details",
            "invoice_item_details": {
                "invoice_item": item["id"],
                "proration": item["proration"],
                "proration_details": None,
                "subscription": (item["parent"] or {}).get("subscription_details", {}).get("subscription"),
            },
            "subscription_item_details": None,
        },
        period=dict(item["period"]),
        pricing=item["pricing"],
        quantity=item["quantity"],
        quantity_decimal=str(item["quantity"]),
        subtotal=item["amount"],
        taxes=[],
    )


def _parent(subscription: Json, item: Json, *, proration: bool) -> Json:
    return {
        "type": "subscription_item_details",
        "invoice_item_details": None,
        "subscription_item_details": {
            "invoice_item": None,
            "proration": proration,
            "proration_details": {"credited_items": None},
            "subscription": subscription["id"],
            "subscription_item": item["id"],
        },
    }


def _pricing(price: Json) -> Json:
    return {
        "type": "price_details",
        "price_details": {"price": price["id"], "product": price["product"]},
        "unit_amount_decimal": price["unit_amount_decimal"],
    }


def _product_name(store: Store, price: Json) -> str:
    product = store.find(price["product"])
    return str(product["name"]) if product else str(price["product"])


def _description(store: Store, price: Json, quantity: int) -> str:
    each = (
        f"${int(price['unit_amount'] or 0) / 100:.2f}" if price["unit_amount"] else price["unit_amount_decimal"] + "¢"
    )
    every = price["recurring"]["interval"] if price["recurring"] else "once"
    unit = " unit" if is_metered(price) else ""
    return f"{quantity}{unit} x {_product_name(store, price)} (at {each} / {every})"
