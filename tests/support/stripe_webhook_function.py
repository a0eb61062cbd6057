"""functions/stripe_webhook on moto's table and queues, with Stripe's double behind it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import botocore.session
import pytest

from dev.stripe_double.webhooks import eventbridge
from tests.support.billing_function import ENVIRONMENT, PLANS, SECRET_KEY, stripe_world, sync_plans
from tests.support.http_events import http_event
from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import REGION, CountedTable, moto_table
from tests.support.stripe_wire import StripeWire, stripe_wire
from tollgate.catalog.loader import load_catalog
from tollgate.domain.billing import CheckoutWish
from tollgate.domain.principals import Profile
from tollgate.domain.subscriptions import Interval
from tollgate.providers.stripe_billing import StripeBilling
from tollgate.storage.subscriptions import Subscriptions
from tollgate.storage.users import Users

if TYPE_CHECKING:
    from types_boto3_ssm.client import SSMClient

ADA, EVE = "ada", "eve"
SIGNING_SECRET = "whsec_1"
ACCOUNT = "acct_1"
CONTEXT = LambdaContext()
OVERAGE_KEY = "tollgate_overage"
RETURN_URL = "https://app.example.com/billing"

CANARY = "canary-of-a-forger"

Json = dict[str, Any]


def signed(body: bytes, *, secret: str = SIGNING_SECRET, at: int | None = None) -> dict[str, str]:
    """The headers of a delivery: signed now, unless another time is given."""
    seconds = int(time.time()) if at is None else at
    made = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={seconds},v1={made}"}


def an_event(**changes: Any) -> Json:  # noqa: ANN401  any JSON
    """One that Stripe never sent."""
    event: Json = {
        "id": "evt_forged",
        "object": "event",
        "type": "customer.subscription.updated",
        "livemode": False,
        "data": {"object": {"id": "sub_1", "object": "subscription", "customer": "cus_1", "name": CANARY}},
    }
    return event | changes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: Any

    @property
    def outcome(self) -> str:
        outcome: str = self.body["outcome"]
        return outcome


class StripeWebhookFunction:
    """One container of the function, its queues, and the world that it is told about."""

    def __init__(self, table: CountedTable, wire: StripeWire, queues: Any, urls: tuple[str, str]) -> None:  # noqa: ANN401
        self.table = table
        self.wire = wire
        self.world = wire.world
        self.subscriptions = Subscriptions(table)
        self.users = Users(table)
        self.stripe = StripeBilling(lambda: SECRET_KEY, base_url=wire.url)
        self._queues = queues
        self._urls = urls

    @property
    def app(self) -> Any:  # noqa: ANN401  the function's module
        return importlib.import_module("functions.stripe_webhook.app")

    # ---- what reaches it

    def deliver(self, event: Json, kind: str = "snapshot", **changes: Any) -> Answer:  # noqa: ANN401
        """One event of the world's, signed now."""
        request = self.world.deliver(event, kind, at=datetime.now(UTC))
        return self.post(request.body, request.headers, **changes)

    def post(self, body: bytes, headers: dict[str, str] | None = None, /, **changes: Any) -> Answer:  # noqa: ANN401
        event = http_event("POST", "/stripe/webhook", body=base64.b64encode(body).decode(), isBase64Encoded=True)
        event["headers"] = {name.lower(): value for name, value in (headers or {}).items()}
        answer = self.app.handler(event | changes, CONTEXT)
        return Answer(answer["statusCode"], json.loads(answer["body"]))

    def from_bus(self, event: Json) -> Any:  # noqa: ANN401  what Lambda would be told
        return self.app.handler(eventbridge(event, ACCOUNT, "2026-11-20T10:00:00Z"), CONTEXT)

    def work(self, *bodies: str) -> list[str]:
        """Numbers of the messages that are to come again."""
        records = [
            {"messageId": str(number), "body": body, "eventSource": "aws:sqs"} for number, body in enumerate(bodies)
        ]
        answer = self.app.handler({"Records": records}, CONTEXT)
        return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]

    def deliver_all(self, kind: str = "snapshot") -> list[Answer]:
        """Whatever the world has to tell, and the queue's work after it."""
        answers = [self.deliver(event, kind) for event in self.world.take_events()]
        assert self.work(*self.queued()) == []
        return answers

    def queued(self) -> list[str]:
        """Takes all messages out of the queue."""
        return self._taken(self._urls[0])

    def dead_letters(self) -> list[str]:
        return self._taken(self._urls[1])

    def _taken(self, url: str) -> list[str]:
        found: list[str] = []
        while messages := self._queues.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self._queues.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                found.append(message["Body"])
        return found

    # ---- what people do

    def open_account(self, user: str = ADA) -> str:
        """The id of the user's customer."""
        self.users.create_profile(Profile("main", user, "free", 1, datetime.now(UTC).replace(microsecond=0)))
        made = self.stripe.create_customer("main", user, None, idempotency_key=f"customer-{user}")
        self.subscriptions.claim_customer("main", user, made)
        return made

    def subscribe(self, customer_id: str, plan_id: str = "team", *, card: str = "ok") -> str:
        """Through a checkout; its id. Nobody has been told yet."""
        session = self.stripe.create_checkout(
            self.wish(customer_id, plan_id), idempotency_key=f"checkout-{customer_id}"
        )
        self.world.complete_checkout(session.id, card)
        return session.id

    def wish(self, customer_id: str, plan_id: str) -> CheckoutWish:
        return CheckoutWish(
            tenant_id="main",
            user_id=ADA,
            customer_id=customer_id,
            claim="claim",
            plan_id=plan_id,
            interval=Interval.MONTH,
            overage_lookup_key=OVERAGE_KEY,
            success_url=RETURN_URL,
            cancel_url=RETURN_URL,
            expires_at=datetime.fromtimestamp(int(self.world.now.timestamp()) + 7200, UTC),
        )

    def plan_of(self, user: str = ADA) -> str:
        profile = self.users.find_profile("main", user)
        assert profile is not None
        return profile.plan_id

    def take_event(self, kind: str) -> Json:
        """The newest event of this type; all that are waiting are taken."""
        [*_, found] = [event for event in self.world.take_events() if event["type"] == kind]
        return found


@contextmanager
def stripe_webhook_function(folder: Path, **environment: str) -> Iterator[StripeWebhookFunction]:
    """Nobody has an account yet; plans are for sale. `folder`: for the catalog."""
    (folder / "plans.toml").write_text(PLANS)
    with (
        pytest.MonkeyPatch.context() as patch,
        moto_table(patch) as table,
        stripe_wire(stripe_world()) as wire,
    ):
        patch.setattr("time.sleep", lambda seconds: None)  # between two tries of Stripe's own client
        session = botocore.session.get_session()
        queues = cast("Any", session.create_client("sqs", region_name=REGION))
        urls = tuple(queues.create_queue(QueueName=name)["QueueUrl"] for name in ("stripe-events", "stripe-dead"))
        settings = {
            **ENVIRONMENT,
            "CATALOG": str(folder),
            "STRIPE_API_BASE_URL": wire.url,
            "STRIPE_WEBHOOK_SECRET_PARAMETER": "/tollgate/test/stripe-webhook-secret",
            "STRIPE_ACCOUNT": ACCOUNT,
            "STRIPE_EVENT_QUEUE_URL": urls[0],
            "STRIPE_EVENT_DLQ_URL": urls[1],
            **environment,
        }
        for name, value in settings.items():
            patch.setenv(name, value)
        ssm = cast("SSMClient", session.create_client("ssm", region_name=REGION))
        for name, value in (
            ("STRIPE_SECRET_KEY_PARAMETER", SECRET_KEY),
            ("STRIPE_WEBHOOK_SECRET_PARAMETER", SIGNING_SECRET),
        ):
            ssm.put_parameter(Name=settings[name], Value=value, Type="SecureString")
        sync_plans(wire, load_catalog(str(folder)))
        wire.world.take_events()
        wire.asked.clear()
        patch.delitem(sys.modules, "functions.stripe_webhook.app", raising=False)
        yield StripeWebhookFunction(table, wire, queues, cast("tuple[str, str]", urls))
        sys.modules.pop("functions.stripe_webhook.app", None)
        ssm.close()
        queues.close()
        assert wire.world.refused == [], "a request that Stripe would have refused"
