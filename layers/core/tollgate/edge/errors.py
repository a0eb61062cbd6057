"""The one table from refusals to HTTP: status, `error.type`, headers, and Claude's envelope around them.

Clients written for Claude act on these (research of their behaviour: docs/decisions.md, "Answers clients obey"):
- their SDKs sleep as long as `retry-after` says, without a cap, unless `x-should-retry: false` stands beside it;
- they retry 409, 429 and every 5xx by themselves, so each row says whether another try can help;
- only `error.type`, `error.message`, `error.details.error_code` and `request_id` are promised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from math import ceil

from tollgate.domain import errors

OVERLOADED = 529
"""Claude's own status for "try again shortly"; not in the standard library's list."""
BUSY_RETRY_SECONDS = 5
STORE_RETRY_SECONDS = 2
MAX_RATE_RETRY_SECONDS = 60
"""Claude Code gives up by itself above this, and a short window never lasts longer."""


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """How one error class is answered; a class may have several rows, told apart by `details.error_code`."""

    error: type[Exception]
    status: int
    type: str
    codes: tuple[str, ...]
    when: str
    client: str
    """What a client does, or should do, with this answer."""
    should_retry: bool = True
    """False adds `x-should-retry: false`, which stops the SDKs' own retries."""
    retry_after_seconds: int | None = None


ERROR_TABLE: tuple[ErrorRow, ...] = (
    ErrorRow(
        errors.InvalidRequestError,
        HTTPStatus.BAD_REQUEST,
        "invalid_request_error",
        (
            "invalid_request",
            "invalid_json",
            "invalid_field",
            "missing_field",
            "invalid_image",
            "thinking_budget_too_large",
            "unbounded_request",
            "unsupported_encoding",
            "max_tokens_too_large",
            "model_not_in_plan",
            "email_domain_not_accepted",
            "model_not_in_key",
            "invalid_code",
            "second_factor_not_begun",
            "invalid_password",
        ),
        "the body is not strict JSON, a field that is priced or bounded is missing or malformed, the plan does not "
        "include the model, or a hard quota cannot bound what the request would cost",
        "change the request; sending it again cannot help",
        should_retry=False,
    ),
    ErrorRow(
        errors.AuthenticationError,
        HTTPStatus.UNAUTHORIZED,
        "authentication_error",
        ("invalid_credentials", "revoked", "expired", "account_deleted"),
        "no credential, one that nobody holds, one that was revoked or has expired, or an account that was deleted",
        "sign in again or use another key; a request without a new credential gets the same answer",
        should_retry=False,
    ),
    ErrorRow(
        errors.PaymentRequiredError,
        HTTPStatus.PAYMENT_REQUIRED,
        "billing_error",
        ("payment_required",),
        "the subscription is unpaid",
        "pay the open invoice",
        should_retry=False,
    ),
    ErrorRow(
        errors.PaymentFailedError,
        HTTPStatus.PAYMENT_REQUIRED,
        "billing_error",
        ("payment_failed",),
        "the card was declined, or its owner has to confirm the payment",
        "check the payment method in the billing portal, and ask again",
        should_retry=False,
    ),
    ErrorRow(
        errors.PermissionDeniedError,
        HTTPStatus.FORBIDDEN,
        "permission_error",
        (
            "not_allowed",
            "api_keys_not_in_plan",
            "api_key_limit_reached",
            "email_not_verified",
            "password_change_required",
            "wrong_password",
            "overage_not_in_plan",
            "return_url_not_allowed",
        ),
        "the caller is known and may not do this",
        "do what the message says, or ask the operator",
        should_retry=False,
    ),
    ErrorRow(
        errors.NotFoundError,
        HTTPStatus.NOT_FOUND,
        "not_found_error",
        ("not_found", "model_not_found", "plan_not_sold", "promotion_not_found"),
        "no such route or model, or not one of the caller's; no plan of that name or promotion code is for sale",
        "check the name; GET /v1/models lists the models of the plan, GET /billing/plans what is sold",
        should_retry=False,
    ),
    ErrorRow(
        errors.MethodNotAllowedError,
        HTTPStatus.METHOD_NOT_ALLOWED,
        "invalid_request_error",
        ("method_not_allowed",),
        "the route exists and does not take this method",
        "use the method the message names",
        should_retry=False,
    ),
    ErrorRow(
        errors.DuplicateRequestError,
        HTTPStatus.CONFLICT,
        "conflict_error",
        ("duplicate_request",),
        "a request with the same idempotency key was accepted before",
        "wait for the first request; use a new idempotency key for another one",
        should_retry=False,
    ),
    ErrorRow(
        errors.ConflictError,
        HTTPStatus.CONFLICT,
        "conflict_error",
        (
            "conflict",
            "key_not_active",
            "already_subscribed",
            "not_subscribed",
            "subscription_not_active",
            "payment_pending",
            "checkout_in_progress",
            "first_key_not_due",
        ),
        "the thing is there, but not in a state that allows this: an API key that was revoked, has expired or was "
        "replaced; a subscription that exists already, does not exist, or waits for a payment",
        "look at its state; the message says which route helps",
        should_retry=False,
    ),
    ErrorRow(
        errors.RequestTooLargeError,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "request_too_large",
        ("request_too_large",),
        "the body is larger than this deployment takes; the message states the limit",
        "send less: shorter history, smaller images",
        should_retry=False,
    ),
    ErrorRow(
        errors.UnsupportedMediaTypeError,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "invalid_request_error",
        ("unsupported_media_type",),
        "a body was sent as something else than JSON",
        "send it with `content-type: application/json`",
        should_retry=False,
    ),
    ErrorRow(
        errors.IdempotencyMismatchError,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid_request_error",
        ("idempotency_key_reused",),
        "the idempotency key was used before with another body",
        "use a new idempotency key for a new request",
        should_retry=False,
    ),
    ErrorRow(
        errors.RateLimitedError,
        HTTPStatus.TOO_MANY_REQUESTS,
        "rate_limit_error",
        ("rate_limited", "key_rate_limited", "too_many_streams", "contention"),
        "too many requests in a minute, or too many answers streaming at once",
        f"wait `retry-after` seconds (at most {MAX_RATE_RETRY_SECONDS}) and try again; the SDKs do so by themselves",
    ),
    ErrorRow(
        errors.RateLimitedError,
        HTTPStatus.TOO_MANY_REQUESTS,
        "rate_limit_error",
        ("too_many_attempts",),
        "an open route (sign-up, sign-in, codes, reports) was asked too often from one address or for one e-mail",
        "wait `retry-after` seconds, which may be hours, and try again",
        should_retry=False,
    ),
    ErrorRow(
        errors.QuotaExceededError,
        HTTPStatus.TOO_MANY_REQUESTS,
        "billing_error",
        ("quota_exceeded", "overage_cap_reached", "free_pool_exhausted", "key_budget_exceeded"),
        "what is left of the usage period's quota, of the overage cap, of the key's budget, or of the pool that all "
        "users of the plan share, does not fit this request",
        "wait for the reset (`retry-after` seconds), ask for less, or take a larger plan; SDKs do not retry",
        should_retry=False,
    ),
    ErrorRow(
        errors.UpstreamUnavailableError,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "api_error",
        ("upstream_unavailable",),
        "Claude cannot be used for reasons that are the operator's: the key, its spending cap, the configuration",
        "try again later; the operator has been alarmed",
        should_retry=False,
    ),
    ErrorRow(
        errors.UpstreamUnavailableError,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "api_error",
        ("upstream_unreachable", "upstream_error", "secrets_unavailable", "sign_in_unavailable", "no_time_left"),
        "Claude could not be reached or had a fault of its own, the gateway could not read its own secrets or the keys "
        "that tokens are signed with, or it had no time left to ask; nothing was charged",
        "try again after `retry-after` seconds; the SDKs do so by themselves",
        retry_after_seconds=BUSY_RETRY_SECONDS,
    ),
    ErrorRow(
        errors.UpstreamUnavailableError,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "api_error",
        ("upstream_lost",),
        "the connection to Claude broke after the request had been sent: it may have been processed, and is charged as "
        "the plan says for an unknown end",
        "decide whether to ask again; the SDKs are told not to, because each try may be charged",
        should_retry=False,
    ),
    ErrorRow(
        errors.UpstreamUnavailableError,
        HTTPStatus.GATEWAY_TIMEOUT,
        "timeout_error",
        ("deadline_reached",),
        "the answer took longer than the gateway may run; what was generated is charged",
        "ask for less output, or stream",
        should_retry=False,
    ),
    ErrorRow(
        errors.StoreUnavailableError,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "api_error",
        ("store_unavailable",),
        "usage cannot be metered now, so nothing is served",
        "try again after `retry-after` seconds; the SDKs do so by themselves",
        retry_after_seconds=STORE_RETRY_SECONDS,
    ),
    ErrorRow(
        errors.SignInUnavailableError,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "api_error",
        ("sign_in_unavailable",),
        "the user pool did not answer, so nobody can register, sign in or change how they do",
        "try again after `retry-after` seconds; whatever was asked may be asked again",
        retry_after_seconds=BUSY_RETRY_SECONDS,
    ),
    ErrorRow(
        errors.StripeUnavailableError,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "api_error",
        ("stripe_unavailable",),
        "Stripe did not answer in time; what was asked may have been done, and is done only once",
        "ask the same again after `retry-after` seconds",
        retry_after_seconds=BUSY_RETRY_SECONDS,
    ),
    ErrorRow(
        errors.StripeRefusedError,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "api_error",
        ("stripe_refused",),
        "Stripe refused for reasons that are the operator's: plans were not synced, the key is wrong, tax is not set "
        "up",
        "try again later; the operator finds the reason in the log",
        should_retry=False,
    ),
    ErrorRow(
        errors.UpstreamBusyError,
        OVERLOADED,
        "overloaded_error",
        ("upstream_busy",),
        "Claude is overloaded or limits this deployment",
        "try again after `retry-after` seconds; the SDKs do so by themselves",
        retry_after_seconds=BUSY_RETRY_SECONDS,
    ),
    ErrorRow(
        Exception,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "api_error",
        ("internal_error",),
        "a fault of this gateway; nothing about it is told but the request id",
        "try again, and report the request id when it stays",
    ),
)

_ROWS: Mapping[type[Exception], tuple[ErrorRow, ...]] = {
    error: tuple(row for row in ERROR_TABLE if row.error is error) for error in {row.error for row in ERROR_TABLE}
}
_UNEXPECTED_MESSAGE = "Something went wrong in the gateway. The request id helps to find out what."


def row_for(error: Exception) -> ErrorRow:
    """The row that answers `error`: of its class (or the nearest base class) and its code, else the class's first."""
    rows = next(_ROWS[base] for base in type(error).__mro__ if base in _ROWS)
    code = error.error_code if isinstance(error, errors.TollgateError) else ""
    return next((row for row in rows if code in row.codes), rows[0])


def envelope(error: Exception, request_id: str) -> dict[str, object]:
    """Claude's error envelope. Text and data of exceptions that are not ours never enter it."""
    details: dict[str, object] = {"error_code": "internal_error"}
    message = _UNEXPECTED_MESSAGE
    if isinstance(error, errors.TollgateError):
        details["error_code"] = error.error_code
        message = error.public_message
    if isinstance(error, errors.QuotaExceededError):
        details["remaining_tokens"] = error.remaining_tokens
        details["needed_tokens"] = error.needed_tokens
        details["resets_at"] = rfc3339(error.resets_at)
    body = {"type": row_for(error).type, "message": message, "details": details}
    return {"type": "error", "error": body, "request_id": request_id}


def render(error: Exception, request_id: str, *, now: datetime) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) for any exception. `now` turns a reset time into `retry-after` seconds."""
    row = row_for(error)
    headers = {"content-type": "application/json", "cache-control": "no-store", "request-id": request_id}
    retry_after = row.retry_after_seconds
    if isinstance(error, errors.RateLimitedError):
        # Who is told to try again by itself must not be told to sleep for hours.
        longest = MAX_RATE_RETRY_SECONDS if row.should_retry else error.retry_after_seconds
        retry_after = min(error.retry_after_seconds, longest)
    if isinstance(error, errors.QuotaExceededError):
        retry_after = ceil((error.resets_at - now).total_seconds())
        headers |= _quota_notice(error)
    if retry_after is not None:
        headers["retry-after"] = str(max(1, retry_after))
    if not row.should_retry:
        headers["x-should-retry"] = "false"
    return int(row.status), headers, _one_line(envelope(error, request_id))


def error_event(error: Exception, request_id: str) -> bytes:
    """The same refusal as one SSE event, for an answer whose status has already been sent."""
    return b"event: error\ndata: " + _one_line(envelope(error, request_id)) + b"\n\n"


def rfc3339(instant: datetime) -> str:
    """`2026-11-15T10:30:00Z`, whole seconds, as Claude's own headers write it."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _quota_notice(error: errors.QuotaExceededError) -> dict[str, str]:
    """What Claude Code reads beside a refusal.

    `representative-claim` and `overage-status` stay away: with them it would write its own sentence in place of ours.
    """
    prefix = "anthropic-ratelimit-unified-"
    reset = str(int(error.resets_at.timestamp()))
    return {
        f"{prefix}status": "rejected",
        f"{prefix}reset": reset,
        f"{prefix}overage-reset": reset,
        f"{prefix}overage-utilization": "1.00",
        f"{prefix}overage-surpassed-threshold": "1",
        f"{prefix}overage-period": "monthly",
        f"{prefix}overage-disabled-reason": "org_spend_cap_reached",
    }


def _one_line(document: Mapping[str, object]) -> bytes:
    """ASCII JSON without a line break in it, so no text can end an event early."""
    return json.dumps(document, separators=(",", ":")).encode("ascii")
