"""How Stripe says no."""

from __future__ import annotations

from collections.abc import Mapping

from dev.stripe_double.forms import Json


class StripeRefusal(Exception):  # noqa: N818 - it is an answer, not a failure of the double
    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: str,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        named = {"code": code, "param": param, **more}
        self.error: Json = {"message": message, "type": kind, **{key: value for key, value in named.items() if value}}


def missing(kind: str, identifier: str, param: str) -> StripeRefusal:
    return StripeRefusal(f"No such {kind}: '{identifier}'", status=404, code="resource_missing", param=param)
