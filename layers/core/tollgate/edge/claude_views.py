"""What the claude function tells besides Claude's own bytes: models, the calling key, and the usage event."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Final

from tollgate.domain.api_keys import ApiKey
from tollgate.domain.errors import InvalidRequestError
from tollgate.domain.ledger import Meter
from tollgate.domain.plans import UNLIMITED, Plan
from tollgate.domain.pricing import Model
from tollgate.domain.principals import KeyLimits, Principal
from tollgate.edge.errors import rfc3339
from tollgate.edge.views import usage_view
from tollgate.flows.message_calls import Relayed

if TYPE_CHECKING:
    from tollgate.flows.current_usage import CurrentUsage

DEFAULT_PAGE: Final = 20
LARGEST_PAGE: Final = 1000


def served_models(models: Iterable[Model], plan: Plan, principal: Principal, now: datetime) -> list[Model]:
    """The models that plan and key allow and that are not retired, in the order given."""
    return [
        model
        for model in models
        if plan.allows_model(model.id)
        and principal.allows_model(model.id)
        and (model.retires_at is None or now < model.retires_at)
    ]


def newest_first(models: Iterable[Model]) -> list[Model]:
    """As Anthropic lists them."""
    return sorted(models, key=lambda model: (model.created_at, model.id), reverse=True)


def model_view(model: Model) -> dict[str, object]:
    """One model in Anthropic's shape."""
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.display_name,
        "created_at": rfc3339(model.created_at),
        # Announced retirement is what makes a model deprecated; when it was announced, no catalog needs to know.
        "lifecycle": "active" if model.retires_at is None else "deprecated",
        "deprecated_at": None,
        "retires_at": None if model.retires_at is None else rfc3339(model.retires_at),
        "max_input_tokens": model.context_tokens,
        "max_tokens": model.max_output_tokens,
    }


def model_page(models: list[Model], query: Mapping[str, str]) -> dict[str, object]:
    """One page of Anthropic's list shape. Raises InvalidRequestError for a limit or cursor it cannot follow."""
    limit = query.get("limit", str(DEFAULT_PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= len(str(LARGEST_PAGE))) or not (
        1 <= int(limit) <= LARGEST_PAGE
    ):
        raise InvalidRequestError(f"limit: must be a whole number from 1 to {LARGEST_PAGE}", error_code="invalid_field")
    ids = [model.id for model in models]
    after, before = _cursor(ids, query, "after_id"), _cursor(ids, query, "before_id")
    if after is not None and before is not None:
        raise InvalidRequestError("Use after_id or before_id, not both.", error_code="invalid_field")
    if before is not None:
        start = max(0, before - int(limit))
        page, has_more = models[start:before], start > 0
    else:
        start = 0 if after is None else after + 1
        page, has_more = models[start : start + int(limit)], start + int(limit) < len(models)
    return {
        "data": [model_view(model) for model in page],
        "has_more": has_more,
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
    }


def _cursor(ids: list[str], query: Mapping[str, str], name: str) -> int | None:
    cursor = query.get(name)
    if cursor is None:
        return None
    if cursor not in ids:
        raise InvalidRequestError(f"{name}: no such model in this list", error_code="invalid_field")
    return ids.index(cursor)


def key_view(principal: Principal, api_key: ApiKey | None, usage: CurrentUsage) -> dict[str, object]:
    """What a credential may know about itself, in the manner of OpenRouter's GET /api/v1/key."""
    plan = usage.account.plan
    document = usage_view(usage)
    tokens = document["tokens"]
    assert isinstance(tokens, dict)
    label = f"{principal.credential.value} {principal.credential_id}"
    if api_key is not None:
        label = api_key.name or f"{api_key.mode.value}…{api_key.last_four}"
    return {
        "data": {
            "label": label,
            "id": principal.credential_id,
            "kind": principal.credential.value,
            "expires_at": None if api_key is None or api_key.expires_at is None else rfc3339(api_key.expires_at),
            "plan": {"id": plan.id, "name": plan.name},
            "is_free_tier": plan.price_cents == 0,
            "limit": tokens["quota"],
            "limit_remaining": tokens["remaining"],
            "limit_reset": document["resets_at"],
            "usage": tokens["used"],
            "reserved": tokens["reserved"],
            "overage": tokens["overage"],
            "requests": document["requests"],
            "resets_at": document["resets_at"],
            "rate_limit": {"requests_per_minute": plan.requests_per_minute, "burst": plan.burst_requests},
            "max_output_tokens": plan.max_output_tokens,
            "allowed_models": sorted(principal.allowed_models) or None,
            "key_limits": None if principal.limits is None else _key_limits(principal.limits, usage.meter),
        }
    }


def _key_limits(limits: KeyLimits, meter: Meter | None) -> dict[str, object]:
    """The key's own limits, beside those of the user; `used` includes what its running calls hold."""
    used = 0 if meter is None else meter.key_tokens.get(limits.id, 0)
    budget, rate = limits.budget_tokens, limits.requests_per_minute
    return {
        "budget": None if budget is None else {"limit": budget, "used": used, "remaining": max(0, budget - used)},
        "rate_limit": None if rate is None else {"requests_per_minute": rate, "burst": limits.burst_requests},
    }


def usage_event(relayed: Relayed) -> bytes:
    """The last event of the simple form: final counts, what was charged, and where the period stands."""
    counts, meter = relayed.usage.counts, relayed.standing.meter
    document = {
        "type": "usage",
        "model": relayed.usage.model,
        "outcome": relayed.outcome.value,
        "estimated": relayed.estimated,
        "usage": {
            "input_tokens": counts.input_tokens,
            "output_tokens": counts.output_tokens,
            "cache_creation_input_tokens": counts.cache_write_5m_tokens + counts.cache_write_1h_tokens,
            "cache_read_input_tokens": counts.cache_read_tokens,
        },
        "charged_tokens": relayed.charged_tokens,
        "cost_picousd": relayed.cost_picousd,
        "period": _period(meter),
        "resets_at": rfc3339(meter.key.period.end_at),
    }
    return b"event: usage\ndata: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def _period(meter: Meter) -> dict[str, object]:
    limited = meter.quota_tokens < UNLIMITED
    limited_requests = meter.quota_requests < UNLIMITED
    return {
        "id": meter.key.period.id,
        "quota": meter.plan_quota_tokens if limited else None,
        "used": meter.settled_tokens,
        "reserved": meter.reserved_tokens,
        "remaining": max(0, meter.remaining_tokens) if limited else None,
        "overage": meter.overage_tokens,
        "requests_used": meter.settled_requests,
        "requests_remaining": max(0, meter.remaining_requests) if limited_requests else None,
    }
