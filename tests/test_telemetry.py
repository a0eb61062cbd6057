"""Log lines and metrics: listed fields only, and never the text of a foreign error."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest

from tests.support.clocks import NOON, FakeClock
from tests.support.sam import ROOT
from tollgate.telemetry import FIELDS, MAX_TEXT_LENGTH, Telemetry

CANARY = "canary-4c0e"
TELLERS = (".event", ".failure", ".report", "._report", "report")
"""How calls of Telemetry end, also of its methods that were handed down."""


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(service="claude", stage="test", clock=FakeClock())


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.err == ""
    return [json.loads(line) for line in captured.out.splitlines()]


def test_an_event_is_one_line_with_its_listed_fields(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.event("request_settled", request_id="req_1", charged_tokens=12, streamed=True, model=None)
    [line] = lines(capsys)
    assert (line["message"], line["service"], line["stage"]) == ("request_settled", "claude", "test")
    assert (line["request_id"], line["charged_tokens"], line["streamed"]) == ("req_1", 12, True)
    assert "model" not in line


def test_a_field_that_is_not_listed_is_named_and_its_value_dropped(
    telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry.event("request_settled", body=CANARY, authorization=CANARY, status=200)
    [line] = lines(capsys)
    assert line["unlisted"] == ["authorization", "body"]
    assert CANARY not in json.dumps(line)


@pytest.mark.parametrize(("length", "kept"), [(-1, -1), (0, 0), (1, 0)])
def test_a_long_value_is_cut(telemetry: Telemetry, capsys: pytest.CaptureFixture[str], length: int, kept: int) -> None:
    telemetry.event("request_settled", client_session_id="x" * (MAX_TEXT_LENGTH + length))
    assert len(lines(capsys)[0]["client_session_id"]) == MAX_TEXT_LENGTH + kept


@pytest.mark.parametrize("value", ["\ud800", "line\nbreak", '"quote', "\x00", "日本", "\u2028"])
def test_any_text_stays_inside_its_line(telemetry: Telemetry, capsys: pytest.CaptureFixture[str], value: str) -> None:
    telemetry.event("request_settled", client_session_id=value, status=200)
    [line] = lines(capsys)
    assert line["status"] == 200


def test_a_failure_names_types_and_places_and_quotes_nothing(
    telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        try:
            int(CANARY)
        except ValueError as error:
            raise RuntimeError(CANARY) from error
    except RuntimeError as error:
        telemetry.failure("request_failed", error, request_id="req_1")
    [line] = lines(capsys)
    assert (line["level"], line["error_type"]) == ("ERROR", "RuntimeError < ValueError")
    assert line["error_at"].startswith("test_telemetry.py:")
    assert CANARY not in json.dumps(line)


def test_a_survived_failure_is_told_in_its_own_words(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.report("secrets_unavailable", RuntimeError("SSM did not answer: ReadTimeoutError"))
    [line] = lines(capsys)
    assert (line["level"], line["error"]) == ("WARNING", "SSM did not answer: ReadTimeoutError")


def test_metrics_are_in_cloudwatchs_embedded_format(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.measure({"UpstreamKeyFaults": 1, "FirstByteMilliseconds": 12})
    [line] = lines(capsys)
    assert line["_aws"]["Timestamp"] == NOON * 1000
    [directive] = line["_aws"]["CloudWatchMetrics"]
    assert (directive["Namespace"], directive["Dimensions"]) == ("Tollgate/test", [["service"]])
    assert directive["Metrics"] == [
        {"Name": "UpstreamKeyFaults", "Unit": "Count"},
        {"Name": "FirstByteMilliseconds", "Unit": "Milliseconds"},
    ]
    assert (line["service"], line["UpstreamKeyFaults"], line["FirstByteMilliseconds"]) == ("claude", 1, 12)


def test_plan_and_model_are_the_only_further_dimensions(
    telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry.measure({"BillableTokens": 7}, plan_id="free", model="claude-sonnet-4-5")
    [line] = lines(capsys)
    [directive] = line["_aws"]["CloudWatchMetrics"]
    assert directive["Dimensions"] == [["service"], ["service", "plan", "model"]]
    assert all(name in line for dimension_set in directive["Dimensions"] for name in dimension_set)


def test_no_field_can_be_meant_for_a_body_a_header_or_a_credential() -> None:
    refused = ("body", "header", "authorization", "token", "secret", "prompt", "email", "claim", "cookie", "password")
    for name in FIELDS:
        assert not any(word in name.removesuffix("_tokens") for word in refused), name


def test_every_field_that_code_tells_is_listed() -> None:
    """One that is not is left out of its line, and nobody would see its figure."""
    told = {
        keyword.arg
        for root in ("layers/core", "functions")
        for path in (ROOT / root).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(TELLERS)
        for keyword in node.keywords
        if keyword.arg is not None
    }
    assert "units" in told
    assert told - FIELDS == set()
