"""What every route of the HTTP API does with a request before its own code: one envelope for whatever is wrong."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from aws_lambda_powertools.event_handler.openapi.params import Path, Query
from pydantic import Field, field_validator

from tests.support.clocks import FakeClock
from tests.support.http_events import http_event
from tests.support.lambda_context import LambdaContext
from tollgate.domain.errors import NotFoundError, RateLimitedError
from tollgate.domain.sources import Clock
from tollgate.edge.documents import AnswerDocument, RequestDocument
from tollgate.edge.http_api import BODY_BYTES_AT_MOST, HttpApi, refusals
from tollgate.telemetry import Telemetry

CONTEXT: Any = LambdaContext()
JSON = "application/json"


@dataclass(frozen=True)
class SomeTools:
    clock: Clock
    telemetry: Telemetry
    client_ids: frozenset[str] = frozenset({"client"})


class Limits(RequestDocument):
    tokens: int = Field(ge=1)


class Order(RequestDocument):
    name: str = Field(min_length=1, max_length=20)
    limits: Limits | None = None
    tags: list[str] = Field(default=[], max_length=3)

    @field_validator("name")
    @classmethod
    def must_be_polite(cls, value: str) -> str:
        if value == "rude":
            raise ValueError("Say it nicely.")
        return value


class Receipt(AnswerDocument):
    name: str


def some_api() -> HttpApi[SomeTools]:
    clock = FakeClock()
    api: HttpApi[SomeTools] = HttpApi(lambda: SomeTools(clock, Telemetry(service="test", stage="test", clock=clock)))

    @api.post("/orders", status_code=201, responses=refusals(NotFoundError))
    def order(body: Order) -> Receipt:
        return Receipt(name=body.name)

    @api.put("/orders/<order_id>")
    def change(order_id: Annotated[str, Path(max_length=8)], body: Order | None = None) -> Receipt:
        return Receipt(name=f"{order_id} {'-' if body is None else body.name}")

    @api.get("/orders")
    def listed(limit: Annotated[int, Query(ge=1, le=10)] = 5) -> Receipt:
        return Receipt(name=str(limit))

    @api.delete("/orders/<order_id>", status_code=204)
    def cancel(order_id: str) -> None:
        return None

    @api.get("/address")
    def address() -> Receipt:
        return Receipt(name=api.source_ip())

    @api.get("/broken")
    def broken() -> Receipt:
        return {"nom": "canary"}  # type: ignore[return-value]

    return api


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any
    raw: str


Send = Callable[..., Answer]


@pytest.fixture
def send() -> Send:
    api = some_api()

    def call(method: str, path: str, body: str | bytes | None = None, **headers: str) -> Answer:
        event = http_event(method, path)
        if isinstance(body, bytes):
            event |= {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}
        elif body is not None:
            event["body"] = body
        event["headers"] |= {"content-type": JSON} | {name.replace("_", "-"): text for name, text in headers.items()}
        path, _, query = path.partition("?")
        event["rawPath"] = event["requestContext"]["http"]["path"] = path
        event["rawQueryString"] = query
        if query:
            event["queryStringParameters"] = dict(part.split("=", 1) for part in query.split("&"))
        answer = api.handle(event, CONTEXT)
        text = answer["body"]
        names = {name.lower(): value for name, value in answer["headers"].items()}
        return Answer(answer["statusCode"], names, json.loads(text) if text else None, text)

    return call


def refused(answer: Answer, status: int, code: str) -> str:
    """The message of a refusal in the envelope."""
    assert (answer.status, answer.headers["content-type"]) == (status, JSON)
    assert answer.headers["request-id"] == answer.body["request_id"] == CONTEXT.aws_request_id
    assert answer.body["error"]["details"]["error_code"] == code
    message: str = answer.body["error"]["message"]
    return message


def test_a_good_request_is_answered_by_its_route(send: Send) -> None:
    answer = send("POST", "/orders", '{"name": "tea", "limits": {"tokens": 1}}')
    assert (answer.status, answer.body) == (201, {"name": "tea"})


@pytest.mark.parametrize("body", ['{"name": "tea"}', b'{"name": "tea"}', ' {"name":"tea"}\n'])
@pytest.mark.parametrize("kind", [JSON, "Application/JSON; charset=utf-8", " application/json "])
def test_text_and_base64_are_the_same_body(send: Send, body: str | bytes, kind: str) -> None:
    assert send("POST", "/orders", body, content_type=kind).status == 201


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ('{"nome": "tea", "name": "tea"}', "invalid_field", "nome: extra inputs are not permitted"),
        ('{"name": 1}', "invalid_field", "name: input should be a valid string"),
        ('{"name": null}', "invalid_field", "name: input should be a valid string"),
        ('{"name": ""}', "invalid_field", "name: string should have at least 1 character"),
        ('{"name": "rude"}', "invalid_field", "name: say it nicely."),
        ('{"name": "tea", "limits": {"tokens": "1"}}', "invalid_field", "limits.tokens: input should be a valid int"),
        ('{"name": "tea", "limits": {"tokens": 1.5}}', "invalid_field", "limits.tokens: input should be a valid int"),
        ('{"name": "tea", "limits": {"tokens": true}}', "invalid_field", "limits.tokens: input should be a valid int"),
        ('{"name": "tea", "limits": {"tokens": 0}}', "invalid_field", "limits.tokens: input should be greater"),
        ('{"name": "tea", "limits": "tokens"}', "invalid_field", "limits: input should be"),
        ('{"name": "tea", "tags": ["a", 2]}', "invalid_field", "tags.1: input should be a valid string"),
        ("{}", "missing_field", "name: field required"),
        ("null", "missing_field", "body: field required"),
        ("", "missing_field", "body: field required"),
    ],
)
def test_a_field_that_is_wrong_is_named_by_its_path(send: Send, body: str, code: str, message: str) -> None:
    assert refused(send("POST", "/orders", body), 400, code).startswith(message)


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        '[{"name": "tea"}]',
        '"name"',
        "1",
        "true",
        "{",
        '{"name": "tea"} x',
        '{"name": "tea", "name": "tea"}',
        '{"name": NaN}',
        '{"name": "\\ud800"}',
        '{"name": ' + "[" * 300 + "]" * 300 + "}",
        b'{"name": "\xff"}',
        b"\xff\xfe",
        "name=tea",
    ],
)
def test_what_is_not_one_strict_json_object_is_invalid_json(send: Send, body: str | bytes) -> None:
    refused(send("POST", "/orders", body), 400, "invalid_json")


@pytest.mark.parametrize(("broken", "encoded"), [("***", True), ("é", True), ("\ud800", True), ("\ud800", False)])
def test_a_body_that_cannot_be_decoded_is_400(broken: str, encoded: bool) -> None:
    event = http_event("POST", "/orders", body=broken, isBase64Encoded=encoded)
    answer = some_api().handle(event, CONTEXT)
    assert (answer["statusCode"], json.loads(answer["body"])["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "kind",
    ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "application/jsonp", ""],
)
def test_another_type_than_json_is_415(send: Send, kind: str) -> None:
    refused(send("POST", "/orders", '{"name": "tea"}', content_type=kind), 415, "unsupported_media_type")


def test_a_compressed_body_is_refused(send: Send) -> None:
    refused(send("POST", "/orders", b"\x1f\x8b", content_encoding="gzip"), 400, "unsupported_encoding")


@pytest.mark.parametrize(("more", "status"), [(-1, 201), (0, 201), (1, 413)])
@pytest.mark.parametrize("encoded", [False, True])
def test_a_body_may_be_64_kib_long(send: Send, more: int, status: int, encoded: bool) -> None:
    text = '{"name": "tea"}'.ljust(BODY_BYTES_AT_MOST + more)
    answer = send("POST", "/orders", text.encode() if encoded else text)
    assert answer.status == status
    if status == 413:
        assert "65536" in refused(answer, 413, "request_too_large")


def test_a_whole_number_may_be_written_as_a_fraction(send: Send) -> None:
    """As JSON Schema, and so the document, has it."""
    for number in ("1.0", "1e0", "9007199254740991.0"):
        assert send("POST", "/orders", f'{{"name": "tea", "limits": {{"tokens": {number}}}}}').status == 201
    for number in ("9007199254740992.0", "1e300", "-0.0"):
        body = f'{{"name": "tea", "limits": {{"tokens": {number}}}}}'
        refused(send("POST", "/orders", body), 400, "invalid_field")


def test_an_optional_body_may_be_left_out(send: Send) -> None:
    for nothing in (None, "", "null", " null\n"):
        assert send("PUT", "/orders/a", nothing).body == {"name": "a -"}
    assert send("PUT", "/orders/a", '{"name": "tea"}').body == {"name": "a tea"}


@pytest.mark.parametrize(("limit", "status"), [("0", 400), ("1", 200), ("10", 200), ("11", 400), ("x", 400), ("", 400)])
def test_a_parameter_of_the_query_is_checked(send: Send, limit: str, status: int) -> None:
    answer = send("GET", f"/orders?limit={limit}")
    assert answer.status == status
    if status == 400:
        assert refused(answer, 400, "invalid_field").startswith("query.limit: ")


@pytest.mark.parametrize(("name", "status"), [("a" * 8, 200), ("a" * 9, 400)])
def test_a_parameter_of_the_path_is_checked(send: Send, name: str, status: int) -> None:
    answer = send("PUT", f"/orders/{name}")
    assert answer.status == status
    if status == 400:
        assert refused(answer, 400, "invalid_field").startswith("path.order_id: ")


def test_many_mistakes_are_counted_and_none_is_quoted(send: Send) -> None:
    body = json.dumps({"name": "tea"} | {f"field-{number}": "canary" for number in range(9)})
    answer = send("POST", "/orders", body)
    assert refused(answer, 400, "invalid_field").endswith("; and 4 more")
    assert "canary" not in answer.raw


def test_a_long_field_name_is_cut(send: Send) -> None:
    assert len(send("POST", "/orders", json.dumps({"name": "tea", "x" * 60_000: 1})).raw) < 500


def test_nothing_to_say_is_204_without_a_body(send: Send) -> None:
    answer = send("DELETE", "/orders/a")
    assert (answer.status, answer.raw) == (204, "")
    assert "content-type" not in answer.headers


def test_a_wrong_method_names_the_right_ones_also_below_an_id(send: Send) -> None:
    answer = send("PATCH", "/orders/a", "{")
    assert refused(answer, 405, "method_not_allowed") == "Use DELETE or PUT here."
    assert answer.headers["allow"] == "DELETE, PUT"
    refused(send("GET", "/nowhere", "{"), 404, "not_found")


def test_an_answer_that_breaks_its_promise_is_our_fault_and_stays_here(send: Send) -> None:
    answer = send("GET", "/broken")
    refused(answer, 500, "internal_error")
    assert "canary" not in answer.raw


def test_the_source_address_is_the_one_that_api_gateway_saw(send: Send) -> None:
    spoofed = dict.fromkeys(
        ("x_forwarded_for", "x_real_ip", "forwarded", "cf_connecting_ip", "true_client_ip"), "9.9.9.9"
    )
    assert send("GET", "/address", **spoofed).body == {"name": "203.0.113.7"}


def test_documented_refusals_come_from_the_error_table() -> None:
    found = refusals(NotFoundError, RateLimitedError)
    assert set(found) == {404, 429}
    assert "not one of the caller's" in found[404]["description"]
    assert found[404]["content"]["application/json"] == {"schema": {"$ref": "#/components/schemas/Error"}}
