"""The other doors of the gateway: the simple form, browsers, probes, and the HTTP API behind its authorizer."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.contract.test_sdk import PICTURE_TOKENS, png
from tests.support.gateway import MODEL, Answer, Gateway, User, message
from tests.support.user_pool import private_key

pytestmark = pytest.mark.stack

HELLO = [{"role": "user", "content": "Hello"}]


# ---- POST /claude/stream


def stream(gateway: Gateway, user: User, **form: Any) -> Answer:  # noqa: ANN401  any JSON
    return gateway.call("POST", "/claude/stream", form, key=user.key)


@pytest.mark.parametrize("chunks", ["", "chunk_bytes=1", "chunk_bytes=65536"])
def test_the_simple_form_streams_claudes_own_events_and_then_what_they_cost(gateway: Gateway, chunks: str) -> None:
    user = gateway.add_user("pro")
    said = [{"role": "user", "content": f"Hello [[fake {chunks}]]"}]
    answer = stream(gateway, user, messages=said, model=MODEL, max_tokens=64, system="Be brief.")
    sent = gateway.sent_by_claude(answer)
    assert answer.body.startswith(sent)
    assert sent.endswith(b'data: {"type":"message_stop"}\n\n')
    name, usage = answer.events[-1]
    final = next(document for name, document in answer.events if name == "message_delta")["usage"]
    assert (name, usage["outcome"], usage["estimated"]) == ("usage", "complete", False)
    assert usage["usage"] == {name: final[name] for name in usage["usage"]}
    standing = gateway.standing(user)
    assert usage["charged_tokens"] == usage["period"]["used"] == standing["usage"]
    assert usage["period"]["remaining"] == standing["limit_remaining"]
    assert usage["resets_at"] == standing["resets_at"]


def test_the_simple_form_takes_an_image(gateway: Gateway) -> None:
    answer = stream(gateway, gateway.add_user("free"), messages=HELLO, image=png(300, 150))
    text = "".join(doc["delta"]["text"] for name, doc in answer.events if name == "content_block_delta")
    assert "shown 1 image" in text
    assert answer.events[-1][1]["usage"]["input_tokens"] > PICTURE_TOKENS


def test_the_simple_form_tells_what_a_broken_answer_cost(gateway: Gateway) -> None:
    user = gateway.add_user("pro")
    answer = stream(gateway, user, messages=[{"role": "user", "content": "[[fake truncate_after=3]]"}])
    (error, _), (name, usage) = answer.events[-2:]
    assert (error, name, usage["outcome"], usage["estimated"]) == ("error", "usage", "truncated", True)
    assert usage["charged_tokens"] == gateway.standing(user)["usage"] > 0


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": HELLO, "temperature": 1}, "temperature"),
        ({"messages": HELLO, "image": "no base64!"}, "image"),
        ({"messages": HELLO, "image": base64.b64encode(b"plain text").decode()}, "image"),
        ({"messages": HELLO, "system": 7}, "system"),
        ({"messages": HELLO, "max_tokens": "64"}, "max_tokens"),
        ({"messages": [{"role": "owner", "content": "Hello"}]}, "messages.0"),
    ],
)
def test_the_simple_form_names_what_is_wrong(gateway: Gateway, form: dict[str, Any], named: str) -> None:
    user = gateway.add_user("pro")
    answer = stream(gateway, user, **form)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert answer.error["message"].startswith(named)
    assert gateway.standing(user)["usage"] == 0


# ---- browsers

BROWSER_HEADERS = (
    "authorization,content-type,anthropic-version,anthropic-dangerous-direct-browser-access,x-stainless-arch,"
    "x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)
"""What Anthropic's TypeScript client asks for in a browser."""


@pytest.mark.parametrize(
    ("path", "method"), [("/v1/messages", "POST"), ("/claude/stream", "POST"), ("/usage/current", "GET")]
)
def test_a_browser_may_call_after_asking(gateway: Gateway, path: str, method: str) -> None:
    wanted = BROWSER_HEADERS if method == "POST" else "authorization"
    asking = {
        "origin": "https://app.example.com",
        "access-control-request-method": method,
        "access-control-request-headers": wanted,
    }
    answer = gateway.call("OPTIONS", path, headers=asking)
    assert answer.status in (200, 204)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert method in answer.headers["access-control-allow-methods"].split(",")
    assert set(wanted.split(",")) <= set(answer.headers["access-control-allow-headers"].lower().split(","))
    assert int(answer.headers["access-control-max-age"]) > 0
    assert "access-control-allow-credentials" not in answer.headers


def test_a_browser_can_read_the_request_id_and_the_limits(gateway: Gateway) -> None:
    user = gateway.add_user("pro")
    answer = gateway.call(
        "POST", "/v1/messages", message(), key=user.key, headers={"origin": "https://app.example.com"}
    )
    exposed = set(answer.headers["access-control-expose-headers"].split(","))
    told = {name for name in answer.headers if name.startswith(("anthropic-", "ratelimit", "x-upstream", "request-id"))}
    assert "request-id" in told
    assert told <= exposed
    assert answer.headers["access-control-allow-origin"] == "*"


def test_a_method_that_is_not_allowed_across_origins_gets_no_permission(gateway: Gateway) -> None:
    asking = {"origin": "https://app.example.com", "access-control-request-method": "DELETE"}
    answer = gateway.call("OPTIONS", "/v1/messages", headers=asking)
    assert not [name for name in answer.headers if name.startswith("access-control-")]


# ---- probes


@pytest.mark.parametrize("path", ["/api/hello", "/"])
def test_a_probe_needs_no_credential(gateway: Gateway, path: str) -> None:
    head = gateway.call("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["request-id"]
    assert gateway.call("GET", path).json == {"message": "hello"}


def test_health_needs_no_credential_and_tells_nothing(gateway: Gateway) -> None:
    assert gateway.call("GET", "/health").json == {"status": "ok"}


# ---- access tokens: the HTTP API behind its JWT authorizer, and the data plane, which checks by itself


@pytest.fixture(scope="module")
def member(gateway: Gateway) -> User:
    return gateway.add_user("pro", sign_in=True)


@pytest.fixture(scope="module")
def tokens(gateway: Gateway, member: User) -> dict[str, str]:
    """Tokens that must not be accepted, by what is wrong with them; the pool's own key signs some of them."""
    access_token, id_token = gateway.tokens(member)
    head, payload, signature = access_token.split(".")
    kid = jwt.get_unverified_header(access_token)["kid"]
    claims = jwt.decode(access_token, options={"verify_signature": False})
    pool_key = load_pem_private_key(pool_key_file(gateway).read_bytes(), None)
    assert isinstance(pool_key, rsa.RSAPrivateKey)

    def signed(key: rsa.RSAPrivateKey = pool_key, **changes: object) -> str:
        return jwt.encode(claims | changes, key, "RS256", {"kid": kid})

    assert status_at(gateway, "/auth/me", signed()) == 200  # the forger's tools are sharp
    tampered = base64.urlsafe_b64encode(json.dumps(claims | {"sub": "somebody-else"}).encode()).rstrip(b"=").decode()
    none = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": kid}).encode()).rstrip(b"=").decode()
    return {
        "an ID token": id_token,
        "changed claims": f"{head}.{tampered}.{signature}",
        "no signature": f"{none}.{payload}.",
        "a cut signature": access_token[:-8],
        "signed by somebody else": signed(private_key("forger")),
        "another issuer": signed(iss="https://cognito-idp.us-east-1.amazonaws.com/us-east-1_Foreign"),
        "another client": signed(client_id="another-client"),
        "expired": signed(exp=int(time.time()) - 3600, iat=int(time.time()) - 7200),
        "no token at all": "three.dotted.parts",
        "far too long": "a" * 9000 + ".b.c",
    }


def pool_key_file(gateway: Gateway) -> Path:
    """Where the local Cognito keeps the key that signs this pool's access tokens."""
    return next((gateway.stack.base_dir / "state" / "ministack").rglob(f"{gateway.pool_id}-access.pem"))


FORGERIES = (
    "an ID token",
    "changed claims",
    "no signature",
    "a cut signature",
    "signed by somebody else",
    "another issuer",
    "another client",
    "expired",
    "no token at all",
    "far too long",
)


def status_at(gateway: Gateway, path: str, token: str) -> int:
    return gateway.call("GET", path, headers={"authorization": f"Bearer {token}"}).status


def test_an_access_token_tells_who_and_what_is_used(gateway: Gateway, member: User) -> None:
    access_token, _ = gateway.tokens(member)
    bearer = {"authorization": f"Bearer {access_token}"}
    used = gateway.call("POST", "/v1/messages", message(), headers=bearer)
    assert used.status == 200
    me = gateway.call("GET", "/auth/me", headers=bearer)
    assert me.status == 200
    assert me.json["user"] == {"id": member.id, "tenant_id": "main", "email": member.email}
    assert (me.json["plan"]["id"], me.json["paid"]) == ("pro", True)
    assert me.json["credential"]["kind"] == "access_token"
    current = gateway.call("GET", "/usage/current", headers=bearer)
    standing = gateway.standing(member)
    assert current.json["tokens"]["used"] == standing["usage"] > 0
    assert current.json["tokens"]["remaining"] == standing["limit_remaining"]
    assert current.json["resets_at"] == standing["resets_at"]
    for answer in (me, current):
        assert answer.headers["request-id"]
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/auth/me", "/usage/current"])
def test_without_a_token_the_http_api_is_closed(gateway: Gateway, member: User, path: str) -> None:
    """An API key is for the data plane only; identity headers of a caller's own making count nowhere."""
    assert gateway.call("GET", path).status == 401
    assert gateway.call("GET", path, key=member.key).status == 401
    assert gateway.call("GET", path, headers={"authorization": f"Bearer {member.key}"}).status == 401
    assert gateway.call("GET", path, headers={"x-user-id": member.id, "x-amzn-oidc-identity": member.id}).status == 401


@pytest.mark.parametrize("path", ["/auth/me", "/usage/current", "/v1/models", "/v1/key"])
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_token_that_is_no_good_opens_nothing(
    gateway: Gateway, tokens: dict[str, str], forgery: str, path: str
) -> None:
    assert tokens.keys() == set(FORGERIES)
    assert status_at(gateway, path, tokens[forgery]) == 401


@pytest.mark.parametrize("forgery", FORGERIES)
def test_the_data_plane_refuses_it_in_claudes_envelope(
    gateway: Gateway, tokens: dict[str, str], member: User, forgery: str
) -> None:
    before = gateway.standing(member)["usage"]
    bearer = {"authorization": f"Bearer {tokens[forgery]}"}
    answer = gateway.call("POST", "/v1/messages", message(), headers=bearer)
    assert (answer.status, answer.error["type"]) == (401, "authentication_error")
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json["request_id"] == answer.headers["request-id"]
    assert tokens[forgery] not in answer.body.decode()
    assert gateway.standing(member)["usage"] == before


def test_a_key_beside_a_token_wins(gateway: Gateway, member: User) -> None:
    """`x-api-key` first, as Claude's API does; and a bad one is not made good by what stands beside it."""
    access_token, _ = gateway.tokens(member)
    other = gateway.add_user("free")
    bearer = {"authorization": f"Bearer {access_token}"}
    assert gateway.call("GET", "/v1/key", key=other.key, headers=bearer).json["data"]["plan"]["id"] == "free"
    assert gateway.call("GET", "/v1/key", key="tg_test_" + "0" * 36, headers=bearer).status == 401
