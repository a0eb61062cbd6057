"""functions/api_keys, from API Gateway's event to the answer; what the keys open is asked of the real authenticator."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.clocks import FakeClock
from tests.support.http_events import claims_of, http_event
from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import NAME, REGION, CountedTable, aws_session, moto_table
from tests.support.user_pool import CLIENT_ID, ISSUER
from tollgate import catalog
from tollgate.catalog.loader import load_catalog
from tollgate.domain.api_keys import KeyMode, is_well_formed, mint_api_key
from tollgate.domain.errors import AuthenticationError
from tollgate.domain.ledger import Ask, MeterKey
from tollgate.domain.periods import period_at
from tollgate.domain.principals import Account, Principal, Profile
from tollgate.edge.errors import rfc3339
from tollgate.flows.authenticate import Authenticator
from tollgate.flows.ledger import Ledger
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.meters import Meters
from tollgate.storage.users import Users
from tollgate.wiring import SystemClock, SystemIds

PEPPER = "pepper-of-the-tests"
ENVIRONMENT = {
    "STAGE": "test",
    "TABLE_NAME": NAME,
    "COGNITO_ISSUER": ISSUER,
    "COGNITO_CLIENT_IDS": CLIENT_ID,
    "KEY_PEPPER_PARAMETER": "/tollgate/test/key-pepper",
    "ALLOW_TEST_KEYS": "false",
}
CONTEXT = LambdaContext()
ADA, EVE = "ada", "eve"
LATER = datetime(2126, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any
    raw: str

    @property
    def code(self) -> str:
        code: str = self.body["error"]["details"]["error_code"]
        return code


class KeysFunction:
    """One container of the function; `ask` is a request of one of its users."""

    def __init__(self, table: CountedTable) -> None:
        self.table = table
        self.keys = ApiKeys(table)

    def ask(
        self,
        method: str,
        path: str = "/api-keys",
        body: object = None,
        *,
        user: str | None = ADA,
        query: dict[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        changes: dict[str, Any] = {} if body is None else {"body": json.dumps(body)}
        if query:
            changes["queryStringParameters"] = query
            changes["rawQueryString"] = "&".join(f"{name}={value}" for name, value in query.items())
        event = http_event(method, path, None if user is None else claims_of(user), **changes)
        event["headers"]["content-type"] = "application/json"
        if idempotency_key is not None:
            event["headers"]["idempotency-key"] = idempotency_key
        answer = importlib.import_module("functions.api_keys.app").handler(event, CONTEXT)
        headers = {name.lower(): value for name, value in answer["headers"].items()}
        raw = answer.get("body") or ""
        return Answer(answer["statusCode"], headers, json.loads(raw) if raw else None, raw)

    def make(self, *, user: str = ADA, **fields: Any) -> Any:  # noqa: ANN401  any JSON
        answer = self.ask("POST", body={"name": "laptop"} | fields, user=user)
        assert answer.status == 201, answer.raw
        return answer.body

    def put_on(self, plan_id: str, *users: str) -> None:
        for user in users or (ADA,):
            Users(self.table).create_profile(Profile("main", user, plan_id, 1, datetime(2026, 11, 1, tzinfo=UTC)))

    def principal_of(self, text: str, *, after_seconds: float = 0) -> Principal:
        """Who the data plane takes the bearer of this key for, in a process that has seen no key yet."""
        clock = FakeClock(SystemClock().now_seconds() + after_seconds)
        door = Authenticator(self.keys, cast("Any", None), PEPPER.encode, clock, allow_test_keys=False)
        return door.principal_of({"x-api-key": text})

    def refusal_of(self, text: str, *, after_seconds: float = 0) -> str:
        with pytest.raises(AuthenticationError) as refused:
            self.principal_of(text, after_seconds=after_seconds)
        return refused.value.error_code


@pytest.fixture
def function(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeysFunction]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "functions.api_keys.app", raising=False)
    with moto_table(monkeypatch) as table:
        ssm: Any = aws_session().create_client("ssm", region_name=REGION)
        ssm.put_parameter(Name=ENVIRONMENT["KEY_PEPPER_PARAMETER"], Value=PEPPER, Type="SecureString")
        ssm.close()
        function = KeysFunction(table)
        function.put_on("pro", ADA, EVE)
        yield function


# --- Making


def test_a_new_key_is_shown_once_and_opens_the_data_plane(function: KeysFunction) -> None:
    made = function.make(name="ci")
    assert is_well_formed(made["key"])
    assert made["key"].startswith("tg_live_")
    assert (made["prefix"], made["last_four"]) == ("tg_live_", made["key"][-4:])
    assert (made["name"], made["state"], made["mode"]) == ("ci", "active", "live")
    assert function.principal_of(made["key"]).user_id == ADA
    shown = function.ask("GET", f"/api-keys/{made['id']}")
    assert shown.body == {name: value for name, value in made.items() if name != "key"}
    stored = json.dumps(function.table.items())
    assert made["key"] not in stored + shown.raw + function.ask("GET").raw


def test_a_key_carries_what_was_asked_for(function: KeysFunction) -> None:
    wish: dict[str, Any] = {
        "name": "n8n",
        "expires_at": "2030-01-02T03:04:05Z",
        "allowed_models": ["claude-haiku-4-5-20251001"],
        "rate_limit": {"requests_per_minute": 30, "burst": 3},
        "budget_tokens": 5_000,
        "max_tokens_policy": "refuse",
    }
    made = function.make(**wish)
    assert {name: made[name] for name in wish} == wish | {"allowed_models": ["claude-haiku-4-5"]}
    principal = function.principal_of(made["key"])
    assert principal.allowed_models == {"claude-haiku-4-5"}
    limits = principal.limits
    assert limits is not None
    assert (limits.id, limits.budget_tokens, limits.requests_per_minute, limits.burst_requests) == (
        made["id"],
        5_000,
        30,
        3,
    )


def test_a_key_without_limits_of_its_own_has_none(function: KeysFunction) -> None:
    assert function.principal_of(function.make()["key"]).limits is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": " "}, "name"),
        ({"name": "x" * 81}, "name"),
        ({"name": "line\nbreak"}, "name"),
        ({"name": 7}, "name"),
        ({"mode": "root"}, "mode"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2030-02-30T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"allowed_models": []}, "allowed_models"),
        ({"allowed_models": ["gpt-4"]}, "allowed_models"),
        ({"budget_tokens": 0}, "budget_tokens"),
        ({"budget_tokens": 1.5}, "budget_tokens"),
        ({"budget_tokens": True}, "budget_tokens"),
        ({"rate_limit": {"burst": 5}}, "rate_limit.requests_per_minute"),
        ({"rate_limit": {"requests_per_minute": 0}}, "rate_limit.requests_per_minute"),
        ({"user_id": EVE}, "user_id"),
        ({"tenant_id": "acme"}, "tenant_id"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_by_name_and_makes_nothing(
    function: KeysFunction, fields: dict[str, object], field: str
) -> None:
    answer = function.ask("POST", body={"name": "laptop"} | fields)
    assert answer.status == 400
    assert answer.body["error"]["message"].startswith(f"{field}:"), answer.raw
    assert [item for item in function.table.items() if item["Type"]["S"].startswith("ApiKey")] == []


@pytest.mark.parametrize(
    "sent", ["2030-13-45T00:00:00Z", "2030-01-01T77:00:00Z", "\u0662\u0660\u0663\u0660-01-01T00:00:00Z"]
)
def test_an_instant_that_is_none_is_not_repeated(function: KeysFunction, sent: str) -> None:
    """A refusal says what is wrong, and never what was sent."""
    answer = function.ask("POST", body={"name": "laptop", "expires_at": sent})
    assert (answer.status, answer.body["error"]["message"]) == (400, "expires_at: no such instant")


def test_a_key_that_ends_in_a_second_is_still_one(function: KeysFunction) -> None:
    soon = rfc3339(datetime.now(UTC) + timedelta(seconds=3))
    made = function.make(expires_at=soon)
    assert function.principal_of(made["key"]).user_id == ADA
    assert function.refusal_of(made["key"], after_seconds=5) == "expired"


def test_test_keys_are_made_only_where_they_are_accepted(
    function: KeysFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = function.ask("POST", body={"name": "t", "mode": "test"})
    assert (refused.status, refused.code) == (400, "invalid_field")
    monkeypatch.setenv("ALLOW_TEST_KEYS", "true")
    monkeypatch.delitem(sys.modules, "functions.api_keys.app")
    made = function.make(mode="test")
    assert made["key"].startswith("tg_test_")
    assert function.refusal_of(made["key"]) == "invalid_credentials", "the data plane of a stage without test keys"


# --- How many


@pytest.mark.parametrize("plan_id", ["free", "pro"])
def test_a_plan_allows_so_many_keys_and_a_dead_one_makes_room(function: KeysFunction, plan_id: str) -> None:
    user = f"user-{plan_id}"
    function.put_on(plan_id, user)
    most = load_catalog("default").plan(plan_id).max_api_keys
    made = [function.make(user=user, name=f"k{number}") for number in range(most)]
    refused = function.ask("POST", body={"name": "one more"}, user=user)
    assert (refused.status, refused.code) == (403, "api_key_limit_reached")
    assert str(most) in refused.body["error"]["message"]
    assert function.ask("DELETE", f"/api-keys/{made[0]['id']}", user=user).status == 204
    function.make(user=user)
    assert function.ask("POST", body={"name": "one more"}, user=user).status == 403


def test_an_expired_key_gives_its_place_back_when_it_is_needed(function: KeysFunction) -> None:
    """Nothing happens at the instant of expiry; the next one who needs the place looks."""
    function.put_on("free", "vic")
    first, second = (function.make(user="vic", name=name) for name in ("a", "b"))
    function.table.client.update_item(
        TableName=NAME,
        Key=key_item(function, first["key"]),
        UpdateExpression="SET key_expires_at = :past",
        ExpressionAttributeValues={":past": {"N": "1700000000"}},
    )
    function.make(user="vic")
    assert function.ask("POST", body={"name": "d"}, user="vic").status == 403
    assert function.principal_of(second["key"]).user_id == "vic"


def key_item(function: KeysFunction, text: str) -> dict[str, Any]:
    [item] = [
        item for item in function.table.items() if item["Type"]["S"] == "ApiKey" and item["last_four"]["S"] == text[-4:]
    ]
    return {name: item[name] for name in ("PK", "SK")}


def test_a_plan_without_keys_makes_none(
    function: KeysFunction, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = (Path(catalog.__file__).parent / "plans.toml").read_text()
    (tmp_path / "plans.toml").write_text(re.sub(r"max_api_keys = \d+", "max_api_keys = 0", shipped))
    monkeypatch.setenv("CATALOG", str(tmp_path))
    refused = function.ask("POST", body={"name": "laptop"})
    assert (refused.status, refused.code) == (403, "api_keys_not_in_plan")


def test_a_rotated_key_takes_no_second_place(function: KeysFunction) -> None:
    function.put_on("free", "vic")
    made = [function.make(user="vic", name=name) for name in ("a", "b")]
    rotated = function.ask("POST", f"/api-keys/{made[0]['id']}/rotate", {}, user="vic")
    assert rotated.status == 200
    assert function.ask("POST", body={"name": "c"}, user="vic").status == 403
    function.ask("DELETE", f"/api-keys/{rotated.body['id']}", user="vic")
    assert function.principal_of(made[0]["key"]).user_id == "vic", "the old one lives out its overlap"
    assert function.ask("POST", body={"name": "d"}, user="vic").status == 403, "and its place with it"
    function.ask("DELETE", f"/api-keys/{made[0]['id']}", user="vic")
    function.make(user="vic")


# --- Once


def test_under_one_idempotency_key_one_key_is_made(function: KeysFunction) -> None:
    """The answer may have been lost; the text cannot be shown again, so the repetition says which key it was."""
    made = function.ask("POST", body={"name": "ci"}, idempotency_key="order-66")
    again = function.ask("POST", body={"name": "ci"}, idempotency_key="order-66")
    assert (made.status, again.status, again.code) == (201, 409, "duplicate_request")
    assert made.body["id"] in again.body["error"]["message"]
    assert again.headers["x-should-retry"] == "false"
    other = function.ask("POST", body={"name": "another"}, idempotency_key="order-66")
    assert (other.status, other.code) == (422, "idempotency_key_reused")
    assert function.ask("POST", body={"name": "ci"}, idempotency_key="order-66", user=EVE).status == 201
    assert len(function.ask("GET").body["data"]) == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [("", 400), ("a", 201), ("a,b", 201), ("x" * 128, 201), ("x" * 129, 400), ("two words", 400), ("caf\xe9", 400)],
)
def test_an_idempotency_key_is_short_and_plain(function: KeysFunction, sent: str, status: int) -> None:
    answer = function.ask("POST", body={"name": "ci"}, idempotency_key=sent)
    assert answer.status == status
    if status == 400:
        assert answer.code == "invalid_field"
        assert answer.body["error"]["message"].startswith("header.idempotency-key:")
    else:
        assert function.ask("POST", body={"name": "ci"}, idempotency_key=sent).code == "duplicate_request"


def test_idempotency_keys_that_begin_alike_are_two(function: KeysFunction) -> None:
    """A comma separates nothing here, though it separates the values of other headers."""
    assert function.ask("POST", body={"name": "ci"}, idempotency_key="order,1").status == 201
    assert function.ask("POST", body={"name": "ci"}, idempotency_key="order,2").status == 201


def test_a_refused_creation_does_not_use_up_its_idempotency_key(function: KeysFunction) -> None:
    function.put_on("free", "vic")
    made = [function.make(user="vic", name=name) for name in ("a", "b")]
    assert function.ask("POST", body={"name": "c"}, user="vic", idempotency_key="i").status == 403
    function.ask("DELETE", f"/api-keys/{made[0]['id']}", user="vic")
    assert function.ask("POST", body={"name": "c"}, user="vic", idempotency_key="i").status == 201


# --- Looking


def test_keys_are_listed_newest_first_and_page_by_page(function: KeysFunction) -> None:
    names = [f"key {number}" for number in range(5)]
    made = {function.make(name=name)["id"] for name in names}
    function.make(user=EVE, name="not Ada's")
    seen: list[str] = []
    after: str | None = None
    while True:
        page = function.ask("GET", query={"limit": "2"} | ({"after_id": after} if after else {})).body
        assert len(page["data"]) <= 2
        assert page["last_id"] == page["data"][-1]["id"]
        seen += [key["id"] for key in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == sorted(made, reverse=True)
    assert len(seen) == 5


def test_a_page_without_a_living_key_says_where_the_next_one_begins(function: KeysFunction) -> None:
    """The table forgets dead keys after 90 days, and now and then a key before its entry in the list."""
    made = [function.make(name=f"key {number}") for number in range(4)]
    for each in sorted(made, key=lambda key: str(key["id"]))[1:]:
        function.table.client.delete_item(TableName=NAME, Key=key_item(function, each["key"]))
    first = function.ask("GET", query={"limit": "2"}).body
    assert (first["data"], first["has_more"]) == ([], True)
    second = function.ask("GET", query={"limit": "2", "after_id": first["last_id"]}).body
    assert [key["id"] for key in second["data"]] == [min(key["id"] for key in made)]
    assert not second["has_more"]


@pytest.mark.parametrize(("limit", "status"), [("0", 400), ("1", 200), ("100", 200), ("101", 400), ("x", 400)])
def test_a_page_holds_one_to_a_hundred_keys(function: KeysFunction, limit: str, status: int) -> None:
    assert function.ask("GET", query={"limit": limit}).status == status


def test_who_has_no_key_gets_an_empty_page(function: KeysFunction) -> None:
    assert function.ask("GET").body == {"data": [], "has_more": False, "last_id": None}


# --- Changing


def test_a_key_is_renamed_and_its_limits_changed_one_by_one(function: KeysFunction) -> None:
    made = function.make(budget_tokens=100, rate_limit={"requests_per_minute": 5}, allowed_models=["claude-haiku-4-5"])
    path = f"/api-keys/{made['id']}"
    renamed = function.ask("PATCH", path, {"name": "desktop"}).body
    assert renamed == {name: value for name, value in made.items() if name != "key"} | {"name": "desktop"}
    assert function.ask("PATCH", path, {"budget_tokens": 250}).body["budget_tokens"] == 250
    unlimited = function.ask("PATCH", path, {"budget_tokens": None, "rate_limit": None, "allowed_models": None}).body
    assert (unlimited["budget_tokens"], unlimited["rate_limit"], unlimited["allowed_models"]) == (None, None, None)
    assert function.ask("GET", path).body == unlimited
    principal = function.principal_of(made["key"])
    assert (principal.limits, principal.allowed_models) == (None, frozenset())


@pytest.mark.parametrize(
    "body",
    [
        {"name": None},
        {"max_tokens_policy": None},
        {"mode": "test"},
        {"expires_at": "2040-01-01T00:00:00Z"},
        {"id": "x"},
    ],
)
def test_what_cannot_be_changed_is_refused(function: KeysFunction, body: dict[str, object]) -> None:
    made = function.make()
    assert function.ask("PATCH", f"/api-keys/{made['id']}", body).status == 400
    assert function.ask("GET", f"/api-keys/{made['id']}").body["name"] == "laptop"


def test_a_dead_key_is_neither_changed_nor_rotated(function: KeysFunction) -> None:
    made = function.make()
    path = f"/api-keys/{made['id']}"
    function.ask("DELETE", path)
    for answer in (function.ask("PATCH", path, {"name": "x"}), function.ask("POST", f"{path}/rotate", {})):
        assert (answer.status, answer.code) == (409, "key_not_active")


# --- Rotating


def test_after_a_rotation_both_keys_work_until_the_overlap_ends(function: KeysFunction) -> None:
    made = function.make(budget_tokens=700, name="ci")
    rotated = function.ask("POST", f"/api-keys/{made['id']}/rotate", {"overlap_seconds": 600}).body
    assert rotated["key"] != made["key"]
    assert (rotated["name"], rotated["budget_tokens"], rotated["state"]) == ("ci", 700, "active")
    old = rotated["replaces"]
    assert (old["id"], old["state"], old["replaced_by"]) == (made["id"], "replaced", rotated["id"])
    assert function.ask("GET", f"/api-keys/{made['id']}").body == old
    for text in (made["key"], rotated["key"]):
        limits = function.principal_of(text, after_seconds=590).limits
        assert limits is not None
        assert limits.id == made["id"], "one budget for both"
    assert function.refusal_of(made["key"], after_seconds=601) == "expired"
    assert function.principal_of(rotated["key"], after_seconds=601).user_id == ADA


def test_an_overlap_of_nothing_ends_the_old_key_at_once(function: KeysFunction) -> None:
    made = function.make()
    function.ask("POST", f"/api-keys/{made['id']}/rotate", {"overlap_seconds": 0})
    assert function.refusal_of(made["key"]) == "expired"


def test_an_overlap_does_not_outlive_the_old_keys_own_end(function: KeysFunction) -> None:
    end = rfc3339(datetime.now(UTC) + timedelta(seconds=120))
    made = function.make(expires_at=end)
    rotated = function.ask("POST", f"/api-keys/{made['id']}/rotate", {"overlap_seconds": 3600}).body
    assert rotated["replaces"]["expires_at"] == rotated["expires_at"] == end


@pytest.mark.parametrize(("overlap", "status"), [(-1, 400), (0, 200), (604_800, 200), (604_801, 400)])
def test_an_overlap_lasts_a_week_at_most(function: KeysFunction, overlap: int, status: int) -> None:
    made = function.make()
    assert function.ask("POST", f"/api-keys/{made['id']}/rotate", {"overlap_seconds": overlap}).status == status


def test_a_key_is_rotated_once_and_then_its_successor(function: KeysFunction) -> None:
    made = function.make()
    second = function.ask("POST", f"/api-keys/{made['id']}/rotate", {}).body
    again = function.ask("POST", f"/api-keys/{made['id']}/rotate", {})
    assert (again.status, again.code) == (409, "key_not_active")
    third = function.ask("POST", f"/api-keys/{second['id']}/rotate", {}).body
    assert len({made["key"], second["key"], third["key"]}) == 3


# --- Revoking


def test_a_revoked_key_is_refused_and_stays_in_the_list(function: KeysFunction) -> None:
    made = function.make()
    for _ in range(2):
        answer = function.ask("DELETE", f"/api-keys/{made['id']}")
        assert (answer.status, answer.raw) == (204, "")
    assert function.refusal_of(made["key"]) == "revoked"
    assert [key["state"] for key in function.ask("GET").body["data"]] == ["revoked"]


def test_whoever_finds_a_key_can_end_it_and_learns_nothing(function: KeysFunction) -> None:
    made = function.make()
    unknown = mint_api_key(KeyMode.LIVE, bytes(range(32)))
    texts = (made["key"], unknown, made["key"], made["key"][:-1] + "!", "sk-ant-something", "x")
    answers = [function.ask("POST", "/api-keys/report", {"key": text}, user=None) for text in texts]
    assert {(answer.status, answer.raw) for answer in answers} == {(202, '{"status":"received"}')}
    assert function.refusal_of(made["key"]) == "revoked"


@pytest.mark.parametrize("around", ["{}\n", "\r\n{}", "\t {} "])
def test_a_reported_key_is_ended_with_the_white_space_it_was_copied_with(function: KeysFunction, around: str) -> None:
    made = function.make()
    assert function.ask("POST", "/api-keys/report", {"key": around.format(made["key"])}, user=None).status == 202
    assert function.refusal_of(made["key"]) == "revoked"


def test_reports_from_one_address_are_limited(function: KeysFunction) -> None:
    answers = [function.ask("POST", "/api-keys/report", {"key": "x"}, user=None) for _ in range(60)]
    assert answers[0].status == 202
    assert (answers[-1].status, answers[-1].body["error"]["type"]) == (429, "rate_limit_error")
    assert int(answers[-1].headers["retry-after"]) >= 1


# --- Whose


def test_a_key_of_somebody_else_is_not_there(function: KeysFunction) -> None:
    """Nor is one that never was: the answers are equal, and nothing is changed."""
    made = function.make(user=EVE, name="Eve's")
    before = [item for item in function.table.items() if "eve" in json.dumps(item)]
    answers = {
        re.sub(r"\w{12}", "", answer.raw)
        for key_id in (made["id"], "0" * 12)
        for answer in (
            function.ask("GET", f"/api-keys/{key_id}"),
            function.ask("PATCH", f"/api-keys/{key_id}", {"name": "mine now"}),
            function.ask("POST", f"/api-keys/{key_id}/rotate", {}),
            function.ask("DELETE", f"/api-keys/{key_id}"),
        )
        if answer.status == 404
    }
    assert len(answers) == 1
    assert function.ask("GET", query={"after_id": made["id"]}).body["data"] == []
    assert [item for item in function.table.items() if "eve" in json.dumps(item)] == before


ROUTES = [
    ("POST", "/api-keys", {"name": "x"}),
    ("GET", "/api-keys", None),
    ("GET", "/api-keys/abc", None),
    ("PATCH", "/api-keys/abc", {"name": "x"}),
    ("DELETE", "/api-keys/abc", None),
    ("POST", "/api-keys/abc/rotate", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_without_verified_claims_nothing_is_read(function: KeysFunction, method: str, path: str, body: object) -> None:
    function.table.calls.clear()
    answer = function.ask(method, path, body, user=None)
    assert (answer.status, answer.code) == (401, "invalid_credentials")
    assert function.table.calls == {}


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_a_deleted_account_has_no_keys_and_makes_none(
    function: KeysFunction, method: str, path: str, body: object
) -> None:
    made = function.make()
    Users(function.table).bury_profile("main", ADA, datetime.now(UTC))
    sys.modules.pop("functions.api_keys.app")  # another container
    answer = function.ask(method, path.replace("abc", made["id"]), body)
    assert (answer.status, answer.code) == (401, "account_deleted")


# --- Growth of the meter


def test_keys_with_limits_are_not_made_and_thrown_away_without_end(function: KeysFunction) -> None:
    """Each leaves its count in the meter until the period ends; the meter must stay small."""
    clock, plan = SystemClock(), load_catalog("default").plan("pro")
    profile = Users(function.table).find_profile("main", ADA)
    assert profile is not None
    now = datetime.fromtimestamp(clock.now_seconds(), UTC)
    key = MeterKey("main", ADA, period_at(plan.period_kind, profile.anchor_at, now))
    Ledger(Meters(function.table), clock, SystemIds()).reserve(Account(profile, plan), key, an_ask(clock))
    [meter] = [item for item in function.table.items() if item["Type"]["S"] == "Meter"]
    for count, status in ((63, 201), (64, 403)):
        counts = {f"k#{number:012d}": {"N": "5"} for number in range(count)}
        function.table.client.put_item(TableName=NAME, Item=meter | counts)
        assert function.ask("POST", body={"name": "x", "budget_tokens": 5}).status == status
    unlimited = function.ask("POST", body={"name": "without limits"})
    assert unlimited.status == 201
    changed = function.ask("PATCH", f"/api-keys/{unlimited.body['id']}", {"budget_tokens": 5})
    assert (changed.status, changed.code) == (403, "api_key_limit_reached"), "nor by a change"


def an_ask(clock: SystemClock) -> Ask:
    return Ask(0, 10, 1000, may_clamp=False, deadline_at_seconds=clock.now_seconds() + 60)


# --- Failures


def test_a_key_never_reaches_the_logs(function: KeysFunction, capsys: pytest.CaptureFixture[str]) -> None:
    made = function.make(name="canary-name")
    function.ask("POST", "/api-keys/report", {"key": made["key"]}, user=None)
    function.ask("POST", f"/api-keys/{made['id']}/rotate", {})
    function.ask("POST", "/api-keys", {"name": made["key"], "budget_tokens": -1})
    captured = capsys.readouterr()
    assert "key_reported" in captured.out
    assert made["key"] not in captured.out + captured.err
    assert "canary-name" not in captured.out + captured.err
