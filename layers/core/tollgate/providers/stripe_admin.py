"""What `tollgate plans sync` makes at Stripe: products, prices, the meter, the portal's settings, webhooks.

Every method raises StripeUnavailableError and StripeRefusedError. Nothing is retried here beyond what the SDK does with
one idempotency key; a run that broke off is finished by the next one (`tollgate.domain.selling`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from tollgate.domain.price_keys import OWNED_FIELD
from tollgate.domain.selling import (
    HANDED_OVER,
    METER_FORMULA,
    PORTAL_NAME,
    TAX_BEHAVIOR,
    Found,
    RemoteMeter,
    RemotePortal,
    RemotePrice,
    RemoteProduct,
    RemoteWebhook,
    WantedMeter,
    WantedPortal,
    WantedPrice,
    WantedProduct,
    WantedWebhook,
)
from tollgate.providers.stripe_client import StripeConnection, plain, stripe_errors

if TYPE_CHECKING:
    import stripe

PAGE: Final = 100
MOST_OBJECTS: Final = 10_000
"""Of one kind, read from one account: far above what one sells, and an end."""
_DESCRIPTION: Final = "Tollgate: entitlements and usage"


class StripeAdmin:
    """One account, with a key that may change what it sells."""

    def __init__(
        self,
        secret: Callable[[], str],
        *,
        base_url: str | None = None,
        http_client: stripe.HTTPClient | None = None,
    ) -> None:
        """`secret` gives the key; `base_url` and `http_client`: another Stripe, another wire."""
        self._stripe = StripeConnection(secret, base_url=base_url, http_client=http_client)

    # ---- reading

    def read(self, lookup_keys: Iterable[str], *, webhooks: bool) -> Found:
        """What an account has of ours, and what else has one of these lookup keys. Webhooks only if asked for."""
        products = tuple(map(_product, self._all(lambda api: api.v1.products.list(_any({"limit": PAGE})))))
        prices: dict[str, RemotePrice] = {}
        filters = [{"product": product.id} for product in products if product.owned]
        keys = sorted(lookup_keys)
        # Stripe takes ten lookup keys at a time.
        filters += [{"lookup_keys": keys[start : start + 10]} for start in range(0, len(keys), 10)]  # type: ignore[dict-item]
        for wanted in filters:
            for price in map(_price, self._all(_price_lister(wanted))):
                prices[price.id] = price
        return Found(
            products=products,
            prices=tuple(prices.values()),
            meters=tuple(map(_meter, self._all(lambda api: api.v1.billing.meters.list(_any({"limit": PAGE}))))),
            portals=tuple(
                map(_portal, self._all(lambda api: api.v1.billing_portal.configurations.list(_any({"limit": PAGE}))))
            ),
            webhooks=self._webhooks() if webhooks else (),
        )

    def _webhooks(self) -> tuple[RemoteWebhook, ...]:
        snapshot = self._all(lambda api: api.v1.webhook_endpoints.list(_any({"limit": PAGE})))
        params = {"limit": PAGE, "include": ["webhook_endpoint.url"]}
        thin = self._all(lambda api: api.v2.core.event_destinations.list(_any(params)))
        # A webhook endpoint is an event destination too; those with snapshots are in the first list.
        return (*map(_webhook, snapshot), *(_destination(one) for one in thin if one.get("event_payload") == "thin"))

    # ---- products and prices

    def create_product(self, wanted: WantedProduct) -> None:
        params = {"id": wanted.id, "name": wanted.name, "metadata": dict(wanted.metadata), **_tax_code(wanted)}
        self._ask(lambda api: api.v1.products.create(_any(params)))

    def update_product(self, wanted: WantedProduct) -> None:
        params = {"name": wanted.name, "active": True, "metadata": dict(wanted.metadata), **_tax_code(wanted)}
        self._ask(lambda api: api.v1.products.update(wanted.id, _any(params)))

    def archive_product(self, product_id: str) -> None:
        self._ask(lambda api: api.v1.products.update(product_id, {"active": False}))

    def create_price(self, wanted: WantedPrice) -> None:
        """It takes over the lookup key; a price that had it is archived by the next round, and so is one made twice.

        So no idempotency key of ours: Stripe would repeat a failure under it for a day.
        """
        recurring: dict[str, Any] = {"interval": str(wanted.interval), "usage_type": "licensed"}
        if wanted.metered:
            recurring |= {"usage_type": "metered", "meter": wanted.meter_id}
        params = {
            "product": wanted.product_id,
            "currency": wanted.currency,
            "unit_amount_decimal": Decimal(wanted.unit_hundredth_cents) / 100,
            "recurring": recurring,
            "lookup_key": wanted.lookup_key,
            "transfer_lookup_key": True,
            "metadata": dict(wanted.metadata),
            **({"tax_behavior": TAX_BEHAVIOR} if wanted.taxed else {}),
        }
        self._ask(lambda api: api.v1.prices.create(_any(params)))

    def update_price(self, price_id: str, wanted: WantedPrice, *, tax: bool) -> None:
        params = {"active": True, "metadata": dict(wanted.metadata), **({"tax_behavior": TAX_BEHAVIOR} if tax else {})}
        self._ask(lambda api: api.v1.prices.update(price_id, _any(params)))

    def archive_price(self, price_id: str) -> None:
        """Nobody can buy at it any more. Who did stays on it, and on the plan."""
        self._ask(lambda api: api.v1.prices.update(price_id, {"active": False}))

    # ---- meter

    def create_meter(self, wanted: WantedMeter) -> None:
        params = {
            "event_name": wanted.event_name,
            "display_name": wanted.display_name,
            "default_aggregation": {"formula": METER_FORMULA},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
        self._ask(lambda api: api.v1.billing.meters.create(_any(params)))

    def rename_meter(self, meter_id: str, display_name: str) -> None:
        self._ask(lambda api: api.v1.billing.meters.update(meter_id, {"display_name": display_name}))

    def reactivate_meter(self, meter_id: str) -> None:
        self._ask(lambda api: api.v1.billing.meters.reactivate(meter_id))

    # ---- portal

    def create_portal(self, wanted: WantedPortal) -> None:
        params = {"name": PORTAL_NAME, "features": _features(wanted), "metadata": {OWNED_FIELD: "portal"}}
        self._ask(lambda api: api.v1.billing_portal.configurations.create(_any(params)))

    def update_portal(self, portal_id: str, wanted: WantedPortal) -> None:
        params = {"active": True, "features": _features(wanted)}
        self._ask(lambda api: api.v1.billing_portal.configurations.update(portal_id, _any(params)))

    # ---- webhooks

    def create_webhook(self, wanted: WantedWebhook) -> tuple[str, str]:
        """Its id and its signing secret, which Stripe tells this once."""
        metadata = {OWNED_FIELD: "webhook"}
        if not wanted.thin:
            params = {
                "url": wanted.url,
                "api_version": wanted.api_version,
                "enabled_events": list(wanted.events),
                "description": _DESCRIPTION,
                "metadata": metadata,
            }
            made = self._ask(lambda api: api.v1.webhook_endpoints.create(_any(params)))
            return str(made["id"]), str(made["secret"])
        params = {
            "name": _DESCRIPTION,
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": list(wanted.events),
            "webhook_endpoint": {"url": wanted.url},
            "include": ["webhook_endpoint.signing_secret"],
            "metadata": metadata,
        }
        made = self._ask(lambda api: api.v2.core.event_destinations.create(_any(params)))
        return str(made["id"]), str(made["webhook_endpoint"]["signing_secret"])

    def mark_handed_over(self, webhook_id: str, *, thin: bool) -> None:
        """Its owner has the secret."""
        params = {"metadata": {HANDED_OVER: "handed over"}}
        if thin:
            self._ask(lambda api: api.v2.core.event_destinations.update(webhook_id, _any(params)))
        else:
            self._ask(lambda api: api.v1.webhook_endpoints.update(webhook_id, _any(params)))

    def update_webhook(self, webhook_id: str, wanted: WantedWebhook) -> None:
        events = {"enabled_events": list(wanted.events)}
        if wanted.thin:
            self._ask(lambda api: api.v2.core.event_destinations.update(webhook_id, _any(events)))
            self._ask(lambda api: api.v2.core.event_destinations.enable(webhook_id))
        else:
            self._ask(lambda api: api.v1.webhook_endpoints.update(webhook_id, _any(events | {"disabled": False})))

    def delete_webhook(self, webhook_id: str, *, thin: bool) -> None:
        if thin:
            self._ask(lambda api: api.v2.core.event_destinations.delete(webhook_id))
        else:
            self._ask(lambda api: api.v1.webhook_endpoints.delete(webhook_id))

    # ---- the wire

    def _ask(self, call: Callable[[stripe.StripeClient], Any]) -> dict[str, Any]:
        client = self._stripe.client()
        with stripe_errors():
            return plain(call(client))

    def _all(self, call: Callable[[stripe.StripeClient], Any]) -> list[dict[str, Any]]:
        client = self._stripe.client()
        with stripe_errors():
            return [plain(one) for one in islice(call(client).auto_paging_iter(), MOST_OBJECTS)]


def _any(params: Any) -> Any:  # noqa: ANN401  the SDK's TypedDicts cannot be built from parts
    return params


def _price_lister(wanted: Mapping[str, Any]) -> Callable[[stripe.StripeClient], Any]:
    return lambda api: api.v1.prices.list(_any({"limit": PAGE, **wanted}))


def _tax_code(wanted: WantedProduct) -> dict[str, str]:
    return {} if wanted.tax_code is None else {"tax_code": wanted.tax_code}


def _features(wanted: WantedPortal) -> dict[str, dict[str, Any]]:
    return {
        feature: {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        for feature, values in wanted.features.items()
    }


def _product(found: Mapping[str, Any]) -> RemoteProduct:
    return RemoteProduct(
        id=found["id"],
        name=found["name"],
        active=found["active"],
        metadata=found.get("metadata") or {},
        tax_code=found.get("tax_code"),
    )


def _price(found: Mapping[str, Any]) -> RemotePrice:
    recurring = found.get("recurring") or {}
    return RemotePrice(
        id=found["id"],
        product_id=found["product"],
        lookup_key=found.get("lookup_key"),
        active=found["active"],
        currency=found["currency"],
        unit_hundredth_cents=_hundredth_cents(found.get("unit_amount_decimal")),
        interval=recurring.get("interval"),
        interval_count=recurring.get("interval_count") or 1,
        metered=recurring.get("usage_type") == "metered",
        meter_id=recurring.get("meter"),
        tax_behavior=found.get("tax_behavior"),
        metadata=found.get("metadata") or {},
    )


def _hundredth_cents(cents: object) -> int | None:
    """Exact, or None."""
    if cents is None:
        return None
    amount = Decimal(str(cents)) * 100
    return int(amount) if amount == int(amount) else None


def _meter(found: Mapping[str, Any]) -> RemoteMeter:
    return RemoteMeter(
        id=found["id"],
        event_name=found["event_name"],
        display_name=found["display_name"],
        formula=found["default_aggregation"]["formula"],
        active=found["status"] == "active",
    )


def _portal(found: Mapping[str, Any]) -> RemotePortal:
    return RemotePortal(
        id=found["id"],
        active=found["active"],
        metadata=found.get("metadata") or {},
        features=found.get("features") or {},
    )


def _webhook(found: Mapping[str, Any]) -> RemoteWebhook:
    return RemoteWebhook(
        id=found["id"],
        url=found["url"],
        api_version=found.get("api_version"),
        events=tuple(found["enabled_events"]),
        enabled=found["status"] == "enabled",
        metadata=found.get("metadata") or {},
    )


def _destination(found: Mapping[str, Any]) -> RemoteWebhook:
    return RemoteWebhook(
        id=found["id"],
        url=(found.get("webhook_endpoint") or {}).get("url") or "",
        api_version=None,
        events=tuple(found["enabled_events"]),
        enabled=found["status"] == "enabled",
        metadata=found.get("metadata") or {},
        thin=True,
    )
