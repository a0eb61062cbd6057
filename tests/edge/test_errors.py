"""The error table: what each refusal looks like to a client, and what can never be in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from tollgate.domain import errors
from tollgate.domain.errors import (
    AuthenticationError,
    InvalidRequestError,
    MethodNotAllowedError,
    QuotaExceededError,
    RateLimitedError,
    TollgateError,
    UpstreamUnavailableError,
)
from tollgate.edge.errors import ERROR_TABLE, error_event, render, rfc3339, row_for

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
RESET = datetime(2026, 12, 1, tzinfo=UTC)


def quota_error(resets_at: datetime = RESET) -> QuotaExceededError:
    return QuotaExceededError("Used up.", remaining_tokens=5, needed_tokens=90, resets_at=resets_at)


def answered(error: Exception) -> tuple[int, dict[str, str], dict[str, object]]:
    status, headers, body = render(error, "req_1", now=NOW)
    document = json.loads(body)
    assert document["type"] == "error"
    assert document["request_id"] == headers["request-id"] == "req_1"
    return status, headers, document["error"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry"),
    [
        (InvalidRequestError("x"), 400, "invalid_request_error", "false"),
        (AuthenticationError("x"), 401, "authentication_error", "false"),
        (AuthenticationError("x", error_code="revoked"), 401, "authentication_error", "false"),
        (errors.PaymentRequiredError("x"), 402, "billing_error", "false"),
        (errors.PermissionDeniedError("x"), 403, "permission_error", "false"),
        (errors.NotFoundError("x"), 404, "not_found_error", "false"),
        (MethodNotAllowedError("x"), 405, "invalid_request_error", "false"),
        (errors.DuplicateRequestError("x"), 409, "conflict_error", "false"),
        (errors.RequestTooLargeError("x"), 413, "request_too_large", "false"),
        (errors.UnsupportedMediaTypeError("x"), 415, "invalid_request_error", "false"),
        (errors.IdempotencyMismatchError("x"), 422, "invalid_request_error", "false"),
        (RateLimitedError("x", retry_after_seconds=3), 429, "rate_limit_error", None),
        (quota_error(), 429, "billing_error", "false"),
        (UpstreamUnavailableError("x"), 503, "api_error", "false"),
        (UpstreamUnavailableError("x", error_code="upstream_error"), 503, "api_error", None),
        (UpstreamUnavailableError("x", error_code="secrets_unavailable"), 503, "api_error", None),
        (UpstreamUnavailableError("x", error_code="sign_in_unavailable"), 503, "api_error", None),
        (UpstreamUnavailableError("x", error_code="no_time_left"), 503, "api_error", None),
        (RateLimitedError("x", retry_after_seconds=1, error_code="contention"), 429, "rate_limit_error", None),
        (UpstreamUnavailableError("x", error_code="upstream_lost"), 503, "api_error", "false"),
        (UpstreamUnavailableError("x", error_code="deadline_reached"), 504, "timeout_error", "false"),
        (UpstreamUnavailableError("x", error_code="never seen"), 503, "api_error", "false"),
        (errors.StoreUnavailableError("x"), 503, "api_error", None),
        (errors.UpstreamBusyError("x"), 529, "overloaded_error", None),
        (ZeroDivisionError("x"), 500, "api_error", None),
    ],
    ids=lambda value: getattr(value, "error_code", None) if isinstance(value, Exception) else None,
)
def test_each_refusal_has_its_status_type_and_word_about_retrying(
    error: Exception, status: int, kind: str, retry: str | None
) -> None:
    found_status, headers, body = answered(error)
    assert (found_status, body["type"]) == (status, kind)
    assert headers.get("x-should-retry") == retry


def test_every_refusal_has_a_row_of_its_own() -> None:
    rows = {row.error for row in ERROR_TABLE}
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, TollgateError) and kind is not TollgateError
    }
    assert kinds == rows - {Exception}


def test_every_default_code_is_in_its_row() -> None:
    for row in ERROR_TABLE:
        if issubclass(row.error, TollgateError):
            codes = {code for other in ERROR_TABLE if other.error is row.error for code in other.codes}
            assert row.error.error_code in codes
        assert row.when
        assert row.client


def test_no_code_stands_in_two_rows_of_one_class() -> None:
    seen = [(row.error, code) for row in ERROR_TABLE for code in row.codes]
    assert len(seen) == len(set(seen))


def test_a_subclass_is_answered_as_its_parent() -> None:
    class NewError(InvalidRequestError):
        pass

    assert row_for(NewError("x")).status == 400


@pytest.mark.parametrize(("asked", "told"), [(0, "1"), (1, "1"), (59, "59"), (60, "60"), (61, "60"), (86_400, "60")])
def test_a_short_window_never_makes_a_client_wait_longer_than_a_minute(asked: int, told: str) -> None:
    assert answered(RateLimitedError("x", retry_after_seconds=asked))[1]["retry-after"] == told


@pytest.mark.parametrize(("asked", "told"), [(0, "1"), (1, "1"), (60, "60"), (61, "61"), (86_400, "86400")])
def test_an_open_route_tells_the_true_wait_and_stops_retries(asked: int, told: str) -> None:
    error = RateLimitedError("x", retry_after_seconds=asked, error_code="too_many_attempts")
    status, headers, body = answered(error)
    assert (status, body["type"]) == (429, "rate_limit_error")
    assert (headers["retry-after"], headers["x-should-retry"]) == (told, "false")


def test_every_429_tells_whole_seconds() -> None:
    for row in ERROR_TABLE:
        for code in row.codes if int(row.status) == 429 else ():
            error = (
                quota_error()
                if row.error is errors.QuotaExceededError
                else RateLimitedError("x", retry_after_seconds=7)
            )
            error.error_code = code
            status, headers, _ = answered(error)
            assert (status, headers["retry-after"].isdecimal()) == (429, True), code


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-5, "1"), (0, "1"), (0.2, "1"), (1, "1"), (1.5, "2"), (86_400, "86400"), (1_209_600, "1209600")],
)
def test_an_exhausted_quota_tells_whole_seconds_to_the_reset_and_stops_retries(seconds: float, told: str) -> None:
    """Without the second header the SDKs would sleep until the next usage period."""
    _, headers, body = answered(quota_error(NOW + timedelta(seconds=seconds)))
    assert (headers["retry-after"], headers["x-should-retry"]) == (told, "false")
    assert isinstance(body["details"], dict)
    assert body["details"]["remaining_tokens"] == 5
    assert body["details"]["needed_tokens"] == 90


def test_an_exhausted_quota_is_told_in_claude_codes_own_headers() -> None:
    headers = answered(quota_error())[1]
    notice = {name: value for name, value in headers.items() if "unified" in name}
    reset = str(int(RESET.timestamp()))
    prefix = "anthropic-ratelimit-unified-"
    assert notice == {
        f"{prefix}status": "rejected",
        f"{prefix}reset": reset,
        f"{prefix}overage-reset": reset,
        f"{prefix}overage-utilization": "1.00",
        f"{prefix}overage-surpassed-threshold": "1",
        f"{prefix}overage-period": "monthly",
        f"{prefix}overage-disabled-reason": "org_spend_cap_reached",
    }


def test_what_is_not_ours_tells_nothing_of_itself() -> None:
    error = RuntimeError("CANARY")
    error.__cause__ = KeyError("CANARY")
    for data in (render(error, "req_1", now=NOW)[2], error_event(error, "req_1")):
        assert b"CANARY" not in data
        assert b'"error_code":"internal_error"' in data


def test_the_cause_of_an_error_of_ours_is_not_told() -> None:
    error = UpstreamUnavailableError("Public.")
    error.__cause__ = RuntimeError("CANARY")
    assert b"CANARY" not in render(error, "req_1", now=NOW)[2]


@pytest.mark.parametrize("text", ["a\n\nevent: message_stop\ndata: {}\n\n", "\r\n\r", "\u2028", "é\x00"])
def test_no_text_can_end_an_event_early(text: str) -> None:
    data = error_event(InvalidRequestError(text), "req_1")
    name, line, *rest = data.decode("ascii").split("\n")
    assert (name, rest) == ("event: error", ["", ""])
    assert json.loads(line.removeprefix("data: "))["error"]["message"] == text


def test_times_are_told_in_utc_and_whole_seconds() -> None:
    assert rfc3339(datetime.fromisoformat("2026-11-20T13:00:00.900+01:00")) == "2026-11-20T12:00:00Z"
