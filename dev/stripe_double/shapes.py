"""Empty objects of the pinned version: each field that version has, and no other, at its neutral value."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from dev.stripe_double.contract import Contract
from dev.stripe_double.derivation import Shape
from dev.stripe_double.forms import Json, Value

ONLY_WHEN_EXPANDED = {
    ("invoice", "payments"),
    ("invoice", "confirmation_secret"),
    ("price", "currency_options"),
    ("price", "tiers"),
    ("checkout.session", "line_items"),
    ("coupon", "applies_to"),
    ("coupon", "currency_options"),
    ("customer", "subscriptions"),
    ("customer", "sources"),
    ("customer", "tax"),
    ("customer", "tax_ids"),
    ("customer", "cash_balance"),
    ("customer", "invoice_credit_balance"),
    ("charge", "refunds"),
    ("webhook_endpoint", "secret"),
    ("subscription_item", "quantity"),
    ("line_item", "subscription"),
}
"""Fields that Stripe leaves out of an object until they are asked for, or that do not apply to each one."""


@cache
def _template(contract: Contract, kind: str) -> str:
    fields = contract.resources[contract.by_object[kind]]["o"]
    made: Json = {}
    for name, shape in fields.items():
        if name != "deleted" and (kind, name) not in ONLY_WHEN_EXPANDED:
            made[name] = _neutral(contract, shape, name)
    return json.dumps(made)


def blank(contract: Contract, kind: str) -> Json:
    made: Json = json.loads(_template(contract, kind))
    return made


def _neutral(contract: Contract, shape: Shape, name: str) -> Value:
    if isinstance(shape, str):
        return {"s": "", "i": 0, "n": 0.0, "b": False, "d": "0", "*": None}[shape]
    ((kind, inner),) = ((key, value) for key, value in shape.items() if key != "r")
    match kind:
        case "?" | "$" | "x" | "|":
            # A named object that must be there is put there by whoever makes its owner.
            return None
        case "L":
            return page([], f"/v1/{name}")
        case "l":
            return []
        case "m":
            return {}
        case "e":
            return inner[0]
    return {key: _neutral(contract, one, key) for key, one in inner.items()}


def page(data: list[Any], url: str, *, has_more: bool = False) -> Json:
    return {"object": "list", "data": data, "has_more": has_more, "url": url}
