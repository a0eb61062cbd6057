"""Every guard of the webhooks switched off, one at a time, by a patch of its source: each must be caught."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection

from tests.simulation.mutants import Edit, Mutant, become, patched_source

SYNC = "tollgate.flows.apply_subscription"
EVENTS = "tollgate.flows.stripe_events"
STORED_EVENTS = "tollgate.storage.stripe_events"
STORED = "tollgate.storage.subscriptions"
DOMAIN = "tollgate.domain.subscriptions"


def _mutant(name: str, module: str, where: str, before: str, after: str, seeds: int) -> Mutant:
    return Mutant(name, module, (Edit(where, before, after),), seeds)


MUTANTS: tuple[Mutant, ...] = (
    _mutant(
        "subscriber compare-and-set",
        STORED,
        "def _conditional_put(",
        '"version = :seen"',
        '"version = :seen OR attribute_exists(PK)"',
        10,
    ),
    _mutant(
        "fetch between reading and writing",
        SYNC,
        "def sync(",
        "decided = self._decide(seen, subscriptions, look)",
        "seen = self._subscriptions.find(tenant_id, user_id)\n"
        "            decided = self._decide(seen, subscriptions, look)",
        20,
    ),
    _mutant(
        "a sync that finds nothing new moves the version",
        SYNC,
        "def _write(",
        "        account = Account.of(",
        "        if replace(decided, synced_at=seen.synced_at, check_at=seen.check_at) == seen:\n"
        "            return _written(decided, entitlements)\n"
        "        account = Account.of(",
        3000,
    ),
    _mutant(
        "entitlements and subscriber together",
        SYNC,
        "def _write(",
        "also=[self._subscriptions.part_of_transaction(decided)],\n            )",
        "also=(),\n            )\n            self._subscriptions.put(decided)",
        10,
    ),
    _mutant(
        "who lost the race starts again",
        SYNC,
        "def _write(",
        "except (StaleAccountError, SupersededError):\n            return None",
        "except (StaleAccountError, SupersededError):\n            pass",
        20,
    ),
    _mutant("surplus subscriptions end", SYNC, "def _fetch(", "choice.surplus:", "():", 20),
    _mutant(
        "disputes are fetched",
        SYNC,
        "def _disputes(",
        "dispute is not None and dispute.blocks(subscription)",
        "dispute is not None",
        200,
    ),
    _mutant("a lost dispute counts", DOMAIN, "def blocks(", "not self.lost or", "True or", 500),
    _mutant(
        "no payment after a trial, no plan",
        "tollgate.providers.stripe_billing",
        "def _told_if_unpaid(",
        "trial_unpaid=not paid",
        "trial_unpaid=False",
        500,
    ),
    _mutant("a customer that is gone is let go", SYNC, "def _decide(", "if look.customer and", "if False and", 20),
    _mutant(
        "the hourly run looks at who is due",
        SYNC,
        "def _write(",
        "check_at=next_check_at(decided.subscription, entitlements, self._now())",
        "check_at=None",
        1500,
    ),
    _mutant(
        "a checkout that is over is forgotten",
        SYNC,
        "def _decide(",
        "None if self._checkout_is_over(seen, look) else seen.checkout",
        "seen.checkout",
        20,
    ),
    _mutant(
        "an event is done after its effects",
        EVENTS,
        "def _once(",
        "            effect(event)\n",
        "            self._events.finish(lease, self._now())\n            effect(event)\n",
        200,
    ),
    _mutant("an event is given back when it failed", EVENTS, "def _once(", "raise\n", "pass\n", 20),
    _mutant(
        "a busy event waits",
        EVENTS,
        "def _once(",
        'raise ConflictError("Another delivery of this event is being handled. Send it again.")',
        "return Outcome.DUPLICATE",
        20,
    ),
    _mutant(
        "lease",
        STORED_EVENTS,
        "def begin(",
        '"attribute_not_exists(done_at) AND (attribute_not_exists(leased_until) OR leased_until < :now)"',
        '"attribute_not_exists(done_at) AND (attribute_not_exists(leased_until) OR leased_until > :zero OR'
        ' leased_until < :now)"'.replace(":zero", ":now"),
        20,
    ),
    _mutant(
        "dedupe",
        STORED_EVENTS,
        "def begin(",
        '"attribute_not_exists(done_at) AND (',
        '"(attribute_not_exists(done_at) OR attribute_exists(done_at)) AND (',
        20,
    ),
    _mutant(
        "refunds once",
        STORED_EVENTS,
        "def _put_once(",
        '"attribute_not_exists(PK)"',
        '"attribute_not_exists(PK) OR attribute_exists(PK)"',
        200,
    ),
    _mutant(
        "grace ends",
        DOMAIN,
        "def entitlements_of(",
        "if now < grace_ends_at:",
        "if True:",
        200,
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant."""

    mutant: Mutant
    seeds: int
    """Seeds run."""
    first_seed: int | None
    kinds: tuple[str, ...]
    """Kinds of violations of the seed that caught it."""


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
    from tests.billing.runner import run_seed

    for number in range(mutant.seeds):
        # A crash alone may only say that the patch does not run.
        kinds = {violation.kind for violation in run_seed(mutant.first_seed + number).violations} - {"crash"}
        if kinds:
            sender.send((number + 1, mutant.first_seed + number, tuple(sorted(kinds))))
            return
    sender.send((mutant.seeds, None, ()))
