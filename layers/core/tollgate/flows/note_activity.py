"""Note that a meter has a call under way: once an hour, while upstream works, so that nobody waits for it.

The note is written after the request has left and before its answer is read: there before anything can crash for long,
and as late as costs no time. What is not noted, because the process died in between or the table did not answer, is
found by the user's next call, or at the latest when the period is closed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tollgate.domain.caches import AgingCache
from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.ledger import MeterKey
from tollgate.domain.sources import Clock, Report

if TYPE_CHECKING:
    from tollgate.storage.activity import Activity

HOUR_SECONDS: Final = 3600
MEMORY_ENTRIES: Final = 4096
SILENCE_SECONDS: Final = 60
"""After a failure nothing is noted for so long: a table that does not answer would hold up every answer."""


class ActivityNotes:
    """One instance a process, which remembers what it has noted."""

    def __init__(self, activity: Activity, clock: Clock, report: Report) -> None:
        self._activity = activity
        self._clock = clock
        self._report = report
        self._noted: AgingCache[tuple[MeterKey, int], bool] = AgingCache(
            max_entries=MEMORY_ENTRIES, max_age_seconds=HOUR_SECONDS
        )
        self._silent_until_seconds = 0.0

    def note(self, key: MeterKey) -> None:
        """Something is reserved on this meter. Raises nothing."""
        now = self._clock.now_seconds()
        hour = int(now) // HOUR_SECONDS
        if self._noted.get((key, hour), now) or now < self._silent_until_seconds:
            return
        try:
            self._activity.note(key, datetime.fromtimestamp(hour * HOUR_SECONDS, UTC))
        except StoreUnavailableError as error:
            self._silent_until_seconds = now + SILENCE_SECONDS
            self._report("activity_not_noted", error)
            return
        self._noted.put((key, hour), True, now)
