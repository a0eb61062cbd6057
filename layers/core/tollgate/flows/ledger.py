"""Reserve, top up, settle, release, sweep: the steps between the ledger's single conditional writes.

The promise: `settled + reserved <= quota + overage cap` for every meter, at any concurrency, whatever is lost, late or
delivered twice, and every reservation ends exactly once. It rests on four facts, each of them one condition in
`tollgate.storage.meters`: only `reserve` and `top_up` lower what remains, and both refuse below the cap; the stored
value of a reservation is unique, so settlement and sweep exclude each other; a tombstone keeps a late duplicate from
reviving what has ended; a sweep leaves a record by which a late owner corrects its charge once. Time matters only for
when something is swept, never for whether the sums are right. `tests/simulation` drives this very module.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from math import ceil
from typing import TYPE_CHECKING, Final, NoReturn

from tollgate.domain.caches import AgingCache
from tollgate.domain.errors import (
    DuplicateRequestError,
    IdempotencyMismatchError,
    QuotaExceededError,
    RateLimitedError,
    StaleAccountError,
    StoreUnavailableError,
    SupersededError,
    TollgateError,
)
from tollgate.domain.ledger import (
    EXPIRY_MARGIN_SECONDS,
    MAX_ROUNDS,
    MIN_OUTPUT_TOKENS,
    SWEEP_BATCH,
    Ask,
    Grant,
    Meter,
    MeterKey,
    Reservation,
    Settled,
    Settlement,
    charge_for_expiry,
)
from tollgate.domain.periods import period_at
from tollgate.domain.plans import ExpiryPolicy, Plan
from tollgate.domain.principals import Account, KeyLimits
from tollgate.domain.sources import Clock, IdSource
from tollgate.domain.subscriptions import Entitlements
from tollgate.domain.tokens import TokenCounts
from tollgate.storage.meters import Booking, Changing, KeyStep, Meters, Opening, RateStep, RunningMeter, Written

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

CONFLICT_PAUSE_SECONDS: Final = 0.005
"""First wait while somebody's transaction is under way on the meter; doubled each round, 0.6 s in all at most."""
SETTLE_TRIES: Final = 2
"""Whole SDK calls (three attempts each) spent on a settlement before it is left to the sweep."""
RATE_MEMORY_SECONDS: Final = 1
"""How long this process refuses from memory: long enough that a flood costs no writes, too short to outlive a plan
change anyone would notice."""
RATE_MEMORY_SIZE: Final = 4096
POOL_MEMORY_SECONDS: Final = 60
"""How long a user for whom the pool had no room is refused from memory. Nothing ever returns to a pool; only the
operator can make it larger."""


class Ledger:
    """Every step on meters. One instance a process; holds no truth, only a memory of recent rate-limit states."""

    def __init__(self, meters: Meters, clock: Clock, ids: IdSource) -> None:
        self._meters = meters
        self._clock = clock
        self._ids = ids
        self._rates: dict[tuple[MeterKey, str], tuple[int, float]] = {}
        """Of a user (empty text) or one of its keys: the theoretical arrival time last seen, and when."""
        self._caps: dict[MeterKey, tuple[int, int]] = {}
        """Of meters with another overage cap than the account's plan, because overage was banked: plan version, cap."""
        self._outside_pool: AgingCache[tuple[MeterKey, str], bool] = AgingCache(
            max_entries=RATE_MEMORY_SIZE, max_age_seconds=POOL_MEMORY_SECONDS
        )

    def reserve(self, account: Account, key: MeterKey, ask: Ask) -> Grant:
        """Hold the tokens, the request, the stream slot and the rate step of one call, in one write.

        Raises QuotaExceededError, RateLimitedError, StaleAccountError (load the account again, at once),
        DuplicateRequestError, IdempotencyMismatchError, StoreUnavailableError. After any of them nothing stays held.
        """
        if self._outside_pool.get((key, account.plan.id), self._clock.now_seconds()):
            _refuse_pool(account.plan, key, ask)
        self._refuse_from_memory(account.plan, key, ask.limits)
        attempt = _Attempt(ask, self._new_reservation(ask), self._cap_of(account, key))
        try:
            return self._reserve(account, key, attempt)
        except (TollgateError, StaleAccountError):
            if attempt.sent_twice:
                self._give_up(account, key, attempt)
            raise

    def top_up(self, grant: Grant, extra_tokens: int) -> Grant:
        """Enlarge an open reservation by `extra_tokens`.

        Raises QuotaExceededError when there is no room, StoreUnavailableError when nobody knows. In both cases the old
        grant is still good: settlement finds out by itself if the top-up landed after all.
        """
        cap = grant.overage_cap_tokens
        current = grant.reservation
        for round_number in range(MAX_ROUNDS):
            bigger = replace(current, amount_tokens=grant.reservation.amount_tokens + extra_tokens)
            written = self._meters.top_up(grant.key, current, bigger, cap, grant.budget_tokens)
            if written.conflict:
                self._wait_for_others(round_number)
                continue
            meter = written.meter
            stored = meter.reservations.get(current.id) if meter else None
            if meter is None or stored is None or stored.nonce != current.nonce:
                break  # swept, or the meter is gone: there is nothing left to enlarge
            if stored.amount_tokens >= bigger.amount_tokens:
                return replace(grant, reservation=stored, overage_cap_tokens=meter.overage_cap_tokens, meter=meter)
            if stored == current and cap == meter.overage_cap_tokens and _room(meter, grant.limits) < extra_tokens:
                break
            current, cap = stored, meter.overage_cap_tokens
        else:
            raise StoreUnavailableError("The usage store is busy.")
        if (
            meter is not None
            and grant.limits is not None
            and _room(meter, grant.limits) < extra_tokens <= meter.room_tokens
        ):
            _refuse_budget(grant.limits, meter, extra_tokens)
        raise QuotaExceededError(
            "This answer needs more of the usage period's quota than is left."
            f" It renews on {grant.key.period.end_at:%d %b %Y at %H:%M} UTC.",
            remaining_tokens=grant.meter.remaining_tokens,
            needed_tokens=extra_tokens,
            resets_at=grant.key.period.end_at,
        )

    def settle(self, grant: Grant, settlement: Settlement) -> Settled:
        """Turn the reservation into what was really used; safe to repeat, exact however often and late it lands.

        Use beyond the reservation is charged as far as the quota has room and written off beyond. Raises
        StoreUnavailableError when the table does not answer: the sweep then ends the reservation, visibly.
        """
        return self._end(grant, settlement, returns_request=False)

    def release(self, grant: Grant) -> Settled:
        """Give everything back, request and idempotency key too: nothing was or will be generated for this call."""
        settled = self._end(grant, Settlement(used_tokens=0), returns_request=True)
        if grant.idempotency_key is not None:
            self._meters.forget_marker(grant.key, grant.idempotency_key, grant.reservation)
        return settled

    def sweep(self, meter: Meter, policy: ExpiryPolicy, *, most: int | None = None) -> int:
        """End the reservations whose owners are dead for sure, oldest first; how many this call ended.

        Each leaves an expired-reservation record, which is where what was charged and written off can be seen.
        """
        now = self._clock.now_seconds()
        ended = 0
        for reservation in meter.expired(now)[:most]:
            charged = charge_for_expiry(policy, reservation)
            booking = Booking(
                charged_tokens=charged,
                written_off_tokens=reservation.amount_tokens - charged,
                counts=TokenCounts(),
                cost_picousd=0,
                returns_request=False,  # it may have been answered, and its owner may yet come back
            )
            if self._meters.expire(meter.key, reservation, booking, int(now)):
                ended += 1
        return ended

    def change_entitlements(
        self,
        account: Account,
        entitlements: Entitlements,
        plan: Plan,
        *,
        also: Sequence[TransactWriteItemTypeDef] = (),
    ) -> Account:
        """Put the user on these entitlements, in profile and running meter at once; streams keep what they hold.

        `plan`: the catalog's, of `entitlements.plan_id`. `also`: the caller's own writes, in the same transaction; they
        are all that is written when the entitlements are those that the user has. Returns the account as it is then.
        Raises StaleAccountError (the profile moved) and SupersededError (`also` was refused by its own condition): read
        again and decide again; StoreUnavailableError: nobody knows whether it was written.
        """
        return self._change(account, Account.of(account.profile.entitled_to(entitlements), plan), also)

    def choose_overage(self, account: Account, cap_cents: int | None) -> Account:
        """The user's own limit to overage in one usage period, by the same rules; 0: none, None: as the plan says."""
        profile = replace(account.profile, overage_cap_cents=cap_cents)
        return self._change(account, Account.of(profile, account.listed_plan), ())

    def _change(self, account: Account, wanted: Account, also: Sequence[TransactWriteItemTypeDef]) -> Account:
        seen = account.profile
        moves = wanted.profile != seen
        if not (moves or also):
            return account
        if moves:
            wanted = replace(wanted, profile=replace(wanted.profile, plan_version=seen.plan_version + 1))
        for round_number in range(MAX_ROUNDS):
            done = self._write_change(account, wanted, also) if moves else self._meters.write_unchanged(seen, also)
            match done:
                case Changing.DONE:
                    return wanted
                case Changing.STALE_ACCOUNT:
                    raise StaleAccountError
                case Changing.SUPERSEDED:
                    raise SupersededError
            self._wait_for_others(round_number)
        raise StoreUnavailableError("The usage store is busy.")

    def _write_change(self, account: Account, wanted: Account, also: Sequence[TransactWriteItemTypeDef]) -> Changing:
        """One round: the meters as they are now, and the transaction that fits them."""
        now = datetime.fromtimestamp(self._clock.now_seconds(), UTC)
        enters, leaves = account_key(wanted, now), account_key(account, now)
        return self._meters.change_entitlements(
            account.profile,
            wanted,
            enters=self._running(enters),
            # By what is stored as its name: months from two anchors may begin together and end a day apart.
            leaves=None if leaves.period.id == enters.period.id else self._running(leaves),
            also=also,
        )

    def _running(self, key: MeterKey) -> RunningMeter:
        return RunningMeter(key, self._meters.find(key))

    # ---- admission

    def _reserve(self, account: Account, key: MeterKey, attempt: _Attempt) -> Grant:
        for round_number in range(MAX_ROUNDS):
            written = self._write_reservation(account, key, attempt)
            attempt.sent_twice |= written.sent_twice
            if written.meter is not None:
                self._remember(account, key, written.meter, attempt.ask.limits)
            if written.applied and written.meter is not None:
                return attempt.grant(key, written.meter)
            if written.conflict:
                self._wait_for_others(round_number)
                continue
            if written.meter is None:
                self._open(account, key, attempt.ask, round_number)
                continue
            mine = written.meter.reservations.get(attempt.reservation.id)
            if mine is not None and mine.nonce == attempt.reservation.nonce:
                attempt.landed(mine)  # an earlier request of this very call was applied, its answer was lost
                return attempt.grant(key, written.meter)
            if mine is not None or attempt.reservation.id in written.meter.tombstones:
                attempt.reservation = self._new_reservation(attempt.ask)  # somebody else's id
                continue
            self._after_refusal(account, key, written.meter, attempt, round_number)
        raise RateLimitedError(
            "Too many calls of this user at the same moment. Try again.", retry_after_seconds=1, error_code="contention"
        )

    def _open(self, account: Account, key: MeterKey, ask: Ask, round_number: int) -> None:
        """The first call of a usage period: make its meter, if the plan's pool has room for one more user."""
        match self._meters.create(key, account.plan, account.profile.plan_version, listed=account.listed_plan):
            case Opening.STALE_PLAN:
                raise StaleAccountError
            case Opening.POOL_USED_UP:
                self._outside_pool.put((key, account.plan.id), True, self._clock.now_seconds())
                _refuse_pool(account.plan, key, ask)
            case Opening.CONFLICT:
                self._wait_for_others(round_number)

    def _write_reservation(self, account: Account, key: MeterKey, attempt: _Attempt) -> Written:
        ask = attempt.ask
        now = self._clock.now_seconds()
        rate = self._rate_step(account.plan, key, now)
        key_step = self._key_step(ask.limits, key, now)
        attempt.rate, attempt.key_rate = rate, None if key_step is None else key_step.rate
        try:
            if ask.idempotency_key is None:
                return self._meters.reserve(
                    key,
                    attempt.reservation,
                    plan=account.plan,
                    plan_version=account.profile.plan_version,
                    overage_cap_tokens=attempt.overage_cap_tokens,
                    rate=rate,
                    key_step=key_step,
                )
            written, marker = self._meters.reserve_once(
                key,
                attempt.reservation,
                plan=account.plan,
                plan_version=account.profile.plan_version,
                overage_cap_tokens=attempt.overage_cap_tokens,
                rate=rate,
                idempotency_key=ask.idempotency_key,
                body_sha256=ask.body_sha256 or "",
                now_seconds=int(now),
                key_step=key_step,
            )
        except StoreUnavailableError:
            attempt.sent_twice = True
            raise
        attempt.sent_twice |= written.sent_twice  # before any refusal: the marker may go, and a late duplicate land
        if marker is not None and marker.reservation_id != attempt.reservation.id:
            if marker.body_sha256 != (ask.body_sha256 or ""):
                raise IdempotencyMismatchError("This idempotency key was used before with another request.")
            raise DuplicateRequestError("A request with this idempotency key was already accepted.")
        return written

    def _after_refusal(
        self, account: Account, key: MeterKey, meter: Meter, attempt: _Attempt, round_number: int
    ) -> None:
        """Find out why, from the item that refused; either mend the attempt for another round, or raise."""
        version = account.profile.plan_version
        if meter.plan_version > version:
            raise StaleAccountError
        if meter.plan_version < version:
            self._carry(account, key, meter, round_number)
            return
        if meter.overage_cap_tokens != attempt.overage_cap_tokens:
            attempt.overage_cap_tokens = meter.overage_cap_tokens
            return
        if meter.expired(self._clock.now_seconds()):
            self.sweep(meter, account.plan.expiry_policy, most=SWEEP_BATCH)
            return
        if meter.open_count >= account.plan.max_open_reservations:
            raise RateLimitedError(
                f"{account.plan.max_open_reservations} calls of this user are running, as many as the plan allows.",
                retry_after_seconds=2,
                error_code="too_many_streams",
            )
        limits = attempt.ask.limits
        if limits is not None:
            _fit_budget(limits, meter, attempt)
            _refuse_key_rate(attempt.key_rate, meter.key_rate_tats_ms.get(limits.id, 0), limits)
        _refuse_rate(attempt.rate, meter.rate_tat_ms)
        self._fit(account.plan, meter, attempt)

    def _carry(self, account: Account, key: MeterKey, meter: Meter, round_number: int) -> None:
        """The meter has not heard of the account's plan yet, as when it was opened by a clock that was ahead."""
        match self._meters.carry_plan(key, meter, account):
            case Changing.STALE_ACCOUNT:
                raise StaleAccountError
            case Changing.MOVED:
                self._wait_for_others(round_number)

    def _fit(self, plan: Plan, meter: Meter, attempt: _Attempt) -> None:
        """Clamp the attempt to the room there is, or raise QuotaExceededError."""
        ask = attempt.ask
        if meter.remaining_requests < 1:
            _refuse_quota(plan, meter, ask, f"all {meter.quota_requests} requests are used")
        if meter.room_tokens >= ask.amount_tokens:
            return  # room came back meanwhile
        if not attempt.clamp_to(meter.room_tokens):
            _refuse_quota(
                plan,
                meter,
                ask,
                f"{meter.settled_tokens:,} of {meter.quota_tokens:,} tokens are used,"
                f" {meter.reserved_tokens:,} reserved by running calls, this call needs {ask.amount_tokens:,}",
            )

    def _new_reservation(self, ask: Ask) -> Reservation:
        return Reservation(
            id=self._ids.new_id(8),
            amount_tokens=ask.amount_tokens,
            expires_at_seconds=ceil(ask.deadline_at_seconds) + EXPIRY_MARGIN_SECONDS,
            nonce=self._ids.new_id(6),
            prompt_bound_tokens=ask.prompt_bound_tokens,
            key_id="" if ask.limits is None or ask.limits.budget_tokens is None else ask.limits.id,
        )

    def _give_up(self, account: Account, key: MeterKey, attempt: _Attempt) -> None:
        """A reserve was sent whose fate is unknown, and nobody will use it: end it, or keep it from landing late."""
        reservation, now = attempt.reservation, int(self._clock.now_seconds())
        nothing = Booking(0, 0, TokenCounts(), 0, returns_request=True)
        with suppress(StoreUnavailableError):
            for _ in range(3):
                written = self._meters.settle(key, reservation, nothing, tombstone_at_seconds=now)
                if written.applied:
                    break
                stored = written.meter.reservations.get(reservation.id) if written.meter else None
                if stored is not None and stored.nonce == reservation.nonce:
                    reservation = stored  # an earlier round, before the clamp, has landed
                    continue
                if written.meter is None and not written.conflict:
                    # What is under way may land on a meter that another call opens: open it, to forbid it there.
                    self._meters.create(key, account.plan, account.profile.plan_version, listed=account.listed_plan)
                if self._meters.forbid(key, reservation.id, now).applied:
                    break
        if attempt.ask.idempotency_key is not None:
            with suppress(StoreUnavailableError):
                self._meters.forget_marker(key, attempt.ask.idempotency_key, reservation)

    # ---- rate limit (GCRA: security-threats notes and https://brandur.org/rate-limiting)

    def _rate_step(self, plan: Plan, key: MeterKey, now_seconds: float) -> RateStep | None:
        if plan.requests_per_minute is None:
            return None
        last_tat_ms, _ = self._rates.get((key, ""), (0, 0.0))
        return _gcra_step(plan.requests_per_minute, plan.burst_requests, now_seconds, last_tat_ms)

    def _key_step(self, limits: KeyLimits | None, key: MeterKey, now_seconds: float) -> KeyStep | None:
        if limits is None or limits.budget_tokens is limits.requests_per_minute is None:
            return None
        rate = None
        if limits.requests_per_minute is not None:
            last_tat_ms, _ = self._rates.get((key, limits.id), (0, 0.0))
            rate = _gcra_step(limits.requests_per_minute, limits.burst_requests, now_seconds, last_tat_ms)
        return KeyStep(limits.id, limits.budget_tokens, rate)

    def _cap_of(self, account: Account, key: MeterKey) -> int:
        """The overage cap that the meter most probably has: a wrong one costs a write, not more."""
        version, cap_tokens = self._caps.get(key, (0, 0))
        return cap_tokens if version == account.profile.plan_version else account.plan.overage_cap_tokens

    def _remember(self, account: Account, key: MeterKey, meter: Meter, limits: KeyLimits | None) -> None:
        self._remember_rate(key, meter, limits)
        if meter.overage_cap_tokens == account.plan.overage_cap_tokens:
            self._caps.pop(key, None)
            return
        if len(self._caps) >= RATE_MEMORY_SIZE:
            self._caps.clear()
        self._caps[key] = meter.plan_version, meter.overage_cap_tokens

    def _remember_rate(self, key: MeterKey, meter: Meter, limits: KeyLimits | None) -> None:
        if len(self._rates) >= RATE_MEMORY_SIZE:
            self._rates.clear()
        now = self._clock.now_seconds()
        self._rates[key, ""] = (meter.rate_tat_ms, now)
        if limits is not None and limits.requests_per_minute is not None:
            self._rates[key, limits.id] = (meter.key_rate_tats_ms.get(limits.id, 0), now)

    def _refuse_from_memory(self, plan: Plan, key: MeterKey, limits: KeyLimits | None) -> None:
        """The stored time only moves on, so a refusal seen a moment ago still holds without a write."""
        now = self._clock.now_seconds()
        step = self._key_step(limits, key, now)
        if limits is not None and step is not None:
            last_tat_ms, seen_at = self._rates.get((key, limits.id), (0, 0.0))
            if now - seen_at <= RATE_MEMORY_SECONDS:
                _refuse_key_rate(step.rate, last_tat_ms, limits)
        last_tat_ms, seen_at = self._rates.get((key, ""), (0, 0.0))
        if now - seen_at <= RATE_MEMORY_SECONDS:
            _refuse_rate(self._rate_step(plan, key, now), last_tat_ms)

    # ---- the end

    def _end(self, grant: Grant, settlement: Settlement, *, returns_request: bool) -> Settled:
        for tries_left in reversed(range(SETTLE_TRIES)):
            try:
                if settlement.used_tokens > grant.reservation.amount_tokens:
                    grant = self._stretch(grant, settlement.used_tokens)
                return self._end_once(grant, settlement, returns_request=returns_request)
            except StoreUnavailableError:
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    def _end_once(self, grant: Grant, settlement: Settlement, *, returns_request: bool) -> Settled:
        now = self._clock.now_seconds()
        reservation = grant.reservation
        for round_number in range(MAX_ROUNDS):
            booking = _booking(settlement, reservation.amount_tokens, returns_request=returns_request)
            written = self._meters.settle(
                grant.key,
                reservation,
                booking,
                tombstone_at_seconds=int(now) if grant.sent_twice else None,
                drop_tombstones=grant.meter.old_tombstones(now),
            )
            if written.applied:
                return Settled(booking.charged_tokens, booking.written_off_tokens, written.meter)
            if written.conflict:
                self._wait_for_others(round_number)
                continue
            stored = written.meter.reservations.get(reservation.id) if written.meter else None
            if stored is None or stored.nonce != reservation.nonce:
                return self._end_late(grant, reservation, settlement, returns_request=returns_request)
            reservation = stored  # a top-up that was never answered did land
        raise StoreUnavailableError("The usage store is busy.")

    def _stretch(self, grant: Grant, used_tokens: int) -> Grant:
        """Make the reservation as large as the use, or as large as the room allows."""
        wanted = used_tokens - grant.reservation.amount_tokens
        with suppress(QuotaExceededError):
            return self.top_up(grant, wanted)
        meter = self._meters.find(grant.key)
        room = min(wanted, _room(meter, grant.limits)) if meter else 0
        if meter is not None and room > 0:
            with suppress(QuotaExceededError):
                return self.top_up(replace(grant, overage_cap_tokens=meter.overage_cap_tokens), room)
        return grant

    def _end_late(
        self, grant: Grant, reservation: Reservation, settlement: Settlement, *, returns_request: bool
    ) -> Settled:
        """The reservation is gone: our own earlier attempt ended it, or the sweep did and the charge is corrected."""
        key, budget = grant.key, grant.budget_tokens
        for round_number in range(MAX_ROUNDS):
            expired = self._meters.find_expired(key, reservation)
            if expired is None:
                booking = _booking(settlement, reservation.amount_tokens, returns_request=returns_request)
                return Settled(booking.charged_tokens, booking.written_off_tokens, None)
            if expired.corrected:
                return Settled(expired.charged_tokens, expired.written_off_tokens, None, late=True)
            meter = self._meters.find(key)
            if meter is None:
                break
            most = expired.charged_tokens + max(0, _room(meter, grant.limits))
            booking = _booking(settlement, min(most, expired.amount_tokens), returns_request=returns_request)
            if self._meters.correct(key, reservation, expired, booking, meter.overage_cap_tokens, budget):
                return Settled(booking.charged_tokens, booking.written_off_tokens, None, late=True)
            self._wait_for_others(round_number)
        raise StoreUnavailableError("The usage store is busy.")

    def _wait_for_others(self, round_number: int) -> None:
        """Transactions on one item exclude each other for milliseconds; a random share keeps two of us out of step."""
        share = 0.5 + self._ids.random_bytes(1)[0] / 510
        self._clock.pause(CONFLICT_PAUSE_SECONDS * 2**round_number * share)


def account_key(account: Account, instant: datetime) -> MeterKey:
    """The meter of the account's usage period that contains the instant."""
    period = period_at(account.plan.period_kind, account.profile.anchor_at, instant)
    return MeterKey(account.tenant_id, account.user_id, period)


class _Attempt:
    """One admission under way: what is asked for shrinks when clamped, what is known grows with each refusal."""

    def __init__(self, ask: Ask, reservation: Reservation, overage_cap_tokens: int) -> None:
        self.ask = ask
        self.asked_output_tokens = ask.output_tokens
        self.reservation = reservation
        self.overage_cap_tokens = overage_cap_tokens
        self.rate: RateStep | None = None
        self.key_rate: RateStep | None = None
        self.sent_twice = False

    def clamp_to(self, room_tokens: int) -> bool:
        """Ask for less output, so that the amount fits the room; False when that is not wanted, or too little."""
        ask = self.ask
        affordable = ask.affordable_output(room_tokens - ask.prompt_bound_tokens)
        if not ask.may_clamp or affordable < max(1, min(MIN_OUTPUT_TOKENS, ask.output_tokens)):
            return False
        self.ask = replace(ask, output_tokens=min(affordable, ask.output_tokens))
        self.reservation = replace(self.reservation, amount_tokens=self.ask.amount_tokens)
        return True

    def landed(self, stored: Reservation) -> None:
        """What stands in the table is ours: go on with its amount, which may be that of an earlier round."""
        output_tokens = self.ask.affordable_output(stored.amount_tokens - stored.prompt_bound_tokens)
        self.ask = replace(self.ask, output_tokens=min(self.asked_output_tokens, output_tokens))
        self.reservation = stored

    def grant(self, key: MeterKey, meter: Meter) -> Grant:
        return Grant(
            key=key,
            reservation=self.reservation,
            output_tokens=self.ask.output_tokens,
            overage_cap_tokens=self.overage_cap_tokens,
            meter=meter,
            sent_twice=self.sent_twice,
            idempotency_key=self.ask.idempotency_key,
            limits=self.ask.limits,
        )


def _gcra_step(requests_per_minute: int, burst_requests: int, now_seconds: float, last_tat_ms: int) -> RateStep:
    now_ms = int(now_seconds * 1000)
    interval_ms = -(-60_000 // requests_per_minute)
    return RateStep(now_ms, interval_ms, (burst_requests - 1) * interval_ms, idle=last_tat_ms <= now_ms)


def _refuse_rate(rate: RateStep | None, tat_ms: int) -> None:
    if rate is not None and tat_ms > rate.now_ms + rate.tolerance_ms:
        raise RateLimitedError(
            "Too many requests in a short time. Slow down.", retry_after_seconds=_wait_seconds(rate, tat_ms)
        )


def _refuse_key_rate(rate: RateStep | None, tat_ms: int, limits: KeyLimits) -> None:
    if rate is not None and tat_ms > rate.now_ms + rate.tolerance_ms:
        raise RateLimitedError(
            f"The API key {limits.label} allows {limits.requests_per_minute} requests a minute. Slow down.",
            retry_after_seconds=_wait_seconds(rate, tat_ms),
            error_code="key_rate_limited",
        )


def _wait_seconds(rate: RateStep, tat_ms: int) -> int:
    return min(60, -(-(tat_ms - rate.tolerance_ms - rate.now_ms) // 1000))


def _room(meter: Meter, limits: KeyLimits | None) -> int:
    """What the user's quota and the key's budget both have left."""
    if limits is None or limits.budget_tokens is None:
        return meter.room_tokens
    return min(meter.room_tokens, meter.key_room_tokens(limits.id, limits.budget_tokens))


def _fit_budget(limits: KeyLimits, meter: Meter, attempt: _Attempt) -> None:
    """Clamp the attempt to what the key has left, or raise QuotaExceededError."""
    if limits.budget_tokens is None:
        return
    room = meter.key_room_tokens(limits.id, limits.budget_tokens)
    if room < attempt.ask.amount_tokens and not attempt.clamp_to(room):
        _refuse_budget(limits, meter, attempt.ask.amount_tokens)


def _refuse_budget(limits: KeyLimits, meter: Meter, needed_tokens: int) -> NoReturn:
    budget, period = limits.budget_tokens or 0, meter.key.period
    raise QuotaExceededError(
        f"The budget of the API key {limits.label} has no room for this call:"
        f" {meter.key_tokens.get(limits.id, 0):,} of {budget:,} tokens are used or held by its running calls,"
        f" this call needs {needed_tokens:,} more. It renews on {period.end_at:%d %b %Y at %H:%M} UTC.",
        remaining_tokens=max(0, meter.key_room_tokens(limits.id, budget)),
        needed_tokens=needed_tokens,
        resets_at=period.end_at,
        error_code="key_budget_exceeded",
        meter=meter,
    )


def _booking(settlement: Settlement, most_tokens: int, *, returns_request: bool) -> Booking:
    charged = min(settlement.used_tokens, most_tokens)
    return Booking(
        charged_tokens=charged,
        written_off_tokens=settlement.written_off_tokens + settlement.used_tokens - charged,
        counts=settlement.counts,
        cost_picousd=settlement.cost_picousd,
        returns_request=returns_request,
    )


def _refuse_pool(plan: Plan, key: MeterKey, ask: Ask) -> NoReturn:
    raise QuotaExceededError(
        f"All places that the {plan.name} plan has for this usage period are taken."
        f" New ones open on {key.period.end_at:%d %b %Y at %H:%M} UTC. {plan.upgrade_message}".rstrip(),
        remaining_tokens=0,
        needed_tokens=ask.amount_tokens,
        resets_at=key.period.end_at,
        error_code="free_pool_exhausted",
    )


def _refuse_quota(plan: Plan, meter: Meter, ask: Ask, reason: str) -> NoReturn:
    period = meter.key.period
    without_overage = plan.hard or not (meter.overage_cap_tokens or meter.overage_tokens)
    what = "quota" if without_overage else "overage cap"
    message = (
        f"The {what} of the usage period {period.start_at:%d %b} to {period.end_at:%d %b %Y} has no room for this call:"
        f" {reason}. It renews on {period.end_at:%d %b %Y at %H:%M} UTC."
    )
    raise QuotaExceededError(
        f"{message} {plan.upgrade_message}".rstrip(),
        remaining_tokens=max(0, meter.room_tokens),
        needed_tokens=ask.amount_tokens,
        resets_at=period.end_at,
        error_code="quota_exceeded" if without_overage else "overage_cap_reached",
        meter=meter,
    )
