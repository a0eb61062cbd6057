"""What an edit of a subscription's items costs, worked out before anything is changed (so that it can be previewed).

Proration is to the second and each line is rounded by itself, half a cent upwards: unused time of the old price is
given back for [moment, period end), remaining time of the new price asked for. A change of the interval (or
`billing_cycle_anchor: now`) begins new periods at the moment instead: licensed items are charged whole, metered usage
so far is billed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.periods import end_after, prorated
from dev.stripe_double.resources.catalog import amount_of, is_metered
from dev.stripe_double.resources.items import (
    check_quantity,
    check_together,
    first_period,
    give_price,
    make_item,
    recurring_price,
)
from dev.stripe_double.resources.lines import item_line, proration_line
from dev.stripe_double.resources.subscriptions import Subscriptions, items_page, period_of
from dev.stripe_double.resources.terms import live_items
from dev.stripe_double.store import Store


@dataclass
class Change:
    """The subscription's items as they would be, and what that costs at once."""

    at: int
    items: list[Json]
    """Copies; an item that is not stored yet is new."""
    lines: list[Json] = field(default_factory=list)
    resets: bool = False
    """Every period begins again at `at`."""
    ends_trial: bool = False
    usage_billed: list[str] = field(default_factory=list)
    """Items whose usage before `at` is in `lines`."""


class Changes:
    def __init__(self, store: Store, subscriptions: Subscriptions, net: Callable[[Json, int], int]) -> None:
        self._store = store
        self._subscriptions = subscriptions
        self._net = net
        """What the customer really paid of an amount, after the subscription's discounts."""

    def work_out(self, subscription: Json, params: Json) -> Change:
        """`params`: items, proration_behavior, proration_date, billing_cycle_anchor, as `update` takes them."""
        at = self._moment(subscription, params)
        edits, cleared = self._edits(subscription, params.get("items", []))
        mode = subscription["billing_mode"]["type"]
        check_together([item["price"] for _, item in edits if item is not None], mode)
        on_trial = subscription["status"] == "trialing"
        ends_trial = on_trial and params.get("trial_end") == "now"
        moved = params.get("billing_cycle_anchor", {}).get("type") == "now" or any(
            old is not None and new is not None and _pace(old) != _pace(new) and not is_metered(new["price"])
            for old, new in edits
            if old is None or old["current_period_end"] > at
        )
        # A trial has nothing to give back; its end is the first charge, whole.
        resets = ends_trial or (moved and not on_trial)
        change = Change(at, [new for _, new in edits if new is not None], resets=resets, ends_trial=ends_trial)
        if ends_trial:
            for item in change.items:
                self._cost(subscription, change, None, item, prorates=False, cleared=cleared)
        elif not on_trial:
            prorates = params.get("proration_behavior", "create_prorations") != "none"
            for old, new in edits:
                self._cost(subscription, change, old, new, prorates=prorates, cleared=cleared)
        return change

    def _moment(self, subscription: Json, params: Json) -> int:
        at = int(params.get("proration_date", self._store.now))
        starts = [item["current_period_start"] for item in live_items(subscription)]
        ends = [item["current_period_end"] for item in live_items(subscription)]
        if "proration_date" in params and not max(starts) <= at <= min(ends):
            raise StripeRefusal(
                "Invalid proration_date: must be within the current billing period.", param="proration_date"
            )
        return at

    def _edits(self, subscription: Json, given: list[Json]) -> tuple[list[tuple[Json | None, Json | None]], set[str]]:
        """Pairs (as it is, as it would be); None for what is added or removed."""
        current = {item["id"]: item for item in live_items(subscription)}
        edits: dict[str, tuple[Json | None, Json | None]] = {
            identifier: (item, dict(item)) for identifier, item in current.items()
        }
        added: list[tuple[Json | None, Json | None]] = []
        cleared = set()
        for index, edit in enumerate(given):
            path = f"items[{index}]"
            if "id" not in edit:
                price = recurring_price(self._store, edit.get("price"), path)
                check_quantity(price, edit, path)
                added.append((None, make_item(self._store, subscription["id"], price, edit)))
                continue
            if edit["id"] not in current:
                raise StripeRefusal(
                    f"The subscription item `{edit['id']}` does not belong to the subscription `{subscription['id']}`.",
                    param=f"{path}[id]",
                )
            old = current[edit["id"]]
            if edit.get("clear_usage"):
                cleared.add(old["id"])
            edits[old["id"]] = (old, None if edit.get("deleted") else self._edited(old, edit, path))
        return [*edits.values(), *added], cleared

    def _edited(self, old: Json, edit: Json, path: str) -> Json:
        new = dict(old)
        if "price" in edit:
            give_price(self._store, new, recurring_price(self._store, edit["price"], path))
        check_quantity(new["price"], edit, path)
        if "quantity" in edit:
            new["quantity"] = edit["quantity"]
        if "metadata" in edit:
            new["metadata"] = edit["metadata"] or {}
        return new

    def _cost(
        self,
        subscription: Json,
        change: Change,
        old: Json | None,
        new: Json | None,
        *,
        prorates: bool,
        cleared: set[str],
    ) -> None:
        same = old is not None and new is not None and _terms(old) == _terms(new)
        ends_now = old is not None and old["current_period_end"] <= change.at
        if (same and not change.resets) or ends_now:
            # At the very end of a period the renewal bills both sides.
            return
        if old is not None and is_metered(old["price"]) and old["id"] not in cleared:
            # Flexible billing bills usage so far when its price goes; classic billing forgets it.
            if subscription["billing_mode"]["type"] == "flexible":
                lines = self._subscriptions.usage_lines(subscription, [old], change.at)
                change.lines += [line for line in lines if line["quantity"] or change.resets]
            change.usage_billed.append(old["id"])
        elif old is not None and prorates and not is_metered(old["price"]):
            self._prorate(subscription, change, old, old, sign=-1)
        if new is None or is_metered(new["price"]):
            return
        if change.resets:
            period = first_period(new, change.at, change.at)
            change.lines.append(item_line(self._store, subscription, new, period, quantity=new["quantity"]))
        elif prorates:
            self._prorate(subscription, change, new, old, sign=1)

    def _prorate(self, subscription: Json, change: Change, item: Json, old: Json | None, *, sign: int) -> None:
        if old is not None:
            start, end = period_of(old)
        else:
            end = end_after(subscription["billing_cycle_anchor"], item["price"]["recurring"], change.at)
            start = change.at
        whole = end - start if old is not None else _whole(subscription, item, end)
        amount = amount_of(item["price"], item["quantity"])
        if sign < 0:
            amount = self._net(subscription, amount)
        cost = sign * prorated(amount, end - change.at, whole)
        if cost:
            change.lines.append(proration_line(self._store, subscription, item, (change.at, end), cost))

    def _period(self, subscription: Json, item: Json) -> tuple[int, int]:
        if subscription["status"] == "trialing":
            return self._store.now, int(subscription["trial_end"])
        return first_period(item, subscription["billing_cycle_anchor"], self._store.now)

    def apply(self, subscription: Json, change: Change) -> Json:
        """Put it in place; answers what was there before, for the event."""
        before = [_before(item) for item in live_items(subscription)]
        kept: list[Json] = []
        for new in change.items:
            stored = self._store.find(new["id"])
            if stored is None:
                stored = self._store.put(new)
                period = self._period(subscription, new)
                self._subscriptions.set_period(subscription, stored, period)
            else:
                stored.clear()
                stored.update(new)
            kept.append(stored)
            if new["id"] in change.usage_billed:
                self._subscriptions.usage_from[new["id"]] = change.at
        subscription["items"] = items_page(subscription["id"], kept)
        previous: Json = {"items": {"data": before}} if before != [_before(item) for item in kept] else {}
        if change.ends_trial:
            previous |= {"status": "trialing", "trial_end": subscription["trial_end"]}
            subscription.update(status="active", trial_end=self._store.now)
        if change.resets:
            previous["billing_cycle_anchor"] = subscription["billing_cycle_anchor"]
            subscription["billing_cycle_anchor"] = self._store.now
            self._subscriptions.restart_periods(subscription, self._store.now)
        return previous


def _pace(item: Json) -> tuple[str, int]:
    recurring = item["price"]["recurring"]
    return recurring["interval"], recurring["interval_count"]


def _terms(item: Json) -> tuple[str, int | None]:
    return item["price"]["id"], item.get("quantity")


def _before(item: Json) -> Json:
    return {"id": item["id"], "price": {"id": item["price"]["id"]}, **_quantity(item)} | {
        key: item[key] for key in ("current_period_start", "current_period_end")
    }


def _quantity(item: Json) -> Json:
    return {"quantity": item["quantity"]} if "quantity" in item else {}


def _whole(subscription: Json, item: Json, end: int) -> int:
    """The length of the whole period that ends at `end`."""
    anchor, recurring = subscription["billing_cycle_anchor"], item["price"]["recurring"]
    start = int(anchor)
    while (following := end_after(anchor, recurring, start)) < end:
        start = following
    return end - start
