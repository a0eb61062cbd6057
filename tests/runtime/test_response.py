"""`Response` where no runtime of ours runs: pytest, `sam local`, a plain Lambda runtime."""

from __future__ import annotations

import base64
import subprocess
import sys

import pytest

from tests.runtime.function_process import LAYER
from tollgate_runtime import BufferedSink, Response, ResponseClosedError


def test_the_result_is_a_proxy_response_of_payload_2_0() -> None:
    with Response(201, {"content-type": "text/plain"}, ["a=1", "b=2"]) as response:
        response.write("Gr\u00fc")
        response.write("\u00dfe".encode())
    assert response.result() == {
        "statusCode": 201,
        "headers": {"content-type": "text/plain"},
        "cookies": ["a=1", "b=2"],
        "body": "Gr\u00fc\u00dfe",
        "isBase64Encoded": False,
    }


def test_a_body_that_is_not_utf_8_is_base64() -> None:
    with Response(200, {}) as response:
        response.write(b"\xff\x00")
    result = response.result()
    assert result is not None
    assert (result["isBase64Encoded"], base64.b64decode(result["body"])) == (True, b"\xff\x00")


def test_a_character_split_over_two_writes_stays_text() -> None:
    encoded = "\u2603".encode()
    with Response(200, {}) as response:
        response.write(encoded[:1])
        response.write(encoded[1:])
    assert response.result() == {"statusCode": 200, "headers": {}, "body": "\u2603", "isBase64Encoded": False}


def test_nothing_written_is_an_empty_body() -> None:
    with Response(204, {}) as response:
        pass
    assert response.result() == {"statusCode": 204, "headers": {}, "body": "", "isBase64Encoded": False}


def test_writing_after_the_end_raises() -> None:
    with Response(200, {}) as response:
        response.write("a")
    with pytest.raises(ResponseClosedError):
        response.write("b")


def test_writing_after_an_exception_left_the_block_raises() -> None:
    response = Response(200, {})
    with pytest.raises(LookupError), response:
        raise LookupError
    with pytest.raises(ResponseClosedError):
        response.write("b")


def test_a_sink_takes_one_response() -> None:
    sink = BufferedSink()
    sink.start({"statusCode": 200}, b"")
    with pytest.raises(ResponseClosedError):
        sink.start({"statusCode": 500}, b"")


def test_two_responses_outside_a_runtime_do_not_mix() -> None:
    with Response(200, {}) as first, Response(404, {}) as second:
        first.write("a")
        second.write("b")
    assert [r["body"] for r in (first.result(), second.result()) if r] == ["a", "b"]


@pytest.mark.parametrize("value", ["a\0b", "a\rb", "a\nb", "a\r\nb: c", "\u2603", "a\x7fb", "\x1b[31m"])
def test_header_values_that_http_cannot_carry_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="x-name") as caught:
        Response(200, {"x-name": value})
    assert value not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\n", "\u00fc", "a\0", "(a)"])
def test_header_names_that_http_cannot_carry_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="header"):
        Response(200, {name: "x"})


@pytest.mark.parametrize("cookie", ["a=1\nb", "a=\0", "a=1\r\nx: y"])
def test_cookies_that_http_cannot_carry_are_refused(cookie: str) -> None:
    with pytest.raises(ValueError, match="cookies"):
        Response(200, {}, ["ok=1", cookie])


@pytest.mark.parametrize("value", ["", "a\tb", "\u00fc", "~"])
def test_header_values_that_http_can_carry_are_taken(value: str) -> None:
    assert Response(200, {"x-name": value}) is not None


@pytest.mark.parametrize(("status", "is_final"), [(199, False), (200, True), (599, True), (600, False), (0, False)])
def test_only_final_statuses_are_taken(status: int, *, is_final: bool) -> None:
    if is_final:
        assert Response(status, {}) is not None
    else:
        with pytest.raises(ValueError, match="status"):
            Response(status, {})


@pytest.mark.parametrize(("over", "fits"), [(-1, True), (0, True), (1, False)])
def test_status_headers_and_cookies_must_fit_in_16_kb_with_the_delimiter(over: int, *, fits: bool) -> None:
    """Counted as sent: JSON without spaces."""
    empty = len('{"statusCode":200,"headers":{"x":""}}')
    headers = {"x": "v" * (16 * 1024 - len("\0" * 8) - empty + over)}
    if fits:
        assert Response(200, headers) is not None
    else:
        with pytest.raises(ValueError, match="16 KB"):
            Response(200, headers)


def test_what_handlers_import_is_lean() -> None:
    """A function starts faster without: nothing of awslambdaric, no HTTP client, no logging."""
    program = (
        "import sys; before = set(sys.modules); import tollgate_runtime; print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env={"PYTHONPATH": str(LAYER)}, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert loaded.isdisjoint({"awslambdaric", "runtime_client", "http", "urllib", "ssl", "email", "logging", "socket"})
