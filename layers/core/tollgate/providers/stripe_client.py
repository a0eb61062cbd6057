"""The one door to Stripe's SDK: a client with our own bounds, and errors of ours in the place of its.

`stripe` costs about 150 ms of CPU to import, so it is imported at the first use and nowhere else; functions that do not
ask Stripe never pay for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from tollgate.domain.errors import PaymentFailedError, StripeRefusedError, StripeUnavailableError

if TYPE_CHECKING:
    import requests
    import stripe

    from tollgate.domain.sources import Clock

API_VERSION: Final = "2026-10-28.endive"
"""What this code was written for; webhook endpoints are made with it too. The locked package speaks no other."""
CONNECT_SECONDS: Final = 3
READ_SECONDS: Final = 8
RETRIES: Final = 1
"""The SDK's own, with the same idempotency key: lost answers, 409 (a lock) and 5xx."""

RESERVED_SECONDS: Final = 2
"""Of an invocation, kept for giving back what is held and for answering."""
RETRY_SECONDS: Final = 6
"""With less than this left, no answer is waited for a second time."""
KEY_REFUSED: Final = "key_refused"
"""Our own word: the key is revoked, expired or not allowed this; Stripe has no code for all of these."""

_FIRST_ERROR: Final = 400
_CONFLICT: Final = 409
_SERVER_FAULT: Final = 500
_UNAVAILABLE: Final = "Stripe did not answer. Nothing is lost: try again shortly."
_REFUSED: Final = "Stripe refused this for reasons that are the operator's. The request id helps to find out which."
_NOT_PAID: Final = "The payment did not go through. Check the payment method in the billing portal, or use another."


class StripeDeadline:
    """Until when one invocation may wait for Stripe, however much it asks: Lambda's own end would answer nobody.

    Without a beginning there is no end, as for the operator's commands.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends_at = math.inf

    def begin(self, left_millis: int) -> None:
        """A new invocation, which Lambda ends after so much time."""
        self._ends_at = self._clock.now_seconds() + left_millis / 1000 - RESERVED_SECONDS

    def left_seconds(self) -> float:
        return self._ends_at - self._clock.now_seconds()


class StripeConnection:
    """Makes the client at the first use, and again when the secret has been rotated. Safe to share between threads."""

    def __init__(
        self,
        secret: Callable[[], str],
        *,
        base_url: str | None = None,
        http_client: stripe.HTTPClient | None = None,
        deadline: StripeDeadline | None = None,
    ) -> None:
        """`base_url`: another Stripe, for local runs. `http_client`: another wire, for tests."""
        self._secret = secret
        self._deadline = deadline
        self._base_url = base_url
        self._http_client = http_client
        self._made: tuple[str, stripe.StripeClient] | None = None

    def client(self) -> stripe.StripeClient:
        """Raises UpstreamUnavailableError when the secret cannot be read, StripeUnavailableError after the deadline."""
        if self._deadline is not None and self._deadline.left_seconds() <= 0:
            raise StripeUnavailableError(_UNAVAILABLE)
        secret, made = self._secret(), self._made
        if made is not None and made[0] == secret:
            return made[1]
        import stripe  # noqa: PLC0415  at the first use: see above

        # It would write an id under the home directory, and tell Stripe how long calls took.
        stripe.enable_telemetry = False
        if self._http_client is None:
            session = None if self._deadline is None else _session(self._deadline)
            self._http_client = stripe.RequestsClient(timeout=(CONNECT_SECONDS, READ_SECONDS), session=session)
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


def _session(deadline: StripeDeadline) -> requests.Session:
    """Sends requests that are given up at the deadline. One page of a list after the other is sent here too."""
    import requests  # noqa: PLC0415  with the SDK, at its first use
    from requests.adapters import HTTPAdapter  # noqa: PLC0415
    from urllib3 import Timeout  # noqa: PLC0415

    class Bounded(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:  # noqa: ANN401  requests' own
            left = deadline.left_seconds()
            if left <= 0:
                # The SDK tries this kind of error, and no more special one, only once.
                raise requests.RequestException("no time is left for asking Stripe")
            waits = Timeout(connect=min(CONNECT_SECONDS, left), read=min(READ_SECONDS, left))
            if math.isfinite(left):
                waits.total = left
            try:
                response = super().send(request, *args, **options | {"timeout": waits})
            except requests.RequestException as error:
                if deadline.left_seconds() < RETRY_SECONDS:
                    raise requests.RequestException("no time is left for asking Stripe again") from error
                raise
            if deadline.left_seconds() < RETRY_SECONDS:
                response.headers["stripe-should-retry"] = "false"
            return response

    session = requests.Session()
    session.mount("https://", Bounded())
    session.mount("http://", Bounded())
    return session


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
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        raise StripeRefusedError(_REFUSED, stripe_code=KEY_REFUSED) from error
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
