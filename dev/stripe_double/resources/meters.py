"""Meters, meter events and their summaries: usage as Stripe counts it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.routes import Routes
from dev.stripe_double.shapes import page
from dev.stripe_double.store import DAY, HOUR, Store

ARRIVAL = "arrival"
TIMESTAMP = "timestamp"
PAST_AT_MOST = 35 * DAY
AHEAD_AT_MOST = 300
IDENTIFIER_MEMORY = DAY
IDENTIFIER_AT_MOST = 100
_WHOLE = re.compile(r"-?\d{1,15}")
_WINDOWS = {"hour": HOUR, "day": DAY}


@dataclass
class Usage:
    identifier: str
    timestamp: int
    arrival: int
    received_at: int
    value: int
    cancelled: bool = False


class Meters:
    def __init__(self, store: Store, last_by: str, report: Callable[[str, Json, str], None]) -> None:
        self._store = store
        self.last_by = last_by
        """Stripe's text allows two readings of the formula `last`: by order of arrival, or by timestamp."""
        self._report = report
        self._usage: dict[tuple[str, str], list[Usage]] = defaultdict(list)
        self._identifiers: dict[str, tuple[int, Usage]] = {}
        self._arrivals = 0
        self.summary_lag = 0
        """Summaries follow some time after the events that they sum up; invoices do not."""
        self.busy: dict[str, int] = {}
        """Customer → how many of the next calls meet another one under way (429 lock_timeout)."""

    def routes(self) -> Routes:
        return {
            "POST /v1/billing/meters": self.create,
            "GET /v1/billing/meters": self.browse,
            "GET /v1/billing/meters/{id}": self.retrieve,
            "POST /v1/billing/meters/{id}": self.update,
            "POST /v1/billing/meters/{id}/deactivate": self.deactivate,
            "POST /v1/billing/meters/{id}/reactivate": self.reactivate,
            "GET /v1/billing/meters/{id}/event_summaries": self.summaries,
            "POST /v1/billing/meter_events": self.take_event,
            "POST /v1/billing/meter_event_adjustments": self.adjust,
        }

    def create(self, params: Json) -> Json:
        if self._active(params["event_name"]):
            raise StripeRefusal(
                f"An active meter already exists for the event name {params['event_name']}.", param="event_name"
            )
        mapping = params.get("customer_mapping", {"type": "by_id", "event_payload_key": "stripe_customer_id"})
        made = self._store.make(
            "billing.meter",
            customer_mapping=mapping,
            default_aggregation=params["default_aggregation"],
            display_name=params["display_name"],
            event_name=params["event_name"],
            event_time_window=params.get("event_time_window"),
            status="active",
            status_transitions={"deactivated_at": None},
            updated=self._store.now,
            value_settings=params.get("value_settings", {"event_payload_key": "value"}),
        )
        self._store.emit("billing.meter.created", self._store.put(made))
        return made

    def _active(self, event_name: str) -> Json | None:
        found = (row for row in self._store.all("billing.meter") if row["event_name"] == event_name)
        return next((row for row in found if row["status"] == "active"), None)

    def browse(self, params: Json) -> Json:
        rows = [row for row in self._store.all("billing.meter") if params.get("status", row["status"]) == row["status"]]
        return self._store.page(rows, params, "/v1/billing/meters")

    def retrieve(self, _: Json, identifier: str) -> Json:
        return self._store.get("billing.meter", identifier)

    def update(self, params: Json, identifier: str) -> Json:
        meter = self._store.get("billing.meter", identifier)
        meter.update(display_name=params.get("display_name", meter["display_name"]), updated=self._store.now)
        self._store.emit("billing.meter.updated", meter)
        return meter

    def deactivate(self, _: Json, identifier: str) -> Json:
        meter = self._store.get("billing.meter", identifier)
        now = self._store.now
        meter.update(status="inactive", status_transitions={"deactivated_at": now}, updated=now)
        self._store.emit("billing.meter.deactivated", meter)
        return meter

    def reactivate(self, _: Json, identifier: str) -> Json:
        meter = self._store.get("billing.meter", identifier)
        meter.update(status="active", status_transitions={"deactivated_at": None}, updated=self._store.now)
        self._store.emit("billing.meter.reactivated", meter)
        return meter

    def take_event(self, params: Json) -> Json:
        meter = self._active(params["event_name"])
        if meter is None:
            raise StripeRefusal(
                f"No active meter found for event name {params['event_name']}.", code="no_meter", param="event_name"
            )
        payload, now = params["payload"], self._store.now
        customer = payload.get(meter["customer_mapping"]["event_payload_key"])
        value = payload.get(meter["value_settings"]["event_payload_key"])
        if customer is None or (value is None and meter["default_aggregation"]["formula"] != "count"):
            raise StripeRefusal("The payload lacks a key of the meter.", code="meter_event_invalid", param="payload")
        if value is not None and not _WHOLE.fullmatch(value):
            raise StripeRefusal(
                "Invalid value: must be a whole number.", code="meter_event_invalid_value", param="payload"
            )
        timestamp = params.get("timestamp", now)
        _check_timestamp(timestamp, now)
        if self.busy.get(customer, 0) > 0:
            self.busy[customer] -= 1
            raise StripeRefusal(
                "This object cannot be accessed right now because another API request or Stripe process is currently "
                "accessing it.",
                status=429,
                code="lock_timeout",
            )
        identifier = params.get("identifier") or self._store.new_id("mevt")
        self._remember(identifier)
        self._arrivals += 1
        usage = Usage(identifier, timestamp, self._arrivals, now, int(value or 0))
        self._identifiers[identifier] = (now, usage)
        found = self._store.find(customer)
        if found is None or found["object"] != "customer" or found.get("deleted"):
            # Taken all the same; Stripe says so later, in a thin event.
            self._report("meter_event_customer_not_found", meter, identifier)
        else:
            self._usage[meter["id"], customer].append(usage)
        return {
            "object": "billing.meter_event",
            "created": now,
            "event_name": params["event_name"],
            "identifier": identifier,
            "livemode": self._store.livemode,
            "payload": payload,
            "timestamp": timestamp,
        }

    def _remember(self, identifier: str) -> None:
        if len(identifier) > IDENTIFIER_AT_MOST:
            raise StripeRefusal("Invalid string: identifier must be at most 100 characters.", param="identifier")
        seen_at, _ = self._identifiers.get(identifier, (None, None))
        if seen_at is not None and self._store.now - seen_at < IDENTIFIER_MEMORY:
            raise StripeRefusal(
                f"An event already exists with identifier {identifier}.", headers={"Stripe-Should-Retry": "false"}
            )

    def adjust(self, params: Json) -> Json:
        identifier = params.get("cancel", {}).get("identifier", "")
        seen_at, usage = self._identifiers.get(identifier, (0, None))
        if usage is None or self._store.now - seen_at > IDENTIFIER_MEMORY:
            raise StripeRefusal(
                "No meter event found with that identifier within the last 24 hours.", param="cancel[identifier]"
            )
        usage.cancelled = True
        return {
            "object": "billing.meter_event_adjustment",
            "cancel": {"identifier": identifier},
            "event_name": params["event_name"],
            "livemode": self._store.livemode,
            "status": "pending",
            "type": "cancel",
        }

    def quantity(self, meter_id: str, customer: str, start: int, end: int, *, lag: int = 0) -> int:
        """What the meter makes of the customer's events with a timestamp in [start, end), as of `lag` seconds ago."""
        formula = self._store.get("billing.meter", meter_id)["default_aggregation"]["formula"]
        seen = self._store.now - lag
        rows = [
            row
            for row in self._usage[meter_id, customer]
            if start <= row.timestamp < end and row.received_at <= seen and not row.cancelled
        ]
        if formula == "count":
            return len(rows)
        if formula == "sum":
            return max(0, sum(row.value for row in rows))
        by_time = self.last_by == TIMESTAMP
        ordered = sorted(rows, key=lambda row: (row.timestamp if by_time else 0, row.arrival))
        return ordered[-1].value if ordered else 0

    def summaries(self, params: Json, identifier: str) -> Json:
        meter = self._store.get("billing.meter", identifier)
        start, end = params["start_time"], params["end_time"]
        for name, moment in (("start_time", start), ("end_time", end)):
            if moment % 60:
                raise StripeRefusal(f"{name} must be aligned with minute boundaries.", param=name)
        if start >= end:
            raise StripeRefusal("start_time must be before end_time.", param="end_time")
        step = _WINDOWS.get(params.get("value_grouping_window", ""), end - start)
        if start % step and step in _WINDOWS.values():
            raise StripeRefusal("start_time must be aligned with the grouping window.", param="start_time")
        rows = []
        for begin in range(start, end, step):
            stop = min(begin + step, end)
            told = self._usage[identifier, params["customer"]]
            seen = self._store.now - self.summary_lag
            if any(begin <= one.timestamp < stop and one.received_at <= seen for one in told):
                rows.append(
                    {
                        "id": self._store.new_id("mtrusg"),
                        "object": "billing.meter_event_summary",
                        "aggregated_value": float(
                            self.quantity(meter["id"], params["customer"], begin, stop, lag=self.summary_lag)
                        ),
                        "end_time": stop,
                        "livemode": self._store.livemode,
                        "meter": identifier,
                        "start_time": begin,
                    }
                )
        return page(rows[::-1], f"/v1/billing/meters/{identifier}/event_summaries")


def _check_timestamp(timestamp: int, now: int) -> None:
    if timestamp < now - PAST_AT_MOST:
        raise StripeRefusal(
            "The timestamp must be within the past 35 calendar days.",
            code="timestamp_too_far_in_past",
            param="timestamp",
        )
    if timestamp > now + AHEAD_AT_MOST:
        raise StripeRefusal(
            "The timestamp must not be more than 5 minutes in the future.",
            code="timestamp_in_future",
            param="timestamp",
        )
