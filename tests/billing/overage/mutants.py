"""Every guard of the reporter switched off, one at a time, by a patch of its source: each must be caught."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from tests.billing.mutants import Verdict
from tests.simulation.mutants import Edit, Mutant, become, patched_source

DOMAIN = "tollgate.domain.overage"
FLOW = "tollgate.flows.report_overage"
STORED = "tollgate.storage.overage"
PROVIDER = "tollgate.providers.stripe_meter"


def _mutant(name: str, module: str, where: str, before: str, after: str, seeds: int) -> Mutant:
    return Mutant(name, module, (Edit(where, before, after),), seeds)


MUTANTS: tuple[Mutant, ...] = (
    _mutant(
        "the value is part of the identifier",
        DOMAIN,
        "def identifier(",
        'f"{self.id}:{self.value}:{self.attempt}"',
        'f"{self.id}:{self.attempt}"',
        30,
    ),
    _mutant("attempts have names of their own", DOMAIN, "def told(", "self.attempt + 1", "1", 60),
    _mutant(
        "stored before it is sent",
        FLOW,
        "def _tell(",
        "        self._put()\n        self._send(number)",
        "        self._send(number)\n        self._put()",
        30,
    ),
    _mutant(
        "one sender at a time",
        STORED,
        "def take(",
        '"attribute_not_exists(leased_until) OR leased_until < :now"',
        '"attribute_not_exists(leased_until) OR leased_until < :now OR leased_until > :now"',
        30,
    ),
    _mutant(
        "a lost lease ends the look",
        STORED,
        "def _write(",
        '"version = :seen"',
        '"version = :seen OR attribute_exists(PK)"',
        200,
    ),
    _mutant(
        "drafts are compared",
        DOMAIN,
        "def is_due_for_comparison(",
        "if drafted:\n        return True",
        "if drafted:\n        return False",
        400,
    ),
    _mutant(
        "what differs is told again",
        FLOW,
        "def _compare(",
        "self._tell(number, value)",
        "self._change(number, window)",
        400,
    ),
    _mutant(
        "a draft is looked at again", FLOW, "def follow(", "if left_seconds < SHORTEST_DELAY_SECONDS:", "if True:", 400
    ),
    _mutant(
        "stamps increase", DOMAIN, "def next_stamp(", "self.stamped_at + timedelta(seconds=1)", "self.stamped_at", 100
    ),
    _mutant(
        "room for the flush",
        DOMAIN,
        "def next_stamp(",
        "self.end_at - FLUSH_ROOM",
        "self.end_at - EDGE - timedelta(seconds=1)",
        100,
    ),
    _mutant("a line is counted once", DOMAIN, "def book(", "if line.key not in account.lines:", "if True:", 200),
    _mutant(
        "what was billed is read from the invoice",
        DOMAIN,
        "def book(",
        "sum(line.quantity for line in new_lines)",
        "sum(window.value for window in account.windows[: len(new_lines)])",
        200,
    ),
    _mutant(
        "a new anchor ends the window",
        DOMAIN,
        "def follow(",
        "replace(last, end_at=min(last.end_at, start_at))",
        "last",
        400,
    ),
    _mutant(
        "a draft tells where its window ended",
        DOMAIN,
        "def book(",
        "windows[number] = replace(windows[number], end_at=line.end_at)",
        "pass",
        400,
    ),
    _mutant(
        "a window over before anybody looked",
        DOMAIN,
        "def _unseen(",
        "if not same or line.end_at > windows[same[0]].start_at:",
        "if True:",
        400,
    ),
    _mutant(
        "the subscription is fetched",
        FLOW,
        "def run(",
        "else tools.stripe.find_item(subscription.id)",
        "else MeteredItem(subscription.id, subscription.customer_id, subscription.created_at,"
        " None if subscription.status.ended else subscription.metered_start_at, subscription.metered_end_at)",
        400,
    ),
    _mutant(
        "overage of a gift is not billed", DOMAIN, "def put_aside(", "not account.covers(period) and", "False and", 400
    ),
    _mutant(
        "old periods are counted once",
        DOMAIN,
        "def uncounted(",
        "meter.key.period.id > account.counted_through",
        "True",
        200,
    ),
    _mutant(
        "old periods stay counted",
        DOMAIN,
        "def count_old(",
        "account.counted_nanousd + meter.overage_nanousd - unbillable",
        "meter.overage_nanousd - unbillable",
        200,
    ),
    _mutant(
        "nothing is forgiven without the policy",
        FLOW,
        "def run(",
        "if tools.late_usage is LateUsage.WRITE_OFF:",
        "if True:",
        400,
    ),
    _mutant(
        "a pending message is sent again",
        FLOW,
        "def _bring(",
        "if window.pending and window.value == value and not _stamped_too_early(window, now):",
        "if False:",
        400,
    ),
    _mutant(
        "a duplicate is a success",
        PROVIDER,
        "def send(",
        'if _SAME_IDENTIFIER not in (error.user_message or ""):',
        "if True:",
        200,
    ),
    _mutant(
        "accounts come up by themselves",
        DOMAIN,
        "def next_check_at(",
        "due: list[datetime] = []\n",
        "return None\n",
        400,
    ),
)


def try_mutants(mutants: tuple[Mutant, ...], *, jobs: int) -> Iterator[Verdict]:
    """Each in its own process, `jobs` at a time, up to its first catch."""
    for mutant in mutants:
        patched_source(mutant)  # here, where its error is seen
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(_try, mutants)


def _try(mutant: Mutant) -> Verdict:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_mutant, args=(mutant, sender), daemon=True)
    process.start()
    sender.close()
    with receiver:
        seeds, first_seed, kinds = receiver.recv()
    process.join()
    return Verdict(mutant, seeds, first_seed, kinds)


def _run_mutant(mutant: Mutant, sender: Connection) -> None:
    become(mutant)
    for name in [name for name in sys.modules if name.startswith("tests.billing.") and name != __name__]:
        del sys.modules[name]
    from tests.billing.overage.runner import run_seed

    for number in range(mutant.seeds):
        # A crash alone may only say that the patch does not run.
        kinds = {violation.kind for violation in run_seed(mutant.first_seed + number).violations} - {"crash"}
        if kinds:
            sender.send((number + 1, mutant.first_seed + number, tuple(sorted(kinds))))
            return
    sender.send((mutant.seeds, None, ()))
