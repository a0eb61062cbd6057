"""What the gateway tells users about themselves, as JSON documents. Quotas that do not exist are null."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollgate.domain.ledger import Meter
from tollgate.domain.notices import used_percent
from tollgate.domain.plans import UNLIMITED, Plan
from tollgate.domain.principals import Account
from tollgate.domain.tokens import TokenCounts
from tollgate.edge.errors import rfc3339

if TYPE_CHECKING:
    from tollgate.flows.current_usage import CurrentUsage


def user_view(account: Account) -> dict[str, object]:
    """Who the caller is."""
    return {"id": account.user_id, "tenant_id": account.tenant_id, "email": account.profile.email}


def plan_view(plan: Plan) -> dict[str, object]:
    """What the caller's plan includes."""
    return {
        "id": plan.id,
        "name": plan.name,
        "quota_kind": plan.quota_kind.value,
        "quota_tokens": plan.quota_tokens,
        "quota_requests": plan.quota_requests,
        "overage_cap_tokens": plan.overage_cap_tokens,
        "models": sorted(plan.models) or None,
        "requests_per_minute": plan.requests_per_minute,
        "max_output_tokens": plan.max_output_tokens,
    }


def usage_view(usage: CurrentUsage) -> dict[str, object]:
    """The running period: what is used, reserved and left, and what it cost upstream.

    `tokens` are billable (weighted) tokens, the metered unit; `by_kind` are the provider's own counts.
    """
    meter, plan = usage.meter, usage.account.plan
    return {
        "user": user_view(usage.account),
        "plan": plan_view(plan),
        "period": {
            "id": usage.period.id,
            "start_at": rfc3339(usage.period.start_at),
            "end_at": rfc3339(usage.period.end_at),
        },
        "resets_at": rfc3339(usage.period.end_at),
        "tokens": _unused_tokens(plan) if meter is None else _tokens(meter),
        "requests": _unused_requests(plan) if meter is None else _requests(meter),
        "used_percent": _unused_percent(plan) if meter is None else used_percent(meter),
        "by_kind": _by_kind(TokenCounts() if meter is None else meter.counts),
        "cost_picousd": 0 if meter is None else meter.cost_picousd,
    }


def _tokens(meter: Meter) -> dict[str, object]:
    limited = meter.quota_tokens < UNLIMITED
    return {
        "quota": meter.plan_quota_tokens if limited else None,
        "used": meter.settled_tokens,
        "reserved": meter.reserved_tokens,
        # Overage is shown beside it; less than nothing is not left.
        "remaining": max(0, meter.remaining_tokens) if limited else None,
        "overage": meter.overage_tokens,
        "written_off": meter.written_off_tokens,
    }


def _unused_tokens(plan: Plan) -> dict[str, object]:
    quota = plan.quota_tokens
    return {"quota": quota, "used": 0, "reserved": 0, "remaining": quota, "overage": 0, "written_off": 0}


def _unused_percent(plan: Plan) -> int | None:
    return None if plan.quota_tokens is plan.quota_requests is None else 0


def _requests(meter: Meter) -> dict[str, object]:
    limited = meter.quota_requests < UNLIMITED
    return {
        "quota": meter.quota_requests if limited else None,
        "used": meter.settled_requests,
        "reserved": meter.open_count,
        # Less than nothing after a change to a plan with fewer calls than were made.
        "remaining": max(0, meter.remaining_requests) if limited else None,
    }


def _unused_requests(plan: Plan) -> dict[str, object]:
    return {"quota": plan.quota_requests, "used": 0, "reserved": 0, "remaining": plan.quota_requests}


def _by_kind(counts: TokenCounts) -> dict[str, int]:
    return {
        "input_tokens": counts.input_tokens,
        "output_tokens": counts.output_tokens,
        "cache_write_tokens": counts.cache_write_5m_tokens + counts.cache_write_1h_tokens,
        "cache_read_tokens": counts.cache_read_tokens,
    }
