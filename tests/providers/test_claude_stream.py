"""The usage reader: whatever the bytes are cut into, it reads the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.recorded_streams import (
    BLOCK,
    OVERLOADED,
    PING,
    STOP,
    STREAMS,
    Recorded,
    ended,
    event,
    started,
    text,
)
from tollgate.domain.tokens import TokenCounts
from tollgate.domain.usage import Usage, UsageEntry
from tollgate.providers.claude_stream import (
    MAX_COUNT,
    MAX_EVENT_BYTES,
    ErrorReported,
    MessageStarted,
    MessageStopped,
    StreamBroken,
    StreamEvent,
    StreamReader,
    UsageReported,
    is_event_stream,
    usage_of_message,
)

LINE_ENDS = {"LF": b"\n", "CRLF": b"\r\n", "CR": b"\r"}


def read(*chunks: bytes) -> tuple[StreamReader, list[StreamEvent]]:
    reader = StreamReader()
    return reader, [found for chunk in chunks for found in reader.feed(chunk)]


def check(recorded: Recorded, reader: StreamReader) -> None:
    assert reader.usage == recorded.usage
    assert reader.usage_is_final is recorded.final
    assert reader.between_events


@pytest.mark.parametrize("recorded", STREAMS.values(), ids=STREAMS)
def test_reads_the_usage_of_each_shape_of_stream(recorded: Recorded) -> None:
    reader, _ = read(recorded.data)
    check(recorded, reader)
    assert reader.delivered_bytes == pytest.approx(recorded.delivered_bytes, abs=2)


@pytest.mark.parametrize("line_end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("recorded", STREAMS.values(), ids=STREAMS)
def test_reads_the_same_when_cut_at_every_byte(recorded: Recorded, line_end: bytes) -> None:
    data = recorded.data.replace(b"\n", line_end)
    whole, found = read(data)
    check(recorded, whole)
    for position in range(len(data) + 1):
        reader, parts = read(data[:position], data[position:])
        check(recorded, reader)
        assert parts == found
        assert reader.delivered_bytes == whole.delivered_bytes


@pytest.mark.parametrize("line_end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("recorded", STREAMS.values(), ids=STREAMS)
def test_reads_the_same_byte_by_byte(recorded: Recorded, line_end: bytes) -> None:
    data = recorded.data.replace(b"\n", line_end)
    reader, _ = read(*(data[at : at + 1] for at in range(len(data))))
    check(recorded, reader)


@given(st.sampled_from(sorted(STREAMS)), st.lists(st.integers(0, 3000)), st.data())
def test_reads_the_same_however_cut_and_whatever_ends_its_lines(
    name: str, cuts: list[int], data: st.DataObject
) -> None:
    recorded = STREAMS[name]
    lines = recorded.data.split(b"\n")
    # Without lone CRs: before an empty line that ends with LF one would read as CRLF, which is another stream.
    ends = data.draw(st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=len(lines), max_size=len(lines)))
    mixed = b"".join(line + end for line, end in zip(lines[:-1], ends, strict=False))
    bounds = [0, *sorted(cut for cut in cuts if cut < len(mixed)), len(mixed)]
    reader, _ = read(*(mixed[start:end] for start, end in pairwise(bounds)))
    check(recorded, reader)


def test_reads_past_a_byte_order_mark() -> None:
    data = b"\xef\xbb\xbf" + STREAMS["text with a ping"].data
    for position in range(6):
        reader, _ = read(data[:position], data[position:])
        check(STREAMS["text with a ping"], reader)


def test_tells_what_happened_in_order() -> None:
    _, found = read(started() + BLOCK + text("x") + ended() + STOP)
    at_start = Usage((UsageEntry(TokenCounts(10, 1)),), "claude-haiku-4-5", service_tier="standard")
    at_end = Usage((UsageEntry(TokenCounts(10, 7)),), "claude-haiku-4-5", service_tier="standard")
    assert found == [MessageStarted(at_start), UsageReported(at_end), MessageStopped()]


def test_reports_the_error_that_upstream_sent() -> None:
    _, found = read(OVERLOADED)
    assert found == [ErrorReported("overloaded_error")]


def test_takes_the_type_for_the_name_when_an_event_has_none() -> None:
    nameless = started().split(b"\n", 1)[1] + ended().split(b"\n", 1)[1] + STOP.split(b"\n", 1)[1]
    reader, _ = read(nameless)
    assert reader.usage_is_final
    assert reader.usage.counts.output_tokens == 7


def test_does_not_take_an_event_for_one_that_the_model_only_writes_about() -> None:
    lie = "\n\nevent: message_delta\ndata: " + json.dumps({"usage": {"output_tokens": 1}}) + "\n\n"
    reader, _ = read(started() + text(lie) + ended(output_tokens=99) + STOP)
    assert reader.usage.counts.output_tokens == 99


def test_the_placeholder_at_the_start_is_never_final() -> None:
    """LiteLLM billed it: https://github.com/BerriAI/litellm/issues/30787"""
    reader, _ = read(started() + text("x" * 400) + STOP)
    assert reader.stopped
    assert not reader.usage_is_final
    assert reader.reported_output_tokens == 0


def test_counts_without_a_reason_to_stop_are_not_final() -> None:
    reader, _ = read(started() + ended(None, output_tokens=5))
    assert reader.reported_output_tokens == 5
    assert not reader.usage_is_final


def test_final_counts_stand_even_when_the_stream_is_cut_before_message_stop() -> None:
    reader, _ = read(started() + ended())
    assert reader.usage_is_final
    assert not reader.stopped


@pytest.mark.parametrize("size", [MAX_EVENT_BYTES - 1, MAX_EVENT_BYTES])
def test_an_event_up_to_the_limit_is_waited_for(size: int) -> None:
    _, found = read(b"data: ".ljust(size, b"x"))
    assert found == []


@pytest.mark.parametrize("chunks", [1, 64])
def test_a_larger_event_is_a_broken_stream(chunks: int) -> None:
    data = b"data: ".ljust(MAX_EVENT_BYTES + 1, b"x")
    step = -(-len(data) // chunks)
    reader, found = read(*(data[at : at + step] for at in range(0, len(data), step)))
    assert [type(each) for each in found] == [StreamBroken]
    assert not reader.between_events
    assert reader.feed(STOP) == []


@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b'{"a":1}{', b"\xff"])
def test_an_event_of_ours_to_read_that_is_not_json_breaks_the_stream(data: bytes) -> None:
    _, found = read(b"event: message_delta\ndata: " + data + b"\n\n")
    assert [type(each) for each in found] == [StreamBroken]


def test_what_follows_a_broken_event_counts_in_no_chunk() -> None:
    """Else the same answer is billed by its counts or by the plan's rule, as the network happens to cut it."""
    broken = started() + b"event: message_delta\ndata: {\n\n"
    whole, found = read(broken + ended() + STOP)
    parts, _ = read(broken, ended() + STOP)
    assert [type(each) for each in found] == [MessageStarted, StreamBroken]
    assert whole.usage == parts.usage
    assert not whole.usage_is_final
    assert not whole.stopped


@pytest.mark.parametrize(
    "usage", [None, [], "x", {"output_tokens": "9"}, {"output_tokens": True}, {"output_tokens": -1}]
)
def test_counts_that_are_none_do_not_become_final(usage: object) -> None:
    reader, _ = read(started() + event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage) + STOP)
    assert not reader.usage_is_final


NO_COUNTS: list[Any] = [None, "10", -1, 10.0, True, [], {}, MAX_COUNT + 1, 10**40]


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
def test_a_prompt_that_is_told_in_no_count_is_not_known_and_never_free(value: object) -> None:
    reader, found = read(started(input_tokens=value) + BLOCK + text("Hello") + ended() + STOP)
    assert found[0] == MessageStarted(None)
    assert not reader.usage_is_final


@pytest.mark.parametrize("value", NO_COUNTS[1:], ids=repr)
@pytest.mark.parametrize(
    "where",
    [
        lambda value: {"cache_read_input_tokens": value},
        lambda value: {"cache_creation_input_tokens": value},
        lambda value: {"cache_creation": {"ephemeral_1h_input_tokens": value}},
        lambda value: {"iterations": [{"type": "compaction", "input_tokens": value, "output_tokens": 1}]},
    ],
)
def test_a_count_that_is_none_makes_the_whole_unknown(where: Callable[[object], dict[str, Any]], value: object) -> None:
    """Else its kind would be billed as 0 tokens, and the record would say that it is complete."""
    for stream in (started(**where(value)) + ended() + STOP, started() + ended(**where(value)) + STOP):
        reader, _ = read(stream)
        assert not reader.usage_is_final
    usage = {"input_tokens": 3, "output_tokens": 4} | where(value)
    assert usage_of_message(json.dumps({"usage": usage}).encode()) is None


@pytest.mark.parametrize(("value", "final"), [(MAX_COUNT - 1, True), (MAX_COUNT, True), (MAX_COUNT + 1, False)])
def test_a_count_beyond_all_reason_is_a_fault_and_not_a_bill(value: int, final: bool) -> None:
    reader, _ = read(started() + ended(output_tokens=value) + STOP)
    assert reader.usage_is_final is final
    assert reader.usage.counts.output_tokens == (value if final else 1)


def test_a_prompt_that_only_the_end_tells_is_known_at_the_end() -> None:
    reader, found = read(started(input_tokens=None) + ended(input_tokens=12) + STOP)
    assert found[0] == MessageStarted(None)
    assert reader.usage_is_final
    assert reader.usage.counts == TokenCounts(12, 7)


def test_an_answer_that_never_started_has_no_final_counts() -> None:
    reader, _ = read(BLOCK + text("Hello") + ended() + STOP)
    assert not reader.usage_is_final


def test_an_answer_that_begins_again_is_counted_twice_and_never_final() -> None:
    """What came before the second beginning was generated as well; replacing it would give it away."""
    reader, found = read(started(input_tokens=30) + text("Hello") + started(input_tokens=5) + ended() + STOP)
    assert [
        event.usage.counts.input_tokens for event in found if isinstance(event, MessageStarted) and event.usage
    ] == [
        30,
        35,
    ]
    assert reader.usage.counts.input_tokens == 35
    assert reader.usage.counts.output_tokens >= 7
    assert not reader.usage_is_final


def test_a_second_beginning_does_not_make_up_for_a_first_that_told_nothing() -> None:
    _, found = read(started(input_tokens="x") + started())
    assert found == [MessageStarted(None), MessageStarted(None)]


WORDS = b"Hello, world } "


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%b"}}',
        b'{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "%b"}}',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%b"}                        }',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%b"}}      ',
        b'{"type":"content_block_delta","delta" :\t{ "type" : "thinking_delta" , "thinking" : "%b" } , "index":0 }',
    ],
)
@pytest.mark.parametrize("name", [b"event: content_block_delta\n", b"event:content_block_delta\n", b""])
def test_the_text_of_a_delta_is_measured_in_any_spacing_and_without_padding(data: bytes, name: bytes) -> None:
    """Claude pads its events, so that their lengths tell nobody what is in them."""
    reader, _ = read(name + b"data: " + data % WORDS + b"\n\n")
    assert len(WORDS) <= reader.delivered_bytes <= len(WORDS) + 20


def test_a_delta_in_a_form_nobody_knows_counts_with_all_its_bytes() -> None:
    data = b'event: content_block_delta\ndata: {"delta":{"text":"%b","type":"text_delta"}}' % (b"x" * 500)
    reader, _ = read(data + b"     \n\n")
    assert 500 <= reader.delivered_bytes <= len(data)


@pytest.mark.parametrize("name", [b"event: heartbeat\n", b"event: message_mood\n", b""])
@pytest.mark.parametrize("data", [b"still alive", b"{", b'"text"', b"[1]", b"[" * 5000])
def test_an_event_that_is_not_ours_to_read_need_not_be_json(name: bytes, data: bytes) -> None:
    reader, found = read(started() + name + b"data: " + data + b"\n\n" + ended() + STOP)
    assert [type(event) for event in found] == [MessageStarted, UsageReported, MessageStopped]
    assert reader.usage_is_final


@pytest.mark.parametrize(
    ("content_type", "streamed"),
    [
        ("text/event-stream", True),
        ("text/event-stream; charset=utf-8", True),
        ("Text/Event-Stream;charset=UTF-8", True),
        (" TEXT/EVENT-STREAM ", True),
        ("application/json", False),
        ("text/event-stream-of-another-kind", False),
        ("", False),
    ],
)
def test_an_event_stream_is_told_by_its_media_type_in_any_case(content_type: str, streamed: bool) -> None:
    assert is_event_stream({"content-type": content_type}) is streamed
    assert not is_event_stream({})


def test_knows_whether_an_event_is_half_way() -> None:
    reader = StreamReader()
    between = []
    for part in (b"", PING[:-2], b"\n", b"\n"):
        reader.feed(part)
        between.append(reader.between_events)
    assert between == [True, False, False, True]


def test_a_list_of_iterations_that_is_behind_the_totals_does_not_lower_them() -> None:
    unfinished = [{"type": "message", "input_tokens": 10, "output_tokens": 2}]
    reader, _ = read(started() + ended(output_tokens=50, iterations=unfinished) + STOP)
    assert reader.usage.counts == TokenCounts(10, 50)


class TestUsageOfMessage:
    def test_reads_an_answer_that_was_not_streamed(self) -> None:
        body = {
            "model": "claude-haiku-4-5",
            "usage": {
                "input_tokens": 3,
                "output_tokens": 4,
                "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 6},
                "cache_read_input_tokens": 7,
                "speed": "fast",
            },
        }
        usage = usage_of_message(json.dumps(body).encode())
        assert usage == Usage((UsageEntry(TokenCounts(3, 4, 5, 6, 7)),), "claude-haiku-4-5", "fast")

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"null", b"{}", b'{"usage":{}}', b'{"usage":[]}', b"[" * 99_999]
    )
    def test_knows_when_it_tells_nothing(self, body: bytes) -> None:
        assert usage_of_message(body) is None

    @pytest.mark.parametrize("name", ["input_tokens", "output_tokens"])
    @pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
    def test_knows_when_one_of_its_counts_is_none(self, name: str, value: object) -> None:
        usage = {"input_tokens": 3, "output_tokens": 4}
        assert usage_of_message(json.dumps({"usage": usage}).encode()) is not None
        assert usage_of_message(json.dumps({"usage": usage | {name: value}}).encode()) is None
