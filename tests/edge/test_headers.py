"""What crosses the gateway in headers, and what callers read about their rate and quota."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.ledger_world import START, a_plan
from tollgate.domain.errors import InvalidRequestError
from tollgate.domain.ledger import Meter, MeterKey
from tollgate.domain.periods import UsagePeriod
from tollgate.domain.plans import UNLIMITED, Plan
from tollgate.domain.principals import Account, Profile
from tollgate.edge.headers import (
    MAX_PASSED_DOWN_BYTES,
    forwarded,
    idempotency_key_of,
    passed_down,
    standing_headers,
    target_of,
)
from tollgate.flows.message_calls import Standing
from tollgate_runtime import Response

JSON = {"content-type": "application/json"}
PERIOD = UsagePeriod(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
NOW = START.timestamp()
UNIFIED = "anthropic-ratelimit-unified-"


class TestUp:
    @pytest.mark.parametrize(
        "name",
        [
            "anthropic-version",
            "anthropic-beta",
            "anthropic-dangerous-direct-browser-access",
            "anthropic-brand-new-2027",
            "accept",
            "user-agent",
            "x-app",
            "x-stainless-lang",
            "x-claude-code-session-id",
        ],
    )
    def test_what_clients_of_claude_send_passes(self, name: str) -> None:
        assert forwarded({name: "a, b"}) == {name: "a, b"} | JSON

    @pytest.mark.parametrize(
        "name",
        [
            "authorization",
            "x-api-key",
            "cookie",
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "keep-alive",
            "te",
            "upgrade",
            "proxy-authorization",
            "expect",
            "accept-encoding",
            "content-encoding",
            "x-forwarded-for",
            "x-forwarded-proto",
            "forwarded",
            "via",
            "x-amzn-trace-id",
            "x-user-id",
            "x-tenant-id",
            "x-platform-user-id",
            "idempotency-key",
            "origin",
            "referer",
            "anthropic-organization-id",
            "anthropic-workspace-id",
            "anthropic-user-profile-id",
        ],
    )
    def test_credentials_identities_and_what_concerns_one_hop_stay_here(self, name: str) -> None:
        assert forwarded({name: "x"}) == JSON

    @pytest.mark.parametrize("value", ["application/json", "application/json; charset=iso-8859-1", "text/plain", ""])
    def test_upstream_reads_the_body_as_it_was_read_here(self, value: str) -> None:
        """In another charset the same bytes would be another text."""
        assert forwarded({"content-type": value}) == JSON

    @pytest.mark.parametrize("value", ["a\r\nx-api-key: b", "a\nb", "\x00", "\x7f", "世"])
    def test_a_value_that_http_cannot_carry_is_a_bad_request(self, value: str) -> None:
        with pytest.raises(InvalidRequestError):
            forwarded({"anthropic-beta": value})

    def test_the_query_passes_as_it_came(self) -> None:
        assert target_of("/v1/messages", "") == "/v1/messages"
        assert target_of("/v1/messages", "beta=true&x=%0d%0a") == "/v1/messages?beta=true&x=%0d%0a"

    @pytest.mark.parametrize("query", ["a b", "a\r\nb", "é"])
    def test_a_query_that_http_cannot_carry_is_a_bad_request(self, query: str) -> None:
        with pytest.raises(InvalidRequestError):
            target_of("/v1/messages", query)

    @pytest.mark.parametrize(
        ("sent", "found"), [("", None), ("  ", None), ("k", "k"), (" k ", "k"), ("k" * 128, "k" * 128)]
    )
    def test_an_idempotency_key_is_optional(self, sent: str, found: str | None) -> None:
        assert idempotency_key_of({"idempotency-key": sent}) == found
        assert idempotency_key_of({}) is None

    @pytest.mark.parametrize("sent", ["k" * 129, "a b", "é", "a\n"])
    def test_an_idempotency_key_is_short_and_plain(self, sent: str) -> None:
        with pytest.raises(InvalidRequestError):
            idempotency_key_of({"idempotency-key": sent + "x"})


class TestDown:
    def test_claudes_own_headers_pass_and_the_request_id_is_ours(self) -> None:
        upstream = {"content-type": "text/event-stream", "cache-control": "no-cache", "request-id": "req_up"}
        assert passed_down(upstream | {"anthropic-new": "x"}, "req_1") == {
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "anthropic-new": "x",
            "request-id": "req_1",
            "x-upstream-request-id": "req_up",
        }

    @pytest.mark.parametrize(
        "name",
        [
            "anthropic-ratelimit-tokens-remaining",
            "anthropic-ratelimit-unified-status",
            "anthropic-priority-input-tokens-limit",
            "anthropic-fast-input-tokens-limit",
            "anthropic-organization-id",
            "anthropic-workspace-id",
            "set-cookie",
            "server",
            "via",
            "cf-ray",
            "connection",
            "transfer-encoding",
            "content-length",
            "retry-after",
            "access-control-allow-origin",
        ],
    )
    def test_shared_limits_our_accounts_and_what_concerns_one_hop_stay_here(self, name: str) -> None:
        assert passed_down({name: "x"}, "req_1") == {"request-id": "req_1"}

    @pytest.mark.parametrize("value", ["a\x7fb", "a\r\n b", "a\x00", "世", ""])
    @pytest.mark.parametrize("name", ["anthropic-note", "content-language", "request-id"])
    def test_a_value_that_http_cannot_carry_on_stays_here(self, name: str, value: str) -> None:
        assert passed_down({name: value, "content-type": "text/plain"}, "req_1") == {
            "request-id": "req_1",
            "content-type": "text/plain",
        }

    @pytest.mark.parametrize("name", ["anthropic-no te", "anthropic-é", "anthropic-a:b"])
    def test_a_name_that_http_cannot_carry_on_stays_here(self, name: str) -> None:
        assert passed_down({name: "x"}, "req_1") == {"request-id": "req_1"}

    @pytest.mark.parametrize("value", ["x" * 20_000, "é" * 3000, '"' * 5000])
    def test_one_that_is_too_large_stays_here_and_the_others_pass(self, value: str) -> None:
        passed = passed_down({"anthropic-huge": value, "anthropic-small": "x", "content-type": "text/plain"}, "req_1")
        assert passed == {"request-id": "req_1", "anthropic-small": "x", "content-type": "text/plain"}

    @pytest.mark.parametrize("size", [10, 500, 4000, MAX_PASSED_DOWN_BYTES])
    def test_whatever_upstream_sends_fits_into_one_answer_with_all_of_ours(self, size: int) -> None:
        upstream = {f"anthropic-{number:04d}": "é" * size for number in range(500)} | {"content-type": "text/plain"}
        plan = a_plan(requests_per_minute=60, burst_requests=10, quota_requests=1000)
        ours = standing_headers(standing(plan, quota_requests=1000, settled_tokens=999), NOW)
        headers = passed_down({"request-id": "r" * size} | upstream, "req_1") | ours
        Response(200, headers)
        assert headers["content-type"] == "text/plain"


def standing(plan: Plan, **changes: Any) -> Standing:  # noqa: ANN401  any field of Meter
    meter = Meter(
        key=MeterKey("main", "u1", PERIOD),
        quota_tokens=1000,
        overage_cap_tokens=0,
        remaining_tokens=1000,
        settled_tokens=0,
        written_off_tokens=0,
        quota_requests=UNLIMITED,
        remaining_requests=UNLIMITED,
        open_count=0,
        rate_tat_ms=0,
        plan_id="test",
        plan_version=1,
    )
    return Standing(Account(Profile("main", "u1", "test", 1, START), plan), replace(meter, **changes))


class TestStanding:
    def test_tells_the_minute_and_the_period(self) -> None:
        plan = a_plan(requests_per_minute=60, burst_requests=10)
        tat_ms = int(NOW * 1000) + 2500
        headers = standing_headers(standing(plan, remaining_tokens=700, rate_tat_ms=tat_ms), NOW)
        assert {name: value for name, value in headers.items() if "unified" not in name} == {
            "anthropic-ratelimit-requests-limit": "60",
            "anthropic-ratelimit-requests-remaining": "7",
            "anthropic-ratelimit-requests-reset": "2026-11-20T12:00:03Z",
            "anthropic-ratelimit-tokens-limit": "1000",
            "anthropic-ratelimit-tokens-remaining": "700",
            "anthropic-ratelimit-tokens-reset": "2026-12-01T00:00:00Z",
            "ratelimit-policy": '"rpm";q=60;w=60, "plan";q=1000;qu="tokens";w=2592000',
            "ratelimit": '"rpm";r=7;t=3, "plan";r=700;t=907200',
            "tollgate-quota-used-percent": "0",
        }

    @pytest.mark.parametrize(
        ("settled", "percent"), [(749, "74"), (750, "75"), (999, "99"), (1000, "100"), (1999, "199")]
    )
    def test_tells_the_share_that_is_used_rounded_down(self, settled: int, percent: str) -> None:
        """From what is settled: what this very call holds mostly returns."""
        headers = standing_headers(standing(a_plan(), settled_tokens=settled, remaining_tokens=1000 - settled), NOW)
        assert headers["tollgate-quota-used-percent"] == percent

    def test_of_two_quotas_tells_the_one_that_is_nearer_to_its_end(self) -> None:
        changes = {"quota_requests": 10, "remaining_requests": 1, "settled_tokens": 500, "remaining_tokens": 500}
        headers = standing_headers(standing(a_plan(quota_requests=10), **changes), NOW)
        assert headers["tollgate-quota-used-percent"] == "90"

    @pytest.mark.parametrize(
        ("ahead_ms", "left"), [(-1, 10), (0, 10), (1, 9), (8999, 1), (9000, 1), (9001, 0), (60_000, 0)]
    )
    def test_counts_the_requests_that_would_pass_now(self, ahead_ms: int, left: int) -> None:
        plan = a_plan(requests_per_minute=60, burst_requests=10)
        headers = standing_headers(standing(plan, rate_tat_ms=int(NOW * 1000) + ahead_ms), NOW)
        assert headers["anthropic-ratelimit-requests-remaining"] == str(left)

    def test_requests_are_the_periods_when_there_is_no_minute(self) -> None:
        headers = standing_headers(
            standing(a_plan(), quota_tokens=UNLIMITED, quota_requests=100, remaining_requests=40), NOW
        )
        assert headers["anthropic-ratelimit-requests-limit"] == "100"
        assert headers["anthropic-ratelimit-requests-remaining"] == "40"
        assert "anthropic-ratelimit-tokens-limit" not in headers

    def test_nothing_is_told_to_a_user_without_any_quota(self) -> None:
        assert standing_headers(standing(a_plan(), quota_tokens=UNLIMITED), NOW) == {}

    def test_overage_is_nothing_left_and_not_less(self) -> None:
        headers = standing_headers(standing(a_plan(), remaining_tokens=-300, overage_cap_tokens=1000), NOW)
        assert headers["anthropic-ratelimit-tokens-remaining"] == "0"

    @pytest.mark.parametrize(
        ("settled", "shown", "threshold"),
        [
            (0, "0.00", None),
            (749, "0.74", None),
            (750, "0.75", "0.75"),
            (949, "0.94", "0.75"),
            (950, "0.95", "0.95"),
            (1000, "0.99", "0.95"),
            (5000, "0.99", "0.95"),
        ],
    )
    def test_warns_claude_code_once_a_threshold_is_passed(
        self, settled: int, shown: str, threshold: str | None
    ) -> None:
        headers = standing_headers(standing(a_plan(), settled_tokens=settled), NOW)
        status = "allowed" if threshold is None else "allowed_warning"
        reset = str(int(PERIOD.end_at.timestamp()))
        assert {name: value for name, value in headers.items() if name.startswith(UNIFIED)} == {
            f"{UNIFIED}status": status,
            f"{UNIFIED}representative-claim": "overage",
            f"{UNIFIED}overage-status": status,
            f"{UNIFIED}overage-utilization": shown,
            f"{UNIFIED}reset": reset,
            f"{UNIFIED}overage-reset": reset,
        } | ({} if threshold is None else {f"{UNIFIED}overage-surpassed-threshold": threshold})

    def test_warns_by_the_quota_and_the_overage_that_may_follow(self) -> None:
        headers = standing_headers(standing(a_plan(), settled_tokens=1500, overage_cap_tokens=1000), NOW)
        assert headers[f"{UNIFIED}overage-utilization"] == "0.75"

    def test_overage_of_an_earlier_plan_is_no_part_of_this_ones_quota(self) -> None:
        """1,200 used of 1,000, then a plan of 5,000: 1,000 of the 5,000 are used."""
        banked = {"quota_tokens": 5_200, "banked_tokens": 200, "settled_tokens": 1_200, "remaining_tokens": 4_000}
        headers = standing_headers(standing(a_plan(quota_tokens=5_000), **banked), NOW)
        assert headers["anthropic-ratelimit-tokens-limit"] == "5000"
        assert headers["tollgate-quota-used-percent"] == "20"
        assert headers[f"{UNIFIED}overage-utilization"] == "0.20"

    def test_warns_by_whichever_runs_out_first(self) -> None:
        headers = standing_headers(
            standing(a_plan(), settled_tokens=100, quota_requests=100, remaining_requests=4, open_count=1), NOW
        )
        assert headers[f"{UNIFIED}overage-utilization"] == "0.95"

    def test_reservations_alone_are_no_warning(self) -> None:
        headers = standing_headers(standing(a_plan(), remaining_tokens=10), NOW)
        assert headers[f"{UNIFIED}status"] == "allowed"
