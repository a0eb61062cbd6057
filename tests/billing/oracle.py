"""Watches every commit of the table, and judges the end of a run by Stripe's own books.

At the commit: older_projection (what was fetched earlier overwrote what was fetched later), half_change (entitlements
without their subscriber), taken_twice (an event taken from somebody whose lease had not ended), done_again (effects of
an event that was done before the process began). At the end: entitlements, meter, checkout, second_subscription,
refunds, meter_errors, undone (an event that nobody finished), contract (a request that Stripe would refuse).
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.billing.truth import Truth, books_of, living, truth_of
from tests.simulation.hub import Process
from tests.simulation.memory_table import Change
from tests.support.seeded_runs import Violation
from tollgate.domain.periods import period_at

if TYPE_CHECKING:
    from tests.billing.world import World

LEASE_SLACK_SECONDS = 3
"""Two clocks and the network between them."""


class Oracle:
    def __init__(self, world: World) -> None:
        self._world = world
        self.violations: list[Violation] = []
        self.event_of: dict[Process, str] = {}
        self._newest_fetch: dict[str, int] = {}
        """PK of a user to the request of Stripe's that the stored projection rests on."""
        self._done_at: dict[tuple[str, str], float] = {}
        self._refunds: Counter[str] = Counter()

    def report(self, kind: str, message: str) -> None:
        self.violations.append(Violation(kind, self._world.hub.now, message))

    # ---- each commit

    def committed(self, changes: list[Change]) -> None:
        kinds = {change.sk.partition("#")[0] for change in changes}
        for change in changes:
            if change.sk == "SUBSCRIBER":
                self._subscriber_written(change)
            elif change.sk in ("DELIVERY", "WORK"):
                self._event_written(change)
            elif change.sk.startswith("REFUND#"):
                self._refunds[change.sk] += 1
                self._not_done_again(change)
            elif change.sk == "PROFILE" and change.old is not None and "SUBSCRIBER" not in kinds:
                self.report("half_change", f"{change.pk}: {change.old} became {change.new}")

    def _subscriber_written(self, change: Change) -> None:
        old = change.old or {}
        new = change.new or {}
        synced = new.get("synced_at")
        moved = synced is not None and self._world.running_writer() is not None
        if int(new["version"]["N"]) != int(old.get("version", {"N": "0"})["N"]) + 1:
            self.report("version", f"{change.pk}: {old.get('version')} became {new['version']}")
        if not moved:
            return
        process = self._world.running_writer()
        fetch = None if process is None else self._world.side.fetches.get(process)
        if fetch is None or "customer_id" not in old:
            return  # without a customer, Stripe is not asked
        self._world.seen["projections"] += 1
        if fetch < self._newest_fetch.get(change.pk, 0):
            self.report("older_projection", f"{change.pk}: {fetch} over {self._newest_fetch[change.pk]}")
        self._newest_fetch[change.pk] = fetch
        self._not_done_again(change)

    def _event_written(self, change: Change) -> None:
        old, new = change.old or {}, change.new or {}
        before, after = old.get("lease_owner"), new.get("lease_owner")
        if before is not None and after is not None and before != after:
            left = int(old["leased_until"]["N"]) - self._world.hub.now
            if left > LEASE_SLACK_SECONDS:
                self.report("taken_twice", f"{change.pk} {change.sk}: {left:.0f} s before the lease ended")
            self._world.seen["leases_ended"] += 1
        if "done_at" in new and "done_at" not in old:
            self._done_at[change.pk, change.sk] = self._world.hub.now

    def _not_done_again(self, change: Change) -> None:
        process = self._world.running_writer()
        event_id = None if process is None else self.event_of.get(process)
        if process is None or event_id is None:
            return
        part = "WORK" if process.name.startswith("message") else "DELIVERY"
        done_at = self._done_at.get((f"STRIPE_EVENT#{event_id}", part))
        if done_at is not None and done_at < process.started_at:
            self.report("done_again", f"{process.name} wrote {change.sk}, {event_id} was done before it began")

    # ---- the end

    def judge(self) -> None:
        world = self._world
        if world.stripe.refused:
            self.report("contract", str(world.stripe.refused[0]))
        for user in range(world.scenario.users):
            self._judge_user(user)
        for delivery in world.deliveries:
            key = (f"STRIPE_EVENT#{delivery.event.id}", "DELIVERY")
            if delivery.event.reaction is not None and key not in self._done_at:
                self.report("undone", f"{delivery.event.type} {delivery.event.id}")
        for message in world.messages:
            if (f"STRIPE_EVENT#{message.event.id}", "WORK") not in self._done_at:
                self.report("undone", f"work of {message.event.type} {message.event.id}")
        twice = [name for name, number in self._refunds.items() if number > 1]
        if twice:
            self.report("refunds", f"recorded twice: {twice}")

    def _judge_user(self, user: int) -> None:
        world = self._world
        seen = world.actions.subscriptions.find("main", f"user-{user}")
        profile = world.actions.users.find_profile("main", f"user-{user}")
        assert profile is not None
        customers = world.actions.customers(user)
        books = {customer_id: books_of(world.stripe, customer_id) for customer_id in customers}
        disputed = any(
            dispute["status"] in ("needs_response", "under_review")
            for one in books.values()
            for dispute in one.disputes
        )
        own = books.get(seen.customer_id or "")
        if own is not None and len(living(own)) > 1:
            self.report("second_subscription", f"{[one['id'] for one in living(own)]}")
        truth = truth_of(own, world.hub.now, disputed)
        self._judge_leftovers(user)
        self._judge_refunds(user, customers)
        if truth is None:
            world.seen["undecided"] += 1
            return
        anchor = profile.anchor_at if profile.anchor_at != profile.created_at else None
        stored = Truth(
            profile.plan_id,
            None if anchor is None else int(anchor.timestamp()),
            trial=profile.trial,
            overage_blocked=profile.overage_blocked,
            paid=profile.paid,
            first_key=truth.first_key and (seen.first_key_due or seen.first_key_issued),
        )
        if stored != truth:
            self.report("entitlements", f"user-{user}: {stored}, but Stripe says {truth}")

    def _judge_leftovers(self, user: int) -> None:
        """An open checkout that Stripe has closed, a customer that is gone, a meter on another plan."""
        world = self._world
        seen = world.actions.subscriptions.find("main", f"user-{user}")
        if seen.checkout is not None and seen.checkout.session_id is not None:
            session = world.stripe.find(seen.checkout.session_id)
            if session["status"] != "open":
                self.report("checkout", f"user-{user}: {seen.checkout.session_id} is {session['status']}")
        customer = world.stripe.find(seen.customer_id) if seen.customer_id is not None else {}
        if customer is None or customer.get("deleted"):
            self.report("customer", f"user-{user}: {seen.customer_id} is gone")
        if world.actions.first_keys[user] > 1:
            self.report("first_key", f"user-{user} was given {world.actions.first_keys[user]}")
        profile = world.actions.users.find_profile("main", f"user-{user}")
        assert profile is not None
        now = datetime.fromtimestamp(world.hub.now, UTC)
        period = period_at(world.catalog.plans[profile.plan_id].period_kind, profile.anchor_at, now)
        for pk, sk, item in world.table.items():
            if not (sk == f"USAGE#{period.id}" and pk.endswith(f"user-{user}")):
                continue
            world.seen["meters"] += 1
            newest = item["plan_version"]["N"] == str(profile.plan_version)
            if newest and item["plan_id"]["S"] != profile.plan_id:
                self.report("meter", f"{pk} {sk} is on {item['plan_id']['S']}, the user on {profile.plan_id}")

    def _judge_refunds(self, user: int, customers: list[str]) -> None:
        world = self._world
        charges = {one["id"] for one in world.stripe.all("charge") if one["customer"] in customers}
        given = {f"REFUND#{one['id']}" for one in world.stripe.all("refund") if one["charge"] in charges}
        stored = {sk for pk, sk, _ in world.table.items() if sk.startswith("REFUND#") and pk.endswith(f"user-{user}")}
        if given != stored:
            self.report("refunds", f"user-{user}: given {sorted(given)}, recorded {sorted(stored)}")
