"""Deliver the notices that wait: to the operator's address, and by mail to the user.

At least once: an attempt that dies after it was heard is made again, with the same id. Each of the two is told apart,
so a mail that went out does not go out again because the operator's server is down. After the last attempt a notice is
dead: it stays, an alarm rings, and `tollgate notices replay` makes it wait again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Final, Protocol

from tollgate.domain.errors import UpstreamUnavailableError
from tollgate.domain.notices import NotDeliveredError, UsageNotice
from tollgate.domain.sources import Clock
from tollgate.flows.message_calls import Journal
from tollgate.storage.notices import SHARDS, DueNotice, Notices, StoredNotice

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog
    from tollgate.storage.preferences import Preferences
    from tollgate.storage.users import Users

LEASE: Final = timedelta(seconds=120)
"""Longer than the function may run: who has taken a notice is dead before somebody else may."""
MAX_ATTEMPTS: Final = 12
FIRST_WAIT: Final = timedelta(minutes=1)
LONGEST_WAIT: Final = timedelta(hours=12)
DOWN_AFTER: Final = 3
"""Failures in a row after which nobody is tried there again in the same run: each may take seconds."""
OUTDATED_AFTER: Final = timedelta(days=7)
"""What nobody tried to deliver for so long is no news any more: there was nobody to be told when it happened."""


class Webhook(Protocol):
    """The operator's address: `tollgate.providers.operator_webhook`."""

    def send(self, notice: UsageNotice, at: datetime) -> None:
        """Raises NotDeliveredError."""


class Mailer(Protocol):
    """Mail to users: `tollgate.providers.mail`."""

    def send(self, notice: UsageNotice, plan_name: str, advice: str, address: str) -> None:
        """Raises NotDeliveredError."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one run did."""

    delivered: int = 0
    put_off: int = 0
    dead: int = 0
    complete: bool = True
    """False: the time was over before everything that is due was tried."""


class NoticeDelivery:
    """One instance a process."""

    def __init__(
        self,
        notices: Notices,
        users: Users,
        preferences: Preferences,
        catalog: Catalog,
        clock: Clock,
        journal: Journal,
        *,
        webhook: Webhook | None,
        mailer: Mailer | None,
    ) -> None:
        """`webhook`, `mailer`: None where the deployment has none."""
        self._notices = notices
        self._users = users
        self._preferences = preferences
        self._catalog = catalog
        self._clock = clock
        self._journal = journal
        self._webhook = webhook
        self._mailer = mailer
        self._failures = {"webhook": 0, "mail": 0}

    def run(self, deadline_at_seconds: float) -> Delivered:
        """Try everything that is due. Safe to run twice at once. Raises StoreUnavailableError: the next run resumes."""
        self._failures = dict.fromkeys(self._failures, 0)
        done = Delivered()
        for entry in self._due():
            if self._clock.now_seconds() >= deadline_at_seconds:
                return replace(done, complete=False)
            taken = self._notices.take(entry, self._now() + LEASE)
            if taken is not None:
                done = self._deliver(taken, done)
        return done

    def _due(self) -> Iterator[DueNotice]:
        now = self._now()
        return chain.from_iterable(self._notices.list_due(shard, now) for shard in range(SHARDS))

    def _deliver(self, taken: StoredNotice, done: Delivered) -> Delivered:
        taken = replace(
            taken,
            webhook_sent=taken.webhook_sent or self._tell_operator(taken),
            mail_sent=taken.mail_sent or self._tell_user(taken),
        )
        if taken.webhook_sent and taken.mail_sent:
            self._notices.finish(taken)
            return replace(done, delivered=done.delivered + 1)
        if taken.attempts >= MAX_ATTEMPTS:
            self._notices.bury(taken)
            self._journal.event("notice_given_up", **_names(taken))
            self._journal.measure({"NoticesGivenUp": 1})
            return replace(done, dead=done.dead + 1)
        self._notices.put_off(taken, self._now() + _wait(taken.attempts))
        return replace(done, put_off=done.put_off + 1)

    # ---- whom; each answers whether there is nobody left to tell there

    def _tell_operator(self, taken: StoredNotice) -> bool:
        if self._webhook is None or self._outdated(taken):
            return True
        webhook, at = self._webhook, self._now()
        return self._try("webhook", taken, lambda: webhook.send(taken.notice, at))

    def _tell_user(self, taken: StoredNotice) -> bool:
        notice = taken.notice
        # After the period's end it would be read as a warning about the next one.
        late = self._now() >= notice.period.end_at or self._outdated(taken)
        if self._mailer is None or late or not notice.highest:
            return True
        address = self._address(notice)
        if address is None:
            return True
        plan = self._catalog.plans.get(notice.plan_id)
        name, advice = (notice.plan_id, "") if plan is None else (plan.name, plan.upgrade_message)
        mailer = self._mailer
        return self._try("mail", taken, lambda: mailer.send(notice, name, advice, address))

    def _try(self, channel: str, taken: StoredNotice, send: Callable[[], None]) -> bool:
        if self._failures[channel] >= DOWN_AFTER:
            return False
        try:
            send()
        except (NotDeliveredError, UpstreamUnavailableError) as error:  # the second: a secret of ours cannot be read
            self._failures[channel] += 1
            self._journal.failure(f"notice_{channel}_failed", error, **_names(taken))
            self._journal.measure({"NoticeFailures": 1})
            return False
        self._failures[channel] = 0
        return True

    def _address(self, notice: UsageNotice) -> str | None:
        """Where the user reads mail; None: nowhere that is confirmed, or they want none."""
        profile = self._users.find_profile(notice.tenant_id, notice.user_id)
        if profile is None or profile.deleted_at is not None or not profile.email_verified:
            return None
        text = self._preferences.find_preferences(notice.tenant_id, notice.user_id)
        wanted = text is None or json.loads(text).get("usage_emails", True)
        return profile.email if wanted else None

    def _outdated(self, taken: StoredNotice) -> bool:
        return taken.attempts <= 1 and self._now() - taken.notice.noticed_at > OUTDATED_AFTER

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now_seconds()), UTC)


def _wait(attempts: int) -> timedelta:
    doubled: int = 2 ** max(0, attempts - 1)
    return min(FIRST_WAIT * doubled, LONGEST_WAIT)


def _names(taken: StoredNotice) -> dict[str, str]:
    notice = taken.notice
    return {
        "event_id": notice.id,
        "tenant_id": notice.tenant_id,
        "user_id": notice.user_id,
        "period_id": notice.period.id,
    }
