"""Every guard of the webhooks switched off, one at a time, by a patch of its source: each must be caught."""

from __future__ import annotations

from tests.support.mutants import Mutant, one_edit

SYNC = "tollgate.flows.apply_subscription"
EVENTS = "tollgate.flows.stripe_events"
STORED_EVENTS = "tollgate.storage.stripe_events"
STORED = "tollgate.storage.subscriptions"
DOMAIN = "tollgate.domain.subscriptions"

MUTANTS: tuple[Mutant, ...] = (
    one_edit(
        "subscriber compare-and-set",
        STORED,
        "def _conditional_put(",
        '"version = :seen"',
        '"version = :seen OR attribute_exists(PK)"',
        10,
    ),
    one_edit(
        "fetch between reading and writing",
        SYNC,
        "def sync(",
        "decided = self._decide(seen, subscriptions, look)",
        "seen = self._subscriptions.find(tenant_id, user_id)\n"
        "            decided = self._decide(seen, subscriptions, look)",
        20,
    ),
    one_edit(
        "a sync that finds nothing new moves the version",
        SYNC,
        "def _write(",
        "        account = Account.of(",
        "        if replace(decided, synced_at=seen.synced_at, check_at=seen.check_at) == seen:\n"
        "            return _written(decided, entitlements)\n"
        "        account = Account.of(",
        3000,
    ),
    one_edit(
        "entitlements and subscriber together",
        SYNC,
        "def _write(",
        "also=[self._subscriptions.part_of_transaction(decided)],\n            )",
        "also=(),\n            )\n            self._subscriptions.put(decided)",
        10,
    ),
    one_edit(
        "who lost the race starts again",
        SYNC,
        "def _write(",
        "except (StaleAccountError, SupersededError):\n            return None",
        "except (StaleAccountError, SupersededError):\n            pass",
        20,
    ),
    one_edit("surplus subscriptions end", SYNC, "def _fetch(", "choice.surplus:", "():", 20),
    one_edit(
        "disputes are fetched",
        SYNC,
        "def _disputes(",
        "dispute is not None and dispute.blocks(subscription)",
        "dispute is not None",
        200,
    ),
    one_edit("a lost dispute counts", DOMAIN, "def blocks(", "not self.lost or", "True or", 500),
    one_edit(
        "no payment after a trial, no plan",
        "tollgate.providers.stripe_billing",
        "def _told_if_unpaid(",
        "trial_unpaid=not paid",
        "trial_unpaid=False",
        500,
    ),
    one_edit("a customer that is gone is let go", SYNC, "def _decide(", "if look.customer and", "if False and", 20),
    one_edit(
        "the hourly run looks at who is due",
        SYNC,
        "def _write(",
        "check_at=next_check_at(decided.subscription, entitlements, self._now())",
        "check_at=None",
        1500,
    ),
    one_edit(
        "a checkout that is over is forgotten",
        SYNC,
        "def _decide(",
        "None if self._checkout_is_over(seen, look) else seen.checkout",
        "seen.checkout",
        20,
    ),
    one_edit(
        "an event is done after its effects",
        EVENTS,
        "def _once(",
        "            effect(event)\n",
        "            self._events.finish(lease, self._now())\n            effect(event)\n",
        200,
    ),
    one_edit("an event is given back when it failed", EVENTS, "def _once(", "raise\n", "pass\n", 20),
    one_edit(
        "a busy event waits",
        EVENTS,
        "def _once(",
        'raise ConflictError("Another delivery of this event is being handled. Send it again.")',
        "return Outcome.DUPLICATE",
        20,
    ),
    one_edit(
        "lease",
        STORED_EVENTS,
        "def begin(",
        '"attribute_not_exists(done_at) AND (attribute_not_exists(leased_until) OR leased_until < :now)"',
        '"attribute_not_exists(done_at) AND (attribute_not_exists(leased_until) OR leased_until > :zero OR'
        ' leased_until < :now)"'.replace(":zero", ":now"),
        20,
    ),
    one_edit(
        "dedupe",
        STORED_EVENTS,
        "def begin(",
        '"attribute_not_exists(done_at) AND (',
        '"(attribute_not_exists(done_at) OR attribute_exists(done_at)) AND (',
        20,
    ),
    one_edit(
        "refunds once",
        STORED_EVENTS,
        "def _put_once(",
        '"attribute_not_exists(PK)"',
        '"attribute_not_exists(PK) OR attribute_exists(PK)"',
        200,
    ),
    one_edit(
        "grace ends",
        DOMAIN,
        "def entitlements_of(",
        "if now < grace_ends_at:",
        "if True:",
        200,
    ),
)
