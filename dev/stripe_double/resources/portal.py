"""The customer portal: what it allows, the sessions that open it, and what a customer does there."""

from __future__ import annotations

import copy

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.resources.catalog import is_metered, update
from dev.stripe_double.resources.customers import live_customer
from dev.stripe_double.resources.invoices import Invoices
from dev.stripe_double.resources.payments import Payments
from dev.stripe_double.resources.subscriptions import ENDED, Subscriptions
from dev.stripe_double.resources.terms import live_items
from dev.stripe_double.routes import Routes
from dev.stripe_double.store import Store

_REASONS = ["too_expensive", "missing_features", "switched_service", "unused", "other"]


class Portal:
    def __init__(self, store: Store, subscriptions: Subscriptions, invoices: Invoices, payments: Payments) -> None:
        self._store = store
        self._subscriptions = subscriptions
        self._invoices = invoices
        self._payments = payments
        self.page_url = "https://billing.stripe.com/p/session/{id}"
        """Where the session's page is; the loopback server puts its own here."""

    def routes(self) -> Routes:
        return {
            "POST /v1/billing_portal/configurations": self.create_configuration,
            "GET /v1/billing_portal/configurations": self.browse_configurations,
            "GET /v1/billing_portal/configurations/{configuration}": self.retrieve_configuration,
            "POST /v1/billing_portal/configurations/{configuration}": self.update_configuration,
            "POST /v1/billing_portal/sessions": self.create_session,
        }

    def create_configuration(self, params: Json) -> Json:
        made = self._store.make(
            "billing_portal.configuration",
            active=True,
            default_return_url=params.get("default_return_url"),
            is_default=not self._store.all("billing_portal.configuration"),
            login_page={"enabled": False, "url": None},
            metadata=params.get("metadata") or {},
            name=params.get("name"),
            updated=self._store.now,
        )
        made["features"] = _features(made["features"], params["features"])
        made["business_profile"].update(params.get("business_profile", {}))
        self._check_features(params["features"])
        self._store.emit("billing_portal.configuration.created", self._store.put(made))
        return made

    def _check_features(self, features: Json) -> None:
        switching = features.get("subscription_update", {})
        if switching.get("enabled") and not switching.get("default_allowed_updates"):
            raise StripeRefusal(
                "`default_allowed_updates` is required to enable subscription updates.",
                param="features[subscription_update][default_allowed_updates]",
            )
        if features.get("customer_update", {}).get("enabled") and "allowed_updates" not in features["customer_update"]:
            raise StripeRefusal(
                "`allowed_updates` is required to enable customer updates.",
                param="features[customer_update][allowed_updates]",
            )

    def browse_configurations(self, params: Json) -> Json:
        rows = [
            row
            for row in self._store.all("billing_portal.configuration")
            if all(params.get(key, row[key]) == row[key] for key in ("active", "is_default"))
        ]
        return self._store.page(rows, params, "/v1/billing_portal/configurations")

    def retrieve_configuration(self, _: Json, identifier: str) -> Json:
        return self._store.get("billing_portal.configuration", identifier, "configuration")

    def update_configuration(self, params: Json, identifier: str) -> Json:
        configuration = self._store.get("billing_portal.configuration", identifier, "configuration")
        plain = ("active", "default_return_url", "metadata", "name")
        update(configuration, {key: params[key] for key in plain if key in params})
        configuration["business_profile"].update(params.get("business_profile", {}))
        configuration["features"] = _features(configuration["features"], params.get("features", {}))
        configuration["updated"] = self._store.now
        self._store.emit("billing_portal.configuration.updated", configuration)
        return configuration

    def create_session(self, params: Json) -> Json:
        if "customer" not in params:
            raise StripeRefusal("Missing required param: customer.", code="parameter_missing", param="customer")
        live_customer(self._store, params["customer"])
        configurations = self._store.all("billing_portal.configuration")
        default = next((one for one in configurations if one["is_default"]), None)
        if "configuration" in params:
            default = self.retrieve_configuration({}, params["configuration"])
            if not default["active"]:
                raise StripeRefusal("The configuration is not active.", param="configuration")
        if default is None:
            raise StripeRefusal(
                "No configuration provided and your test mode default configuration has not been created. Provide a "
                "configuration or create your default by saving your customer portal settings in test mode."
            )
        made = self._store.make(
            "billing_portal.session",
            configuration=default["id"],
            customer=params["customer"],
            flow=self._flow(params),
            locale=params.get("locale"),
            return_url=params.get("return_url", default["default_return_url"]),
        )
        made["url"] = self.page_url.format(id=made["id"])
        return self._store.put(made)

    def _flow(self, params: Json) -> Json | None:
        given = params.get("flow_data")
        if given is None:
            return None
        kind = given["type"]
        wanted = given.get(kind, {}).get("subscription")
        if kind.startswith("subscription_") and wanted is None:
            raise StripeRefusal(f"`flow_data[{kind}]` is required for this flow.", param=f"flow_data[{kind}]")
        if wanted is not None:
            subscription = self._store.get("subscription", wanted, f"flow_data[{kind}][subscription]")
            if subscription["customer"] != params["customer"]:
                raise StripeRefusal("The subscription belongs to another customer.", param="flow_data")
            if kind.startswith("subscription_update") and not self.may_switch(subscription):
                raise StripeRefusal(
                    "This subscription cannot be updated because the subscription update feature in the portal "
                    "configuration does not support subscriptions with multiple products or usage-based prices.",
                    param="flow_data",
                )
        contract = self._store.contract
        names = contract.resources[contract.by_object["billing_portal.session"]]["o"]["flow"]["?"]["o"]
        flow: Json = {name: given.get(name) for name in names if name not in ("after_completion", "type")}
        flow["after_completion"] = {
            "hosted_confirmation": None,
            "redirect": None,
            "type": "portal_homepage",
            **given.get("after_completion", {}),
        }
        flow["type"] = kind
        return flow

    def may_switch(self, subscription: Json) -> bool:
        """The portal cannot change plans where several products or usage are billed: there it only cancels."""
        items = live_items(subscription)
        return len(items) == 1 and not is_metered(items[0]["price"])

    # The person at the page

    def subscriptions_of(self, session_id: str) -> list[Json]:
        session = self._store.get("billing_portal.session", session_id)
        rows = self._store.all("subscription")
        return [row for row in rows if row["customer"] == session["customer"] and row["status"] not in ENDED]

    def _own(self, session_id: str, subscription_id: str) -> Json:
        for subscription in self.subscriptions_of(session_id):
            if subscription["id"] == subscription_id:
                return subscription
        raise StripeRefusal("This subscription is not the customer's.", status=404)

    def cancel(self, session_id: str, subscription_id: str) -> Json:
        subscription = self._own(session_id, subscription_id)
        session = self._store.get("billing_portal.session", session_id)
        features = self._store.get("billing_portal.configuration", session["configuration"])["features"]
        if not features["subscription_cancel"]["enabled"]:
            raise StripeRefusal("The portal does not offer to cancel.")
        if features["subscription_cancel"]["mode"] == "immediately":
            self._subscriptions.end(subscription)
        else:
            self._subscriptions.set_cancellation(subscription, {"cancel_at_period_end": True})
        return subscription

    def keep(self, session_id: str, subscription_id: str) -> Json:
        """Take the cancellation back."""
        subscription = self._own(session_id, subscription_id)
        self._subscriptions.set_cancellation(subscription, {"cancel_at_period_end": False})
        return subscription

    def new_card(self, session_id: str) -> None:
        """A new card works, and what is still open is tried with it."""
        session = self._store.get("billing_portal.session", session_id)
        customer = session["customer"]
        self._payments.fail(customer, None)
        self._payments.add_card(self._store.get("customer", customer))
        for invoice in self._store.all("invoice"):
            if invoice["customer"] == customer and invoice["status"] == "open":
                self._invoices.collect(invoice)


def _features(current: Json, given: Json) -> Json:
    features = copy.deepcopy(current)
    for name, settings in given.items():
        feature = features[name]
        for key, value in settings.items():
            merges = isinstance(feature.get(key), dict) and isinstance(value, dict)
            feature[key] = {**feature[key], **value} if merges else None if value == "" else value
    reasons = features["subscription_cancel"]["cancellation_reason"]
    reasons["options"] = reasons["options"] or list(_REASONS)
    for product in features["subscription_update"]["products"] or []:
        product.setdefault("adjustable_quantity", {"enabled": False, "maximum": None, "minimum": 1})
    return features
