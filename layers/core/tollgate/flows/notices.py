"""Notice that a user has passed a usage threshold: after the answer, once, and never in anybody's way.

The claude function only writes that down; `tollgate.flows.deliver_notices` tells people. What is not written, because
the process died after the settlement or the table did not answer, is found at the user's next call: the meter still
says it, whether that call is settled or a quota refuses it. So is what no call of the user's has passed: a sweep that
charged crashed calls, a change to a smaller plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tollgate.domain.caches import AgingCache
from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.notices import QuotaShare, QuotaUnit, UsageNotice, passed_thresholds, quota_shares
from tollgate.domain.sources import Clock, Report
from tollgate.flows.message_calls import Standing

if TYPE_CHECKING:
    from tollgate.storage.notices import Notices

MEMORY_ENTRIES: Final = 4096
MEMORY_SECONDS: Final = 24 * 3600


class UsageThresholds:
    """One instance a process. It remembers what is noted, so a user far beyond a quota costs no further write."""

    def __init__(self, notices: Notices, thresholds_percent: Sequence[int], clock: Clock, report: Report) -> None:
        self._notices = notices
        self._thresholds_percent = tuple(sorted(thresholds_percent))
        self._clock = clock
        self._report = report
        self._noted: AgingCache[tuple[str, str, str, QuotaUnit], int] = AgingCache(
            max_entries=MEMORY_ENTRIES, max_age_seconds=MEMORY_SECONDS
        )
        """The highest threshold that is noted, with all below it."""

    def note(self, standing: Standing) -> None:
        """A call has ended, or a quota has refused it, and its user stands like this. Raises nothing."""
        for share in quota_shares(standing.meter):
            passed = passed_thresholds(share, self._thresholds_percent)
            if passed:
                self._note(standing, share, passed)

    def _note(self, standing: Standing, share: QuotaShare, passed: tuple[int, ...]) -> None:
        key, now = standing.meter.key, self._clock.now_seconds()
        name = (key.tenant_id, key.user_id, key.period.id, share.unit)
        noted_percent = self._noted.get(name, now) or 0
        at = datetime.fromtimestamp(int(now), UTC)
        try:
            for percent in passed:
                if percent > noted_percent:
                    highest = percent == passed[-1]
                    notice = UsageNotice(
                        key.tenant_id, key.user_id, key.period, standing.meter.plan_id, percent, share, at, highest
                    )
                    self._notices.put(notice)
                    self._noted.put(name, percent, now)
        except StoreUnavailableError as error:
            self._report("usage_threshold_not_noted", error)
