"""A change of plan meets the ledger: quota, price, cap and period change under running calls, and nothing gets lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.ledger_world import START, LedgerWorld, a_plan, an_ask
from tests.support.scripted_dynamodb import Fate
from tollgate.domain.errors import (
    QuotaExceededError,
    StaleAccountError,
    StoreUnavailableError,
    SupersededError,
)
from tollgate.domain.ledger import Settlement
from tollgate.domain.plans import PeriodKind, QuotaKind
from tollgate.domain.principals import Account
from tollgate.domain.subscriptions import Entitlements

SOFT = a_plan(quota_kind=QuotaKind.SOFT, overage_cap_tokens=500, overage_price_microusd_per_1k_tokens=20)
"""1,000 tokens, then 500 more at 20 nano-USD each."""
LARGE = replace(SOFT, id="large", quota_tokens=3_000, overage_price_microusd_per_1k_tokens=15)
SMALL = replace(SOFT, id="small", quota_tokens=100, overage_price_microusd_per_1k_tokens=50)
MONTHLY = replace(LARGE, id="monthly", period_kind=PeriodKind.ANCHORED_MONTH)
CENT_NANOUSD = 10_000_000


def record(version: int, condition: str = "attribute_not_exists(PK)") -> Any:  # noqa: ANN401  a TransactWriteItem
    """Somebody's own item, to be written together with a change."""
    item = {"PK": {"S": "OTHER"}, "SK": {"S": "OTHER"}, "version": {"N": str(version)}}
    return {"Put": {"TableName": "t", "Item": item, "ConditionExpression": condition}}


class TestOverageMoney:
    """Each token beyond the quota is owed at the price in force when it was settled."""

    def test_is_the_price_of_what_was_settled_beyond_the_quota(self) -> None:
        world = LedgerWorld(SOFT)
        for tokens, owed in ((999, 0), (1, 0), (1, 20), (499, 500 * 20)):
            world.use(tokens)
            assert world.meter.overage_nanousd == owed
        assert world.meter.overage_tokens == 500

    def test_stays_owed_at_the_old_price_and_the_new_quota_is_added_to_it(self) -> None:
        world = LedgerWorld(SOFT)
        world.use(1_300)
        world.follow(world.change(LARGE))
        assert (world.meter.overage_tokens, world.meter.overage_nanousd) == (300, 300 * 20)
        assert world.meter.remaining_tokens == 3_000 - 1_000
        world.use(2_000)
        assert (world.meter.overage_tokens, world.meter.overage_nanousd) == (300, 300 * 20)
        world.use(7)
        assert (world.meter.overage_tokens, world.meter.overage_nanousd) == (307, 300 * 20 + 7 * 15)

    def test_is_not_made_by_a_downgrade(self) -> None:
        """Neither of what was used under the larger plan, nor of what its running calls hold."""
        world = LedgerWorld(LARGE)
        world.use(800)
        grant = world.ledger.reserve(world.account, world.key, an_ask(200))
        world.follow(world.change(SMALL))
        assert (world.meter.remaining_tokens, world.meter.overage_nanousd) == (0, 0)
        world.ledger.settle(grant, Settlement(200))
        assert (world.meter.settled_tokens, world.meter.overage_nanousd) == (1_000, 0)
        world.use(1)
        assert world.meter.overage_nanousd == 50

    def test_of_a_call_that_ran_through_the_change_is_owed_at_the_price_of_its_end(self) -> None:
        world = LedgerWorld(SOFT)
        world.use(1_000)
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.change(SMALL)
        world.ledger.settle(grant, Settlement(100))
        assert world.meter.overage_nanousd == 100 * 50

    def test_survives_any_number_of_changes_to_the_token(self) -> None:
        world = LedgerWorld(SOFT)
        owed = 0
        world.use(1_100)
        owed += 100 * 20
        for plan, tokens, price in ((SMALL, 10, 50), (SOFT, 20, 20), (LARGE, 0, 15), (SMALL, 5, 50)):
            world.follow(world.change(plan))
            free = max(0, world.meter.remaining_tokens)
            if tokens:
                world.use(free + tokens)
            owed += tokens * price
            assert world.meter.overage_nanousd == owed

    def test_is_settled_exactly_when_a_call_ends_between_reading_and_writing_the_change(self) -> None:
        world = LedgerWorld(SOFT)
        grant = world.ledger.reserve(world.account, world.key, an_ask(1_200))
        world.client.before_next("TransactWriteItems", lambda: world.ledger.settle(grant, Settlement(1_200)))
        world.change(LARGE)
        assert (world.meter.overage_tokens, world.meter.overage_nanousd) == (200, 200 * 20)
        assert (world.meter.plan_version, world.meter.remaining_tokens) == (2, 2_000)

    def test_is_not_made_of_a_call_that_begins_between_reading_and_writing_a_downgrade(self) -> None:
        world = LedgerWorld(LARGE)
        world.use(50)
        late = world.new_ledger()
        world.client.before_next(
            "TransactWriteItems", lambda: late.reserve(world.account, world.key, an_ask(900, idempotency_key=None))
        )
        world.change(SMALL)
        assert world.meter.remaining_tokens == 0

    def test_on_a_meter_from_before_there_was_billing_is_owed_from_the_next_change_on(self) -> None:
        world = LedgerWorld(SOFT)
        world.open_meter()
        del world.table.partitions["TENANT#main#USER#u1"]["USAGE#2026-11"]["ov_rate"]
        world.use(1_200)
        assert (world.meter.overage_tokens, world.meter.overage_nanousd) == (200, 0)
        world.follow(world.change(LARGE))
        world.use(2_010)
        assert (world.meter.overage_tokens, world.meter.overage_nanousd) == (210, 10 * 15)


class TestCap:
    """Overage that was banked counts against the cap of the period."""

    @pytest.mark.parametrize(("tokens", "fits"), [(2_199, True), (2_200, True), (2_201, False)])
    def test_of_the_plan_counts_all_overage_of_the_period(self, tokens: int, fits: bool) -> None:
        world = LedgerWorld(SOFT)
        world.use(1_300)
        world.follow(world.change(LARGE))
        if fits:
            world.use(tokens)
            return
        with pytest.raises(QuotaExceededError) as refused:
            world.use(tokens)
        assert refused.value.error_code == "overage_cap_reached"

    @pytest.mark.parametrize(("tokens", "fits"), [(1_019, True), (1_020, True), (1_021, False)])
    def test_of_the_user_counts_money(self, tokens: int, fits: bool) -> None:
        """One cent buys 100 tokens at 100,000 nano-USD; 70 of them are used, the rest buys 20 at 150,000."""
        dear = replace(SOFT, overage_price_microusd_per_1k_tokens=100_000)
        world = LedgerWorld(dear)
        world.follow(world.ledger.choose_overage(world.account, 1))
        assert world.account.plan.overage_cap_tokens == 100
        world.use(1_070)
        world.follow(
            world.change(replace(dear, id="dearer", quota_tokens=2_000, overage_price_microusd_per_1k_tokens=150_000))
        )
        if fits:
            world.use(tokens)
            assert world.meter.overage_nanousd <= CENT_NANOUSD
            return
        with pytest.raises(QuotaExceededError):
            world.use(tokens)

    def test_that_is_less_than_the_plans_costs_no_more_writes_at_each_call(self) -> None:
        """A process finds it out once; also the plan version says when to forget it."""
        world = LedgerWorld(SOFT)
        world.use(1_300)
        world.follow(world.change(LARGE))
        world.use(10)
        world.client.calls.clear()
        for _ in range(3):
            world.use(10)
        assert world.client.calls == ["UpdateItem"] * 6

    def test_chosen_by_the_user_holds_from_the_next_call_on(self) -> None:
        world = LedgerWorld(SOFT)
        world.use(1_000)
        changed = world.ledger.choose_overage(world.account, 0)
        with pytest.raises(StaleAccountError):
            world.use(1)
        world.follow(changed)
        with pytest.raises(QuotaExceededError) as refused:
            world.use(1)
        assert refused.value.error_code == "quota_exceeded"
        world.follow(world.ledger.choose_overage(world.account, None))
        world.use(500)

    def test_chosen_again_as_it_was_writes_nothing(self) -> None:
        world = LedgerWorld(SOFT)
        world.follow(world.ledger.choose_overage(world.account, 5))
        world.client.calls.clear()
        assert world.ledger.choose_overage(world.account, 5) == world.account
        assert world.client.calls == []


class TestPayment:
    """Trials, failed payments and disputes."""

    def test_a_trial_has_its_own_quota_and_no_overage_and_its_end_adds_the_difference(self) -> None:
        plan = replace(SOFT, trial_quota_tokens=300)
        world = LedgerWorld(plan)
        world.follow(world.change(plan, trial=True))
        world.use(300)
        with pytest.raises(QuotaExceededError):
            world.use(1)
        world.follow(world.change(plan))
        assert world.meter.remaining_tokens == 700
        world.use(1_200)

    def test_a_failed_payment_stops_overage_and_keeps_the_quota(self) -> None:
        world = LedgerWorld(SOFT)
        world.follow(world.change(SOFT, overage_blocked=True))
        world.use(1_000)
        with pytest.raises(QuotaExceededError):
            world.use(1)

    def test_who_is_not_paid_for_is_told_by_the_version(self) -> None:
        world = LedgerWorld(SOFT)
        world.use(1)
        changed = world.change(SOFT, paid=False)
        assert not changed.profile.paid
        with pytest.raises(StaleAccountError):
            world.use(1)


class TestPeriods:
    """A subscription counts its months from its own day; without one they are counted as before."""

    def test_the_meter_that_is_left_keeps_its_figures_and_is_closed_to_who_still_has_the_old_plan(self) -> None:
        world = LedgerWorld(SOFT)
        world.use(1_100)
        before = world.meter
        world.change(MONTHLY, anchor_at=START)
        assert world.meter == replace(before, plan_version=2)
        with pytest.raises(StaleAccountError):
            world.use(1)

    def test_a_call_that_runs_through_the_move_is_settled_where_it_was_reserved(self) -> None:
        world = LedgerWorld(SOFT)
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.change(MONTHLY, anchor_at=START)
        world.ledger.settle(grant, Settlement(60))
        assert (world.meter.settled_tokens, world.meter.open_count) == (60, 0)

    def test_the_new_period_begins_with_all_of_the_new_quota(self) -> None:
        world = LedgerWorld(SOFT)
        world.use(900)
        world.follow(world.change(MONTHLY, anchor_at=START))
        assert world.key.period.id == "2026-11-20T120000Z"
        world.use(3_000)

    def test_who_returns_finds_the_former_meter_again(self) -> None:
        """No second quota in one month."""
        world = LedgerWorld(SOFT)
        world.use(900)
        world.follow(world.change(MONTHLY, anchor_at=START))
        world.use(50)
        world.follow(world.change(SOFT))
        assert world.key.period.id == "2026-11"
        assert (world.meter.settled_tokens, world.meter.remaining_tokens) == (900, 100)
        world.use(100)

    def test_who_ends_a_subscription_is_counted_from_the_accounts_first_day_again(self) -> None:
        home = replace(SOFT, period_kind=PeriodKind.ANCHORED_MONTH)
        world = LedgerWorld(home)
        world.use(900)
        subscribed_at = datetime(2026, 11, 20, 12, 0, 1, tzinfo=UTC)
        world.seconds += 60
        world.follow(world.change(MONTHLY, anchor_at=subscribed_at))
        world.follow(world.change(home))
        assert world.account.profile.anchor_at == START
        assert world.meter.settled_tokens == 900

    def test_a_meter_that_is_opened_while_the_period_moves_is_closed_too(self) -> None:
        world = LedgerWorld(SOFT)
        world.client.before_next(
            "TransactWriteItems", lambda: world.new_ledger().reserve(world.account, world.key, an_ask(10))
        )
        world.change(MONTHLY, anchor_at=START)
        assert world.meter.plan_version == 2

    def test_months_that_begin_together_and_end_apart_are_one_meter(self) -> None:
        """Of anchors on the 30th and the 31st, February's both begin on the 28th."""
        plan = replace(SOFT, period_kind=PeriodKind.ANCHORED_MONTH)
        world = LedgerWorld(plan)
        world.seconds = datetime(2027, 3, 1, tzinfo=UTC).timestamp()
        world.follow(world.change(plan, anchor_at=datetime(2027, 1, 31, tzinfo=UTC)))
        world.use(100)
        assert world.meter.key.period.end_at == datetime(2027, 3, 31, tzinfo=UTC)
        world.follow(world.change(plan, anchor_at=datetime(2027, 1, 30, tzinfo=UTC)))
        assert world.meter.key.period.end_at == datetime(2027, 3, 30, tzinfo=UTC)
        assert world.meter.settled_tokens == 100


class TestOneTransaction:
    """Profile, meters and the caller's own items: all or none, and it is told apart who was in the way."""

    def test_writes_the_callers_item_with_the_change(self) -> None:
        world = LedgerWorld(SOFT)
        world.ledger.change_entitlements(world.account, Entitlements("large", None), LARGE, also=[record(1)])
        assert world.table.find("OTHER", "OTHER") is not None

    def test_changes_nothing_when_the_callers_item_is_refused(self) -> None:
        world = LedgerWorld(SOFT)
        world.open_meter()
        change = [record(1, "attribute_exists(PK)")]
        with pytest.raises(SupersededError):
            world.ledger.change_entitlements(world.account, Entitlements("large", None), LARGE, also=change)
        assert world.users.find_profile("main", "u1") == world.profile
        assert world.meter.plan_version == 1

    def test_that_changes_no_entitlement_writes_the_callers_item_only(self) -> None:
        world = LedgerWorld(SOFT)
        world.open_meter()
        same = Entitlements(SOFT.id, None)
        assert world.ledger.change_entitlements(world.account, same, SOFT, also=[record(1)]).profile == world.profile
        assert world.table.find("OTHER", "OTHER") is not None
        assert world.meter.plan_version == 1
        with pytest.raises(SupersededError):
            world.ledger.change_entitlements(world.account, same, SOFT, also=[record(2)])
        world.client.calls.clear()
        world.ledger.change_entitlements(world.account, same, SOFT)
        assert world.client.calls == []

    @pytest.mark.parametrize("plan", [SOFT, LARGE])
    def test_by_an_older_account_is_refused_whatever_it_would_change(self, plan: Any) -> None:  # noqa: ANN401
        world = LedgerWorld(SOFT)
        world.ledger.choose_overage(world.account, 0)
        with pytest.raises(StaleAccountError):
            world.ledger.change_entitlements(world.account, Entitlements(plan.id, None), plan, also=[record(1)])
        assert world.table.find("OTHER", "OTHER") is None

    def test_is_tried_again_when_others_are_at_work_and_happens_once(self) -> None:
        world = LedgerWorld(SOFT)
        world.open_meter()
        world.client.next_calls(Fate.FINE, Fate.ANSWER_LOST_THEN_RETRIED)
        world.change(LARGE)
        assert (world.meter.plan_version, world.meter.quota_tokens) == (2, 3_000)

    def test_that_always_meets_a_moving_meter_says_so_after_bounded_rounds(self) -> None:
        """A busy meter must not hold a webhook for ever."""
        world = LedgerWorld(SOFT)
        world.open_meter()

        def disturb() -> None:
            other = world.new_ledger()
            other.settle(other.reserve(world.account, world.key, an_ask(10)), Settlement(10))
            world.client.before_next("TransactWriteItems", disturb)

        disturb()
        with pytest.raises(StoreUnavailableError):
            world.change(LARGE)
        assert len(world.pauses) == 8
        assert world.meter.plan_version == 1

    def test_that_was_never_answered_may_simply_be_repeated(self) -> None:
        world = LedgerWorld(SOFT)
        world.open_meter()
        world.client.next_calls(Fate.FINE, Fate.APPLIED_NEVER_ANSWERED)
        with pytest.raises(StoreUnavailableError):
            world.change(LARGE)
        profile = world.users.find_profile("main", "u1")
        assert profile is not None
        account = Account.of(profile, LARGE)
        world.ledger.change_entitlements(account, Entitlements("large", None), LARGE)
        assert world.meter.plan_version == 2

    def test_that_reached_the_profile_only_is_carried_by_the_same_rules(self) -> None:
        world = LedgerWorld(SOFT)
        world.use(1_300)
        profile = replace(world.profile, plan_id="large", plan_version=2)
        world.table.partitions["TENANT#main#USER#u1"]["PROFILE"]["plan_version"] = {"N": "2"}
        world.follow(Account.of(profile, LARGE))
        world.use(10)
        assert (world.meter.overage_nanousd, world.meter.remaining_tokens) == (300 * 20, 1_990)
