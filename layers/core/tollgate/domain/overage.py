"""Overage as money: what a user owes beyond their quota, and what of it Stripe's invoices have billed.

An account is kept for each user who was ever in overage. Owed is what the ledger's meters say, billed is what Stripe's
finalized invoices say, and the difference is what Stripe is to be told next. So whatever was late, lost or told wrongly
stays in the difference and is put right by the next invoice; nothing is billed because it was *sent*.

A window is a stretch of time that one line of one invoice bills. Stripe's meter takes the last value in it, so a window
is told a whole amount, again and again, and never a step. Amounts are in units of 1/100 cent, rounded down over all of
an account together. No I/O, no clock. The order of steps is in `tollgate.flows.report_overage`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final

from tollgate.domain.ledger import Meter
from tollgate.domain.periods import UsagePeriod

UNIT_NANOUSD: Final = 100_000
"""1/100 cent: the metered price is 0.01 cents."""
EDGE: Final = timedelta(seconds=60)
"""Nothing is stamped nearer to a window's ends: summaries are cut at whole minutes, windows are not; and what is
stamped a minute ago cannot fall into a window that began since."""
FLUSH_ROOM: Final = timedelta(minutes=15)
"""The end of a window, kept free for what is told after it: each stamp is later than the one before."""
OLDEST_STAMP: Final = timedelta(days=35) - timedelta(hours=1)
"""Stripe refuses what is stamped more than 35 days ago."""
VISIBLE_AFTER: Final = timedelta(minutes=4)
"""Summaries follow some time after what was sent."""
COMPARED_EVERY: Final = timedelta(hours=20)
LINE_WAIT: Final = timedelta(days=3)
"""A window whose invoice has not come by then has none: the subscription ended unbilled, or was paused."""
COUNTED_AFTER: Final = timedelta(days=5)
"""A period that ended so long ago changes no more, and no period that runs now began before one that ended then."""
SPANS_KEPT_FOR: Final = timedelta(days=100)
"""After its end: longer than any usage period that began in it, and COUNTED_AFTER."""
LINES_KEPT: Final = 24
IDENTIFIER_AT_MOST: Final = 100


@dataclass(frozen=True, slots=True)
class MeteredItem:
    """The overage item of a subscription, as Stripe has it now."""

    subscription_id: str
    customer_id: str
    since_at: datetime
    """When the subscription began."""
    start_at: datetime
    """[start, end) of its current period, or of the last one it had."""
    end_at: datetime
    ended_at: datetime | None = None
    """When the subscription ended; None: it has not."""


@dataclass(frozen=True, slots=True)
class BilledLine:
    """One line of an invoice that bills overage."""

    invoice_id: str
    subscription_id: str
    start_at: datetime
    end_at: datetime
    quantity: int
    final: bool
    """False: a draft, whose quantity is read again when it is made final."""
    finalizes_at: datetime | None = None
    """When a draft is made final by itself; None: an operator holds it back."""
    finalized_at: datetime | None = None
    """When it was made final; None of a draft."""

    @property
    def key(self) -> str:
        return f"{self.invoice_id}@{int(self.start_at.timestamp())}"


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time that one invoice line bills, and the value it was told last."""

    subscription_id: str
    customer_id: str
    start_at: datetime
    end_at: datetime
    value: int = 0
    attempt: int = 0
    """Moves with each new message; 0: Stripe was told nothing, which counts as 0."""
    stamped_at: datetime | None = None
    delivered: bool = False
    """Stripe has said that it has the message. Value, attempt and stamp are stored before it is sent."""
    sent_at: datetime | None = None
    compared_at: datetime | None = None
    """When Stripe's own summary was last found equal."""

    @property
    def id(self) -> str:
        return UsagePeriod(self.start_at, self.end_at).id

    @property
    def pending(self) -> bool:
        """A message was stored, and nobody knows whether Stripe has it."""
        return self.attempt > 0 and not self.delivered

    def identifier(self, stack: str) -> str:
        """Names one message for Stripe: sent again it is no second one. The value is part of it, so that a message
        which Stripe has under an older value can never pass for this one.
        """
        told = f"{self.id}:{self.value}:{self.attempt}"
        whole = f"{stack}:{self.customer_id}:{told}"
        if len(whole) <= IDENTIFIER_AT_MOST:
            return whole
        return f"{sha256(f'{stack}:{self.customer_id}'.encode()).hexdigest()[:40]}:{told}"

    def told(self, value: int, stamped_at: datetime) -> Window:
        """The next message, not sent yet."""
        return replace(self, value=value, attempt=self.attempt + 1, stamped_at=stamped_at, delivered=False)

    def next_stamp(self, now: datetime) -> datetime | None:
        """The instant that the next message is stamped with: inside the window, later than the last one, and not
        after now. None: there is none just now, or never will be.
        """
        lowest = self.start_at + EDGE
        highest = min(self.end_at - EDGE - timedelta(seconds=1), now - EDGE)
        stamp = max(lowest, min(now - EDGE, self.end_at - FLUSH_ROOM))
        if self.stamped_at is not None:
            stamp = max(stamp, self.stamped_at + timedelta(seconds=1))
        return stamp if stamp <= highest and not is_too_old(stamp, now) else None


def is_too_old(stamp: datetime, now: datetime) -> bool:
    return stamp < now - OLDEST_STAMP


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which a subscription billed overage; usage periods that began in it are billed."""

    since_at: datetime
    until_at: datetime | None = None

    def __contains__(self, instant: datetime) -> bool:
        return self.since_at <= instant and (self.until_at is None or instant < self.until_at)


@dataclass(frozen=True, slots=True)
class OverageAccount:
    """What one user owes for overage and what was billed of it. One item; `version` moves with each write."""

    tenant_id: str
    user_id: str
    version: int = 0
    lease_owner: str | None = None
    spans: tuple[Span, ...] = ()
    windows: tuple[Window, ...] = ()
    """Those whose invoice is not final yet, oldest first."""
    closed_through_at: datetime | None = None
    """The latest end of a window whose invoice is final."""
    billed_units: int = 0
    """The quantities of all finalized lines."""
    written_off_units: int = 0
    counted_through: str = ""
    """Id of the last usage period that changes no more; what it and those before it owe is in the next figure."""
    counted_nanousd: int = 0
    unbillable_nanousd: int = 0
    """Overage of such periods that no subscription could bill."""
    set_aside: Mapping[str, int] = field(default_factory=dict)
    """The same of later periods: their ids to nano-USD."""
    lines: tuple[str, ...] = ()
    """Finalized lines that are in `billed_units`, the latest ones."""
    check_at: datetime | None = None
    """When the hourly run looks at this account by itself."""

    def covers(self, period: UsagePeriod) -> bool:
        return any(period.start_at in span for span in self.spans)

    def billable_nanousd(self, meter: Meter) -> int:
        return meter.overage_nanousd - min(meter.overage_nanousd, self.set_aside.get(meter.key.period.id, 0))

    def owed_nanousd(self, meters: Iterable[Meter]) -> int:
        """To be billed in the end, or billed already. `meters`: those after `counted_through`."""
        return self.counted_nanousd + sum(map(self.billable_nanousd, meters))

    def open_nanousd(self, meters: Iterable[Meter]) -> int:
        """Owed, and neither billed nor written off; less than nothing: billed too much, which later invoices make
        good. Less than one unit is never billed.
        """
        return self.owed_nanousd(meters) - (self.billed_units + self.written_off_units) * UNIT_NANOUSD

    @property
    def all_unbillable_nanousd(self) -> int:
        return self.unbillable_nanousd + sum(self.set_aside.values())


# ---- what Stripe says of the subscription


def running_item(items: Iterable[MeteredItem]) -> MeteredItem | None:
    """The one that goes on, which began last where there are several; None: there is none."""
    return max((item for item in items if item.ended_at is None), key=lambda item: item.since_at, default=None)


def follow(account: OverageAccount, items: Iterable[MeteredItem], now: datetime) -> OverageAccount:
    """The account with the windows that the customer's subscriptions have by now, whenever they ended.

    What was used while one of them ran is owed, also where nobody looked before it was over.
    """
    known = _in_turn(items)
    there = {item.subscription_id for item in known}
    windows = tuple(one if one.subscription_id in there else _gone(one, known, now) for one in account.windows)
    account = replace(account, spans=_spans(account.spans, known, now), windows=windows)
    for item in known:
        account = _with_window(account, item, now)
    return account


def _gone(window: Window, items: Iterable[MeteredItem], now: datetime) -> Window:
    """Its item was taken off, or it is gone without a word: some time before now, and before another one began."""
    later = (item.since_at for item in items if item.since_at >= window.start_at)
    return replace(window, end_at=min(window.end_at, now, *later))


def _in_turn(items: Iterable[MeteredItem]) -> list[MeteredItem]:
    """One after the other. Where two ran at once, which only comes about outside our own checkout, the later one bills
    from its beginning on, unless the earlier one outlived it.
    """
    known: list[MeteredItem] = []
    for item in sorted(items, key=lambda one: one.since_at):
        before = known[-1] if known else None
        if before is not None and (before.ended_at is None or before.ended_at > item.since_at):
            if item.ended_at is not None and (before.ended_at is None or before.ended_at >= item.ended_at):
                continue
            known[-1] = replace(before, ended_at=item.since_at)
        known.append(item)
    return known


def _spans(spans: tuple[Span, ...], items: Sequence[MeteredItem], now: datetime) -> tuple[Span, ...]:
    """When a subscription ran, without what no period needs any more."""
    found = {span.since_at: replace(span, until_at=span.until_at or now) for span in spans}
    found |= {item.since_at: Span(item.since_at, item.ended_at) for item in items}
    needed = (span for span in found.values() if span.until_at is None or span.until_at + SPANS_KEPT_FOR > now)
    return tuple(sorted(needed, key=lambda span: span.since_at))


def _with_window(account: OverageAccount, item: MeteredItem, now: datetime) -> OverageAccount:
    """The window of the item's current period, or of its last one as long as an invoice may come for that."""
    windows, closed = list(account.windows), account.closed_through_at
    start_at = item.start_at if closed is None else max(item.start_at, closed)
    end_at = item.end_at if item.ended_at is None else min(item.end_at, item.ended_at)
    mine = max((n for n, one in enumerate(windows) if one.subscription_id == item.subscription_id), default=None)
    if mine is not None:
        last = windows[mine]
        if start_at <= last.start_at:
            windows[mine] = replace(last, end_at=end_at if item.ended_at is None else min(last.end_at, end_at))
            return replace(account, windows=tuple(windows))
        # Whatever moves the anchor ends the window early: its usage up to there was billed at that moment.
        windows[mine] = replace(last, end_at=min(last.end_at, start_at, end_at))
    if start_at < end_at and (item.ended_at is None or now <= end_at + LINE_WAIT):
        windows.append(Window(item.subscription_id, item.customer_id, start_at, end_at))
        windows.sort(key=lambda window: window.start_at)
    return replace(account, windows=tuple(windows))


def is_running(account: OverageAccount, window: Window, item: MeteredItem | None, now: datetime) -> bool:
    """Stripe still counts into it."""
    return (
        item is not None
        and window.subscription_id == item.subscription_id
        and item.start_at <= window.start_at
        and now < window.end_at
    )


# ---- what Stripe's invoices say


@dataclass(frozen=True, slots=True)
class Booked:
    """An account after a look at the invoices."""

    account: OverageAccount
    new_lines: tuple[BilledLine, ...]
    drafts: frozenset[datetime]
    """Starts of the windows whose invoice is a draft."""
    unbilled: tuple[Window, ...]
    """Windows that no invoice will bill."""


def book(account: OverageAccount, lines: Iterable[BilledLine], now: datetime) -> Booked:
    """Count each finalized line once, and let go of its window. A draft's line tells where its window really ended."""
    windows, drafts, new_lines = list(account.windows), set(), []
    closed_through_at = account.closed_through_at
    for line in sorted(lines, key=lambda one: one.start_at):
        number = next((n for n, window in enumerate(windows) if _bills(line, window)), None)
        if not line.final:
            if number is None and (unseen := _unseen(line, windows)) is not None:
                number = unseen.place
                windows.insert(number, unseen.window)
            if number is not None:
                windows[number] = replace(windows[number], end_at=line.end_at)
                drafts.add(windows[number].start_at)
            continue
        if line.key not in account.lines:
            new_lines.append(line)
        if number is not None:
            del windows[number]
            closed_through_at = max(line.end_at, closed_through_at or line.end_at)
    unbilled = tuple(window for window in windows if window.end_at + LINE_WAIT < now and window.start_at not in drafts)
    for window in unbilled:
        closed_through_at = max(window.end_at, closed_through_at or window.end_at)
    known = tuple(line.key for line in new_lines)
    booked = replace(
        account,
        windows=tuple(window for window in windows if window not in unbilled),
        closed_through_at=closed_through_at,
        billed_units=account.billed_units + sum(line.quantity for line in new_lines),
        lines=(*account.lines, *known)[-max(LINES_KEPT, len(known)) :],
    )
    return Booked(booked, tuple(new_lines), frozenset(drafts), unbilled)


@dataclass(frozen=True, slots=True)
class _Unseen:
    window: Window
    place: int


def _unseen(line: BilledLine, windows: Sequence[Window]) -> _Unseen | None:
    """A window that was over before anybody looked, while its invoice is still a draft."""
    same = [n for n, window in enumerate(windows) if window.subscription_id == line.subscription_id]
    if not same or line.end_at > windows[same[0]].start_at:
        return None
    customer_id = windows[same[0]].customer_id
    return _Unseen(Window(line.subscription_id, customer_id, line.start_at, line.end_at), same[0])


def _bills(line: BilledLine, window: Window) -> bool:
    return line.subscription_id == window.subscription_id and line.start_at <= window.start_at < line.end_at


# ---- what the ledger says


def put_aside(account: OverageAccount, meters: Iterable[Meter]) -> OverageAccount:
    """Overage that is seen while no subscription bills it is never billed later: nobody was told of a price then."""
    aside = {
        meter.key.period.id: meter.overage_nanousd
        for meter in meters
        if not account.covers(meter.key.period) and meter.overage_nanousd
    }
    return replace(account, set_aside=aside)


def count_old(account: OverageAccount, meters: Iterable[Meter], now: datetime) -> OverageAccount:
    """Add up the periods that change no more, so that they need not be read again. `meters`: in order."""
    for meter in meters:
        period = meter.key.period
        still_told = any(window.end_at <= period.start_at for window in account.windows)
        if period.end_at + COUNTED_AFTER > now or meter.reservations or still_told:
            break
        aside = dict(account.set_aside)
        unbillable = min(aside.pop(period.id, 0), meter.overage_nanousd)
        account = replace(
            account,
            counted_through=period.id,
            counted_nanousd=account.counted_nanousd + meter.overage_nanousd - unbillable,
            unbillable_nanousd=account.unbillable_nanousd + unbillable,
            set_aside=aside,
        )
    return account


def uncounted(account: OverageAccount, meters: Iterable[Meter]) -> tuple[Meter, ...]:
    return tuple(meter for meter in meters if meter.key.period.id > account.counted_through)


def write_off_late(account: OverageAccount, meters: Sequence[Meter]) -> OverageAccount:
    """Forgive what periods still owe whose invoices are all final. Nothing of one that goes on: its use is not late,
    where an invoice was made in the middle of it. `meters`: in order.
    """
    closed = account.closed_through_at
    if closed is None or any(window.start_at < closed for window in account.windows):
        return account
    over = meters[:-1] if meters and closed < meters[-1].key.period.end_at else meters
    owed = account.owed_nanousd(meter for meter in over if meter.key.period.start_at < closed)
    late_units = owed // UNIT_NANOUSD - account.billed_units - account.written_off_units
    return replace(account, written_off_units=account.written_off_units + max(0, late_units))


def targets(account: OverageAccount, meters: Sequence[Meter]) -> tuple[int, ...]:
    """What each window should say: all that is owed for periods that began before its end, less what other invoices
    have billed or will. So what came late, or was billed too low or too high, is carried on by itself.
    """
    values: list[int] = []
    closed = account.closed_through_at
    for window in account.windows:
        if closed is not None and closed > window.start_at:
            # A later window was billed before this one: that one counted on this value.
            values.append(window.value)
            continue
        owed = account.owed_nanousd(meter for meter in meters if meter.key.period.start_at < window.end_at)
        elsewhere = account.billed_units + account.written_off_units + sum(values)
        values.append(max(0, owed // UNIT_NANOUSD - elsewhere))
    return tuple(values)


# ---- when to look again


def is_due_for_comparison(window: Window, now: datetime, *, drafted: bool) -> bool:
    """A draft's at every look, since nothing can be mended once it is final; a running one's once a day."""
    if window.sent_at is not None and now < window.sent_at + VISIBLE_AFTER:
        return False
    if drafted:
        return True
    return window.attempt > 0 and (window.compared_at is None or now >= window.compared_at + COMPARED_EVERY)


def next_check_at(account: OverageAccount, meters: Sequence[Meter], now: datetime) -> datetime | None:
    """Without being told: soon while something is not delivered or not billed; before and after a window's end."""
    soon = now + timedelta(minutes=10)
    due: list[datetime] = []
    for window in account.windows:
        if window.pending or window.end_at <= now:
            due.append(soon)
            continue
        around_end = (window.end_at - timedelta(minutes=70), window.end_at + timedelta(minutes=5))
        due += [at for at in around_end if at > now]
        if window.attempt > 0:
            due.append(now + COMPARED_EVERY)
    if not due and (meters or account.open_nanousd(meters) >= UNIT_NANOUSD):
        due.append(now + timedelta(days=1))
    return min(due, default=None)
