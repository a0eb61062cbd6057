"""The streaming sink against a Runtime API that misbehaves as ours (dev/runtime_api.py) does not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from awslambdaric.lambda_runtime_client import LambdaRuntimeClientError

from tollgate_runtime import ResponseClosedError, StreamBrokenError
from tollgate_runtime.client import StreamingSink

Answering = Callable[[bytes], StreamingSink]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """A sink whose Runtime API reads the whole stream, answers with the given bytes, and closes."""
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def start(answer: bytes) -> StreamingSink:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threads.append(threading.Thread(target=_serve, args=(listener, answer), daemon=True))
        threads[-1].start()
        return StreamingSink(f"127.0.0.1:{listener.getsockname()[1]}", "r-1", None)

    yield start
    for thread in threads:
        thread.join(timeout=10)
    for listener in listeners:
        listener.close()


def _serve(listener: socket.socket, answer: bytes) -> None:
    peer, _ = listener.accept()
    with peer:
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += peer.recv(4096)
        peer.sendall(answer)


def test_an_accepted_answer_ends_quietly(answering: Answering, caplog: pytest.LogCaptureFixture) -> None:
    sink = answering(b"HTTP/1.1 202 Accepted\r\n\r\n")
    sink.start({"statusCode": 200}, b"x")
    sink.finish()
    assert caplog.messages == []


def test_a_refused_answer_raises_with_status_and_body(answering: Answering) -> None:
    """As awslambdaric does: the process ends and Lambda starts another."""
    sink = answering(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops")
    sink.start({"statusCode": 200}, b"x")
    with pytest.raises(LambdaRuntimeClientError) as caught:
        sink.finish()
    assert (caught.value.response_code, caught.value.response_body) == (500, b"oops")


def test_an_answer_that_came_too_late_is_logged(answering: Answering, caplog: pytest.LogCaptureFixture) -> None:
    sink = answering(b"HTTP/1.1 410 Gone\r\n\r\n")
    sink.start({"statusCode": 200}, b"x")
    sink.finish()
    assert ["too late" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 202 Acc"])
def test_a_connection_closed_without_an_answer_is_logged(
    answering: Answering, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    sink = answering(answer)
    sink.start({"statusCode": 200}, b"x")
    sink.finish()
    assert ["broken" in message for message in caplog.messages] == [True]


def test_a_runtime_api_that_is_gone_breaks_the_stream_at_its_start(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    sink = StreamingSink(f"127.0.0.1:{port}", "r-1", None)
    with pytest.raises(StreamBrokenError):
        sink.start({"statusCode": 200}, b"x")
    with pytest.raises(StreamBrokenError):
        sink.send(b"y")
    with pytest.raises(ResponseClosedError):
        sink.start({"statusCode": 500}, b"x")
    sink.finish()
    assert ["broken" in message for message in caplog.messages] == [True]


def test_nothing_can_be_sent_after_the_end(answering: Answering) -> None:
    sink = answering(b"HTTP/1.1 202 Accepted\r\n\r\n")
    sink.start({"statusCode": 200}, b"x")
    sink.finish()
    with pytest.raises(StreamBrokenError):
        sink.send(b"y")
