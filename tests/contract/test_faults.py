"""When upstream refuses, breaks or lies: what the caller sees, and what is charged for it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.support.gateway import Answer, Gateway, User, events_of, message
from tollgate.domain.plans import PeriodKind

pytestmark = pytest.mark.stack

MAX_TOKENS = 64


def add_user(gateway: Gateway, plan: str) -> User:
    kind = PeriodKind.CALENDAR_MONTH if plan == "free" else PeriodKind.ANCHORED_MONTH
    return gateway.add_user(plan, period_kind=kind)


def assert_nothing_is_charged(gateway: Gateway, user: User) -> None:
    """Nor counted, nor held."""
    standing = gateway.standing(user)
    assert (standing["usage"], standing["reserved"], standing["limit_remaining"]) == (0, 0, standing["limit"])
    assert standing["requests"]["used"] == standing["requests"]["reserved"] == 0


def assert_charged(gateway: Gateway, user: User, tokens: int) -> None:
    """Exactly this, nothing held any more, and the request counted."""
    standing = gateway.standing(user)
    assert (standing["usage"], standing["reserved"]) == (tokens, 0)
    assert standing["limit_remaining"] == max(0, standing["limit"] - tokens)
    assert (standing["requests"]["used"], standing["requests"]["reserved"]) == (1, 0)


def prompt_tokens(answer: Answer) -> int:
    """What message_start said, all kinds together."""
    usage = next(document for name, document in answer.events if name == "message_start")["message"]["usage"]
    return sum(int(usage[name]) for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"))


def delivered_tokens(answer: Answer) -> int:
    """The estimate of output that nobody counted: a token for every four bytes of what passed."""
    texts = [document["delta"]["text"] for name, document in answer.events if name == "content_block_delta"]
    # The bytes are measured on the wire, where the fake pads its deltas; allow for that.
    return sum(len(text.encode()) for text in texts) // 4


def recorded_outcome(gateway: Gateway, user: User) -> str:
    """What the one record of this user's calls says."""
    [record] = [item for item in gateway.items() if item["Type"] == "Request" and item["PK"].endswith(f"#{user.id}")]
    assert record["charged_tokens"] == gateway.standing(user)["usage"]
    return str(record["outcome"])


# ---- refused before anything was generated


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("status", [400, 404, 409, 413])
def test_what_upstream_says_about_the_callers_request_is_relayed_byte_for_byte(
    gateway: Gateway, status: int, streamed: bool
) -> None:
    user = add_user(gateway, "pro")
    answer = gateway.send(user, f"[[fake error={status} error_message=tools.0:+café+is+not+allowed]]", stream=streamed)
    assert answer.status == status
    assert answer.body == gateway.sent_by_claude(answer)
    assert answer.error["message"] == "tools.0: café is not allowed"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["request-id"] != answer.headers["x-upstream-request-id"]
    assert_nothing_is_charged(gateway, user)


OWN = {
    "our key is not accepted": ("error=401", 503, "api_error", "upstream_unavailable", False),
    "our key may not do that": ("error=403", 503, "api_error", "upstream_unavailable", False),
    "our spending cap": ("error=400 error_message=usage_limits", 503, "api_error", "upstream_unavailable", False),
    "our credit": (
        "error=400 error_message=Your+credit+balance+is+too+low",
        503,
        "api_error",
        "upstream_unavailable",
        False,
    ),
    "our unpaid bill": ("error=402", 503, "api_error", "upstream_unavailable", False),
    "our shared limit": ("error=429 retry_after=3600", 529, "overloaded_error", "upstream_busy", True),
    "overloaded": ("error=529", 529, "overloaded_error", "upstream_busy", True),
    "a fault": ("error=500", 503, "api_error", "upstream_error", True),
    "a fault behind it": ("error=503", 503, "api_error", "upstream_error", True),
    "too slow": ("error=504", 503, "api_error", "upstream_error", True),
    "a redirect": ("error=307", 503, "api_error", "upstream_unavailable", False),
}


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("situation", OWN)
def test_what_upstream_says_about_us_is_ours_to_answer(gateway: Gateway, situation: str, streamed: bool) -> None:
    script, status, error_type, error_code, may_retry = OWN[situation]
    user = add_user(gateway, "pro")
    answer = gateway.send(user, f"[[fake {script}]]", stream=streamed)
    assert answer.status == status
    assert (answer.error["type"], answer.error["details"]["error_code"]) == (error_type, error_code)
    assert answer.json["request_id"] == answer.headers["request-id"]
    assert (answer.headers.get("x-should-retry") != "false") == may_retry
    assert ("retry-after" in answer.headers) == may_retry
    assert int(answer.headers.get("retry-after", "1")) <= 60
    assert "fake" not in answer.error["message"]
    assert_nothing_is_charged(gateway, user)


@pytest.mark.parametrize("script", ["error=401", "error=429", "error=500", "error=400"])
def test_a_refused_count_follows_the_same_rules(gateway: Gateway, script: str) -> None:
    user = add_user(gateway, "pro")
    body = message(f"[[fake {script}]]", stream=None, max_tokens=None)
    answer = gateway.call("POST", "/v1/messages/count_tokens", body, key=user.key)
    assert answer.status == {"error=401": 503, "error=429": 529, "error=500": 503, "error=400": 400}[script]
    assert answer.headers["request-id"]
    assert_nothing_is_charged(gateway, user)


# ---- broken before the first byte of the answer: it may have been processed


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("plan", ["free", "pro"])
def test_a_connection_reset_before_the_answer_is_charged_by_the_plans_rule(
    gateway: Gateway, plan: str, streamed: bool
) -> None:
    """Strict charges all that may have been generated, the others the prompt's bound; nobody is to retry it."""
    user = add_user(gateway, plan)
    body = message("[[fake reset=1]]", stream=streamed)
    answer = gateway.call("POST", "/v1/messages", body, key=user.key)
    assert answer.status == 503
    assert answer.error["details"]["error_code"] == "upstream_lost"
    assert answer.headers["x-should-retry"] == "false"
    bound = gateway_bound(body)
    assert_charged(gateway, user, bound + MAX_TOKENS if plan == "free" else bound)


def gateway_bound(body: dict[str, Any]) -> int:
    """No prompt of plain text is more tokens than its body has bytes and a few."""
    return 64 + len(json.dumps(body).encode())


@pytest.mark.parametrize("plan", ["free", "pro"])
@pytest.mark.parametrize("script", ["truncate_after=1", "disconnect_after=1"])
def test_half_of_a_whole_message_is_not_passed_on(gateway: Gateway, plan: str, script: str) -> None:
    user = add_user(gateway, plan)
    body = message(f"[[fake {script}]]", stream=False)
    answer = gateway.call("POST", "/v1/messages", body, key=user.key)
    assert answer.status == 503
    assert answer.error["details"]["error_code"] == "upstream_lost"
    assert_charged(gateway, user, gateway_bound(body) + (MAX_TOKENS if plan == "free" else 0))


# ---- broken in mid-stream


@pytest.mark.parametrize("plan", ["free", "pro"])
def test_an_error_event_in_mid_stream_passes_as_it_is(gateway: Gateway, plan: str) -> None:
    user = add_user(gateway, plan)
    answer = gateway.send(user, "[[fake error_after=3]]")
    assert (answer.status, answer.whole) == (200, True)
    assert answer.body == gateway.sent_by_claude(answer)
    assert [name for name, _ in answer.events][-2:] == ["content_block_delta", "error"]
    assert recorded_outcome(gateway, user) == "upstream_error"
    assert_broken_stream_is_charged(gateway, user, answer)


@pytest.mark.parametrize("chunks", ["", "chunk_bytes=1", "chunk_bytes=65536"], ids=["events", "bytes", "at once"])
@pytest.mark.parametrize("plan", ["free", "pro"])
@pytest.mark.parametrize("script", ["truncate_after=3", "disconnect_after=3", "disconnect_after=0"])
def test_a_cut_stream_ends_with_an_error_event(gateway: Gateway, plan: str, script: str, chunks: str) -> None:
    """Clients end silently when a stream just stops, and would take the half for the whole."""
    user = add_user(gateway, plan)
    answer = gateway.send(user, f"[[fake {script} {chunks}]]")
    sent = gateway.sent_by_claude(answer)
    assert (answer.status, answer.whole) == (200, True)
    assert answer.body.startswith(sent)
    [(name, error)] = events_of(answer.body[len(sent) :])
    assert (name, error["error"]["type"]) == ("error", "api_error")
    assert error["error"]["details"]["error_code"] == "upstream_lost"
    assert error["request_id"] == answer.headers["request-id"]
    assert recorded_outcome(gateway, user) == "truncated"
    assert_broken_stream_is_charged(gateway, user, answer)


def assert_broken_stream_is_charged(gateway: Gateway, user: User, answer: Answer) -> None:
    """Free (strict): the prompt and all that max_tokens allowed. Pro (input): the prompt and what was delivered."""
    prompt = prompt_tokens(answer)
    if user.plan_id == "free":
        assert_charged(gateway, user, prompt + MAX_TOKENS)
        return
    standing = gateway.standing(user)
    assert standing["reserved"] == 0
    delivered = delivered_tokens(answer)
    assert prompt + delivered <= standing["usage"] <= prompt + delivered + 8
    assert gateway.meter(user).written_off_tokens > 0


def test_an_end_without_message_stop_counts_once_the_counts_are_final(gateway: Gateway) -> None:
    """Everything but the very last event has come: the provider's own figures hold."""
    user = add_user(gateway, "free")
    answer = gateway.send(user, "[[fake truncate_after=3]]")
    whole = gateway.send(user, "Hello")
    final = next(document for name, document in whole.events if name == "message_delta")["usage"]
    used = prompt_tokens(answer) + MAX_TOKENS + final["input_tokens"] + final["output_tokens"]
    assert gateway.standing(user)["usage"] == used


def test_a_hidden_prompt_that_does_not_fit_stops_the_answer_and_uses_no_more_than_the_quota(gateway: Gateway) -> None:
    """Nothing of the answer is passed: message_start says that it is not paid for."""
    user = add_user(gateway, "free")
    answer = gateway.send(user, "[[fake hidden_input=150000]]")
    assert (answer.status, answer.whole) == (200, True)
    [(name, error)] = answer.events
    assert (name, error["error"]["type"]) == ("error", "billing_error")
    assert error["error"]["details"]["error_code"] == "quota_exceeded"
    assert_charged(gateway, user, 100_000)
    assert gateway.meter(user).written_off_tokens >= 50_000
    assert recorded_outcome(gateway, user) == "over_quota"
    refused = gateway.send(user)
    assert (refused.status, refused.error["type"]) == (429, "billing_error")


def test_a_hidden_prompt_that_fits_is_reserved_and_charged(gateway: Gateway) -> None:
    user = add_user(gateway, "free")
    answer = gateway.send(user, "[[fake hidden_input=50000]]")
    final = next(document for name, document in answer.events if name == "message_delta")["usage"]
    assert answer.body == gateway.sent_by_claude(answer)
    assert_charged(gateway, user, final["input_tokens"] + final["output_tokens"])


def test_a_caller_that_hangs_up_pays_what_was_generated(gateway: Gateway) -> None:
    """Upstream is read to the end all the same: leaving early must not be a way to get tokens for nothing."""
    user = add_user(gateway, "free")
    with gateway.open(
        "POST", "/v1/messages", json.dumps(message("[[fake pace_ms=10]]")).encode(), key=user.key
    ) as response:
        upstream_request_id = response.headers["x-upstream-request-id"]
        response.read1(64)
    limit = time.monotonic() + 10
    while gateway.standing(user)["reserved"] and time.monotonic() < limit:
        time.sleep(0.05)
    exchange = next(each for each in gateway.stack.exchanges() if each["request_id"] == upstream_request_id)
    assert exchange["finished"]
    assert_charged(gateway, user, exchange["usage"]["input_tokens"] + exchange["usage"]["output_tokens"])


# ---- counts of every kind


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_every_kind_of_token_is_counted_as_the_provider_reports_it(gateway: Gateway, streamed: bool) -> None:
    user = gateway.add_user("pro", sign_in=True)
    access_token, _ = gateway.tokens(user)
    script = "cache_read=5000 cache_write=300 cache_write_1h=200 message_deltas=3"
    answer = gateway.send(user, f"[[fake {script}]]", stream=streamed)
    usage = gateway.exchange(answer)["usage"]
    current = gateway.call("GET", "/usage/current", headers={"authorization": f"Bearer {access_token}"}).json
    assert current["by_kind"] == {
        "input_tokens": usage["input_tokens"],
        "output_tokens": usage["output_tokens"],
        "cache_write_tokens": 500,
        "cache_read_tokens": 5000,
    }
    assert current["tokens"]["used"] == sum(current["by_kind"].values())
    counts = gateway.meter(user).counts
    assert (counts.cache_write_5m_tokens, counts.cache_write_1h_tokens) == (300, 200)
    [record] = [item for item in gateway.items() if item["Type"] == "Request" and item["PK"].endswith(user.id)]
    assert record["charged_tokens"] == current["tokens"]["used"]
    assert record["upstream_request_id"] == answer.headers["x-upstream-request-id"]
    assert record["cost_picousd"] == current["cost_picousd"] > 0
