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
_HOLD_BLOCKS: Final = frozenset({"content", "source", "tool_changes", "tool_references"})
"""The fields by which content blocks stand in messages and in each other: `content` as a list or as one object."""
_NESTED: Final = frozenset({dict, list})
_UNBOUNDED_FIELDS: Final = ("compaction", "container", "fallbacks", "mcp_servers", "thread")

# Bodies are adversarial: every scan below is linear, on any bytes. So no pattern has a repeated group in it, and none
# can fail late: a string that does not end reaches to the end of the text.
_STRING: Final = re.compile(rb'"[^"]*"?')
_STRING_OR_CONSTANT: Final = re.compile(r'"[^"]*"?|(NaN|-?Infinity)')
_STEP_OF: Final = tuple(1 if bracket in b"[{" else -1 for bracket in range(256))
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_PAIR_OR_LONE: Final = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F])",
)
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
    text, places = _parse(body)
    fields = {name: place.value for name, place in places.items()}
    model = _required(fields, "model")
    if not isinstance(model, str) or not model:
        _refuse("model: must be a non-empty string")
    max_tokens = _required(fields, "max_tokens")
    if type(max_tokens) is not int or not 0 <= max_tokens <= MAX_OUTPUT_TOKENS:
        _refuse(f"max_tokens: must be a whole number from 0 to {MAX_OUTPUT_TOKENS}")
    stream = fields.get("stream", False)
    if stream is not None and not isinstance(stream, bool):
        _refuse("stream: must be true or false")
    if not isinstance(_required(fields, "messages"), list):
        _refuse("messages: must be a list")
    bound = _Bound(len(body), fields)
    return MessageRequest(
        body=body,
        model=model,
        max_tokens=max_tokens,
        stream=bool(stream),
        prompt_bound_tokens=bound.tokens,
        unbounded=tuple(sorted(bound.unbounded)),
        thinking_budget_tokens=_thinking_budget(fields.get("thinking")),
        max_tokens_span=_byte_span(text, places["max_tokens"]),
    )


def parse_object(body: bytes) -> dict[str, Any]:
    """The top-level fields of a strict JSON object. Raises InvalidRequestError with the position of what is wrong."""
    return {name: place.value for name, place in _parse(body)[1].items()}


@dataclass(frozen=True, slots=True)
class _Field:
    """A top-level field: its value, and where the value stands in the text."""

    value: Any
    start: int
    end: int


def _parse(body: bytes) -> tuple[str, dict[str, _Field]]:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse_json(f"byte {error.start} is not valid UTF-8")
    _refuse_deep(body)
    if _SURROGATE.search(body):
        _refuse_lone_surrogates(text)
    try:
        return text, dict(_fields(text))
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
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _DuplicateKeyError(name)
            seen.add(name)
    return found


class _ConstantError(Exception):
    """NaN, Infinity or -Infinity, which Python reads and JSON does not have."""


def _no_constant(name: str) -> NoReturn:
    raise _ConstantError(name)


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _fields(text: str) -> Iterator[tuple[str, _Field]]:
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
        yield name, _Field(value, start, end)
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


def _byte_span(text: str, field: _Field) -> tuple[int, int]:
    """[start, end) in bytes of a field of ASCII, such as a number. Encodes what stands before it."""
    start = len(text[: field.start].encode())
    return start, start + field.end - field.start


def _refuse_deep(body: bytes) -> None:
    """Measured on the brackets outside of strings, so that the parser's own recursion is never what stops it."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    # Up to the first byte that is no JSON, where the parser stops, this sees the brackets that the parser sees.
    structure = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
    structure = structure.replace(b'""', b"")  # changes for no bracket whether it is in a string
    depths = accumulate(map(_STEP_OF.__getitem__, _STRING.sub(b"", structure)))
    if max(depths, default=0) > MAX_DEPTH:
        _refuse_json(f"nested more than {MAX_DEPTH} levels deep")


def _refuse_lone_surrogates(text: str) -> None:
    """Half a surrogate pair is legal JSON and no character; what a parser makes of it differs."""
    for escape in _PAIR_OR_LONE.finditer(text.replace("\\\\", "__")):
        if escape[1]:
            _refuse_json(f"lone surrogate at character {escape.start()}")


def _position_of_constant(text: str) -> int:
    same_length = text.replace("\\\\", "__").replace('\\"', "__")
    return next(match.start() for match in _STRING_OR_CONSTANT.finditer(same_length) if match[1])


def _required(fields: dict[str, Any], name: str) -> Any:  # noqa: ANN401  any JSON
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

    Whatever there is counts a token for each of its bytes, so a shape that is not known here can make the bound too
    high, not too low. What costs more than its bytes is looked for in every nested list and object, since containers
    come and go with betas; only in the places where Claude takes content blocks does an image replace its own bytes.
    """

    def __init__(self, body_bytes: int, request: dict[str, Any]) -> None:
        self.tokens = BASE_TOKENS + body_bytes
        self.unbounded: set[str] = {name for name in _UNBOUNDED_FIELDS if request.get(name) not in (None, [], {})}
        self._definitions: list[dict[str, Any]] = []
        self._references: list[object] = []
        self._context_edits(request.get("context_management"))
        self._tools(request.get("tools"))
        output_config = request.get("output_config")
        if request.get("output_format") or (isinstance(output_config, dict) and output_config.get("format")):
            self.tokens += OUTPUT_FORMAT_TOKENS
        self._walk(request.get("tools"), takes_blocks=False)
        self._walk(request.get("system"), takes_blocks=True)
        self._walk(request["messages"], takes_blocks=True)
        self._expand_references()

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
        self.tokens += _hidden_tokens(kind)
        if not _BOUNDED_TOOLS.fullmatch(kind):
            self.unbounded.add(f"tool {_shown(kind)}")
        if isinstance(tool, dict):
            self._definitions.append(tool)

    def _walk(self, root: object, *, takes_blocks: bool) -> None:
        """Every list and object in `root`, each with whether it stands where blocks do, and in what is to be cited."""
        pending: list[tuple[object, bool, bool]] = [(root, takes_blocks, False)]
        while pending:
            value, in_place, cited = pending.pop()
            if isinstance(value, dict):
                self._look_at(value, in_place)
                cited = cited or _cites(value)
                for name, each in value.items():
                    if type(each) in _NESTED:
                        pending.append((each, in_place and name in _HOLD_BLOCKS, cited))
            elif isinstance(value, list):
                pending.extend((each, in_place, cited) for each in value if type(each) in _NESTED)
            if cited:
                self.tokens += CITATION_FACTOR * _text_bytes(value)

    def _look_at(self, block: dict[str, Any], in_place: bool) -> None:
        """Adds what an object costs beyond its bytes, of whatever stands in it apart."""
        match block.get("type"):
            case "image" if in_place or isinstance(block.get("source"), dict):
                self._image(block.get("source"), in_place)
            case "document" if in_place or isinstance(block.get("source"), dict):
                self._document(block.get("source"))
            case "container_upload":
                self.unbounded.add("container_upload")
            case "tool_addition":
                self._tool_addition(block.get("tool"))
            case "tool_reference":
                self._references.append(block.get("tool_name", block.get("name")))

    def _image(self, source: object, in_place: bool) -> None:
        self.tokens += IMAGE_TOKENS
        if _kind(source) != "base64":
            self.unbounded.add(f"image from a {_shown(_kind(source))} source")
        elif in_place:
            self.tokens -= _text_length(source, "data")

    def _document(self, source: object) -> None:
        kind = _kind(source)
        if kind == "base64":
            self.unbounded.add("PDF document")
        elif kind not in ("text", "content"):
            self.unbounded.add(f"document from a {_shown(kind)} source")

    def _tool_addition(self, tool: object) -> None:
        """A tool that joins in mid-conversation, named or defined in place."""
        self.tokens += TOOL_USE_TOKENS
        if _kind(tool) == "tool_definition" and isinstance(tool, dict):
            self._tool(tool.get("definition"))
        elif "mcp" in _kind(tool):
            self.unbounded.add(f"tool {_shown(_kind(tool))}")

    def _expand_references(self) -> None:
        """A reference of a few bytes puts the whole definition of a tool before the model, each time it stands there.

        One that names no tool here counts as the largest.
        """
        if not self._references:
            return
        sizes: dict[object, int] = {}
        for tool in self._definitions:
            name = tool.get("name") if isinstance(tool.get("name"), str) else None
            size = len(json.dumps(tool, ensure_ascii=False).encode()) + _hidden_tokens(_kind(tool) or "custom")
            sizes[name] = max(size, sizes.get(name, 0))
        largest = max(sizes.values(), default=0)
        for name in self._references:
            self.tokens += sizes.get(name, largest) if isinstance(name, str) else largest


def _cites(block: dict[str, Any]) -> bool:
    citations = block.get("citations")
    return isinstance(citations, dict) and bool(citations.get("enabled"))


def _text_bytes(value: object) -> int:
    """UTF-8 bytes of the texts that stand in a value itself; no lone surrogate has come this far."""
    texts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(len(text.encode()) for text in texts if isinstance(text, str))


def _hidden_tokens(kind: str) -> int:
    """What a tool of this kind costs beyond the bytes that define it."""
    if kind == "custom":
        return 0
    return TOOLSET_TOKENS if "_toolset_" in kind else ANTHROPIC_TOOL_TOKENS


def _kind(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else ""


def _shown(kind: str) -> str:
    """A name from the request, fit for a message: short, and nothing but a name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "?", kind[:60]) or "nameless"


def _text_length(value: object, name: str) -> int:
    text = value.get(name) if isinstance(value, dict) else None
    return len(text) if isinstance(text, str) and text.isascii() else 0
