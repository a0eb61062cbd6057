"""The line that a developer sees for each request."""

from __future__ import annotations

import io
from datetime import UTC, datetime

from dev.request_log import Outcome, RequestLog, Screen, loud_text, parse_line

AT = datetime(2026, 11, 20, 4, 12, 7, tzinfo=UTC)


def line(outcome: Outcome) -> str:
    log = RequestLog(Screen(io.StringIO(), colour=False))
    log.names = {"user-1": "demo"}
    return log.format(outcome)


def test_a_metered_stream_shows_who_what_how_long_and_what_is_left() -> None:
    events = [
        {
            "message": "request_settled",
            "outcome": "complete",
            "user_id": "user-1",
            "model": "claude-sonnet-5-5",
            "input_tokens": 9,
            "output_tokens": 1048,
            "cache_read_tokens": 5,
            "cache_write_5m_tokens": 7,
            "cost_picousd": 498_000_000,
            "remaining_tokens": 715_633,
        }
    ]
    shown = line(Outcome("POST", "/v1/messages", AT, 200, True, 21, 312, events=events))
    assert "POST /v1/messages  200 stream  demo  sonnet-5-5  in 9 out 1,048 cache 12  ttft 21 ms  312 ms" in shown
    assert shown.endswith("$0.000498  left 715,633")


def test_a_refusal_shows_its_code() -> None:
    events = [{"message": "request_refused", "error_code": "quota_exceeded", "status": 429}]
    assert "429  quota_exceeded  3 ms" in line(Outcome("POST", "/v1/messages", AT, 429, duration_ms=3, events=events))


def test_a_refusal_shows_who_was_refused() -> None:
    refusal = {"message": "request_refused", "error_code": "model_not_in_plan", "status": 400, "plan_id": "free"}
    for user_id, shown in (("user-1", "demo"), ("2f6c1a90-77aa", "2f6c1a90")):
        outcome = Outcome("POST", "/v1/messages", AT, 400, duration_ms=3, events=[refusal | {"user_id": user_id}])
        assert f"400  {shown}  model_not_in_plan  3 ms" in line(outcome)


def test_what_the_gateway_itself_says_is_shown() -> None:
    shown = line(Outcome("GET", "/auth/me", AT, 401, note="authorizer: no token"))
    assert "401  authorizer: no token" in shown


def test_a_client_that_left_is_told() -> None:
    assert "client left" in line(Outcome("POST", "/v1/messages", AT, 200, True, 5, 9, client_left=True))


def test_only_structured_lines_count_and_metrics_do_not() -> None:
    assert parse_line('{"message":"x","level":"INFO"}') == {"message": "x", "level": "INFO"}
    assert parse_line('{"_aws":{},"message":"x"}') is None
    assert parse_line("Traceback (most recent call last):") is None
    assert parse_line("{broken") is None


def test_a_closed_screen_is_no_reason_to_stop() -> None:
    out = io.StringIO()
    out.close()
    Screen(out, colour=False).line("nobody reads this")


def test_an_error_shows_what_and_where() -> None:
    event = {
        "level": "ERROR",
        "message": "as asked",
        "errorType": "ValueError",
        "stackTrace": ["  File x\n", "  raise\n"],
    }
    assert loud_text(event) == "ERROR  as asked  ValueError\n  File x\n  raise"
