"""Every guard of the reporter switched off, one at a time, by a patch of its source: each must be caught."""

from __future__ import annotations

from tests.support.mutants import Mutant, one_edit

DOMAIN = "tollgate.domain.overage"
FLOW = "tollgate.flows.report_overage"
STORED = "tollgate.storage.overage"
PROVIDER = "tollgate.providers.stripe_meter"

MUTANTS: tuple[Mutant, ...] = (
    one_edit(
        "the value is part of the identifier",
        DOMAIN,
        "def identifier(",
        'f"{self.id}:{self.value}:{self.attempt}"',
        'f"{self.id}:{self.attempt}"',
        30,
    ),
    one_edit("attempts have names of their own", DOMAIN, "def told(", "self.attempt + 1", "1", 60),
    one_edit(
        "stored before it is sent",
        FLOW,
        "def _tell(",
        "        self._put()\n        self._send(number)",
        "        self._send(number)\n        self._put()",
        30,
    ),
    one_edit(
        "one sender at a time",
        STORED,
        "def take(",
        '"attribute_not_exists(leased_until) OR leased_until < :now"',
        '"attribute_not_exists(leased_until) OR leased_until < :now OR leased_until > :now"',
        30,
    ),
    one_edit(
        "a lost lease ends the look",
        STORED,
        "def _write(",
        '"version = :seen"',
        '"version = :seen OR attribute_exists(PK)"',
        200,
    ),
    one_edit(
        "drafts are compared",
        DOMAIN,
        "def is_due_for_comparison(",
        "if drafted:\n        return True",
        "if drafted:\n        return False",
        400,
    ),
    one_edit(
        "what differs is told again",
        FLOW,
        "def _compare(",
        "self._tell(number, value)",
        "self._change(number, window)",
        400,
    ),
    one_edit(
        "a draft is looked at again", FLOW, "def follow(", "if left_seconds < SHORTEST_DELAY_SECONDS:", "if True:", 400
    ),
    one_edit(
        "stamps increase", DOMAIN, "def next_stamp(", "self.stamped_at + timedelta(seconds=1)", "self.stamped_at", 100
    ),
    one_edit(
        "room for the flush",
        DOMAIN,
        "def next_stamp(",
        "self.end_at - FLUSH_ROOM",
        "self.end_at - EDGE - timedelta(seconds=1)",
        100,
    ),
    one_edit("a line is counted once", DOMAIN, "def book(", "if line.key not in account.lines:", "if True:", 200),
    one_edit(
        "what was billed is read from the invoice",
        DOMAIN,
        "def book(",
        "sum(line.quantity for line in new_lines)",
        "sum(window.value for window in account.windows[: len(new_lines)])",
        200,
    ),
    one_edit(
        "a new anchor ends the window",
        DOMAIN,
        "def _with_window(",
        "replace(last, end_at=min(last.end_at, start_at, end_at))",
        "last",
        400,
    ),
    one_edit(
        "a draft tells where its window ended",
        DOMAIN,
        "def book(",
        "windows[number] = replace(windows[number], end_at=line.end_at)",
        "pass",
        400,
    ),
    one_edit(
        "a window over before anybody looked",
        DOMAIN,
        "def _unseen(",
        "if not same or line.end_at > windows[same[0]].start_at:",
        "if True:",
        400,
    ),
    one_edit(
        "subscriptions that are over are fetched, too",
        FLOW,
        "def run(",
        "item = running_item(items)",
        "items = [one for one in items if one.ended_at is None]; item = running_item(items)",
        400,
    ),
    one_edit(
        "overage of a gift is not billed",
        DOMAIN,
        "def put_aside(",
        "not account.covers(meter.key.period) and",
        "False and",
        400,
    ),
    one_edit(
        "old periods are counted once",
        DOMAIN,
        "def uncounted(",
        "meter.key.period.id > account.counted_through",
        "True",
        200,
    ),
    one_edit(
        "old periods stay counted",
        DOMAIN,
        "def count_old(",
        "account.counted_nanousd + meter.overage_nanousd - unbillable",
        "meter.overage_nanousd - unbillable",
        200,
    ),
    one_edit(
        "nothing is forgiven without the policy",
        FLOW,
        "def run(",
        "if tools.late_usage is LateUsage.WRITE_OFF:",
        "if True:",
        400,
    ),
    one_edit(
        "a pending message is sent again",
        FLOW,
        "def _bring(",
        "if window.pending and window.value == value and not _stamped_too_early(window, now):",
        "if False:",
        400,
    ),
    one_edit(
        "a duplicate is a success",
        PROVIDER,
        "def send(",
        'if _SAME_IDENTIFIER not in (error.user_message or ""):',
        "if True:",
        200,
    ),
    one_edit(
        "accounts come up by themselves",
        DOMAIN,
        "def next_check_at(",
        "due: list[datetime] = []\n",
        "return None\n",
        400,
    ),
)
