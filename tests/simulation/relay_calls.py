"""A whole call through `flows.relay_message`: body in, bytes out, and an upstream that answers in Claude's form."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.simulation.containers import Container
from tests.simulation.scenario import Request
from tests.simulation.truth import Call
from tollgate.domain.errors import QuotaExceededError, RateLimitedError, StoreUnavailableError, TollgateError
from tollgate.domain.message_requests import parse_message_request
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.message_calls import MessageCall, Standing
from tollgate.flows.relay_message import MessageRelay
from tollgate.providers.claude import UpstreamLostError, UpstreamNotReachedError, UpstreamRequest
from tollgate.storage.requests import Requests

if TYPE_CHECKING:
    from tests.simulation.world import World

MODEL_ID = "claude-simulated"
BYTES_PER_TOKEN = 4
"""The upstream's text; the relay estimates output that nobody counted by the same figure."""
REFUSALS = (
    (429, "rate_limit_error"),
    (529, "overloaded_error"),
    (400, "invalid_request_error"),
    (401, "authentication_error"),
    (500, "api_error"),
)


class RelayCall:
    """One invocation of the Claude function, from the parsed headers on."""

    def __init__(self, world: World, container: Container, request: Request) -> None:
        self.world = world
        self.container = container
        self.request = request
        self.process = container.process
        self.call = Call(
            request.user,
            _split_prompt(world.rng, request.prompt_tokens),
            visible_prompt=request.prompt_tokens <= request.bound_tokens,
            idempotency_key=request.idempotency_key,
            weights=world.model.weights,
            streamed=world.rng.random() < 0.8,
        )
        self.process.limits = request.limits
        self.process.on_kill = lambda: world.generate_on(self.call)
        self.journal = _Journal()
        self.relay = MessageRelay(
            accounts=container.accounts,
            catalog=world.catalog,
            ledger=container.ledger,
            upstream=_Upstream(self),
            requests=Requests(container.table),
            clock=container,
            journal=self.journal,
            note_active=lambda _: None,
            note_standing=lambda _: None,
            note_use=lambda _: None,
        )

    def serve(self) -> None:
        world, seen = self.world, self.world.seen
        reply = _Reply()
        body = _body(self.request, streamed=self.call.streamed)
        call = MessageCall(
            request_id=f"req_{next(world.request_numbers)}",
            principal=self.container.principal(
                self.request.user, may_clamp=self.request.may_clamp, limits=self.request.limits
            ),
            body=body,
            deadline_at_seconds=self.container.deadline_at_seconds,
            idempotency_key=self.request.idempotency_key,
        )
        self.process.sights.clear()
        try:
            relayed = self.relay.relay(call, reply)
        except (QuotaExceededError, RateLimitedError) as error:
            self._judge(error, body)
        except StoreUnavailableError:
            seen["refused_store"] += 1
        except TollgateError as error:
            seen[f"refused_{error.error_code}"] += 1
            self._ended()
        else:
            seen[f"relayed_{relayed.outcome.value}"] += 1
            self._ended()

    def _ended(self) -> None:
        failed = self.journal.failed
        if "settlement_left_to_sweep" in failed or "release_left_to_sweep" in failed:
            self.world.seen["settle_unanswered"] += 1
        elif self.call.starts or self.call.released:
            self.call.settled_at = self.world.hub.now

    def _judge(self, error: QuotaExceededError | RateLimitedError, body: bytes) -> None:
        if self.call.final is not None and not self.call.streamed and isinstance(error, QuotaExceededError):
            # A whole answer that turned out larger than what was held for it: settled, and not delivered.
            self.world.seen["refused_whole"] += 1
            self._ended()
            return
        if self.call.starts:
            self.world.oracle.report("refused_after_start", f"{self.process.name}: {error}")
        bound = self.world.model.weights.billable_prompt_bound(parse_message_request(body).prompt_bound_tokens)
        self.world.refusals.judge(error, self.container, self.request, bound)


def _split_prompt(rng: random.Random, tokens: int) -> TokenCounts:
    """Prompts that are partly cached, in all the kinds there are."""
    if rng.random() < 0.5:
        return TokenCounts(input_tokens=tokens)
    first, second, third = sorted(rng.randrange(tokens + 1) for _ in range(3))
    return TokenCounts(
        input_tokens=first,
        cache_write_5m_tokens=second - first,
        cache_write_1h_tokens=third - second,
        cache_read_tokens=tokens - third,
    )


def _body(request: Request, *, streamed: bool) -> bytes:
    """Text as long as the bound: no tokenizer makes more tokens than bytes. A hidden prompt is simply larger."""
    text = "x" * request.bound_tokens
    stream = "true" if streamed else "false"
    return (
        f'{{"model":"{MODEL_ID}","max_tokens":{request.max_tokens},"stream":{stream},'
        f'"messages":[{{"role":"user","content":"{text}"}}]}}'
    ).encode()


class _Journal:
    """Keeps the names of failures: what the code itself says it could not do."""

    def __init__(self) -> None:
        self.failed: set[str] = set()

    def event(self, name: str, **fields: str | int | bool | None) -> None:
        """Not looked at."""

    def failure(self, name: str, error: BaseException, **fields: str | int | bool | None) -> None:
        self.failed.add(name)

    def measure(self, values: Mapping[str, int], *, plan_id: str | None = None, model: str | None = None) -> None:
        """Not looked at."""


class _Reply:
    """A caller who listens; its bytes are other tests' business."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.bytes_written = 0

    def start(self, status: int, headers: Mapping[str, str], standing: Standing) -> None:
        assert self.status is None, "an answer starts once"
        self.status = status

    def write(self, data: bytes) -> None:
        assert self.status is not None
        self.bytes_written += len(data)

    def write_error(self, error: Exception) -> None:
        assert self.status is not None


# ---- upstream


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some bytes of an answer, the time before them, and what they tell the gateway."""

    pause_seconds: float
    data: bytes
    tells_prompt: bool = False
    delivered_tokens: int = 0
    tells_final: TokenCounts | None = None
    breaks: bool = False


class _Upstream:
    """Answers as Claude does, or fails as networks do, by the run's levels."""

    def __init__(self, owner: RelayCall) -> None:
        self._owner = owner
        self._world = owner.world

    def send(
        self, request: UpstreamRequest, timeout_seconds: float, when_sent: Callable[[], None] | None = None
    ) -> _Answer:
        owner, world, rng, call = self._owner, self._world, self._world.rng, self._owner.call
        document = json.loads(request.body)
        call.max_output_tokens = document["max_tokens"]
        world.oracle.bind_open(owner.process, call)
        if when_sent is not None:
            when_sent()
        if rng.random() < world.levels.upstream_refusal:
            return self._refuse()
        call.starts += 1
        call.live = True
        if rng.random() < world.levels.upstream_failure / 4:
            world.seen["upstream_lost_before_head"] += 1
            self._sleep(min(timeout_seconds, 5))
            world.generate_on(call)
            raise UpstreamLostError("reset")
        self._sleep(0.2 + rng.random() * 0.8)
        script = self._stream() if document["stream"] else self._whole()
        kind = "text/event-stream; charset=utf-8" if document["stream"] else "application/json"
        return _Answer(owner, 200, kind, script)

    def _refuse(self) -> _Answer:
        rng, call = self._world.rng, self._owner.call
        call.released = True
        if rng.random() < 0.4:
            self._world.seen["upstream_not_reached"] += 1
            raise UpstreamNotReachedError("refused")
        self._world.seen["upstream_refused"] += 1
        status, kind = rng.choice(REFUSALS)
        body = json.dumps({"type": "error", "error": {"type": kind, "message": "no"}}).encode()
        return _Answer(self._owner, status, "application/json", iter([_Piece(0.01, body)]))

    def _stream(self) -> Iterator[_Piece]:
        world, rng, call = self._world, self._world.rng, self._owner.call
        total = min(call.max_output_tokens, 1 + int(rng.expovariate(1 / 500)))
        cut_at = rng.randrange(total + 1) if rng.random() < world.levels.upstream_failure else None
        silent = int(total * rng.random()) if rng.random() < world.levels.hidden_prompt else 0
        yield _Piece(0.01, _message_start(call.prompt), tells_prompt=True)
        sent = 0
        while sent < total - silent:
            chunk = min(total - silent - sent, 1 + int(rng.random() * call.max_output_tokens / 4))
            if cut_at is not None and sent + chunk > cut_at:
                world.seen["upstream_cut"] += 1
                call.output_tokens = min(call.max_output_tokens, call.output_tokens + rng.choice([0, 0, 20]))
                yield from _cut(rng)
                return
            sent += chunk
            call.output_tokens += chunk
            yield _Piece(0.05 + rng.random() * world.scenario.pace_seconds, _delta(chunk), delivered_tokens=chunk)
        call.output_tokens = total  # thinking that is never shown is counted all the same
        final = replace(call.prompt, output_tokens=total)
        yield _Piece(0.01, _message_end(total), tells_final=final)

    def _whole(self) -> Iterator[_Piece]:
        world, rng, call = self._world, self._world.rng, self._owner.call
        total = min(call.max_output_tokens, 1 + int(rng.expovariate(1 / 500)))
        call.output_tokens = total
        pause = total / 100 * world.scenario.pace_seconds
        if rng.random() < world.levels.upstream_failure:
            world.seen["upstream_cut"] += 1
            yield _Piece(pause, b'{"id":"msg_1",')
            yield _Piece(0.01, b"", breaks=rng.random() < 0.5)
            return
        final = replace(call.prompt, output_tokens=total)
        document = {"type": "message", "model": MODEL_ID, "usage": _usage(final)}
        yield _Piece(pause, json.dumps(document).encode(), tells_prompt=True, tells_final=final)

    def _sleep(self, seconds: float) -> None:
        self._world.hub.sleep(self._owner.process, seconds)


class _Answer:
    """Plays a script of pieces at the reader's own time."""

    def __init__(self, owner: RelayCall, status: int, content_type: str, script: Iterator[_Piece]) -> None:
        self.status = status
        self.headers: Mapping[str, str] = {"content-type": content_type, "request-id": "req_upstream"}
        self._owner = owner
        self._script = script

    def read(self, timeout_seconds: float) -> bytes:
        owner, call = self._owner, self._owner.call
        piece = next(self._script, None)
        if piece is None:
            call.live = False
            return b""
        if piece.pause_seconds > timeout_seconds:
            owner.world.seen["soft_deadline"] += 1
            owner.world.hub.sleep(owner.process, max(0, timeout_seconds))
            raise UpstreamLostError("silence")
        owner.world.hub.sleep(owner.process, piece.pause_seconds)
        if piece.breaks:
            call.live = False
            raise UpstreamLostError("reset")
        call.prompt_told |= piece.tells_prompt
        call.delivered_tokens += piece.delivered_tokens
        call.final = piece.tells_final or call.final
        if piece.tells_final and owner.world.is_stalled_by_adversary():
            owner.world.hub.sleep(owner.process, owner.world.stall_seconds())
        return piece.data

    def close(self) -> None:
        """Upstream notices a moment later; what it generated meanwhile was still paid for."""
        call = self._owner.call
        if call.live and call.final is None:
            rest = call.max_output_tokens - call.output_tokens
            call.output_tokens += min(rest, self._owner.world.rng.choice([0, 5, 50]))
        call.live = False


def _message_start(prompt: TokenCounts) -> bytes:
    usage = json.dumps(_usage(replace(prompt, output_tokens=1)))
    return (
        'event: message_start\ndata: {"type":"message_start","message":'
        f'{{"type":"message","model":"{MODEL_ID}","usage":{usage}}}}}\n\n'
    ).encode()


def _usage(counts: TokenCounts) -> dict[str, object]:
    return {
        "input_tokens": counts.input_tokens,
        "output_tokens": counts.output_tokens,
        "cache_read_input_tokens": counts.cache_read_tokens,
        "cache_creation_input_tokens": counts.cache_write_5m_tokens + counts.cache_write_1h_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": counts.cache_write_5m_tokens,
            "ephemeral_1h_input_tokens": counts.cache_write_1h_tokens,
        },
    }


_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"%b"}}\n\n'
)


def _delta(tokens: int) -> bytes:
    return _DELTA % (b"x" * (BYTES_PER_TOKEN * tokens))


def _message_end(output_tokens: int) -> bytes:
    return (
        'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        f'"usage":{{"output_tokens":{output_tokens}}}}}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    ).encode()


def _cut(rng: random.Random) -> Iterator[_Piece]:
    """The ways in which an answer breaks off."""
    way = rng.randrange(4)
    if way == 0:
        yield _Piece(0.01, b"", breaks=True)
    elif way == 1:
        error = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
        yield _Piece(0.01, error)
    elif way == 2:
        yield _Piece(0.01, b'event: content_block_delta\ndata: {"type":"content_bl')
        yield _Piece(0.01, b"", breaks=True)
    # else: the regular end of the connection, without message_stop
