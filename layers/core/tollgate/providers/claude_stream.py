"""Reads usage beside a relayed answer, without touching it: bytes in, a few events out, no I/O.

Stands in `providers` and not at the edge because it is knowledge about Claude, and the relay flow needs it.
Only message_start, message_delta, message_stop and error are decoded. Content deltas, which are nearly all of a
stream, are measured by their length.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from tollgate.domain.tokens import TokenCounts
from tollgate.domain.usage import Usage, UsageEntry

MAX_EVENT_BYTES: Final = 1024 * 1024
"""A larger event is a broken stream: the largest real ones are message_start and tool results, some 100 KB."""

_DELTA: Final = b"event: content_block_delta\n"
_SKIPPED: Final = (b"event: content_block_", b"event: ping\n")
_DELTA_KIND: Final = b'"delta":{"type":"'
# What stands around the text of a delta: `"delta":{"type":"text_delta","text":"` before and `"}}` after.
_DELTA_FRAME_BYTES: Final = 40
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class MessageStarted:
    """The true prompt is known; the output count in it is a placeholder."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class UsageReported:
    """Cumulative counts in mid-answer, final when the provider also said why it stopped."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class MessageStopped:
    """The regular end."""


@dataclass(frozen=True, slots=True)
class ErrorReported:
    """The provider ended the answer with an error."""

    error_type: str


@dataclass(frozen=True, slots=True)
class StreamBroken:
    """What came is no event stream we can read; nothing after it is looked at."""

    reason: str


StreamEvent = MessageStarted | UsageReported | MessageStopped | ErrorReported | StreamBroken


class StreamReader:
    """Feed it the answer's bytes, cut anywhere; it returns what it learned, mostly nothing."""

    def __init__(self) -> None:
        self.delivered_bytes = 0
        """Bytes of text, thinking and tool input seen to pass; a measure for output nobody has counted yet."""
        self.reported_output_tokens = 0
        """The provider's count so far; 0 until a message_delta tells, as the one in message_start is a placeholder."""
        self._usage = UsageFields()
        self._tail = bytearray()
        self._first = True
        self._after_cr = False
        self._stop_reason_seen = False
        self._output_reported = False
        self._stopped = False
        self._broken = False

    @property
    def usage(self) -> Usage:
        """The newest counts of each kind."""
        return self._usage.usage()

    @property
    def usage_is_final(self) -> bool:
        """The provider has reported the output (not only the placeholder) and that the answer has ended."""
        return self._output_reported and (self._stop_reason_seen or self._stopped)

    @property
    def stopped(self) -> bool:
        """message_stop has passed."""
        return self._stopped

    @property
    def between_events(self) -> bool:
        """Nothing of a further event has come, so an event of ours can follow as it is."""
        return not self._tail.strip(b"\n")

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Read on. After a StreamBroken it returns nothing more."""
        if self._broken:
            return []
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_line_feeds(chunk)
        if self._tail:
            seen = len(self._tail)
            self._tail += chunk
            if self._tail.find(b"\n\n", seen - 1) < 0:
                return self._check_size()
            chunk = bytes(self._tail)
        *blocks, rest = chunk.split(b"\n\n")
        self._tail = bytearray(rest)
        found: list[StreamEvent] = []
        for block in blocks:
            if block.startswith(_SKIPPED):
                if block.startswith(_DELTA):
                    self._measure(block)
            elif block:
                found += self._read(block)
        return found + self._check_size() if len(rest) > MAX_EVENT_BYTES else found

    def _with_line_feeds(self, chunk: bytes) -> bytes:
        """CR and CRLF end lines too. A CR at the end of a chunk counts at once, and an LF that follows it never."""
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _check_size(self) -> list[StreamEvent]:
        if len(self._tail) <= MAX_EVENT_BYTES:
            return []
        return self._break(f"an event of more than {MAX_EVENT_BYTES} bytes")

    def _break(self, reason: str) -> list[StreamEvent]:
        self._broken = True
        self._tail = self._tail[:1]
        return [StreamBroken(reason)]

    def _measure(self, block: bytes) -> None:
        at = block.find(_DELTA_KIND)
        if at >= 0 and not block.startswith(b"signature", at + len(_DELTA_KIND)):
            self.delivered_bytes += max(1, len(block) - at - _DELTA_FRAME_BYTES)

    def _read(self, block: bytes) -> list[StreamEvent]:
        name, data = self._fields(block)
        if name == "content_block_delta":
            self._measure(data)
        if name.startswith("content_block_") or name == "ping" or not data:
            return []
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return self._break("an event that is not JSON")
        if not isinstance(document, dict):
            return []
        return self._understand(name or str(document.get("type")), document)

    def _fields(self, block: bytes) -> tuple[str, bytes]:
        """Event name and data of one block, as the specification of event streams reads them."""
        if self._first:
            self._first = False
            block = block.removeprefix(_BOM)
        name, data = "", []
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"event":
                name = value.decode("utf-8", "replace")
            elif field == b"data":
                data.append(value)
        return name, b"\n".join(data)

    def _understand(self, name: str, document: dict[str, Any]) -> list[StreamEvent]:
        match name:
            case "message_start":
                message = document.get("message")
                if isinstance(message, dict):
                    self._usage.model = _text(message.get("model"))
                    self._usage.update(message.get("usage"))
                return [MessageStarted(self.usage)]
            case "message_delta":
                delta = document.get("delta")
                if isinstance(delta, dict) and delta.get("stop_reason") is not None:
                    self._stop_reason_seen = True
                self._output_reported |= self._usage.update(document.get("usage"))
                usage = self.usage
                self.reported_output_tokens = usage.counts.output_tokens
                return [UsageReported(usage)]
            case "message_stop":
                self._stopped = True
                return [MessageStopped()]
            case "error":
                error = document.get("error")
                return [ErrorReported(str(error.get("type")) if isinstance(error, dict) else "unknown")]
            case _:
                return []


def usage_of_message(body: bytes) -> Usage | None:
    """The usage of an answer that was not streamed; None when it does not tell its output count."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    fields = UsageFields()
    fields.model = _text(document.get("model"))
    return fields.usage() if fields.update(document.get("usage")) else None


class UsageFields:
    """The newest value of each field of `usage`. Counts are cumulative, so nothing is ever added up over time."""

    def __init__(self) -> None:
        self.model: str | None = None
        self._fields: dict[str, Any] = {}

    def update(self, usage: object) -> bool:
        """Take over what is not null; whether an output count was among it.

        Deltas leave out the cache-write split and the price facts, so what message_start said about them stays.
        """
        if not isinstance(usage, dict):
            return False
        self._fields.update((name, value) for name, value in usage.items() if value is not None)
        return _is_count(usage.get("output_tokens"))

    def usage(self) -> Usage:
        fields = self._fields
        tools = fields.get("server_tool_use")
        tools = tools if isinstance(tools, dict) else {}
        return Usage(
            entries=self._entries(),
            model=self.model,
            speed=_text(fields.get("speed")),
            service_tier=_text(fields.get("service_tier")),
            inference_geo=_text(fields.get("inference_geo")),
            web_searches=_count(tools.get("web_search_requests")),
            web_fetches=_count(tools.get("web_fetch_requests")),
        )

    def _entries(self) -> tuple[UsageEntry, ...]:
        """Every sampling that is charged.

        `iterations` lists them all, and compaction stands nowhere else. A list that tells less about the messages
        than the totals do is not finished: then the totals stand for the messages in it.
        """
        total = _counts(self._fields)
        listed = self._fields.get("iterations")
        parts = [part for part in listed if isinstance(part, dict)] if isinstance(listed, list) else []
        messages = [part for part in parts if part.get("type") in ("message", "fallback_message")]
        others = tuple(_entry(part) for part in parts if part not in messages)
        in_messages = sum((_counts(part) for part in messages), TokenCounts())
        if not messages or in_messages.total_tokens < total.total_tokens:
            return (UsageEntry(total), *others)
        return (*(_entry(part) for part in messages), *others)


def _entry(part: dict[str, Any]) -> UsageEntry:
    return UsageEntry(_counts(part), _text(part.get("model")))


def _counts(fields: dict[str, Any]) -> TokenCounts:
    split = fields.get("cache_creation")
    hour = _count(split.get("ephemeral_1h_input_tokens")) if isinstance(split, dict) else 0
    minutes = _count(split.get("ephemeral_5m_input_tokens")) if isinstance(split, dict) else 0
    # The newest total decides how much was written; the split, which only the start has, how it was kept.
    written = (
        _count(fields["cache_creation_input_tokens"]) if "cache_creation_input_tokens" in fields else hour + minutes
    )
    hour = min(hour, written)
    return TokenCounts(
        input_tokens=_count(fields.get("input_tokens")),
        output_tokens=_count(fields.get("output_tokens")),
        cache_write_5m_tokens=written - hour,
        cache_write_1h_tokens=hour,
        cache_read_tokens=_count(fields.get("cache_read_input_tokens")),
    )


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
