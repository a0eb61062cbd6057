"""Request records: one item for each call that reached upstream, kept 90 days.

The ledger does not depend on them; they are what usage pages, margin reports and the monthly comparison with the
provider's own report are made of. No prompt and no answer is ever stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Final

from tollgate.domain.tokens import TokenCounts
from tollgate.storage.table import Table, attributes, epoch_seconds, store_outages, user_pk

RECORD_SECONDS: Final = 90 * 24 * 3600
UPSTREAM: Final = "anthropic"


class RequestOutcome(StrEnum):
    """How a call that reached upstream ended."""

    COMPLETE = "complete"
    """The provider reported final usage."""
    TRUNCATED = "truncated"
    """The answer broke off upstream, or told no final counts; usage is estimated by the plan's rule."""
    UPSTREAM_ERROR = "upstream_error"
    """Upstream sent an error into the running answer."""
    DEADLINE = "deadline"
    """Stopped by us shortly before the function's own end."""
    OVER_QUOTA = "over_quota"
    """Stopped by us: the true prompt, or the growing answer, did not fit what was left."""
    REFUSED = "refused"
    """Upstream refused the request before generating anything: not charged, not counted, no record kept."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One relayed request: who, what was served, the provider's counts, what it cost and what was charged."""

    tenant_id: str
    user_id: str
    request_id: str
    reservation_id: str
    credential_id: str
    period_id: str
    plan_id: str
    began_at: datetime
    """Aware; decides which price was in force."""
    duration_ms: int
    first_byte_ms: int | None
    """From the begin of the request to the first byte of the answer; None when none came."""
    model: str
    """The model id asked for, as in the catalog."""
    served_model: str | None
    """The model upstream says it used."""
    outcome: RequestOutcome
    estimated: bool
    """True: the charge is not from the provider's final counts."""
    counts: TokenCounts
    prompt_tokens: int
    """Input, cache reads and cache writes together: decides the price row."""
    price_from: date
    """Effective date of the price row, and below the largest prompt it prices (None: any)."""
    price_max_prompt_tokens: int | None
    charged_tokens: int
    """Billable tokens."""
    written_off_tokens: int
    cost_picousd: int
    streamed: bool
    speed: str | None
    service_tier: str | None
    inference_geo: str | None
    web_searches: int
    web_fetches: int
    upstream_request_id: str | None


class Requests:
    """Writes request records. Raises StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def put(self, record: RequestRecord) -> None:
        """One unconditional put; the same record twice is the same item."""
        with store_outages():
            self._table.client.put_item(TableName=self._table.name, Item=attributes(**_item(record)))


def _item(record: RequestRecord) -> dict[str, str | int | bool | None]:
    began = record.began_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    counts = record.counts
    return {
        "PK": user_pk(record.tenant_id, record.user_id),
        "SK": f"REQUEST#{began}#{record.request_id}",
        "Type": "Request",
        "expires_at": epoch_seconds(record.began_at) + RECORD_SECONDS,
        "request_id": record.request_id,
        "reservation_id": record.reservation_id,
        "credential_id": record.credential_id,
        "period_id": record.period_id,
        "plan_id": record.plan_id,
        "began_at": began,
        "duration_ms": record.duration_ms,
        "first_byte_ms": record.first_byte_ms,
        "model": record.model,
        "served_model": record.served_model,
        "outcome": record.outcome.value,
        "estimated": record.estimated,
        "input_tokens": counts.input_tokens,
        "output_tokens": counts.output_tokens,
        "cache_write_5m_tokens": counts.cache_write_5m_tokens,
        "cache_write_1h_tokens": counts.cache_write_1h_tokens,
        "cache_read_tokens": counts.cache_read_tokens,
        "prompt_tokens": record.prompt_tokens,
        "price_from": record.price_from.isoformat(),
        "price_max_prompt_tokens": record.price_max_prompt_tokens,
        "charged_tokens": record.charged_tokens,
        "written_off_tokens": record.written_off_tokens,
        "cost_picousd": record.cost_picousd,
        "streamed": record.streamed,
        "speed": record.speed,
        "service_tier": record.service_tier,
        "inference_geo": record.inference_geo,
        "web_searches": record.web_searches,
        "web_fetches": record.web_fetches,
        "upstream": UPSTREAM,
        "upstream_request_id": record.upstream_request_id,
    }
