"""POST /claude/stream: the simple form for apps, turned into a request Claude understands.

The form is ours, so it is closed: a field that is not in it is a mistake and is named. What it builds goes the same
way as any other message.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any, Final, NoReturn

from tollgate.domain.errors import InvalidRequestError
from tollgate.domain.message_requests import parse_object

API_VERSION: Final = "2023-06-01"
DEFAULT_MAX_TOKENS: Final = 1024
MAX_IMAGE_BYTES: Final = 5 * 1024 * 1024
"""Claude's own limit for one image."""

_FIELDS: Final = frozenset({"messages", "image", "max_tokens", "model", "system"})
_SIGNATURES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def message_body(form: bytes, default_model: Callable[[], str]) -> bytes:
    """A streamed message request from the form; `default_model` is asked when the form names none.

    Raises InvalidRequestError.
    """
    fields = parse_object(form)
    if unknown := sorted(fields.keys() - _FIELDS):
        _refuse(f"{unknown[0][:60]}: no such field; there are {', '.join(sorted(_FIELDS))}")
    messages = _messages(fields.get("messages"))
    if fields.get("image") is not None:
        messages[-1] = _with_image(messages[-1], fields["image"])
    body: dict[str, Any] = {
        "model": default_model() if fields.get("model") is None else _text(fields, "model"),
        "max_tokens": fields.get("max_tokens", DEFAULT_MAX_TOKENS),
        "stream": True,
        "messages": messages,
    }
    if fields.get("system") is not None:
        body["system"] = _text(fields, "system")
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value:
        _refuse(f"{name}: must be a non-empty string")
    return value


def _messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        _refuse("messages: must be a list with at least one message")
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            _refuse(f"messages.{position}: must be an object whose role is user or assistant")
        if not isinstance(message.get("content"), str | list) or not message["content"]:
            _refuse(f"messages.{position}.content: must be a non-empty string or list of content blocks")
    return messages


def _with_image(message: dict[str, Any], image: object) -> dict[str, Any]:
    """The last message with the image before its text, where Claude reads images best."""
    if message["role"] != "user":
        _refuse("image: the last message must be the user's")
    if not isinstance(image, str):
        _refuse("image: must be a base64 string", "invalid_image")
    data = image.partition(";base64,")[2] if image.startswith("data:") else image
    source = {"type": "base64", "media_type": _media_type(data), "data": data}
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return message | {"content": [{"type": "image", "source": source}, *blocks]}


def _media_type(data: str) -> str:
    """By the image's own first bytes; what a caller says about it is not asked."""
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        _refuse("image: is not valid base64", "invalid_image")
    if len(decoded) > MAX_IMAGE_BYTES:
        _refuse(f"image: larger than {MAX_IMAGE_BYTES} bytes", "invalid_image")
    is_webp = decoded.startswith(b"RIFF") and decoded[8:12] == b"WEBP"
    found = [media_type for signature, media_type in _SIGNATURES if decoded.startswith(signature)]
    if not found and not is_webp:
        _refuse("image: must be PNG, JPEG, GIF or WebP", "invalid_image")
    return found[0] if found else "image/webp"


def _refuse(message: str, error_code: str = "invalid_field") -> NoReturn:
    raise InvalidRequestError(message, error_code=error_code)
