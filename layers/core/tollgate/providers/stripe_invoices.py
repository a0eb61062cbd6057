"""Invoices that were paid, as revenue is made of them: which plan's price each line is, and for what time.

Of API 2026-10-28.endive. Reads only, page by page. Raises StripeUnavailableError, StripeRefusedError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tollgate.domain.price_keys import plan_of_price
from tollgate.domain.revenue import PaidInvoice, PaidLine
from tollgate.providers.stripe_client import StripeConnection, plain, stripe_errors

if TYPE_CHECKING:
    import stripe

PAGE: Final = 100


class StripeInvoices:
    """The account's invoices. Remembers which plan each price sells, which never changes."""

    def __init__(
        self,
        secret: Callable[[], str],
        *,
        base_url: str | None = None,
        http_client: stripe.HTTPClient | None = None,
    ) -> None:
        self._stripe = StripeConnection(secret, base_url=base_url, http_client=http_client)
        self._plans_of_prices: dict[str, str | None] = {}

    def list_paid(self, since_at: datetime, until_at: datetime, customer_id: str | None = None) -> list[PaidInvoice]:
        """Those made from `since_at` to `until_at`, both included; of one customer, or of all."""
        params: Any = {
            "status": "paid",
            "created": {"gte": int(since_at.timestamp()), "lte": int(until_at.timestamp())},
            "limit": PAGE,
        }
        if customer_id is not None:
            params["customer"] = customer_id
        client = self._stripe.client()
        with stripe_errors():
            # Each becomes a value as it comes: a year of them is far more than a machine's memory holds as JSON.
            return [self._invoice(client, plain(one)) for one in client.v1.invoices.list(params).auto_paging_iter()]

    def _invoice(self, client: stripe.StripeClient, invoice: Mapping[str, Any]) -> PaidInvoice:
        lines: list[dict[str, Any]] = invoice["lines"]["data"]
        if invoice["lines"]["has_more"]:
            found = client.v1.invoices.line_items.list(invoice["id"], {"limit": PAGE})
            lines = [plain(line) for line in found.auto_paging_iter()]
        return PaidInvoice(
            id=str(invoice["id"]),
            customer_id=str(invoice["customer"]),
            paid_cents=int(invoice["amount_paid"]),
            lines=tuple(self._line(client, line) for line in lines),
        )

    def _line(self, client: stripe.StripeClient, line: Mapping[str, Any]) -> PaidLine:
        discounts = sum(int(each["amount"]) for each in line.get("discount_amounts") or ())
        taxes = sum(int(tax["amount"]) for tax in line.get("taxes") or () if tax.get("tax_behavior") == "inclusive")
        return PaidLine(
            plan_id=self._plan_of(client, line),
            amount_cents=int(line["amount"]) - discounts - taxes,
            start_at=datetime.fromtimestamp(line["period"]["start"], UTC),
            end_at=datetime.fromtimestamp(line["period"]["end"], UTC),
        )

    def _plan_of(self, client: stripe.StripeClient, line: Mapping[str, Any]) -> str | None:
        pricing = (line.get("pricing") or {}).get("price_details")
        if pricing is None:
            return None
        price_id = str(pricing["price"])
        if price_id not in self._plans_of_prices:
            price = plain(client.v1.prices.retrieve(price_id))
            metered = (price.get("recurring") or {}).get("usage_type") == "metered"
            sold = None if metered else plan_of_price(price.get("metadata") or {}, price.get("lookup_key"))
            self._plans_of_prices[price_id] = None if sold is None else sold[0]
        return self._plans_of_prices[price_id]
