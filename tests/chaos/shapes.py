"""The recorded streams with what upstream itself knows of each byte: whether it has told the prompt, and the end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from tests.support.recorded_streams import BLOCK, BLOCK_END, PING, STOP, STREAMS, Recorded, ended, started, text
from tollgate.catalog.loader import load_catalog
from tollgate.domain.tokens import TokenCounts
from tollgate.domain.usage import Usage, UsageEntry

LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}
LONG_DELTAS = 120
LONG_TOKENS = 240
LONG = "a long answer"
SHORT = "text with a ping"
MODEL = "claude-haiku-4-5"


def _long() -> Recorded:
    data = (
        started() + BLOCK + PING + text("eight by") * LONG_DELTAS + BLOCK_END + ended(output_tokens=LONG_TOKENS) + STOP
    )
    return Recorded(data, Usage((UsageEntry(TokenCounts(10, LONG_TOKENS)),), MODEL), delivered_bytes=8 * LONG_DELTAS)


SHAPES = {**STREAMS, LONG: _long()}


@dataclass(frozen=True, slots=True)
class Shape:
    """One stream with one kind of line end."""

    name: str
    data: bytes
    prompt_at: int
    """From so many bytes on the prompt has been told."""
    final_at: int | None
    """And the final counts; None: never."""
    prompt_tokens: int
    """Billable."""
    final_tokens: int
    """Billable, of the whole answer; of one without final counts its prompt."""
    events: tuple[int, ...]
    """Where events end."""

    def told_tokens(self, sent_bytes: int) -> int:
        """What upstream has certainly told of its use within so many bytes."""
        if self.final_at is not None and sent_bytes >= self.final_at:
            return self.final_tokens
        return self.prompt_tokens if sent_bytes >= self.prompt_at else 0


@cache
def shape(name: str, line_end: str = "lf") -> Shape:
    recorded = SHAPES[name]
    plain, end = recorded.data, LINE_ENDS[line_end]

    def moved(position: int) -> int:
        return position + plain[:position].count(b"\n") * (len(end) - 1)

    start = plain.index(b"\n\n", plain.index(b"event: message_start")) + 2
    final = plain.index(b"\n\n", plain.rindex(b"event: message_delta")) + 2 if recorded.final else None
    events = [position + 2 for position in range(len(plain)) if plain.startswith(b"\n\n", position)]
    return Shape(
        name=name,
        data=plain.replace(b"\n", end),
        prompt_at=moved(start),
        final_at=None if final is None else moved(final),
        prompt_tokens=_billable(_prompt_at_start(plain[:start])),
        final_tokens=_billable(recorded.usage) if recorded.final else _billable(_prompt_at_start(plain[:start])),
        events=tuple(map(moved, events)),
    )


def _prompt_at_start(opening: bytes) -> Usage:
    """Of message_start alone, read without our own reader."""
    [line] = [line for line in opening.split(b"\n") if line.startswith(b"data: ") and b'"message_start"' in line]
    usage = json.loads(line[6:])["message"]["usage"]
    told = json.loads(line[6:])["message"]["model"]
    counts = TokenCounts(
        input_tokens=usage["input_tokens"],
        cache_write_5m_tokens=usage.get("cache_creation", {}).get("ephemeral_5m_input_tokens", 0),
        cache_write_1h_tokens=usage.get("cache_creation", {}).get("ephemeral_1h_input_tokens", 0),
        cache_read_tokens=usage.get("cache_read_input_tokens", 0),
    )
    return Usage((UsageEntry(counts),), told)


def _billable(usage: Usage) -> int:
    catalog = load_catalog("default")
    total = 0
    for entry in usage.entries:
        model = catalog.resolve_model(entry.model or usage.model or MODEL) or catalog.dearest_model
        total += model.weights.billable_tokens(entry.counts)
    return total
