"""The operator's address: signed, once a notice, to that address and no other."""

from __future__ import annotations

import hmac
import json
import socket
from datetime import timedelta
from hashlib import sha256

import pytest

from tests.support.ledger_world import START
from tests.support.scripted_http import Behaviour, ScriptedServer, answer
from tollgate.domain.notices import NotDeliveredError, NoticeRefusedError, QuotaShare, QuotaUnit, UsageNotice
from tollgate.domain.periods import period_at
from tollgate.domain.plans import PeriodKind
from tollgate.edge.stripe_signatures import verify
from tollgate.providers.operator_webhook import OperatorWebhook, signature

NOTICE = UsageNotice(
    tenant_id="main",
    user_id="u1",
    period=period_at(PeriodKind.CALENDAR_MONTH, START, START),
    plan_id="pro",
    threshold_percent=75,
    share=QuotaShare(QuotaUnit.TOKENS, 1_600_000, 2_000_000),
    noticed_at=START,
)
AT = START + timedelta(minutes=1)


def deliver(behaviour: Behaviour, *secrets: str, path: str = "/hooks/tollgate") -> tuple[dict[str, str], bytes]:
    """(headers, body) of the one request that came; raises what sending raised."""
    with ScriptedServer(behaviour) as server:
        try:
            OperatorWebhook(server.url + path, lambda: secrets or ("s3cret",), "prod").send(NOTICE, AT)
        finally:
            requests = list(server.requests)
    [request] = requests
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first == f"POST {path} HTTP/1.1"
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}, body


def test_tells_what_happened_to_whom_and_when() -> None:
    headers, body = deliver(answer(b""))
    assert json.loads(body) == {
        "id": NOTICE.id,
        "type": "usage.threshold_passed",
        "stage": "prod",
        "created_at": "2026-11-20T12:00:00Z",
        "data": {
            "tenant_id": "main",
            "user_id": "u1",
            "plan_id": "pro",
            "period": {"id": "2026-11", "start_at": "2026-11-01T00:00:00Z", "end_at": "2026-12-01T00:00:00Z"},
            "unit": "tokens",
            "threshold_percent": 75,
            "used_percent": 80,
            "used": 1_600_000,
            "quota": 2_000_000,
        },
    }
    assert headers["tollgate-notice-id"] == NOTICE.id
    assert headers["content-type"] == "application/json"


def test_is_signed_over_time_and_body() -> None:
    headers, body = deliver(answer(b""))
    seconds = int(AT.timestamp())
    expected = hmac.new(b"s3cret", f"{seconds}.".encode() + body, sha256).hexdigest()
    assert headers["tollgate-signature"] == f"t={seconds},v1={expected}"


def test_is_signed_with_each_secret_while_they_are_changed() -> None:
    headers, _ = deliver(answer(b""), "new", "old")
    assert headers["tollgate-signature"].count("v1=") == 2


def test_whoever_checks_stripes_webhooks_can_check_ours() -> None:
    """The scheme is the same; only the header has another name."""
    headers, body = deliver(answer(b""), "new", "old")
    verify(body, headers["tollgate-signature"], ["old"], AT.timestamp())


def test_another_body_time_or_secret_makes_another_signature() -> None:
    known = signature(b"{}", ("a",), AT)
    assert len({known, signature(b"{ }", ("a",), AT), signature(b"{}", ("b",), AT)}) == 3
    assert signature(b"{}", ("a",), AT + timedelta(seconds=1)).split(",")[1] != known.split(",")[1]


@pytest.mark.parametrize("status", ["200 OK", "201 Created", "204 No Content", "299 Fine"])
def test_has_arrived_when_answered_so(status: str) -> None:
    deliver(answer(b"", status))


@pytest.mark.parametrize("status", ["300 Choices", "400 Bad", "401 No", "404 None", "429 Slow down", "500 Broken"])
def test_has_not_arrived_when_answered_otherwise(status: str) -> None:
    with pytest.raises(NotDeliveredError, match=status[:3]):
        deliver(answer(b"", status))


@pytest.mark.parametrize(
    ("status", "refused"),
    [
        *[(status, True) for status in ("400 Bad", "409 Known", "413 Large", "422 What")],
        *[(status, False) for status in ("302 Found", "401 No", "404 None", "429 Slow down", "500 Broken")],
    ],
)
def test_some_answers_are_about_this_notice_and_the_others_about_the_address(status: str, refused: bool) -> None:
    with pytest.raises(NotDeliveredError) as caught:
        deliver(answer(b"", status))
    assert isinstance(caught.value, NoticeRefusedError) == refused


def test_a_redirect_is_not_followed() -> None:
    """Not even to the same server: else whoever answers there decides what this function connects to."""
    with ScriptedServer(answer(b"")) as other:
        with pytest.raises(NotDeliveredError, match="302"):
            deliver(answer(b"", "302 Found", Location=f"{other.url}/inside"))
        assert other.requests == []


def test_silence_and_nonsense_are_no_delivery() -> None:
    def nonsense(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")

    def hang_up(connection: socket.socket, _: bytes) -> None:
        connection.close()

    for behaviour in (nonsense, hang_up):
        with pytest.raises(NotDeliveredError):
            deliver(behaviour)


def test_nobody_there_is_no_delivery_and_its_text_names_neither_address_nor_secret() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NotDeliveredError) as caught:
        OperatorWebhook(f"http://127.0.0.1:{port}/hook-1234", lambda: ("s3cret",), "prod").send(NOTICE, AT)
    assert "1234" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
