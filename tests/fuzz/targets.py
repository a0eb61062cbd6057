"""What is fed with odd inputs, and what must hold of each answer.

Of every answer: no 5xx (but for what upstream is scripted to do), a refusal in Claude's envelope, none of our secrets.
Of the log: neither secrets nor what callers wrote. Of the meters: nothing stays held.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz.data_plane import COOKIE, MODEL, PEPPER, PLANS, PROMPT, Answer, DataPlane
from tests.fuzz.mutate import ODD_JSON, cut, encoded, mutated_bytes, mutated_json, odd_text, pick
from tests.support.fake_upstream import EVENT_STREAM, JSON
from tests.support.recorded_streams import STREAMS
from tollgate.domain.api_keys import KeyMode, mint_api_key
from tollgate.domain.stripe_events import event_of
from tollgate.edge.stripe_signatures import SignatureError, verify
from tollgate.providers.claude_stream import StreamReader

Outcome = str
Target = Callable[[DataPlane, Random], Outcome]

PATHS = ("/v1/messages", "/claude/stream", "/v1/messages/count_tokens", "/v1/models", "/v1/key", "/api/hello", "/")
BLOCKS: tuple[Any, ...] = (
    {"type": "text", "text": PROMPT, "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": PROMPT}, "title": PROMPT},
    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1, {"b": PROMPT}]}},
    {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": PROMPT}]},
    {"type": "thinking", "thinking": PROMPT, "signature": "AAAA"},
    {"type": "something_new", "payload": PROMPT},
)
MESSAGE: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 64,
    "stream": True,
    "system": [{"type": "text", "text": PROMPT}],
    "messages": [{"role": "user", "content": [*BLOCKS]}, {"role": "assistant", "content": PROMPT}],
    "tools": [{"name": "f", "description": PROMPT, "input_schema": {"type": "object", "properties": {}}}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "enabled", "budget_tokens": 32},
    "metadata": {"user_id": PROMPT},
    "stop_sequences": [PROMPT],
    "temperature": 0.5,
    "service_tier": "auto",
}
FORM: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 20, "system": PROMPT}
ODD_HEADERS = (
    "anthropic-beta",
    "anthropic-version",
    "content-encoding",
    "content-type",
    "cookie",
    "host",
    "idempotency-key",
    "transfer-encoding",
    "user-agent",
    "x-amzn-trace-id",
    "x-claude-code-session-id",
    "x-forwarded-for",
    "x-stainless-retry-count",
    "x-tollgate-user",
)


# ---- what holds of every answer


def judge(plane: DataPlane, answer: Answer) -> Outcome:
    """The status, once everything else is right."""
    assert answer.status < 500 or answer.status == 529, (answer.status, answer.body[:300])
    said = repr(answer.headers).encode() + answer.body
    assert PEPPER not in said
    assert COOKIE.encode() not in said
    assert not [key for key in plane.keys.values() if key.encode() in said]
    if answer.status >= 400 and not answer.headers.get("x-upstream-request-id"):
        document = json.loads(answer.body)
        assert document["type"] == "error", document
        assert document["error"]["details"]["error_code"] != "internal_error"
        assert document["request_id"] == answer.headers["request-id"]
    return str(answer.status)


def key_headers(plane: DataPlane, random: Random) -> dict[str, str]:
    return {"x-api-key": plane.keys[random.choice(PLANS)], "cookie": COOKIE, "anthropic-version": "2023-06-01"}


# ---- targets


def bodies(plane: DataPlane, random: Random) -> Outcome:
    """Requests near to what Claude takes, and far from it."""
    path = random.choice(("/v1/messages", "/v1/messages", "/claude/stream", "/v1/messages/count_tokens"))
    right = FORM if path == "/claude/stream" else MESSAGE
    body: bytes = pick(
        random,
        [
            (60, lambda: encoded(mutated_json(random, right, random.randrange(1, 6)))),
            (25, lambda: mutated_bytes(random, encoded(right), random.randrange(1, 5))),
            (5, lambda: random.choice(ODD_JSON)),
            (5, lambda: encoded(right)),
            (5, lambda: encoded({**right, random.choice(sorted(MESSAGE)): odd_text(random)})),
        ],
    )
    return judge(plane, plane.call("POST", path, body, key_headers(plane, random)))


def requests(plane: DataPlane, random: Random) -> Outcome:
    """Methods, paths, queries, headers and events around a body that is right."""
    headers = key_headers(plane, random)
    for _ in range(random.randrange(6)):
        headers[random.choice(ODD_HEADERS)] = odd_text(random)
    if random.random() < 0.1:
        headers[odd_text(random)] = odd_text(random)
    path = random.choice(PATHS) if random.random() < 0.8 else f"/v1/models/{odd_text(random)}"
    event: dict[str, Any] = {
        "version": "2.0",
        "rawPath": path + (odd_text(random) if random.random() < 0.2 else ""),
        "rawQueryString": odd_text(random) if random.random() < 0.4 else "beta=true",
        "headers": headers,
        "requestContext": {
            "http": {"method": random.choice(("GET", "POST", "POST", "HEAD", "PUT", "DELETE", odd_text(random)))}
        },
        "body": encoded(FORM if path == "/claude/stream" else MESSAGE).decode(),
        "isBase64Encoded": False,
    }
    if random.random() < 0.2:
        event["body"] = odd_text(random)
        event["isBase64Encoded"] = random.random() < 0.5
    return judge(plane, plane.invoke(event))


def credentials(plane: DataPlane, random: Random) -> Outcome:
    """Keys and tokens, made, mangled and forged: only the untouched ones open anything."""
    right = plane.keys["pro"] if random.random() < 0.4 else plane.token()
    other = mint_api_key(random.choice([*KeyMode]), random.randbytes(32))
    claims = plane.pool.access_claims(plane.clock.now_seconds())
    text: str = pick(
        random,
        [
            (30, lambda: mutated_bytes(random, right.encode(), random.randrange(1, 4)).decode("latin-1")),
            (10, lambda: other),
            (10, lambda: odd_text(random)),
            (10, lambda: plane.pool.unsigned(mutated_json(random, claims, 1))),
            (10, lambda: plane.pool.hmac_signed(claims, random.choice((PEPPER, plane.pool.key_set())))),
            (10, lambda: plane.pool.sign_text(encoded(mutated_json(random, claims, 2)).decode(), kid=odd_text(random))),
            (5, lambda: ".".join(base64.urlsafe_b64encode(random.randbytes(30)).decode() for _ in range(3))),
            (5, lambda: "a." * random.randrange(5_000)),
            (10, lambda: right),
        ],
    )
    scheme = random.choice(("Bearer ", "bearer ", "Basic ", ""))
    headers = {"x-api-key": text} if random.random() < 0.5 else {"authorization": f"{scheme}{text}"}
    answer = plane.call("GET", "/v1/models", b"", headers)
    if right not in text and answer.status == 200:
        raise AssertionError(f"opened by {text[:200]!r}")
    return judge(plane, answer)


def streams(plane: DataPlane, random: Random) -> Outcome:
    """Answers of upstream that are none, in any pieces: passed on as they are, booked, and nothing held."""
    data = random.choice([*STREAMS.values()]).data
    if random.random() < 0.8:
        data = mutated_bytes(random, data, random.randrange(1, 6))
    headers = dict(random.choice((EVENT_STREAM, EVENT_STREAM, EVENT_STREAM, JSON)))
    with plane.upstream_says(cut(random, data), headers):
        body = encoded({name: value for name, value in MESSAGE.items() if name != "thinking"})
        answer = plane.call("POST", "/v1/messages", body, key_headers(plane, random))
    if answer.status == 503:  # an answer that told nothing, not streamed: lost, and said so
        assert b"upstream" in answer.body
        return "503"
    return judge(plane, answer)


def reader(_: DataPlane, random: Random) -> Outcome:
    """The usage reader: the same whatever the pieces, and never an error."""
    data = mutated_bytes(random, random.choice([*STREAMS.values()]).data, random.randrange(4))
    data = data.replace(b"\n", random.choice((b"\n", b"\n", b"\r\n", b"\r")))
    whole, parts = StreamReader(), StreamReader()
    events = whole.feed(data)
    pieces = cut(random, data)
    found = [event for piece in pieces for event in parts.feed(piece)]
    assert found == events, (found, events)
    assert (parts.usage, parts.usage_is_final) == (whole.usage, whole.usage_is_final)
    assert parts.delivered_bytes == whole.delivered_bytes
    return "final" if whole.usage_is_final else "not final"


def signatures(plane: DataPlane, random: Random) -> Outcome:
    """Stripe's signature: only what was signed, as it was signed, when it was signed."""
    secret, now = "whsec_fuzz", int(plane.clock.now_seconds())
    about = {"id": "in_1", "object": "invoice", "customer": "cus_1"}
    event = {"id": "evt_1", "object": "event", "type": "x.y", "livemode": False, "data": {"object": about}}
    body = encoded(mutated_json(random, event, random.randrange(4)))
    at = now + random.choice((0, 0, -299, 299, -301, 301, 10**9))
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    header = f"t={at},v1={digest}"
    sent_header, sent_body = header, body
    if random.random() < 0.6:
        sent_header = mutated_bytes(random, header.encode(), 1).decode("latin-1")
    if random.random() < 0.4:
        sent_body = mutated_bytes(random, body, 1)
    try:
        verify(sent_body, sent_header, (secret, "whsec_old"), now)
    except SignatureError:
        assert (sent_header, sent_body) != (header, body) or abs(at - now) > 300
        return "refused"
    assert sent_body == body, "a body that was not signed"
    assert digest in sent_header
    assert abs(at - now) <= 300
    try:
        event_of(json.loads(sent_body))
    except ValueError:
        return "no event"
    return "event"


TARGETS: dict[str, tuple[Target, int]] = {
    "bodies": (bodies, 30),
    "requests": (requests, 14),
    "credentials": (credentials, 14),
    "streams": (streams, 14),
    "reader": (reader, 20),
    "signatures": (signatures, 8),
}
"""By name, with the share of inputs in hundredths."""


def spread(total: int) -> Counter[str]:
    """How many inputs each target gets."""
    return Counter({name: total * share // 100 for name, (_, share) in TARGETS.items()})
