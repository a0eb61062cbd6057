"""Deliver the notices that wait: to the operator's address, and by mail to the user.

At least once: an attempt that dies after it was heard is made again, with the same id. Each of the two is told apart,
so a mail that went out does not go out again because the operator's server is down. After the last attempt a notice is
dead: it stays, an alarm rings, and `tollgate notices replay` makes it wait again.

Nobody's notice is lost by others. One that is refused says nothing about the next. Where all fails, a run stops trying
after a few; what it did not try keeps its place and its attempts, while each that failed goes to the end, so the next
run begins with those that were not tried yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, Protocol

from tollgate.domain.errors import StoreUnavailableError, UpstreamUnavailableError
from tollgate.domain.notices import NotDeliveredError, NoticeRefusedError, UsageNotice
from tollgate.domain.sources import Clock
from tollgate.flows.message_calls import Journal
from tollgate.storage.notices import SHARDS, Channel, DueNotice, Notices, StoredNotice, due_at

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog
    from tollgate.storage.preferences import Preferences
    from tollgate.storage.users import Users

MAX_ATTEMPTS: Final = 12
GIVEN_UP_AFTER: Final = timedelta(hours=30)
"""From the first attempt: a little more than twelve take. Where so many fail that each is tried only now and then, a
notice has fewer, and the alarm rings no later."""
FIRST_WAIT: Final = timedelta(minutes=1)
LONGEST_WAIT: Final = timedelta(hours=12)
DOWN_AFTER: Final = 3
"""Failures in a row, of the channel and not of a single notice, after which a run tries it no more: each may take
seconds."""
OUTDATED_AFTER: Final = timedelta(days=7)
"""What nobody tried to deliver for so long is no news any more: there was nobody to be told when it happened."""


class Webhook(Protocol):
    """The operator's address: `tollgate.providers.operator_webhook`."""

    def send(self, notice: UsageNotice, at: datetime) -> None:
        """Raises NotDeliveredError; NoticeRefusedError: this notice alone. UpstreamUnavailableError: no secret."""


class Mailer(Protocol):
    """Mail to users: `tollgate.providers.mail`."""

    def send(self, notice: UsageNotice, plan_name: str, advice: str, address: str) -> None:
        """Raises NotDeliveredError; NoticeRefusedError: this mail alone."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one run did."""

    delivered: int = 0
    put_off: int = 0
    dead: int = 0
    untried: int = 0
    """Left as they were, because where they have still to go is down."""
    complete: bool = True
    """False: the time was over before everything that is due was tried."""


class _Outcome(Enum):
    """Of one notice on one channel."""

    TOLD = auto()
    """Or nobody is to be told there."""
    FAILED = auto()
    UNTRIED = auto()
    """The channel is down."""


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
        self._sending = {Channel.WEBHOOK: self._to_operator, Channel.MAIL: self._to_user}
        self._failures = dict.fromkeys(Channel, 0)
        """In a row, in this run."""

    def run(self, deadline_at_seconds: float) -> Delivered:
        """Try everything that is due. Safe to run twice at once. Raises StoreUnavailableError: the next run resumes."""
        self._failures = dict.fromkeys(Channel, 0)
        done = Delivered()
        for entry in self._due():
            if self._clock.now_seconds() >= deadline_at_seconds:
                return replace(done, complete=False)
            if all(self._is_down(channel) for channel in entry.left):
                done = replace(done, untried=done.untried + 1)
                continue
            taken = self._notices.take(entry, self._now())
            if taken is not None:
                done = self._deliver(taken, entry, done)
        return done

    def _due(self) -> Iterator[DueNotice]:
        """Longest due first, of each shard in turn, and beginning with another one each minute."""
        now = self._now()
        first = int(now.timestamp()) // 60
        shards = [self._notices.list_due((first + number) % SHARDS, now) for number in range(SHARDS)]
        return (entry for entries in zip_longest(*shards) for entry in entries if entry is not None)

    def _deliver(self, taken: StoredNotice, entry: DueNotice, done: Delivered) -> Delivered:
        outcomes = {channel: self._reach(channel, taken) for channel in Channel if channel in taken.left}
        left = frozenset(channel for channel, outcome in outcomes.items() if outcome is not _Outcome.TOLD)
        taken = replace(taken, left=left)
        if not left:
            self._notices.finish(taken)
            return replace(done, delivered=done.delivered + 1)
        if _Outcome.FAILED not in outcomes.values():
            self._notices.put_off(replace(taken, attempts=taken.attempts - 1), due_at(entry))
            return replace(done, untried=done.untried + 1)
        if taken.attempts >= MAX_ATTEMPTS or self._now() - _begun_at(taken) >= GIVEN_UP_AFTER:
            self._notices.bury(taken)
            self._journal.event("notice_given_up", **_names(taken))
            self._journal.measure({"NoticesGivenUp": 1})
            return replace(done, dead=done.dead + 1)
        self._notices.put_off(taken, self._now() + _wait(taken.attempts))
        return replace(done, put_off=done.put_off + 1)

    def _is_down(self, channel: Channel) -> bool:
        return self._failures[channel] >= DOWN_AFTER

    def _reach(self, channel: Channel, taken: StoredNotice) -> _Outcome:
        try:
            send = self._sending[channel](taken)
            if send is None:
                return _Outcome.TOLD
            if self._is_down(channel):
                return _Outcome.UNTRIED
            send()
        except StoreUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001  one user's broken data must not keep all the others
            if isinstance(error, NoticeRefusedError):
                self._failures[channel] = 0
            elif isinstance(error, (NotDeliveredError, UpstreamUnavailableError)):
                self._failures[channel] += 1
            self._journal.failure(f"notice_{channel}_failed", error, **_names(taken))
            self._journal.measure({"NoticeFailures": 1})
            return _Outcome.FAILED
        self._failures[channel] = 0
        return _Outcome.TOLD

    # ---- how to tell somebody; None: there is nobody to be told

    def _to_operator(self, taken: StoredNotice) -> Callable[[], None] | None:
        if self._webhook is None or _outdated(taken):
            return None
        return partial(self._webhook.send, taken.notice, self._now())

    def _to_user(self, taken: StoredNotice) -> Callable[[], None] | None:
        notice = taken.notice
        # After the period's end it would be read as a warning about the next one.
        late = self._now() >= notice.period.end_at or _outdated(taken)
        if self._mailer is None or late or not notice.highest:
            return None
        address = self._address(notice)
        if address is None:
            return None
        plan = self._catalog.plans.get(notice.plan_id)
        name, advice = (notice.plan_id, "") if plan is None else (plan.name, plan.upgrade_message)
        return partial(self._mailer.send, notice, name, advice, address)

    def _address(self, notice: UsageNotice) -> str | None:
        """Where the user reads mail; None: nowhere that is confirmed, or they want none."""
        profile = self._users.find_profile(notice.tenant_id, notice.user_id)
        if profile is None or profile.deleted_at is not None or not profile.email_verified:
            return None
        text = self._preferences.find_preferences(notice.tenant_id, notice.user_id)
        wanted = text is None or json.loads(text).get("usage_emails", True)
        return profile.email if wanted else None

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now_seconds()), UTC)


def _begun_at(taken: StoredNotice) -> datetime:
    return taken.begun_at or taken.notice.noticed_at


def _outdated(taken: StoredNotice) -> bool:
    return _begun_at(taken) - (taken.waits_since or taken.notice.noticed_at) > OUTDATED_AFTER


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
