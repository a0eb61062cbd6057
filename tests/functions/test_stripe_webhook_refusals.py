"""functions/stripe_webhook: whatever Stripe has not sent here is refused, changes nothing and tells nothing."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.http_events import http_event
from tests.support.lambda_context import LambdaContext
from tests.support.stripe_webhook_function import (
    ACCOUNT,
    CANARY,
    SIGNING_SECRET,
    Json,
    StripeWebhookFunction,
    an_event,
    signed,
    stripe_webhook_function,
)
from tollgate.domain.stripe_events import event_of
from tollgate.edge.stripe_signatures import TOLERANCE_SECONDS
from tollgate.edge.stripe_webhook import BODY_BYTES_AT_MOST


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeWebhookFunction]:
    """One for all: what is refused leaves nothing behind, which each test looks at."""
    with stripe_webhook_function(tmp_path_factory.mktemp("catalog")) as function:
        function.open_account()
        function.world.take_events()
        function.wire.asked.clear()
        yield function


# ---- what is refused


def refused_bodies() -> dict[str, tuple[bytes, dict[str, str]]]:
    now = int(time.time())
    plain = json.dumps(an_event()).encode()
    bus = {"version": "0", "detail-type": "x", "source": "aws.partner/stripe.com/ed_1", "detail": an_event()}

    def ok(body: bytes) -> tuple[bytes, dict[str, str]]:
        return body, signed(body)

    def event(**changes: Any) -> tuple[bytes, dict[str, str]]:  # noqa: ANN401
        return ok(json.dumps(an_event(**changes)).encode())

    return {
        "unsigned": (plain, {}),
        "forged": (plain, signed(plain, secret="whsec_of_a_forger")),
        "forged with an empty secret": (plain, signed(plain, secret="")),
        "another body": (plain + b" ", signed(plain)),
        "old": (plain, signed(plain, at=now - TOLERANCE_SECONDS - 2)),
        "future-dated": (plain, signed(plain, at=now + TOLERANCE_SECONDS + 2)),
        "far future": (plain, signed(plain, at=10**11)),
        "non-ASCII signature": (plain, {"stripe-signature": f"t={now},v1=ü{CANARY}"}),
        "garbage signature": (plain, {"stripe-signature": CANARY}),
        "foreign account": event(account="acct_2"),
        "foreign account of a thin event": ok(
            json.dumps(
                {"id": "evt_1", "object": "v2.core.event", "type": "v1.invoice.paid", "livemode": False}
                | {"related_object": {"id": "in_1", "type": "invoice"}, "context": "acct_2"}
            ).encode()
        ),
        "wrong mode": event(livemode=True),
        "no mode": event(livemode=None),
        "invalid UTF-8": ok(b'{"id": "\xff\xfe"}'),
        "null": ok(b"null"),
        "list": ok(json.dumps([an_event()]).encode()),
        "number": ok(b"1"),
        "nothing": ok(b""),
        "no JSON": ok(CANARY.encode()),
        "duplicate keys": ok(plain[:-1] + b', "id": "evt_2"}'),
        "NaN": ok(plain[:-1] + b', "n": NaN}'),
        "lone surrogate": ok(plain[:-1] + rb', "n": "\ud800"}'),
        "many digits": ok(plain[:-1] + b', "n": ' + b"9" * 5000 + b"}"),
        "no id": event(id=None),
        "id that is no text": event(id={"a": 1}),
        "id of a kilobyte": event(id="e" * 1024),
        "no object": event(data={}),
        "an envelope of the event bus": ok(json.dumps(bus).encode()),
        "a message of the queue": ok(json.dumps(event_of(an_event()).document()).encode()),
        "a batch of the queue": ok(json.dumps({"Records": [{"messageId": "1", "body": "{}"}]}).encode()),
        "huge": ok(b'{"a": "' + b"a" * BODY_BYTES_AT_MOST + b'"}'),
        "deep": ok(b'{"a":' * 300 + b"1" + b"}" * 300),
        "very deep": ok(b"[" * 100_000),
    }


@pytest.mark.parametrize("name", refused_bodies())
def test_whatever_stripe_has_not_sent_here_is_400_changes_nothing_and_tells_nothing(
    function: StripeWebhookFunction, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = function.table.items()
    body, headers = refused_bodies()[name]

    answer = function.post(body, headers)

    assert answer.status == 400
    assert answer.body["error"]["message"] == "This is no event that Stripe has sent here."
    assert function.table.items() == before, "the table is as it was, byte by byte"
    assert function.wire.asked == []
    assert function.queued() == function.dead_letters() == []
    logged = capsys.readouterr().out
    assert CANARY not in logged + json.dumps(answer.body)
    assert SIGNING_SECRET not in logged
    assert "stripe_delivery_refused" in logged


@pytest.mark.parametrize("late", [10 - TOLERANCE_SECONDS, 0, TOLERANCE_SECONDS - 10])
def test_within_the_tolerance_an_event_is_taken(function: StripeWebhookFunction, late: int) -> None:
    body = json.dumps(an_event(type="invoice.upcoming")).encode()
    assert function.post(body, signed(body, at=int(time.time()) + late)).status == 200


@pytest.mark.parametrize("size", [BODY_BYTES_AT_MOST - 1, BODY_BYTES_AT_MOST, BODY_BYTES_AT_MOST + 1])
def test_a_body_may_be_as_large_as_stripe_makes_them(function: StripeWebhookFunction, size: int) -> None:
    shell = json.dumps(an_event(type="invoice.upcoming", padding="")).encode()
    body = shell.replace(b'"padding": ""', b'"padding": "' + b"a" * (size - len(shell)) + b'"')
    assert len(body) == size

    assert function.post(body, signed(body)).status == (200 if size <= BODY_BYTES_AT_MOST else 400)


def test_a_body_that_is_no_base64_is_400(function: StripeWebhookFunction) -> None:
    assert function.post(b"x", body="%%%").status == 400


def test_the_raw_body_is_what_is_signed(function: StripeWebhookFunction) -> None:
    """API Gateway sends text as it is and everything else in base64: both are the same bytes."""
    body = json.dumps(an_event(type="invoice.upcoming", name="Zoë"), ensure_ascii=False).encode()

    assert function.post(body, signed(body), body=body.decode(), isBase64Encoded=False).status == 200
    assert function.post(body, signed(body), body=base64.b64encode(body).decode()).status == 200


def test_events_of_our_own_account_may_name_it(function: StripeWebhookFunction) -> None:
    body = json.dumps(an_event(type="invoice.upcoming", account=ACCOUNT)).encode()
    assert function.post(body, signed(body)).status == 200


@pytest.mark.parametrize("change", [{"account": "acct_2"}, {"livemode": True}, {"id": None}, {"object": "list"}])
def test_the_event_bus_is_no_way_around_the_checks(
    function: StripeWebhookFunction, change: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    before = function.table.items()
    assert function.from_bus({"type": "invoice.paid", "id": "evt_1"} | an_event() | change) == {"outcome": "refused"}
    assert function.table.items() == before
    assert CANARY not in capsys.readouterr().out


def test_another_method_is_refused(function: StripeWebhookFunction) -> None:
    answer = function.app.handler(http_event("GET", "/stripe/webhook"), LambdaContext())
    assert answer["statusCode"] == 405
