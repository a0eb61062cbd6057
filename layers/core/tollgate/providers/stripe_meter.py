"""Stripe's meter of overage: what it is told, what it has counted, and which invoice lines billed it.

Of API 2026-10-28.endive. Every method raises StripeUnavailableError (ask again: all of it is safe to repeat),
StripeRefusedError, and UpstreamUnavailableError when our own secret cannot be read. Which lines and items are overage
is told by the meter of their price, so prices may be replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tollgate.domain.errors import StripeRefusedError
from tollgate.domain.overage import BilledLine, MeteredItem
from tollgate.domain.subscriptions import SubscriptionStatus
from tollgate.providers.stripe_client import StripeConnection, StripeDeadline, plain, stripe_errors

if TYPE_CHECKING:
    import stripe

PAGE: Final = 100
_MISSING: Final = "resource_missing"
_NOT_BEGUN: Final = (SubscriptionStatus.INCOMPLETE, SubscriptionStatus.INCOMPLETE_EXPIRED)
"""Its first payment has not come: it bills nothing, and must not end what another one bills."""
_MINUTE: Final = 60
_SAME_IDENTIFIER: Final = "already exists with identifier"
"""Stripe has no code of its own for this, only the text."""


class StripeMeter:
    """The one that reports overage. Remembers the meter's id and the prices it has seen, which never change."""

    def __init__(
        self,
        secret: Callable[[], str],
        event_name: str,
        *,
        base_url: str | None = None,
        http_client: stripe.HTTPClient | None = None,
        deadline: StripeDeadline | None = None,
    ) -> None:
        self._stripe = StripeConnection(secret, base_url=base_url, http_client=http_client, deadline=deadline)
        self._event_name = event_name
        self._meter_id: str | None = None
        self._meters_of_prices: dict[str, str | None] = {}

    def send(self, customer_id: str, value: int, identifier: str, stamped_at: datetime) -> None:
        """Tell Stripe the value as of an instant. Under an identifier that it knows already, nothing happens."""
        import stripe  # noqa: PLC0415  at the first use: see providers/stripe_client.py

        params: Any = {
            "event_name": self._event_name,
            "payload": {"stripe_customer_id": customer_id, "value": str(value)},
            "identifier": identifier,
            "timestamp": int(stamped_at.timestamp()),
        }
        client = self._stripe.client()
        with stripe_errors():
            try:
                # No idempotency key: Stripe would repeat a failure under it for a day. The identifier does its work.
                client.v1.billing.meter_events.create(params)
            except stripe.InvalidRequestError as error:
                if _SAME_IDENTIFIER not in (error.user_message or ""):
                    raise

    def find_total(self, customer_id: str, start_at: datetime, end_at: datetime) -> int:
        """What Stripe has counted in the whole minutes inside [start, end); 0 when it was told nothing."""
        start, end = int(start_at.timestamp()), int(end_at.timestamp())
        params: Any = {
            "customer": customer_id,
            "start_time": -(-start // _MINUTE) * _MINUTE,
            "end_time": end // _MINUTE * _MINUTE,
        }
        meter_id = self._find_meter()
        found = self._ask(lambda api: api.v1.billing.meters.event_summaries.list(meter_id, params))["data"]
        return int(found[0]["aggregated_value"]) if found else 0

    def list_items(self, customer_id: str) -> tuple[MeteredItem, ...]:
        """The overage items of all subscriptions that the customer ever had; none for a customer who is gone."""
        params: Any = {"customer": customer_id, "status": "all", "limit": PAGE}
        try:
            found = self._all(lambda api: api.v1.subscriptions.list(params))
        except StripeRefusedError as error:
            if error.stripe_code == _MISSING:
                return ()
            raise
        if not found:
            return ()
        meter_id = self._find_meter()
        return tuple(
            _metered(subscription, item)
            for subscription in found
            if subscription["status"] not in _NOT_BEGUN
            for item in subscription["items"]["data"]
            if _meter_of(item["price"]) == meter_id
        )

    def list_lines(self, subscription_id: str, since_at: datetime) -> tuple[BilledLine, ...]:
        """Lines for overage of the invoices that were made since then, drafts included."""
        params: Any = {
            "subscription": subscription_id,
            "created": {"gte": int(since_at.timestamp())},
            "limit": PAGE,
        }
        invoices = self._all(lambda api: api.v1.invoices.list(params))
        return _merged(
            _line(invoice, line, subscription_id)
            for invoice in invoices
            for line in self._lines_of(invoice)
            if self._is_overage(line)
        )

    def _lines_of(self, invoice: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not invoice["lines"]["has_more"]:
            return list(invoice["lines"]["data"])
        params: Any = {"limit": PAGE}
        return self._all(lambda api: api.v1.invoices.line_items.list(invoice["id"], params))

    def _is_overage(self, line: Mapping[str, Any]) -> bool:
        details = (line.get("parent") or {}).get("subscription_item_details")
        pricing = (line.get("pricing") or {}).get("price_details")
        if details is None or details.get("proration") or pricing is None:
            return False
        price_id = str(pricing["price"])
        if price_id not in self._meters_of_prices:
            price = self._ask(lambda api: api.v1.prices.retrieve(price_id))
            self._meters_of_prices[price_id] = _meter_of(price)
        return self._meters_of_prices[price_id] == self._find_meter()

    def _find_meter(self) -> str:
        if self._meter_id is None:
            params: Any = {"status": "active", "limit": PAGE}
            meters = self._all(lambda api: api.v1.billing.meters.list(params))
            found = [meter["id"] for meter in meters if meter["event_name"] == self._event_name]
            if not found:
                raise StripeRefusedError(
                    "Overage cannot be billed: the operator has not set up its meter at Stripe.",
                    stripe_code="no_meter",
                    stripe_param="event_name",
                )
            self._meter_id = str(found[0])
        return self._meter_id

    def _ask(self, call: Callable[[stripe.StripeClient], Any]) -> dict[str, Any]:
        client = self._stripe.client()
        with stripe_errors():
            return plain(call(client))

    def _all(self, call: Callable[[stripe.StripeClient], Any]) -> list[dict[str, Any]]:
        client = self._stripe.client()
        with stripe_errors():
            return [plain(one) for one in call(client).auto_paging_iter()]


def _meter_of(price: Mapping[str, Any]) -> str | None:
    meter = (price.get("recurring") or {}).get("meter")
    return None if meter is None else str(meter)


def _metered(subscription: Mapping[str, Any], item: Mapping[str, Any]) -> MeteredItem:
    over = SubscriptionStatus(subscription["status"]).ended
    ended = subscription.get("ended_at") or subscription.get("canceled_at") or item["current_period_end"]
    return MeteredItem(
        subscription_id=str(subscription["id"]),
        customer_id=str(subscription["customer"]),
        since_at=_instant(min(subscription["created"], subscription["billing_cycle_anchor"])),
        start_at=_instant(item["current_period_start"]),
        end_at=_instant(item["current_period_end"]),
        ended_at=_instant(ended) if over else None,
    )


def _merged(lines: Iterable[BilledLine]) -> tuple[BilledLine, ...]:
    """One for each stretch of an invoice: a subscription with two overage prices has two, and both were billed."""
    found: dict[str, BilledLine] = {}
    for line in lines:
        same = found.get(line.key)
        found[line.key] = line if same is None else replace(same, quantity=same.quantity + line.quantity)
    return tuple(found.values())


def _line(invoice: Mapping[str, Any], line: Mapping[str, Any], subscription_id: str) -> BilledLine:
    final = invoice["status"] != "draft"
    finalizes = invoice.get("automatically_finalizes_at")
    finalized = (invoice.get("status_transitions") or {}).get("finalized_at")
    start_at, end_at = _instant(line["period"]["start"]), _instant(line["period"]["end"])
    return BilledLine(
        invoice_id=str(invoice["id"]),
        subscription_id=subscription_id,
        start_at=start_at,
        # A window of no length was cut the moment it began; it bills that second.
        end_at=max(end_at, start_at + timedelta(seconds=1)),
        quantity=int(line["quantity"] or 0),
        final=final,
        finalizes_at=None if final or finalizes is None else _instant(finalizes),
        finalized_at=None if not final or finalized is None else _instant(finalized),
    )


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
