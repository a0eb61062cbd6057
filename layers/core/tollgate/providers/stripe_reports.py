"""Who we are at Stripe, and what is set up there. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollgate.providers.stripe_client import StripeConnection, plain, stripe_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    import stripe


class StripeReports:
    """Raises StripeUnavailableError, StripeRefusedError."""

    def __init__(
        self,
        secret: Callable[[], str],
        *,
        base_url: str | None = None,
        http_client: stripe.HTTPClient | None = None,
    ) -> None:
        self._connection = StripeConnection(secret, base_url=base_url, http_client=http_client)

    def find_meter(self, event_name: str) -> str | None:
        """Id of the meter that takes these events; None: there is none that is active."""
        client = self._connection.client()
        with stripe_errors():
            page = plain(client.v1.billing.meters.list({"status": "active", "limit": 100}))
        return next((str(meter["id"]) for meter in page["data"] if meter["event_name"] == event_name), None)

    def account(self) -> dict[str, Any]:
        """Our own account."""
        client = self._connection.client()
        with stripe_errors():
            return plain(client.v1.accounts.retrieve_current())

    def webhooks(self) -> list[dict[str, Any]]:
        """All endpoints that events are sent to."""
        client = self._connection.client()
        with stripe_errors():
            found: list[dict[str, Any]] = plain(client.v1.webhook_endpoints.list({"limit": 100}))["data"]
        return found
