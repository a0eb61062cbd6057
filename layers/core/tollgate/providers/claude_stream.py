"""Reads usage beside a relayed answer, without touching it: bytes in, a few events out, no I/O.

Stands in `providers` and not at the edge because it is knowledge about Claude, and the relay flow needs it.
Only message_start, message_delta, message_stop and error are decoded. Content deltas, which are nearly all of a
stream, are measured by their length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tollgate.domain.tokens import TokenCounts
from tollgate.domain.usage import Usage, UsageEntry

MAX_EVENT_BYTES: Final = 1024 * 1024
"""A larger event is a broken stream: the largest real ones are message_start and tool results, some 100 KB."""

MAX_COUNT: Final = 10**12
"""No answer has more tokens of a kind; a larger count is a fault and not a bill."""

_DELTA: Final = b"event: content_block_delta\n"
_SKIPPED: Final = (b"event: content_block_", b"event: ping\n")
# `"delta":{"type":"text_delta","text":"`, in whatever spacing.
_DELTA_TEXT: Final = re.compile(rb'"delta"\s*:\s*\{\s*"type"\s*:\s*"(\w+)"\s*,\s*"\w+"\s*:\s*"?')
_SIGNATURE: Final = b"signature_delta"
# What follows the text: closing braces, and the spaces with which Claude pads events against eavesdroppers.
_PADDING: Final = b" \t\r\n}"
_UNDERSTOOD: Final = ("message_start", "message_delta", "message_stop", "error")
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class MessageStarted:
    """The true prompt is known; the output count in it is a placeholder."""

    usage: Usage | None
    """None: the prompt is told in no counts that can be read."""


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
        self._starts = 0
        self._earlier: tuple[UsageEntry, ...] = ()
        self._earlier_known = True
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
        usage = self._usage.usage()
        return replace(usage, entries=self._earlier + usage.entries) if self._earlier else usage

    @property
    def usage_is_final(self) -> bool:
        """The provider has reported the prompt, the output (not only the placeholder) and that the answer has ended."""
        ended = self._stop_reason_seen or self._stopped
        return ended and self._output_reported and self._prompt_is_known and self._starts <= 1

    @property
    def _prompt_is_known(self) -> bool:
        return self._earlier_known and self._usage.prompt_is_known

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
                if found and isinstance(found[-1], StreamBroken):
                    return found  # or the bill would depend on which events came in the same chunk
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
        """Count the text in a delta; of one in another form all there is, since too little would be given away."""
        found, written = _DELTA_TEXT.search(block), block.rstrip(_PADDING)
        if found is None:
            self.delivered_bytes += len(written)
        elif found[1] != _SIGNATURE:
            self.delivered_bytes += max(1, len(written) - found.end() - 1)

    def _read(self, block: bytes) -> list[StreamEvent]:
        name, data = self._fields(block)
        if name == "content_block_delta":
            self._measure(data)
        if not data or (name and name not in _UNDERSTOOD):
            return []
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return self._break("an event that is not JSON") if name else []
        if not isinstance(document, dict):
            return []
        if not name and document.get("type") == "content_block_delta":
            self._measure(data)
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

    def _begin(self) -> None:
        """An answer that begins again is none we know: what came before was generated too, and is never final."""
        self._starts += 1
        if self._starts > 1:
            self._earlier, self._earlier_known = self.usage.entries, self._prompt_is_known
            self._usage = UsageFields()

    def _understand(self, name: str, document: dict[str, Any]) -> list[StreamEvent]:
        match name:
            case "message_start":
                message = document.get("message")
                self._begin()
                if isinstance(message, dict):
                    self._usage.model = _text(message.get("model"))
                    self._usage.update(message.get("usage"))
                return [MessageStarted(self.usage if self._prompt_is_known else None)]
            case "message_delta":
                delta = document.get("delta")
                if isinstance(delta, dict) and delta.get("stop_reason") is not None:
                    self._stop_reason_seen = True
                usage_fields = document.get("usage")
                self._usage.update(usage_fields)
                usage = self.usage
                if isinstance(usage_fields, dict) and _is_count(usage_fields.get("output_tokens")):
                    self._output_reported = True
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


def is_event_stream(headers: Mapping[str, str]) -> bool:
    """Does an answer with these headers (lower-case names) come in events?"""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream"


def usage_of_message(body: bytes) -> Usage | None:
    """The usage of an answer that was not streamed; None when it does not tell its prompt and output in numbers."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    fields = UsageFields()
    fields.model = _text(document.get("model"))
    fields.update(document.get("usage"))
    return fields.usage() if fields.prompt_is_known and fields.output_is_known else None


class UsageFields:
    """The newest value of each field of `usage`. Counts are cumulative, so nothing is ever added up over time.

    A count that is no count (negative, a text, a float, beyond all reason) makes the whole unknown and replaces
    nothing: billing it as 0 would give the prompt away.
    """

    def __init__(self) -> None:
        self.model: str | None = None
        self._fields: dict[str, Any] = {}
        self._doubtful = False

    @property
    def prompt_is_known(self) -> bool:
        return not self._doubtful and "input_tokens" in self._fields

    @property
    def output_is_known(self) -> bool:
        return not self._doubtful and "output_tokens" in self._fields

    def update(self, usage: object) -> None:
        """Take over what is not null.

        Deltas leave out the cache-write split and the price facts, so what message_start said about them stays.
        """
        if not isinstance(usage, dict):
            return
        told = {name: value for name, value in usage.items() if value is not None}
        parts = told.get("iterations")
        listed = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        self._doubtful |= not all(map(_is_readable, (told, *listed)))
        self._fields.update((name, value) for name, value in told.items() if name not in _COUNTS or _is_count(value))

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


_COUNTS: Final = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_SPLIT_COUNTS: Final = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")


def _is_readable(fields: dict[str, Any]) -> bool:
    """Is every count in these fields a count or null?"""
    counts = [fields.get(name) for name in _COUNTS]
    split = fields.get("cache_creation")
    if isinstance(split, dict):
        counts += [split.get(name) for name in _SPLIT_COUNTS]
    return all(count is None or _is_count(count) for count in counts)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value <= MAX_COUNT else 0


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
