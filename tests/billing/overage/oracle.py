"""Watches what is stored and what is sent, and judges a run by Stripe's finalized invoices and the ledger's meters.

While it runs: not_stored (a message whose value, attempt and stamp were not stored before), identifier (two messages
under one name, or a name without its value), stamp (not later than the one before, outside of the window, near its
ends), taken_twice (a lease taken from somebody whose time had not ended).
When an invoice is final: inexact (another quantity than is owed, where nothing went wrong in the hour before).
At the end: billed (the account counts otherwise than the invoices say), owed (account and meters differ), not_billed
and over_billed (what is open where later invoices could have made it good), contract, crash.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.simulation.hub import Process
from tests.simulation.memory_table import Change
from tests.support.seeded_runs import Violation
from tollgate.domain.overage import UNIT_NANOUSD

if TYPE_CHECKING:
    from tests.billing.overage.world import OverageWorld

LEASE_SLACK_SECONDS = 5
LAST_LOOK_SECONDS = 16 * 60
"""What is settled later than this before an invoice is final may be on the next one."""


class OverageOracle:
    def __init__(self, world: OverageWorld) -> None:
        self._world = world
        self.violations: list[Violation] = []
        self._stored: set[tuple[str, int, int, int]] = set()
        """(window's id as stored, value, attempt, stamp)."""
        self._stamps: dict[tuple[str, int], list[tuple[int, int]]] = {}
        """(customer, window's start) to (attempt, stamp), as stored."""
        self._names: dict[str, tuple[str, str]] = {}
        self._owed: list[tuple[float, dict[int, int]]] = []
        """When what was owed changed, and to what, by the period's start."""

    def report(self, kind: str, message: str) -> None:
        self.violations.append(Violation(kind, self._world.hub.now, message))

    # ---- each commit, each message

    def committed(self, changes: list[Change]) -> None:
        for change in changes:
            if change.sk == "OVERAGE" and change.new is not None:
                self._account_written(change)
            elif change.sk.startswith("USAGE#"):
                self._owed.append((self._world.hub.now, self._owed_now(change)))

    def _account_written(self, change: Change) -> None:
        old, new = change.old or {}, change.new or {}
        before, after = old.get("lease_owner"), new.get("lease_owner")
        if before is not None and after is not None and before != after:
            left = int(old["leased_until"]["N"]) - self._world.hub.now
            self._world.seen["leases_ended"] += 1
            if left > LEASE_SLACK_SECONDS:
                self.report("taken_twice", f"{left:.0f} s before the lease ended")
        for window in json.loads(new.get("windows", {"S": "[]"})["S"]):
            if window["attempt"] == 0:
                continue
            message = (window["customer_id"], window["value"], window["attempt"], window["stamped_at"])
            if message not in self._stored:
                self._stored.add(message)
                self._stamp_stored(window)

    def _stamp_stored(self, window: dict[str, Any]) -> None:
        stamp, start, end = window["stamped_at"], window["start_at"], window["end_at"]
        if not start + 60 <= stamp <= end - 60:
            self.report("stamp", f"{stamp} in {start}-{end}")
        if stamp > self._world.hub.now:
            self.report("stamp", f"{stamp} is in the future")
        earlier = self._stamps.setdefault((window["customer_id"], start), [])
        if any(stamp <= one for attempt, one in earlier if attempt < window["attempt"]):
            self.report("stamp", f"{stamp} of attempt {window['attempt']} is not after {earlier}")
        earlier.append((window["attempt"], stamp))

    def sending(self, process: Process, fields: dict[str, str]) -> None:
        customer, value = fields["payload[stripe_customer_id]"], fields["payload[value]"]
        name, stamp = fields["identifier"], fields["timestamp"]
        attempt = name.rpartition(":")[2]
        if not name.endswith(f":{value}:{attempt}") or len(name) > 100:
            self.report("identifier", f"{name} for {value}")
        elif (customer, int(value), int(attempt), int(stamp)) not in self._stored:
            self.report("not_stored", f"{process.name} sends {name} at {stamp}")
        if self._names.setdefault(name, (value, stamp)) != (value, stamp):
            self.report("identifier", f"{name} was {self._names[name]}, is {(value, stamp)}")

    # ---- each invoice

    def finalized(self, invoice: dict[str, Any]) -> None:
        """At the moment: nothing else has happened since."""
        world = self._world
        for line in world.overage_lines(invoice):
            start, end = line["period"]["start"], line["period"]["end"]
            drafted = invoice["created"] <= world.hub.now - 3500
            if not drafted or not world.was_calm(end - 3600, world.hub.now):
                world.seen["unjudged_windows"] += 1
                continue
            account = world.account()
            billed = sum(one["quantity"] for one in world.final_lines() if one["id"] != line["id"])
            written_off = 0 if account is None else account.written_off_units
            aside = 0 if account is None else account.all_unbillable_nanousd
            owed = [
                sum(owed for begin, owed in periods.items() if begin < end)
                for periods in self._owed_since(world.hub.now - LAST_LOOK_SECONDS)
            ]
            wanted = [max(0, (one - aside) // UNIT_NANOUSD - billed - written_off) for one in owed]
            world.seen["judged_windows"] += 1
            world.seen["judged_units"] += line["quantity"]
            if not min(wanted) <= line["quantity"] <= max(wanted):
                self.report("inexact", f"[{start}, {end}) bills {line['quantity']}, not {wanted}")

    def _owed_since(self, instant: float) -> list[dict[int, int]]:
        before = [owed for at, owed in self._owed if at <= instant]
        return [*(before[-1:] or [{}]), *(owed for at, owed in self._owed if at > instant)]

    def _owed_now(self, change: Change | None = None) -> dict[int, int]:
        """By each period's start; computed from the stored items, not by the code under test."""
        items = {sk: item for _, sk, item in self._world.table.items() if sk.startswith("USAGE#")}
        if change is not None and change.new is not None:
            items[change.sk] = change.new
        found = {}
        for item in items.values():
            figure = {name: int(value["N"]) for name, value in item.items() if "N" in value}
            beyond = max(0, figure["settled"] - figure["quota"]) * figure.get("ov_rate", 0)
            found[figure["start_at"]] = figure.get("ov_nanousd", 0) + beyond
        return found

    # ---- the end

    def judge(self) -> None:
        world = self._world
        if world.stripe.refused:
            self.report("contract", str(world.stripe.refused[0]))
        owed = sum(self._owed_now().values())
        billed = sum(line["quantity"] for line in world.final_lines())
        account = world.account()
        if account is None:
            if owed or billed:
                self.report("not_billed", f"{owed} nano-USD owed, {billed} units billed, and no account")
            return
        if account.billed_units != billed:
            self.report("billed", f"the account says {account.billed_units}, the invoices {billed}")
        records = sum(one.units for one in world.records())
        if records != billed:
            self.report("billed", f"the records say {records}, the invoices {billed}")
        open_nanousd = owed - account.all_unbillable_nanousd - (billed + account.written_off_units) * UNIT_NANOUSD
        if account.open_nanousd(world.meters_of(account)) != open_nanousd:
            self.report(
                "owed", f"the account has {account.open_nanousd(world.meters_of(account))} open, not {open_nanousd}"
            )
        outside = sum(owed for begin, owed in self._owed_now().items() if not world.was_subscribed(begin))
        if account.all_unbillable_nanousd > outside:
            self.report("unbillable", f"{account.all_unbillable_nanousd}, {outside} of it used without a subscription")
        self._judge_open(open_nanousd, alive=world.bills())
        for name, value in (("owed_units", owed // UNIT_NANOUSD), ("billed_units", billed)):
            world.seen[name] += value
        world.seen["written_off_units"] += account.written_off_units
        world.seen["unbillable_units"] += account.all_unbillable_nanousd // UNIT_NANOUSD

    def _judge_open(self, open_nanousd: int, *, alive: bool) -> None:
        world = self._world
        if open_nanousd >= UNIT_NANOUSD:
            if alive:
                self.report("not_billed", f"{open_nanousd} nano-USD after two quiet periods")
            world.seen["left_open_units"] += open_nanousd // UNIT_NANOUSD
        if open_nanousd < 0:
            world.seen["over_billed_units"] += -open_nanousd // UNIT_NANOUSD
            world.seen["over_billed_runs"] += 1
            if not world.was_lowered:
                self.report("over_billed", f"{-open_nanousd} nano-USD")
