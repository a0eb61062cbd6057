"""What an API key's own limits do at the data plane, through the real handler."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.support.claude_function import ClaudeFunction, claude_function
from tollgate.storage.api_keys import ApiKeys


@pytest.fixture(scope="module")
def container() -> Iterator[ClaudeFunction]:
    with pytest.MonkeyPatch.context() as monkeypatch, claude_function(monkeypatch) as function:
        yield function


@pytest.fixture
def function(container: ClaudeFunction, request: pytest.FixtureRequest) -> ClaudeFunction:
    container.user_id = request.node.name[:60]
    return container


def with_key(function: ClaudeFunction, **of_the_key: Any) -> ClaudeFunction:  # noqa: ANN401  any field of ApiKey
    function.key = function.add_user(function.user_id, "pro", **of_the_key)
    function.claude.exchanges.clear()
    return function


def test_a_key_may_use_only_its_models(function: ClaudeFunction) -> None:
    with_key(function, allowed_models=frozenset({"claude-haiku-4-5"}))
    assert function.send().status == 200
    assert function.send(model="claude-haiku-4-5-20251001").status == 200, "a snapshot is the same model"
    function.claude.exchanges.clear()
    refused = function.send(model="claude-sonnet-5")
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert refused.error["details"]["error_code"] == "model_not_in_key"
    assert not function.claude.exchanges


def test_a_key_sees_only_its_models(function: ClaudeFunction) -> None:
    with_key(function, allowed_models=frozenset({"claude-haiku-4-5"}))
    assert [model["id"] for model in function.call("GET", "/v1/models").json["data"]] == ["claude-haiku-4-5"]
    assert function.call("GET", "/v1/models/claude-sonnet-5").status == 404
    assert function.call("GET", "/v1/models/claude-haiku-4-5").status == 200


def test_a_key_is_no_way_to_a_model_beyond_the_plan(function: ClaudeFunction) -> None:
    with_key(function, allowed_models=frozenset({"claude-opus-5-5"}))
    assert function.send(model="claude-opus-5-5").error["details"]["error_code"] == "model_not_in_plan"
    assert function.call("GET", "/v1/models").status == 404


def test_a_small_budget_on_a_soft_plan_gives_nothing_away(function: ClaudeFunction) -> None:
    """A slice would reserve little and let the answer outgrow it: the rest would be written off at the owner's wish."""
    with_key(function, budget_tokens=400)
    assert function.send(max_tokens=64_000, stream=None).status == 200
    sent = json.loads(function.claude.exchanges[-1].body)
    assert sent["max_tokens"] < 400
    meter = function.meter()
    assert (meter["settled"], meter["written_off"]) == (meter[f"k#key-{function.user_id}"], 0)
    searching = function.send(tools=[{"type": "web_search_20250305", "name": "web_search"}])
    assert searching.error["details"]["error_code"] == "unbounded_request"


def test_a_budget_ends_a_keys_calls_and_says_which_key_and_until_when(function: ClaudeFunction) -> None:
    with_key(function, budget_tokens=400)
    while (answer := function.send()).status == 200:
        pass
    assert (answer.status, answer.error["type"]) == (429, "billing_error")
    assert answer.error["details"]["error_code"] == "key_budget_exceeded"
    assert answer.headers["x-should-retry"] == "false"
    assert int(answer.headers["retry-after"]) > 0
    assert f'"key of {function.user_id}"' in answer.error["message"]
    meter = function.meter()
    counted = meter[f"k#key-{function.user_id}"]
    assert 0 < counted <= 400
    assert counted == meter["settled"]


def test_a_key_shows_its_limits_and_what_is_left_of_them(function: ClaudeFunction) -> None:
    with_key(
        function,
        budget_tokens=10_000,
        requests_per_minute=30,
        burst_requests=7,
        allowed_models=frozenset({"claude-haiku-4-5"}),
    )
    fresh = function.call("GET", "/v1/key").json["data"]
    assert fresh["key_limits"] == {
        "budget": {"limit": 10_000, "used": 0, "remaining": 10_000},
        "rate_limit": {"requests_per_minute": 30, "burst": 7},
    }
    assert fresh["allowed_models"] == ["claude-haiku-4-5"]
    function.send()
    used = function.call("GET", "/v1/key").json["data"]
    assert used["key_limits"]["budget"]["used"] == used["usage"] > 0
    assert used["key_limits"]["budget"]["remaining"] == 10_000 - used["usage"]


def test_a_key_without_limits_shows_none(function: ClaudeFunction) -> None:
    data = with_key(function).call("GET", "/v1/key").json["data"]
    assert (data["key_limits"], data["allowed_models"]) == (None, None)


def test_a_key_that_calls_too_often_is_slowed_down(function: ClaudeFunction) -> None:
    with_key(function, requests_per_minute=1, burst_requests=2)
    statuses = [function.send().status for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = function.send()
    assert refused.error["type"] == "rate_limit_error"
    assert refused.error["details"]["error_code"] == "key_rate_limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 60


def test_a_served_call_is_noted_as_the_keys_last_use_and_a_refused_one_is_not(function: ClaudeFunction) -> None:
    with_key(function)
    assert function.send(model="claude-unknown").status == 404
    assert last_use(function) is None
    assert function.send().status == 200
    assert last_use(function) is not None


def last_use(function: ClaudeFunction) -> datetime | None:
    found = ApiKeys(function.table).find_users_key("main", function.user_id, f"key-{function.user_id}")
    assert found is not None
    return found.last_used_at
