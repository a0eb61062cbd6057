"""Two users and every route of docs/openapi.json: nothing that names the other one reaches them.

Whatever the attacker sends (ids of the victim where ids go, the victim's identity in headers, query and body), not one
byte of the victim's items changes, and not one of their ids or words comes back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dev.gateway import Answer
from tests.support.api_world import ApiWorld, Caller, api_world
from tests.support.sam import ROOT

pytestmark = pytest.mark.slow

DOCUMENT: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
OPERATIONS = [
    (method.upper(), path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
BEHIND_THE_AUTHORIZER = [item for item in OPERATIONS if item[2]["security"]]
WITH_IDS = [item for item in OPERATIONS if "{" in item[1]]
NAMES = [f"{method} {path}" for method, path, _ in OPERATIONS]
IDENTITY_HEADERS = (
    "x-user-id", "x-tenant-id", "x-platform-user-id", "x-sub", "x-amzn-oidc-identity", "x-amzn-oidc-data",
    "x-forwarded-user", "x-authenticated-userid", "x-api-key", "x-amz-user-id", "x-original-user", "cookie",
)  # fmt: skip
TIME_OF_ANSWER = re.compile(rb'"counted_through_at":"[^"]*"')
IDENTITY_FIELDS = (
    "user_id",
    "userId",
    "sub",
    "tenant_id",
    "owner",
    "account_id",
    "plan",
    "paid",
    "principal",
    "claims",
)
NOBODY = "aaaaaaaaaaaa"
EXAMPLES = 60
_NUMBERS = count()


@dataclass(frozen=True)
class Victim:
    """Somebody with something to lose, and all the names there are for it."""

    caller: Caller
    key_ids: tuple[str, ...]
    secrets: tuple[str, ...]
    """What an answer to anybody else must not hold."""

    @property
    def ids(self) -> tuple[str, ...]:
        """What could be put where an id goes."""
        user_id = self.caller.user_id
        paths = (
            f"TENANT#main#USER#{user_id}",
            f"../{user_id}",
            f"{user_id}/..",
            f"{self.key_ids[0]}/",
            self.key_ids[0].lower(),
        )
        return (*self.key_ids, user_id, self.caller.email, *paths)


@pytest.fixture(scope="module")
def world() -> Iterator[ApiWorld]:
    with api_world() as world:
        yield world


@pytest.fixture(scope="module")
def victim(world: ApiWorld) -> Victim:
    eve = world.sign_in("victim@example.com")
    made = [
        json.loads(world.ask("POST", "/api-keys", {"name": f"victims-word-{number}"}, caller=eve).body)
        for number in range(2)
    ]
    assert world.ask("PUT", "/user/profile", {"display_name": "Victims Word"}, caller=eve).status == 200
    apps = {"apps": {"notes": "victims-word-in-preferences"}}
    assert world.ask("PUT", "/user/preferences", apps, caller=eve).status == 200
    words = ("victims-word", "Victims Word", eve.email, eve.user_id, *(key["key"] for key in made))
    key_ids = tuple(key["id"] for key in made)
    return Victim(eve, key_ids, (*words, *key_ids))


def belongings(world: ApiWorld, victim: Victim) -> list[str]:
    """Every item that is the victim's, byte for byte."""
    items = [json.dumps(item, sort_keys=True) for item in world.table.items()]
    found = sorted(
        item for item in items if victim.caller.user_id in item or any(name in item for name in victim.key_ids)
    )
    assert len(found) >= 4, found
    return found


def attacker(world: ApiWorld) -> Caller:
    """Somebody new each time: some requests end an account."""
    return world.signed_in(f"attacker-{next(_NUMBERS)}@example.com")


def send(
    world: ApiWorld,
    operation: tuple[str, str, dict[str, Any]],
    named: str,
    caller: Caller,
    more_fields: dict[str, Any],
    query: str,
    headers: dict[str, str],
) -> Answer:
    """The operation's own example, with this id where one goes."""
    method, path, described = operation
    body = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
    if body is not None:
        # A mailbox that nobody has used, as each may be sent a few mails only.
        fresh = {"email": f"nobody-{next(_NUMBERS)}@example.com"} if "email" in body else {}
        body = body | fresh | more_fields
    for parameter in described.get("parameters", []):
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(named, safe=""))
    return world.ask(method, path + query, body, caller=caller, **headers)


@pytest.mark.parametrize("operation", WITH_IDS, ids=[f"{method} {path}" for method, path, _ in WITH_IDS])
def test_an_id_of_somebody_else_is_like_one_of_nobody(
    world: ApiWorld, victim: Victim, operation: tuple[str, str, dict[str, Any]]
) -> None:
    caller, before = attacker(world), belongings(world, victim)
    nobodys = send(world, operation, NOBODY, caller, {}, "", {})
    assert nobodys.status == 404
    for key_id in victim.key_ids:
        answer = send(world, operation, key_id, caller, {}, "", {})
        assert (answer.status, answer.body) == (404, nobodys.body)
        assert belongings(world, victim) == before
    for other in set(victim.ids) - set(victim.key_ids):
        assert send(world, operation, other, caller, {}, "", {}).status in (400, 404), other
        assert belongings(world, victim) == before


def test_the_owner_reaches_what_nobody_else_does(world: ApiWorld) -> None:
    """The requests above are refused for who sent them, not for what they are."""
    owner = attacker(world)
    made = json.loads(world.ask("POST", "/api-keys", {"name": "mine"}, caller=owner).body)
    for operation in sorted(WITH_IDS, key=lambda item: item[0] == "DELETE"):
        assert send(world, operation, made["id"], owner, {}, "", {}).status in (200, 204), operation[:2]


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],  # a request is short as it is; making it shorter takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_request_of_one_user_changes_or_shows_anything_of_another(
    world: ApiWorld, victim: Victim, data: st.DataObject
) -> None:
    operation = data.draw(st.sampled_from(OPERATIONS))
    ids = st.sampled_from(victim.ids)
    names = st.lists(st.sampled_from(IDENTITY_HEADERS), unique=True, max_size=4)
    headers = {name.replace("-", "_"): data.draw(ids) for name in data.draw(names)}
    fields = {
        name: data.draw(ids) for name in data.draw(st.lists(st.sampled_from(IDENTITY_FIELDS), unique=True, max_size=2))
    }
    queries = data.draw(st.lists(st.sampled_from((*IDENTITY_FIELDS, "after_id", "key_id")), unique=True, max_size=2))
    query = "?" + "&".join(f"{name}={quote(data.draw(ids))}" for name in queries)
    caller, before = attacker(world), belongings(world, victim)
    answer = send(world, operation, data.draw(ids), caller, fields, query if queries else "", headers)
    assert answer.status < 500
    assert belongings(world, victim) == before
    for secret in victim.secrets:
        assert secret.encode() not in answer.body


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_spoofed_identity_changes_no_answer(
    world: ApiWorld, victim: Victim, operation: tuple[str, str, dict[str, Any]]
) -> None:
    """Every header and query parameter at once. Where all parameters are known, and in a body, what nobody knows is
    refused by its name.
    """
    method, path, described = operation
    user_id = victim.caller.user_id
    headers = {name.replace("-", "_"): user_id for name in IDENTITY_HEADERS}
    query = "?" + "&".join(f"{name}={user_id}" for name in IDENTITY_FIELDS)
    before = belongings(world, victim)
    one, two = attacker(world), attacker(world)
    plain = send(world, operation, NOBODY, one, {}, "", {})
    spoofed = send(world, operation, NOBODY, one if method == "GET" else two, {}, query, headers)
    if path.startswith("/usage/"):
        named = any(f"query.{name}".encode() in spoofed.body for name in IDENTITY_FIELDS)
        assert (spoofed.status, named) == (400, True), spoofed.body
        spoofed = send(world, operation, NOBODY, one, {}, "", headers)
    assert spoofed.status == plain.status
    if method == "GET":
        assert TIME_OF_ANSWER.sub(b"", spoofed.body) == TIME_OF_ANSWER.sub(b"", plain.body)
    if "requestBody" in described:
        refused = send(world, operation, NOBODY, two, {"user_id": user_id}, "", {})
        assert refused.status == 400 if path != "/user/preferences" else refused.status in (200, 400)
    assert belongings(world, victim) == before


@pytest.mark.parametrize("operation", BEHIND_THE_AUTHORIZER, ids=lambda item: f"{item[0]} {item[1]}")
def test_without_a_token_no_header_opens_a_route(
    world: ApiWorld, victim: Victim, operation: tuple[str, str, dict[str, Any]]
) -> None:
    method, path, _ = operation
    headers = {name.replace("-", "_"): victim.caller.user_id for name in IDENTITY_HEADERS}
    answer = world.ask(method, path.replace("{key_id}", victim.key_ids[0]), {}, caller=None, **headers)
    assert answer.status == 401
