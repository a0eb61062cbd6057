"""The one door to Stripe's SDK: a client with our own bounds, and errors of ours in the place of its.

`stripe` costs about 150 ms of CPU to import, so it is imported at the first use and nowhere else; functions that do not
ask Stripe never pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from tollgate.domain.errors import PaymentFailedError, StripeRefusedError, StripeUnavailableError

if TYPE_CHECKING:
    import stripe

API_VERSION: Final = "2026-10-28.endive"
"""What this code was written for; webhook endpoints are made with it too. The locked package speaks no other."""
CONNECT_SECONDS: Final = 3
READ_SECONDS: Final = 8
RETRIES: Final = 1
"""The SDK's own, with the same idempotency key: lost answers, 409 (a lock) and 5xx."""

_FIRST_ERROR: Final = 400
_CONFLICT: Final = 409
_SERVER_FAULT: Final = 500
_UNAVAILABLE: Final = "Stripe did not answer. Nothing is lost: try again shortly."
_REFUSED: Final = "Stripe refused this for reasons that are the operator's. The request id helps to find out which."
_NOT_PAID: Final = "The payment did not go through. Check the payment method in the billing portal, or use another."


class StripeConnection:
    """Makes the client at the first use, and again when the secret has been rotated. Safe to share between threads."""

    def __init__(
        self,
        secret: Callable[[], str],
        *,
        base_url: str | None = None,
        http_client: stripe.HTTPClient | None = None,
    ) -> None:
        """`base_url`: another Stripe, for local runs. `http_client`: another wire, for tests."""
        self._secret = secret
        self._base_url = base_url
        self._http_client = http_client
        self._made: tuple[str, stripe.StripeClient] | None = None

    def client(self) -> stripe.StripeClient:
        """Raises UpstreamUnavailableError when the secret cannot be read."""
        secret, made = self._secret(), self._made
        if made is not None and made[0] == secret:
            return made[1]
        import stripe  # noqa: PLC0415  at the first use: see above

        # It would write an id under the home directory, and tell Stripe how long calls took.
        stripe.enable_telemetry = False
        if self._http_client is None:
            self._http_client = stripe.RequestsClient(timeout=(CONNECT_SECONDS, READ_SECONDS))
        bases: Any = {"api": self._base_url, "meter_events": self._base_url} if self._base_url else None
        client = stripe.StripeClient(
            secret,
            stripe_version=API_VERSION,
            base_addresses=bases,
            max_network_retries=RETRIES,
            http_client=self._http_client,
        )
        self._made = (secret, client)
        return client


@contextmanager
def stripe_errors() -> Iterator[None]:
    """Around every call. Raises StripeUnavailableError, StripeRefusedError, PaymentFailedError; no text of Stripe's.

    Its texts quote ids, e-mail addresses and parts of keys. They stay in the cause, whose type and place are logged.
    """
    import stripe  # noqa: PLC0415  the client has imported it already

    try:
        yield
    except (stripe.APIConnectionError, stripe.RateLimitError) as error:
        raise StripeUnavailableError(_UNAVAILABLE) from error
    except stripe.CardError as error:
        raise PaymentFailedError(_NOT_PAID, stripe_code=_code(error)) from error
    except stripe.StripeError as error:
        status = error.http_status
        # APIError is what has no class of its own: 409, 5xx, and answers that are no JSON, which a proxy makes.
        if isinstance(error, stripe.APIError) and (status is None or status == _CONFLICT or status >= _SERVER_FAULT):
            raise StripeUnavailableError(_UNAVAILABLE) from error
        if status is not None and status < _FIRST_ERROR:  # a success whose body nobody can read
            raise StripeUnavailableError(_UNAVAILABLE) from error
        raise StripeRefusedError(_REFUSED, stripe_code=_code(error), stripe_param=_param(error)) from error


def plain(found: Any) -> dict[str, Any]:  # noqa: ANN401  any object of the SDK
    """The object as JSON would have it: the SDK's own are no mappings, and raise for a field that is absent."""
    document: dict[str, Any] = found.to_dict(for_json=True)
    return document


def _code(error: stripe.StripeError) -> str:
    """`resource_missing`, `card_declined`; else the kind of error, such as `idempotency_error`."""
    body = error.json_body if isinstance(error.json_body, dict) else {}
    told = body.get("error")
    kind = told.get("type") if isinstance(told, dict) else None
    return str(error.code or (told.get("code") if isinstance(told, dict) else None) or kind or type(error).__name__)


def _param(error: stripe.StripeError) -> str | None:
    """The parameter that was refused: `customer`, `line_items[0][price]`."""
    param = getattr(error, "param", None)
    return param if isinstance(param, str) else None
