"""The stream runtime against the Runtime API, in real processes."""

from __future__ import annotations

import base64
import itertools
import json
import statistics
import time
from pathlib import Path

import pytest

from dev.runtime_api import MAX_TRAILER_BYTES, Chunk, Prelude, RuntimeUnusableError
from tests.runtime.conftest import StartFunction
from tests.runtime.function_process import FUNCTION_ARN, Answer

PRELUDE_TYPE = "application/vnd.awslambda.http-integration-response"


def test_status_headers_and_cookies_come_before_the_pieces(start_function: StartFunction) -> None:
    function = start_function("handlers.echo")
    headers = {"content-type": "text/plain", "x-name": "Gr\u00fc\u00dfe"}
    invocation = function.invoke(
        {"status": 402, "headers": headers, "cookies": ["a=1; Secure", "b=2"], "pieces": ["x"]}
    )
    first, *rest = invocation.parts(20)
    assert first == Prelude(402, headers, ["a=1; Secure", "b=2"])
    assert [part.data for part in rest if isinstance(part, Chunk)] == [b"x"]
    assert len(rest) == 1


def test_the_request_declares_streaming_and_its_trailers(start_function: StartFunction) -> None:
    function = start_function("handlers.echo")
    invocation = function.invoke({"pieces": ["x"]})
    Answer.of(invocation.parts(20))
    headers = invocation.answer_headers
    assert headers["lambda-runtime-function-response-mode"] == "streaming"
    assert headers["transfer-encoding"] == "chunked"
    assert headers["content-type"] == PRELUDE_TYPE
    assert headers["trailer"] == "Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body"
    assert headers["lambda-runtime-invocation-id"] == invocation.invocation_id


def test_no_invocation_id_is_sent_where_lambda_gives_none(start_function: StartFunction) -> None:
    function = start_function("handlers.echo", invocation_ids=False)
    invocation = function.invoke({"pieces": ["x"]})
    assert Answer.of(invocation.parts(20)).body == b"x"
    assert "lambda-runtime-invocation-id" not in invocation.answer_headers


def test_each_write_is_one_chunk_whatever_its_size(start_function: StartFunction) -> None:
    sizes = [1, 15, 16, 17, 4_095, 4_096, 4_097, 65_536, 1, 1_000_000]
    answer = start_function("handlers.sized").answer({"sizes": sizes})
    assert [len(chunk.data) for chunk in answer.chunks] == sizes
    assert all(chunk.data == bytes(i % 256 for i in range(len(chunk.data))) for chunk in answer.chunks)


def test_empty_writes_send_nothing_and_end_nothing(start_function: StartFunction) -> None:
    answer = start_function("handlers.echo").answer({"pieces": ["", "a", "", "b", ""]})
    assert [chunk.data for chunk in answer.chunks] == [b"a", b"b"]
    assert answer.failed is None


def test_a_piece_arrives_before_the_next_one_is_written(start_function: StartFunction, tmp_path: Path) -> None:
    """The handler writes piece n+1 only after the test has seen piece n: anything held back would stop both."""
    invocation = start_function("handlers.acknowledged").invoke({"folder": str(tmp_path), "pieces": 5})
    seen = []
    for part in invocation.parts(20):
        if isinstance(part, Chunk):
            seen.append(part.data)
            (tmp_path / part.data.decode()).touch()
    assert seen == [b"0", b"1", b"2", b"3", b"4"]


def test_pieces_written_200_ms_apart_arrive_apart(start_function: StartFunction) -> None:
    answer = start_function("handlers.paced").answer({"pieces": 5, "pause_seconds": 0.2})
    times = [chunk.received_at for chunk in answer.chunks]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 0.1 < statistics.median(gaps) < 1.0
    assert times[-1] - times[0] > 0.5


def test_an_empty_write_sends_status_and_headers_alone(start_function: StartFunction, tmp_path: Path) -> None:
    file = tmp_path / "seen"
    parts = start_function("handlers.header_first").invoke({"file": str(file)}).parts(20)
    assert next(parts) == Prelude(202, {"x-early": "yes"}, [])
    file.touch()
    assert Answer.of(parts).body == b"\n"


@pytest.mark.parametrize("pieces", [[], [""]])
def test_an_empty_body_gets_one_newline(start_function: StartFunction, pieces: list[str]) -> None:
    """Function URLs hang on an empty streamed body until the function's timeout."""
    answer = start_function("handlers.echo").answer({"status": 204, "pieces": pieces})
    assert answer.prelude is not None
    assert answer.prelude.status_code == 204
    assert answer.body == b"\n"


def test_a_handler_without_response_is_answered_as_by_aws(start_function: StartFunction) -> None:
    answer = start_function("handlers.buffered").answer({})
    assert answer.buffered is not None
    assert json.loads(answer.buffered) == {"statusCode": 418, "body": "short and stout"}
    assert answer.prelude is None


def test_under_sam_local_the_answer_is_the_proxy_response(start_function: StartFunction) -> None:
    function = start_function("handlers.echo", AWS_SAM_LOCAL="true")
    answer = function.answer({"status": 201, "headers": {"x-a": "1"}, "cookies": ["c=1"], "pieces": ["a", "b"]})
    assert answer.buffered is not None
    assert json.loads(answer.buffered) == {
        "statusCode": 201,
        "headers": {"x-a": "1"},
        "cookies": ["c=1"],
        "body": "ab",
        "isBase64Encoded": False,
    }


def test_one_process_serves_many_invocations_and_carries_nothing_over(start_function: StartFunction) -> None:
    function = start_function("handlers.counted")
    for number, fail in enumerate([False, True, False, False, True, False], start=1):
        invocation = function.invoke({"fail": fail}, timeout_seconds=30)
        answer = Answer.of(invocation.parts(20))
        count, request_id, arn, remaining_ms, trace = answer.body.decode().split(" ")
        assert (int(count), request_id, arn) == (number, f"request-{number}", FUNCTION_ARN)
        assert 20_000 < int(remaining_ms) <= 30_000
        assert trace.startswith("Root=1-")
        assert (answer.failed is not None) is fail
        assert invocation.answer_headers["lambda-runtime-invocation-id"] == invocation.invocation_id


def test_streamed_buffered_and_failed_answers_alternate(start_function: StartFunction) -> None:
    """Each way out of an invocation leaves the process ready for each other."""
    function = start_function("handlers.echo")
    assert function.answer({"pieces": ["a"]}).body == b"a"
    missing = function.answer({})  # no pieces: KeyError before the first write
    assert missing.failed is not None
    assert (missing.failed.kind, missing.failed.error_type) == ("error", "KeyError")
    assert function.answer({"pieces": ["b", 5]}).failed is not None  # TypeError after the first write
    assert function.answer({"pieces": ["c"]}).body == b"c"


def test_a_raise_before_the_first_write_is_an_ordinary_error(start_function: StartFunction) -> None:
    function = start_function("handlers.raises_before")
    invocation = function.invoke({})
    answer = Answer.of(invocation.parts(20))
    assert (answer.prelude, answer.chunks) == (None, [])
    assert answer.failed is not None
    assert (answer.failed.kind, answer.failed.error_type, answer.failed.message) == (
        "error",
        "LookupError",
        "nothing was sent",
    )
    assert invocation.answer_headers["lambda-runtime-invocation-id"] == invocation.invocation_id
    assert "nothing was sent" in function.output


def test_a_response_that_sent_nothing_may_be_replaced(start_function: StartFunction) -> None:
    answer = start_function("handlers.answers_otherwise").answer({})
    assert answer.prelude == Prelude(404, {"x-second": "2"}, [])
    assert (answer.body, answer.failed) == (b"gone", None)


def test_a_raise_midway_is_told_in_the_trailers(start_function: StartFunction) -> None:
    function = start_function("handlers.raises_midway")
    answer = function.answer({})
    assert answer.body == b"event: one\n\n"
    assert answer.failed is not None
    assert (answer.failed.kind, answer.failed.error_type) == ("trailers", "Function.ArithmeticError")
    document = json.loads(answer.failed.payload)
    assert document["errorMessage"] == "the rest is lost"
    assert document["errorType"] == "ArithmeticError"
    assert document["requestId"] == "request-1"
    assert "_innermost" in document["stackTrace"][-1]
    assert "ArithmeticError: the rest is lost" in function.output


def test_a_raise_after_status_alone_sends_a_byte_and_the_trailers(start_function: StartFunction) -> None:
    answer = start_function("handlers.raises_midway").answer({"piece": ""})
    assert answer.body == b"\n"
    assert answer.failed is not None
    assert answer.failed.kind == "trailers"


@pytest.mark.parametrize("message", ["x" * 100_000, "\u2603" * 50_000, "\0" * 50_000, "a\r\nb: c"], ids=len)
def test_trailers_stay_within_what_lambda_reads(start_function: StartFunction, message: str) -> None:
    """Lambda's side drops a trailer block of more than 4 KB; long messages and deep stacks are cut, innermost kept."""
    answer = start_function("handlers.raises_midway").answer({"message": message, "depth": 200})
    assert answer.failed is not None
    assert answer.failed.message.startswith(message[:4])
    assert len(base64.b64encode(answer.failed.payload)) < MAX_TRAILER_BYTES - 200
    assert "_innermost" in json.loads(answer.failed.payload)["stackTrace"][-1]


def test_trailers_keep_the_innermost_frames_that_fit(start_function: StartFunction) -> None:
    answer = start_function("handlers.raises_midway_in_long_files").answer({})
    assert answer.failed is not None
    assert (answer.failed.kind, answer.failed.message) == ("trailers", "far down")
    frames = json.loads(answer.failed.payload)["stackTrace"]
    assert "_innermost" in frames[-1]
    assert 2 <= len(frames) < 10


def test_writing_after_the_end_raises(start_function: StartFunction) -> None:
    answer = start_function("handlers.writes_late").answer({})
    assert answer.body == b"in time"
    assert answer.failed is not None
    assert answer.failed.error_type == "Function.ResponseClosedError"


def test_a_second_response_in_one_invocation_raises(start_function: StartFunction) -> None:
    answer = start_function("handlers.two_responses").answer({})
    assert answer.body == b"one"
    assert answer.failed is not None
    assert answer.failed.error_type == "Function.ResponseClosedError"


def test_bad_headers_are_refused_before_anything_is_sent(start_function: StartFunction) -> None:
    answer = start_function("handlers.refused").answer({"headers": {"x-evil": "a\r\nset-cookie: b=c"}})
    assert b"x-evil" in answer.body
    assert b"set-cookie" not in answer.body


def test_a_process_that_dies_before_the_first_write_is_an_exit_error(start_function: StartFunction) -> None:
    function = start_function("handlers.dies_before")
    function.api.wait_ready(20)
    invocation = function.invoke({})
    assert function.wait_exited() == 3
    answer = Answer.of(invocation.parts(20))
    assert answer.failed is not None
    assert (answer.failed.kind, answer.failed.error_type) == ("error", "Runtime.ExitError")
    assert "exit status 3" in answer.failed.message


def test_a_process_that_dies_midway_truncates_the_answer(start_function: StartFunction) -> None:
    function = start_function("handlers.dies_midway")
    invocation = function.invoke({})
    assert function.wait_exited() == 3
    answer = Answer.of(invocation.parts(20))
    assert answer.body == b"half a sen"
    assert answer.failed is not None
    assert answer.failed.kind == "truncated"
    with pytest.raises(RuntimeUnusableError, match="exit status 3"):
        function.invoke({})


def test_a_killed_process_truncates_the_answer(start_function: StartFunction) -> None:
    function = start_function("handlers.stalls")
    parts = function.invoke({"pieces": ["a"]}).parts(20)
    assert isinstance(next(parts), Prelude)
    assert isinstance(next(parts), Chunk)
    function.process.kill()
    function.wait_exited()
    failed = Answer.of(parts).failed
    assert failed is not None
    assert failed.kind == "truncated"


@pytest.mark.parametrize("pieces", [[], ["a", "b"]])
def test_a_passed_deadline_ends_the_answer_and_the_process_serves_no_more(
    start_function: StartFunction, pieces: list[str]
) -> None:
    function = start_function("handlers.stalls")
    function.api.wait_ready(20)
    began_at = time.monotonic()
    answer = function.answer({"pieces": pieces}, timeout_seconds=1.5)
    assert 1.4 < time.monotonic() - began_at < 10
    assert [chunk.data.decode() for chunk in answer.chunks] == pieces
    assert answer.failed is not None
    assert answer.failed.kind == "timeout"
    assert answer.failed.message == "RequestId: request-1 Error: Task timed out after 1.50 seconds"
    with pytest.raises(RuntimeUnusableError, match="timed out"):
        function.invoke({})


@pytest.mark.parametrize("raises", [False, True])
def test_a_handler_that_outlives_its_deadline_is_told_and_its_process_lives(
    start_function: StartFunction, tmp_path: Path, *, raises: bool
) -> None:
    """Lambda may thaw a timed-out handler: its writes raise, it can settle, and the runtime asks for the next event."""
    file = tmp_path / "noted"
    function = start_function("handlers.outlives_deadline")
    answer = function.answer({"file": str(file), "raise": raises}, timeout_seconds=0.5)
    assert answer.failed is not None
    assert answer.failed.kind == "timeout"
    function.wait_output("stream broken before its end")
    assert file.read_text() == "StreamBrokenError"
    assert function.process.poll() is None


def test_an_answer_that_ends_after_the_deadline_is_logged_and_its_process_lives(start_function: StartFunction) -> None:
    function = start_function("handlers.returns_late")
    answer = function.answer({"pause_seconds": 1}, timeout_seconds=0.5)
    assert answer.body == b"in time"
    assert answer.failed is not None
    assert answer.failed.kind == "timeout"
    function.wait_output("answer came too late")
    assert function.process.poll() is None


def test_the_process_ends_when_the_runtime_api_goes_away(start_function: StartFunction) -> None:
    function = start_function("handlers.echo")
    function.api.wait_ready(20)
    function.api.close()
    assert function.process.wait(timeout=20) != 0


def test_a_handler_that_cannot_be_imported_is_an_init_error(start_function: StartFunction) -> None:
    function = start_function("unimportable.handler")
    failed = function.answer({}).failed
    assert failed is not None
    assert (failed.kind, failed.error_type) == ("init", "Runtime.ImportModuleError")
    assert "this function cannot start" in failed.message
    assert function.wait_exited() == 1
