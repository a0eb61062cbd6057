"""v2 event destinations: where thin (or snapshot) events go; webhook endpoints of v1 are listed beside them."""

from __future__ import annotations

from datetime import UTC, datetime

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.routes import Routes
from dev.stripe_double.store import Store, merge_metadata

_THIN_ONLY = "v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"


class Destinations:
    def __init__(self, store: Store, secrets: dict[str, str]) -> None:
        self._store = store
        self._secrets = secrets

    def routes(self) -> Routes:
        return {
            "POST /v2/core/event_destinations": self.create,
            "GET /v2/core/event_destinations": self.browse,
            "GET /v2/core/event_destinations/{id}": self.retrieve,
            "POST /v2/core/event_destinations/{id}": self.update,
            "DELETE /v2/core/event_destinations/{id}": self.delete,
            "POST /v2/core/event_destinations/{id}/enable": self.enable,
            "POST /v2/core/event_destinations/{id}/disable": self.disable,
        }

    def create(self, params: Json) -> Json:
        kind = params["type"]
        if kind not in params:
            raise StripeRefusal(f"`{kind}` is required for this type.", code="parameter_missing", param=kind)
        if params["event_payload"] == "thin" and "snapshot_api_version" in params:
            raise StripeRefusal("Thin payloads have no `snapshot_api_version`.", param="snapshot_api_version")
        if params["event_payload"] == "snapshot" and set(params["enabled_events"]) & set(_THIN_ONLY):
            raise StripeRefusal("Some of these events have thin payloads only.", param="enabled_events")
        now = self._instant()
        made = self._store.make(
            "v2.core.event_destination",
            created=now,
            description=params.get("description", ""),
            enabled_events=params["enabled_events"],
            event_payload=params["event_payload"],
            events_from=params.get("events_from", ["self"]),
            metadata=params.get("metadata", {}),
            name=params["name"],
            snapshot_api_version=params.get("snapshot_api_version"),
            status="enabled",
            type=kind,
            updated=now,
        )
        if kind == "webhook_endpoint":
            url = params[kind]["url"]
            if not url.startswith(("https://", "http://")):
                raise StripeRefusal("The URL must have a scheme.", param="webhook_endpoint[url]")
            self._secrets[made["id"]] = self._store.new_id("whsec")
            made[kind] = {"signing_secret": self._secrets[made["id"]], "url": url}
        elif kind == "amazon_eventbridge":
            account, region = params[kind]["aws_account_id"], params[kind]["aws_region"]
            made[kind] = {
                "aws_account_id": account,
                "aws_event_source_arn": f"arn:aws:events:{region}::event-source/aws.partner/stripe.com/{made['id']}",
                "aws_event_source_status": "pending",
            }
        self._store.put(made)
        return _shown(made, params)

    def _instant(self) -> str:
        return datetime.fromtimestamp(self._store.now, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def _get(self, identifier: str) -> Json:
        found = self._store.find(identifier)
        if found is None or found["object"] != "v2.core.event_destination":
            raise StripeRefusal("Object not found", status=404, code="not_found")
        return found

    def browse(self, params: Json) -> Json:
        endpoints = [self._of_endpoint(row) for row in self._store.all("webhook_endpoint")]
        rows = [*endpoints, *self._store.all("v2.core.event_destination")][: params.get("limit", 20)]
        return {"data": [_shown(row, params) for row in rows], "next_page_url": None, "previous_page_url": None}

    def _of_endpoint(self, endpoint: Json) -> Json:
        return self._store.make(
            "v2.core.event_destination",
            id=endpoint["id"],
            created=datetime.fromtimestamp(endpoint["created"], UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            description=endpoint["description"] or "",
            enabled_events=endpoint["enabled_events"],
            event_payload="snapshot",
            metadata=endpoint["metadata"],
            name=endpoint["description"] or endpoint["url"],
            snapshot_api_version=endpoint["api_version"],
            status=endpoint["status"],
            type="webhook_endpoint",
            webhook_endpoint={"signing_secret": None, "url": endpoint["url"]},
        )

    def retrieve(self, params: Json, identifier: str) -> Json:
        return _shown(self._get(identifier), params)

    def update(self, params: Json, identifier: str) -> Json:
        found = self._get(identifier)
        for name in ("description", "enabled_events", "name"):
            found[name] = params.get(name, found[name])
        given = {key: "" if value is None else value for key, value in params.get("metadata", {}).items()}
        found["metadata"] = merge_metadata(found["metadata"], given)
        if "webhook_endpoint" in params:
            found["webhook_endpoint"]["url"] = params["webhook_endpoint"]["url"]
        found["updated"] = self._instant()
        return _shown(found, params)

    def delete(self, _: Json, identifier: str) -> Json:
        self._get(identifier)
        self._store.drop(identifier)
        return {"id": identifier, "object": "v2.core.event_destination"}

    def enable(self, params: Json, identifier: str) -> Json:
        found = self._get(identifier)
        found.update(status="enabled", status_details=None, updated=self._instant())
        return _shown(found, params)

    def disable(self, params: Json, identifier: str) -> Json:
        found = self._get(identifier)
        found.update(status="disabled", status_details={"disabled": {"reason": "user"}}, updated=self._instant())
        return _shown(found, params)


def _shown(destination: Json, params: Json) -> Json:
    """Its address and its secret are told only where they are asked for, the secret only at the creation."""
    included = params.get("include", [])
    shown = dict(destination)
    if destination["type"] == "webhook_endpoint":
        held = destination["webhook_endpoint"]
        shown["webhook_endpoint"] = {
            name: held[name] if f"webhook_endpoint.{name}" in included else None for name in ("signing_secret", "url")
        }
    return shown
