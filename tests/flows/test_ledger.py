"""The ledger, one situation a test. `tests/simulation` runs the same code under all of them at once, at random."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.ledger_world import Counting, LedgerWorld, a_plan, an_ask
from tests.support.scripted_dynamodb import Fate
from tollgate.domain.errors import (
    DuplicateRequestError,
    IdempotencyMismatchError,
    QuotaExceededError,
    RateLimitedError,
    StaleAccountError,
    StoreUnavailableError,
)
from tollgate.domain.ledger import Reservation, Settlement
from tollgate.domain.plans import ExpiryPolicy, QuotaKind
from tollgate.domain.principals import Account, KeyLimits
from tollgate.domain.tokens import TokenCounts


def test_a_call_costs_one_write_before_and_one_after_and_no_read() -> None:
    world = LedgerWorld()
    world.open_meter()
    grant = world.ledger.reserve(world.account, world.key, an_ask(100))
    assert world.client.calls == ["UpdateItem"]
    world.ledger.settle(grant, Settlement(used_tokens=30))
    assert world.client.calls == ["UpdateItem", "UpdateItem"]


def test_the_first_call_of_a_period_opens_the_meter() -> None:
    world = LedgerWorld()
    grant = world.ledger.reserve(world.account, world.key, an_ask(100))
    assert grant.meter.quota_tokens == 1_000
    assert world.meter.remaining_tokens == 900


def test_a_settlement_books_what_was_used_and_returns_the_rest() -> None:
    world = LedgerWorld()
    grant = world.ledger.reserve(world.account, world.key, an_ask(100))
    counts = TokenCounts(
        input_tokens=7, output_tokens=20, cache_write_5m_tokens=1, cache_write_1h_tokens=1, cache_read_tokens=1
    )
    settled = world.ledger.settle(grant, Settlement(30, counts=counts, cost_picousd=99))
    assert (settled.charged_tokens, settled.written_off_tokens) == (30, 0)
    assert (world.meter.settled_tokens, world.meter.remaining_tokens) == (30, 970)
    assert (world.meter.counts, world.meter.cost_picousd) == (counts, 99)


def test_a_settlement_repeated_changes_nothing() -> None:
    world = LedgerWorld()
    grant = world.ledger.reserve(world.account, world.key, an_ask(100))
    world.ledger.settle(grant, Settlement(30))
    world.ledger.settle(grant, Settlement(30))
    world.ledger.release(grant)
    assert world.meter.settled_tokens == 30


@pytest.mark.parametrize(("room", "granted"), [(99, 89), (100, 90), (101, 90)])
def test_the_output_is_clamped_to_what_is_left(room: int, granted: int) -> None:
    world = LedgerWorld(a_plan(quota_tokens=room))
    grant = world.ledger.reserve(world.account, world.key, an_ask(100))
    assert grant.output_tokens == granted
    assert world.meter.remaining_tokens == room - granted - 10


@pytest.mark.parametrize(("room", "fits"), [(25, False), (26, True), (27, True)])
def test_fewer_than_sixteen_tokens_of_output_are_refused(room: int, fits: bool) -> None:
    world = LedgerWorld(a_plan(quota_tokens=room))
    if fits:
        assert world.ledger.reserve(world.account, world.key, an_ask(100)).output_tokens == room - 10
        return
    with pytest.raises(QuotaExceededError) as refused:
        world.ledger.reserve(world.account, world.key, an_ask(100))
    assert refused.value.error_code == "quota_exceeded"
    assert refused.value.remaining_tokens == room
    assert refused.value.resets_at == world.key.period.end_at
    assert "Upgrade at example.com." in refused.value.public_message


def test_a_call_without_output_is_refused_when_its_prompt_does_not_fit() -> None:
    world = LedgerWorld(a_plan(quota_tokens=9))
    with pytest.raises(QuotaExceededError):
        world.ledger.reserve(world.account, world.key, an_ask(output_tokens=0))
    assert (
        world.ledger.reserve(world.account, world.key, an_ask(prompt_bound_tokens=9, output_tokens=0)).output_tokens
        == 0
    )


def test_a_key_that_does_not_want_clamping_is_refused_instead() -> None:
    world = LedgerWorld(a_plan(quota_tokens=99))
    with pytest.raises(QuotaExceededError):
        world.ledger.reserve(world.account, world.key, an_ask(100, may_clamp=False))
    assert world.meter.remaining_tokens == 99


def test_a_weighted_model_is_clamped_to_what_its_weight_affords() -> None:
    world = LedgerWorld(a_plan(quota_tokens=110))
    grant = world.ledger.reserve(world.account, world.key, an_ask(output_tokens=1_000, output_weight=5_000))
    assert grant.output_tokens == 20
    assert world.meter.remaining_tokens == 0


@pytest.mark.parametrize(("cap", "admitted"), [(89, False), (90, True), (91, True)])
def test_a_soft_quota_goes_on_to_its_overage_cap(cap: int, admitted: bool) -> None:
    plan = a_plan(quota_kind=QuotaKind.SOFT, quota_tokens=10, overage_cap_tokens=cap)
    world = LedgerWorld(plan)
    ask = an_ask(100, may_clamp=False)
    if admitted:
        world.ledger.settle(world.ledger.reserve(world.account, world.key, ask), Settlement(100))
        assert world.meter.overage_tokens == 90
        return
    with pytest.raises(QuotaExceededError) as refused:
        world.ledger.reserve(world.account, world.key, ask)
    assert refused.value.error_code == "overage_cap_reached"


@pytest.mark.parametrize(("already", "admitted"), [(1, True), (2, True), (3, False)])
def test_requests_are_limited_beside_tokens(already: int, admitted: bool) -> None:
    world = LedgerWorld(a_plan(quota_requests=3))
    for _ in range(already):
        world.ledger.settle(world.ledger.reserve(world.account, world.key, an_ask(20)), Settlement(1))
    if admitted:
        world.ledger.reserve(world.account, world.key, an_ask(20))
        return
    with pytest.raises(QuotaExceededError, match="all 3 requests"):
        world.ledger.reserve(world.account, world.key, an_ask(20))


def test_a_released_call_returns_its_request_too() -> None:
    world = LedgerWorld(a_plan(quota_requests=1))
    world.ledger.release(world.ledger.reserve(world.account, world.key, an_ask(20)))
    assert (world.meter.remaining_requests, world.meter.settled_tokens) == (1, 0)
    assert world.meter.settled_requests == 0


@pytest.mark.parametrize(("running", "admitted"), [(1, True), (2, False)])
def test_parallel_streams_are_limited(running: int, admitted: bool) -> None:
    world = LedgerWorld(a_plan(max_open_reservations=2))
    for _ in range(running):
        world.ledger.reserve(world.account, world.key, an_ask(20))
    if admitted:
        world.ledger.reserve(world.account, world.key, an_ask(20))
        return
    with pytest.raises(RateLimitedError) as refused:
        world.ledger.reserve(world.account, world.key, an_ask(20))
    assert refused.value.error_code == "too_many_streams"


def test_a_burst_beyond_the_rate_is_refused_until_the_window_moves_on() -> None:
    world = LedgerWorld(a_plan(requests_per_minute=60, burst_requests=3))
    for _ in range(3):
        world.ledger.reserve(world.account, world.key, an_ask(20))
    with pytest.raises(RateLimitedError) as refused:
        world.new_ledger(Counting("other001", "nonce1")).reserve(world.account, world.key, an_ask(20))
    assert refused.value.retry_after_seconds == 1
    world.seconds += 1
    world.new_ledger(Counting("other002", "nonce2")).reserve(world.account, world.key, an_ask(20))


def test_a_flood_beyond_the_rate_costs_no_database_call() -> None:
    world = LedgerWorld(a_plan(requests_per_minute=1, burst_requests=1))
    world.ledger.reserve(world.account, world.key, an_ask(20))
    world.client.calls.clear()
    for _ in range(100):
        with pytest.raises(RateLimitedError):
            world.ledger.reserve(world.account, world.key, an_ask(20))
    assert world.client.calls == []


def test_expired_reservations_of_a_crashed_call_make_room() -> None:
    world = LedgerWorld(a_plan(quota_tokens=100, expiry_policy=ExpiryPolicy.VOID))
    world.ledger.reserve(world.account, world.key, an_ask(100))
    world.seconds += 60 + 60
    with pytest.raises(QuotaExceededError):
        world.ledger.reserve(world.account, world.key, an_ask(100))
    world.seconds += 1
    assert world.ledger.reserve(world.account, world.key, an_ask(100)).output_tokens == 90


@pytest.mark.parametrize(
    ("policy", "charged"), [(ExpiryPolicy.STRICT, 100), (ExpiryPolicy.INPUT, 10), (ExpiryPolicy.VOID, 0)]
)
def test_a_crashed_call_is_charged_by_the_plans_policy_and_the_rest_is_written_off(
    policy: ExpiryPolicy, charged: int
) -> None:
    world = LedgerWorld()
    world.ledger.reserve(world.account, world.key, an_ask(100))
    world.seconds += 121
    assert world.ledger.sweep(world.meter, policy) == 1
    assert (world.meter.settled_tokens, world.meter.written_off_tokens) == (charged, 100 - charged)
    assert world.meter.reservations == {}


@pytest.mark.parametrize("policy", list(ExpiryPolicy))
def test_an_owner_that_comes_back_after_the_sweep_corrects_its_charge_once(policy: ExpiryPolicy) -> None:
    world = LedgerWorld(a_plan(quota_requests=10))
    grant = world.ledger.reserve(world.account, world.key, an_ask(100))
    world.seconds += 121
    world.ledger.sweep(world.meter, policy)
    counts = TokenCounts(input_tokens=5, output_tokens=25)
    settled = world.ledger.settle(grant, Settlement(30, counts=counts, cost_picousd=7))
    world.ledger.settle(grant, Settlement(30, counts=counts, cost_picousd=7))
    assert settled.late
    assert (world.meter.settled_tokens, world.meter.written_off_tokens) == (30, 0)
    assert (world.meter.counts, world.meter.cost_picousd, world.meter.settled_requests) == (counts, 7, 1)


def test_a_swept_call_counts_against_the_request_quota_whatever_it_is_charged() -> None:
    world = LedgerWorld(a_plan(quota_requests=1, expiry_policy=ExpiryPolicy.VOID))
    grant = world.ledger.reserve(world.account, world.key, an_ask(100))
    world.seconds += 121
    with pytest.raises(QuotaExceededError, match="all 1 requests"):
        world.ledger.reserve(world.account, world.key, an_ask(100))
    world.ledger.settle(grant, Settlement(30))
    assert (world.meter.settled_requests, world.meter.remaining_requests) == (1, 0)


def test_a_late_correction_never_passes_the_cap() -> None:
    world = LedgerWorld(a_plan(quota_tokens=100))
    grant = world.ledger.reserve(world.account, world.key, an_ask(100))
    world.seconds += 121
    world.ledger.sweep(world.meter, ExpiryPolicy.VOID)
    world.ledger.reserve(world.account, world.key, an_ask(80, may_clamp=False))
    settled = world.ledger.settle(grant, Settlement(90))
    assert (settled.charged_tokens, settled.written_off_tokens) == (20, 70)
    assert world.meter.remaining_tokens == 0


class TestTopUp:
    """Enlarging an open reservation when the prompt was larger than its bound, or a slice is used up."""

    @pytest.mark.parametrize(("extra", "fits"), [(899, True), (900, True), (901, False)])
    def test_takes_from_what_is_left(self, extra: int, fits: bool) -> None:
        world = LedgerWorld()
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        if fits:
            assert world.ledger.top_up(grant, extra).reservation.amount_tokens == 100 + extra
            assert world.meter.remaining_tokens == 900 - extra
            return
        with pytest.raises(QuotaExceededError):
            world.ledger.top_up(grant, extra)
        assert world.meter.remaining_tokens == 900

    @pytest.mark.parametrize("fate", [Fate.ANSWER_LOST_THEN_RETRIED, Fate.CONFLICT])
    def test_happens_once_when_its_answer_is_lost(self, fate: Fate) -> None:
        world = LedgerWorld()
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.client.next_calls(fate)
        assert world.ledger.top_up(grant, 50).reservation.amount_tokens == 150
        assert world.meter.remaining_tokens == 850

    def test_that_was_never_answered_is_found_by_the_settlement(self) -> None:
        world = LedgerWorld()
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.client.next_calls(Fate.APPLIED_NEVER_ANSWERED)
        with pytest.raises(StoreUnavailableError):
            world.ledger.top_up(grant, 50)
        assert world.ledger.settle(grant, Settlement(120)).charged_tokens == 120
        assert (world.meter.settled_tokens, world.meter.remaining_tokens) == (120, 880)

    def test_uses_the_cap_in_force_not_the_one_at_admission(self) -> None:
        world = LedgerWorld(a_plan(quota_kind=QuotaKind.SOFT, overage_cap_tokens=500))
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.ledger.choose_overage(world.account, 0)
        with pytest.raises(QuotaExceededError):
            world.ledger.top_up(grant, 901)
        assert world.ledger.top_up(grant, 900).reservation.amount_tokens == 1_000
        assert world.meter.remaining_tokens == 0

    def test_that_meets_nothing_but_transactions_does_not_say_the_quota_is_used_up(self) -> None:
        world = LedgerWorld()
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.client.next_calls(*[Fate.CONFLICT] * 8)
        with pytest.raises(StoreUnavailableError):
            world.ledger.top_up(grant, 1)

    def test_of_a_swept_reservation_is_refused(self) -> None:
        world = LedgerWorld()
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.seconds += 121
        world.ledger.sweep(world.meter, ExpiryPolicy.VOID)
        with pytest.raises(QuotaExceededError):
            world.ledger.top_up(grant, 1)


class TestUseBeyondTheReservation:
    """Hidden input or a slice overrun: charged as far as there is room, written off beyond, never past the cap."""

    @pytest.mark.parametrize(
        ("used", "charged", "written_off"), [(999, 999, 0), (1_000, 1_000, 0), (1_001, 1_000, 1), (5_000, 1_000, 4_000)]
    )
    def test_is_charged_to_the_last_token_of_room(self, used: int, charged: int, written_off: int) -> None:
        world = LedgerWorld()
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        settled = world.ledger.settle(grant, Settlement(used))
        assert (settled.charged_tokens, settled.written_off_tokens) == (charged, written_off)
        assert world.meter.settled_tokens == charged


class TestLostAnswers:
    """What botocore's own retries and a silent table may do to each write."""

    def test_a_reserve_applied_before_its_retry_counts_once(self) -> None:
        world = LedgerWorld()
        world.open_meter()
        world.client.next_calls(Fate.ANSWER_LOST_THEN_RETRIED)
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        assert grant.sent_twice
        assert world.meter.remaining_tokens == 900

    def test_a_reserve_sent_twice_leaves_a_tombstone_that_stops_its_late_duplicate(self) -> None:
        world = LedgerWorld()
        world.open_meter()
        world.client.next_calls(Fate.ANSWER_LOST_THEN_RETRIED)
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.ledger.settle(grant, Settlement(30))
        assert list(world.meter.tombstones) == [grant.reservation.id]

    def test_a_sweep_leaves_a_tombstone_that_stops_a_late_duplicate_of_the_reserve(self) -> None:
        """Otherwise it would be held, swept and charged once more."""
        world = LedgerWorld()
        world.open_meter()
        world.client.next_calls(Fate.COMES_TWICE)
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.seconds += 121
        assert world.ledger.sweep(world.meter, ExpiryPolicy.STRICT) == 1
        swept = world.meter
        assert list(swept.tombstones) == [grant.reservation.id]
        assert world.client.deliver_late() == [False]
        assert world.meter == swept

    def test_an_ordinary_call_leaves_no_tombstone(self) -> None:
        world = LedgerWorld()
        world.ledger.settle(world.ledger.reserve(world.account, world.key, an_ask(100)), Settlement(30))
        assert world.meter.tombstones == {}

    def test_a_reserve_never_answered_is_taken_back(self) -> None:
        world = LedgerWorld()
        world.open_meter()
        world.client.next_calls(Fate.APPLIED_NEVER_ANSWERED)
        with pytest.raises(StoreUnavailableError):
            world.ledger.reserve(world.account, world.key, an_ask(100))
        assert (world.meter.remaining_tokens, world.meter.reservations) == (1_000, {})

    def test_a_reserve_that_lands_after_it_was_given_up_is_refused(self) -> None:
        world = LedgerWorld()
        world.open_meter()
        world.client.next_calls(Fate.ARRIVES_LATER)
        with pytest.raises(StoreUnavailableError):
            world.ledger.reserve(world.account, world.key, an_ask(100))
        assert world.client.deliver_late() == [False]
        assert world.meter.remaining_tokens == 1_000

    @pytest.mark.parametrize("fate", [Fate.ANSWER_LOST_THEN_RETRIED, Fate.APPLIED_NEVER_ANSWERED, Fate.CONFLICT])
    def test_a_settlement_happens_once(self, fate: Fate) -> None:
        world = LedgerWorld()
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.client.next_calls(fate)
        world.ledger.settle(grant, Settlement(30))
        assert (world.meter.settled_tokens, world.meter.remaining_tokens) == (30, 970)

    def test_a_settlement_in_the_way_of_transactions_waits_longer_each_time_and_is_made(self) -> None:
        world = LedgerWorld()
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.client.next_calls(*[Fate.CONFLICT] * 7)
        world.ledger.settle(grant, Settlement(30))
        assert world.meter.settled_tokens == 30
        assert world.pauses == sorted(world.pauses)
        assert 0.1 < sum(world.pauses) < 1

    def test_a_first_reserve_that_lands_on_a_meter_opened_by_another_call_is_refused(self) -> None:
        world = LedgerWorld()
        world.client.next_calls(Fate.ARRIVES_LATER)
        with pytest.raises(StoreUnavailableError):
            world.ledger.reserve(world.account, world.key, an_ask(100))
        other = world.new_ledger(Counting("other001", "nonce1"))
        other.settle(other.reserve(world.account, world.key, an_ask(100)), Settlement(5))
        assert world.client.deliver_late() == [False]
        assert world.meter.reserved_tokens == 0

    def test_a_settlement_that_cannot_be_made_leaves_the_reservation_to_the_sweep(self) -> None:
        world = LedgerWorld()
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.client.next_calls(Fate.NEVER_ARRIVED, Fate.NEVER_ARRIVED)
        with pytest.raises(StoreUnavailableError):
            world.ledger.settle(grant, Settlement(30))
        assert world.meter.reserved_tokens == 100
        world.seconds += 121
        assert world.ledger.sweep(world.meter, ExpiryPolicy.STRICT) == 1

    def test_an_old_tombstone_is_dropped_by_a_later_settlement(self) -> None:
        world = LedgerWorld()
        world.open_meter()
        world.client.next_calls(Fate.ANSWER_LOST_THEN_RETRIED)
        world.ledger.settle(world.ledger.reserve(world.account, world.key, an_ask(100)), Settlement(30))
        world.seconds += 16 * 60 + 11
        world.ledger.settle(world.ledger.reserve(world.account, world.key, an_ask(100)), Settlement(30))
        assert world.meter.tombstones == {}


def test_two_reservations_whose_ids_collide_are_two_reservations() -> None:
    world = LedgerWorld(ids=Counting("same0001", "nonce1", "same0001", "nonce2"))
    first = world.ledger.reserve(world.account, world.key, an_ask(100))
    second = world.ledger.reserve(world.account, world.key, an_ask(100))
    assert first.reservation.id != second.reservation.id
    assert world.meter.reserved_tokens == 200


class TestIdempotencyKeys:
    """A client's own key for one intended call."""

    ask = an_ask(100, idempotency_key="k1", body_sha256="aa")

    def test_a_second_request_with_the_key_is_refused_and_holds_nothing(self) -> None:
        world = LedgerWorld()
        world.ledger.reserve(world.account, world.key, self.ask)
        with pytest.raises(DuplicateRequestError):
            world.new_ledger(Counting("other001", "nonce9")).reserve(world.account, world.key, self.ask)
        assert world.meter.reserved_tokens == 100

    def test_the_key_with_another_body_is_told_apart(self) -> None:
        world = LedgerWorld()
        world.ledger.reserve(world.account, world.key, self.ask)
        with pytest.raises(IdempotencyMismatchError):
            world.ledger.reserve(world.account, world.key, replace(self.ask, body_sha256="bb"))

    def test_the_key_of_a_call_that_was_given_up_can_be_used_again(self) -> None:
        world = LedgerWorld()
        world.open_meter()
        world.client.next_calls(Fate.APPLIED_NEVER_ANSWERED)
        with pytest.raises(StoreUnavailableError):
            world.ledger.reserve(world.account, world.key, self.ask)
        world.ledger.reserve(world.account, world.key, self.ask)
        assert world.meter.reserved_tokens == 100

    def test_the_key_of_a_call_that_was_released_can_be_used_again(self) -> None:
        world = LedgerWorld()
        world.ledger.release(world.ledger.reserve(world.account, world.key, self.ask))
        world.ledger.reserve(world.account, world.key, self.ask)
        assert world.meter.reserved_tokens == 100

    def test_a_release_that_comes_twice_does_not_free_the_key_of_the_next_call(self) -> None:
        world = LedgerWorld()
        first = world.ledger.reserve(world.account, world.key, self.ask)
        world.ledger.release(first)
        world.ledger.reserve(world.account, world.key, self.ask)
        world.ledger.release(first)
        with pytest.raises(DuplicateRequestError):
            world.ledger.reserve(world.account, world.key, self.ask)

    @pytest.mark.parametrize(("age_seconds", "free"), [(86_399, False), (86_400, False), (86_401, True)])
    def test_a_key_is_remembered_for_a_day(self, age_seconds: int, free: bool) -> None:
        world = LedgerWorld()
        world.ledger.settle(world.ledger.reserve(world.account, world.key, self.ask), Settlement(1))
        world.seconds += age_seconds
        if free:
            world.ledger.reserve(world.account, world.key, self.ask)
            return
        with pytest.raises(DuplicateRequestError):
            world.ledger.reserve(world.account, world.key, self.ask)


class TestPlanChange:
    """Profile and running meter move together; nobody reserves on a plan that is no longer in force."""

    bigger = a_plan(id="bigger", quota_tokens=3_000, quota_requests=50)

    def moved(self, world: LedgerWorld) -> Account:
        profile = world.users.find_profile("main", "u1")
        assert profile is not None
        return Account(profile, self.bigger)

    def test_adds_the_difference_at_once(self) -> None:
        world = LedgerWorld()
        grant = world.ledger.reserve(world.account, world.key, an_ask(100))
        world.change(self.bigger)
        assert world.meter.remaining_tokens == 2_900
        world.ledger.settle(grant, Settlement(30))
        assert (world.meter.remaining_tokens, world.meter.remaining_requests) == (2_970, 49)

    def test_is_seen_by_the_very_next_call_of_a_process_that_remembers_the_old_plan(self) -> None:
        world = LedgerWorld()
        world.open_meter()
        world.change(self.bigger)
        with pytest.raises(StaleAccountError):
            world.ledger.reserve(world.account, world.key, an_ask(2_500))
        assert world.ledger.reserve(self.moved(world), world.key, an_ask(2_500)).output_tokens == 2_490

    def test_before_the_first_call_of_a_period_opens_the_meter_on_the_new_plan_only(self) -> None:
        world = LedgerWorld()
        world.change(self.bigger)
        with pytest.raises(StaleAccountError):
            world.ledger.reserve(world.account, world.key, an_ask(100))
        world.ledger.reserve(self.moved(world), world.key, an_ask(100))
        assert world.meter.quota_tokens == 3_000

    def test_that_reached_only_the_profile_is_carried_to_the_meter_by_the_next_call(self) -> None:
        world = LedgerWorld()
        world.open_meter()
        world.client.table.partitions["TENANT#main#USER#u1"]["PROFILE"]["plan_version"] = {"N": "2"}
        account = Account(replace(world.profile, plan_version=2, plan_id="bigger"), self.bigger)
        world.ledger.reserve(account, world.key, an_ask(2_500))
        assert (world.meter.quota_tokens, world.meter.plan_version) == (3_000, 2)

    def test_downwards_may_leave_less_than_nothing_and_then_only_refuses(self) -> None:
        world = LedgerWorld()
        grant = world.ledger.reserve(world.account, world.key, an_ask(800))
        world.ledger.settle(grant, Settlement(800))
        smaller = a_plan(id="smaller", quota_tokens=500)
        world.change(smaller)
        profile = world.users.find_profile("main", "u1")
        assert profile is not None
        with pytest.raises(QuotaExceededError) as refused:
            world.ledger.reserve(Account(profile, smaller), world.key, an_ask(20))
        assert refused.value.remaining_tokens == 0

    def test_asked_for_with_an_old_account_is_refused(self) -> None:
        world = LedgerWorld()
        world.open_meter()
        world.change(self.bigger)
        with pytest.raises(StaleAccountError):
            world.change(a_plan(id="third"))


# ---- an API key's own budget and rate


def a_key(key_id: str = "key1", **changes: object) -> KeyLimits:
    """A key with a budget of 250 tokens and no rate limit; change what the test is about."""
    return replace(KeyLimits(key_id, f'"{key_id}"', budget_tokens=250), **changes)  # type: ignore[arg-type]


def test_a_call_with_a_budgeted_key_costs_no_more_writes_than_any_other() -> None:
    """Also the key's first call in a period, and a call after its budget was changed."""
    world = LedgerWorld()
    world.open_meter()
    limits = a_key(requests_per_minute=60, burst_requests=10)
    for budget in (250, 400):
        ask = an_ask(100, limits=replace(limits, budget_tokens=budget))
        world.ledger.settle(world.ledger.reserve(world.account, world.key, ask), Settlement(30))
        world.seconds += 120  # the rate's state is idle again, as this process expects
    assert world.client.calls == ["UpdateItem"] * 4


def test_a_call_without_limits_of_its_key_leaves_nothing_about_it_in_the_meter() -> None:
    world = LedgerWorld()
    for limits in (None, a_key(budget_tokens=None)):
        grant = world.ledger.reserve(world.account, world.key, an_ask(100, limits=limits))
        assert len(grant.reservation.encode().split(":")) == 4
    assert (world.meter.key_tokens, world.meter.key_rate_tats_ms) == ({}, {})


def test_a_budget_counts_what_is_charged_and_what_running_calls_hold() -> None:
    world = LedgerWorld()
    first = world.ledger.reserve(world.account, world.key, an_ask(100, limits=a_key()))
    assert world.meter.key_tokens == {"key1": 100}
    world.ledger.settle(first, Settlement(30))
    assert world.meter.key_tokens == {"key1": 30}
    second = world.ledger.reserve(world.account, world.key, an_ask(100, limits=a_key()))
    assert world.meter.key_tokens == {"key1": 130}
    world.ledger.release(second)
    assert world.meter.key_tokens == {"key1": 30}


@pytest.mark.parametrize(("budget", "fits"), [(99, False), (100, True), (101, True)])
def test_a_budget_refuses_what_does_not_fit_it(budget: int, fits: bool) -> None:
    world = LedgerWorld()
    ask = an_ask(100, may_clamp=False, limits=a_key(budget_tokens=budget))
    if fits:
        world.ledger.reserve(world.account, world.key, ask)
        return
    with pytest.raises(QuotaExceededError) as refused:
        world.ledger.reserve(world.account, world.key, ask)
    assert refused.value.error_code == "key_budget_exceeded"
    assert (refused.value.remaining_tokens, refused.value.needed_tokens) == (budget, 100)
    assert refused.value.resets_at == world.key.period.end_at
    assert '"key1"' in refused.value.public_message
    assert world.meter.key_tokens == {}


@pytest.mark.parametrize(("budget", "granted"), [(99, 89), (100, 90), (101, 90)])
def test_the_output_is_clamped_to_what_the_key_has_left(budget: int, granted: int) -> None:
    world = LedgerWorld()
    grant = world.ledger.reserve(world.account, world.key, an_ask(100, limits=a_key(budget_tokens=budget)))
    assert grant.output_tokens == granted
    assert world.meter.key_tokens == {"key1": granted + 10}


@pytest.mark.parametrize(("quota", "budget", "granted"), [(60, 80, 50), (80, 60, 50), (60, 60, 50)])
def test_the_output_is_clamped_to_the_smaller_of_quota_and_budget(quota: int, budget: int, granted: int) -> None:
    world = LedgerWorld(a_plan(quota_tokens=quota))
    grant = world.ledger.reserve(world.account, world.key, an_ask(100, limits=a_key(budget_tokens=budget)))
    assert grant.output_tokens == granted


def test_one_keys_budget_is_nothing_to_another_key_or_to_none() -> None:
    world = LedgerWorld()
    world.ledger.reserve(world.account, world.key, an_ask(250, limits=a_key()))
    with pytest.raises(QuotaExceededError):
        world.ledger.reserve(world.account, world.key, an_ask(100, limits=a_key()))
    world.ledger.reserve(world.account, world.key, an_ask(100, limits=a_key("key2")))
    world.ledger.reserve(world.account, world.key, an_ask(100))
    assert world.meter.key_tokens == {"key1": 250, "key2": 100}


@pytest.mark.parametrize(("budget", "room"), [(100, 0), (130, 0), (230, 100)])
def test_a_changed_budget_holds_from_the_next_call_on_and_forgets_no_use(budget: int, room: int) -> None:
    """130 tokens are used; whether the new budget is above or below, only what it leaves can be reserved."""
    world = LedgerWorld()
    world.ledger.settle(
        world.ledger.reserve(world.account, world.key, an_ask(200, limits=a_key())), Settlement(used_tokens=130)
    )
    limits = a_key(budget_tokens=budget)
    if not room:
        with pytest.raises(QuotaExceededError, match="130 of"):
            world.ledger.reserve(world.account, world.key, an_ask(30, limits=limits))
        return
    grant = world.ledger.reserve(world.account, world.key, an_ask(500, limits=limits))
    assert grant.reservation.amount_tokens == room


@pytest.mark.parametrize(("extra", "fits"), [(149, True), (150, True), (151, False)])
def test_a_top_up_stays_within_the_keys_budget(extra: int, fits: bool) -> None:
    world = LedgerWorld()
    grant = world.ledger.reserve(world.account, world.key, an_ask(100, limits=a_key()))
    if fits:
        bigger = world.ledger.top_up(grant, extra)
        assert world.meter.key_tokens == {"key1": 100 + extra}
        world.ledger.settle(bigger, Settlement(7))
        assert world.meter.key_tokens == {"key1": 7}
        return
    with pytest.raises(QuotaExceededError) as refused:
        world.ledger.top_up(grant, extra)
    assert refused.value.error_code == "key_budget_exceeded"
    assert world.meter.key_tokens == {"key1": 100}


def test_use_beyond_the_reservation_is_charged_as_far_as_the_budget_goes() -> None:
    world = LedgerWorld()
    grant = world.ledger.reserve(world.account, world.key, an_ask(100, limits=a_key()))
    settled = world.ledger.settle(grant, Settlement(300))
    assert (settled.charged_tokens, settled.written_off_tokens) == (250, 50)
    assert (world.meter.key_tokens, world.meter.settled_tokens) == ({"key1": 250}, 250)


@pytest.mark.parametrize(("policy", "counted"), [(ExpiryPolicy.STRICT, 100), (ExpiryPolicy.VOID, 0)])
def test_a_sweep_and_the_late_owner_move_the_budget_as_they_move_the_quota(policy: ExpiryPolicy, counted: int) -> None:
    world = LedgerWorld(a_plan(expiry_policy=policy))
    grant = world.ledger.reserve(world.account, world.key, an_ask(100, limits=a_key()))
    world.seconds += 1_000
    assert world.ledger.sweep(world.meter, policy) == 1
    assert world.meter.key_tokens == {"key1": counted}
    assert world.ledger.settle(grant, Settlement(40)).late
    assert (world.meter.key_tokens, world.meter.settled_tokens) == ({"key1": 40}, 40)


def test_a_late_owner_is_charged_no_more_than_the_budget_has_left() -> None:
    world = LedgerWorld(a_plan(expiry_policy=ExpiryPolicy.VOID))
    late = world.ledger.reserve(world.account, world.key, an_ask(200, limits=a_key()))
    world.seconds += 1_000
    world.ledger.sweep(world.meter, ExpiryPolicy.VOID)
    deadline = world.seconds + 60
    world.ledger.reserve(world.account, world.key, an_ask(150, limits=a_key(), deadline_at_seconds=deadline))
    settled = world.ledger.settle(late, Settlement(180))
    assert (settled.charged_tokens, settled.written_off_tokens) == (100, 80)
    assert world.meter.key_tokens == {"key1": 250}


@pytest.mark.parametrize("fate", [Fate.ANSWER_LOST_THEN_RETRIED, Fate.CONFLICT])
def test_a_misfortune_at_the_reservation_counts_once(fate: Fate) -> None:
    world = LedgerWorld()
    world.open_meter()
    world.client.next_calls(fate)
    grant = world.ledger.reserve(world.account, world.key, an_ask(100, limits=a_key()))
    assert world.meter.key_tokens == {"key1": 100}
    world.ledger.settle(grant, Settlement(1))
    assert world.meter.key_tokens == {"key1": 1}


def test_a_reservation_given_up_frees_the_budget() -> None:
    world = LedgerWorld()
    world.open_meter()
    world.client.next_calls(Fate.APPLIED_NEVER_ANSWERED)
    with pytest.raises(StoreUnavailableError):
        world.ledger.reserve(world.account, world.key, an_ask(100, limits=a_key()))
    assert world.meter.key_tokens == {"key1": 0}


def test_an_idempotent_call_counts_against_the_budget_too() -> None:
    world = LedgerWorld()
    ask = an_ask(100, limits=a_key(), idempotency_key="k", body_sha256="0" * 64)
    world.ledger.reserve(world.account, world.key, ask)
    with pytest.raises(DuplicateRequestError):
        world.ledger.reserve(world.account, world.key, ask)
    assert world.meter.key_tokens == {"key1": 100}


def test_a_dead_calls_hold_on_the_budget_ends_with_the_next_refusal() -> None:
    world = LedgerWorld(a_plan(expiry_policy=ExpiryPolicy.VOID))
    world.ledger.reserve(world.account, world.key, an_ask(250, limits=a_key()))
    world.seconds += 1_000
    ask = an_ask(250, limits=a_key(), deadline_at_seconds=world.seconds + 60)
    assert world.ledger.reserve(world.account, world.key, ask).output_tokens == 240


@pytest.mark.parametrize(("wait_ms", "fits"), [(9_999, False), (10_000, True), (10_001, True)])
def test_a_keys_own_rate_limit_is_exact(wait_ms: int, fits: bool) -> None:
    """6 a minute, two at once."""
    world = LedgerWorld()
    limits = a_key(budget_tokens=None, requests_per_minute=6, burst_requests=2)
    for _ in range(2):
        world.ledger.reserve(world.account, world.key, an_ask(10, limits=limits))
    world.seconds += wait_ms / 1000
    others = world.new_ledger(Counting("other001", "nonce1"))  # from memory or from the table, the answer is the same
    for ledger in (world.ledger, others):
        if fits:
            ledger.reserve(world.account, world.key, an_ask(10, limits=limits))
            break
        with pytest.raises(RateLimitedError) as refused:
            ledger.reserve(world.account, world.key, an_ask(10, limits=limits))
        assert (refused.value.error_code, refused.value.retry_after_seconds) == ("key_rate_limited", 1)
    world.ledger.reserve(world.account, world.key, an_ask(10))


def test_a_key_refused_for_its_rate_is_refused_from_memory_and_the_others_are_not() -> None:
    world = LedgerWorld()
    world.open_meter()
    limits = a_key(budget_tokens=None, requests_per_minute=1, burst_requests=1)
    world.ledger.reserve(world.account, world.key, an_ask(10, limits=limits))
    world.client.calls.clear()
    for _ in range(100):
        with pytest.raises(RateLimitedError):
            world.ledger.reserve(world.account, world.key, an_ask(10, limits=limits))
    assert world.client.calls == []
    world.ledger.reserve(world.account, world.key, an_ask(10, limits=a_key("key2")))


def test_an_exhausted_budget_is_told_before_a_full_minute() -> None:
    """Waiting for the minute would be in vain."""
    world = LedgerWorld()
    limits = a_key(requests_per_minute=1, burst_requests=1)
    world.ledger.reserve(world.account, world.key, an_ask(250, limits=limits))
    world.seconds += 2  # past what the process refuses from memory
    with pytest.raises(QuotaExceededError):
        world.ledger.reserve(world.account, world.key, an_ask(100, limits=limits))


@pytest.mark.parametrize("text", ["100:1800000000:abcdef:10", "100:1800000000:abcdef:10:0001AbCdEfGh"])
def test_a_reservations_stored_text_is_read_with_and_without_a_key(text: str) -> None:
    assert Reservation.decode("r1", text).encode() == text
