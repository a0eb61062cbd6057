"""A message request, parsed for checking only: the bytes go up as they came, but for one number when it is clamped.

Two parsers must not read two requests from the same bytes, so what strict JSON leaves open is refused: duplicate keys,
NaN and Infinity, lone surrogates, other encodings than UTF-8, and nesting nobody needs. Beyond that only the fields
that are priced or bounded are looked at; unknown fields, roles, blocks and betas pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, NoReturn

from tollgate.domain.errors import InvalidRequestError

MAX_DEPTH: Final = 200
"""Far above any tool schema, and far below where Python's own parser gives up (about 900 on 3.11)."""
MAX_OUTPUT_TOKENS: Final = 1_000_000_000
"""Far above any model; keeps weighted amounts inside what the table can hold."""

# What a prompt can count for beyond one token per byte. Byte-pair tokenizers never make more tokens than bytes, and
# every structural token stands for JSON that is longer than it. What is not in the body is listed here, from
# Anthropic's documentation rounded well up; `message_start` corrects a figure that is still too low.
BASE_TOKENS: Final = 64
TOOL_USE_TOKENS: Final = 1_024
"""Hidden system prompt as soon as there are tools (documented: 264 to 804)."""
ANTHROPIC_TOOL_TOKENS: Final = 4_096
"""Definition of a tool that Anthropic wrote and the request only names (documented: up to 735 each)."""
TOOLSET_TOKENS: Final = 16_384
"""The same for a named set of about twenty tools."""
OUTPUT_FORMAT_TOKENS: Final = 1_024
"""Hidden instructions for a JSON schema output."""
IMAGE_TOKENS: Final = 6_000
"""Larger images are scaled down to 2,576 pixels on the long edge, 4,784 tokens at most."""
CITATION_FACTOR: Final = 4
"""A cited document is cut into sentences, each with a mark of its own."""

_BOUNDED_TOOLS: Final = re.compile(r"custom|(bash|text_editor|computer|memory|browser_toolset|computer_toolset)_\d{8}")
_BOUNDED_EDITS: Final = re.compile(r"clear_(tool_uses|thinking)_\d{8}")
_UNBOUNDED_FIELDS: Final = ("compaction", "container", "fallbacks", "mcp_servers", "thread")

_STRINGS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STRING_OR_CONSTANT: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|(NaN|-?Infinity)', re.DOTALL)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_SPACE: Final = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class MessageRequest:
    """What admission needs to know about a body, and the body."""

    body: bytes
    model: str
    max_tokens: int
    stream: bool
    prompt_bound_tokens: int
    """Upper bound of the prompt in plain tokens, for a request without `unbounded` shapes; else an estimate."""
    unbounded: tuple[str, ...]
    """Names of the shapes in it whose cost has no bound before the call."""
    thinking_budget_tokens: int | None
    max_tokens_span: tuple[int, int]
    """Where the number stands in `body`: [start, end) in bytes."""

    def with_max_tokens(self, max_tokens: int) -> bytes:
        """The body with that one number changed and every other byte as it came.

        Raises InvalidRequestError when a fixed thinking budget fitted before and does not any more: upstream would
        refuse it with a text about a number that the caller never sent.
        """
        budget = self.thinking_budget_tokens
        if budget is not None and max_tokens <= budget < self.max_tokens:
            raise InvalidRequestError(
                f"thinking.budget_tokens: {budget} does not fit below max_tokens, which your plan or what is left of"
                f" it holds to {max_tokens} for this request. Ask for a smaller budget.",
                error_code="thinking_budget_too_large",
            )
        start, end = self.max_tokens_span
        return self.body[:start] + str(max_tokens).encode() + self.body[end:]


def parse_message_request(body: bytes) -> MessageRequest:
    """Check a body. Raises InvalidRequestError, with the position where the text itself is wrong."""
    fields = parse_object(body)
    model = _required(fields, "model").value
    if not isinstance(model, str) or not model:
        _refuse("model: must be a non-empty string")
    max_tokens = _required(fields, "max_tokens")
    if type(max_tokens.value) is not int or not 0 <= max_tokens.value <= MAX_OUTPUT_TOKENS:
        _refuse(f"max_tokens: must be a whole number from 0 to {MAX_OUTPUT_TOKENS}")
    stream = fields["stream"].value if "stream" in fields else False
    if stream is not None and not isinstance(stream, bool):
        _refuse("stream: must be true or false")
    if not isinstance(_required(fields, "messages").value, list):
        _refuse("messages: must be a list")
    bound = _Bound(body, {name: field.value for name, field in fields.items()})
    return MessageRequest(
        body=body,
        model=model,
        max_tokens=max_tokens.value,
        stream=bool(stream),
        prompt_bound_tokens=bound.tokens,
        unbounded=tuple(sorted(bound.unbounded)),
        thinking_budget_tokens=_thinking_budget(fields["thinking"].value if "thinking" in fields else None),
        max_tokens_span=max_tokens.span,
    )


@dataclass(frozen=True, slots=True)
class JsonField:
    """A top-level field: its value, and where the value stands in the bytes."""

    value: Any
    span: tuple[int, int]


def parse_object(body: bytes) -> dict[str, JsonField]:
    """The top-level fields of a strict JSON object. Raises InvalidRequestError with the position of what is wrong."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse_json(f"byte {error.start} is not valid UTF-8")
    _refuse_deep(body)
    if _SURROGATE.search(body):
        _refuse_lone_surrogates(text)
    try:
        return dict(_fields(text, len(text) == len(body)))
    except json.JSONDecodeError as error:
        _refuse_json(f"{error.msg} at line {error.lineno}, column {error.colno} (character {error.pos})")
    except _ConstantError as error:
        _refuse_json(f"{error} is not a JSON number at character {_position_of_constant(text)}")
    except _DuplicateKeyError as error:
        _refuse_json(f"the key {error.key} stands twice in one object")
    except RecursionError:  # the depth is bounded above; this is for a caller that is deep in the stack already
        _refuse_json("nested too deeply")
    except ValueError:  # int() refuses more than 4,300 digits
        _refuse_json("a number has too many digits")


class _DuplicateKeyError(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = json.dumps(key[:40])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(next(name for name in names if names.count(name) > 1))
    return found


class _ConstantError(Exception):
    """NaN, Infinity or -Infinity, which Python reads and JSON does not have."""


def _no_constant(name: str) -> NoReturn:
    raise _ConstantError(name)


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _fields(text: str, ascii_only: bool) -> Iterator[tuple[str, JsonField]]:
    """The top level, read one field at a time, because the decoder does not tell where a value stood."""
    at = _after_space(text, 0)
    _expect(text, at, "{", "Expecting an object")
    seen: set[str] = set()
    at = _after_space(text, at + 1)
    ended = text[at : at + 1] == "}"
    while not ended:
        _expect(text, at, '"', "Expecting property name enclosed in double quotes")
        name, at = _DECODER.raw_decode(text, at)
        if name in seen:
            raise _DuplicateKeyError(name)
        seen.add(name)
        at = _after_space(text, at)
        _expect(text, at, ":", "Expecting ':' delimiter")
        start = _after_space(text, at + 1)
        value, end = _DECODER.raw_decode(text, start)
        yield name, JsonField(value, (start, end) if ascii_only else _byte_span(text, start, end))
        at = _after_space(text, end)
        ended = text[at : at + 1] == "}"
        if not ended:
            _expect(text, at, ",", "Expecting ',' delimiter")
            at = _after_space(text, at + 1)
    at = _after_space(text, at + 1)
    if at != len(text):
        raise json.JSONDecodeError("Extra data", text, at)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _expect(text: str, at: int, character: str, message: str) -> None:
    if text[at : at + 1] != character:
        raise json.JSONDecodeError(message, text, at)


def _byte_span(text: str, start: int, end: int) -> tuple[int, int]:
    start_bytes = len(text[:start].encode())
    return start_bytes, start_bytes + len(text[start:end].encode())


def _refuse_deep(body: bytes) -> None:
    """Measured on the brackets outside of strings, so that the parser's own recursion is never what stops it."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS)
    if max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0) > MAX_DEPTH:
        _refuse_json(f"nested more than {MAX_DEPTH} levels deep")


def _refuse_lone_surrogates(text: str) -> None:
    """Half a surrogate pair is legal JSON and no character; what a parser makes of it differs."""
    high_ends_at = -1
    for escape in _ESCAPE.finditer(text):
        code = int(escape[1], 16) if escape[1] else 0
        low = 0xDC00 <= code <= 0xDFFF
        if low != (high_ends_at == escape.start()):
            break
        high_ends_at = escape.end() if 0xD800 <= code <= 0xDBFF else -1
        if high_ends_at != -1 and text[high_ends_at : high_ends_at + 2] != "\\u":
            break
    else:
        return
    _refuse_json(f"lone surrogate at character {escape.start()}")


def _position_of_constant(text: str) -> int:
    found = (match for match in _STRING_OR_CONSTANT.finditer(text) if match[1])
    return next(found).start()


def _required(fields: dict[str, JsonField], name: str) -> JsonField:
    if name not in fields:
        raise InvalidRequestError(f"{name}: field required", error_code="missing_field")
    return fields[name]


def _refuse(message: str) -> NoReturn:
    raise InvalidRequestError(message, error_code="invalid_field")


def _refuse_json(reason: str) -> NoReturn:
    raise InvalidRequestError(f"Invalid JSON: {reason}.", error_code="invalid_json")


def _thinking_budget(thinking: object) -> int | None:
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    return budget if type(budget) is int else None


class _Bound:
    """Walks what the model will see, adding up its bound and the names of what has none.

    Only known containers are entered. Whatever else there is counts a token for each of its bytes, so a shape that
    is not known here can make the bound too high, not too low.
    """

    def __init__(self, body: bytes, request: dict[str, Any]) -> None:
        self.tokens = BASE_TOKENS + len(body)
        self.unbounded: set[str] = {name for name in _UNBOUNDED_FIELDS if request.get(name) not in (None, [], {})}
        self._context_edits(request.get("context_management"))
        self._tools(request.get("tools"))
        output_config = request.get("output_config")
        if request.get("output_format") or (isinstance(output_config, dict) and output_config.get("format")):
            self.tokens += OUTPUT_FORMAT_TOKENS
        self._blocks(request.get("system"))
        for message in request["messages"]:
            if isinstance(message, dict):
                self._blocks(message.get("content"))

    def _context_edits(self, management: object) -> None:
        edits = management.get("edits") if isinstance(management, dict) else None
        for edit in edits if isinstance(edits, list) else ():
            kind = _kind(edit)
            if not _BOUNDED_EDITS.fullmatch(kind):
                self.unbounded.add(f"context_management edit {_shown(kind)}")

    def _tools(self, tools: object) -> None:
        if isinstance(tools, list) and tools:
            self.tokens += TOOL_USE_TOKENS
            for tool in tools:
                self._tool(tool)

    def _tool(self, tool: object) -> None:
        kind = _kind(tool) or "custom"
        if not _BOUNDED_TOOLS.fullmatch(kind):
            self.unbounded.add(f"tool {_shown(kind)}")
        elif "_toolset_" in kind:
            self.tokens += TOOLSET_TOKENS
        elif kind != "custom":
            self.tokens += ANTHROPIC_TOOL_TOKENS

    def _blocks(self, blocks: object) -> None:
        pending = list(blocks) if isinstance(blocks, list) else []
        while pending:
            block = pending.pop()
            if not isinstance(block, dict):
                continue
            kind = _kind(block)
            if kind == "image":
                self._image(block.get("source"))
            elif kind == "document":
                pending.extend(self._document(block))
            elif kind == "container_upload":
                self.unbounded.add("container_upload")
            elif kind == "tool_addition":
                self._tool_addition(block.get("tool"))
            elif isinstance(block.get("content"), list):
                pending.extend(block["content"])

    def _image(self, source: object) -> None:
        self.tokens += IMAGE_TOKENS
        if _kind(source) == "base64":
            self.tokens -= _text_length(source, "data")
        else:
            self.unbounded.add(f"image from a {_shown(_kind(source))} source")

    def _document(self, block: dict[str, Any]) -> list[Any]:
        """Adds what the document itself costs; returns the blocks inside it."""
        source = block.get("source")
        kind = _kind(source)
        inner: list[Any] = []
        if kind == "base64":
            self.unbounded.add("PDF document")
        elif kind == "content" and isinstance(source, dict) and isinstance(source.get("content"), list):
            inner = source["content"]
        elif kind not in ("text", "content"):
            self.unbounded.add(f"document from a {_shown(kind)} source")
        citations = block.get("citations")
        if isinstance(citations, dict) and citations.get("enabled"):
            self.tokens += CITATION_FACTOR * len(json.dumps(source, ensure_ascii=False).encode())
        return inner

    def _tool_addition(self, tool: object) -> None:
        """A tool that joins in mid-conversation, named or defined in place."""
        self.tokens += TOOL_USE_TOKENS
        if _kind(tool) == "tool_definition" and isinstance(tool, dict):
            self._tool(tool.get("definition"))
        elif "mcp" in _kind(tool):
            self.unbounded.add(f"tool {_shown(_kind(tool))}")


def _kind(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else ""


def _shown(kind: str) -> str:
    """A name from the request, fit for a message: short, and nothing but a name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "?", kind[:60]) or "nameless"


def _text_length(value: object, name: str) -> int:
    text = value.get(name) if isinstance(value, dict) else None
    return len(text) if isinstance(text, str) and text.isascii() else 0
