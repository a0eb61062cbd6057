"""Remember when an API key was last used: once an hour, after the call, and never in its way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from tollgate.domain.caches import AgingCache
from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.principals import CredentialKind, Principal
from tollgate.domain.sources import Clock, Report

if TYPE_CHECKING:
    from tollgate.storage.api_keys import ApiKeys

EVERY_SECONDS: Final = 3600
MEMORY_ENTRIES: Final = 4096


class KeyUses:
    """One instance a process, which remembers what it has noted: a busy key costs it one write an hour at most."""

    def __init__(self, api_keys: ApiKeys, clock: Clock, report: Report) -> None:
        self._api_keys = api_keys
        self._clock = clock
        self._report = report
        self._noted: AgingCache[tuple[str, str, str], bool] = AgingCache(
            max_entries=MEMORY_ENTRIES, max_age_seconds=EVERY_SECONDS
        )

    def note(self, principal: Principal) -> None:
        """A call of this caller was served. Raises nothing: what is not noted now is noted at the next call."""
        if principal.credential is not CredentialKind.API_KEY:
            return
        name, now = (principal.tenant_id, principal.user_id, principal.credential_id), self._clock.now_seconds()
        if self._noted.get(name, now):
            return
        at = datetime.fromtimestamp(now, UTC)
        try:
            self._api_keys.note_use(*name, at, older_than=at - timedelta(seconds=EVERY_SECONDS))
        except StoreUnavailableError as error:
            self._report("key_use_not_noted", error)
            return
        self._noted.put(name, True, now)
