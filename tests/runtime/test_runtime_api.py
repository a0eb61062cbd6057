"""dev/runtime_api.py at the wire: a runtime made of raw sockets, which also does what ours never would."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dev.runtime_api import (
    MAX_BUFFERED_BYTES,
    MAX_PRELUDE_BYTES,
    MAX_TRAILER_BYTES,
    Chunk,
    Failed,
    Invocation,
    Prelude,
    RuntimeApi,
    RuntimeInitError,
    RuntimeUnusableError,
)
from tests.runtime.function_process import FUNCTION_ARN, Answer

API = "/2018-06-01/runtime"
STREAMING = {
    "Content-Type": "application/vnd.awslambda.http-integration-response",
    "Lambda-Runtime-Function-Response-Mode": "streaming",
    "Transfer-Encoding": "chunked",
    "Trailer": "Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body",
}
PRELUDE = b'{"statusCode":200,"headers":{}}' + b"\0" * 8


@pytest.fixture
def api() -> Iterator[RuntimeApi]:
    with RuntimeApi() as api:
        yield api


class RawRuntime:
    """One connection of a runtime, byte by byte."""

    def __init__(self, api: RuntimeApi) -> None:
        host, port = api.address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)

    def __enter__(self) -> RawRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> None:
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.socket.sendall(f"{method} {API}{path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode() + body)

    def read(self) -> tuple[int, dict[str, str], bytes]:
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        with response:
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()

    def call(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> int:
        self.send(method, path, {"Content-Length": str(len(body)), **(headers or {})}, body)
        return self.read()[0]

    def is_ended(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:  # it had sent what nobody read
            return True

    def next(self) -> dict[str, str]:
        self.send("GET", "/invocation/next", {})
        status, headers, _ = self.read()
        assert status == 200
        return headers

    def stream(self, request_id: str, body: bytes, **headers: str) -> None:
        self.send("POST", f"/invocation/{request_id}/response", {**STREAMING, **headers}, body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def invoke(api: RuntimeApi, request_id: str = "r-1", *, timeout_seconds: float = 20) -> Invocation:
    return api.invoke(b"{}", request_id=request_id, timeout_seconds=timeout_seconds, function_arn=FUNCTION_ARN)


def answer_of(invocation: Invocation) -> Answer:
    return Answer.of(invocation.parts(5))


def failure_of(invocation: Invocation) -> Failed:
    failed = answer_of(invocation).failed
    assert failed is not None
    return failed


def test_the_event_comes_with_its_headers(api: RuntimeApi) -> None:
    invocation = invoke(api, timeout_seconds=30)
    with RawRuntime(api) as runtime:
        headers = runtime.next()
    assert headers["lambda-runtime-aws-request-id"] == "r-1"
    assert headers["lambda-runtime-invoked-function-arn"] == FUNCTION_ARN
    assert headers["lambda-runtime-invocation-id"] == invocation.invocation_id
    assert headers["content-type"] == "application/json"
    assert abs(int(headers["lambda-runtime-deadline-ms"]) - (time.time() + 30) * 1000) < 5_000


def test_one_connection_may_serve_everything(api: RuntimeApi) -> None:
    with RawRuntime(api) as runtime:
        for number in range(3):
            invocation = invoke(api, f"r-{number}")
            runtime.next()
            assert runtime.call("POST", f"/invocation/r-{number}/response", body=b'"ok"') == 202
            assert answer_of(invocation).buffered == b'"ok"'


def test_frames_are_read_however_the_network_cuts_them(api: RuntimeApi) -> None:
    """One byte per segment; the delimiter of the prelude split over two chunks, the second with body behind it."""
    invocation = invoke(api)
    body = (
        chunk(PRELUDE[:-3]) + b"6;name=value\r\n" + PRELUDE[-3:] + b"abc\r\n" + chunk(b"\0" * 8 + b"d") + b"0\r\n\r\n"
    )
    with RawRuntime(api) as runtime:
        runtime.next()
        runtime.stream("r-1", b"")
        for byte in body:
            runtime.socket.sendall(bytes([byte]))
        assert runtime.read()[0] == 202
    answer = answer_of(invocation)
    assert answer.prelude == Prelude(200, {}, [])
    assert [c.data for c in answer.chunks] == [b"abc", b"\0" * 8 + b"d"]


def test_chunks_are_stamped_when_they_are_whole(api: RuntimeApi) -> None:
    parts = invoke(api).parts(5)
    with RawRuntime(api) as runtime:
        runtime.next()
        runtime.stream("r-1", chunk(PRELUDE) + chunk(b"a") + b"2\r\nb")
        assert isinstance(next(parts), Prelude)
        first = next(parts)
        completed_at = time.monotonic()
        runtime.socket.sendall(b"c\r\n0\r\n\r\n")
        second = next(parts)
    assert isinstance(first, Chunk)
    assert isinstance(second, Chunk)
    assert first.received_at <= completed_at <= second.received_at
    assert second.data == b"bc"


def test_a_stream_without_the_integration_type_is_a_plain_200(api: RuntimeApi) -> None:
    invocation = invoke(api)
    with RawRuntime(api) as runtime:
        runtime.next()
        runtime.stream("r-1", chunk(PRELUDE) + b"0\r\n\r\n", **{"Content-Type": "text/plain"})
    answer = answer_of(invocation)
    assert answer.prelude == Prelude(200, {"content-type": "text/plain"}, [])
    assert answer.body == PRELUDE


def test_an_echoed_invocation_id_of_another_invocation_is_gone(api: RuntimeApi) -> None:
    invocation = invoke(api)
    stranger = {"Lambda-Runtime-Invocation-Id": "another"}
    with RawRuntime(api) as runtime:
        runtime.next()
        assert runtime.call("POST", "/invocation/r-1/response", stranger, b"{}") == 410
    with RawRuntime(api) as runtime:
        assert runtime.call("POST", "/invocation/r-1/error", stranger, b"{}") == 410
    assert not invocation.is_over
    with RawRuntime(api) as runtime:
        own = {"Lambda-Runtime-Invocation-Id": invocation.invocation_id}
        assert runtime.call("POST", "/invocation/r-1/response", own, b"{}") == 202
    assert answer_of(invocation).buffered == b"{}"


def test_a_refusal_can_be_read_while_the_runtime_still_streams(api: RuntimeApi) -> None:
    invoke(api)
    with RawRuntime(api) as runtime:
        runtime.next()
        body = chunk(PRELUDE) + chunk(b"x" * 100_000)
        runtime.stream("r-1", body, **{"Lambda-Runtime-Invocation-Id": "another"})
        status, _, document = runtime.read()
    assert status == 410
    assert json.loads(document)["errorType"] == "InvokeTimeout"


def test_request_ids_used_again_differ_in_their_invocation_id(api: RuntimeApi) -> None:
    first = invoke(api, "same")
    with RawRuntime(api) as runtime:
        runtime.next()
        runtime.call("POST", "/invocation/same/response", body=b"1")
        second = invoke(api, "same")
        runtime.next()
        stale = {"Lambda-Runtime-Invocation-Id": first.invocation_id}
        assert runtime.call("POST", "/invocation/same/response", stale, b"1") == 410
    assert first.invocation_id != second.invocation_id


@pytest.mark.parametrize(
    ("path", "status"), [("/invocation/r-2/response", 400), ("/invocation/r-2/error", 400), ("/nothing", 404)]
)
def test_what_belongs_to_no_invocation_is_refused(api: RuntimeApi, path: str, status: int) -> None:
    invoke(api)
    with RawRuntime(api) as runtime:
        runtime.next()
        assert runtime.call("POST", path, body=b"{}") == status


def test_a_second_answer_is_forbidden_and_a_late_one_gone(api: RuntimeApi) -> None:
    invoke(api)
    with RawRuntime(api) as runtime:
        runtime.next()
        assert runtime.call("POST", "/invocation/r-1/response", body=b"1") == 202
        assert runtime.call("POST", "/invocation/r-1/response", body=b"2") == 403
    invoke(api, "r-2")
    with RawRuntime(api) as runtime:
        runtime.next()
        assert runtime.call("POST", "/invocation/r-1/response", body=b"3") == 410


def test_asking_for_the_next_event_without_answering_is_forbidden(api: RuntimeApi) -> None:
    invoke(api)
    with RawRuntime(api) as runtime:
        runtime.next()
        assert runtime.call("GET", "/invocation/next") == 403


def test_an_answer_after_the_deadline_is_gone(api: RuntimeApi) -> None:
    invocation = invoke(api, timeout_seconds=0.2)
    with RawRuntime(api) as runtime:
        runtime.next()
        assert failure_of(invocation).kind == "timeout"
        assert runtime.call("POST", "/invocation/r-1/response", body=b"1") == 410


def test_a_deadline_passes_even_if_nobody_reads_the_parts(api: RuntimeApi) -> None:
    invocation = invoke(api, timeout_seconds=0.2)
    with RawRuntime(api) as runtime:
        runtime.next()
        until = time.monotonic() + 5
        while not invocation.is_over and time.monotonic() < until:
            time.sleep(0.02)
    assert invocation.is_over


def test_an_event_that_no_process_takes_times_out(api: RuntimeApi) -> None:
    failed = Answer.of(invoke(api).parts(0.2)).failed
    assert failed is not None
    assert failed.kind == "timeout"


@pytest.mark.parametrize(("over", "status"), [(-1, 202), (0, 202), (1, 413)])
def test_a_buffered_answer_may_have_6_mb(api: RuntimeApi, over: int, status: int) -> None:
    invocation = invoke(api)
    payload = b"x" * (MAX_BUFFERED_BYTES + over)
    with RawRuntime(api) as runtime:
        runtime.next()
        assert runtime.call("POST", "/invocation/r-1/response", body=payload) == status
    answer = answer_of(invocation)
    if status == 202:
        assert answer.buffered == payload
    else:
        assert answer.failed is not None
        assert answer.failed.error_type == "Function.ResponseSizeTooLarge"


@pytest.mark.parametrize(("over", "passes"), [(-1, True), (0, True), (1, False)])
def test_the_prelude_may_have_16_kb_with_its_delimiter(api: RuntimeApi, over: int, *, passes: bool) -> None:
    invocation = invoke(api)
    empty = len(b'{"headers":{"x":""}}') + 8
    prelude = json.dumps({"headers": {"x": "v" * (MAX_PRELUDE_BYTES - empty + over)}}, separators=(",", ":")).encode()
    with RawRuntime(api) as runtime:
        runtime.next()
        runtime.stream("r-1", chunk(prelude + b"\0" * 8) + chunk(b"x") + b"0\r\n\r\n")
        assert runtime.read()[0] == (202 if passes else 400)
    assert (answer_of(invocation).failed is None) is passes


@pytest.mark.parametrize(("over", "passes"), [(-1, True), (0, True), (1, False)])
def test_the_trailers_may_have_4_kb(api: RuntimeApi, over: int, *, passes: bool) -> None:
    invocation = invoke(api)
    name = b"Lambda-Runtime-Function-Error-Type: "
    trailers = name + b"x" * (MAX_TRAILER_BYTES - len(name) - 4 + over) + b"\r\n\r\n"
    assert len(trailers) == MAX_TRAILER_BYTES + over
    with RawRuntime(api) as runtime:
        runtime.next()
        runtime.stream("r-1", chunk(PRELUDE) + b"0\r\n" + trailers)
        assert runtime.read()[0] == (202 if passes else 400)
    assert failure_of(invocation).kind == ("trailers" if passes else "truncated")


def test_trailers_tell_type_message_and_document(api: RuntimeApi) -> None:
    invocation = invoke(api)
    document = json.dumps({"errorType": "KeyError", "errorMessage": "lost"}).encode()
    trailers = b"lambda-runtime-function-error-body: " + base64.b64encode(document) + b"\r\n"
    trailers += b"LAMBDA-RUNTIME-FUNCTION-ERROR-TYPE: Function.KeyError\r\n"
    with RawRuntime(api) as runtime:
        runtime.next()
        runtime.stream("r-1", chunk(PRELUDE + b"x") + b"0\r\n" + trailers + b"\r\n")
        assert runtime.read()[0] == 202
    assert failure_of(invocation) == Failed("Function.KeyError", "lost", "trailers", document)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(chunk(PRELUDE) + b"xyz\r\n", id="chunk size is no number"),
        pytest.param(chunk(PRELUDE) + b"1\r\nabc\r\n", id="chunk longer than its size"),
        pytest.param(chunk(b"{}") + b"0\r\n\r\n", id="no delimiter"),
        pytest.param(chunk(b"{" + b"\0" * 8) + b"0\r\n\r\n", id="prelude is no JSON"),
        pytest.param(chunk(b'{"headers":{"a":1}}' + b"\0" * 8) + b"0\r\n\r\n", id="header is no string"),
        pytest.param(chunk(PRELUDE) + b"0\r\nX-Undeclared: 1\r\n\r\n", id="undeclared trailer"),
        pytest.param(chunk(PRELUDE) + b"0\r\nno colon\r\n\r\n", id="malformed trailer"),
    ],
)
def test_malformed_streams_are_refused_and_fail(api: RuntimeApi, body: bytes) -> None:
    invocation = invoke(api)
    with RawRuntime(api) as runtime:
        runtime.next()
        runtime.stream("r-1", body)
        assert runtime.read()[0] == 400
    assert failure_of(invocation).kind == "truncated"


@pytest.mark.parametrize("body", [b"", chunk(PRELUDE)[:-5], chunk(PRELUDE) + b"5\r\nab", chunk(PRELUDE) + b"0\r\n"])
def test_a_stream_that_breaks_off_anywhere_is_truncated(api: RuntimeApi, body: bytes) -> None:
    invocation = invoke(api)
    with RawRuntime(api) as runtime:
        runtime.next()
        runtime.stream("r-1", body)
    assert failure_of(invocation).kind == "truncated"


def test_the_process_may_go_on_after_a_broken_stream(api: RuntimeApi) -> None:
    first = invoke(api)
    with RawRuntime(api) as runtime:
        runtime.next()
        with RawRuntime(api) as broken:
            broken.stream("r-1", chunk(PRELUDE))
        assert failure_of(first).kind == "truncated"
        second = invoke(api, "r-2")
        runtime.next()
        runtime.call("POST", "/invocation/r-2/response", body=b"1")
    assert answer_of(second).buffered == b"1"


def test_an_init_error_reaches_whoever_waits(api: RuntimeApi) -> None:
    waiting = invoke(api)
    document = json.dumps({"errorType": "E", "errorMessage": "no"}).encode()
    with RawRuntime(api) as runtime:
        headers = {"Lambda-Runtime-Function-Error-Type": "Runtime.E"}
        assert runtime.call("POST", "/init/error", headers, document) == 202
    expected = Failed("Runtime.E", "no", "init", document)
    assert failure_of(waiting) == expected
    assert failure_of(invoke(api, "r-2")) == expected
    with pytest.raises(RuntimeInitError, match=r"Runtime\.E: no") as caught:
        api.wait_ready(5)
    assert caught.value.failed == expected


def test_a_process_that_ends_before_it_is_ready_is_an_init_error(api: RuntimeApi) -> None:
    waiting = invoke(api)
    api.process_exited("exit status 127")
    failed = failure_of(waiting)
    assert (failed.kind, failed.error_type) == ("init", "Runtime.ExitError")
    with pytest.raises(RuntimeInitError, match="exit status 127"):
        api.wait_ready(5)


def test_what_a_process_sent_before_it_died_is_still_read(api: RuntimeApi) -> None:
    invocation = invoke(api)
    with RawRuntime(api) as runtime:
        runtime.next()
        runtime.stream("r-1", chunk(PRELUDE) + b"".join(chunk(b"x" * 1000) for _ in range(200)))
    api.process_exited("signal: killed")
    answer = answer_of(invocation)
    assert len(answer.body) == 200_000
    assert answer.failed is not None
    assert answer.failed.kind == "truncated"


def test_an_event_is_not_lost_to_a_dead_connection(api: RuntimeApi) -> None:
    with RawRuntime(api) as dead:
        dead.send("GET", "/invocation/next", {})
        api.wait_ready(5)
    invocation = invoke(api)
    with RawRuntime(api) as runtime:
        assert runtime.next()["lambda-runtime-aws-request-id"] == "r-1"
        runtime.call("POST", "/invocation/r-1/response", body=b"1")
    assert answer_of(invocation).buffered == b"1"


def test_one_process_has_one_invocation_at_a_time(api: RuntimeApi) -> None:
    invoke(api)
    with pytest.raises(RuntimeUnusableError, match="r-1"):
        invoke(api, "r-2")


def test_idle_is_a_process_that_waits_for_an_event(api: RuntimeApi) -> None:
    seen = [api.is_idle]
    with RawRuntime(api) as runtime:
        runtime.send("GET", "/invocation/next", {})
        api.wait_ready(5)
        seen.append(api.is_idle)
        invocation = invoke(api)
        seen.append(api.is_idle)
        runtime.read()
        runtime.call("POST", "/invocation/r-1/response", body=b"1")
        answer_of(invocation)
        seen.append(api.is_idle)
    assert seen == [False, True, False, False]


def test_waiting_for_a_process_that_never_comes_ends(api: RuntimeApi) -> None:
    with pytest.raises(TimeoutError):
        api.wait_ready(0.1)
    with pytest.raises(TimeoutError):
        api.wait_snapshot(0.1)


def test_closing_ends_pending_calls_invocations_and_threads() -> None:
    before = threading.active_count()
    api = RuntimeApi()
    with RawRuntime(api) as waiting, RawRuntime(api) as restoring, RawRuntime(api) as silent:
        waiting.send("GET", "/invocation/next", {})
        restoring.send("GET", "/restore/next", {})
        silent.socket.sendall(b"GET /half")
        api.wait_ready(5)
        api.wait_snapshot(5)
        api.close()
        assert all(runtime.is_ended() for runtime in (waiting, restoring, silent))
    api.close()
    with pytest.raises(RuntimeUnusableError, match="closed"):
        invoke(api)
    assert threading.active_count() == before


def test_closing_fails_the_running_invocation() -> None:
    api = RuntimeApi()
    invocation = invoke(api)
    with RawRuntime(api) as runtime:
        runtime.next()
        runtime.stream("r-1", chunk(PRELUDE) + chunk(b"x"))
        parts: Iterator[Any] = invocation.parts(5)
        next(parts)
        next(parts)
        api.close()
    failed = Answer.of(parts).failed
    assert failed is not None
    assert failed.kind == "truncated"
