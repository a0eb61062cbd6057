"""Subscription schedules: what a subscription will be from its period's end on."""

from __future__ import annotations

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.periods import boundary
from dev.stripe_double.resources.catalog import is_metered
from dev.stripe_double.resources.changes import Changes
from dev.stripe_double.resources.items import check_quantity, check_together, recurring_price
from dev.stripe_double.resources.subscriptions import ENDED, Subscriptions
from dev.stripe_double.resources.terms import live_items
from dev.stripe_double.routes import Routes
from dev.stripe_double.store import Store, merge_metadata

PHASES_AT_MOST = 10
OPEN = ("not_started", "active")


class Schedules:
    def __init__(self, store: Store, subscriptions: Subscriptions, changes: Changes) -> None:
        self._store = store
        self._subscriptions = subscriptions
        self._changes = changes

    def routes(self) -> Routes:
        return {
            "POST /v1/subscription_schedules": self.create,
            "GET /v1/subscription_schedules": self.browse,
            "GET /v1/subscription_schedules/{schedule}": self.retrieve,
            "POST /v1/subscription_schedules/{schedule}": self.update,
            "POST /v1/subscription_schedules/{schedule}/release": self.release,
            "POST /v1/subscription_schedules/{schedule}/cancel": self.cancel,
        }

    def create(self, params: Json) -> Json:
        if "from_subscription" not in params:
            raise StripeRefusal(
                "The double makes schedules from subscriptions: pass `from_subscription`.", status=501, kind="api_error"
            )
        if params.keys() - {"from_subscription", "expand", "billing_mode"}:
            raise StripeRefusal(
                "You cannot set other parameters if `from_subscription` is set.", param="from_subscription"
            )
        subscription = self._store.get("subscription", params["from_subscription"], "from_subscription")
        if subscription["status"] in ENDED:
            raise StripeRefusal("You cannot migrate a subscription that has ended.", param="from_subscription")
        if subscription["schedule"]:
            raise StripeRefusal(
                "You cannot migrate a subscription that is already attached to a schedule: "
                f"{subscription['schedule']}.",
                param="from_subscription",
            )
        phase = self._current(subscription)
        made = self._store.make(
            "subscription_schedule",
            billing_mode=dict(subscription["billing_mode"]),
            current_phase={"start_date": phase["start_date"], "end_date": phase["end_date"]},
            customer=subscription["customer"],
            end_behavior="release",
            metadata={},
            phases=[phase],
            status="active",
            subscription=subscription["id"],
        )
        made["default_settings"].update(billing_cycle_anchor="automatic", collection_method="charge_automatically")
        made["default_settings"]["invoice_settings"]["issuer"]["type"] = "self"
        self._store.put(made)
        subscription["schedule"] = made["id"]
        self._watch(made)
        self._store.emit("subscription_schedule.created", made)
        self._store.emit("customer.subscription.updated", subscription, {"schedule": None})
        return made

    def _current(self, subscription: Json) -> Json:
        """The phase that says what the subscription is now, for the longest of its periods."""
        items = live_items(subscription)
        longest = max(items, key=lambda item: item["current_period_end"])
        return _phase(
            subscription["currency"],
            longest["current_period_start"],
            longest["current_period_end"],
            [_phase_item(item["price"], item) for item in items],
            {
                "discounts": [{"discount": discount} for discount in subscription["discounts"]],
                "proration_behavior": "create_prorations",
                "trial_end": subscription["trial_end"] if subscription["status"] == "trialing" else None,
            },
        )

    def browse(self, params: Json) -> Json:
        rows = [
            row
            for row in self._store.all("subscription_schedule")
            if params.get("customer", row["customer"]) == row["customer"]
        ]
        return self._store.page(rows, params, "/v1/subscription_schedules")

    def retrieve(self, _: Json, identifier: str) -> Json:
        return self._store.get("subscription_schedule", identifier, "schedule")

    def update(self, params: Json, identifier: str) -> Json:
        schedule = self._open(identifier)
        phases = self._phases(schedule, params["phases"]) if "phases" in params else schedule["phases"]
        schedule["phases"] = phases
        schedule["end_behavior"] = params.get("end_behavior", schedule["end_behavior"])
        schedule["metadata"] = merge_metadata(schedule["metadata"], params.get("metadata", {}))
        first = phases[0]
        schedule["current_phase"] = {"start_date": first["start_date"], "end_date": first["end_date"]}
        self._watch(schedule)
        self._store.emit("subscription_schedule.updated", schedule)
        return schedule

    def _open(self, identifier: str) -> Json:
        schedule = self._store.get("subscription_schedule", identifier, "schedule")
        if schedule["status"] not in OPEN:
            raise StripeRefusal(
                f"You cannot change a subscription schedule that is `{schedule['status']}`.", param="schedule"
            )
        return schedule

    def _phases(self, schedule: Json, given: list[Json]) -> list[Json]:
        if not 1 <= len(given) <= PHASES_AT_MOST:
            raise StripeRefusal("A schedule has between 1 and 10 phases.", param="phases")
        current = schedule["current_phase"]["start_date"]
        start = given[0].get("start_date")
        if start is None:
            raise StripeRefusal(
                "The first phase must have a `start_date`.", code="parameter_missing", param="phases[0][start_date]"
            )
        if start != current:
            raise StripeRefusal(
                "You can not modify the start date of the current phase.", param="phases[0][start_date]"
            )
        made = []
        for index, phase in enumerate(given):
            path = f"phases[{index}]"
            if phase.get("start_date", start) != start:
                raise StripeRefusal(
                    "The start date of a phase must be the end date of the phase before.", param=f"{path}[start_date]"
                )
            made.append(self._phase(schedule, phase, start, path))
            start = made[-1]["end_date"]
        if made[0]["end_date"] <= self._store.now:
            raise StripeRefusal("The current phase must end in the future.", param="phases[0][end_date]")
        return made

    def _phase(self, schedule: Json, given: Json, start: int, path: str) -> Json:
        prices = []
        for index, item in enumerate(given["items"]):
            price = recurring_price(self._store, item.get("price"), f"{path}[items][{index}]")
            check_quantity(price, item, f"{path}[items][{index}]")
            prices.append(price)
        check_together(prices, schedule["billing_mode"]["type"])
        if "duration" in given and "end_date" in given:
            raise StripeRefusal(
                "You may only specify one of these parameters: duration, end_date.", param=f"{path}[duration]"
            )
        end = given.get("end_date")
        if end is None:
            # A last phase without an end lasts one period of its longest price.
            pace = given.get("duration") or max(
                (price["recurring"] for price in prices), key=lambda recurring: boundary(start, recurring, 1)
            )
            end = boundary(start, {"interval_count": 1, **pace}, 1)
        end = self._store.now if end == "now" else end
        if end <= start:
            raise StripeRefusal("The end date of a phase must be after its start.", param=f"{path}[end_date]")
        items = [_phase_item(price, item) for price, item in zip(prices, given["items"], strict=True)]
        return _phase(prices[0]["currency"], start, end, items, given)

    # Time

    def _watch(self, schedule: Json) -> None:
        for phase in schedule["phases"]:
            self._store.at(phase["end_date"], lambda: self._turn(schedule))

    def before_renewal(self, subscription: Json, _moment: int) -> None:
        """The renewal at a phase's end is of the next phase already."""
        schedule = self._store.find(subscription["schedule"])
        if schedule is not None:
            self._turn(schedule)

    def _turn(self, schedule: Json) -> None:
        now = self._store.now
        if schedule["status"] != "active" or schedule["current_phase"]["end_date"] > now:
            return
        following = [phase for phase in schedule["phases"] if phase["start_date"] <= now < phase["end_date"]]
        if following:
            self._enter(schedule, following[0])
        elif schedule["end_behavior"] == "cancel":
            subscription = self._store.get("subscription", schedule["subscription"])
            schedule.update(completed_at=now, current_phase=None, status="completed")
            self._store.emit("subscription_schedule.completed", schedule)
            self._subscriptions.end(subscription)
        else:
            self._release(schedule)

    def _enter(self, schedule: Json, phase: Json) -> None:
        subscription = self._store.get("subscription", schedule["subscription"])
        params = {"items": _edits(subscription, phase), "proration_behavior": phase["proration_behavior"]}
        change = self._changes.work_out(subscription, params)
        previous = self._changes.apply(subscription, change)
        if phase["metadata"]:
            previous["metadata"] = subscription["metadata"]
            subscription["metadata"] = subscription["metadata"] | phase["metadata"]
        schedule["current_phase"] = {"start_date": phase["start_date"], "end_date": phase["end_date"]}
        self._store.emit("subscription_schedule.updated", schedule)
        if previous:
            self._store.emit("customer.subscription.updated", subscription, previous)

    def items_changed(self, subscription: Json) -> None:
        """An update beside the schedule changes its current phase, not the coming ones."""
        schedule = self._store.find(subscription["schedule"])
        if schedule is not None:
            for phase in schedule["phases"]:
                if phase["start_date"] == schedule["current_phase"]["start_date"]:
                    phase["items"] = [_phase_item(item["price"], item) for item in live_items(subscription)]

    # Ending

    def release(self, _: Json, identifier: str) -> Json:
        schedule = self._open(identifier)
        self._release(schedule)
        return schedule

    def _release(self, schedule: Json) -> None:
        subscription = self._store.get("subscription", schedule["subscription"])
        schedule.update(
            current_phase=None,
            released_at=self._store.now,
            released_subscription=subscription["id"],
            status="released",
            subscription=None,
        )
        subscription["schedule"] = None
        self._store.emit("subscription_schedule.released", schedule)
        self._store.emit("customer.subscription.updated", subscription, {"schedule": schedule["id"]})

    def cancel(self, _: Json, identifier: str) -> Json:
        schedule = self._open(identifier)
        self._subscriptions.end(self._store.get("subscription", schedule["subscription"]))
        return schedule

    def subscription_ended(self, subscription: Json) -> None:
        schedule = self._store.find(subscription["schedule"])
        if schedule is not None and schedule["status"] in OPEN:
            schedule.update(canceled_at=self._store.now, current_phase=None, status="canceled")
            self._store.emit("subscription_schedule.canceled", schedule)


def _phase(currency: str, start: int, end: int, items: list[Json], given: Json) -> Json:
    return {
        "add_invoice_items": [],
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": None,
        "billing_thresholds": None,
        "collection_method": None,
        "currency": currency,
        "default_payment_method": None,
        "default_tax_rates": [],
        "description": given.get("description"),
        "discounts": [
            {"coupon": None, "discount": None, "promotion_code": None, **one} for one in given.get("discounts") or []
        ],
        "end_date": end,
        "invoice_settings": None,
        "items": items,
        "metadata": given.get("metadata") or {},
        "on_behalf_of": None,
        "proration_behavior": given.get("proration_behavior", "create_prorations"),
        "start_date": start,
        "transfer_data": None,
        "trial_end": given.get("trial_end"),
    }


def _phase_item(price: Json, given: Json) -> Json:
    made: Json = {
        "billing_thresholds": None,
        "discounts": [],
        "metadata": given.get("metadata") or {},
        "plan": price["id"],
        "price": price["id"],
        "tax_rates": [],
    }
    if not is_metered(price):
        made["quantity"] = given.get("quantity", 1)
    return made


def _edits(subscription: Json, phase: Json) -> list[Json]:
    """From the items as they are to those of the phase; a licensed item keeps its id when its price is replaced."""
    current = live_items(subscription)
    wanted = {item["price"]: item for item in phase["items"]}
    edits: list[Json] = []
    gone = []
    for item in current:
        target = wanted.pop(item["price"]["id"], None)
        if target is None:
            gone.append(item)
        elif "quantity" in target:
            edits.append({"id": item["id"], "quantity": target["quantity"]})
    replaced: list[Json] = [item for item in gone if not is_metered(item["price"])]
    for price, target in wanted.items():
        amount = {"quantity": target["quantity"]} if "quantity" in target else {}
        old = replaced.pop(0) if amount and replaced else None
        if old is not None:
            gone.remove(old)
        edits.append({"price": price, **amount, **({"id": old["id"]} if old else {})})
    return edits + [{"id": item["id"], "deleted": True} for item in gone]
