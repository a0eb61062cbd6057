"""POST /stripe/webhook: Stripe's events, as deliveries of its own, from an event bus of AWS, and from our queue."""

from __future__ import annotations

from tollgate.domain.errors import (
    ConflictError,
    InvalidRequestError,
    StoreUnavailableError,
    StripeRefusedError,
    StripeUnavailableError,
    UpstreamUnavailableError,
)
from tollgate.edge.http_api import HttpApi, refusals
from tollgate.edge.stripe_webhook import DeliveryDocument, StripeDeliveries, read_delivery
from tollgate.wiring import StripeWebhookTools, build_stripe_webhook

api: HttpApi[StripeWebhookTools] = HttpApi(build_stripe_webhook)
handler = StripeDeliveries(api).handle

AGAIN = (
    ConflictError,
    StoreUnavailableError,
    StripeUnavailableError,
    StripeRefusedError,
    UpstreamUnavailableError,
)
"""What may be otherwise at the next delivery, of which Stripe makes many over three days."""


@api.post("/stripe/webhook", responses=refusals(InvalidRequestError, *AGAIN))
def receive() -> DeliveryDocument:
    """Take one event, signed by Stripe over the raw body; answered 2xx when its effects are there or in the queue."""
    event = read_delivery(api.current_event.raw_event, api.tools)
    return DeliveryDocument(outcome=api.tools.events.receive(event).value)
