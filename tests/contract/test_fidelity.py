"""The gateway is faithful to the byte, up and down, and passes every header that is Claude's and none that is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.gateway import HEADERS, MODEL, Answer, Gateway, message

pytestmark = pytest.mark.stack

WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ANSWERS: dict[str, dict[str, Any]] = {
    "text": {},
    "thinking": {"max_tokens": 2048, "thinking": {"type": "enabled", "budget_tokens": 1024}},
    "a tool call": {"tools": [WEATHER], "tool_choice": {"type": "any"}},
    "unknown events": {"script": "unknown_events=3"},
    "several counts": {"script": "message_deltas=3"},
    "counts of a cache": {"script": "cache_read=5000 cache_write=300 cache_write_1h=200"},
    "an error in the middle": {"script": "error_after=3"},
    "a stop sequence": {"stop_sequences": ["stream"]},
    "no room for more": {"max_tokens": 5},
}
CHUNKS = ("chunk_bytes=1", "chunk_bytes=7", "chunk_bytes=65536", "")


def ask(gateway: Gateway, *, plan: str = "pro", script: str = "", **changes: Any) -> Answer:  # noqa: ANN401  any JSON
    user = gateway.add_user(plan)
    return gateway.send(user, f"naïve café 🙂 [[fake {script}]]" if script else "naïve café 🙂", **changes)


# ---- down


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_stream_comes_down_byte_for_byte(gateway: Gateway, kind: str, chunks: str) -> None:
    changes = dict(ANSWERS[kind])
    script = f"{changes.pop('script', '')} {chunks}".strip()
    answer = ask(gateway, script=script, **changes)
    assert (answer.status, answer.whole) == (200, True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.body == gateway.sent_by_claude(answer)
    assert answer.body.count(b"event: ping") == 1


def test_a_long_stream_in_64_kb_chunks_comes_down_byte_for_byte(gateway: Gateway) -> None:
    """Events are cut wherever a chunk ends; larger ones than the relay reads at once included."""
    for chunk_bytes in (65_536, 200_000):
        answer = ask(gateway, script=f"tokens=5000 chunk_bytes={chunk_bytes}", max_tokens=8192)
        assert len(answer.body) > 150_000
        assert answer.body == gateway.sent_by_claude(answer)


def test_events_that_nobody_knows_pass(gateway: Gateway) -> None:
    answer = ask(gateway, script="unknown_events=2")
    unknown = [document for name, document in answer.events if name == "future_event"]
    assert [document["text"] for document in unknown] == ["naïve café", "naïve café"]


@pytest.mark.parametrize("kind", [kind for kind in ANSWERS if kind != "an error in the middle"])
def test_a_whole_message_comes_down_byte_for_byte(gateway: Gateway, kind: str) -> None:
    answer = ask(gateway, stream=False, **ANSWERS[kind])
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.body == gateway.sent_by_claude(answer)


def test_a_count_comes_down_byte_for_byte(gateway: Gateway) -> None:
    user = gateway.add_user("free")
    body = json.dumps(message(max_tokens=None, stream=None), indent=2).encode()
    answer = gateway.call("POST", "/v1/messages/count_tokens?beta=true", body, key=user.key)
    assert answer.status == 200
    assert answer.body == gateway.sent_by_claude(answer)
    assert gateway.received_by_claude(answer) == body
    assert gateway.exchange(answer)["target"] == "/v1/messages/count_tokens?beta=true"
    assert not [name for name in answer.headers if "ratelimit" in name]  # upstream's are shared, and it costs nothing


def test_events_are_passed_on_as_they_come(gateway: Gateway) -> None:
    """The first words are read while upstream is still at the fourth event of many."""
    user = gateway.add_user("pro")
    body = json.dumps(message("[[fake pace_ms=100]]")).encode()
    with gateway.open("POST", "/v1/messages", body, key=user.key) as response:
        seen = b""
        while b"text_delta" not in seen:
            seen += response.read1(65_536)
        [exchange] = [
            each
            for each in gateway.stack.exchanges()
            if each["request_id"] == response.headers["x-upstream-request-id"]
        ]
        assert seen.count(b"text_delta") < 4
        assert not exchange["finished"]
        rest = response.read()
    assert rest.endswith(b'data: {"type":"message_stop"}\n\n')


def test_the_callers_limits_stand_in_place_of_the_shared_ones(gateway: Gateway) -> None:
    answer = ask(gateway)
    headers = answer.headers
    assert headers["anthropic-ratelimit-requests-limit"] == "120"
    assert headers["anthropic-ratelimit-tokens-limit"] == "2000000"
    assert '"plan";q=2000000;qu="tokens"' in headers["ratelimit-policy"]
    assert headers["anthropic-ratelimit-unified-status"] == "allowed"
    assert headers["request-id"] != headers["x-upstream-request-id"] == gateway.exchange(answer)["request_id"]
    assert not headers.keys() & {"via", "server", "anthropic-organization-id", "strict-transport-security"}


# ---- up

UNUSUAL = (
    b'  { "stream":true,\n\t"messages" : [ {"role":"user",'
    b'"content":"caf\\u00e9 \\ud83d\\ude42 \\/ \xc3\xa9 \\"x\\"" } ]\r\n,'
    b'"max_tokens":64 , "future_field":{"z":[1.0,1e2,-0,1E+2,0.10],"a":null}, "metadata":{"user_id":"u"},'
    b'"model":"' + MODEL.encode() + b'"}\n \t'
)


def test_a_request_goes_up_byte_for_byte(gateway: Gateway) -> None:
    """Unusual whitespace, order, escapes and numbers: a body that is parsed and written again loses them."""
    user = gateway.add_user("pro")
    answer = gateway.call("POST", "/v1/messages?beta=true&x=%20y", UNUSUAL, key=user.key)
    assert answer.status == 200
    assert gateway.received_by_claude(answer) == UNUSUAL
    assert gateway.exchange(answer)["target"] == "/v1/messages?beta=true&x=%20y"


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "text/plain", "x/y"])
def test_a_request_goes_up_byte_for_byte_whatever_it_is_called(gateway: Gateway, content_type: str) -> None:
    """Lambda hands over some bodies as text and others as base64, by their content type.

    Upstream is told what the body was read as here, so that no charset makes another text of the same bytes.
    """
    user = gateway.add_user("pro")
    headers = {**HEADERS, "content-type": content_type}
    answer = gateway.call("POST", "/v1/messages", UNUSUAL, key=user.key, headers=headers)
    assert gateway.received_by_claude(answer) == UNUSUAL
    assert gateway.exchange(answer)["headers"]["content-type"] == "application/json"


@pytest.mark.parametrize("asked", [4_095, 4_096, 4_097, 100_000])
def test_a_clamp_changes_that_one_number_only(gateway: Gateway, asked: int) -> None:
    """Whatever else looks like it stays: in text, in a tool's schema, in a key of an inner object."""
    body = (
        b'{ "metadata" : {"max_tokens": 77777, "user_id":"\\"max_tokens\\": 77777"},\n'
        b'  "messages":[{"role":"user","content":"caf\xc3\xa9 \\"max_tokens\\": 77777, caf\\u00e9"}],\n'
        b'  "max_tokens" :  %d  , "model":"%s", "stream" : true }'
    )
    user = gateway.add_user("free")
    answer = gateway.call("POST", "/v1/messages", body % (asked, MODEL.encode()), key=user.key)
    assert answer.status == 200
    assert gateway.received_by_claude(answer) == body % (min(asked, 4_096), MODEL.encode())


def test_a_clamp_to_what_is_left_changes_that_one_number_only(gateway: Gateway) -> None:
    user = gateway.add_user("free")
    filler = gateway.send(user, "x" * 95_000, stream=False, max_tokens=1)  # 23,750 tokens, as the fake counts it
    assert filler.status == 200
    left = gateway.standing(user)["limit_remaining"]
    body = json.dumps(message("y" * (left - 2_000))).encode().replace(b'"max_tokens": 64', b'"max_tokens":   4096')
    answer = gateway.call("POST", "/v1/messages", body, key=user.key)
    received = gateway.received_by_claude(answer)
    clamped = json.loads(received)["max_tokens"]
    assert 16 <= clamped < 2_000
    assert received == body.replace(b"   4096", b"   %d" % clamped)


def test_claudes_own_headers_go_up(gateway: Gateway) -> None:
    user = gateway.add_user("pro")
    sent = {
        "content-type": "application/json",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "one-2026-01-01,two-2026-02-02",
        "anthropic-future-header": "some value",
        "x-claude-code-session-id": "0e5f",
        "x-stainless-lang": "python",
        "user-agent": "curl/8",
    }
    answer = gateway.call("POST", "/v1/messages", message(), key=user.key, headers=sent)
    received = gateway.exchange(answer)["headers"]
    assert {name: received.get(name) for name in sent} == sent


def test_nothing_that_tells_who_calls_goes_up(gateway: Gateway) -> None:
    """Credentials, cookies, addresses, and headers by which a caller would choose another account of ours."""
    user = gateway.add_user("pro")
    secret = "do-not-forward-this"
    sent = {
        "authorization": f"Bearer {secret}",
        "cookie": f"session={secret}",
        "proxy-authorization": f"Basic {secret}",
        "forwarded": f"for={secret}",
        "x-forwarded-for": secret,
        "x-forwarded-host": secret,
        "x-real-ip": secret,
        "x-user-id": secret,
        "x-tenant-id": secret,
        "x-amzn-oidc-data": secret,
        "anthropic-organization-id": secret,
        "anthropic-workspace-id": secret,
        "anthropic-user-profile-id": secret,
        "referer": f"https://{secret}.example.com/",
        "origin": f"https://{secret}.example.com",
        "te": "trailers",
        "accept-encoding": "br, gzip",
        "idempotency-key": secret,
    }
    answer = gateway.call("POST", "/v1/messages", message(), key=user.key, headers=sent)
    assert answer.status == 200, answer
    received = gateway.exchange(answer)["headers"]
    assert secret not in json.dumps(received)
    assert user.key not in json.dumps(received)
    assert received["x-api-key"] == gateway.remembered()["fake_upstream_key"]
    assert received["accept-encoding"] == "identity"
    assert not any(name.startswith("x-forwarded") or name in ("via", "x-amzn-trace-id") for name in received)


@pytest.mark.parametrize(("version", "credential"), [("2023-06-01", "x-api-key"), ("2026-10-21", "authorization")])
def test_our_own_key_goes_up_as_the_version_has_it(gateway: Gateway, version: str, credential: str) -> None:
    user = gateway.add_user("pro")
    answer = gateway.call("POST", "/v1/messages", message(), key=user.key, headers={"anthropic-version": version})
    received = gateway.exchange(answer)["headers"]
    assert received["anthropic-version"] == version
    assert received[credential].endswith(gateway.remembered()["fake_upstream_key"])
    assert len(received.keys() & {"x-api-key", "authorization"}) == 1
