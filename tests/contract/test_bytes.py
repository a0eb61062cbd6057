"""The relay is faithful to the byte, up and down, however the upstream cuts its stream."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.stack import RunningStack

pytestmark = pytest.mark.stack

MODEL = "claude-haiku-5-5"
SCRIPTS = (
    "",
    "chunk_bytes=1 tokens=20",
    "chunk_bytes=7",
    "chunk_bytes=65536 tokens=900",
    "unknown_events=3 message_deltas=3",
    "pace_ms=3",
    "error_after=4",
    "truncate_after=4",
)


def post(stack: RunningStack, path: str, body: bytes, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """One raw request; again when the demo user's rate limit wants a pause between so many tests."""
    sent = {"x-api-key": stack.demo_key, "anthropic-version": "2023-06-01", "content-type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    while True:
        connection = http.client.HTTPConnection(urlsplit(stack.gateway_url).netloc, timeout=30)
        try:
            connection.request("POST", path, body, sent)
            response = connection.getresponse()
            answered = response.read()
        finally:
            connection.close()
        if b'"rate_limited"' not in answered:
            return response, answered
        time.sleep(int(response.headers["retry-after"]))


def message(**more: object) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 1024, "messages": [{"role": "user", "content": "Hello"}], **more}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_stream_comes_down_byte_for_byte(stack: RunningStack, script: str) -> None:
    response, body = post(stack, "/v1/messages", json.dumps(message(stream=True)).encode(), anthropic_fake=script)
    sent = stack.sent_by_claude(response.headers["x-upstream-request-id"])
    assert response.status == 200
    if "truncate" in script:
        assert body.startswith(sent)  # what follows is our own `error` event: the end is missing
    else:
        assert body == sent


def test_a_whole_message_comes_down_byte_for_byte(stack: RunningStack) -> None:
    response, body = post(stack, "/v1/messages", json.dumps(message()).encode())
    assert body == stack.sent_by_claude(response.headers["x-upstream-request-id"])


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(message(), indent=3).encode(),
        json.dumps(message(system="Grüße 🙂", unknown_field={"a": [1, 2.50]}), ensure_ascii=False).encode(),
        json.dumps(message(metadata={"user_id": "x"})).replace("Hello", "H\\u00e9llo").encode() + b"\n",
    ],
)
def test_a_request_goes_up_byte_for_byte(stack: RunningStack, body: bytes) -> None:
    response, _ = post(stack, "/v1/messages?beta=true", body, anthropic_beta="one-2026-01-01,two")
    request_id = response.headers["x-upstream-request-id"]
    assert stack.received_by_claude(request_id) == body
    exchange = next(item for item in stack.exchanges() if item["request_id"] == request_id)
    assert exchange["target"] == "/v1/messages?beta=true"
    assert exchange["headers"]["anthropic-beta"] == "one-2026-01-01,two"


def test_upstreams_own_limits_and_hops_are_not_shown_to_callers(stack: RunningStack) -> None:
    response, _ = post(stack, "/v1/messages", json.dumps(message()).encode())
    names = {name.lower() for name in response.headers}
    assert not names & {"via", "server", "anthropic-organization-id", "strict-transport-security"}
    assert response.headers.get("anthropic-ratelimit-requests-limit") != "4000"


def test_the_simple_form_ends_with_what_was_used(stack: RunningStack) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "model": MODEL}).encode()
    response, answered = post(stack, "/claude/stream", body)
    sent = stack.sent_by_claude(response.headers["x-upstream-request-id"])
    assert answered.startswith(sent)
    [event] = [part for part in answered[len(sent) :].decode().split("\n\n") if part]
    assert event.startswith("event: usage\ndata: {")
