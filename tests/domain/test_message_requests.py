"""What is read from a request's body, what is refused in it, and the one number that may change."""

from __future__ import annotations

import base64
import gc
import json
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.domain.errors import InvalidRequestError
from tollgate.domain.message_requests import (
    ANTHROPIC_TOOL_TOKENS,
    BASE_TOKENS,
    CITATION_FACTOR,
    IMAGE_TOKENS,
    MAX_DEPTH,
    MAX_OUTPUT_TOKENS,
    OUTPUT_FORMAT_TOKENS,
    TOOL_USE_TOKENS,
    TOOLSET_TOKENS,
    MessageRequest,
    parse_message_request,
)

HELLO = [{"role": "user", "content": "Hello"}]


def body(**changes: Any) -> bytes:  # noqa: ANN401  any JSON
    fields = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": HELLO} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def parsed(**changes: Any) -> MessageRequest:  # noqa: ANN401
    return parse_message_request(body(**changes))


def with_blocks(*blocks: Any) -> MessageRequest:  # noqa: ANN401
    return parsed(messages=[{"role": "user", "content": list(blocks)}])


def refusal(data: bytes) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse_message_request(data)
    return caught.value


class TestJson:
    @pytest.mark.parametrize(
        ("data", "where"),
        [
            (b"", "Expecting an object at line 1, column 1 (character 0)"),
            (b"[]", "Expecting an object at line 1, column 1 (character 0)"),
            (b"\xef\xbb\xbf{}", "(character 0)"),
            (b'{"model"', "Expecting ':' delimiter at line 1, column 9 (character 8)"),
            (b'{"model" "x"}', "(character 9)"),
            (b'{"model":}', "Expecting value at line 1, column 10 (character 9)"),
            (b'{\n"a":1,\n}', "at line 3, column 1 (character 9)"),
            (b'{"a":1 "b":2}', "Expecting ',' delimiter at line 1, column 8 (character 7)"),
            (b'{"a":1', "(character 6)"),
            (b"{'a':1}", "(character 1)"),
            (b'{"a":"\n"}', "(character 6)"),
            (b'{"a":1} {}', "Extra data at line 1, column 9 (character 8)"),
            (b'{"a":"\xff"}', "byte 6 is not valid UTF-8"),
            (b'{"a":"\xed\xa0\x80"}', "byte 6 is not valid UTF-8"),
            (b'{"a":NaN}', "NaN is not a JSON number at character 5"),
            (b'{"a":"NaN","b":[-Infinity]}', "-Infinity is not a JSON number at character 16"),
            (b'{"a":"\\ud800"}', "lone surrogate at character 6"),
            (b'{"a":"\\udc00\\ud800"}', "lone surrogate at character 6"),
            (b'{"a":"\\ud83d\\ud83d\\ude00"}', "lone surrogate at character"),
            (b'{"a":"\\ud83d x \\ude00"}', "lone surrogate at character 6"),
            (b'{"a":"\\ud83d\\n"}', "lone surrogate at character 6"),
            (b'{"a":1,"a":2}', 'the key "a" stands twice'),
            (b'{"max_tokens":1,"max\\u005ftokens":2}', 'the key "max_tokens" stands twice'),
            (b'{"a":[{"b":{"c":1,"c":1}}]}', 'the key "c" stands twice'),
            (b'{"a":' + b"9" * 5000 + b"}", "too many digits"),
        ],
    )
    def test_what_is_not_strict_json_is_refused_with_its_place(self, data: bytes, where: str) -> None:
        error = refusal(data)
        assert error.error_code == "invalid_json"
        assert where in error.public_message

    @pytest.mark.parametrize("text", ["\\ud83d\\ude00", "\\\\ud800", "\\\\\\ud83d\\ude00", "é世", "{[NaN"])
    def test_what_only_looks_wrong_is_taken(self, text: str) -> None:
        data = '{"model":"m","max_tokens":1,"messages":[],"x":"' + text + '"}'
        assert parse_message_request(data.encode()).max_tokens == 1

    @pytest.mark.parametrize("opening", ["[", '{"a":'])
    def test_nesting_is_refused_above_its_limit_only(self, opening: str) -> None:
        closing = "]" if opening == "[" else "}"

        def nested(levels: int) -> bytes:  # the whole object is the first level
            inner = opening * (levels - 1) + "1" + closing * (levels - 1)
            return b'{"model":"m","max_tokens":1,"messages":[],"x":' + inner.encode() + b"}"

        parse_message_request(nested(MAX_DEPTH - 1))
        parse_message_request(nested(MAX_DEPTH))
        assert "nested" in refusal(nested(MAX_DEPTH + 1)).public_message
        assert "nested" in refusal(nested(100_000)).public_message

    def test_brackets_in_text_are_not_nesting(self) -> None:
        assert parsed(messages=[{"role": "user", "content": '[{"' * 10_000}])

    def test_a_flat_list_is_not_nesting(self) -> None:
        assert parsed(messages=HELLO * 1000)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_taken_or_refused_cleanly(self, data: bytes) -> None:
        refusal(data)

    @given(st.text(alphabet='{}[]":,\\ud8NaI0-e. \n', max_size=60))
    def test_any_nearly_json_is_taken_or_refused_cleanly(self, data: str) -> None:
        refusal(data.encode())


START = b'{"model":"m","max_tokens":1,"messages":['
OTHER = START + b'],"x":'
CITED = b'{"type":"document","citations":{"enabled":true},"source":{"type":"content","content":['
REFERENCE = b'{"type":"tool_reference","tool_name":"t"}'


def keys(size: int) -> bytes:
    return b",".join(b'"k%d":1' % number for number in range(size // 12))


def with_large_tool(size: int) -> bytes:
    references = b",".join([REFERENCE] * (size // 2 // len(REFERENCE)))
    return START + b'{"content":[' + references + b']}],"tools":[{"name":"t","d":"' + b"a" * (size // 2) + b'"}]}'


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "a string of escaped quotes that does not end": lambda size: b"[" * 201 + b'"' + b'\\"' * (size // 2),
    "a string of backslashes that does not end": lambda size: b"[" * 201 + b'"' + b"\\" * size,
    "quotes": lambda size: b"[" * 201 + b'"' * size,
    "quotes and brackets": lambda size: b"[" * 201 + b'"[' * (size // 2),
    "deep lists": lambda size: b"[" * size,
    "deep objects": lambda size: b'{"a":' * (size // 5),
    "flat lists": lambda size: OTHER + b"[" + b"[]," * (size // 3) + b"0]}",
    "flat messages": lambda size: START + b"{}," * (size // 3) + b"0]}",
    "numbers for messages": lambda size: START + b"0," * (size // 2) + b"0]}",
    "tiny strings": lambda size: OTHER + b"[[" + b'"",' * (size // 3) + b"0]]}",
    "brackets in strings": lambda size: OTHER + b"[" + b'"[[",' * (size // 5) + b"0]}",
    "many keys": lambda size: OTHER + b"{" + keys(size) + b"}}",
    "many top-level keys": lambda size: START + b"]," + keys(size) + b"}",
    "many top-level keys beyond ASCII": lambda size: START + '],"é":1,'.encode() + keys(size) + b"}",
    "a duplicate after many keys": lambda size: OTHER + b"{" + keys(size) + b',"z":1,"z":1}}',
    "a top-level duplicate after many keys": lambda size: b'{"z":1,' + keys(size) + b',"z":1}',
    "a number of digits": lambda size: OTHER + b"9" * size + b"}",
    "a fraction of digits": lambda size: OTHER + b"0." + b"9" * size + b"}",
    "many long numbers": lambda size: OTHER + b"[" + (b"9" * 4300 + b",") * (size // 4301) + b"1]}",
    "escapes": lambda size: OTHER + b'"' + b"\\n" * (size // 2) + b'"}',
    "surrogate pairs": lambda size: OTHER + b'"' + b"\\ud83d\\ude00" * (size // 12) + b'"}',
    "a lone surrogate after escapes": lambda size: OTHER + b'"' + b"\\n" * (size // 2) + b'\\ud83d"}',
    "a constant after escapes": lambda size: OTHER + b'["' + b'\\"' * (size // 2) + b'",NaN]}',
    "a constant after strings": lambda size: OTHER + b"[" + b'"a",' * (size // 4) + b"NaN]}",
    "space": lambda size: OTHER + b" " * size + b"1}",
    "lines before the fault": lambda size: b"\n" * size + b"x",
    "cited documents in each other": lambda size: (
        START + b'{"content":[' + CITED * 60 + b'{"text":"' + b"a" * size + b'"}' + b"]}}" * 60 + b"]}]}"
    ),
    "references to a large tool": with_large_tool,
    "tools that nobody knows": lambda size: (
        START + b'],"tools":[' + b",".join(b'{"type":"x%d"}' % number for number in range(size // 16)) + b"]}"
    ),
}


class TestHostileBodies:
    @pytest.mark.parametrize("shape", HOSTILE.values(), ids=HOSTILE)
    def test_any_body_is_taken_or_refused_in_time_that_grows_with_its_size_only(
        self, shape: Callable[[int], bytes]
    ) -> None:
        """Measured against itself: 4 MB are 32 times as much as 128 KB, and the square of that is 1,024."""
        small, large = least_seconds(shape(1 << 17), tries=3), least_seconds(shape(1 << 22), tries=1)
        assert large <= 200 * max(small, 0.0005)


def least_seconds(data: bytes, tries: int) -> float:
    """CPU of this thread for one parse, at best, and without looks of the collector at all that tests keep."""
    found = []
    gc.disable()
    try:
        for _ in range(tries):
            began = time.thread_time()
            with suppress(InvalidRequestError):
                parse_message_request(data)
            found.append(time.thread_time() - began)
    finally:
        gc.enable()
    return min(found)


class TestFields:
    @pytest.mark.parametrize("name", ["model", "max_tokens", "messages"])
    def test_what_is_priced_or_bounded_must_be_there(self, name: str) -> None:
        error = refusal(body(**{name: ...}))
        assert (error.error_code, error.public_message) == ("missing_field", f"{name}: field required")

    @pytest.mark.parametrize("value", [None, 1, "", [], {}])
    def test_model_must_be_a_name(self, value: object) -> None:
        assert refusal(body(model=value)).public_message.startswith("model:")

    @pytest.mark.parametrize("value", [None, "9", True, False, 1.0, 1e3, [], -1, MAX_OUTPUT_TOKENS + 1, 10**400])
    def test_max_tokens_must_be_a_whole_number_in_reach(self, value: object) -> None:
        assert refusal(body(max_tokens=value)).public_message.startswith("max_tokens:")

    @pytest.mark.parametrize("value", [0, 1, MAX_OUTPUT_TOKENS])
    def test_max_tokens_may_be_nothing_up_to_the_limit(self, value: int) -> None:
        """0 fills the prompt cache without generating anything."""
        assert parsed(max_tokens=value).max_tokens == value

    @pytest.mark.parametrize("value", ["true", 1, 0, [], {}])
    def test_stream_must_be_true_or_false(self, value: object) -> None:
        assert refusal(body(stream=value)).public_message.startswith("stream:")

    @pytest.mark.parametrize(("value", "streamed"), [(True, True), (False, False), (None, False), (..., False)])
    def test_stream_is_off_unless_it_is_on(self, value: object, streamed: bool) -> None:
        assert parsed(stream=value).stream is streamed

    @pytest.mark.parametrize("value", [None, "Hello", {}, 1])
    def test_messages_must_be_a_list(self, value: object) -> None:
        assert refusal(body(messages=value)).public_message.startswith("messages:")

    def test_what_is_unknown_passes(self) -> None:
        """Roles, blocks, fields and their types are upstream's business."""
        request = parsed(
            messages=[{"role": "oracle", "content": [{"type": "smell"}, 7, None]}, "x", 3, {"content": {}}],
            system=[{"type": "text", "text": "s"}, 1],
            tools=[{"name": "t", "defer_loading": True}],
            safeguards={"a": 1},
            output_config={"effort": "low"},
            context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        )
        assert request.unbounded == ()


class TestBound:
    def test_text_counts_a_token_for_every_byte_of_the_body(self) -> None:
        data = body(messages=[{"role": "user", "content": "Grüße"}])
        assert parse_message_request(data).prompt_bound_tokens == BASE_TOKENS + len(data)

    def test_an_image_counts_by_its_own_bound_instead_of_its_bytes(self) -> None:
        small, large = (
            with_blocks({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * size}})
            for size in (40, 40_000)
        )
        assert small.prompt_bound_tokens == large.prompt_bound_tokens
        assert IMAGE_TOKENS < large.prompt_bound_tokens < IMAGE_TOKENS + 400
        assert large.unbounded == ()

    def test_every_reference_to_a_tool_counts_for_its_whole_definition(self) -> None:
        """Deferred tools come before the model where they are referred to, as often as they are."""
        tools = [{"name": "small", "defer_loading": True}, {"name": "large", "description": "a" * 5000}]

        def bound(*names: str) -> int:
            references = [{"type": "tool_reference", "tool_name": name} for name in names]
            data = body(tools=tools, messages=[{"content": [{"type": "tool_result", "content": references}]}])
            return parse_message_request(data).prompt_bound_tokens - len(data)

        alone = bound()
        assert 5000 < bound("large") - alone < 5200
        assert bound("large", "large") - alone == 2 * (bound("large") - alone)
        assert 0 < bound("small") - alone < 100
        assert bound("nobody's") == bound("large")

    @pytest.mark.parametrize(
        "block",
        [
            {
                "type": "tool_search_tool_result",
                "content": {
                    "type": "tool_search_tool_search_result",
                    "tool_references": [{"type": "tool_reference", "tool_name": "t"}],
                },
            },
            {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "t"}},
            {
                "type": "compaction",
                "tool_changes": [{"type": "tool_addition", "tool": {"type": "tool_reference", "name": "t"}}],
            },
        ],
    )
    def test_a_reference_to_a_tool_is_found_wherever_it_may_stand(self, block: dict[str, Any]) -> None:
        tool = {"name": "t", "description": "a" * 5000}
        data = body(tools=[tool], messages=[{"role": "user", "content": [block]}])
        assert parse_message_request(data).prompt_bound_tokens > len(data) + 5000

    def test_a_reference_to_a_tool_of_anthropics_counts_for_what_is_hidden_in_it(self) -> None:
        data = body(
            tools=[{"type": "bash_20250124", "name": "bash"}],
            messages=[{"content": [{"type": "tool_reference", "tool_name": "bash"}]}],
        )
        assert parse_message_request(data).prompt_bound_tokens > len(data) + 2 * ANTHROPIC_TOOL_TOKENS

    @pytest.mark.parametrize("place", ["tool_result", "search_result", "document"])
    def test_an_image_inside_another_block_is_found(self, place: str) -> None:
        image = {"type": "image", "source": {"type": "base64", "data": "A" * 40_000}}
        block: dict[str, Any] = {"type": place, "content": [image]}
        if place == "document":
            block = {"type": "document", "source": {"type": "content", "content": [image]}}
        assert IMAGE_TOKENS < with_blocks(block).prompt_bound_tokens < IMAGE_TOKENS + 400

    def test_what_a_tool_was_called_with_is_text_whatever_it_looks_like(self) -> None:
        """Else a caller could hide text from the bound by calling it an image."""
        image = {"type": "image", "source": {"type": "base64", "data": "A" * 40_000}}
        request = with_blocks({"type": "tool_use", "id": "t", "name": "n", "input": {"content": [image], **image}})
        assert request.prompt_bound_tokens > 40_000

    @pytest.mark.parametrize(
        ("field", "more"),
        [
            ({"tools": [{"name": "mine", "input_schema": {}}]}, TOOL_USE_TOKENS),
            ({"tools": [{"type": "custom", "name": "mine"}]}, TOOL_USE_TOKENS),
            ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, TOOL_USE_TOKENS + ANTHROPIC_TOOL_TOKENS),
            ({"tools": [{"type": "computer_toolset_20260801"}]}, TOOL_USE_TOKENS + TOOLSET_TOKENS),
            ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, OUTPUT_FORMAT_TOKENS),
            ({"tools": []}, 0),
        ],
    )
    def test_hidden_instructions_are_allowed_for(self, field: dict[str, Any], more: int) -> None:
        data = body(**field)
        request = parse_message_request(data)
        assert request.prompt_bound_tokens == BASE_TOKENS + len(data) + more
        assert request.unbounded == ()

    def test_a_cited_document_counts_for_more_than_its_text(self) -> None:
        source = {"type": "text", "media_type": "text/plain", "data": "a. " * 1000}
        plain = with_blocks({"type": "document", "source": source})
        cited = with_blocks({"type": "document", "source": source, "citations": {"enabled": True}})
        assert cited.prompt_bound_tokens - plain.prompt_bound_tokens > CITATION_FACTOR * 3000

    def test_a_cited_text_counts_wherever_in_its_document_it_stands(self) -> None:
        text = {"type": "text", "text": "ä" * 1000}
        for block in (
            {"type": "document", "source": {"type": "content", "content": [text]}},
            {"type": "document", "source": {"type": "content", "content": "ä" * 1000}},
            {"type": "search_result", "source": "s", "title": "t", "content": [text]},
        ):
            plain, cited = with_blocks(block), with_blocks(block | {"citations": {"enabled": True}})
            assert cited.prompt_bound_tokens - plain.prompt_bound_tokens >= CITATION_FACTOR * 2000


PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}


class TestUnboundedShapes:
    @pytest.mark.parametrize(
        ("fields", "name"),
        [
            ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "tool web_search_20260318"),
            ({"tools": [{"type": "web_fetch_20260318"}]}, "tool web_fetch_20260318"),
            ({"tools": [{"type": "code_execution_20260521"}]}, "tool code_execution_20260521"),
            ({"tools": [{"type": "advisor_20260301"}]}, "tool advisor_20260301"),
            ({"tools": [{"type": "tool_search_tool_bm25_20251119"}]}, "tool tool_search_tool_bm25_20251119"),
            ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "m"}]}, "tool mcp_toolset"),
            ({"tools": [{"type": "brand new\n"}]}, "tool brand?new?"),
            ({"mcp_servers": [{"type": "url", "url": "https://x.example"}]}, "mcp_servers"),
            ({"compaction": {"type": "summarize"}}, "compaction"),
            (
                {"context_management": {"edits": [{"type": "compact_20260112"}]}},
                "context_management edit compact_20260112",
            ),
            ({"fallbacks": "default"}, "fallbacks"),
            ({"fallbacks": [{"model": "claude-haiku-4-5"}]}, "fallbacks"),
            ({"container": "container_1"}, "container"),
            ({"container": {"skills": [{"skill_id": "pdf"}]}}, "container"),
            ({"thread": {"type": "continue", "previous_message_id": "msg_1"}}, "thread"),
        ],
    )
    def test_fields_and_tools_without_a_bound_are_named(self, fields: dict[str, Any], name: str) -> None:
        assert parsed(**fields).unbounded == (name,)

    @pytest.mark.parametrize(
        ("block", "name"),
        [
            (PDF, "PDF document"),
            ({"type": "document", "source": {"type": "url", "url": "https://x.example"}}, "document from a url source"),
            ({"type": "document", "source": {"type": "file", "file_id": "f"}}, "document from a file source"),
            ({"type": "document"}, "document from a nameless source"),
            ({"type": "image", "source": {"type": "url", "url": "https://x.example"}}, "image from a url source"),
            ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "image from a file source"),
            ({"type": "container_upload", "file_id": "f"}, "container_upload"),
            ({"type": "tool_result", "content": [PDF]}, "PDF document"),
            (
                {
                    "type": "tool_addition",
                    "tool": {"type": "tool_definition", "definition": {"type": "web_search_20260318"}},
                },
                "tool web_search_20260318",
            ),
            ({"type": "tool_addition", "tool": {"type": "mcp_toolset_reference"}}, "tool mcp_toolset_reference"),
        ],
    )
    def test_blocks_without_a_bound_are_named(self, block: dict[str, Any], name: str) -> None:
        assert with_blocks(block).unbounded == (name,)

    @pytest.mark.parametrize(
        "container",
        [
            lambda block: [block],
            lambda block: block,
            lambda block: [[block]],
            lambda block: [{"type": "tool_result", "tool_use_id": "t", "content": block}],
            lambda block: [{"type": "tool_result", "content": [{"type": "new_container", "parts": [block]}]}],
            lambda block: [
                {"type": "web_fetch_tool_result", "content": {"type": "web_fetch_result", "url": "u", "content": block}}
            ],
            lambda block: [{"type": "document", "source": {"type": "content", "content": block}}],
            lambda block: [{"type": "new", "anything": {"deep": [1, {"down": block}]}}],
            lambda block: [{"type": "mcp_tool_result", "content": [block]}],
        ],
    )
    def test_a_document_is_named_whatever_it_stands_in(self, container: Callable[[Any], Any]) -> None:
        assert parsed(messages=[{"role": "user", "content": container(PDF)}]).unbounded == ("PDF document",)
        assert parsed(system=container(PDF)).unbounded == ("PDF document",)
        assert parsed(tools=[{"name": "t", "new": container(PDF)}]).unbounded == ("PDF document",)
        image = {"type": "image", "source": {"type": "url", "url": "https://x.example"}}
        assert parsed(messages=[{"content": container(image)}]).unbounded == ("image from a url source",)

    def test_a_tool_that_joins_in_a_compaction_is_judged_like_any_other(self) -> None:
        definition = {"type": "tool_definition", "definition": {"type": "web_search_20260318", "name": "web_search"}}
        changes = [{"type": "tool_addition", "tool": definition}]
        block = {"type": "compaction", "content": "s", "tool_changes": changes}
        assert with_blocks(block).unbounded == ("tool web_search_20260318",)

    def test_what_only_bears_the_name_of_a_document_is_text_where_no_block_stands(self) -> None:
        """A tool of the caller's may well have a parameter `type` with the value "document"."""
        call = {"type": "tool_use", "id": "t", "name": "create", "input": {"type": "document", "title": "Plan"}}
        schema = {"type": "object", "properties": {"type": {"const": "image"}, "source": {"type": "string"}}}
        request = parsed(messages=[{"content": [call]}], tools=[{"name": "create", "input_schema": schema}])
        assert request.unbounded == ()

    @pytest.mark.parametrize("nothing", [None, [], {}])
    @pytest.mark.parametrize("name", ["compaction", "container", "fallbacks", "mcp_servers", "thread"])
    def test_an_empty_field_is_no_shape(self, name: str, nothing: object) -> None:
        assert parsed(**{name: nothing}).unbounded == ()


class TestClamping:
    @pytest.mark.parametrize(
        "data",
        [
            b'{"max_tokens":100,"model":"m","messages":[]}',
            b'{"model":"m","messages":[],"max_tokens" : \n 100 }',
            b' {"x":"\\"max_tokens\\":5","messages":[{"max_tokens":7}],"max\\u005Ftokens":100,"model":"m\xc3\xa9"} ',
            '{"messages":[{"content":"é世😀"}],"max_tokens":100,"model":"m"}'.encode(),
        ],
    )
    def test_changes_one_number_and_no_other_byte(self, data: bytes) -> None:
        clamped = parse_message_request(data).with_max_tokens(16)
        at = data.rindex(b"100")
        assert clamped == data[:at] + b"16" + data[at + 3 :]

    @given(
        st.dictionaries(
            st.text(max_size=12).filter(lambda name: name not in ("model", "max_tokens", "messages", "stream")),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=20),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                max_leaves=8,
            ),
            max_size=5,
        ),
        st.integers(0, MAX_OUTPUT_TOKENS),
        st.integers(0, MAX_OUTPUT_TOKENS),
        st.booleans(),
        st.randoms(use_true_random=False),
        st.sampled_from([None, 1, "\t"]),
    )
    def test_the_clamped_body_reads_the_same_but_for_the_number(
        self,
        extra: dict[str, Any],
        asked: int,
        clamped: int,
        ascii_only: bool,
        order: Random,
        indent: int | str | None,
    ) -> None:
        fields = list({**extra, "model": "m", "max_tokens": asked, "messages": HELLO}.items())
        order.shuffle(fields)
        data = json.dumps(dict(fields), ensure_ascii=ascii_only, indent=indent).encode()
        request = parse_message_request(data)
        result = request.with_max_tokens(clamped)
        start, end = request.max_tokens_span
        assert data[start:end] == str(asked).encode()
        assert json.loads(result) == dict(fields) | {"max_tokens": clamped}
        assert len(result) - len(data) == len(str(clamped)) - len(str(asked))

    @pytest.mark.parametrize(("clamped", "fits"), [(1999, False), (2000, False), (2001, True)])
    def test_a_thinking_budget_that_would_not_fit_any_more_is_refused(self, clamped: int, fits: bool) -> None:
        request = parsed(max_tokens=4000, thinking={"type": "enabled", "budget_tokens": 2000})
        if fits:
            assert b"2001" in request.with_max_tokens(clamped)
        else:
            with pytest.raises(InvalidRequestError) as caught:
                request.with_max_tokens(clamped)
            assert caught.value.error_code == "thinking_budget_too_large"
            assert "2000" in caught.value.public_message

    def test_a_budget_that_never_fitted_is_upstreams_business(self) -> None:
        """Interleaved thinking allows a budget above max_tokens."""
        request = parsed(max_tokens=4000, thinking={"type": "enabled", "budget_tokens": 5000})
        assert request.with_max_tokens(3000)

    @pytest.mark.parametrize(
        "thinking", [None, {"type": "adaptive"}, {"budget_tokens": "x"}, {"budget_tokens": True}, 3]
    )
    def test_other_thinking_does_not_stand_in_the_way(self, thinking: object) -> None:
        assert parsed(thinking=thinking).with_max_tokens(1)


def test_a_body_of_a_coding_agent_is_bounded_and_not_refused() -> None:
    """The shape of Claude Code's first request."""
    image = base64.b64encode(b"x" * 3000).decode()
    request = parsed(
        stream=True,
        max_tokens=32_000,
        system=[{"type": "text", "text": "You are …", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "system", "content": "note"},
            {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": image}}]},
        ],
        tools=[{"name": f"tool{number}", "description": "…", "input_schema": {}} for number in range(30)],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        thinking={"type": "adaptive"},
        safeguards=[],
        metadata={"user_id": "u"},
    )
    assert request.unbounded == ()
    assert request.prompt_bound_tokens < 12_000
