"""Compare how usage periods were closed with the meters that were closed. Reads only.

Both are written in one transaction, and a meter that moves later is no longer closed: what differs was changed by
somebody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tollgate.flows.reconcile import TOKEN_KINDS, Difference

if TYPE_CHECKING:
    from tollgate.domain.ledger import Meter
    from tollgate.storage.meters import Meters
    from tollgate.storage.period_summaries import PeriodSummaries, PeriodSummary


def check_summaries(meters: Meters, summaries: PeriodSummaries, tenant_id: str, user_id: str) -> Iterator[Difference]:
    """Of all closed usage periods of a user, what their summaries do not tell right. Raises StoreUnavailableError."""
    for meter in meters.list_of_user(tenant_id, user_id):
        if meter.closed_at is None:
            continue  # it goes on, or is to be closed again with what came late
        summary = summaries.find(tenant_id, user_id, meter.key.period.id)
        if summary is not None and summary.closed_at > meter.closed_at:
            continue  # something came late, and it was closed again since we read it
        expected, found = _figures_of_meter(meter), {} if summary is None else _figures_of(summary)
        for figure, value in expected.items():
            if value != found.get(figure, 0):
                yield Difference(
                    "summary", tenant_id, user_id, meter.key.period.id, figure, value, found.get(figure, 0)
                )


def _figures_of_meter(meter: Meter) -> dict[str, int]:
    return {
        "summaries": 1,
        "charged_tokens": meter.settled_tokens,
        "written_off_tokens": meter.written_off_tokens,
        "requests": meter.settled_requests,
        **{name: getattr(meter.counts, name) for name in TOKEN_KINDS},
        "cost_picousd": meter.cost_picousd,
        "overage_nanousd": meter.overage_nanousd,
    }


def _figures_of(summary: PeriodSummary) -> dict[str, int]:
    return {
        "summaries": 1,
        "charged_tokens": summary.charged_tokens,
        "written_off_tokens": summary.written_off_tokens,
        "requests": summary.settled_requests,
        **{name: getattr(summary.counts, name) for name in TOKEN_KINDS},
        "cost_picousd": summary.cost_picousd,
        "overage_nanousd": summary.overage_nanousd,
    }
