"""Where Stripe's events come in: the webhook, an event bus of AWS, and our own queue, told apart by Lambda's envelope.

The envelope is made by AWS and cannot be chosen by who sends a request: a body that looks like one of the event bus is
the body of a webhook all the same, and needs a signature. Of every event the account and the mode are checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Protocol

from pydantic import Field

from tollgate.domain.errors import InvalidRequestError, RequestTooLargeError, TollgateError
from tollgate.domain.message_requests import parse_object
from tollgate.domain.sources import Clock
from tollgate.domain.stripe_events import StripeEvent, event_of, event_of_message
from tollgate.edge.bodies import body_of
from tollgate.edge.documents import AnswerDocument
from tollgate.edge.http_api import HttpApi
from tollgate.edge.stripe_signatures import SignatureError, verify
from tollgate.flows.stripe_events import StripeEventFlow
from tollgate.providers.stripe_client import StripeDeadline
from tollgate.telemetry import Telemetry

BODY_BYTES_AT_MOST: Final = 256 * 1024
"""Stripe's largest events are invoices with many lines, far below; nothing larger is ever hashed or parsed."""

_REPLAY: Final = "tollgate_replay"
"""In a message: an operator wants the event's effects again, whatever was done."""
_REFUSED: Final = "This is no event that Stripe has sent here."
"""One text for every reason: who forges learns nothing. The log has the reason."""


class DeliveryDocument(AnswerDocument):
    """For Stripe's own log of deliveries, which its dashboard shows."""

    outcome: Annotated[str, Field(examples=["done"])]


class Tools(Protocol):
    """What the function is built with."""

    @property
    def clock(self) -> Clock: ...

    @property
    def telemetry(self) -> Telemetry: ...

    @property
    def client_ids(self) -> frozenset[str]: ...

    @property
    def events(self) -> StripeEventFlow: ...

    @property
    def stripe_deadline(self) -> StripeDeadline: ...

    @property
    def signing_secrets(self) -> Callable[[], tuple[str, ...]]:
        """All that are valid now, several while one replaces another."""

    @property
    def account_id(self) -> str | None:
        """The Stripe account whose events are ours; None: the one that the secret belongs to."""

    @property
    def livemode(self) -> bool: ...


def read_delivery(request: Mapping[str, Any], tools: Tools) -> StripeEvent:
    """The event in a request of the HTTP API. Raises InvalidRequestError for whatever Stripe did not send to us."""
    try:
        body = body_of(request, BODY_BYTES_AT_MOST)
        headers = {str(name).lower(): value for name, value in (request.get("headers") or {}).items()}
        verify(body, headers.get("stripe-signature"), tools.signing_secrets(), tools.clock.now_seconds())
        event = event_of(parse_object(body))
    except SignatureError as error:
        raise _refused(error.reason, tools) from error
    except (InvalidRequestError, RequestTooLargeError, ValueError) as error:
        raise _refused("body", tools) from error
    if (reason := _foreign(event, tools)) is not None:
        raise _refused(reason, tools)
    return event


def _refused(reason: str, tools: Tools) -> InvalidRequestError:
    tools.telemetry.event("stripe_delivery_refused", error_code=reason)
    return InvalidRequestError(_REFUSED)


def _foreign(event: StripeEvent, tools: Tools) -> str | None:
    """Why an event is not this deployment's: another account's, or of the other mode. Counted, since it was signed."""
    reason = None
    if event.livemode is not tools.livemode:
        reason = "livemode"
    elif event.account_id is not None and event.account_id != tools.account_id:
        reason = "account"
    if reason is not None:
        tools.telemetry.measure({"ForeignStripeEvents": 1, "StripeAlarms": 1})
    return reason


class StripeDeliveries:
    """The function's handler, over all three envelopes."""

    def __init__(self, api: HttpApi[Any]) -> None:
        self._api = api

    def handle(self, event: dict[str, Any], context: Any) -> dict[str, Any]:  # noqa: ANN401  Lambda's context
        """An HTTP answer; of a batch, the messages to be sent again; of the event bus, nothing that anybody reads."""
        tools: Tools = self._api.tools
        tools.stripe_deadline.begin(context.get_remaining_time_in_millis())
        if "Records" in event:
            return self._work(event["Records"])
        if "detail-type" in event and "requestContext" not in event:
            return self._take(event)
        return self._api.handle(event, context)

    def _take(self, envelope: Mapping[str, Any]) -> dict[str, Any]:
        """From the event bus, which has authenticated Stripe. What raises is tried again by Lambda."""
        tools: Tools = self._api.tools
        try:
            event = event_of(envelope.get("detail"))
        except ValueError as error:
            tools.telemetry.failure("stripe_delivery_refused", error)
            return {"outcome": "refused"}
        if (reason := _foreign(event, tools)) is not None:
            tools.telemetry.event("stripe_delivery_refused", error_code=reason, event_id=event.id)
            return {"outcome": "refused"}
        return {"outcome": tools.events.receive(event).value}

    def _work(self, records: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Each message by itself: one that fails comes again, and after some times goes to the dead letters."""
        failed = [record["messageId"] for record in records if not self._worked(record)]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}

    def _worked(self, record: Mapping[str, Any]) -> bool:
        tools: Tools = self._api.tools
        try:
            message = json.loads(record["body"])
            self._do(event_of_message(message), again=_REPLAY in message)
        except TollgateError as error:
            tools.telemetry.event("stripe_work_postponed", error_code=error.error_code)
            return False
        except Exception as error:  # noqa: BLE001  the entry: the other messages of the batch must not suffer
            tools.telemetry.failure("stripe_work_failed", error)
            return False
        return True

    def _do(self, event: StripeEvent, *, again: bool) -> None:
        tools: Tools = self._api.tools
        if _foreign(event, tools) is not None:
            return
        if again:
            tools.events.act(event)
        else:
            tools.events.work(event)
