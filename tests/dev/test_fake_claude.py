"""The fake Claude as the real anthropic SDK, and a bare socket, see it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import http.client
import json
import struct
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import MessageParam, ToolParam

from dev.claude_answers import InputCounts, PromptCache, RefusedError, Script, count_text, image_tokens, pieces
from dev.fake_claude import FakeClaude

MODEL = "claude-sonnet-5-5"
HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PNG_64X48 = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", 64, 48) + b"\x08\x02\x00\x00\x00"


@pytest.fixture(scope="module")
def claude() -> Iterator[FakeClaude]:
    with FakeClaude(seed=7) as server:
        yield server


@pytest.fixture
def client(claude: FakeClaude) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=claude.url, api_key="sk-ant-test", max_retries=0) as sdk:
        yield sdk


def post(claude: FakeClaude, body: object, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """One raw request; the answer with its body as it came."""
    connection = http.client.HTTPConnection("127.0.0.1", int(claude.url.rsplit(":", 1)[1]), timeout=10)
    sent = {"x-api-key": "sk-ant-test", "anthropic-version": "2023-06-01"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request("POST", "/v1/messages", data, sent)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def stream_body(**more: object) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 64, "stream": True, "messages": HELLO, **more}


def test_a_streamed_message_has_the_same_text_and_counts_as_the_whole_one(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model=MODEL, max_tokens=1024, messages=HELLO)
    with client.messages.stream(model=MODEL, max_tokens=1024, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].type == "text"
    assert text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens == count_text(text)
    assert final.usage.input_tokens == whole.usage.input_tokens
    assert final.stop_reason == whole.stop_reason == "end_turn"


async def collect_async(claude: FakeClaude) -> str:
    async with (
        anthropic.AsyncAnthropic(base_url=claude.url, api_key="sk-ant-test") as sdk,
        sdk.messages.stream(model=MODEL, max_tokens=64, messages=HELLO) as stream,
    ):
        return "".join([text async for text in stream.text_stream])


def test_the_async_client_streams_too(claude: FakeClaude) -> None:

    assert asyncio.run(collect_async(claude)).startswith("Hello!")


def test_events_come_in_the_documented_order_with_a_ping(client: anthropic.Anthropic) -> None:
    kinds = [event.type for event in client.messages.create(**stream_body())]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_message_start_carries_a_placeholder_and_message_delta_the_true_output_count(
    client: anthropic.Anthropic,
) -> None:
    events = list(client.messages.create(**stream_body()))
    start = next(event for event in events if event.type == "message_start")
    delta = next(event for event in events if event.type == "message_delta")
    assert start.message.usage.output_tokens == 1
    assert delta.usage.output_tokens > 1


@pytest.mark.parametrize(("max_tokens", "stop_reason"), [(9, "max_tokens"), (10, "max_tokens"), (11, "end_turn")])
def test_max_tokens_ends_an_answer_of_ten_tokens(
    client: anthropic.Anthropic, max_tokens: int, stop_reason: str
) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=max_tokens, messages=HELLO, extra_headers={"anthropic-fake": "tokens=10"}
    )
    assert message.stop_reason == stop_reason
    assert message.usage.output_tokens == min(max_tokens, 10)


def test_a_stop_sequence_ends_the_answer_before_it(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=64, messages=HELLO, stop_sequences=["fake"])
    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence == "fake"
    assert message.content[0].type == "text"
    assert message.content[0].text == "Hello! I am the built-in "


def test_a_tool_named_in_the_question_is_called_and_its_result_answered(client: anthropic.Anthropic) -> None:
    question: list[MessageParam] = [{"role": "user", "content": "What is the weather in Paris?"}]
    with client.messages.stream(model=MODEL, max_tokens=200, messages=question, tools=[WEATHER]) as stream:
        asked = stream.get_final_message()
    call = next(block for block in asked.content if block.type == "tool_use")
    assert asked.stop_reason == "tool_use"
    assert call.name == "get_weather"
    assert call.input == {"city": "Paris"}
    followed: list[MessageParam] = [
        *question,
        {"role": "assistant", "content": asked.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees"}]},
    ]
    answered = client.messages.create(model=MODEL, max_tokens=200, messages=followed, tools=[WEATHER])
    assert answered.stop_reason == "end_turn"


def test_a_tool_that_nobody_asks_for_is_not_called(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=200, messages=HELLO, tools=[WEATHER])
    assert message.stop_reason == "end_turn"


def test_a_forced_tool_is_called(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model=MODEL,
        max_tokens=200,
        messages=HELLO,
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "get_weather"},
    )
    assert message.stop_reason == "tool_use"


def test_an_image_costs_its_pixels_over_750(client: anthropic.Anthropic) -> None:
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG_64X48).decode()},
    }
    asked: Any = [{"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]}]
    plain: list[MessageParam] = [{"role": "user", "content": "What is this?"}]
    with_image = client.messages.count_tokens(model=MODEL, messages=asked).input_tokens
    without = client.messages.count_tokens(model=MODEL, messages=plain).input_tokens
    assert with_image - without == image_tokens(PNG_64X48) == 64 * 48 // 750
    message = client.messages.create(model=MODEL, max_tokens=100, messages=asked)
    assert message.content[0].type == "text"
    assert "1 image" in message.content[0].text


def test_thinking_comes_first_signed_and_counted_inside_the_output(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=4096, messages=HELLO, thinking={"type": "adaptive", "display": "summarized"}
    ) as stream:
        message = stream.get_final_message()
    thought, said = message.content
    assert thought.type == "thinking"
    assert thought.signature
    assert said.type == "text"
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == count_text(thought.thinking)
    assert message.usage.output_tokens == count_text(thought.thinking) + count_text(said.text)


def test_omitted_thinking_is_billed_though_not_shown(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=4096, messages=HELLO, thinking={"type": "adaptive", "display": "omitted"}
    )
    said = next(block for block in message.content if block.type == "text")
    assert message.usage.output_tokens > count_text(said.text)


def test_count_tokens_agrees_with_what_a_message_is_charged(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=HELLO, system="Be brief.", tools=[WEATHER])
    message = client.messages.create(model=MODEL, max_tokens=9, messages=HELLO, system="Be brief.", tools=[WEATHER])
    assert counted.input_tokens == message.usage.input_tokens


def test_a_marked_prefix_is_written_to_the_cache_once_and_then_read(client: anthropic.Anthropic) -> None:
    system: Any = [{"type": "text", "text": "Rules. " * 700, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    first = client.messages.create(model=MODEL, max_tokens=9, messages=HELLO, system=system).usage
    second = client.messages.create(model=MODEL, max_tokens=9, messages=HELLO, system=system).usage
    assert first.cache_creation is not None
    assert first.cache_creation.ephemeral_1h_input_tokens == first.cache_creation_input_tokens
    assert first.cache_read_input_tokens == 0
    assert second.cache_read_input_tokens == first.cache_creation_input_tokens
    assert second.cache_creation_input_tokens == 0
    assert first.input_tokens == second.input_tokens


def test_a_cached_prefix_is_forgotten_after_its_time() -> None:
    cache = PromptCache()
    parts: list[tuple[int, bytes, str | None]] = [(2000, b"prefix", "5m"), (7, b"question", None)]
    assert cache.count(MODEL, parts, now_seconds=0) == InputCounts(7, cache_write_5m=2000)
    assert cache.count(MODEL, parts, now_seconds=299) == InputCounts(7, cache_read=2000)
    assert cache.count(MODEL, parts, now_seconds=299 + 300) == InputCounts(7, cache_write_5m=2000)


@pytest.mark.parametrize(("tokens", "written"), [(1023, 0), (1024, 1024), (1025, 1025)])
def test_short_prefixes_are_not_cached(tokens: int, written: int) -> None:
    counts = PromptCache().count(MODEL, [(tokens, b"prefix", "5m")], now_seconds=0)
    assert counts.cache_write_5m == written
    assert counts.total == tokens


def test_models_are_listed_paged_and_found_by_alias_or_snapshot(client: anthropic.Anthropic) -> None:
    page = client.models.list(limit=2)
    assert len(page.data) == 2
    assert page.has_more
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve("claude-sonnet-4-5-20250929").display_name == "Claude Sonnet 4.5"


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (413, anthropic.RequestTooLargeError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.OverloadedError, "overloaded_error"),
    ],
)
def test_errors_on_demand_raise_the_sdk_class_of_their_status(
    client: anthropic.Anthropic, status: int, error: type[anthropic.APIStatusError], kind: str
) -> None:
    with pytest.raises(error) as caught:
        client.messages.create(
            model=MODEL, max_tokens=9, messages=HELLO, extra_headers={"anthropic-fake": f"error={status} retry_after=3"}
        )
    assert caught.value.type == kind
    assert caught.value.request_id
    assert caught.value.response.headers["retry-after"] == "3"


def test_the_usage_limit_of_the_upstream_key_is_a_400_in_its_own_words(claude: FakeClaude) -> None:
    response, body = post(claude, stream_body(), anthropic_fake="error=400 error_message=usage_limits")
    assert response.status == 400
    assert b"specified API usage limits" in body


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "should be an object"),
        ({**stream_body(), "model": "claude-unknown"}, 404, "model: claude-unknown"),
        ({**stream_body(), "max_tokens": 0}, 400, "greater than or equal to 1"),
        ({**stream_body(), "max_tokens": 128_001}, 400, "maximum allowed number of output tokens"),
        ({**stream_body(), "messages": []}, 400, "at least one message"),
        ({**stream_body(), "messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
    ],
)
def test_malformed_requests_are_refused_in_the_envelope(
    claude: FakeClaude, body: object, status: int, words: str
) -> None:
    response, answered = post(claude, body)
    parsed = json.loads(answered)
    assert response.status == status
    assert parsed["type"] == "error"
    assert words in parsed["error"]["message"]
    assert parsed["request_id"] == response.headers["request-id"]


def test_sampling_parameters_are_refused_by_the_newer_api_version_only(claude: FakeClaude) -> None:
    body = {**stream_body(), "temperature": 0.5}
    assert post(claude, body, anthropic_version="2026-10-21")[0].status == 400
    assert post(claude, body, anthropic_version="2023-06-01")[0].status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"x_api_key": "tg_test_ours"}, 401), ({"x_api_key": ""}, 401), ({"authorization": "Bearer sk-ant-x"}, 200)],
)
def test_only_keys_of_anthropics_form_are_let_in(claude: FakeClaude, headers: dict[str, str], status: int) -> None:
    assert post(claude, stream_body(), **headers)[0].status == status


def test_a_request_without_a_version_is_refused(claude: FakeClaude) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(claude.url.rsplit(":", 1)[1]), timeout=10)
    connection.request("POST", "/v1/messages", b"{}", {"x-api-key": "sk-ant-test"})
    response = connection.getresponse()
    assert (response.status, b"anthropic-version" in response.read()) == (400, True)
    connection.close()


def test_an_error_in_mid_stream_arrives_as_an_event(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(client.messages.create(**stream_body(), extra_headers={"anthropic-fake": "error_after=3"}))
    assert caught.value.status_code == 200
    assert caught.value.type == "overloaded_error"


def test_a_truncated_stream_ends_cleanly_without_message_stop(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(**stream_body(), extra_headers={"anthropic-fake": "truncate_after=2"}))
    assert [event.type for event in events].count("content_block_delta") == 2
    assert events[-1].type == "content_block_delta"


def test_a_dropped_connection_breaks_the_stream(client: anthropic.Anthropic) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        list(client.messages.create(**stream_body(), extra_headers={"anthropic-fake": "disconnect_after=2"}))


def test_a_reset_comes_before_any_byte(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.create(model=MODEL, max_tokens=9, messages=HELLO, extra_headers={"anthropic-fake": "reset"})


def test_a_stall_is_silence_in_the_middle(claude: FakeClaude) -> None:
    begin = time.monotonic()
    response, body = post(claude, stream_body(), anthropic_fake="stall_after=2 stall_ms=150")
    assert time.monotonic() - begin >= 0.15
    assert response.status == 200
    assert body.endswith(b'data: {"type":"message_stop"}\n\n')


def test_a_fault_with_a_name_happens_once(claude: FakeClaude) -> None:
    statuses = [post(claude, stream_body(), anthropic_fake="error=529 once=flaky")[0].status for _ in range(3)]
    assert statuses == [529, 200, 200]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 65_536])
def test_chunks_of_any_size_carry_the_same_bytes(claude: FakeClaude, chunk_bytes: int) -> None:
    response, body = post(claude, stream_body(), anthropic_fake=f"chunk_bytes={chunk_bytes}")
    assert bytes(recorded(claude, response)) == body
    assert body.count(b"event: message_stop") == 1


def recorded(claude: FakeClaude, response: http.client.HTTPResponse) -> bytes:
    request_id = response.headers["request-id"]
    with httpx2.Client(base_url=claude.url, trust_env=False) as control:
        return control.get(f"/_fake/exchanges/{request_id}/sent").content


def test_gzip_is_used_when_the_caller_accepts_it_and_the_record_is_plain(claude: FakeClaude) -> None:
    response, body = post(claude, stream_body(), accept_encoding="gzip, br")
    assert response.headers["content-encoding"] == "gzip"
    assert gzip.decompress(body) == recorded(claude, response)


def test_directives_may_stand_in_the_users_text(claude: FakeClaude) -> None:
    body = stream_body(messages=[{"role": "user", "content": "Hello [[fake tokens=3 hidden_input=5000]]"}])
    _, answered = post(claude, body)
    assert b'"output_tokens":3' in answered
    assert b'"input_tokens":50' in answered


def test_an_unknown_directive_is_refused_with_the_known_ones(claude: FakeClaude) -> None:
    response, body = post(claude, stream_body(), anthropic_fake="tokns=3")
    assert response.status == 400
    assert b"tokens_per_event" in body


def test_unknown_events_and_several_cumulative_message_deltas_can_be_had(claude: FakeClaude) -> None:
    _, body = post(claude, stream_body(), anthropic_fake="unknown_events=2 message_deltas=3 tokens=9")
    deltas = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]
    counts = [event["usage"]["output_tokens"] for event in deltas if event["type"] == "message_delta"]
    assert counts == [3, 6, 9]
    assert sum(event["type"] == "future_event" for event in deltas) == 2


def test_the_control_endpoint_tells_what_was_received(claude: FakeClaude) -> None:
    sent = b' {"model":"claude-sonnet-5-5", "max_tokens":9,"messages":[{"role":"user","content":"x"}]}'
    response, _ = post(claude, sent, anthropic_beta="some-beta")
    with httpx2.Client(base_url=claude.url, trust_env=False) as control:
        received = control.get(f"/_fake/exchanges/{response.headers['request-id']}/received").content
        listed = control.get("/_fake/exchanges").json()["data"][-1]
    assert received == sent
    assert listed["headers"]["anthropic-beta"] == "some-beta"
    assert listed["finished"] is True


def test_a_client_that_hangs_up_is_noticed(claude: FakeClaude) -> None:
    with httpx2.Client(base_url=claude.url, trust_env=False) as raw:
        headers = {"x-api-key": "sk-ant-test", "anthropic-version": "2023-06-01", "anthropic-fake": "stall_after=1"}
        with raw.stream("POST", "/v1/messages", json=stream_body(), headers=headers) as response:
            request_id = response.headers["request-id"]
            next(response.iter_raw())
    exchange = next(item for item in claude.exchanges if item.request_id == request_id)
    limit = time.monotonic() + 5
    while not exchange.client_gone and time.monotonic() < limit:
        time.sleep(0.01)
    assert exchange.client_gone
    assert not exchange.finished


@pytest.mark.parametrize(
    "text", ["Hello, wörld!", "  two  spaces ", "日本語のテキスト", "a\n\n\tb", "🙂🙂", "supercalifragilistic", ""]
)
def test_the_pieces_of_a_text_are_the_text_and_never_more_than_its_bytes(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert count_text(text) <= len(text.encode())


def test_a_script_word_that_wants_a_number_says_so() -> None:
    with pytest.raises(RefusedError, match="tokens wants a number"):
        Script().with_directives("tokens=many")
