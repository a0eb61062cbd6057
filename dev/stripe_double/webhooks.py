"""Deliveries as Stripe signs them."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass

from dev.stripe_double.forms import Json


@dataclass(frozen=True)
class SignedRequest:
    headers: dict[str, str]
    body: bytes


def sign(event: Json, secrets: Sequence[str], timestamp: int) -> SignedRequest:
    """While a secret is being rolled Stripe signs with both, newest first."""
    body = json.dumps(event, indent=2).encode()
    signatures = (
        hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest() for secret in secrets
    )
    return SignedRequest(
        headers={
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": ",".join([f"t={timestamp}", *(f"v1={signature}" for signature in signatures)]),
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        },
        body=body,
    )


def eventbridge(event: Json, account_id: str, at: str) -> Json:
    """The same event as Stripe puts it on a partner event bus."""
    return {
        "version": "0",
        "id": event["id"],
        "detail-type": event["type"],
        "source": f"aws.partner/stripe.com/{account_id}",
        "account": "123456789012",
        "time": at,
        "region": "us-east-1",
        "resources": [],
        "detail": event,
    }
