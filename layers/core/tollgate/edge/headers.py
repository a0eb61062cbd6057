"""Which headers cross the gateway, and the ones that tell a caller about rate and quota.

Both directions pass an open list of Claude's own headers, so a new beta needs no release of ours, and nothing that
says who is behind the gateway: no credential, cookie, address, or account id of either side.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Final

from tollgate.domain.errors import InvalidRequestError
from tollgate.domain.ledger import Meter
from tollgate.domain.notices import used_percent
from tollgate.domain.plans import UNLIMITED, Plan
from tollgate.edge.errors import rfc3339
from tollgate.flows.message_calls import Standing

_REQUEST_PREFIXES: Final = ("anthropic-", "x-stainless-", "x-claude-code-")
_REQUEST_NAMES: Final = frozenset({"accept", "user-agent", "x-app"})
# These choose the account of ours that is billed, or speak in the name of one.
_OUR_ACCOUNT: Final = frozenset({"anthropic-organization-id", "anthropic-workspace-id", "anthropic-user-profile-id"})

_RESPONSE_NAMES: Final = frozenset(
    {"cache-control", "content-encoding", "content-language", "content-type", "x-should-retry"}
)
# Upstream's limits are shared by all callers of this deployment.
_SHARED_LIMITS: Final = ("anthropic-ratelimit-", "anthropic-priority-", "anthropic-fast-")

MAX_PASSED_DOWN_BYTES: Final = 8 * 1024
"""Of upstream's headers. Status and headers must fit into 16 KB of JSON together, and ours are some 2 KB."""

_FIELD_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_QUERY: Final = re.compile(r"[!-~]*")
IDEMPOTENCY_KEY_PATTERN: Final = r"^[!-~]{1,128}$"
_IDEMPOTENCY_KEY: Final = re.compile(IDEMPOTENCY_KEY_PATTERN)
_UNIFIED: Final = "anthropic-ratelimit-unified-"
WARNING_PERCENTS: Final = (95, 75)
USED_PERCENT: Final = "tollgate-quota-used-percent"


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """The caller's headers that upstream may see; names in lower case.

    The body was read as JSON in UTF-8, so that is what upstream is told, whatever the caller wrote. Raises
    InvalidRequestError for a value that HTTP cannot carry.
    """
    passed = {
        name: value
        for name, value in headers.items()
        if (name in _REQUEST_NAMES or name.startswith(_REQUEST_PREFIXES)) and name not in _OUR_ACCOUNT
    }
    for name, value in passed.items():
        if not _FIELD_VALUE.fullmatch(value):
            raise InvalidRequestError(f"The header {name} holds characters that HTTP does not allow.")
    return passed | {"content-type": "application/json"}


def target_of(path: str, raw_query: str) -> str:
    """Path and query for upstream, as they came. Raises InvalidRequestError."""
    if not _QUERY.fullmatch(raw_query):
        raise InvalidRequestError("The query string holds characters that HTTP does not allow.")
    return f"{path}?{raw_query}" if raw_query else path


def idempotency_key_of(headers: Mapping[str, str]) -> str | None:
    """The caller's own id for this request, if there is one. Raises InvalidRequestError."""
    key = headers.get("idempotency-key", "").strip()
    if key and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequestError(
            "idempotency-key: must be 1 to 128 visible ASCII characters", error_code="invalid_field"
        )
    return key or None


def passed_down(upstream: Mapping[str, str], request_id: str) -> dict[str, str]:
    """Upstream's headers that the caller may see, with our request id in place of upstream's.

    One that HTTP or Lambda could not carry on stays here: the answer is paid for and must not fail for a header.
    """
    wanted = [name for name in upstream if name in _RESPONSE_NAMES]
    wanted += [
        name
        for name in upstream
        if name.startswith("anthropic-") and not name.startswith(_SHARED_LIMITS) and name not in _OUR_ACCOUNT
    ]
    offered = [("x-upstream-request-id", upstream.get("request-id", "")), *((name, upstream[name]) for name in wanted)]
    passed, room_bytes = {"request-id": request_id}, MAX_PASSED_DOWN_BYTES
    for name, value in offered:
        size_bytes = len(json.dumps([name, value]))
        if value and size_bytes <= room_bytes and _FIELD_NAME.fullmatch(name) and _FIELD_VALUE.fullmatch(value):
            passed[name] = value
            room_bytes -= size_bytes
    return passed


def standing_headers(standing: Standing, now_seconds: float) -> dict[str, str]:
    """Rate and quota of the caller: Anthropic's names, the IETF draft's, and the notices that Claude Code reads."""
    plan, meter = standing.account.plan, standing.meter
    allowances = [each for each in (_rate(plan, meter, now_seconds), *_quotas(meter, now_seconds)) if each is not None]
    headers: dict[str, str] = {}
    for allowance in allowances:
        # A window comes before the period's quota of the same kind: it is the one that refuses first.
        prefix = f"anthropic-ratelimit-{allowance.kind}-"
        if f"{prefix}limit" not in headers:
            headers[f"{prefix}limit"] = str(allowance.quota)
            headers[f"{prefix}remaining"] = str(allowance.remaining)
            headers[f"{prefix}reset"] = rfc3339(allowance.resets_at(now_seconds))
    if allowances:
        headers["ratelimit-policy"] = ", ".join(each.policy for each in allowances)
        headers["ratelimit"] = ", ".join(f'"{each.name}";r={each.remaining};t={each.seconds}' for each in allowances)
    used = used_percent(meter)
    if used is not None:
        headers[USED_PERCENT] = str(used)
    return headers | _notice(meter)


@dataclass(frozen=True, slots=True)
class _Allowance:
    """One rate limit or quota as it stands."""

    name: str
    kind: str
    """`requests` or `tokens`."""
    quota: int
    remaining: int
    seconds: int
    """Until it is whole again."""
    window_seconds: int

    @property
    def policy(self) -> str:
        unit = ';qu="tokens"' if self.kind == "tokens" else ""
        return f'"{self.name}";q={self.quota}{unit};w={self.window_seconds}'

    def resets_at(self, now_seconds: float) -> datetime:
        return datetime.fromtimestamp(now_seconds + self.seconds, UTC)


def _rate(plan: Plan, meter: Meter, now_seconds: float) -> _Allowance | None:
    """The short window, read off the GCRA state: how many requests would pass at this instant."""
    if plan.requests_per_minute is None:
        return None
    interval_ms = -(-60_000 // plan.requests_per_minute)
    ahead_ms = max(0, meter.rate_tat_ms - int(now_seconds * 1000))
    tolerance_ms = (plan.burst_requests - 1) * interval_ms
    remaining = 0 if ahead_ms > tolerance_ms else (tolerance_ms - ahead_ms) // interval_ms + 1
    return _Allowance("rpm", "requests", plan.requests_per_minute, remaining, ceil(ahead_ms / 1000), 60)


def _quotas(meter: Meter, now_seconds: float) -> list[_Allowance]:
    period = meter.key.period
    seconds = max(0, ceil(period.end_at.timestamp() - now_seconds))
    window_seconds = int((period.end_at - period.start_at).total_seconds())
    figures = (
        ("plan", "tokens", meter.plan_quota_tokens, meter.remaining_tokens),
        ("plan-requests", "requests", meter.quota_requests, meter.remaining_requests),
    )
    return [
        _Allowance(name, kind, quota, max(0, remaining), seconds, window_seconds)
        for name, kind, quota, remaining in figures
        if quota < UNLIMITED
    ]


def _notice(meter: Meter) -> dict[str, str]:
    """Claude Code warns its user from these (clients since 2.1.225). Nothing for a user without a cap.

    Settled use counts, not reservations: a large one that is about to return must not look like a warning.
    """
    shares = []
    if meter.quota_tokens < UNLIMITED:
        used_tokens = max(0, meter.settled_tokens - meter.banked_tokens)
        shares.append(used_tokens * 100 // max(1, meter.plan_quota_tokens + meter.overage_cap_tokens))
    if meter.quota_requests < UNLIMITED:
        shares.append(meter.settled_requests * 100 // max(1, meter.quota_requests))
    if not shares:
        return {}
    percent = min(max(shares), 99)
    passed = next((threshold for threshold in WARNING_PERCENTS if percent >= threshold), None)
    status = "allowed" if passed is None else "allowed_warning"
    reset = str(int(meter.key.period.end_at.timestamp()))
    notice = {
        f"{_UNIFIED}status": status,
        f"{_UNIFIED}representative-claim": "overage",
        f"{_UNIFIED}overage-status": status,
        f"{_UNIFIED}overage-utilization": f"0.{percent:02d}",
        f"{_UNIFIED}reset": reset,
        f"{_UNIFIED}overage-reset": reset,
    }
    if passed is not None:
        notice[f"{_UNIFIED}overage-surpassed-threshold"] = f"0.{passed}"
    return notice
