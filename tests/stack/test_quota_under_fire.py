"""64 streams of one user at once, with room for 11: nobody overspends, nobody is told wrong, and nothing is wasted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anthropic
import pytest
from anthropic.types import MessageParam

from tests.support.catalogs import write_catalog
from tests.support.claude_sdk import AsyncCountingClient, async_claude_client
from tests.support.gateway import MODEL, Gateway, User
from tests.support.stack import running_stack
from tollgate.domain.periods import period_at
from tollgate.domain.plans import PeriodKind
from tollgate.domain.principals import MaxTokensPolicy

pytestmark = [pytest.mark.stack, pytest.mark.alone, pytest.mark.slow]

STREAMS = 64
ROOM = 11
QUOTA = 60_000
MAX_TOKENS = 5_150
"""With the prompt's bound of some 300 tokens, eleven reservations fit the quota and twelve do not."""
PROCESSES = 16
"""More function processes than fitting streams, so that the rest meets the meter while it is full."""
SAID = "Go on for long. [[fake tokens=3000 tokens_per_event=60 ttft_ms={}]]"
ROUNDS = 30


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    hard = {"quota_tokens": QUOTA, "max_open_reservations": STREAMS}
    catalog = write_catalog(tmp_path_factory.mktemp("catalog"), hard=hard)
    options = ("--parameter", f"Catalog={catalog}", "--concurrency", str(PROCESSES))
    with running_stack(tmp_path_factory.mktemp("stack"), *options) as stack:
        found = Gateway(stack)
        yield found
        found.close()


@dataclass
class Round:
    """How 64 calls ended."""

    answered: list[anthropic.types.Message] = field(default_factory=list)
    refused: list[anthropic.APIStatusError] = field(default_factory=list)
    http_calls: int = 0

    @property
    def used_tokens(self) -> int:
        return sum(message.usage.input_tokens + message.usage.output_tokens for message in self.answered)


def fire(gateway: Gateway, key: str, *, first_byte_ms: int, streams: int = STREAMS) -> Round:
    """So many streams at the same moment, by a client with its usual two retries."""
    done = Round()

    async def one(client: AsyncCountingClient) -> None:
        messages: list[MessageParam] = [{"role": "user", "content": SAID.format(first_byte_ms)}]
        try:
            async with client.messages.stream(model=MODEL, max_tokens=MAX_TOKENS, messages=messages) as stream:
                done.answered.append(await stream.get_final_message())
        except anthropic.APIStatusError as error:
            done.refused.append(error)

    async def run() -> None:
        async with async_claude_client(gateway.stack.gateway_url, key) as client:
            await asyncio.gather(*(one(client) for _ in range(streams)))
            done.http_calls = len(client.calls)

    asyncio.run(run())
    return done


@contextmanager
def watched(gateway: Gateway, user: User) -> Iterator[list[tuple[int, int]]]:
    """(settled, reserved) of the meter, read as often as possible; each reading is of one moment."""
    seen: list[tuple[int, int]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            meter = gateway.find_meter(user)
            if meter is not None:
                seen.append((meter.settled_tokens, meter.reserved_tokens))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


def warm_up(gateway: Gateway) -> None:
    """Starts all function processes, as no stream must end while others still wait for a process to start."""
    user = gateway.add_user("hard", period_kind=PeriodKind.CALENDAR_MONTH)
    while len(gateway.stack.function_processes("claude")) < PROCESSES:
        fire(gateway, user.key, first_byte_ms=2_000, streams=PROCESSES)


def assert_is_told_as_promised(error: anthropic.APIStatusError) -> None:
    """429 billing_error, not to be retried, with the end of the usage period."""
    now = datetime.now(UTC)
    resets_at = period_at(PeriodKind.CALENDAR_MONTH, now, now).end_at
    assert isinstance(error, anthropic.RateLimitError), error
    assert (error.type, error.error_code) == ("billing_error", "quota_exceeded")
    assert error.request_id
    assert error.response.headers["x-should-retry"] == "false"
    assert abs(int(error.response.headers["retry-after"]) - (resets_at - now).total_seconds()) < 120
    assert error.response.headers["anthropic-ratelimit-unified-status"] == "rejected"
    assert int(error.response.headers["anthropic-ratelimit-unified-reset"]) == int(resets_at.timestamp())
    assert isinstance(error.body, dict)
    assert error.body["error"]["details"]["resets_at"] == f"{resets_at:%Y-%m-%dT%H:%M:%SZ}"
    assert f"{resets_at:%d %b %Y}" in error.message


def test_room_for_eleven_is_room_for_eleven_and_in_the_end_it_is_spent(gateway: Gateway) -> None:
    """Keys that refuse to be clamped show the exact room; keys that may be clamped spend the rest."""
    user = gateway.add_user("hard", policy=MaxTokensPolicy.REFUSE, period_kind=PeriodKind.CALENDAR_MONTH)
    clamping = gateway.add_key(user)
    warm_up(gateway)
    with watched(gateway, user) as seen:
        rounds = [fire(gateway, user.key, first_byte_ms=4_000)]
        while len(rounds) < ROUNDS and rounds[-1].answered:
            rounds.append(fire(gateway, clamping, first_byte_ms=200))
    assert len(rounds[0].answered) == ROOM
    assert max(settled + reserved for settled, reserved in seen) <= QUOTA
    assert max(reserved for _, reserved in seen) > QUOTA * 0.9
    for number, done in enumerate(rounds):
        assert len(done.answered) + len(done.refused) == STREAMS
        assert done.http_calls == STREAMS, f"round {number}: {Counter(map(str, done.refused))}"
        for error in done.refused:
            assert_is_told_as_promised(error)
    meter = gateway.meter(user)
    assert (meter.open_count, meter.reserved_tokens) == (0, 0)
    assert meter.settled_tokens == sum(done.used_tokens for done in rounds)
    assert QUOTA * 0.99 <= meter.settled_tokens <= QUOTA
    assert meter.written_off_tokens == 0
    standing = gateway.standing(user)
    assert (standing["usage"], standing["reserved"]) == (meter.settled_tokens, 0)
