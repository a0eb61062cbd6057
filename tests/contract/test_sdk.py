"""Anthropic's Python client works against the gateway as against Claude, by its base URL alone."""

from __future__ import annotations

import asyncio
import base64
import struct
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anthropic
import pytest
from anthropic.types import ImageBlockParam, MessageParam, TextBlock, ToolParam, ToolUseBlock

from tests.support.claude_sdk import DIALECTS, CountingClient, Dialect, async_claude_client, claude_client
from tests.support.gateway import MODEL, Gateway, User
from tollgate.domain.principals import MaxTokensPolicy

pytestmark = pytest.mark.stack

HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
WEATHER_QUESTION: MessageParam = {"role": "user", "content": "How is the weather in Oslo ?"}


def png(width: int, height: int) -> str:
    """A grey PNG, base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


PICTURE: ImageBlockParam = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": png(300, 150)},
}
PICTURE_QUESTION: list[MessageParam] = [
    {"role": "user", "content": [PICTURE, {"type": "text", "text": "What is in it?"}]}
]
PICTURE_TOKENS = 300 * 150 // 750


@pytest.fixture(params=DIALECTS, ids=lambda dialect: dialect.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found: Dialect = request.param
    return found


@pytest.fixture
def user(gateway: Gateway) -> User:
    return gateway.add_user("pro")


@pytest.fixture
def client(gateway: Gateway, user: User, dialect: Dialect) -> Iterator[CountingClient]:
    with claude_client(gateway.stack.gateway_url, user.key, dialect) as client:
        yield client


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


# ---- what it answers, in each way a client may show its credential and name its version


def test_a_message_comes_whole(client: CountingClient, gateway: Gateway, user: User, dialect: Dialect) -> None:
    message = client.messages.create(model=MODEL, max_tokens=64, messages=HELLO)
    [call] = client.calls
    assert (call.headers.get("x-api-key") == user.key) == dialect.by_header
    assert (call.headers.get("authorization") == f"Bearer {user.key}") != dialect.by_header
    assert call.headers["anthropic-version"] == dialect.version
    assert "Hello" in text_of(message)
    assert (message.role, message.stop_reason, message.model) == ("assistant", "end_turn", MODEL)
    assert message._request_id is not None
    used = message.usage.input_tokens + message.usage.output_tokens
    assert gateway.standing(user)["usage"] == used > 0


def test_a_message_streams(client: CountingClient, gateway: Gateway, user: User) -> None:
    with client.messages.stream(model=MODEL, max_tokens=64, messages=HELLO) as stream:
        texts = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(texts) > 3
    assert "".join(texts) == text_of(message)
    assert gateway.standing(user)["usage"] == message.usage.input_tokens + message.usage.output_tokens


def test_raw_events_stream_in_claudes_order(client: CountingClient) -> None:
    with client.messages.create(model=MODEL, max_tokens=64, messages=HELLO, stream=True) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "message_start"
    assert kinds[1] == "content_block_start"
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_a_tool_is_called_and_its_result_understood(client: CountingClient) -> None:
    with client.messages.stream(model=MODEL, max_tokens=256, tools=[WEATHER], messages=[WEATHER_QUESTION]) as stream:
        asked = stream.get_final_message()
    assert asked.stop_reason == "tool_use"
    [call] = [block for block in asked.content if isinstance(block, ToolUseBlock)]
    assert (call.name, call.input) == ("get_weather", {"city": "Oslo"})
    result: MessageParam = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}],
    }
    history: list[MessageParam] = [WEATHER_QUESTION, {"role": "assistant", "content": asked.content}, result]
    told = client.messages.create(model=MODEL, max_tokens=256, tools=[WEATHER], messages=history)
    assert told.stop_reason == "end_turn"
    assert "read what the tool returned" in text_of(told)


def test_an_image_is_seen(client: CountingClient) -> None:
    message = client.messages.create(model=MODEL, max_tokens=256, messages=PICTURE_QUESTION)
    assert "shown 1 image" in text_of(message)
    assert message.usage.input_tokens > PICTURE_TOKENS


def test_thinking_streams_with_its_signature(client: CountingClient) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=2048, messages=HELLO, thinking={"type": "enabled", "budget_tokens": 1024}
    ) as stream:
        message = stream.get_final_message()
    thought = message.content[0]
    assert thought.type == "thinking"
    assert thought.thinking
    assert len(thought.signature) > 64
    assert message.usage.output_tokens_details is not None
    assert 0 < message.usage.output_tokens_details.thinking_tokens < message.usage.output_tokens


def test_counting_tokens_tells_what_a_message_will_cost_and_costs_nothing(
    client: CountingClient, gateway: Gateway, user: User
) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=PICTURE_QUESTION)
    assert gateway.standing(user)["usage"] == 0
    message = client.messages.create(model=MODEL, max_tokens=64, messages=PICTURE_QUESTION)
    assert message.usage.input_tokens == counted.input_tokens > PICTURE_TOKENS


def test_models_are_listed_page_by_page_and_found_by_name(client: CountingClient) -> None:
    models = list(client.models.list(limit=2))
    assert len(models) == 4
    assert len(client.calls) == 2
    assert models == sorted(models, key=lambda model: model.created_at, reverse=True)
    for model in models:
        assert client.models.retrieve(model.id) == model
    assert client.models.retrieve("claude-haiku-4-5-20251001").id == "claude-haiku-4-5"


# ---- the asynchronous client


def test_the_asynchronous_client_does_all_of_it_too(gateway: Gateway, user: User, dialect: Dialect) -> None:
    async def run() -> None:
        async with async_claude_client(gateway.stack.gateway_url, user.key, dialect) as client:
            whole = await client.messages.create(model=MODEL, max_tokens=64, messages=HELLO)
            async with client.messages.stream(model=MODEL, max_tokens=64, messages=HELLO) as stream:
                texts = [text async for text in stream.text_stream]
                streamed = await stream.get_final_message()
            assert "".join(texts) == text_of(streamed) == text_of(whole)
            async with client.messages.stream(
                model=MODEL, max_tokens=256, tools=[WEATHER], messages=[WEATHER_QUESTION]
            ) as stream:
                asked = await stream.get_final_message()
            assert [block.input for block in asked.content if isinstance(block, ToolUseBlock)] == [{"city": "Oslo"}]
            seen = await client.messages.create(model=MODEL, max_tokens=256, messages=PICTURE_QUESTION)
            assert "shown 1 image" in text_of(seen)
            counted = await client.messages.count_tokens(model=MODEL, messages=HELLO)
            assert counted.input_tokens == whole.usage.input_tokens
            models = [model async for model in client.models.list(limit=3)]
            assert await client.models.retrieve(models[0].id) == models[0]
            used = [
                message.usage.input_tokens + message.usage.output_tokens for message in (whole, streamed, asked, seen)
            ]
            assert gateway.standing(user)["usage"] == sum(used)

    asyncio.run(run())


def test_many_answers_stream_at_the_same_time(gateway: Gateway) -> None:
    """Each in a function process of its own, none of them mixed up with another."""
    user = gateway.add_user("pro")

    async def one(client: anthropic.AsyncAnthropic, number: int) -> str:
        said: list[MessageParam] = [{"role": "user", "content": f"number {number} [[fake pace_ms=5]]"}]
        async with client.messages.stream(model=MODEL, max_tokens=64, messages=said) as stream:
            return "".join([text async for text in stream.text_stream])

    async def run() -> list[str]:
        async with async_claude_client(gateway.stack.gateway_url, user.key) as client:
            return await asyncio.gather(*(one(client, number) for number in range(6)))

    for number, text in enumerate(asyncio.run(run())):
        assert f"“number {number}”" in text


def test_an_access_token_works_in_place_of_a_key(gateway: Gateway) -> None:
    user = gateway.add_user("pro", sign_in=True)
    access_token, id_token = gateway.tokens(user)
    with claude_client(gateway.stack.gateway_url, access_token) as client:
        message = client.messages.create(model=MODEL, max_tokens=64, messages=HELLO)
    assert gateway.standing(user)["usage"] == message.usage.input_tokens + message.usage.output_tokens
    with claude_client(gateway.stack.gateway_url, id_token) as client, pytest.raises(anthropic.AuthenticationError):
        client.messages.create(model=MODEL, max_tokens=64, messages=HELLO)


# ---- refusals: the class, the type, the code, the request id, and how often the client asks


Ask = Callable[[anthropic.Anthropic], object]


def ask(text: str = "Hello", **changes: Any) -> Ask:  # noqa: ANN401  any argument
    arguments: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 64,
        "messages": [{"role": "user", "content": text}],
    } | changes
    return lambda client: client.messages.create(**arguments)


def stream(text: str = "Hello") -> Ask:
    return ask(text, stream=True)


REFUSALS = {
    "own 400": (ask(max_tokens=-1), anthropic.BadRequestError, "invalid_request_error", "invalid_field", 1),
    "model not in plan": (
        ask(model="claude-opus-5-5"), anthropic.BadRequestError, "invalid_request_error", "model_not_in_plan", 1,
    ),
    "upstream 400": (ask("[[fake error=400]]"), anthropic.BadRequestError, "invalid_request_error", None, 1),
    "unknown model": (ask(model="gpt-9"), anthropic.NotFoundError, "not_found_error", "model_not_found", 1),
    "model that is not listed": (
        lambda client: client.models.retrieve("claude-opus-5-5"),
        anthropic.NotFoundError, "not_found_error", "model_not_found", 1,
    ),
    "no such route": (
        lambda client: client.get("/v1/nothing", cast_to=object),
        anthropic.NotFoundError, "not_found_error", "not_found", 1,
    ),
    "body too large": (
        ask("x" * 4_194_305), anthropic.ContentTooLargeError, "request_too_large", "request_too_large", 1,
    ),
    "upstream limits us": (
        stream("[[fake error=429 once=a]]"), None, None, None, 2,
    ),
    "upstream is overloaded": (
        stream("[[fake error=529]]"), anthropic.OverloadedError, "overloaded_error", "upstream_busy", 3,
    ),
    "upstream does not take our key": (
        stream("[[fake error=401]]"), anthropic.ServiceUnavailableError, "api_error", "upstream_unavailable", 1,
    ),
}  # fmt: skip


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's waits between its tries, noted instead of slept."""
    waits: list[float] = []
    monkeypatch.setattr("anthropic._base_client.SyncAPIClient._sleep_for_retry", _no_sleep(waits))
    return waits


def _no_sleep(waits: list[float]) -> Callable[..., None]:
    def note(self: Any, *, retries_taken: int, max_retries: int, options: Any, response: Any) -> None:  # noqa: ANN401
        remaining = max_retries - retries_taken
        waits.append(self._calculate_retry_timeout(remaining, options, response.headers if response else None))

    return note


@pytest.mark.parametrize("situation", REFUSALS)
def test_a_refusal_is_the_error_the_client_has_for_it(gateway: Gateway, hurried: list[float], situation: str) -> None:
    request, error_class, error_type, error_code, calls = REFUSALS[situation]
    user = gateway.add_user("pro")
    with claude_client(gateway.stack.gateway_url, user.key) as client:
        if error_class is None:
            request(client)
        else:
            with pytest.raises(error_class) as caught:
                request(client)
            assert caught.value.type == error_type
            assert caught.value.error_code == error_code
            assert caught.value.request_id
        assert len(client.calls) == calls
    assert all(0 < wait <= 60 for wait in hurried)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(
    ("changes", "error_code"),
    [
        (None, "invalid_credentials"),
        ({"revoked_at": datetime.now(UTC)}, "revoked"),
        ({"expires_at": datetime.now(UTC) - timedelta(seconds=1)}, "expired"),
    ],
    ids=["unknown", "revoked", "expired"],
)
def test_a_key_that_is_no_good_is_an_authentication_error(
    gateway: Gateway, dialect: Dialect, changes: dict[str, Any] | None, error_code: str
) -> None:
    key = "tg_test_" + "0" * 36 if changes is None else gateway.add_user("pro", **changes).key
    with (
        claude_client(gateway.stack.gateway_url, key, dialect) as client,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        client.messages.create(model=MODEL, max_tokens=64, messages=HELLO)
    assert (caught.value.type, caught.value.error_code) == ("authentication_error", error_code)
    assert caught.value.request_id
    assert len(client.calls) == 1


def test_a_quota_that_is_used_up_is_a_billing_error_and_asked_once(gateway: Gateway) -> None:
    """The client obeys any `retry-after`, a month too: `x-should-retry: false` is what keeps it from sleeping."""
    user = gateway.add_user("free", policy=MaxTokensPolicy.REFUSE)
    with claude_client(gateway.stack.gateway_url, user.key) as client:
        with pytest.raises(anthropic.RateLimitError) as caught:
            client.messages.create(model=MODEL, max_tokens=64, messages=[{"role": "user", "content": "x" * 100_001}])
        error = caught.value
        assert (error.type, error.error_code) == ("billing_error", "quota_exceeded")
        assert error.request_id
        assert error.response.headers["x-should-retry"] == "false"
        assert len(client.calls) == 1
        resets_at = gateway.standing(user)["resets_at"]
        assert isinstance(error.body, dict)
        assert error.body["error"]["details"]["resets_at"] == resets_at
        left = datetime.fromisoformat(resets_at) - datetime.now(UTC)
        assert abs(int(error.response.headers["retry-after"]) - left.total_seconds()) < 5
        client.messages.create(model=MODEL, max_tokens=64, messages=HELLO)  # what fits is still answered


def test_an_unpaid_subscription_is_a_payment_error(gateway: Gateway) -> None:
    user = gateway.add_user("pro", paid=False)
    with (
        claude_client(gateway.stack.gateway_url, user.key) as client,
        pytest.raises(anthropic.PaymentRequiredError) as caught,
    ):
        client.messages.create(model=MODEL, max_tokens=64, messages=HELLO)
    assert (caught.value.type, caught.value.error_code) == ("billing_error", "payment_required")
    assert len(client.calls) == 1


def test_the_same_idempotency_key_is_a_conflict_and_asked_once(gateway: Gateway, user: User) -> None:
    headers = {"idempotency-key": "order-66"}
    with claude_client(gateway.stack.gateway_url, user.key) as client:
        client.messages.create(model=MODEL, max_tokens=64, messages=HELLO, extra_headers=headers)
        with pytest.raises(anthropic.ConflictError) as conflict:
            client.messages.create(model=MODEL, max_tokens=64, messages=HELLO, extra_headers=headers)
        with pytest.raises(anthropic.UnprocessableEntityError) as mismatch:
            client.messages.create(model=MODEL, max_tokens=65, messages=HELLO, extra_headers=headers)
        assert len(client.calls) == 3
    assert (conflict.value.error_code, mismatch.value.error_code) == ("duplicate_request", "idempotency_key_reused")


def test_an_error_in_mid_stream_is_raised_where_it_happens(gateway: Gateway, user: User) -> None:
    said: list[MessageParam] = [{"role": "user", "content": "[[fake error_after=3]]"}]
    kinds: list[str] = []
    with claude_client(gateway.stack.gateway_url, user.key) as client:
        events = client.messages.create(model=MODEL, max_tokens=64, messages=said, stream=True)
        with pytest.raises(anthropic.APIStatusError) as caught:
            kinds.extend(event.type for event in events)
    assert kinds.count("content_block_delta") == 3
    assert caught.value.type == "overloaded_error"
    assert caught.value.request_id
    assert len(client.calls) == 1


def test_a_stream_that_upstream_cuts_is_not_taken_for_a_whole_one(gateway: Gateway, user: User) -> None:
    """The client ends silently when upstream ends cleanly before `message_stop`; the gateway adds the error."""
    said: list[MessageParam] = [{"role": "user", "content": "[[fake truncate_after=3]]"}]
    with (
        claude_client(gateway.stack.gateway_url, user.key) as client,
        pytest.raises(anthropic.APIStatusError) as caught,
        client.messages.stream(model=MODEL, max_tokens=64, messages=said) as stream,
    ):
        stream.get_final_message()
    assert (caught.value.type, caught.value.error_code) == ("api_error", "upstream_lost")
