"""Everything wrong that a caller can send, and every fault of upstream, through every route.

Each answer is a clear refusal in Claude's envelope, and nothing secret is ever written down: neither a credential nor
a prompt nor an answer is found in any log, any error, or any stored item.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest

from tests.support.gateway import HEADERS, MODEL, Answer, Gateway, User, message
from tests.support.stack import running_stack
from tests.support.user_pool import UserPool

pytestmark = pytest.mark.stack

PROMPT = "CANARY-PROMPT-5f1c"
IDENTITY = "CANARY-IDENTITY-77b0"
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
}
STREAMS = ("/v1/messages", "/claude/stream")
COUNT = "/v1/messages/count_tokens"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A stack of its own, so that its logs hold nothing but what these tests sent."""
    with running_stack(tmp_path_factory.mktemp("stack"), "--parameter", "LogLevel=DEBUG") as stack:
        found = Gateway(stack)
        yield found
        found.close()


@pytest.fixture(scope="module")
def user(gateway: Gateway) -> User:
    """On the plan with the widest rate limit: what is tested here is refused by other rules."""
    return gateway.add_user("enterprise", sign_in=True)


def assert_is_claudes_error(answer: Answer, status: int) -> None:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    document = answer.json
    assert (document["type"], document["error"]["type"]) == ("error", ERROR_TYPES[status]), document
    assert document["error"]["message"]
    assert document["error"]["details"]["error_code"]
    assert document["request_id"] == answer.headers["request-id"]
    assert answer.headers["x-should-retry"] == "false"
    assert_tells_no_secret(answer.body.decode())


def assert_tells_no_secret(text: str) -> None:
    assert PROMPT not in text
    assert IDENTITY not in text
    assert "Traceback" not in text
    assert not re.search(r"tg_(test|live)_\w{20}|sk-ant-|eyJ[\w-]{20}", text), text


# ---- bodies that are no JSON, or no request

SAID = [{"role": "user", "content": PROMPT}]


def body(**changes: Any) -> bytes:  # noqa: ANN401  any JSON
    return json.dumps(message(PROMPT, **changes)).encode()


GOOD = body()
BAD_JSON = {
    "nothing": b"",
    "no JSON": PROMPT.encode(),
    "cut": GOOD[:-7],
    "a comma too many": GOOD[:-1] + b",}",
    "two documents": GOOD + GOOD,
    "a list": b"[" + GOOD + b"]",
    "a string": json.dumps(PROMPT).encode(),
    "null": b"null",
    "NaN": GOOD[:-1] + b',"temperature":NaN}',
    "Infinity": GOOD[:-1] + b',"top_p":-Infinity}',
    "a key twice": GOOD[:-1] + b',"max_tokens":1000000}',
    "an inner key twice": GOOD[:-1] + b',"metadata":{"user_id":"a","user_id":"b"}}',
    "100,000 levels": GOOD[:-1] + b',"deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "201 levels": GOOD[:-1] + b',"deep":' + b'{"a":' * 201 + b"1" + b"}" * 201 + b"}",
    "only brackets": b"[" * 200_000,
    "an endless number": GOOD[:-1] + b',"top_k":' + b"9" * 5_000 + b"}",
    "not UTF-8": GOOD.replace(PROMPT.encode(), PROMPT.encode() + b"\xff\xfe"),
    "UTF-16": GOOD.decode().encode("utf-16"),
    "a lone surrogate": GOOD.replace(PROMPT.encode(), PROMPT.encode() + b"\\ud83d"),
    "a raw line break in a string": GOOD.replace(PROMPT.encode(), PROMPT.encode() + b"\n"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "a NUL": GOOD + b"\0",
    "a form": f"model={MODEL}&prompt={PROMPT}".encode(),
}
BAD_FIELDS: dict[str, dict[str, Any]] = {
    "no model": {"model": None},
    "a model that is a number": {"model": 7},
    "a model that is empty": {"model": ""},
    "no max_tokens": {"max_tokens": None},
    "max_tokens as text": {"max_tokens": "64"},
    "max_tokens as fraction": {"max_tokens": 64.0},
    "max_tokens true": {"max_tokens": True},
    "negative max_tokens": {"max_tokens": -1},
    "endless max_tokens": {"max_tokens": 10**30},
    "no messages": {"messages": None},
    "messages as text": {"messages": PROMPT},
    "messages as object": {"messages": {"role": "user", "content": PROMPT}},
    "stream as text": {"stream": "yes"},
    "stream as number": {"stream": 1},
}
ODD_FIELDS: dict[str, dict[str, Any]] = {
    "messages of nothing": {"messages": [None, 1, PROMPT]},
    "content as number": {"messages": [{"role": "user", "content": 7}]},
    "blocks of nothing": {"messages": [{"role": "user", "content": [None, 1, PROMPT, {"type": 7}]}]},
    "an image without source": {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
    "an image of nonsense": {
        "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": 7}}]}]
    },
    "tools as text": {"tools": PROMPT},
    "tools of nothing": {"tools": [None, 7, PROMPT, []]},
    "a tool choice as text": {"tool_choice": PROMPT},
    "system as number": {"system": 7},
    "metadata as text": {"metadata": PROMPT},
    "thinking as text": {"thinking": PROMPT},
    "a thinking budget as text": {"thinking": {"type": "enabled", "budget_tokens": PROMPT}},
    "stop sequences as number": {"stop_sequences": 7},
    "context management as text": {"context_management": PROMPT},
    "a huge temperature": {"temperature": 1e308},
}
"""Shapes that only Claude judges: they are forwarded, as what is unknown today may be good tomorrow."""


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("kind", BAD_JSON)
def test_what_is_no_request_is_refused_by_name(gateway: Gateway, user: User, path: str, kind: str) -> None:
    answer = gateway.call("POST", path, BAD_JSON[kind], key=user.key)
    assert_is_claudes_error(answer, 400)
    if kind not in ("nothing", "a list", "a string", "null"):
        assert answer.error["details"]["error_code"] == "invalid_json", answer


def test_bad_json_is_refused_with_its_position(gateway: Gateway, user: User) -> None:
    answer = gateway.call("POST", "/v1/messages", b'{\n "model": "x",\n oops }', key=user.key)
    assert "line 3, column 2" in answer.error["message"]
    answer = gateway.call("POST", "/v1/messages", b'{"model": "x", "top_p": NaN}', key=user.key)
    assert "character 24" in answer.error["message"]


@pytest.mark.parametrize("kind", BAD_FIELDS)
def test_a_field_that_is_priced_or_bounded_must_be_right(gateway: Gateway, user: User, kind: str) -> None:
    answer = gateway.call("POST", "/v1/messages", body(**BAD_FIELDS[kind]), key=user.key)
    assert_is_claudes_error(answer, 400)
    [field] = BAD_FIELDS[kind]
    assert answer.error["message"].startswith(f"{field}: ")


@pytest.mark.parametrize("path", ["/v1/messages", COUNT])
@pytest.mark.parametrize("kind", ODD_FIELDS)
def test_what_only_claude_can_judge_never_breaks_the_gateway(
    gateway: Gateway, user: User, path: str, kind: str
) -> None:
    answer = gateway.call("POST", path, body(**ODD_FIELDS[kind]), key=user.key)
    assert answer.status in (200, 400), answer
    assert answer.whole
    assert answer.headers["request-id"]


@pytest.mark.parametrize("kind", [*BAD_JSON, *BAD_FIELDS])
def test_a_count_of_what_is_no_request_is_upstreams_to_refuse(gateway: Gateway, kind: str) -> None:
    user = gateway.add_user("pro")
    sent = BAD_JSON[kind] if kind in BAD_JSON else body(**BAD_FIELDS[kind])
    answer = gateway.call("POST", COUNT, sent, key=user.key)
    assert answer.status < 500, answer
    assert answer.headers["request-id"]


@pytest.mark.parametrize(
    ("model", "status"), [("gpt-9", 404), ("claude-haiku-9", 404), ("claude-opus-5-5", 400), ("x" * 10_000, 404)]
)
def test_a_model_one_cannot_have_is_said_so(gateway: Gateway, user: User, model: str, status: int) -> None:
    answer = gateway.call("POST", "/v1/messages", body(model=model), key=user.key)
    assert_is_claudes_error(answer, status)
    assert len(answer.body) < 1_000


@pytest.mark.parametrize("path", [*STREAMS, COUNT])
@pytest.mark.parametrize("size", [4_194_305, 6_400_000])
def test_a_body_too_large_is_told_the_limit(gateway: Gateway, user: User, path: str, size: int) -> None:
    """Above our own limit, and above what Lambda itself takes."""
    filler = PROMPT * (size // len(PROMPT) + 1)
    answer = gateway.call("POST", path, filler[:size].encode(), key=user.key)
    assert answer.status == 413
    assert answer.error["type"] == "request_too_large"
    assert answer.headers["request-id"] == answer.json["request_id"]
    assert re.search(r"\d{7}", answer.error["message"])
    assert_tells_no_secret(answer.body.decode())


def test_a_compressed_body_is_refused_by_name(gateway: Gateway, user: User) -> None:
    headers = {**HEADERS, "content-encoding": "gzip"}
    answer = gateway.call("POST", "/v1/messages", gzip.compress(GOOD), key=user.key, headers=headers)
    assert_is_claudes_error(answer, 400)
    assert answer.error["details"]["error_code"] == "unsupported_encoding"


# ---- credentials


@dataclass(frozen=True, slots=True)
class Credential:
    """A way to show something that is no good."""

    name: str
    headers: dict[str, str]


def bad_credentials(gateway: Gateway, user: User) -> list[Credential]:
    now = datetime.now(UTC)
    access_token, id_token = gateway.tokens(user)
    head, payload, signature = access_token.split(".")
    claims = jwt.decode(access_token, options={"verify_signature": False})
    foreign = UserPool(str(gateway.stack.description["cognito"]["issuer"]), "foreign")
    foreign.key_id = jwt.get_unverified_header(access_token)["kid"]
    stranger = UserPool("https://cognito-idp.us-east-1.amazonaws.com/us-east-1_Stranger", "foreign")
    revoked, expired = gateway.add_key(user, revoked_at=now), gateway.add_key(user, expires_at=now)
    texts = {
        "revoked": revoked,
        "expired key": expired,
        "unknown key": user.key[:-10] + "0000000000",
        "a key cut": user.key[:-1],
        "a key in capitals": user.key.upper(),
        "an Anthropic key": "sk-ant-api03-" + "x" * 90,
        "an ID token": id_token,
        "signed by nobody": f"{head}.{payload}.",
        "signed by another": foreign.sign(claims),
        "HS256": foreign.hmac_signed(claims, b"secret"),
        "alg none": foreign.unsigned(claims),
        "another pool": stranger.sign(claims | {"iss": stranger.issuer}),
        "a cut token": f"{head}.{payload}.{signature[:-20]}",
        "a token of lists": foreign.sign_text("[]"),
        "a token of depths": foreign.sign_text("[" * 5_000),
        "three dots": "a.b.c",
        "only dots": "..",
        "long": "x" * 9_000,
        "very long token": "x" * 30_000 + ".y.z",
        "not ASCII": "tg_test_" + "\xe9" * 36,
        "percent signs": "tg_test_%00%0d%0a",
    }
    found = [Credential(f"{name}, bearer", {"authorization": f"Bearer {text}"}) for name, text in texts.items()]
    found += [Credential(f"{name}, x-api-key", {"x-api-key": text}) for name, text in texts.items()]
    good = user.key
    found += [
        Credential("none", {}),
        Credential("basic", {"authorization": "Basic dXNlcjpwYXNz"}),
        Credential("no scheme", {"authorization": good}),
        Credential("no token", {"authorization": "Bearer"}),
        Credential(
            "an identity header", {"x-user-id": user.id, "x-amzn-oidc-identity": user.id, "x-tenant-id": "main"}
        ),
        Credential("a cookie", {"cookie": f"x-api-key={good}"}),
        Credential("a bad key before a good token", {"x-api-key": "nope", "authorization": f"Bearer {access_token}"}),
    ]
    return found


def test_whoever_is_nobody_gets_in_nowhere(gateway: Gateway, user: User) -> None:
    """Every route that needs somebody, with every credential that is nobody's. The query and the body are not asked."""
    routes = [
        ("POST", "/v1/messages", json.dumps(message(PROMPT, api_key=user.key, user_id=user.id)).encode()),
        ("POST", "/claude/stream", json.dumps({"messages": SAID}).encode()),
        ("POST", COUNT, body(stream=None)),
        ("GET", "/v1/models", None),
        ("GET", f"/v1/models/{MODEL}", None),
        ("GET", "/v1/key", None),
    ]
    credentials = bad_credentials(gateway, user)
    asked = len(gateway.stack.exchanges())
    for number, credential in enumerate(credentials):
        # Each credential at the main route, and at one of the others in turn.
        for method, path, data in (routes[0], routes[1 + number % (len(routes) - 1)]):
            answer = gateway.call(method, f"{path}?api_key={user.key}", data, headers={**HEADERS, **credential.headers})
            assert_is_claudes_error(answer, 401)
    assert len(gateway.stack.exchanges()) == asked


# ---- routes, methods, paths, queries, headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/messages", 405),
        ("DELETE", "/v1/messages", 405),
        ("PUT", "/v1/messages", 405),
        ("PATCH", "/v1/models", 405),
        ("OPTIONS", "/v1/messages", 405),
        ("POST", "/v1/key", 405),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/messages/batches", 404),
        ("POST", "/v1//messages", 404),
        ("POST", "/V1/MESSAGES", 404),
        ("GET", "/.env", 404),
        ("GET", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("GET", "/v1/models/%00%ff%0d%0a", 404),
        ("GET", "/v1/models/" + "x" * 4_000, 404),
        ("GET", "/v1/models?limit=0", 400),
        ("GET", "/v1/models?limit=1001", 400),
        ("GET", "/v1/models?limit=%E0%A5%A7", 400),
        ("GET", "/v1/models?limit=99999999999999999999", 400),
        ("GET", "/v1/models?after_id=nobody", 400),
        ("GET", f"/v1/models?after_id={MODEL}&before_id={MODEL}", 400),
    ],
)
def test_a_wrong_turn_is_told(gateway: Gateway, user: User, method: str, path: str, status: int) -> None:
    answer = gateway.call(method, path, GOOD if method in ("POST", "PUT", "PATCH") else None, key=user.key)
    assert_is_claudes_error(answer, status)


@pytest.mark.parametrize(
    "headers",
    [
        {"anthropic-beta": "caf\xe9"},
        {"anthropic-beta": "x" * 20_000},
        {"anthropic-version": "yesterday"},
        {"content-type": "multipart/form-data"},
        {"content-type": ""},
        {"idempotency-key": "x" * 129},
        {"idempotency-key": "caf\xe9"},
        {"user-agent": f"{IDENTITY}"},
        {"x-claude-code-session-id": "y" * 5_000},
        {"referer": IDENTITY, "x-forwarded-for": IDENTITY, "cookie": IDENTITY},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_odd_headers_never_break_the_gateway(gateway: Gateway, headers: dict[str, str]) -> None:
    user = gateway.add_user("pro")
    for path in ("/v1/messages", COUNT):
        answer = gateway.call("POST", path, GOOD, key=user.key, headers={**HEADERS, **headers})
        assert answer.status in (200, 400), answer
        assert answer.headers["request-id"]


# ---- quota, and upstream's faults


def test_refusals_of_quota_and_plan_tell_no_secret(gateway: Gateway) -> None:
    free, unpaid = gateway.add_user("free"), gateway.add_user("pro", paid=False)
    refused = gateway.send(free, PROMPT * 10_000)
    assert (refused.status, refused.error["type"]) == (429, "billing_error")
    unbounded = gateway.send(free, PROMPT, tools=[{"type": "web_search_20260101", "name": "web_search"}])
    assert_is_claudes_error(unbounded, 400)
    assert_is_claudes_error(gateway.send(unpaid, PROMPT), 402)
    for _ in range(12):
        limited = gateway.send(free, PROMPT)
        assert limited.status in (200, 429)
    assert (limited.status, limited.error["type"]) == (429, "rate_limit_error")
    assert 1 <= int(limited.headers["retry-after"]) <= 60
    for answer in (refused, limited):
        assert answer.json["request_id"] == answer.headers["request-id"]
        assert_tells_no_secret(answer.body.decode())


FAULTS = {
    "error=400": 400,
    "error=401": 503,
    "error=403": 503,
    "error=404": 404,
    "error=429": 529,
    "error=500": 503,
    "error=529": 529,
    "reset=1": 503,
    "error_after=2": 200,
    "truncate_after=2": 200,
    "disconnect_after=2": 200,
    "hidden_input=99999999": 200,
}


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("script", FAULTS)
def test_faults_of_upstream_are_answered_as_documented(gateway: Gateway, script: str, streamed: bool) -> None:
    user = gateway.add_user("pro")
    answer = gateway.send(user, f"{PROMPT} [[fake {script}]]", stream=streamed)
    if streamed or "_after" not in script:
        expected = {FAULTS[script], 400 if "hidden" in script else FAULTS[script]}
    else:
        expected = {503, 529}  # nothing had been passed on yet, so the fault gets a status
    assert answer.status in expected, answer
    assert answer.headers["request-id"]
    if answer.status >= 400:
        assert answer.json["type"] == "error"
        assert_tells_no_secret(answer.body.decode())


# ---- and now: what has been written down?


def use_every_function(gateway: Gateway, user: User) -> None:
    """So that each of them has a log to look into."""
    access_token, id_token = gateway.tokens(user)
    bearer = {"authorization": f"Bearer {access_token}"}
    assert gateway.send(user, PROMPT).status == 200
    assert PROMPT in gateway.send(user, PROMPT, stream=False).body.decode()  # the answer is a canary, too
    assert gateway.call("POST", "/v1/messages", message(PROMPT), headers=bearer).status == 200
    assert gateway.call("POST", "/claude/stream", {"messages": SAID, "system": PROMPT}, key=user.key).status == 200
    for path in ("/auth/me", "/usage/current"):
        assert gateway.call("GET", path, headers=bearer).status == 200
        assert gateway.call("GET", path, headers={"authorization": f"Bearer {access_token[:-9]}"}).status == 401
        # The authorizer takes it for the client's, so the function has to refuse it, and says so in its log.
        assert_is_claudes_error(gateway.call("GET", path, headers={"authorization": f"Bearer {id_token}"}), 401)
    gateway.stack.run_schedules()


def test_no_secret_and_no_prompt_is_in_any_log_or_stored_item(gateway: Gateway, user: User) -> None:
    """Last in this file: looks at what all the others have left, too."""
    use_every_function(gateway, user)
    time.sleep(0.3)  # lines come through a pipe
    remembered = gateway.remembered()
    access_token, _ = gateway.tokens(user)
    canaries = {
        "prompt": PROMPT,
        "identity header": IDENTITY,
        "API key": user.key,
        "API key's secret part": user.key[8:30],
        "upstream key": remembered["fake_upstream_key"],
        "pepper": remembered["pepper"],
        "access token": access_token.split(".")[2],
        "any token": "eyJhbGciOi",
        "any token of another order": "eyJraWQiOi",
        "stack trace": "Traceback (most recent call last)",
    }
    logs = sorted((gateway.stack.base_dir / "logs").glob("*.log"))
    assert {"claude", "auth", "usage", "usage_reset"} <= {path.stem for path in logs}
    texts = {path.name: path.read_text(errors="replace") for path in logs}
    texts["the table"] = json.dumps(gateway.items(), default=sorted)
    texts["the screen"] = gateway.stack.output().partition("Ctrl-C stops everything")[2]
    assert "/v1/messages" in texts["the screen"]
    found = [(where, name) for where, text in texts.items() for name, canary in canaries.items() if canary in text]
    assert not found
    # Nor any other key of ours; their prefix alone is stored as their mode.
    assert not [where for where, text in texts.items() if re.search(r"tg_(test|live)_\w", text)]
