"""Event streams in the shapes that Claude's API sends, byte for byte, with the usage each of them reports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tollgate.domain.tokens import TokenCounts
from tollgate.domain.usage import Usage, UsageEntry


def event(name: str, **fields: Any) -> bytes:  # noqa: ANN401  any JSON
    data = json.dumps({"type": name, **fields}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {data}\n\n".encode()


def started(model: str = "claude-haiku-4-5", **usage: Any) -> bytes:  # noqa: ANN401
    """message_start; the output count in it is the provider's placeholder."""
    counts = {"input_tokens": 10, "output_tokens": 1, "service_tier": "standard"} | usage
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [], "usage": counts}
    return event("message_start", message=message)


def text(words: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": words})


def ended(stop_reason: str | None = "end_turn", **usage: Any) -> bytes:  # noqa: ANN401
    counts = {"output_tokens": 7} | usage
    return event("message_delta", delta={"stop_reason": stop_reason, "stop_sequence": None}, usage=counts)


BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
BLOCK_END = event("content_block_stop", index=0)
PING = event("ping")
STOP = event("message_stop")
OVERLOADED = event("error", error={"type": "overloaded_error", "message": "Overloaded"})


@dataclass(frozen=True)
class Recorded:
    """One stream and what a meter must read in it."""

    data: bytes
    usage: Usage
    final: bool = True
    delivered_bytes: int = 0


def counts(**kinds: int) -> tuple[UsageEntry, ...]:
    return (UsageEntry(TokenCounts(**kinds)),)


_MODEL = "claude-haiku-4-5"

STREAMS = {
    "text with a ping": Recorded(
        started() + BLOCK + PING + text("Grüße, 世界") + text(' "x"\n') + BLOCK_END + ended() + STOP,
        Usage(counts(input_tokens=10, output_tokens=7), _MODEL, service_tier="standard"),
        delivered_bytes=len('Grüße, 世界 \\"x\\"\\n'.encode()),
    ),
    "thinking, its signature, and a tool": Recorded(
        started(speed="fast", inference_geo="us")
        + event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"})
        + event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "A" * 900})
        + event("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": '{"a":'})
        + ended("tool_use", output_tokens_details={"thinking_tokens": 5})
        + STOP,
        Usage(counts(input_tokens=10, output_tokens=7), _MODEL, "fast", "standard", "us"),
        delivered_bytes=len(b'hm{\\"a\\":'),
    ),
    "cache writes split at the start, totals at the end": Recorded(
        started(
            cache_creation_input_tokens=300,
            cache_read_input_tokens=50,
            cache_creation={"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
        )
        + ended(input_tokens=12, cache_creation_input_tokens=320, cache_read_input_tokens=None)
        + STOP,
        Usage(
            counts(
                input_tokens=12,
                output_tokens=7,
                cache_write_5m_tokens=120,
                cache_write_1h_tokens=200,
                cache_read_tokens=50,
            ),
            _MODEL,
            service_tier="standard",
        ),
    ),
    "several deltas, cumulative": Recorded(
        started()
        + ended(None, output_tokens=3, server_tool_use={"web_search_requests": 1})
        + ended(None, output_tokens=5, server_tool_use={"web_search_requests": 2})
        + ended(output_tokens=9)
        + STOP,
        Usage(counts(input_tokens=10, output_tokens=9), _MODEL, service_tier="standard", web_searches=2),
    ),
    "compaction, which stands only in the iterations": Recorded(
        started()
        + ended(
            input_tokens=10,
            iterations=[
                {"type": "compaction", "input_tokens": 1000, "output_tokens": 80},
                {"type": "message", "input_tokens": 10, "output_tokens": 7},
            ],
        )
        + STOP,
        Usage(
            (
                UsageEntry(TokenCounts(input_tokens=10, output_tokens=7)),
                UsageEntry(TokenCounts(input_tokens=1000, output_tokens=80)),
            ),
            _MODEL,
            service_tier="standard",
        ),
    ),
    "a fallback and an advisor with models of their own": Recorded(
        started("claude-opus-5-5")
        + ended(
            output_tokens=7,
            iterations=[
                {"type": "message", "input_tokens": 10, "output_tokens": 0},
                {"type": "fallback_message", "model": "claude-sonnet-5-5", "input_tokens": 11, "output_tokens": 7},
                {"type": "advisor_message", "model": "claude-fable-5-2", "input_tokens": 40, "output_tokens": 9},
            ],
        )
        + STOP,
        Usage(
            (
                UsageEntry(TokenCounts(input_tokens=10)),
                UsageEntry(TokenCounts(input_tokens=11, output_tokens=7), "claude-sonnet-5-5"),
                UsageEntry(TokenCounts(input_tokens=40, output_tokens=9), "claude-fable-5-2"),
            ),
            "claude-opus-5-5",
            service_tier="standard",
        ),
    ),
    "an error in mid-answer": Recorded(
        started() + BLOCK + text("half") + OVERLOADED,
        Usage(counts(input_tokens=10, output_tokens=1), _MODEL, service_tier="standard"),
        final=False,
        delivered_bytes=4,
    ),
    "events and fields nobody knows yet": Recorded(
        b": a comment\nretry: 10\n\n"
        + event("message_mood", mood="good")
        + started(shiny=[1, {"a": None}])
        + event("content_block_glow", index=0)
        + ended(shiny=True)
        + STOP,
        Usage(counts(input_tokens=10, output_tokens=7), _MODEL, service_tier="standard"),
    ),
}
