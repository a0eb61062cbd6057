"""Report overage to Stripe so that its invoices bill what the ledger says: once, also when everything goes wrong.

One look at one user is: take the account's lease, read the subscription, the meters and (once a window has ended) the
invoices, and make each open window's value at Stripe what it should be. The value, its attempt and its stamp are stored
before they are sent; what was sent and not seen to arrive is sent again as it was. Before an invoice becomes final,
Stripe's own summary is compared, because a request that was held up may have landed after a newer one. What is found
wrong after that is in the next invoice, since the account goes by what invoices billed and not by what was sent.

A look may be killed anywhere, run twice at once, come days late, or be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

from tollgate.domain.errors import (
    ConflictError,
    StoreUnavailableError,
    StripeUnavailableError,
    UpstreamUnavailableError,
)
from tollgate.domain.overage import (
    UNIT_NANOUSD,
    Booked,
    MeteredItem,
    OverageAccount,
    Window,
    book,
    count_old,
    follow,
    is_due_for_comparison,
    is_running,
    is_too_old,
    next_check_at,
    put_aside,
    running_item,
    targets,
    uncounted,
    write_off_late,
)
from tollgate.domain.plans import LateUsage
from tollgate.domain.shards import rotated
from tollgate.storage.overage import SHARDS, DueOverage, OverageAccounts, OverageMarks

if TYPE_CHECKING:
    from tollgate.domain.ledger import Meter
    from tollgate.domain.overage import BilledLine
    from tollgate.domain.sources import Clock, IdSource, UserReport
    from tollgate.domain.stripe_events import StripeEvent
    from tollgate.providers.stripe_meter import StripeMeter
    from tollgate.storage.meters import Meters
    from tollgate.storage.subscriptions import Subscriptions

_OWNER_LENGTH: Final = 16
LAST_LOOK: Final = timedelta(minutes=8)
"""The last look at a draft is so long before it is made final."""
LONGEST_DELAY_SECONDS: Final = 900
"""The longest that a message can wait in SQS."""
SHORTEST_DELAY_SECONDS: Final = 60

SendLater = Callable[[str, int], None]
"""Puts a text into the queue of Stripe's events, to arrive after so many seconds."""


class Journal(Protocol):
    """Where outcomes are told: `tollgate.telemetry.Telemetry`."""

    def event(self, name: str, **fields: str | int | bool | None) -> None: ...

    def measure(self, values: Mapping[str, int], *, plan_id: str | None = None, model: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Reported:
    """How a user stands after a look."""

    account: OverageAccount
    open_nanousd: int
    """Owed, and not on a finalized invoice yet."""
    drafts_final_at: datetime | None
    """When the first draft that bills overage is made final; None: there is none that is by itself."""


class OverageReporter:
    """The only one that tells Stripe's meter anything."""

    def __init__(
        self,
        accounts: OverageAccounts,
        meters: Meters,
        subscriptions: Subscriptions,
        stripe: StripeMeter,
        clock: Clock,
        ids: IdSource,
        journal: Journal,
        *,
        stack: str,
        late_usage: LateUsage = LateUsage.CARRY,
    ) -> None:
        """`stack` tells two deployments apart that share a Stripe account."""
        self.accounts = accounts
        self.meters = meters
        self.subscriptions = subscriptions
        self.stripe = stripe
        self.clock = clock
        self.ids = ids
        self.journal = journal
        self.stack = stack
        self.late_usage = late_usage

    def report(self, tenant_id: str, user_id: str) -> Reported | None:
        """Bring Stripe to what the ledger says; None: the user never had overage. Safe to repeat at any time.

        Raises ConflictError while another one is at it, StripeUnavailableError, StripeRefusedError,
        StoreUnavailableError: then some of it may be done, and the next look does the rest.
        """
        known = self.accounts.find(tenant_id, user_id)
        if known is None and not any(meter.overage_nanousd for meter in self.meters.list_of_user(tenant_id, user_id)):
            return None
        taken = self.accounts.take(tenant_id, user_id, self.ids.new_id(_OWNER_LENGTH), self.now())
        if taken is None:
            raise ConflictError("The overage of this user is being reported just now. Try again.")
        return _Look(self, taken).run()

    def now(self) -> datetime:
        return datetime.fromtimestamp(int(self.clock.now_seconds()), UTC)


class _Look:
    """One look at one user, under the account's lease."""

    def __init__(self, tools: OverageReporter, account: OverageAccount) -> None:
        self._tools = tools
        self._account = account
        self._drafts: frozenset[datetime] = frozenset()
        self._final_at: datetime | None = None

    def run(self) -> Reported:
        tools, account = self._tools, self._account
        subscriber = tools.subscriptions.find(account.tenant_id, account.user_id)
        # Fetched and not taken from our own record: a message for a window that is over would count in the next one.
        items = () if subscriber.customer_id is None else tools.stripe.list_items(subscriber.customer_id)
        item = running_item(items)
        meters = tuple(tools.meters.list_of_user(account.tenant_id, account.user_id, after=account.counted_through))
        now = tools.now()
        self._account = put_aside(follow(account, items, now), meters)
        self._tell_unbillable(account.all_unbillable_nanousd)
        self._read_invoices(account.windows, item, now)
        if tools.late_usage is LateUsage.WRITE_OFF:
            self._account = write_off_late(self._account, meters)
        self._account = count_old(self._account, meters, now)
        meters = uncounted(self._account, meters)
        for number, value in enumerate(targets(self._account, meters)):
            self._bring(number, value, item)
        return self._give_back(meters)

    # ---- what Stripe says

    def _read_invoices(self, known: tuple[Window, ...], item: MeteredItem | None, now: datetime) -> None:
        """When a window is over, or begins. What was billed is stored before anything is sent that counts on it."""
        account = self._account
        since_at: dict[str, datetime] = {}
        for window in account.windows:
            # Of a window that is new to us, too: the one before it may be a draft still.
            if window not in known or not is_running(account, window, item, now):
                since_at.setdefault(window.subscription_id, window.start_at)
        if not since_at:
            return
        lines = [line for one, since in since_at.items() for line in self._tools.stripe.list_lines(one, since)]
        booked = book(account, lines, now)
        self._drafts = booked.drafts
        self._final_at = min((line.finalizes_at for line in lines if line.finalizes_at is not None), default=None)
        self._account = booked.account
        if booked.new_lines:
            self._put(booked.new_lines)
        self._tell_booked(account, booked)

    def _tell_booked(self, before: OverageAccount, booked: Booked) -> None:
        journal = self._tools.journal
        for line in booked.new_lines:
            told = next((one.value for one in before.windows if one.start_at == line.start_at), None)
            journal.event(
                "overage_billed",
                user_id=before.user_id,
                invoice_id=line.invoice_id,
                units=line.quantity,
                told_units=told,
            )
            if told is not None and told != line.quantity:
                # Not lost: it is part of the next invoice. Often, it would mean that the last look comes too late.
                journal.measure({"OverageBilledOtherwise": 1})
        for window in booked.unbilled:
            journal.event("overage_window_unbilled", user_id=before.user_id, window_id=window.id, units=window.value)
            if window.value:
                journal.measure({"OverageWindowsUnbilled": 1, "StripeAlarms": 1})

    def _tell_unbillable(self, before_nanousd: int) -> None:
        account = self._account
        more = account.all_unbillable_nanousd - before_nanousd
        if more > 0:
            self._tools.journal.event("overage_unbillable", user_id=account.user_id, overage_nanousd=more)
            self._tools.journal.measure({"OverageUnbillable": 1, "StripeAlarms": 1})

    # ---- what Stripe is told

    def _bring(self, number: int, value: int, item: MeteredItem | None) -> None:
        """Make a window say `value`, as far as Stripe still listens for it."""
        window, now = self._account.windows[number], self._tools.now()
        drafted = window.start_at in self._drafts
        if not drafted and not is_running(self._account, window, item, now):
            return
        if window.pending and window.value == value and not _stamped_too_early(window, now):
            self._put()
            self._send(number)
        elif window.value != value:
            self._tell(number, value)
        elif is_due_for_comparison(window, now, drafted=drafted):
            self._compare(number, value)

    def _tell(self, number: int, value: int) -> None:
        window = self._account.windows[number]
        stamp = window.next_stamp(self._tools.now())
        if stamp is None:
            # The window has only begun, or is over for too long: what it should say is in a later one.
            self._tools.journal.event("overage_not_told", user_id=self._account.user_id, window_id=window.id)
            return
        self._change(number, window.told(value, stamp))
        self._put()
        self._send(number)

    def _send(self, number: int) -> None:
        tools, window = self._tools, self._account.windows[number]
        assert window.stamped_at is not None
        tools.stripe.send(window.customer_id, window.value, window.identifier(tools.stack), window.stamped_at)
        self._change(number, replace(window, delivered=True, sent_at=tools.now(), compared_at=None))
        self._put()
        tools.journal.event(
            "overage_reported",
            user_id=self._account.user_id,
            window_id=window.id,
            units=window.value,
            attempt=window.attempt,
        )

    def _compare(self, number: int, value: int) -> None:
        """What Stripe has counted must be what it was told last. Told again, if not."""
        tools, window, now = self._tools, self._account.windows[number], self._tools.now()
        end_at = min(window.end_at, now + timedelta(minutes=1))
        if end_at - window.start_at < timedelta(minutes=3):
            return  # no whole minute in which anything could be stamped
        counted = tools.stripe.find_total(window.customer_id, window.start_at, end_at)
        if counted == value:
            self._change(number, replace(window, compared_at=now))
            return
        tools.journal.event(
            "overage_corrected", user_id=self._account.user_id, window_id=window.id, units=value, counted_units=counted
        )
        tools.journal.measure({"OverageCorrections": 1})
        self._tell(number, value)

    # ---- the account

    def _change(self, number: int, window: Window) -> None:
        windows = list(self._account.windows)
        windows[number] = window
        self._account = replace(self._account, windows=tuple(windows))

    def _put(self, lines: tuple[BilledLine, ...] = ()) -> None:
        """Before each message to Stripe: whoever has lost the lease learns it here, and sends nothing."""
        stored = self._tools.accounts.put(self._account, self._tools.now(), lines)
        if stored is None:
            raise ConflictError("Another process reports the overage of this user by now.")
        self._account = stored

    def _give_back(self, meters: tuple[Meter, ...]) -> Reported:
        now = self._tools.now()
        self._account = replace(self._account, check_at=next_check_at(self._account, meters, now))
        stored = self._tools.accounts.give_back(self._account)
        if stored is None:
            raise ConflictError("Another process reports the overage of this user by now.")
        open_nanousd = stored.open_nanousd(meters)
        if open_nanousd <= -UNIT_NANOUSD and not stored.windows:
            # Billed too much, and no later invoice is there to make it good: a matter for people.
            self._tools.journal.measure({"OverageBilledTooMuch": 1, "StripeAlarms": 1})
        return Reported(stored, open_nanousd, self._final_at)


def _stamped_too_early(window: Window, now: datetime) -> bool:
    return window.stamped_at is not None and is_too_old(window.stamped_at, now)


class OverageFollower:
    """What follows from a billing period's end: a look now, and again until shortly before its invoice is final."""

    def __init__(self, reporter: OverageReporter, send_later: SendLater) -> None:
        self._reporter = reporter
        self._send_later = send_later

    def follow(self, event: StripeEvent, tenant_id: str, user_id: str) -> None:
        """Raises as `OverageReporter.report`, and StoreUnavailableError when the queue does not answer."""
        reported = self._reporter.report(tenant_id, user_id)
        if reported is None or reported.drafts_final_at is None:
            return
        now, final_at = self._reporter.now(), reported.drafts_final_at
        left_seconds = int((final_at - LAST_LOOK - now).total_seconds())
        if left_seconds < SHORTEST_DELAY_SECONDS:
            return
        name, _, looks = event.id.partition("+")
        # A name of its own: the queue's consumer does each event once.
        again = replace(event, id=f"{name}+{int(looks or 0) + 1}")
        text = json.dumps(again.document(), separators=(",", ":"))
        self._send_later(text, min(LONGEST_DELAY_SECONDS, left_seconds))


@dataclass(frozen=True, slots=True)
class DueOverageReport:
    """What one run did."""

    reported_users: int
    refused_users: int
    complete: bool
    """False: the deadline came first, or Stripe did not answer; the next run goes on."""


def report_due_overage(
    *,
    accounts: OverageAccounts,
    marks: OverageMarks,
    reporter: OverageReporter,
    report: UserReport,
    deadline_at_seconds: float,
) -> DueOverageReport:
    """Look at everybody whose overage grew, and at accounts whose time has come. Its cost grows with those, not with
    all users. Raises StoreUnavailableError; running it again is always right.
    """
    reported = refused = 0
    silent = False
    seen: set[tuple[str, str]] = set()
    left: set[tuple[str, str]] = set()
    for due in _due(accounts, marks, reporter):
        if reporter.clock.now_seconds() >= deadline_at_seconds:
            return DueOverageReport(reported, refused, complete=False)
        user = (due.tenant_id, due.user_id)
        if user in left:
            continue
        try:
            if user not in seen:
                reporter.report(*user)
                reported += 1
        except ConflictError:
            continue  # another process is at it; what is due then is due in the next run
        except (StripeUnavailableError, UpstreamUnavailableError) as error:  # Stripe, or the secret for it
            report("due_overage_left", error, tenant_id=due.tenant_id, user_id=due.user_id)
            if silent:
                return DueOverageReport(reported, refused, complete=False)
            silent = True  # for one that is one customer's trouble, for two it is an outage
            left.add(user)
            continue
        except StoreUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001  one whom Stripe refuses, or whose items are broken, keeps nobody
            report("due_overage_refused", error, tenant_id=due.tenant_id, user_id=due.user_id)
            refused += 1
            continue
        silent = False
        seen.add(user)
        marks.remove(due)
    return DueOverageReport(reported, refused, complete=not left)


def _due(accounts: OverageAccounts, marks: OverageMarks, reporter: OverageReporter) -> Iterator[DueOverage]:
    now = reporter.now()
    for shard in rotated(SHARDS, now):
        yield from accounts.list_due(shard, now)
        yield from marks.list_shard(shard)
