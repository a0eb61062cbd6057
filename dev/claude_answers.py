"""What the fake Claude says and how many tokens it counts: a pure function of the request, the script and its cache.

Counts depend on the text and only on the text, so the same request costs the same everywhere: `count_tokens` of a text
is the number of its `pieces`, never more than its UTF-8 bytes, as with the real tokenizers.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

Json = dict[str, Any]

MODELS: dict[str, tuple[str, int, int, str]] = {
    # id: display name, context window, largest max_tokens, release (the epoch where it is not known). A dated snapshot
    # resolves to its alias's row. Newest first, as the real list is.
    "claude-haiku-5-5": ("Claude Haiku 5.5", 1_000_000, 128_000, "2026-10-07T00:00:00Z"),
    "claude-sonnet-5-5": ("Claude Sonnet 5.5", 1_000_000, 128_000, "2026-09-28T00:00:00Z"),
    "claude-opus-5-5": ("Claude Opus 5.5", 1_000_000, 128_000, "2026-09-22T00:00:00Z"),
    "claude-fable-5-1": ("Claude Fable 5.1", 1_000_000, 128_000, "2026-09-01T00:00:00Z"),
    "claude-mythos-5-1": ("Claude Mythos 5.1", 1_000_000, 128_000, "2026-09-01T00:00:00Z"),
    "claude-opus-5": ("Claude Opus 5", 1_000_000, 128_000, "2026-07-24T00:00:00Z"),
    "claude-sonnet-5": ("Claude Sonnet 5", 1_000_000, 128_000, "2026-06-30T00:00:00Z"),
    "claude-fable-5": ("Claude Fable 5", 1_000_000, 128_000, "2026-06-09T00:00:00Z"),
    "claude-mythos-5": ("Claude Mythos 5", 1_000_000, 128_000, "2026-06-09T00:00:00Z"),
    "claude-opus-4-8": ("Claude Opus 4.8", 1_000_000, 128_000, "2026-05-28T00:00:00Z"),
    "claude-opus-4-7": ("Claude Opus 4.7", 1_000_000, 128_000, "2026-04-16T00:00:00Z"),
    "claude-sonnet-4-6": ("Claude Sonnet 4.6", 1_000_000, 128_000, "2026-02-17T00:00:00Z"),
    "claude-opus-4-6": ("Claude Opus 4.6", 1_000_000, 128_000, "2026-02-05T00:00:00Z"),
    "claude-opus-4-5": ("Claude Opus 4.5", 200_000, 64_000, "2025-11-24T00:00:00Z"),
    "claude-haiku-4-5": ("Claude Haiku 4.5", 200_000, 64_000, "2025-10-15T00:00:00Z"),
    "claude-sonnet-4-5": ("Claude Sonnet 4.5", 200_000, 64_000, "2025-09-29T00:00:00Z"),
    "claude-fable-5-2": ("Claude Fable 5.2", 1_000_000, 128_000, "1970-01-01T00:00:00Z"),
    "claude-mythos-5-2": ("Claude Mythos 5.2", 1_000_000, 128_000, "1970-01-01T00:00:00Z"),
}
"""The double's own list. A shipped catalog must name no model that is missing here; tests/dev checks it."""

CACHEABLE_TOKENS = 1024
"""Shorter prefixes are not cached, as documented for most models."""
TOOL_USE_TOKENS = 346
"""The system prompt that offering tools adds, as documented."""
IMAGE_TOKENS_AT_MOST = 1_600

_PIECES = re.compile(r"\s*(?:[A-Za-z0-9]{1,4}|[^\w\s]{1,2}|.)", re.DOTALL)
_LONG_TEXT_BYTES = 16_384
_SNAPSHOT = re.compile(r"-20\d{6}$")
_DIRECTIVE = re.compile(r"\[\[fake\b([^\]]*)\]\]")
_SENTENCE = " The quick brown fox jumps over the lazy dog, and every token of this sentence is counted."


class RefusedError(Exception):
    """An answer in the error envelope instead of a message."""

    def __init__(self, status: int, error_type: str, message: str, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.message = message
        self.retry_after_seconds = retry_after_seconds


ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Script:
    """What an answer does on purpose; dev/README.md explains each key. 0 and "" mean: nothing special.

    `…_after` counts content deltas already sent; -1 means never.
    """

    error: int = 0
    error_message: str = ""
    retry_after: int = 0
    once: str = ""
    reset: int = 0
    error_after: int = -1
    error_type: str = "overloaded_error"
    truncate_after: int = -1
    disconnect_after: int = -1
    stall_after: int = -1
    stall_ms: int = 3_600_000
    ttft_ms: int = 0
    pace_ms: int = 0
    chunk_bytes: int = 0
    tokens: int = 0
    tokens_per_event: int = 4
    hidden_input: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0
    message_deltas: int = 1
    unknown_events: int = 0
    stop_reason: str = ""
    tool: str = ""
    served_model: str = ""

    def with_directives(self, text: str) -> Script:
        """This script changed by `key=value` words (spaces, commas or semicolons between); RefusedError if unknown."""
        known = {item.name: item.type for item in fields(self)}
        changes: dict[str, Any] = {}
        for word in re.split(r"[\s;,]+", text.strip()):
            key, _, value = word.partition("=")
            if not key:
                continue
            if key not in known:
                raise RefusedError(400, "invalid_request_error", f"fake: no such key {key}; known: {', '.join(known)}")
            try:
                changes[key] = int(value or 1) if known[key] == "int" else value.replace("+", " ")
            except ValueError:
                raise RefusedError(400, "invalid_request_error", f"fake: {key} wants a number, not {value}") from None
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Delta:
    """One content_block_delta and the output tokens it stands for."""

    body: Json
    tokens: int


@dataclass(frozen=True, slots=True)
class Block:
    """A content block as it starts, as it grows, and whole."""

    start: Json
    deltas: tuple[Delta, ...]
    whole: Json

    @property
    def tokens(self) -> int:
        return sum(delta.tokens for delta in self.deltas)


@dataclass(frozen=True, slots=True)
class InputCounts:
    """Prompt tokens by kind; `input_tokens` excludes cached ones, as in the real API."""

    input_tokens: int
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0

    @property
    def total(self) -> int:
        return self.input_tokens + self.cache_write_5m + self.cache_write_1h + self.cache_read

    def usage(self, output_tokens: int) -> Json:
        """The `usage` object of message_start and of a whole message."""
        return {
            "input_tokens": self.input_tokens,
            "cache_creation_input_tokens": self.cache_write_5m + self.cache_write_1h,
            "cache_read_input_tokens": self.cache_read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.cache_write_5m,
                "ephemeral_1h_input_tokens": self.cache_write_1h,
            },
            "output_tokens": output_tokens,
            "service_tier": "standard",
            "inference_geo": "global",
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """A message before it is put on the wire."""

    message_id: str
    model: str
    counts: InputCounts
    blocks: tuple[Block, ...]
    stop_reason: str
    stop_sequence: str | None
    thinking_tokens: int | None

    @property
    def output_tokens(self) -> int:
        return max(1, sum(block.tokens for block in self.blocks))

    def _usage_details(self) -> Json:
        if self.thinking_tokens is None:
            return {}
        return {"output_tokens_details": {"thinking_tokens": self.thinking_tokens}}

    def message(self) -> Json:
        """The body of a non-streamed answer."""
        return {
            "model": self.model,
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "content": [block.whole for block in self.blocks],
            "stop_reason": self.stop_reason,
            "stop_sequence": self.stop_sequence,
            "usage": {**self.counts.usage(self.output_tokens), **self._usage_details()},
        }

    def opening(self) -> Json:
        """The message of message_start: no content, a placeholder for the output count."""
        return {
            **self.message(),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self.counts.usage(1),
        }

    def closing(self, output_tokens: int, *, final: bool) -> Json:
        """A message_delta event; its counts are cumulative."""
        usage = self.counts.usage(output_tokens)
        for only_at_start in ("cache_creation", "service_tier", "inference_geo"):
            del usage[only_at_start]
        stop = {
            "stop_reason": self.stop_reason if final else None,
            "stop_sequence": self.stop_sequence if final else None,
        }
        return {"type": "message_delta", "delta": stop, "usage": {**usage, **self._usage_details()}}


@dataclass(slots=True)
class PromptCache:
    """Prefixes that were written with cache_control, and until when (epoch seconds) they can be read."""

    expires_at: dict[str, float] = field(default_factory=dict)

    def count(self, model: str, parts: list[tuple[int, bytes, str | None]], now_seconds: float) -> InputCounts:
        """Splits the prompt into fresh, written and read tokens, and remembers what was written."""
        digest = hashlib.sha256(model.encode())
        total = read = 0
        marks: list[tuple[int, str, str]] = []
        for tokens, content, ttl in parts:
            total += tokens
            digest.update(content)
            if ttl is not None and total >= CACHEABLE_TOKENS:
                marks.append((total, digest.hexdigest(), ttl))
        for size, key, _ in marks:
            if self.expires_at.get(key, 0.0) > now_seconds:
                read = size
        written = {"5m": 0, "1h": 0}
        done = read
        for size, key, ttl in marks:
            written[ttl] += max(0, size - done)
            done = max(done, size)
            self.expires_at[key] = now_seconds + (3600 if ttl == "1h" else 300)
        return InputCounts(total - done, written["5m"], written["1h"], read)


def pieces(text: str) -> list[str]:
    """The tokens of a text; joined they are the text again."""
    return _PIECES.findall(text)


def count_text(text: str) -> int:
    """Tokens of a text. Long texts are counted by their bytes, so that megabytes cost nothing here."""
    size = len(text.encode(errors="surrogatepass"))
    return len(pieces(text)) if size <= _LONG_TEXT_BYTES else size // 4 + 1


def resolve_model(name: object) -> str:
    """The id of a known model, alias or dated snapshot; RefusedError 404 for others."""
    if not isinstance(name, str) or not name:
        raise RefusedError(400, "invalid_request_error", "model: Field required")
    if name in MODELS or _SNAPSHOT.sub("", name) in MODELS:
        return name
    raise RefusedError(404, "not_found_error", f"model: {name}")


def model_info(name: str) -> Json:
    """One row of the models list."""
    display_name, context, max_tokens, created_at = MODELS[_SNAPSHOT.sub("", name)]
    return {
        "type": "model",
        "id": name,
        "display_name": display_name,
        "created_at": created_at,
        "lifecycle": "active",
        "line": name.split("-")[1],
        "max_input_tokens": context,
        "max_tokens": max_tokens,
    }


def script_of(body: Json, defaults: Script, header: str) -> Script:
    """Defaults, then `[[fake …]]` in the last user text, then the header."""
    script = defaults
    for directive in _DIRECTIVE.findall(_last_user_text(body)):
        script = script.with_directives(directive)
    return script.with_directives(header) if header else script


def prompt_parts(body: Json) -> list[tuple[int, bytes, str | None]]:
    """(tokens, canonical bytes, cache ttl or None) of every prompt block, in the order that prefixes are cached."""
    parts: list[tuple[int, bytes, str | None]] = [(3, b"", None)]
    tools = [tool for tool in body.get("tools") or () if isinstance(tool, dict)]
    if tools:
        parts.append((TOOL_USE_TOKENS, b"tools", None))
    parts += [(count_text(_compact(tool)), _compact(tool).encode(), _ttl(tool)) for tool in tools]
    parts += [_part(block) for block in _blocks(body.get("system"))]
    for message in body["messages"]:
        parts.append((4, str(message.get("role")).encode(), None))
        parts += [_part(block) for block in _blocks(message.get("content"))]
    if body.get("cache_control"):
        tokens, content, ttl = parts[-1]
        parts[-1] = (tokens, content, ttl or _ttl(body))
    return parts


def validate(body: object, *, counting: bool, api_version: str) -> Json:
    """The request as an object the rest can rely on; RefusedError 400 as the real API words it."""
    if not isinstance(body, dict):
        raise RefusedError(400, "invalid_request_error", "Input should be an object")
    model = resolve_model(body.get("model"))
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusedError(400, "invalid_request_error", "messages: at least one message is required")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            raise RefusedError(400, "invalid_request_error", f"messages.{index}.role: unexpected value")
        if not message.get("content"):
            raise RefusedError(400, "invalid_request_error", f"messages.{index}: content must be non-empty")
    if api_version >= "2026-10-21":
        for name in ("temperature", "top_p", "top_k"):
            if name in body:
                raise RefusedError(400, "invalid_request_error", f"{name}: Extra inputs are not permitted")
    if not isinstance(body.get("stop_sequences") or [], list):
        raise RefusedError(400, "invalid_request_error", "stop_sequences: Input should be a valid list")
    if not counting:
        _validate_max_tokens(body, model)
    return body


def answer(body: Json, script: Script, counts: InputCounts, message_id: str, tool_use_id: str) -> Answer:
    """The message this request gets."""
    budget = int(body["max_tokens"])
    blocks: list[Block] = []
    thinking_tokens = None
    thinking = body.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") not in (None, "disabled"):
        block = _thinking_block(body, script, budget, shown=thinking.get("display") != "omitted")
        blocks.append(block)
        thinking_tokens = block.tokens
        budget -= block.tokens
    tool = _tool_to_call(body, script)
    text, stop_sequence = _text_before_stop(body, _answer_text(body, script, calls_tool=tool is not None))
    text_block = _text_block(text, script, budget)
    if text_block.deltas:
        blocks.append(text_block)
    budget -= text_block.tokens
    stop_reason = "stop_sequence" if stop_sequence else "end_turn"
    if tool is not None and budget > 0:
        block = _tool_block(tool, tool_use_id, script, budget, _last_user_text(body))
        blocks.append(block)
        budget -= block.tokens
        stop_reason = "tool_use"
    if budget <= 0:
        stop_reason, stop_sequence = "max_tokens", None
    return Answer(
        message_id=message_id,
        model=script.served_model or body["model"],
        counts=counts,
        blocks=tuple(blocks),
        stop_reason=script.stop_reason or stop_reason,
        stop_sequence=stop_sequence,
        thinking_tokens=thinking_tokens,
    )


def image_tokens(data: bytes) -> int:
    """Width times height over 750, as documented; the most an image can cost when its size cannot be read."""
    size = _image_size(data)
    if size is None:
        return IMAGE_TOKENS_AT_MOST
    return max(1, min(IMAGE_TOKENS_AT_MOST, size[0] * size[1] // 750))


def events(said: Answer, script: Script) -> Iterator[tuple[str, bytes, bool]]:
    """(name, bytes on the wire, whether it is a content delta) of the whole stream, in order."""
    yield _event({"type": "message_start", "message": said.opening()})
    for index, block in enumerate(said.blocks):
        yield _event({"type": "content_block_start", "index": index, "content_block": block.start})
        if index == 0:
            yield "ping", b'event: ping\ndata: {"type": "ping"}\n\n', False
            for number in range(script.unknown_events):
                yield _event({"type": "future_event", "number": number, "text": "naïve café"})
        for number, delta in enumerate(block.deltas):
            yield _event({"type": "content_block_delta", "index": index, "delta": delta.body}, padding=number % 7)
        yield _event({"type": "content_block_stop", "index": index})
    for number in range(1, script.message_deltas + 1):
        final = number == script.message_deltas
        yield _event(said.closing(said.output_tokens * number // script.message_deltas, final=final))
    yield _event({"type": "message_stop"})


def error_event(error_type: str, message: str) -> bytes:
    """An error in the middle of a stream."""
    return _event({"type": "error", "error": {"details": None, "type": error_type, "message": message}})[1]


def _event(body: Json, padding: int = 0) -> tuple[str, bytes, bool]:
    # The real API pads its deltas with spaces before the last brace; whoever re-serialises loses them.
    text = _compact(body)
    name = str(body["type"])
    data = f"event: {name}\ndata: {text[:-1]}{' ' * padding}}}\n\n".encode()
    return name, data, name == "content_block_delta"


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace").decode()


def _validate_max_tokens(body: Json, model: str) -> None:
    max_tokens = body.get("max_tokens")
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool):
        raise RefusedError(400, "invalid_request_error", "max_tokens: Field required")
    if max_tokens < 1:
        raise RefusedError(400, "invalid_request_error", "max_tokens: Input should be greater than or equal to 1")
    most = model_info(model)["max_tokens"]
    if max_tokens > most:
        message = f"max_tokens: {max_tokens} > {most}, which is the maximum allowed number of output tokens for {model}"
        raise RefusedError(400, "invalid_request_error", message)


def _blocks(content: object) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        return [block if isinstance(block, dict) else {"type": "text", "text": str(block)} for block in content]
    return []


def _ttl(block: Json) -> str | None:
    control = block.get("cache_control")
    if not isinstance(control, dict):
        return None
    return "1h" if control.get("ttl") == "1h" else "5m"


def _part(block: Json) -> tuple[int, bytes, str | None]:
    content = {key: value for key, value in block.items() if key != "cache_control"}
    return _block_tokens(block), _compact(content).encode(), _ttl(block)


def _block_tokens(block: Json) -> int:
    kind = block.get("type")
    if kind == "text":
        return count_text(str(block.get("text", "")))
    if kind == "image":
        return _source_tokens(block)
    if kind == "tool_result":
        return 8 + sum(_block_tokens(inner) for inner in _blocks(block.get("content")))
    if kind in ("thinking", "redacted_thinking"):
        return 0  # earlier thinking is dropped from the prompt
    return count_text(_compact(block))


def _source_tokens(block: Json) -> int:
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        return IMAGE_TOKENS_AT_MOST
    try:
        data = base64.b64decode(str(source.get("data", "")), validate=True)
    except binascii.Error:
        raise RefusedError(400, "invalid_request_error", "image.source.base64.data: invalid base64 data") from None
    if not data:
        raise RefusedError(400, "invalid_request_error", "image.source.base64: image cannot be empty")
    return image_tokens(data)


def _image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a PNG, GIF or JPEG."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data[:6] in (b"GIF87a", b"GIF89a") and len(data) >= 10:
        width, height = struct.unpack("<HH", data[6:10])
        return width, height
    position = 2
    while data.startswith(b"\xff\xd8") and position + 9 < len(data):
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return width, height
        position += 2 + length
    return None


def _last_user_text(body: Json) -> str:
    for message in reversed(body["messages"]):
        if message.get("role") == "user":
            texts = [str(block.get("text", "")) for block in _blocks(message.get("content")) if block["type"] == "text"]
            return texts[-1] if texts else ""
    return ""


def _answer_text(body: Json, script: Script, *, calls_tool: bool) -> str:
    said = _DIRECTIVE.sub("", _last_user_text(body)).strip()
    last = _blocks(body["messages"][-1].get("content"))
    images = sum(
        block.get("type") == "image" for message in body["messages"] for block in _blocks(message.get("content"))
    )
    if calls_tool:
        text = "I will look that up."
    elif any(block.get("type") == "tool_result" for block in last):
        text = "Thank you, I have read what the tool returned."
    else:
        text = "Hello! I am the built-in fake Claude: I stream like the real one, and my token counts follow the text."
        text += f" You wrote: “{said[:120]}{'…' if len(said) > 120 else ''}”" if said else ""
    if images:
        text += f" I was shown {images} image{'s' if images > 1 else ''}."
    if script.tokens:
        while count_text(text) < script.tokens:
            text += _SENTENCE * max(1, (script.tokens - count_text(text)) // 24)
        text = "".join(pieces(text)[: script.tokens])
    return text


def _text_before_stop(body: Json, text: str) -> tuple[str, str | None]:
    found = [(text.find(stop), stop) for stop in body.get("stop_sequences") or () if isinstance(stop, str) and stop]
    hits = [(position, stop) for position, stop in found if position >= 0]
    if not hits:
        return text, None
    position, stop = min(hits)
    return text[:position], stop


def _grow(text: str, script: Script, budget: int, key: str, kind: str) -> tuple[tuple[Delta, ...], str]:
    """Deltas of at most `budget` tokens, and the text they carry together."""
    tokens = pieces(text)[: max(0, budget)]
    step = max(1, script.tokens_per_event)
    groups = [tokens[at : at + step] for at in range(0, len(tokens), step)]
    deltas = tuple(Delta({"type": kind, key: "".join(group)}, len(group)) for group in groups)
    return deltas, "".join(tokens)


def _text_block(text: str, script: Script, budget: int) -> Block:
    deltas, carried = _grow(text, script, budget, "text", "text_delta")
    return Block({"type": "text", "text": ""}, deltas, {"type": "text", "text": carried})


def _thinking_block(body: Json, script: Script, budget: int, *, shown: bool) -> Block:
    said = _DIRECTIVE.sub("", _last_user_text(body)).strip()
    deltas, carried = _grow(
        f"The user wrote {said[:60]!r}. I will answer plainly.", script, budget, "thinking", "thinking_delta"
    )
    signature = base64.b64encode(hashlib.sha256(carried.encode()).digest() * 3).decode()
    signed = Delta({"type": "signature_delta", "signature": signature}, 0)
    if not shown:
        # Omitted thinking is still generated and billed: its tokens arrive without text.
        deltas, carried = (Delta({"type": "thinking_delta", "thinking": ""}, sum(d.tokens for d in deltas)),), ""
    whole = {"type": "thinking", "thinking": carried, "signature": signature}
    return Block({"type": "thinking", "thinking": "", "signature": ""}, (*deltas, signed), whole)


def _tool_to_call(body: Json, script: Script) -> Json | None:
    """The tool this answer calls: the forced one, or under `auto` the first that the user's words name."""
    tools = {str(tool["name"]): tool for tool in body.get("tools") or () if isinstance(tool, dict) and "name" in tool}
    raw_choice = body.get("tool_choice")
    choice: Json = raw_choice if isinstance(raw_choice, dict) else {"type": "auto"}
    last = _blocks(body["messages"][-1].get("content"))
    if not tools or choice.get("type") == "none":
        return None
    if script.tool:
        return tools.get(script.tool)
    if choice.get("type") == "tool":
        return tools.get(str(choice.get("name")))
    if choice.get("type") == "any":
        return next(iter(tools.values()))
    if any(block.get("type") == "tool_result" for block in last):
        return None
    words = set(re.findall(r"[a-z]{4,}", _last_user_text(body).lower()))
    for name, tool in tools.items():
        if words & set(re.findall(r"[a-z]{4,}", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())):
            return tool
    return None


def _tool_block(tool: Json, tool_use_id: str, script: Script, budget: int, said: str) -> Block:
    arguments = _sample(tool.get("input_schema") or {}, said)
    text = json.dumps(arguments, ensure_ascii=False)
    deltas, carried = _grow(text, script, budget, "partial_json", "input_json_delta")
    start = {"type": "tool_use", "id": tool_use_id, "name": tool["name"], "input": {}}
    # The real stream opens every tool input with an empty delta.
    opening = Delta({"type": "input_json_delta", "partial_json": ""}, 0)
    return Block(start, (opening, *deltas), {**start, "input": arguments if carried == text else {}})


def _sample(schema: Json, said: str) -> object:
    """A value that fits a JSON schema's plain parts; texts take the last capitalised word of what the user wrote."""
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        properties = schema.get("properties") or {}
        wanted = schema.get("required") or list(properties)
        return {name: _sample(properties.get(name) or {}, said) for name in wanted}
    if kind == "array":
        return [_sample(schema.get("items") or {}, said)]
    simple = {"integer": 1, "number": 1.5, "boolean": True, "null": None}
    capitalised = re.findall(r"(?<=\s)[A-Z][a-z]+", said)
    return simple[kind] if kind in simple else (capitalised[-1] if capitalised else "example")
