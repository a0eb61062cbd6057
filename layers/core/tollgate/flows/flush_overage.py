"""Tell Stripe of the overage so far before something makes it bill at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollgate.domain.errors import (
    ConflictError,
    StoreUnavailableError,
    StripeRefusedError,
    StripeUnavailableError,
    UpstreamUnavailableError,
)

if TYPE_CHECKING:
    from tollgate.domain.sources import Report
    from tollgate.flows.report_overage import OverageReporter


def flush_overage(tenant_id: str, user_id: str, reporter: OverageReporter, report: Report) -> None:
    """One look at the user. Raises nothing: what Stripe was not told stays owed, and the next invoice bills it.

    It ends with the first question that Stripe does not answer, so it delays what comes after it by one at most.
    """
    try:
        reporter.report(tenant_id, user_id)
    except (
        ConflictError,  # another process is at it
        StripeUnavailableError,
        StripeRefusedError,
        StoreUnavailableError,
        UpstreamUnavailableError,
    ) as error:
        report("overage_not_flushed", error)
