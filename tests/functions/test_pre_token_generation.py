"""Cognito's trigger: the plan goes into both tokens, and nothing that happens here keeps anybody from signing in."""

from __future__ import annotations

import copy
import importlib
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.lambda_context import LambdaContext
from tests.support.moto_table import NAME, CountedTable, moto_table
from tests.support.sam import ROOT
from tollgate.domain.principals import Profile
from tollgate.storage.users import Users

USER_ID = "b4c8e4a8-7011-70f2-9d3e-5c1f0a2b3c4d"
PROFILE = Profile("main", USER_ID, "pro", 3, datetime(2026, 11, 1, tzinfo=UTC), email="ada@example.com")
Invoke = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountedTable]:
    monkeypatch.setenv("STAGE", "test")
    monkeypatch.setenv("TABLE_NAME", NAME)
    with moto_table(monkeypatch) as table:
        yield table


@pytest.fixture
def invoke(table: CountedTable, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """One container."""
    monkeypatch.delitem(sys.modules, "functions.pre_token_generation.app", raising=False)

    def call(event: dict[str, Any]) -> dict[str, Any]:
        handler = importlib.import_module("functions.pre_token_generation.app").handler
        answer: dict[str, Any] = handler(event, LambdaContext())
        return json.loads(json.dumps(answer))  # type: ignore[no-any-return]

    return call


def an_event(version: str = "2") -> dict[str, Any]:
    event: dict[str, Any] = json.loads((ROOT / "events" / "pre_token_generation-sign-in.json").read_text())
    return event | {"version": version}


def claims_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    details = answer["response"]["claimsAndScopeOverrideDetails"]
    assert details.keys() == {"idTokenGeneration", "accessTokenGeneration"}
    return [part["claimsToAddOrOverride"] for part in details.values()]


@pytest.mark.parametrize("version", ["2", "3"])
def test_the_stored_plan_is_in_both_tokens_and_nothing_else(invoke: Invoke, table: CountedTable, version: str) -> None:
    Users(table).create_profile(PROFILE)
    event = an_event(version)
    answer = invoke(copy.deepcopy(event))
    assert claims_of(answer) == [{"plan": "pro"}] * 2
    assert answer | {"response": event["response"]} == event


def test_who_signs_in_for_the_first_time_has_the_plan_of_a_new_user(invoke: Invoke, table: CountedTable) -> None:
    assert claims_of(invoke(an_event())) == [{"plan": "free"}] * 2
    assert table.items() == []  # the trigger only reads


def test_a_changed_plan_is_in_the_next_token(invoke: Invoke, table: CountedTable) -> None:
    Users(table).create_profile(PROFILE)
    invoke(an_event())
    table.client.put_item(
        TableName=NAME,
        Item=table.items()[0] | {"plan_id": {"S": "enterprise"}},
    )
    assert claims_of(invoke(an_event())) == [{"plan": "enterprise"}] * 2


def test_what_the_client_says_about_its_plan_is_not_read(invoke: Invoke, table: CountedTable) -> None:
    event = an_event()
    event["request"]["userAttributes"]["custom:plan"] = "enterprise"
    event["request"]["clientMetadata"] = {"plan": "enterprise"}
    assert claims_of(invoke(event)) == [{"plan": "free"}] * 2


def test_the_claim_is_not_read_by_the_server() -> None:
    """A plan that is in a token is at best an hour old, and at worst somebody else's invention."""
    for path in (ROOT / "layers/core/tollgate").rglob("*.py"):
        if path.name != "pre_token.py":
            assert '"claims"]["plan"' not in path.read_text()
            assert 'claims.get("plan"' not in path.read_text()
            assert 'claims["plan"' not in path.read_text()


# --- Sign-in never breaks


def broken_events() -> list[dict[str, Any]]:
    without = [{key: value for key, value in an_event().items() if key != name} for name in ("version", "request")]
    requests: tuple[object, ...] = (None, {}, {"userAttributes": {}}, [], "text")
    wrong = [an_event() | {"request": request} for request in requests]
    return [*without, *wrong, an_event("1"), an_event("9"), {}]


@pytest.mark.parametrize("event", broken_events())
def test_an_event_it_does_not_understand_goes_back_as_it_came(invoke: Invoke, event: dict[str, Any]) -> None:
    assert invoke(copy.deepcopy(event)) == event


def test_a_deleted_account_gets_no_claim(invoke: Invoke, table: CountedTable) -> None:
    Users(table).create_profile(replace(PROFILE))
    Users(table).bury_profile("main", USER_ID, datetime(2026, 11, 2, tzinfo=UTC))
    assert invoke(an_event()) == an_event()


def test_a_table_that_is_gone_is_logged_and_sign_in_goes_on(
    invoke: Invoke, table: CountedTable, capsys: pytest.CaptureFixture[str]
) -> None:
    table.client.delete_table(TableName=NAME)
    assert invoke(an_event()) == an_event()
    logged = capsys.readouterr().out
    assert "plan_claim_failed" in logged
    assert "ada@example.com" not in logged


def test_a_table_that_never_answers_costs_less_than_cognito_waits(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five seconds, of which a cold start may take one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", f"http://127.0.0.1:{port}")
        started = time.monotonic()
        assert invoke(an_event()) == an_event()
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("missing", ["STAGE", "TABLE_NAME", "AWS_REGION"])
def test_a_function_that_misses_a_setting_lets_everybody_in(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    """Without the claim; and it looks again at the next sign-in."""
    monkeypatch.delenv(missing)
    assert invoke(an_event()) == an_event()
    assert "plan_claim_not_configured: ConfigurationError" in caplog.text
