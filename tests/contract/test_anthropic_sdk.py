"""The real anthropic SDK against the running stack: only the base URL and the key differ from Anthropic's own API."""

from __future__ import annotations

import asyncio
import base64
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, MessageParam, ToolParam

from tests.support.stack import RunningStack

pytestmark = pytest.mark.stack

MODEL = "claude-haiku-5-5"
HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]
WEATHER_QUESTION: list[MessageParam] = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def client(stack: RunningStack) -> Iterator[anthropic.Anthropic]:
    # More retries than usual: so many tests in a row meet the demo user's requests per minute.
    with anthropic.Anthropic(base_url=stack.gateway_url, api_key=stack.demo_key, max_retries=5) as sdk:
        yield sdk


@pytest.fixture
def upstream(stack: RunningStack) -> Iterator[anthropic.Anthropic]:
    """The fake Claude itself, for comparison."""
    key = upstream_key(stack)
    with anthropic.Anthropic(base_url=stack.fake_claude_url, api_key=key) as sdk:
        yield sdk


def upstream_key(stack: RunningStack) -> str:
    with anthropic.Anthropic(base_url=stack.gateway_url, api_key=stack.demo_key) as sdk:
        sdk.messages.count_tokens(model=MODEL, messages=HELLO)
    return str(stack.exchanges()[-1]["headers"]["x-api-key"])


def without_ids(message: Message) -> dict[str, Any]:
    """A message without what is new in every answer."""
    found = message.model_dump(exclude={"id"})
    for block in found["content"]:
        block.pop("id", None)
    return found


def test_a_message_is_the_one_that_claude_sent(client: anthropic.Anthropic, upstream: anthropic.Anthropic) -> None:
    ours = client.messages.create(model=MODEL, max_tokens=64, messages=HELLO)
    theirs = upstream.messages.create(model=MODEL, max_tokens=64, messages=HELLO)
    assert without_ids(ours) == without_ids(theirs)
    assert ours._request_id


def test_a_streamed_message_is_the_one_that_claude_sent(
    client: anthropic.Anthropic, upstream: anthropic.Anthropic
) -> None:
    with client.messages.stream(model=MODEL, max_tokens=64, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        ours = stream.get_final_message()
    assert ours.content[0].type == "text"
    assert ours.content[0].text == text
    assert without_ids(ours) == without_ids(upstream.messages.create(model=MODEL, max_tokens=64, messages=HELLO))


def test_the_async_client_streams_and_does_not(stack: RunningStack) -> None:
    async def both() -> tuple[Message, Message]:
        async with anthropic.AsyncAnthropic(base_url=stack.gateway_url, api_key=stack.demo_key) as sdk:
            whole = await sdk.messages.create(model=MODEL, max_tokens=64, messages=HELLO)
            async with sdk.messages.stream(model=MODEL, max_tokens=64, messages=HELLO) as stream:
                return whole, await stream.get_final_message()

    whole, streamed = asyncio.run(both())
    assert without_ids(whole) == without_ids(streamed)


def test_a_key_may_come_as_bearer_token(stack: RunningStack) -> None:
    with anthropic.Anthropic(base_url=stack.gateway_url, auth_token=stack.demo_key, api_key=None) as sdk:
        assert sdk.messages.create(model=MODEL, max_tokens=9, messages=HELLO).usage.output_tokens == 9


def test_a_cognito_access_token_serves_as_well_as_a_key(stack: RunningStack) -> None:
    with anthropic.Anthropic(base_url=stack.gateway_url, auth_token=stack.access_token(), api_key=None) as sdk:
        assert sdk.messages.create(model=MODEL, max_tokens=9, messages=HELLO).usage.output_tokens == 9


@pytest.mark.parametrize("streamed", [True, False])
def test_a_tool_is_called_and_its_result_answered(client: anthropic.Anthropic, streamed: bool) -> None:
    asked: Message
    if streamed:
        with client.messages.stream(model=MODEL, max_tokens=200, messages=WEATHER_QUESTION, tools=[WEATHER]) as stream:
            asked = stream.get_final_message()
    else:
        asked = client.messages.create(model=MODEL, max_tokens=200, messages=WEATHER_QUESTION, tools=[WEATHER])
    call = next(block for block in asked.content if block.type == "tool_use")
    assert (asked.stop_reason, call.name, call.input) == ("tool_use", "get_weather", {"city": "Paris"})
    followed: list[MessageParam] = [
        *WEATHER_QUESTION,
        {"role": "assistant", "content": asked.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees"}]},
    ]
    answered = client.messages.create(model=MODEL, max_tokens=200, messages=followed, tools=[WEATHER])
    assert answered.stop_reason == "end_turn"


def test_an_image_is_seen(client: anthropic.Anthropic) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png(150, 75)).decode()}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    with client.messages.stream(model=MODEL, max_tokens=64, messages=[{"role": "user", "content": content}]) as stream:
        message = stream.get_final_message()
    assert message.content[0].type == "text"
    assert "1 image" in message.content[0].text
    assert message.usage.input_tokens >= 150 * 75 // 750


def png(width: int, height: int) -> bytes:
    """A white picture."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + b"\xff" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header)
    return start + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def test_thinking_arrives_signed(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=2048, messages=HELLO, thinking={"type": "adaptive", "display": "summarized"}
    ) as stream:
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text"]


def test_cached_prefixes_are_reported(client: anthropic.Anthropic) -> None:
    system: Any = [{"type": "text", "text": "Contract rules. " * 700, "cache_control": {"type": "ephemeral"}}]
    first = client.messages.create(model=MODEL, max_tokens=9, messages=HELLO, system=system).usage
    second = client.messages.create(model=MODEL, max_tokens=9, messages=HELLO, system=system).usage
    assert first.cache_creation_input_tokens == second.cache_read_input_tokens
    assert second.cache_creation_input_tokens == 0


def test_tokens_are_counted_as_upstream_counts_them(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=WEATHER_QUESTION, tools=[WEATHER])
    used = client.messages.create(model=MODEL, max_tokens=9, messages=WEATHER_QUESTION, tools=[WEATHER]).usage
    assert counted.input_tokens == used.input_tokens


def test_models_are_those_of_the_plan(client: anthropic.Anthropic) -> None:
    names = [model.id for model in client.models.list(limit=1000)]
    assert MODEL in names
    assert client.models.retrieve(MODEL).display_name == "Claude Haiku 5.5"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-of-nobody")


def test_an_unknown_key_is_an_authentication_error(stack: RunningStack) -> None:
    with (
        anthropic.Anthropic(base_url=stack.gateway_url, api_key="tg_test_nobody") as sdk,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        sdk.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
    assert caught.value.type == "authentication_error"
    assert caught.value.request_id


def test_a_used_up_quota_is_told_once_and_not_retried(stack: RunningStack) -> None:
    long: list[MessageParam] = [{"role": "user", "content": "word " * 2000}]
    before = len(refusals(stack))
    with (
        anthropic.Anthropic(base_url=stack.gateway_url, api_key=stack.near_quota_key) as sdk,
        pytest.raises(anthropic.RateLimitError) as caught,
    ):
        sdk.messages.create(model=MODEL, max_tokens=64, messages=long)
    assert caught.value.type == "billing_error"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert len(refusals(stack)) == before + 1


def refusals(stack: RunningStack) -> list[str]:
    return [line for line in stack.logs("claude").splitlines() if '"quota_exceeded"' in line]


def test_an_error_event_in_mid_stream_raises_as_with_claude(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(
            client.messages.create(
                model=MODEL,
                max_tokens=64,
                messages=HELLO,
                stream=True,
                extra_headers={"anthropic-fake": "error_after=3"},
            )
        )
    assert caught.value.type == "overloaded_error"


def test_a_refusal_of_upstream_passes_as_it_is(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="at most 100"):
        client.messages.create(
            model=MODEL,
            max_tokens=64,
            messages=HELLO,
            extra_headers={"anthropic-fake": "error=400 error_message=at+most+100"},
        )


@pytest.mark.parametrize("status", [401, 403])
def test_a_fault_of_our_own_key_is_not_the_callers(client: anthropic.Anthropic, status: int) -> None:
    with pytest.raises(anthropic.InternalServerError) as caught:
        client.with_options(max_retries=0).messages.create(
            model=MODEL, max_tokens=64, messages=HELLO, extra_headers={"anthropic-fake": f"error={status}"}
        )
    assert caught.value.status_code == 503
