"""The real upstream client against real sockets: what it sends, what it keeps, and what it knows when things break."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dev.fake_claude import FakeClaude
from tests.support.clocks import FakeClock
from tests.support.scripted_http import ScriptedServer, answer
from tollgate.domain.errors import UpstreamBusyError, UpstreamUnavailableError
from tollgate.providers.claude import (
    MAX_PROVISIONAL,
    REUSE_SECONDS,
    ClaudeAnswer,
    ClaudeApi,
    UpstreamLostError,
    UpstreamNotReachedError,
    UpstreamRequest,
    refusal_of,
)

KEY = "sk-ant-ours"
HEADERS = {"anthropic-version": "2023-06-01", "content-type": "application/json"}
MODELS = UpstreamRequest("GET", "/v1/models?limit=1", HEADERS)


def message(text: str) -> UpstreamRequest:
    body = '{"model":"claude-haiku-4-5","max_tokens":50,"stream":true,"messages":[{"role":"user","content":"%s"}]}'
    return UpstreamRequest("POST", "/v1/messages", HEADERS, (body % text).encode())


@contextmanager
def api_for(url: str, key: Callable[[], str] = lambda: KEY) -> Iterator[tuple[ClaudeApi, FakeClock]]:
    clock = FakeClock()
    api = ClaudeApi(url, key, clock)
    yield api, clock
    api.close()


def read_all(api: ClaudeApi, request: UpstreamRequest, timeout_seconds: float = 5) -> bytes:
    found = api.send(request, timeout_seconds)
    try:
        return drain(found, timeout_seconds)
    finally:
        found.close()


def drain(found: ClaudeAnswer, timeout_seconds: float) -> bytes:
    return b"".join(iter(lambda: found.read(timeout_seconds), b""))


def lines_of(request: bytes) -> list[str]:
    return request.partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")


def raw(data: bytes, *, reset: bool = False) -> Callable[[socket.socket, bytes], None]:
    def behave(connection: socket.socket, _: bytes) -> None:
        connection.sendall(data)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    return behave


class TestWhatIsSent:
    def test_what_is_to_do_meanwhile_is_done_when_the_request_is_out_and_before_its_answer(self) -> None:
        seen: list[str] = []

        def behave(connection: socket.socket, request: bytes) -> None:
            seen.append("arrived")
            while "meanwhile" not in seen:
                time.sleep(0.001)
            answer(b"{}")(connection, request)

        with ScriptedServer(behave) as server, api_for(server.url) as (api, _):
            found = api.send(MODELS, 5, lambda: seen.append("meanwhile"))
            seen.append("head")
            drain(found, 5)
        assert sorted(seen[:2]) == ["arrived", "meanwhile"]
        assert seen[2] == "head"

    def test_nothing_is_done_meanwhile_when_the_request_did_not_get_out(self) -> None:
        seen: list[str] = []
        with api_for("http://127.0.0.1:1") as (api, _), pytest.raises(UpstreamNotReachedError):
            api.send(MODELS, 5, lambda: seen.append("meanwhile"))
        assert seen == []

    def test_the_request_goes_out_as_given_with_our_key_in_place(self) -> None:
        with ScriptedServer(answer(b"{}")) as server, api_for(server.url + "/prefix") as (api, _):
            headers = HEADERS | {"anthropic-beta": "a,b"}
            read_all(api, UpstreamRequest("POST", "/v1/messages?beta=true", headers, b"{ }"))
            [request] = server.requests
            host = server.url.removeprefix("http://")
        lines = lines_of(request)
        assert lines[0] == "post /prefix/v1/messages?beta=true http/1.1"
        assert sorted(lines[1:]) == sorted(
            [
                f"host: {host}",
                "anthropic-version: 2023-06-01",
                "anthropic-beta: a,b",
                "content-type: application/json",
                "accept-encoding: identity",
                f"x-api-key: {KEY}",
                "content-length: 3",
            ]
        )
        assert request.endswith(b"\r\n\r\n{ }")

    def test_the_key_is_a_bearer_token_since_the_version_that_made_it_one(self) -> None:
        with ScriptedServer(answer(b"{}")) as server, api_for(server.url) as (api, _):
            read_all(api, UpstreamRequest("GET", "/", {"anthropic-version": "2026-10-21"}))
            lines = lines_of(server.requests[0])
        assert f"authorization: bearer {KEY}" in lines
        assert not any(line.startswith("x-api-key") for line in lines)

    def test_a_new_key_is_used_at_once(self) -> None:
        keys = iter(["one", "two"])
        with ScriptedServer(answer(b"{}")) as server, api_for(server.url, lambda: next(keys)) as (api, _):
            read_all(api, MODELS)
            read_all(api, MODELS)
            assert ["x-api-key: one" in lines_of(server.requests[0]), "x-api-key: two" in lines_of(server.requests[1])]

    def test_a_redirect_is_an_answer_and_never_followed(self) -> None:
        with (
            ScriptedServer(answer(b"")) as elsewhere,
            ScriptedServer(answer(b"", "307 Temporary Redirect", Location=elsewhere.url)) as server,
            api_for(server.url) as (api, _),
        ):
            found = api.send(MODELS, 5)
            assert (found.status, found.read(5)) == (307, b"")
            found.close()
            assert elsewhere.requests == []


class TestWhatComesBack:
    @pytest.mark.parametrize("chunk_bytes", [1, 7, 65_536])
    def test_the_stream_is_byte_for_byte_what_was_sent(self, chunk_bytes: int) -> None:
        with FakeClaude(seed=1) as claude, api_for(claude.url) as (api, _):
            body = read_all(api, message(f"Hi [[fake chunk_bytes={chunk_bytes}]]"))
            assert body == bytes(claude.exchanges[-1].sent)
            assert b"event: message_stop" in body

    def test_bytes_are_passed_on_as_they_come(self) -> None:
        with FakeClaude(seed=1) as claude, api_for(claude.url) as (api, _):
            found = api.send(message("Hi [[fake pace_ms=30 tokens=40]]"), 5)
            began = time.monotonic()
            found.read(5)
            assert time.monotonic() - began < 0.1
            found.close()

    @pytest.mark.parametrize("count", [1, MAX_PROVISIONAL])
    @pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints", "199 Later"])
    def test_answers_that_only_announce_one_are_read_past(self, status: str, count: int) -> None:
        early = f"HTTP/1.1 {status}\r\nLink: </x>\r\nContent-Length: 9\r\n\r\n".encode()
        final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Final: yes\r\n\r\n{}"
        with ScriptedServer(raw(early * count + final)) as server, api_for(server.url) as (api, _):
            found = api.send(MODELS, 5)
            assert (found.status, found.read(5), found.read(5)) == (200, b"{}", b"")
            assert dict(found.headers) == {"content-length": "2", "x-final": "yes"}
            found.close()

    def test_an_endless_row_of_announcements_is_no_answer(self) -> None:
        early = b"HTTP/1.1 102 Processing\r\n\r\n"
        with (
            ScriptedServer(raw(early * (MAX_PROVISIONAL + 1))) as server,
            api_for(server.url) as (api, _),
            pytest.raises(UpstreamLostError),
        ):
            api.send(MODELS, 5)

    def test_one_connection_serves_many_calls(self) -> None:
        connections: list[socket.socket] = []
        with (
            ScriptedServer(lambda connection, _: keep_alive(connection, connections)) as server,
            api_for(server.url) as (api, _),
        ):
            for _ in range(3):
                assert read_all(api, MODELS) == b"{}"
        assert len(connections) == 1


def keep_alive(connection: socket.socket, connections: list[socket.socket]) -> None:
    """Answers on one connection until it is closed, as upstreams do."""
    connections.append(connection)
    connection.settimeout(5)
    while True:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        if not connection.recv(65_536):
            return


def accept_and_close(listener: socket.socket) -> None:
    listener.accept()[0].close()


class TestIdleConnections:
    @pytest.mark.parametrize(("idle_seconds", "connections"), [(REUSE_SECONDS - 1, 1), (REUSE_SECONDS, 2)])
    def test_one_that_has_been_idle_too_long_is_not_trusted(self, idle_seconds: int, connections: int) -> None:
        seen: list[socket.socket] = []
        with (
            ScriptedServer(lambda connection, _: keep_alive(connection, seen)) as server,
            api_for(server.url) as (api, clock),
        ):
            read_all(api, MODELS)
            clock.advance(idle_seconds)
            read_all(api, MODELS)
        assert len(seen) == connections

    def test_one_that_upstream_has_closed_is_replaced_before_anything_is_sent(self) -> None:
        """`answer` closes after each call without announcing it."""
        body = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        with ScriptedServer(raw(body)) as server, api_for(server.url) as (api, _):
            for _ in range(3):
                assert read_all(api, MODELS) == b"{}"
                time.sleep(0.05)
            assert len(server.requests) == 3

    def test_one_with_an_unread_answer_is_dropped(self) -> None:
        with FakeClaude(seed=1) as claude, api_for(claude.url) as (api, _):
            found = api.send(message("Hi [[fake pace_ms=20 tokens=400]]"), 5)
            found.read(5)
            found.close()
            found.close()
            assert read_all(api, MODELS).startswith(b'{"data"')


class TestWhatIsKnownWhenItBreaks:
    def test_nobody_listening_was_not_reached(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with api_for(f"http://127.0.0.1:{port}") as (api, _), pytest.raises(UpstreamNotReachedError):
            api.send(MODELS, 5)

    @pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".invalid"])
    def test_no_such_host_was_not_reached(self, host: str) -> None:
        with api_for(f"http://{host}") as (api, _), pytest.raises(UpstreamNotReachedError):
            api.send(MODELS, 5)

    def test_a_peer_that_does_not_speak_tls_was_not_reached(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            hang_up = threading.Thread(target=accept_and_close, args=(listener,))
            hang_up.start()
            with (
                api_for(f"https://127.0.0.1:{listener.getsockname()[1]}") as (api, _),
                pytest.raises(UpstreamNotReachedError),
            ):
                api.send(MODELS, 5)
            hang_up.join()

    @pytest.mark.parametrize("reset", [True, False])
    @pytest.mark.parametrize("data", [b"", b"HTTP", b"nonsense\r\n\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n"])
    def test_a_request_that_was_sent_and_not_answered_may_have_been_processed(self, data: bytes, reset: bool) -> None:
        with ScriptedServer(raw(data, reset=reset)) as server, api_for(server.url) as (api, _):
            with pytest.raises(UpstreamLostError):
                read_all(api, message("Hi"))
            assert len(server.requests) == 1

    @pytest.mark.parametrize("data", [b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Type: text/event-st"])
    def test_a_head_that_was_cut_reads_as_an_answer_without_a_body(self, data: bytes) -> None:
        """http.client takes the end for the end of the head. The relay finds no usage in it and knows enough."""
        with ScriptedServer(raw(data)) as server, api_for(server.url) as (api, _):
            assert read_all(api, message("Hi")) == b""

    def test_it_is_never_sent_again_on_another_connection(self) -> None:
        """Not even when a kept connection breaks: the request may have been processed."""
        calls = []

        def once(connection: socket.socket, request: bytes) -> None:
            calls.append(request)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            calls.append(connection.recv(65_536))

        with ScriptedServer(once) as server, api_for(server.url) as (api, _):
            read_all(api, message("one"))
            with pytest.raises(UpstreamLostError):
                read_all(api, message("two"))
            time.sleep(0.05)
        assert len(calls) == 2

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n9\r\nc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n",
        ],
    )
    def test_a_body_that_ends_early_is_lost_after_what_came(self, data: bytes) -> None:
        with ScriptedServer(raw(data)) as server, api_for(server.url) as (api, _):
            found = api.send(MODELS, 5)
            assert found.read(5) == b"ab"
            with pytest.raises(UpstreamLostError):
                drain(found, 5)

    def test_a_silent_head_is_lost_after_the_time_given(self) -> None:
        with FakeClaude(seed=1) as claude, api_for(claude.url) as (api, _):
            began = time.monotonic()
            with pytest.raises(UpstreamLostError):
                api.send(message("Hi [[fake ttft_ms=5000]]"), 0.1)
            assert time.monotonic() - began < 1

    def test_a_silent_body_is_lost_after_the_time_given(self) -> None:
        with FakeClaude(seed=1) as claude, api_for(claude.url) as (api, _):
            found = api.send(message("Hi [[fake stall_after=1]]"), 5)
            with pytest.raises(UpstreamLostError):
                drain(found, 0.2)

    def test_no_error_quotes_what_upstream_said(self) -> None:
        with (
            ScriptedServer(raw(b"CANARY\r\n\r\n")) as server,
            api_for(server.url) as (api, _),
            pytest.raises(UpstreamLostError) as caught,
        ):
            read_all(api, message("Hi"))
        assert "CANARY" not in str(caught.value)


OUR_CAP = (
    '{"error":{"message":"You have reached your specified API usage limits. You will regain access on …"}}'.encode()
)
OUR_CREDIT = b'{"error":{"message":"Your credit balance is too low to access the Anthropic API. Please go to Plans."}}'
OUR_CONTRACT = b'{"error":{"message":"no","details":{"error_code":"contract_spend_limit_reached"}}}'


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "body", "code"),
        [
            (400, b'{"error":{"message":"max_tokens: too large"}}', None),
            (400, OUR_CAP, "upstream_unavailable"),
            (400, OUR_CREDIT, "upstream_unavailable"),
            (402, b"", "upstream_unavailable"),
            (429, OUR_CONTRACT, "upstream_unavailable"),
            (429, b'{"error":{"message":"slow down","details":null}}', "upstream_busy"),
            (400, b'{"error":{"message":"no","details":"odd"}}', None),
            (400, b"not json", None),
            (400, b"[]", None),
            (400, b'{"error":"x"}', None),
            (401, b"", "upstream_unavailable"),
            (403, b"", "upstream_unavailable"),
            (404, b"", None),
            (408, b"", None),
            (413, b"", None),
            (302, b"", "upstream_unavailable"),
            (429, b"", "upstream_busy"),
            (499, b"", None),
            (500, b"", "upstream_error"),
            (504, b"", "upstream_error"),
            (528, b"", "upstream_error"),
            (529, b"", "upstream_busy"),
            (530, b"", "upstream_error"),
        ],
    )
    def test_only_what_is_about_the_callers_own_request_is_for_the_caller(
        self, status: int, body: bytes, code: str | None
    ) -> None:
        refusal = refusal_of(status, body)
        assert (refusal.error_code if refusal else None) == code
        assert refusal is None or isinstance(refusal, UpstreamBusyError | UpstreamUnavailableError)
