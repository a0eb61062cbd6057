"""Events in payload format 2.0, routes, cross-origin answers and schedules of the local stack."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dev.cors import is_preflight, preflight_headers, response_headers
from dev.events import Request, encode, function_url_event, http_api_event, knows_path, match_route, schedule_event
from dev.schedule import next_run_at
from dev.template import Cors, Function, FunctionUrl, JwtAuthorizer, Route, Schedule, TemplateError

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
AUTHORIZER = JwtAuthorizer("Jwt", "https://issuer", ("client-1",))
FUNCTION = Function("Work", Path("work"), "app.handler", "python3.13", 3, 128, (), {}, "JSON", FunctionUrl(True, None))
CORS = Cors(("https://app.example",), ("GET", "POST"), ("authorization", "content-type"), ("request-id",), False, 60)


def request(
    method: str = "POST", path: str = "/v1/messages", query: str = "", body: bytes = b"", **headers: str
) -> Request:
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Request(method, path, query, pairs, body, "127.0.0.1", NOON)


def test_a_json_body_travels_as_text() -> None:
    event = function_url_event(request(body=b'{"a":1}', content_type="application/json; charset=utf-8"), FUNCTION, "r")
    assert event["body"] == '{"a":1}'
    assert event["isBase64Encoded"] is False


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"\x00\x01", "application/octet-stream"), (b"a=1", ""), (b"\xff{}", "application/json")],
)
def test_anything_that_is_not_text_travels_as_base64(body: bytes, content_type: str) -> None:
    event = function_url_event(request(body=body, content_type=content_type), FUNCTION, "r")
    assert event["isBase64Encoded"] is True
    assert base64.b64decode(event["body"]) == body


def test_no_body_is_no_body() -> None:
    assert "body" not in function_url_event(request("GET"), FUNCTION, "r")


def test_repeated_headers_are_joined_and_cookies_set_apart() -> None:
    pairs = (("x-a", "1"), ("x-a", "2"), ("cookie", "a=1; b=2"), ("connection", "close"), ("host", "h"))
    event = function_url_event(Request("GET", "/", "", pairs, b"", "127.0.0.1", NOON), FUNCTION, "r")
    assert event["headers"]["x-a"] == "1,2"
    assert event["cookies"] == ["a=1", "b=2"]
    assert "connection" not in event["headers"]
    assert "cookie" not in event["headers"]


def test_the_query_is_kept_raw_and_parsed() -> None:
    event = function_url_event(request(query="beta=true&x=1&x=2&empty="), FUNCTION, "r")
    assert event["rawQueryString"] == "beta=true&x=1&x=2&empty="
    assert event["queryStringParameters"] == {"beta": "true", "x": "1,2", "empty": ""}


def test_an_http_api_event_carries_the_claims_as_text() -> None:
    route = Route("GET", "/auth/me", "Work", AUTHORIZER)
    claims = {"sub": "u", "exp": 5, "email_verified": True, "cognito:groups": ["a", "b"]}
    event = http_api_event(request("GET", "/auth/me"), route, {}, claims, "r")
    assert event["routeKey"] == "GET /auth/me"
    assert event["requestContext"]["authorizer"]["jwt"] == {
        "claims": {"sub": "u", "exp": "5", "email_verified": "true", "cognito:groups": "[a b]"},
        "scopes": None,
    }


def test_a_route_without_authorizer_has_no_authorizer_context() -> None:
    event = http_api_event(request("GET", "/health"), Route("GET", "/health", "Work", None), {}, None, "r")
    assert "authorizer" not in event["requestContext"]


def test_path_parameters_are_decoded_and_passed() -> None:
    routes = (Route("GET", "/keys/{id}", "Work", None),)
    found = match_route(routes, "GET", request(path="/keys/a%20b").path)
    assert found is not None
    event = http_api_event(request("GET", "/keys/a%20b"), *found, None, "r")
    assert event["pathParameters"] == {"id": "a b"}
    assert event["rawPath"] == "/keys/a b"


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [
        ("GET", "/keys/mine", "GET /keys/mine"),
        ("GET", "/keys/7", "GET /keys/{id}"),
        ("POST", "/keys/7", "ANY /keys/{id}"),
        ("GET", "/files/a/b", "GET /files/{path+}"),
        ("GET", "/files", None),
        ("DELETE", "/keys/mine", "ANY /keys/{id}"),
        ("GET", "/keys/7/more", None),
    ],
)
def test_the_most_specific_route_wins(method: str, path: str, key: str | None) -> None:
    patterns = (("GET", "/keys/{id}"), ("GET", "/keys/mine"), ("ANY", "/keys/{id}"), ("GET", "/files/{path+}"))
    routes = tuple(Route(known, pattern, "Work", None) for known, pattern in patterns)
    found = match_route(routes, method, path)
    assert (found[0].key if found else None) == key


def test_a_known_path_with_another_method_is_still_the_apis() -> None:
    routes = (Route("GET", "/auth/me", "Work", None),)
    assert knows_path(routes, "/auth/me")
    assert match_route(routes, "POST", "/auth/me") is None
    assert not knows_path(routes, "/v1/messages")


def test_an_event_is_compact_utf8() -> None:
    assert encode({"body": "é"}) == '{"body":"é"}'.encode()


def test_a_schedule_fills_in_its_context() -> None:
    text = '{"at": "<aws.scheduler.scheduled-time>", "id": "<aws.scheduler.execution-id>"}'
    event = schedule_event(Schedule("s", "Work", "rate(1 hour)", text), NOON, "run-1")
    assert json.loads(event) == {"at": "2026-11-20T12:00:00Z", "id": "run-1"}


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("rate(1 minute)", "2026-11-20T12:01"),
        ("rate(1 hour)", "2026-11-20T13:00"),
        ("rate(2 days)", "2026-11-22T12:00"),
        ("at(2026-11-20T12:30:00)", "2026-11-20T12:30"),
        ("at(2026-11-20T11:30:00)", None),
        ("cron(5 * * * ? *)", "2026-11-20T12:05"),
        ("cron(0 12 * * ? *)", "2026-11-21T12:00"),
        ("cron(0/15 * * * ? *)", "2026-11-20T12:15"),
        ("cron(0 3 ? * MON-FRI *)", "2026-11-23T03:00"),
        ("cron(0 0 1 JAN,JUL ? *)", "2027-01-01T00:00"),
    ],
)
def test_schedules_are_due_when_their_expression_says(expression: str, due: str | None) -> None:
    expected = None if due is None else datetime.fromisoformat(due).replace(tzinfo=UTC)
    assert next_run_at(expression, NOON) == expected


@pytest.mark.parametrize("expression", ["rate(0 hours)", "rate(1 week)", "cron(* * *)", "cron(0 0 L * ? *)", "soon"])
def test_a_schedule_that_is_not_understood_is_refused(expression: str) -> None:
    with pytest.raises(TemplateError):
        next_run_at(expression, NOON)


def preflight(origin: str = "https://app.example", method: str = "POST", headers: str = "content-type") -> Request:
    return request(
        "OPTIONS", origin=origin, access_control_request_method=method, access_control_request_headers=headers
    )


def test_a_preflight_of_an_allowed_origin_gets_the_rules() -> None:
    headers = dict(preflight_headers(CORS, preflight()))
    assert headers["access-control-allow-origin"] == "https://app.example"
    assert headers["access-control-allow-methods"] == "GET,POST"
    assert headers["access-control-max-age"] == "60"


@pytest.mark.parametrize(
    "asked",
    [preflight(origin="https://other.example"), preflight(method="DELETE"), preflight(headers="content-type,x-other")],
)
def test_a_preflight_outside_the_rules_gets_none(asked: Request) -> None:
    assert is_preflight(asked)
    assert preflight_headers(CORS, asked) == []


def test_a_star_of_headers_never_covers_authorization() -> None:
    anything = Cors(("*",), ("*",), ("*",), (), False, None)
    assert preflight_headers(anything, preflight(headers="x-anything"))
    assert preflight_headers(anything, preflight(headers="authorization")) == []


def test_an_answer_exposes_headers_to_an_allowed_origin_only() -> None:
    allowed = dict(response_headers(CORS, request(origin="https://app.example")))
    assert allowed["access-control-expose-headers"] == "request-id"
    assert allowed["vary"] == "Origin"
    assert response_headers(CORS, request(origin="https://other.example")) == []
    assert response_headers(CORS, request()) == []
