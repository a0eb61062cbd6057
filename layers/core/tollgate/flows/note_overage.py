"""Note that a user is in overage: after the answer, and never in anybody's way.

Only a mark for `tollgate.flows.report_overage`, which reads the meter itself. A mark that is not written is made up for
by the next call, and by the look that every account gets around the end of its period.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tollgate.domain.caches import AgingCache
from tollgate.domain.errors import StoreUnavailableError

if TYPE_CHECKING:
    from tollgate.domain.sources import Clock, Report
    from tollgate.flows.message_calls import Standing
    from tollgate.storage.overage import OverageMarks

MEMORY_ENTRIES: Final = 4096
MEMORY_SECONDS: Final = 15 * 60


class OverageNotes:
    """One instance a process. A user without overage costs nothing, one in overage a write in 15 minutes."""

    def __init__(self, marks: OverageMarks, clock: Clock, report: Report) -> None:
        self._marks = marks
        self._clock = clock
        self._report = report
        self._noted: AgingCache[tuple[str, str, str], bool] = AgingCache(
            max_entries=MEMORY_ENTRIES, max_age_seconds=MEMORY_SECONDS
        )

    def note(self, standing: Standing) -> None:
        """A call has ended and its user stands like this. Raises nothing."""
        if standing.meter.overage_nanousd <= 0:
            return
        key, now = standing.meter.key, self._clock.now_seconds()
        name = (key.tenant_id, key.user_id, key.period.id)
        if self._noted.get(name, now):
            return
        try:
            self._marks.put(*name, datetime.fromtimestamp(now, UTC))
        except StoreUnavailableError as error:
            self._report("overage_not_noted", error)
            return
        self._noted.put(name, True, now)
