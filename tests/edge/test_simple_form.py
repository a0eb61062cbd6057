"""The simple form: what becomes of it, and what is refused in it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tollgate.domain.errors import InvalidRequestError
from tollgate.edge.simple_form import DEFAULT_MAX_TOKENS, MAX_IMAGE_BYTES, message_body

HELLO = [{"role": "user", "content": "Hello"}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\nrest").decode()


def built(**fields: Any) -> dict[str, Any]:  # noqa: ANN401  any JSON
    document: dict[str, Any] = json.loads(message_body(json.dumps(fields).encode(), lambda: "claude-default"))
    return document


def refused(**fields: Any) -> InvalidRequestError:  # noqa: ANN401
    with pytest.raises(InvalidRequestError) as caught:
        built(**fields)
    return caught.value


def test_messages_alone_are_enough() -> None:
    assert built(messages=HELLO) == {
        "model": "claude-default",
        "max_tokens": DEFAULT_MAX_TOKENS,
        "stream": True,
        "messages": HELLO,
    }


def test_the_other_fields_are_taken_over() -> None:
    body = built(messages=HELLO, model="claude-x", max_tokens=7, system="Be brief.", image=None)
    assert (body["model"], body["max_tokens"], body["system"]) == ("claude-x", 7, "Be brief.")


def test_the_default_model_is_not_asked_for_when_one_is_named() -> None:
    def no_default() -> str:
        raise AssertionError

    message_body(json.dumps({"messages": HELLO, "model": "m"}).encode(), no_default)


@pytest.mark.parametrize(
    ("first_bytes", "media_type"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "image/webp"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_an_image_is_known_by_its_own_bytes_and_stands_before_the_text(
    first_bytes: bytes, media_type: str, prefix: str
) -> None:
    data = base64.b64encode(first_bytes).decode()
    content = built(messages=HELLO, image=prefix + data)["messages"][0]["content"]
    assert content == [
        {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}},
        {"type": "text", "text": "Hello"},
    ]


def test_an_image_joins_the_blocks_of_the_last_message() -> None:
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [*HELLO, {"role": "assistant", "content": "x"}, {"role": "user", "content": blocks}]
    body = built(messages=messages, image=PNG)
    assert body["messages"][:2] == messages[:2]
    assert body["messages"][2]["content"][1:] == blocks


@pytest.mark.parametrize(
    "image", ["not base64!", "====", "QUJD", "A", "", 7, ["x"], {"data": PNG}, "data:image/png;base64,%%%", "é"]
)
def test_an_image_that_is_none_is_refused(image: object) -> None:
    assert refused(messages=HELLO, image=image).error_code == "invalid_image"


@pytest.mark.parametrize(("size", "fits"), [(MAX_IMAGE_BYTES, True), (MAX_IMAGE_BYTES + 1, False)])
def test_an_image_has_a_largest_size(size: int, fits: bool) -> None:
    image = base64.b64encode(b"\xff\xd8\xff".ljust(size, b"x")).decode()
    if fits:
        assert built(messages=HELLO, image=image)
    else:
        assert refused(messages=HELLO, image=image).error_code == "invalid_image"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages.0"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0"),
        ({"messages": [*HELLO, {"role": "user"}]}, "messages.1.content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": HELLO, "model": 5}, "model"),
        ({"messages": HELLO, "model": ""}, "model"),
        ({"messages": HELLO, "system": []}, "system"),
        ({"messages": HELLO, "stream": False}, "stream"),
        ({"messages": HELLO, "userId": "u2"}, "userId"),
        ({"messages": [{"role": "assistant", "content": "x"}], "image": PNG}, "image"),
    ],
)
def test_what_does_not_fit_the_form_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    assert refused(**fields).public_message.startswith(f"{named}:")


@pytest.mark.parametrize("data", [b"", b"[]", b'{"messages":', b'{"messages":[],"messages":[]}', b'{"max_tokens":NaN}'])
def test_what_is_no_form_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        message_body(data, str)
