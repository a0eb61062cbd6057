"""POST /v1/messages through the real handler, wiring, table and sockets."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.claude_function import MODEL, PEPPER, UPSTREAM_KEY, Answer, ClaudeFunction, claude_function
from tests.support.user_pool import UserPool
from tollgate.domain.api_keys import KeyMode, mint_api_key
from tollgate.domain.principals import MaxTokensPolicy

CANARY = "CANARY-prompt-93ab"


@pytest.fixture(scope="module")
def container() -> Iterator[ClaudeFunction]:
    with pytest.MonkeyPatch.context() as monkeypatch, claude_function(monkeypatch) as function:
        yield function


@pytest.fixture
def function(container: ClaudeFunction) -> ClaudeFunction:
    """The same container for every test, as on Lambda, and a new user."""
    container.next_caller()
    return container


def refused(answer: Answer, status: int, kind: str, code: str) -> str:
    """Checks the envelope that Claude's clients read; returns the message."""
    assert (answer.status, answer.error["type"], answer.error["details"]["error_code"]) == (status, kind, code)
    assert answer.json["type"] == "error"
    assert answer.json["request_id"] == answer.headers["request-id"]
    assert answer.headers["content-type"] == "application/json"
    return str(answer.error["message"])


class TestStreams:
    @pytest.mark.parametrize("chunk_bytes", [0, 1, 1000, 65_536])
    def test_pass_byte_for_byte(self, function: ClaudeFunction, chunk_bytes: int) -> None:
        answer = function.send(f"Hi [[fake chunk_bytes={chunk_bytes} unknown_events=2]]")
        assert answer.status == 200
        assert answer.body == bytes(function.claude.exchanges[-1].sent)
        names = [name for name, _ in answer.events]
        assert names[0] == "message_start"
        assert names[-1] == "message_stop"
        assert "ping" in names

    def test_reach_upstream_as_they_were_sent(self, function: ClaudeFunction) -> None:
        body = b'{ "messages":[{"role":"user","content":"\\u00e9"}], "stream": true, "max_tokens":9,"model":"%s"}\n'
        sent = body % MODEL.encode()
        headers = {"anthropic-beta": "a-1,b-2", "x-claude-code-session-id": "s", "x-user-id": "u-2", "cookie": "c=1"}
        answer = function.call("POST", "/v1/messages", sent, headers=headers, query="beta=true")
        assert answer.status == 200
        exchange = function.claude.exchanges[-1]
        assert exchange.body == sent
        assert exchange.target == "/v1/messages?beta=true"
        assert exchange.headers["x-api-key"] == UPSTREAM_KEY
        assert exchange.headers["anthropic-beta"] == "a-1,b-2"
        assert exchange.headers["accept-encoding"] == "identity"
        assert exchange.headers.keys().isdisjoint({"cookie", "x-user-id", "authorization"})
        assert function.key not in repr(exchange.headers)

    def test_carry_our_request_id_and_the_callers_own_standing(self, function: ClaudeFunction) -> None:
        answer = function.send()
        assert answer.headers["request-id"] == function.request_id
        assert answer.headers["x-upstream-request-id"] == function.claude.exchanges[-1].request_id
        assert answer.headers["anthropic-ratelimit-tokens-limit"] == "2000000"
        assert answer.headers["anthropic-ratelimit-unified-status"] == "allowed"
        assert answer.headers["content-type"].startswith("text/event-stream")

    def test_are_charged_what_upstream_counted(self, function: ClaudeFunction) -> None:
        text = "Hi [[fake cache_write=30 cache_write_1h=20 cache_read=400 message_deltas=3 tokens=57]]"
        function.send(text, max_tokens=100)
        usage = function.claude.exchanges[-1].usage
        assert usage is not None
        meter, [record] = function.meter(), function.items("Request")
        assert (meter["t_w5"], meter["t_w1"], meter["t_rd"]) == (30, 20, 400)
        assert (meter["t_in"], meter["t_out"]) == (usage["input_tokens"], usage["output_tokens"])
        total = sum(meter[name] for name in ("t_in", "t_out", "t_w5", "t_w1", "t_rd"))
        assert meter["settled"] == record["charged_tokens"] == total
        assert meter["open_count"] == 0
        assert record["cost_picousd"] == meter["picousd"] > 0

    def test_of_one_caller_do_not_colour_those_of_another(self, function: ClaudeFunction) -> None:
        """One container serves many callers, one after the other."""
        other = function.add_user(f"{function.user_id}-2", "free")
        first, second, third = function.send(), function.send(key=other), function.send()
        assert first.headers["anthropic-ratelimit-tokens-limit"] == "2000000"
        assert second.headers["anthropic-ratelimit-tokens-limit"] == "100000"
        assert third.headers["anthropic-ratelimit-tokens-limit"] == "2000000"
        assert function.meter()["t_in"] == 2 * function.meter(f"{function.user_id}-2")["t_in"]


class TestWholeAnswers:
    def test_pass_byte_for_byte_with_the_standing_after_them(self, function: ClaudeFunction) -> None:
        answer = function.send("Hi", stream=False)
        assert answer.body == bytes(function.claude.exchanges[-1].sent)
        usage = answer.json["usage"]
        left = 2_000_000 - usage["input_tokens"] - usage["output_tokens"]
        assert answer.headers["anthropic-ratelimit-tokens-remaining"] == str(left)
        assert answer.headers["content-type"] == "application/json"

    def test_that_are_cut_become_an_error_that_no_sdk_repeats(self, function: ClaudeFunction) -> None:
        answer = function.send("Hi [[fake truncate_after=1]]", stream=False)
        refused(answer, 503, "api_error", "upstream_lost")
        assert answer.headers["x-should-retry"] == "false"
        assert len(function.claude.exchanges) == 1
        assert function.meter()["open_count"] == 0


class TestBrokenStreams:
    @pytest.mark.parametrize("how", ["truncate_after", "disconnect_after", "error_after"])
    @pytest.mark.parametrize("deltas", [0, 1, 5])
    def test_end_with_an_error_event_after_every_byte_that_came(
        self, function: ClaudeFunction, how: str, deltas: int
    ) -> None:
        answer = function.send(f"Hi [[fake {how}={deltas} tokens=60]]", max_tokens=100)
        assert answer.status == 200
        sent = bytes(function.claude.exchanges[-1].sent)
        assert answer.body.startswith(sent)
        name, document = answer.events[-1]
        assert (name, document["type"]) == ("error", "error")
        code = (document["error"].get("details") or {}).get("error_code")
        assert code == (None if how == "error_after" else "upstream_lost")
        meter, [record] = function.meter(), function.items("Request")
        assert meter["open_count"] == 0
        assert meter["settled"] == record["charged_tokens"] > 0
        assert record["estimated"]
        assert record["outcome"] == ("upstream_error" if how == "error_after" else "truncated")

    def test_never_make_a_second_call(self, function: ClaudeFunction) -> None:
        function.send("Hi [[fake disconnect_after=2]]")
        function.send("Hi [[fake reset]]")
        assert len(function.claude.exchanges) == 2

    def test_that_stall_are_stopped_before_the_function_is_killed(self, function: ClaudeFunction) -> None:
        answer = function.send("Hi [[fake stall_after=2]]", seconds=10.4)
        name, document = answer.events[-1]
        assert (name, document["error"]["type"]) == ("error", "timeout_error")
        assert document["error"]["details"]["error_code"] == "deadline_reached"
        assert function.items("Request")[0]["outcome"] == "deadline"

    def test_that_cost_more_than_is_left_are_stopped_at_their_start(self, function: ClaudeFunction) -> None:
        free = function.add_user(f"{function.user_id}-2", "free")
        answer = function.send("Hi [[fake hidden_input=150000]]", key=free)
        assert [name for name, _ in answer.events] == ["error"]
        assert answer.events[0][1]["error"]["type"] == "billing_error"
        meter = function.meter(f"{function.user_id}-2")
        assert meter["settled"] <= 100_000
        assert meter["settled"] + meter["written_off"] >= 150_000


class TestQuota:
    def test_used_up_is_one_refusal_that_tells_when_and_where_to_go_on(self, function: ClaudeFunction) -> None:
        free = function.add_user(f"{function.user_id}-2", "free")
        for _ in range(2):
            function.send("x" * 40_000, key=free, max_tokens=4096)
        answer = function.send("x" * 95_000, key=free)
        message = refused(answer, 429, "billing_error", "quota_exceeded")
        assert answer.headers["x-should-retry"] == "false"
        assert int(answer.headers["retry-after"]) > 60
        assert answer.headers["anthropic-ratelimit-unified-status"] == "rejected"
        assert "Upgrade to Pro" in message
        assert answer.error["details"]["resets_at"].endswith("Z")
        assert len(function.claude.exchanges) == 2

    def test_clamps_max_tokens_and_nothing_else(self, function: ClaudeFunction) -> None:
        free = function.add_user(f"{function.user_id}-2", "free")
        body = json.dumps(function.message(max_tokens=64_000), indent=3).encode()
        assert function.call("POST", "/v1/messages", body, key=free).status == 200
        assert function.claude.exchanges[-1].body == body.replace(b"64000", b"4096")

    def test_refuses_instead_of_clamping_when_the_key_says_so(self, function: ClaudeFunction) -> None:
        free = function.add_user(f"{function.user_id}-2", "free", policy=MaxTokensPolicy.REFUSE)
        refused(function.send(key=free, max_tokens=64_000), 400, "invalid_request_error", "max_tokens_too_large")

    def test_a_burst_is_a_short_wait(self, function: ClaudeFunction) -> None:
        free = function.add_user(f"{function.user_id}-2", "free")
        answers = [function.send("Hi", key=free) for _ in range(12)]
        assert [answer.status for answer in answers[:10]] == [200] * 10
        message = refused(answers[11], 429, "rate_limit_error", "rate_limited")
        assert 1 <= int(answers[11].headers["retry-after"]) <= 60
        assert "x-should-retry" not in answers[11].headers
        assert message

    def test_unpaid_is_told_so(self, function: ClaudeFunction) -> None:
        unpaid = function.add_user(f"{function.user_id}-2", "pro", paid=False)
        refused(function.send(key=unpaid), 402, "billing_error", "payment_required")

    def test_an_address_that_nobody_confirmed_is_told_so(self, function: ClaudeFunction) -> None:
        unconfirmed = function.add_user(f"{function.user_id}-3", "pro", email_verified=False)
        refused(function.send(key=unconfirmed), 403, "permission_error", "email_not_verified")
        assert not function.claude.exchanges
        assert function.items("Meter", f"{function.user_id}-3") == []


class TestUpstreamErrors:
    @pytest.mark.parametrize(
        ("script", "status", "kind", "code", "retry"),
        [
            ("error=401", 503, "api_error", "upstream_unavailable", "false"),
            ("error=403", 503, "api_error", "upstream_unavailable", "false"),
            ("error=400 error_message=usage_limits", 503, "api_error", "upstream_unavailable", "false"),
            ("error=429 retry_after=9000", 529, "overloaded_error", "upstream_busy", None),
            ("error=529", 529, "overloaded_error", "upstream_busy", None),
            ("error=500", 503, "api_error", "upstream_error", None),
            ("error=503", 503, "api_error", "upstream_error", None),
            ("reset", 503, "api_error", "upstream_lost", "false"),
        ],
    )
    def test_that_are_ours_never_blame_the_caller(
        self, function: ClaudeFunction, script: str, status: int, kind: str, code: str, retry: str | None
    ) -> None:
        answer = function.send(f"Hi [[fake {script}]]")
        message = refused(answer, status, kind, code)
        assert "fake" not in message
        assert answer.headers.get("x-should-retry") == retry
        assert int(answer.headers.get("retry-after", 1)) <= 60
        assert len(function.claude.exchanges) == 1
        meter = function.meter()
        assert meter["open_count"] == 0
        assert (meter["settled"] == 0) is (code != "upstream_lost")

    @pytest.mark.parametrize("status", [400, 404, 413])
    def test_about_the_callers_request_pass_byte_for_byte(self, function: ClaudeFunction, status: int) -> None:
        answer = function.send(f"Hi [[fake error={status} error_message=prompt+is+too+long]]")
        assert answer.status == status
        assert answer.body == bytes(function.claude.exchanges[-1].sent)
        assert answer.error["message"] == "prompt is too long"
        assert answer.headers["request-id"] == function.request_id
        assert function.meter()["settled"] == 0


class TestWhoCalls:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"x-api-key": ""},
            {"x-api-key": "tg_test_" + "x" * 36},
            {"x-api-key": UPSTREAM_KEY},
            {"authorization": "Basic dTpw"},
            {"authorization": "Bearer " + "x" * 9000},
            {"authorization": "Bearer a.b.c"},
            {"x-user-id": "u-1", "x-tenant-id": "main", "x-platform-user-id": "u-1"},
        ],
        ids=range(8),
    )
    def test_nobody_we_know_is_refused_without_a_table_call(
        self, function: ClaudeFunction, headers: dict[str, str]
    ) -> None:
        answer = function.call("POST", "/v1/messages", function.message(CANARY), key=None, headers=headers)
        refused(answer, 401, "authentication_error", "invalid_credentials")
        assert answer.headers["x-should-retry"] == "false"
        assert len(function.claude.exchanges) == 0

    def test_the_key_is_taken_from_either_header(self, function: ClaudeFunction) -> None:
        bearer = {"authorization": f"Bearer {function.key}"}
        assert function.call("POST", "/v1/messages", function.message(), key=None, headers=bearer).status == 200
        assert (
            function.call("POST", "/v1/messages", function.message(), headers={"authorization": "Bearer x"}).status
            == 200
        )

    def test_a_revoked_key_is_told_apart_from_an_unknown_one(self, function: ClaudeFunction) -> None:
        revoked = function.add_user(f"{function.user_id}-2", "pro", revoked=True)
        unknown = mint_api_key(KeyMode.TEST, b"?" * 32)
        refused(function.send(key=revoked), 401, "authentication_error", "revoked")
        refused(function.send(key=unknown), 401, "authentication_error", "invalid_credentials")

    def test_a_token_of_another_pool_is_refused(self, function: ClaudeFunction) -> None:
        forged = UserPool("https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_Other").access_token(1.0)
        headers = {"authorization": f"Bearer {forged}"}
        answer = function.call("POST", "/v1/messages", function.message(), key=None, headers=headers)
        assert answer.status in (401, 503)  # 503: the key set of the right pool cannot be had in this test
        assert len(function.claude.exchanges) == 0

    @pytest.mark.parametrize("name", ["x-user-id", "x-tenant-id", "x-platform-user-id", "x-amzn-oidc-identity"])
    def test_no_header_changes_who_is_charged(self, function: ClaudeFunction, name: str) -> None:
        function.add_user(f"{function.user_id}-2", "pro")
        answer = function.call("POST", "/v1/messages", function.message(), headers={name: f"{function.user_id}-2"})
        assert answer.status == 200
        assert len(function.items("Meter")) == 1
        assert function.items("Meter", f"{function.user_id}-2") == []


def bad_bodies() -> dict[str, tuple[bytes, int, str]]:
    good: dict[str, Any] = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": CANARY}]}

    def change(**fields: Any) -> bytes:  # noqa: ANN401  any JSON
        return json.dumps(good | fields).encode()

    return {
        "empty": (b"", 400, "invalid_json"),
        "no json": (b"hello", 400, "invalid_json"),
        "cut": (change()[:-1], 400, "invalid_json"),
        "NaN": (change(temperature=float("nan")), 400, "invalid_json"),
        "Infinity": (change(temperature=float("inf")), 400, "invalid_json"),
        "deep": (b'{"a":' + b"[" * 90_000, 400, "invalid_json"),
        "closed deep": (b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "invalid_json"),
        "twice": (b'{"max_tokens":5,' + change()[1:], 400, "invalid_json"),
        "surrogate": (change(x="\ud800"), 400, "invalid_json"),
        "latin-1": (change().replace(b"CANARY", "é".encode("latin-1")), 400, "invalid_json"),
        "a list": (b"[1]", 400, "invalid_json"),
        "max_tokens text": (change(max_tokens="9"), 400, "invalid_field"),
        "max_tokens bool": (change(max_tokens=True), 400, "invalid_field"),
        "max_tokens negative": (change(max_tokens=-5), 400, "invalid_field"),
        "max_tokens huge": (change(max_tokens=10**30), 400, "invalid_field"),
        "stream text": (change(stream="true"), 400, "invalid_field"),
        "model number": (change(model=5), 400, "invalid_field"),
        "no messages": (json.dumps({"model": MODEL, "max_tokens": 5}).encode(), 400, "missing_field"),
        "unknown model": (change(model="gpt-6"), 404, "model_not_found"),
        "model not in plan": (change(model="claude-opus-5-5"), 400, "model_not_in_plan"),
        "too large": (change(x="y" * 200_000), 413, "request_too_large"),
    }


class TestBadInput:
    @pytest.mark.parametrize(("body", "status", "code"), bad_bodies().values(), ids=bad_bodies())
    def test_gets_a_clear_answer_and_reaches_nobody(
        self, function: ClaudeFunction, capsys: pytest.CaptureFixture[str], body: bytes, status: int, code: str
    ) -> None:
        answer = function.call("POST", "/v1/messages", body)
        assert (answer.status, answer.error["details"]["error_code"]) == (status, code)
        assert answer.error["message"]
        assert CANARY not in answer.body.decode()
        assert len(function.claude.exchanges) == 0
        assert function.items("Meter") == []
        assert CANARY not in capsys.readouterr().out

    def test_a_body_up_to_the_limit_is_taken(self, function: ClaudeFunction) -> None:
        body = json.dumps(function.message()).encode()
        assert function.call("POST", "/v1/messages", body.ljust(200_000)).status == 200
        answer = function.call("POST", "/v1/messages", body.ljust(200_001))
        assert "200000" in refused(answer, 413, "request_too_large", "request_too_large")

    def test_a_compressed_body_is_refused_by_name(self, function: ClaudeFunction) -> None:
        answer = function.call("POST", "/v1/messages", function.message(), headers={"content-encoding": "gzip"})
        refused(answer, 400, "invalid_request_error", "unsupported_encoding")

    @pytest.mark.parametrize(
        "headers", [{"anthropic-beta": "a\r\nx-api-key: stolen"}, {"anthropic-version": "\x00"}, {"user-agent": "世"}]
    )
    def test_a_header_that_would_smuggle_another_is_refused(
        self, function: ClaudeFunction, headers: dict[str, str]
    ) -> None:
        answer = function.call("POST", "/v1/messages", function.message(), headers=headers)
        refused(answer, 400, "invalid_request_error", "invalid_request")
        assert len(function.claude.exchanges) == 0

    def test_what_has_no_bound_is_refused_on_a_hard_quota_only(self, function: ClaudeFunction) -> None:
        free = function.add_user(f"{function.user_id}-2", "free")
        tools = [{"type": "web_search_20260318", "name": "web_search"}]
        message = refused(function.send(key=free, tools=tools), 400, "invalid_request_error", "unbounded_request")
        assert "web_search_20260318" in message
        assert function.send(tools=tools).status == 200


class TestSecrecy:
    @pytest.mark.parametrize(
        "text",
        [
            CANARY,
            f"{CANARY} [[fake error=400 error_message={CANARY}]]",
            f"{CANARY} [[fake error=401 error_message={CANARY}]]",
            f"{CANARY} [[fake error=529]]",
            f"{CANARY} [[fake truncate_after=1]]",
            f"{CANARY} [[fake error_after=1]]",
            f"{CANARY} [[fake reset]]",
            f"{CANARY} [[fake hidden_input=9000000]]",
        ],
    )
    def test_no_prompt_and_no_key_is_logged_or_stored(
        self, function: ClaudeFunction, capsys: pytest.CaptureFixture[str], text: str
    ) -> None:
        for stream in (True, False):
            answer = function.send(text, stream=stream, system=CANARY, metadata={"user_id": CANARY})
            assert UPSTREAM_KEY not in answer.body.decode() + repr(answer.headers)
        written = capsys.readouterr()
        kept = written.out + written.err + repr(function.table.items())
        for secret in (CANARY, function.key, UPSTREAM_KEY, PEPPER):
            assert secret not in kept


def test_the_body_may_come_as_text_or_base64(function: ClaudeFunction) -> None:
    """Lambda sends text bodies as they are; the size counts after decoding in both."""
    body = json.dumps(function.message("é"), ensure_ascii=False)
    for encoded in (False, True):
        text = base64.b64encode(body.encode()).decode() if encoded else body
        assert function.invoke("POST", "/v1/messages", text, encoded=encoded).status == 200
        assert function.claude.exchanges[-1].body == body.encode()
