"""The functions behind the HTTP API, from API Gateway's event to the answer: GET /auth/me, /health, /usage/current."""

from __future__ import annotations

import importlib
import json
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.auth_function import ENVIRONMENT as AUTH_ENVIRONMENT
from tests.support.clocks import FakeClock
from tests.support.http_events import claims_of, http_event
from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import NAME, CountedTable, moto_table
from tests.support.user_pool import CLIENT_ID, ISSUER, SUBJECT
from tollgate.catalog.loader import load_catalog
from tollgate.config import ConfigurationError
from tollgate.domain.ledger import Ask, MeterKey, Settlement
from tollgate.domain.periods import period_at
from tollgate.domain.principals import Account, Profile
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.ledger import Ledger
from tollgate.storage.meters import Meters
from tollgate.storage.users import Users
from tollgate.wiring import SystemClock, SystemIds

CANARY = "canary-in-the-event-77d1"
USAGE_ENVIRONMENT = {
    "STAGE": "test",
    "TABLE_NAME": NAME,
    "COGNITO_ISSUER": ISSUER,
    "COGNITO_CLIENT_IDS": f"{CLIENT_ID},second",
}
ENVIRONMENT = AUTH_ENVIRONMENT | USAGE_ENVIRONMENT
CONTEXT = LambdaContext()
ROUTES = [("auth", "/auth/me"), ("usage", "/usage/current")]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any
    raw: str


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with moto_table(monkeypatch) as table:
        yield table


@pytest.fixture
def invoke(table: CountedTable, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, Any]], Answer]:
    """Invokes a function of this name; one container of each per test."""
    for name in ("auth", "usage"):
        monkeypatch.delitem(sys.modules, f"functions.{name}.app", raising=False)

    def call(function: str, event: dict[str, Any]) -> Answer:
        answer = importlib.import_module(f"functions.{function}.app").handler(event, CONTEXT)
        headers = {name.lower(): value for name, value in answer["headers"].items()}
        return Answer(answer["statusCode"], headers, json.loads(answer["body"]), answer["body"])

    return call


Invoke = Callable[[str, dict[str, Any]], Answer]


def assert_refused(answer: Answer, status: int, error_type: str, error_code: str) -> None:
    """The refusal in Claude's envelope, with one request id in header and body."""
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["request-id"] == CONTEXT.aws_request_id == answer.body["request_id"]
    assert answer.body["type"] == "error"
    assert answer.body["error"]["type"] == error_type
    assert answer.body["error"]["details"]["error_code"] == error_code


# --- Who is asked for


def test_auth_me_tells_the_caller_who_they_are_and_makes_their_profile(invoke: Invoke, table: CountedTable) -> None:
    answer = invoke("auth", http_event("GET", "/auth/me", claims_of()))
    assert answer.status == 200
    assert answer.body["user"] == {"id": SUBJECT, "tenant_id": "main", "email": None}
    assert answer.body["plan"]["id"] == "free"
    assert answer.body["plan"]["quota_tokens"] == 100_000
    assert answer.body["paid"] is True
    assert answer.body["credential"] == {"kind": "access_token", "id": CLIENT_ID}
    assert answer.headers["request-id"] == CONTEXT.aws_request_id
    assert answer.headers["cache-control"] == "no-store"
    assert Users(table).find_profile("main", SUBJECT) is not None


def test_health_needs_nobody_and_tells_nothing(invoke: Invoke, table: CountedTable) -> None:
    answer = invoke("auth", http_event("GET", "/health"))
    assert (answer.status, answer.body) == (200, {"status": "ok"})
    assert table.items() == []


@pytest.mark.parametrize(("function", "path"), ROUTES)
def test_without_verified_claims_the_answer_is_401_and_nothing_is_read(
    invoke: Invoke, table: CountedTable, function: str, path: str
) -> None:
    authorizers: tuple[object, ...] = (
        None,
        {},
        [],
        "text",
        {"jwt": {}},
        {"jwt": None},
        {"jwt": {"claims": None}},
        {"jwt": {"claims": []}},
        {"jwt": {"claims": {}}},
        {"claims": claims_of()},
        {"lambda": claims_of()},
        {"principalId": SUBJECT},
        {"iam": {"userId": SUBJECT}},
    )
    for authorizer in authorizers:
        event = http_event("GET", path)
        event["requestContext"]["authorizer"] = authorizer
        assert_refused(invoke(function, event), 401, "authentication_error", "invalid_credentials")
    assert_refused(invoke(function, http_event("GET", path)), 401, "authentication_error", "invalid_credentials")
    assert table.items() == []


@pytest.mark.parametrize(("function", "path"), ROUTES)
def test_claims_of_anything_but_our_access_tokens_are_refused(
    invoke: Invoke, table: CountedTable, function: str, path: str
) -> None:
    for changes in (
        {"token_use": "id"},
        {"token_use": None},
        {"client_id": "another"},
        {"client_id": None},
        {"client_id": None, "aud": CLIENT_ID, "token_use": "id"},
        {"sub": None},
        {"sub": ""},
    ):
        answer = invoke(function, http_event("GET", path, claims_of(**changes)))
        assert_refused(answer, 401, "authentication_error", "invalid_credentials")
    assert table.items() == []


@pytest.mark.parametrize(("function", "path"), ROUTES)
def test_no_header_query_or_body_changes_the_caller(invoke: Invoke, function: str, path: str) -> None:
    victim = "victim-user"
    plain = invoke(function, http_event("GET", path, claims_of()))
    spoofed = http_event(
        "GET",
        path,
        claims_of(**{"custom:tenant": "acme", "custom:plan": "enterprise", "cognito:groups": "[admins]"}),
        body=json.dumps({"user_id": victim, "tenant_id": "acme", "plan": "enterprise"}),
    )
    names = ("x-user-id", "x-tenant-id", "x-platform-user-id", "x-amzn-oidc-identity", "x-sub")
    spoofed["headers"] |= dict.fromkeys(names, victim)
    assert invoke(function, spoofed).body == plain.body
    query = {"user_id": victim, "tenant_id": "acme", "sub": victim}
    queried = invoke(function, spoofed | {"rawQueryString": urlencode(query), "queryStringParameters": query})
    # The routes of usage refuse parameters that they do not have.
    assert (queried.status, function) == (400, "usage") or queried.body == plain.body


@pytest.mark.parametrize(("function", "path"), ROUTES)
def test_two_users_in_one_container_see_only_themselves(invoke: Invoke, function: str, path: str) -> None:
    for _ in range(3):
        for subject in ("ada", "eve"):
            assert invoke(function, http_event("GET", path, claims_of(subject))).body["user"]["id"] == subject
        assert invoke(function, http_event("GET", path)).status == 401


# --- Routes


@pytest.mark.parametrize("function", ["auth", "usage"])
def test_an_unknown_route_is_404_in_the_envelope(invoke: Invoke, function: str) -> None:
    for path in ("/", "/auth", "/auth/me/", "/auth/me/x", "/usage", "/../auth/me", "/AUTH/ME", "/%00", "/🔑"):
        assert_refused(invoke(function, http_event("GET", path, claims_of())), 404, "not_found_error", "not_found")


@pytest.mark.parametrize(("function", "path"), [*ROUTES, ("auth", "/health")])
def test_a_wrong_method_is_405_in_the_envelope(invoke: Invoke, table: CountedTable, function: str, path: str) -> None:
    for method in ("POST", "PUT", "PATCH", "OPTIONS", "HEAD", "TRACE"):
        answer = invoke(function, http_event(method, path, claims_of()))
        assert_refused(answer, 405, "invalid_request_error", "method_not_allowed")
        assert "GET" in answer.body["error"]["message"]
    assert table.items() == []


# --- Failures


@pytest.mark.parametrize(("function", "path"), ROUTES)
def test_a_silent_table_is_503_and_worth_another_try(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, function: str, path: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed_port = listener.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", f"http://127.0.0.1:{closed_port}")
    answer = invoke(function, http_event("GET", path, claims_of()))
    assert_refused(answer, 503, "api_error", "store_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert "127.0.0.1" not in answer.raw


@pytest.mark.parametrize("known", [True, False])
def test_the_log_says_who_was_refused_as_far_as_that_is_known(
    invoke: Invoke, capsys: pytest.CaptureFixture[str], known: bool
) -> None:
    claims = claims_of() if known else None
    invoke("auth", http_event("POST", "/auth/me", claims))
    [line] = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "request_refused" in line]
    assert line.get("user_id") == (claims["sub"] if claims else None)


@pytest.mark.parametrize(("function", "path"), ROUTES)
def test_a_mistake_of_ours_is_500_without_detail(invoke: Invoke, table: CountedTable, function: str, path: str) -> None:
    table.client.delete_table(TableName=NAME)
    answer = invoke(function, http_event("GET", path, claims_of()))
    assert_refused(answer, 500, "api_error", "internal_error")
    assert NAME not in answer.raw
    assert "ResourceNotFound" not in answer.raw


@pytest.mark.parametrize(
    ("function", "missing"),
    [*(("auth", name) for name in ENVIRONMENT), *(("usage", name) for name in USAGE_ENVIRONMENT)],
)
def test_a_function_with_an_incomplete_configuration_serves_nobody(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, function: str, missing: str
) -> None:
    monkeypatch.delenv(missing)
    for path in ("/health", "/auth/me", "/usage/current", "/unknown"):
        with pytest.raises(ConfigurationError, match=missing):
            invoke(function, http_event("GET", path, claims_of()))


def test_powertools_debug_mode_cannot_be_turned_on_from_outside(
    invoke: Invoke, table: CountedTable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POWERTOOLS_DEV", "true")
    table.client.delete_table(TableName=NAME)
    answer = invoke("auth", http_event("GET", "/auth/me", claims_of()))
    assert_refused(answer, 500, "api_error", "internal_error")
    assert "Traceback" not in answer.raw + capsys.readouterr().out


@pytest.mark.parametrize(("function", "path"), ROUTES)
def test_nothing_of_a_request_is_written_to_the_logs(
    invoke: Invoke, table: CountedTable, capsys: pytest.CaptureFixture[str], function: str, path: str
) -> None:
    def canary_event(method: str, path: str, *, known: bool) -> dict[str, Any]:
        claims = claims_of(username=CANARY, email=CANARY, jti=CANARY) if known else None
        event = http_event(method, path, claims, body=CANARY, rawQueryString=CANARY)
        event["headers"] |= {"authorization": f"Bearer {CANARY}", "cookie": CANARY, "x-api-key": CANARY}
        return event

    answers = [
        invoke(function, canary_event(method, target, known=known)).raw
        for method in ("GET", "POST")
        for target in (path, f"/{CANARY}")
        for known in (True, False)
    ]
    table.client.delete_table(TableName=NAME)
    answers.append(invoke(function, canary_event("GET", path, known=True)).raw)
    captured = capsys.readouterr()
    assert "request_refused" in captured.out
    assert "request_failed" in captured.out
    assert CANARY not in captured.out + captured.err + "".join(answers)


# --- Usage


def test_a_user_who_used_nothing_sees_the_whole_plan_and_the_reset(invoke: Invoke, table: CountedTable) -> None:
    answer = invoke("usage", http_event("GET", "/usage/current", claims_of()))
    assert answer.status == 200
    assert answer.body["user"]["id"] == SUBJECT
    assert answer.body["plan"]["id"] == "free"
    assert answer.body["tokens"] == {
        "quota": 100_000,
        "used": 0,
        "reserved": 0,
        "remaining": 100_000,
        "overage": 0,
        "written_off": 0,
    }
    assert answer.body["requests"] == {"quota": None, "used": 0, "reserved": 0, "remaining": None}
    assert set(answer.body["by_kind"].values()) == {0}
    assert answer.body["cost_picousd"] == 0
    assert answer.body["period"]["end_at"] == answer.body["resets_at"]
    start_at, end_at = (datetime.fromisoformat(answer.body["period"][name]) for name in ("start_at", "end_at"))
    assert start_at <= datetime.now(UTC) < end_at
    assert [item["Type"]["S"] for item in table.items()] == ["User"]


def an_account(plan_id: str = "free") -> Account:
    return Account(
        Profile("main", SUBJECT, plan_id, 1, datetime(2026, 1, 10, 8, tzinfo=UTC)),
        load_catalog("default").plan(plan_id),
    )


def an_ask(now_seconds: float, reserved_tokens: int) -> Ask:
    return Ask(
        prompt_bound_tokens=0,
        output_tokens=reserved_tokens,
        output_weight=1000,
        may_clamp=False,
        deadline_at_seconds=now_seconds + 60,
    )


def test_what_was_used_and_is_reserved_is_shown_by_kind(invoke: Invoke, table: CountedTable) -> None:
    clock, account = SystemClock(), an_account()
    Users(table).create_profile(account.profile)
    ledger = Ledger(Meters(table), clock, SystemIds())
    now = datetime.fromtimestamp(clock.now_seconds(), UTC)
    key = MeterKey("main", SUBJECT, period_at(account.plan.period_kind, account.profile.anchor_at, now))
    counts = TokenCounts(1_000, 400, 30, 20, 50)
    grant = ledger.reserve(account, key, an_ask(clock.now_seconds(), 5_000))
    ledger.settle(grant, Settlement(used_tokens=1_500, counts=counts, cost_picousd=9_000_000_000))
    ledger.reserve(account, key, an_ask(clock.now_seconds(), 700))
    body = invoke("usage", http_event("GET", "/usage/current", claims_of())).body
    assert body["tokens"] == {
        "quota": 100_000,
        "used": 1_500,
        "reserved": 700,
        "remaining": 97_800,
        "overage": 0,
        "written_off": 0,
    }
    assert body["requests"] == {"quota": None, "used": 1, "reserved": 1, "remaining": None}
    assert body["by_kind"] == {
        "input_tokens": 1_000,
        "output_tokens": 400,
        "cache_write_tokens": 50,
        "cache_read_tokens": 50,
    }
    assert body["cost_picousd"] == 9_000_000_000
    assert body["period"]["id"] == key.period.id


def test_tokens_held_by_a_call_that_is_gone_are_given_back_by_looking(invoke: Invoke, table: CountedTable) -> None:
    """The owner died more than its timeout and a minute ago, and nobody has called since."""
    account = an_account()
    Users(table).create_profile(account.profile)
    now = SystemClock().now_seconds()
    dead = FakeClock(now - 600)
    period = period_at(account.plan.period_kind, account.profile.anchor_at, datetime.fromtimestamp(now, UTC))
    key = MeterKey("main", SUBJECT, period)
    Ledger(Meters(table), dead, SystemIds()).reserve(account, key, an_ask(dead.now_seconds(), 700))
    body = invoke("usage", http_event("GET", "/usage/current", claims_of())).body
    assert body["tokens"]["reserved"] == 0
    assert body["tokens"]["used"] + body["tokens"]["remaining"] == 100_000
    assert body["requests"]["reserved"] == 0


def test_overage_on_a_soft_quota_is_shown_and_nothing_remains(invoke: Invoke, table: CountedTable) -> None:
    account = an_account("pro")
    Users(table).create_profile(account.profile)
    clock = SystemClock()
    now = datetime.fromtimestamp(clock.now_seconds(), UTC)
    key = MeterKey("main", SUBJECT, period_at(account.plan.period_kind, account.profile.anchor_at, now))
    ledger = Ledger(Meters(table), clock, SystemIds())
    grant = ledger.reserve(account, key, an_ask(clock.now_seconds(), 2_000_500))
    ledger.settle(grant, Settlement(used_tokens=2_000_500))
    tokens = invoke("usage", http_event("GET", "/usage/current", claims_of())).body["tokens"]
    assert (tokens["used"], tokens["overage"], tokens["remaining"]) == (2_000_500, 500, 0)


def test_a_look_writes_nothing_once_the_profile_is_there(invoke: Invoke, table: CountedTable) -> None:
    Users(table).create_profile(an_account().profile)
    before = table.items()
    invoke("usage", http_event("GET", "/usage/current", claims_of()))
    assert table.items() == before
