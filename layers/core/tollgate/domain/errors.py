"""Every refusal a caller can act on, as data. HTTP statuses belong to `tollgate.edge.errors`.

`error_code` is public and stable; `public_message` is safe to send to anyone. The detail of an exception (its cause,
an upstream text) never travels with it.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tollgate.domain.ledger import Meter


class TollgateError(Exception):
    """A request that is refused or cannot be served; carries what the caller may know."""

    error_code: str = "internal_error"
    plan_id: str | None = None
    """Whose plan it was, once that is known: for the log, never for the answer."""

    def __init__(self, public_message: str, *, error_code: str | None = None) -> None:
        super().__init__(public_message)
        self.public_message = public_message
        if error_code is not None:
            self.error_code = error_code


class InvalidRequestError(TollgateError):
    """The request itself is wrong; sending it again cannot help."""

    error_code = "invalid_request"


class RequestTooLargeError(TollgateError):
    """The body is larger than this deployment takes."""

    error_code = "request_too_large"


class UnsupportedMediaTypeError(TollgateError):
    """The body is not of the type the route reads."""

    error_code = "unsupported_media_type"


class NotFoundError(TollgateError):
    """No such route or thing, or not the caller's."""

    error_code = "not_found"


class MethodNotAllowedError(TollgateError):
    """The route exists, the method does not."""

    error_code = "method_not_allowed"


class AuthenticationError(TollgateError):
    """Nobody we know: `invalid_credentials`, or for a credential that was really found `revoked`, `expired`."""

    error_code = "invalid_credentials"


class PermissionDeniedError(TollgateError):
    """Known, but not allowed: `model_not_in_plan`, `email_not_verified`, …"""

    error_code = "not_allowed"


class PaymentRequiredError(TollgateError):
    """The subscription is unpaid."""

    error_code = "payment_required"


class RateLimitedError(TollgateError):
    """A short window is full: requests per minute (`rate_limited`, `key_rate_limited`) or parallel streams."""

    error_code = "rate_limited"

    def __init__(self, public_message: str, *, retry_after_seconds: int, error_code: str | None = None) -> None:
        super().__init__(public_message, error_code=error_code)
        self.retry_after_seconds = retry_after_seconds


class QuotaExceededError(TollgateError):
    """No room for this call in the usage period's quota (`quota_exceeded`), its overage cap, or a key's budget."""

    error_code = "quota_exceeded"

    def __init__(
        self,
        public_message: str,
        *,
        remaining_tokens: int,
        needed_tokens: int,
        resets_at: datetime,
        error_code: str | None = None,
        meter: Meter | None = None,
    ) -> None:
        """`meter`: as it stood when it refused; None where no meter did."""
        super().__init__(public_message, error_code=error_code)
        self.meter = meter
        self.remaining_tokens = remaining_tokens
        self.needed_tokens = needed_tokens
        self.resets_at = resets_at


class DuplicateRequestError(TollgateError):
    """The same idempotency key is already in use for this request."""

    error_code = "duplicate_request"


class ConflictError(TollgateError):
    """The thing is there and in a state that does not allow this: an API key that is dead or was replaced."""

    error_code = "conflict"


class IdempotencyMismatchError(TollgateError):
    """The idempotency key was used before with another body."""

    error_code = "idempotency_key_reused"


class StaleAccountError(Exception):
    """The meter carries a newer plan than the account in hand: load the account again. Never reaches a caller."""


class SupersededError(Exception):
    """What was to be written together with a change was written by somebody else: read it and decide again."""


class UpstreamUnavailableError(TollgateError):
    """Upstream cannot be used now for reasons that are not the caller's (our key, our cap, no connection)."""

    error_code = "upstream_unavailable"


class UpstreamBusyError(TollgateError):
    """Upstream is overloaded or limits us."""

    error_code = "upstream_busy"


class StoreUnavailableError(TollgateError):
    """The table did not answer, so nothing can be metered and nothing is served."""

    error_code = "store_unavailable"


class StripeUnavailableError(TollgateError):
    """Stripe did not answer, was busy, or is in the middle of the same thing. Asking again is safe and may help."""

    error_code = "stripe_unavailable"


class StripeRefusedError(TollgateError):
    """Stripe will not do this: something of ours is not set up, or not as Stripe has it.

    `stripe_code` and `stripe_param` are for decisions and the log, never for the answer.
    """

    error_code = "stripe_refused"

    def __init__(
        self,
        public_message: str,
        *,
        stripe_code: str,
        stripe_param: str | None = None,
        error_code: str | None = None,
    ) -> None:
        super().__init__(public_message, error_code=error_code)
        self.stripe_code = stripe_code
        self.stripe_param = stripe_param


class PaymentFailedError(StripeRefusedError):
    """The card was declined, or its owner has to confirm the payment first."""

    error_code = "payment_failed"


class SignInUnavailableError(TollgateError):
    """The user pool did not answer, or is not set up as the gateway expects: nobody can sign in now."""

    error_code = "sign_in_unavailable"
