"""The body of a request as it was sent, from an event of a function URL or an HTTP API (payload format 2.0)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from tollgate.domain.errors import InvalidRequestError, RequestTooLargeError


def body_of(event: Mapping[str, Any], most_bytes: int) -> bytes:
    """The bytes as they were sent; their number is judged before they are decoded.

    Raises RequestTooLargeError, and InvalidRequestError for what is no text and no base64 either.
    """
    text = event.get("body") or ""
    encoded = bool(event.get("isBase64Encoded"))
    if len(text) > (-(-most_bytes // 3) * 4 if encoded else most_bytes):
        _refuse_size(most_bytes)
    try:
        body = base64.b64decode(text, validate=True) if encoded else text.encode()
    except ValueError as error:  # of base64 and of UTF-8, and what b64decode says of text that is not ASCII
        raise InvalidRequestError("The body could not be decoded.") from error
    if len(body) > most_bytes:
        _refuse_size(most_bytes)
    return body


def _refuse_size(most_bytes: int) -> None:
    raise RequestTooLargeError(f"The request body is larger than {most_bytes} bytes, the limit of this gateway.")
