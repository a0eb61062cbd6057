"""Events as the API tells them, and what receives them: webhook endpoints and v2 event destinations."""

from __future__ import annotations

from datetime import UTC, datetime

from dev.stripe_double.errors import StripeRefusal, missing
from dev.stripe_double.forms import Json
from dev.stripe_double.resources.catalog import update
from dev.stripe_double.routes import Routes
from dev.stripe_double.store import DAY, Store

KEPT_FOR = 30 * DAY
_PLACES = {
    "billing.meter": "/v1/billing/meters/",
    "charge": "/v1/charges/",
    "checkout.session": "/v1/checkout/sessions/",
    "customer": "/v1/customers/",
    "dispute": "/v1/disputes/",
    "invoice": "/v1/invoices/",
    "invoice_payment": "/v1/invoice_payments/",
    "payment_intent": "/v1/payment_intents/",
    "payment_method": "/v1/payment_methods/",
    "price": "/v1/prices/",
    "product": "/v1/products/",
    "radar.early_fraud_warning": "/v1/radar/early_fraud_warnings/",
    "refund": "/v1/refunds/",
    "subscription": "/v1/subscriptions/",
    "subscription_schedule": "/v1/subscription_schedules/",
}


class Events:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._thin: dict[str, Json] = {}
        self.secrets: dict[str, str] = {}
        """Endpoint or destination → its signing secret, which the API tells only once."""

    def routes(self) -> Routes:
        return {
            "GET /v1/events": self.browse,
            "GET /v1/events/{id}": self.retrieve,
            "GET /v2/core/events": self.browse_thin,
            "GET /v2/core/events/{id}": self.retrieve_thin,
            "POST /v1/webhook_endpoints": self.create_endpoint,
            "GET /v1/webhook_endpoints": self.browse_endpoints,
            "GET /v1/webhook_endpoints/{webhook_endpoint}": self.retrieve_endpoint,
            "POST /v1/webhook_endpoints/{webhook_endpoint}": self.update_endpoint,
            "DELETE /v1/webhook_endpoints/{webhook_endpoint}": self.delete_endpoint,
        }

    def _kept(self) -> list[Json]:
        return [event for event in self._store.events if event["created"] > self._store.now - KEPT_FOR]

    def browse(self, params: Json) -> Json:
        if "type" in params and "types" in params:
            raise StripeRefusal("You may only specify one of these parameters: type, types.", param="types")
        wanted = params.get("types") or ([params["type"]] if "type" in params else None)
        rows = [
            event
            for event in self._kept()
            if wanted is None or any(_matches(pattern, event["type"]) for pattern in wanted)
        ]
        return self._store.page(rows, params, "/v1/events")

    def retrieve(self, _: Json, identifier: str) -> Json:
        event = self._store.event(identifier)
        if event is None or event["created"] <= self._store.now - KEPT_FOR:
            raise missing("event", identifier, "id")
        return event

    # Thin events

    def thin(self, event: Json) -> Json:
        """The event as a v2 destination gets it: what happened to what, and nothing of its state."""
        if event["object"] == "v2.core.event":
            return event
        about = event["data"]["object"]
        made: Json = {
            "id": self._thin_id(event),
            "object": "v2.core.event",
            "created": _instant(event["created"]),
            "livemode": event["livemode"],
            "reason": None,
            "related_object": {
                "id": about["id"],
                "type": about["object"],
                "url": _PLACES.get(about["object"], "/v1/events/") + about["id"],
            },
            "snapshot_event": event["id"],
            "type": f"v1.{event['type']}",
        }
        if event["request"]["id"]:
            made["reason"] = {"type": "request", "request": dict(event["request"])}
        self._thin[made["id"]] = made
        return made

    def _thin_id(self, event: Json) -> str:
        mode = "" if self._store.livemode else "test_"
        return f"evt_{mode}{event['id'].removeprefix('evt_')}"

    def report_meter_error(self, code: str, meter: Json, identifier: str) -> None:
        """Usage that was taken and could not be counted is reported only so, and only as a thin event."""
        now = self._store.now
        made: Json = {
            "id": self._store.new_id("evt_test"),
            "object": "v2.core.event",
            "created": _instant(now),
            "data": {
                "developer_message_summary": "There is 1 invalid event",
                "reason": {
                    "error_count": 1,
                    "error_types": [
                        {
                            "code": code,
                            "error_count": 1,
                            "sample_errors": [
                                {
                                    "error_message": f"The event with identifier {identifier} could not be counted.",
                                    "request": {"identifier": identifier},
                                }
                            ],
                        }
                    ],
                },
                "validation_end": _instant(now),
                "validation_start": _instant(now),
            },
            "livemode": self._store.livemode,
            "reason": None,
            "related_object": {
                "id": meter["id"],
                "type": "billing.meter",
                "url": f"/v1/billing/meters/{meter['id']}",
            },
            "type": "v1.billing.meter.error_report_triggered",
        }
        self._thin[made["id"]] = made
        self._store.undelivered.append(made)

    def retrieve_thin(self, _: Json, identifier: str) -> Json:
        snapshot = self._store.event(f"evt_{identifier.removeprefix('evt_').removeprefix('test_')}")
        if snapshot is not None:
            self.thin(snapshot)
        if identifier not in self._thin:
            raise StripeRefusal("Object not found", status=404, code="not_found")
        return self._thin[identifier]

    def browse_thin(self, params: Json) -> Json:
        for event in self._kept():
            self.thin(event)
        rows = [
            event
            for event in self._thin.values()
            if params.get("object_id", event["related_object"]["id"]) == event["related_object"]["id"]
            and event["type"] in params.get("types", [event["type"]])
        ]
        limit = params.get("limit", 20)
        return {"data": rows[::-1][:limit], "next_page_url": None, "previous_page_url": None}

    # Webhook endpoints

    def create_endpoint(self, params: Json) -> Json:
        if not params["url"].startswith(("https://", "http://")):
            raise StripeRefusal("Invalid URL: An explicit scheme (such as https) must be provided.", param="url")
        if self._store.livemode and not params["url"].startswith("https://"):
            raise StripeRefusal("Invalid URL: URL must begin with https in livemode.", param="url")
        made = self._store.make(
            "webhook_endpoint",
            api_version=params.get("api_version"),
            description=params.get("description"),
            enabled_events=params["enabled_events"],
            metadata=params.get("metadata") or {},
            status="enabled",
            url=params["url"],
        )
        self._store.put(made)
        self.secrets[made["id"]] = self._store.new_id("whsec")
        return {**made, "secret": self.secrets[made["id"]]}

    def browse_endpoints(self, params: Json) -> Json:
        return self._store.page(self._store.all("webhook_endpoint"), params, "/v1/webhook_endpoints")

    def retrieve_endpoint(self, _: Json, identifier: str) -> Json:
        return self._store.get("webhook_endpoint", identifier, "webhook_endpoint")

    def update_endpoint(self, params: Json, identifier: str) -> Json:
        endpoint = self._store.get("webhook_endpoint", identifier, "webhook_endpoint")
        update(endpoint, {key: value for key, value in params.items() if key != "disabled"})
        if "disabled" in params:
            endpoint["status"] = "disabled" if params["disabled"] else "enabled"
        return endpoint

    def delete_endpoint(self, _: Json, identifier: str) -> Json:
        self._store.get("webhook_endpoint", identifier, "webhook_endpoint")
        self._store.drop(identifier)
        return {"id": identifier, "object": "webhook_endpoint", "deleted": True}


def _matches(pattern: str, kind: str) -> bool:
    return kind.startswith(pattern[:-1]) if pattern.endswith("*") else kind == pattern


def _instant(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
