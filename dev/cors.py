"""Cross-origin answers as a function URL or an HTTP API gives them from its own configuration."""

from __future__ import annotations

from dev.events import Request
from dev.template import Cors

Headers = list[tuple[str, str]]


def is_preflight(request: Request) -> bool:
    """Whether a browser asks for permission; such a request never reaches a function."""
    asks = request.header("origin") and request.header("access-control-request-method")
    return request.method == "OPTIONS" and bool(asks)


def preflight_headers(cors: Cors, request: Request) -> Headers:
    """What is allowed to this origin; nothing at all when it, the method or a header is not on the lists."""
    origin = _allowed_origin(cors, request.header("origin"))
    method = request.header("access-control-request-method") or ""
    asked = (request.header("access-control-request-headers") or "").lower().split(",")
    wanted = [name.strip() for name in asked if name.strip()]
    if origin is None or not _covers(cors.allow_methods, method):
        return []
    # `*` never stands for Authorization: the Fetch standard wants it named.
    if any(
        name not in cors.allow_headers and ("*" not in cors.allow_headers or name == "authorization") for name in wanted
    ):
        return []
    headers = [
        ("access-control-allow-origin", origin),
        ("access-control-allow-methods", ",".join(cors.allow_methods)),
        ("access-control-allow-headers", ",".join(cors.allow_headers)),
    ]
    if cors.max_age_seconds is not None:
        headers.append(("access-control-max-age", str(cors.max_age_seconds)))
    return headers + _credentials(cors)


def response_headers(cors: Cors, request: Request) -> Headers:
    """What is added to the answer of a cross-origin request."""
    origin = _allowed_origin(cors, request.header("origin"))
    if origin is None:
        return []
    headers = [("access-control-allow-origin", origin)]
    if cors.expose_headers:
        headers.append(("access-control-expose-headers", ",".join(cors.expose_headers)))
    if origin != "*":
        headers.append(("vary", "Origin"))
    return headers + _credentials(cors)


def _credentials(cors: Cors) -> Headers:
    return [("access-control-allow-credentials", "true")] if cors.allow_credentials else []


def _covers(allowed: tuple[str, ...], method: str) -> bool:
    return "*" in allowed or method in allowed


def _allowed_origin(cors: Cors, origin: str | None) -> str | None:
    if origin is None:
        return None
    if "*" in cors.allow_origins:
        return "*"
    return origin if origin in cors.allow_origins else None
