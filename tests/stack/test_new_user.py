"""A new user's whole life, from the first request to the last, through sockets. Nothing is prepared for them."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest

from tests.support.stack import RunningStack, running_stack

pytestmark = pytest.mark.stack

EMAIL = "ada@example.com"
STRANGERS_PASSWORD = "chosen-Before-1842"
PASSWORD = "analytical-Engine-1843"
MODEL = "claude-haiku-5-5"
OVERLAP_SECONDS = 5


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    raw: bytes

    @property
    def code(self) -> str:
        """The one word for a refusal; API Gateway's own have none."""
        return str(self.body.get("error", {}).get("details", {}).get("error_code", ""))


@dataclass(frozen=True)
class Person:
    """Somebody with an HTTP client."""

    stack: RunningStack

    def ask(self, method: str, path: str, body: object = None, *, token: str = "", key: str = "") -> Answer:
        headers = {"content-type": "application/json"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        if key:
            headers |= {"x-api-key": key, "anthropic-version": "2023-06-01"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.stack.gateway_url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return _answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.read())

    def stream(self, key: str) -> Answer:
        """One streamed message."""
        body = {
            "model": MODEL,
            "max_tokens": 64,
            "stream": True,
            "messages": [{"role": "user", "content": "Hello"}],
        }
        return self.ask("POST", "/v1/messages", body, key=key)

    def newest_code(self) -> str:
        return self.stack.mails(EMAIL)[0]["code"]


def _answer(status: int, raw: bytes) -> Answer:
    try:
        return Answer(status, json.loads(raw or b"{}"), raw)
    except ValueError:
        return Answer(status, {}, raw)


def test_a_new_user_from_registration_to_deletion(stack: RunningStack) -> None:
    person = Person(stack)
    signed_in = _gets_in(person)
    token = signed_in["access_token"]

    made = person.ask("POST", "/api-keys", {"name": "laptop"}, token=token)
    assert made.status == 201
    key = made.body["key"]
    streamed = person.stream(key)
    assert streamed.status == 200
    assert streamed.raw.endswith(b'data: {"type":"message_stop"}\n\n')
    usage = person.ask("GET", "/usage/current", token=token)
    assert usage.body["tokens"]["used"] > 0
    assert usage.body["requests"]["used"] == 1

    new_key = _rotates(person, token, made.body["id"], key)
    _leaves(person, token, signed_in["refresh_token"], new_key)


def _gets_in(person: Person) -> dict[str, Any]:
    """Registers, confirms and signs in, where a stranger was first; what the sign-in answered."""
    form = {"email": EMAIL, "password": PASSWORD}
    stranger = {"email": EMAIL, "password": STRANGERS_PASSWORD}
    assert person.ask("POST", "/auth/register", stranger).status == 202
    refused = person.ask("POST", "/auth/login", form)
    assert refused.status == 401
    assert person.ask("POST", "/auth/register", form).status == 202
    assert person.ask("POST", "/auth/login", form).body["error"] == refused.body["error"]
    code = person.newest_code()
    assert f"Your confirmation code is {code}" in person.stack.output()
    wrong = person.ask("POST", "/auth/confirm", form | {"code": f"{(int(code) + 1) % 1_000_000:06}"})
    assert (wrong.status, wrong.code) == (400, "invalid_code")
    assert person.ask("POST", "/auth/login", form).status == 401
    assert person.ask("POST", "/auth/confirm", form | {"code": code}).status == 200
    assert person.ask("POST", "/auth/login", stranger).status == 401
    signed_in = person.ask("POST", "/auth/login", form)
    assert signed_in.status == 200
    assert signed_in.body["plan"]["id"] == "free"
    assert signed_in.body["usage"]["tokens"]["used"] == 0
    return dict(signed_in.body)


def _rotates(person: Person, token: str, key_id: str, key: str) -> str:
    """The new key works at once; the old one to the end of the overlap and no longer."""
    rotated = person.ask("POST", f"/api-keys/{key_id}/rotate", {"overlap_seconds": OVERLAP_SECONDS}, token=token)
    assert rotated.status in (200, 201)
    new_key = str(rotated.body["key"])
    ends_at = time.monotonic() + OVERLAP_SECONDS
    # A process that has seen the old key remembers it as it was for up to a minute; these here are new ones.
    person.stack.recycle()
    assert person.stream(new_key).status == 200
    assert person.stream(key).status == 200
    time.sleep(max(0.0, ends_at - time.monotonic()) + 1)
    old = person.stream(key)
    assert (old.status, old.code) == (401, "expired")
    assert person.stream(new_key).status == 200
    return new_key


def _leaves(person: Person, token: str, refresh_token: str, key: str) -> None:
    """After that nobody is left: not for the token, which is still good for an hour, and not for the key."""
    assert person.ask("DELETE", "/auth/me", token=token).status == 204
    # As above; and accounts are remembered like keys.
    person.stack.recycle()
    assert person.stream(key).status == 401
    for method, path in (
        ("GET", "/auth/me"),
        ("GET", "/usage/current"),
        ("GET", "/api-keys"),
        ("GET", "/user/profile"),
    ):
        assert person.ask(method, path, token=token).status == 401, path
    assert person.ask("POST", "/api-keys", {"name": "again"}, token=token).status == 401
    assert person.ask("POST", "/auth/refresh", {"refresh_token": refresh_token}).status == 401
    assert person.ask("POST", "/auth/login", {"email": EMAIL, "password": PASSWORD}).status == 401
    items = json.dumps(_items(person.stack))
    assert EMAIL not in items


def _items(stack: RunningStack) -> list[Any]:
    """Everything in the table."""
    session = boto3.session.Session("local", "local", region_name="us-east-1")
    table = stack.description["dynamodb"]
    client = session.client("dynamodb", endpoint_url=table["endpoint_url"])
    pages = client.get_paginator("scan").paginate(TableName=table["table"])
    return [item for page in pages for item in page["Items"]]
