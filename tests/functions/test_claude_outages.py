"""The claude function when what it stands on is gone."""

from __future__ import annotations

import json
from typing import Any

import boto3
import pytest

from tests.support.claude_function import ClaudeFunction, claude_function
from tests.support.moto_table import REGION
from tests.support.scripted_http import ScriptedServer
from tests.support.scripted_http import answer as answer_with

CANARY = "CANARY-prompt-51ff"


def test_an_upstream_that_is_gone_is_told_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with claude_function(monkeypatch) as function:
        function.send()
        before = function.meter()["settled"]
        function.claude.stop()
        first, second = function.send(), function.send()
        # The kept connection broke with the request in it; the next one could not even be made.
        assert first.status == second.status == 503
        assert second.error["details"]["error_code"] == "upstream_unreachable"
        assert second.headers["retry-after"] == "5"
        meter = function.meter()
        assert meter["open_count"] == 0
        assert meter["settled"] - before <= first_charge(function)


def first_charge(function: ClaudeFunction) -> int:
    """What the first call after the outage was charged, if it was sent at all."""
    return sum(record["charged_tokens"] for record in function.items("Request")[1:])


COUNTS = b'{"type":"message","model":"claude-haiku-4-5","usage":{"input_tokens":9,"output_tokens":3}}'
EVENTS = (
    b'event: message_start\ndata: {"message":{"usage":{"input_tokens":9}}}\n\n'
    b'event: message_delta\ndata: {"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)


def head(*lines: bytes, status: bytes = b"200 OK", body: bytes = COUNTS) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + status, *lines, b"content-length: %d" % len(body), b"", body))


JSON_TYPE, STREAM_TYPE = b"content-type: application/json", b"content-type: text/event-stream"
HUGE = b"anthropic-note: " + b"x" * 20_000

ODD_ANSWERS = {
    "hints before it": b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n" + head(JSON_TYPE),
    "a control character in a header": head(JSON_TYPE, b"anthropic-note: a\x7fb"),
    "a folded header": head(STREAM_TYPE, b"anthropic-note: a\r\n b", body=EVENTS),
    "a huge header": head(JSON_TYPE, HUGE),
    "a huge header before a stream": head(STREAM_TYPE, HUGE, body=EVENTS),
    "many headers": head(JSON_TYPE, *(b"anthropic-%d: " % number + b"\xe9" * 900 for number in range(60))),
    "a media type in capitals": head(b"Content-Type: TEXT/EVENT-STREAM", body=EVENTS),
    "a request id of megabytes": head(JSON_TYPE, b"request-id: " + b"r" * 60_000),
}


@pytest.mark.parametrize("raw", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
def test_an_answer_in_an_odd_form_is_delivered_and_settled(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    with (
        claude_function(monkeypatch) as function,
        ScriptedServer(lambda connection, _: connection.sendall(raw)) as server,
        function.upstream_at(server),
    ):
        answer = function.send()
        assert (answer.status, answer.body) == (200, EVENTS if raw.endswith(EVENTS) else COUNTS)
        meter = function.meter()
        assert (meter["settled"], meter["open_count"]) == (12, 0)


@pytest.mark.parametrize(
    "raw", [b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 103 E\r\n\r\n" * 99]
)
def test_an_answer_that_never_becomes_one_is_lost_and_settled(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    with (
        claude_function(monkeypatch) as function,
        ScriptedServer(lambda connection, _: connection.sendall(raw)) as server,
        function.upstream_at(server),
    ):
        answer = function.send()
        assert (answer.status, answer.error["details"]["error_code"]) == (503, "upstream_lost")
        assert function.meter()["open_count"] == 0


def test_a_key_of_ours_that_no_header_can_carry_rings_the_alarm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with claude_function(monkeypatch) as function:
        put_upstream_key("sk-ant-\x07CANARY")
        answer = function.send()
        assert (answer.status, answer.error["details"]["error_code"]) == (503, "secrets_unavailable")
        written = capsys.readouterr().out
        assert '"UpstreamKeyFaults":1' in written
        assert "printable ASCII: /tg/key" in written
        assert "CANARY" not in written


def test_a_key_of_ours_with_a_line_end_is_used_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with claude_function(monkeypatch) as function, ScriptedServer(answer_with(COUNTS)) as server:
        put_upstream_key("sk-ant-CANARY\n")
        with function.upstream_at(server):
            assert function.send().status == 200
        assert b"\r\nx-api-key: sk-ant-CANARY\r\n" in server.requests[0]


def put_upstream_key(value: str) -> None:
    ssm = boto3.client("ssm", region_name=REGION)
    ssm.put_parameter(Name="/tg/key", Value=value, Type="SecureString", Overwrite=True)
    ssm.close()


def a_message(text: str = "Hello", model: str = "claude-haiku-4-5") -> dict[str, Any]:
    return {"model": model, "max_tokens": 64, "stream": True, "messages": [{"role": "user", "content": text}]}


def log_line(written: str, message: str) -> dict[str, Any]:
    [line] = [line for line in map(json.loads, written.splitlines()) if line.get("message") == message]
    assert isinstance(line, dict)
    return line


REFUSED_CALLS: dict[str, tuple[str, dict[str, Any] | bytes, tuple[str, ...]]] = {
    "by the plan": ("/v1/messages", a_message(model="claude-opus-5-5"), ("user_id", "plan_id")),
    "by the quota": ("/v1/messages", a_message("x" * 150_000), ("user_id", "plan_id")),
    "by upstream": ("/v1/messages", a_message("Hi [[fake error=529]]"), ("user_id", "plan_id")),
    "for its body": ("/v1/messages", b"{", ("user_id",)),
    "where no plan is asked": ("/v1/messages/count_tokens", a_message("[[fake error=500]]"), ("user_id",)),
}


@pytest.mark.parametrize(("path", "body", "known"), REFUSED_CALLS.values(), ids=REFUSED_CALLS)
def test_the_log_says_who_was_refused_as_far_as_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    path: str,
    body: dict[str, Any] | bytes,
    known: tuple[str, ...],
) -> None:
    with claude_function(monkeypatch) as function:
        function.next_caller("free")
        assert function.call("POST", path, body).status >= 400
        line = log_line(capsys.readouterr().out, "request_refused")
        who = {"user_id": function.user_id, "plan_id": "free"}
        assert {name: line[name] for name in who if name in line} == {name: who[name] for name in known}
        assert function.call("POST", path, body, key=None).status == 401
        assert not who.keys() & log_line(capsys.readouterr().out, "request_refused").keys()


def test_a_fault_of_ours_tells_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with claude_function(monkeypatch) as function:
        function.send()
        function.table.client.delete_table(TableName=function.table.name)
        answer = function.send(CANARY)
        assert (answer.status, answer.error["type"]) == (500, "api_error")
        assert answer.error["details"] == {"error_code": "internal_error"}
        written = capsys.readouterr().out
        assert CANARY not in written + answer.body.decode()
        assert "ResourceNotFound" not in answer.body.decode()
        assert '"request_failed"' in written


def test_a_function_that_lacks_a_setting_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    with claude_function(monkeypatch) as function:
        monkeypatch.delenv("COGNITO_ISSUER")
        with pytest.raises(Exception, match="COGNITO_ISSUER is not set"):
            function.send()
