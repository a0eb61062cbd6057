"""Request records: one item for each call that reached upstream, kept 90 days.

The ledger does not depend on them; they are what usage pages, margin reports and the monthly comparison with the
provider's own report are made of. No prompt and no answer is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from tollgate.domain.tokens import TokenCounts
from tollgate.storage.table import Table, attributes, epoch_seconds, plain, store_outages, user_pk

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    nonce: str = ""
    """Of the reservation: with its id it names what the ledger did with it, also after its end."""
    booked: bool = True
    """False: the ledger never answered to the settlement. What it charged stands in the meter or, when the reservation
    was swept instead, in the expired-reservation record; the charge here is what it would have been."""


@dataclass(frozen=True, slots=True)
class RequestPosition:
    """A place in a user's records, which are in the order of their begin."""

    began_at: datetime
    request_id: str = ""
    """Empty: before every record that began at that instant."""


class Requests:
    """Reads and writes request records. Raises StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def put(self, record: RequestRecord) -> None:
        """One unconditional put; the same record twice is the same item."""
        with store_outages():
            self._table.client.put_item(TableName=self._table.name, Item=attributes(**_item(record)))

    def pages(
        self,
        tenant_id: str,
        user_id: str,
        since: RequestPosition,
        before: RequestPosition,
        *,
        newest_first: bool = False,
        page_size: int | None = None,
    ) -> Iterator[tuple[RequestRecord, ...]]:
        """Access pattern: a user's records in [since, before) by their begin, one answer of DynamoDB at a time.

        Lazy and consistent. `page_size`: records in one answer; else as many as fit into a megabyte.
        """
        first, last = _sk(since), _sk(before)
        if first > last:  # DynamoDB refuses a BETWEEN whose ends are the wrong way round
            return
        request: dict[str, Any] = {"Limit": page_size} if page_size else {}
        while True:
            with store_outages():
                answer = self._table.client.query(
                    TableName=self._table.name,
                    KeyConditionExpression="PK = :pk AND SK BETWEEN :since AND :before",
                    ExpressionAttributeValues=attributes(
                        **{":pk": user_pk(tenant_id, user_id), ":since": first, ":before": last}
                    ),
                    ConsistentRead=True,
                    ScanIndexForward=not newest_first,
                    **request,
                )
            items = map(plain, answer["Items"])
            # BETWEEN takes in its upper end.
            yield tuple(_record(tenant_id, user_id, item) for item in items if item["SK"] != last)
            if "LastEvaluatedKey" not in answer:
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


def _sk(position: RequestPosition) -> str:
    return f"REQUEST#{_instant(position.began_at)}#{position.request_id}"


def _instant(instant: datetime) -> str:
    """As text, instants sort as they follow each other: UTC, microseconds."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _item(record: RequestRecord) -> dict[str, str | int | bool | None]:
    counts = record.counts
    return {
        "PK": user_pk(record.tenant_id, record.user_id),
        "SK": _sk(RequestPosition(record.began_at, record.request_id)),
        "Type": "Request",
        "expires_at": epoch_seconds(record.began_at) + RECORD_SECONDS,
        "request_id": record.request_id,
        "reservation_id": record.reservation_id,
        "credential_id": record.credential_id,
        "period_id": record.period_id,
        "plan_id": record.plan_id,
        "began_at": _instant(record.began_at),
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
        "nonce": record.nonce or None,
        "booked": record.booked,
    }


def _record(tenant_id: str, user_id: str, item: Mapping[str, Any]) -> RequestRecord:
    return RequestRecord(
        tenant_id=tenant_id,
        user_id=user_id,
        request_id=item["request_id"],
        reservation_id=item["reservation_id"],
        credential_id=item["credential_id"],
        period_id=item["period_id"],
        plan_id=item["plan_id"],
        began_at=datetime.fromisoformat(item["began_at"]),
        duration_ms=item["duration_ms"],
        first_byte_ms=item.get("first_byte_ms"),
        model=item["model"],
        served_model=item.get("served_model"),
        outcome=RequestOutcome(item["outcome"]),
        estimated=item["estimated"],
        counts=TokenCounts(
            input_tokens=item["input_tokens"],
            output_tokens=item["output_tokens"],
            cache_write_5m_tokens=item["cache_write_5m_tokens"],
            cache_write_1h_tokens=item["cache_write_1h_tokens"],
            cache_read_tokens=item["cache_read_tokens"],
        ),
        prompt_tokens=item["prompt_tokens"],
        price_from=date.fromisoformat(item["price_from"]),
        price_max_prompt_tokens=item.get("price_max_prompt_tokens"),
        charged_tokens=item["charged_tokens"],
        written_off_tokens=item["written_off_tokens"],
        cost_picousd=item["cost_picousd"],
        streamed=item["streamed"],
        speed=item.get("speed"),
        service_tier=item.get("service_tier"),
        inference_geo=item.get("inference_geo"),
        web_searches=item["web_searches"],
        web_fetches=item["web_fetches"],
        upstream_request_id=item.get("upstream_request_id"),
        nonce=item.get("nonce", ""),
        booked=item.get("booked", True),
    )
