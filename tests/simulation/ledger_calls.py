"""A call through the ledger's own doors, used as `flows.relay_message` uses them, with an upstream made of sleeps."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.simulation.containers import Container
from tests.simulation.scenario import Request
from tests.simulation.truth import Call, cost_picousd
from tollgate.domain.errors import (
    DuplicateRequestError,
    IdempotencyMismatchError,
    QuotaExceededError,
    RateLimitedError,
    StaleAccountError,
    StoreUnavailableError,
)
from tollgate.domain.ledger import Ask, Grant, Settlement, charge_for_unknown_end
from tollgate.domain.tokens import TokenCounts

if TYPE_CHECKING:
    from tests.simulation.world import World

SOFT_MARGIN_SECONDS = 10


def ask_for(container: Container, bound_tokens: int, output_tokens: int, request: Request | None = None) -> Ask:
    return Ask(
        prompt_bound_tokens=bound_tokens,
        output_tokens=output_tokens,
        output_weight=1000,
        may_clamp=request.may_clamp if request else False,
        deadline_at_seconds=container.deadline_at_seconds,
        idempotency_key=request.idempotency_key if request else None,
        body_sha256=request.body_sha256 if request and request.idempotency_key else None,
        limits=request.limits if request else None,
    )


class LedgerCall:
    """One invocation. `serve` is its whole life."""

    def __init__(self, world: World, container: Container, request: Request) -> None:
        self.world = world
        self.container = container
        self.request = request
        self.process = container.process
        self.rng = world.rng
        self.seen = world.seen
        self.started_at = container.now_seconds()
        self.call = Call(
            request.user,
            TokenCounts(input_tokens=request.prompt_tokens),
            visible_prompt=request.prompt_tokens <= request.bound_tokens,
            idempotency_key=request.idempotency_key,
        )
        self.process.limits = request.limits
        self.process.on_kill = lambda: world.generate_on(self.call)

    def serve(self) -> None:
        try:
            self.grant = self._reserve()
        except StoreUnavailableError:
            self.seen["refused_store"] += 1
            return
        if self.grant is None:
            return
        oracle = self.world.oracle
        oracle.bind(oracle.reservations[self.grant.reservation.nonce], self.call)
        try:
            self._use(self.grant)
        except StoreUnavailableError:
            self.seen["settle_unanswered"] += 1

    def _reserve(self) -> Grant | None:
        """The grant, or None after a refusal, which the oracle judges."""
        request, container = self.request, self.container
        stale = False
        self._meet_change()
        for _ in range(4):
            account = container.account(request.user, fresh=stale)
            key = container.key(account)
            self.process.sights.clear()
            slice_tokens = account.plan.slice_output_tokens
            first = request.max_tokens if slice_tokens is None else min(request.max_tokens, slice_tokens)
            ask = ask_for(container, request.bound_tokens, first, request)
            try:
                grant = container.ledger.reserve(account, key, ask)
            except StaleAccountError:
                self.seen["stale_account"] += 1
                stale = True
            except (QuotaExceededError, RateLimitedError) as error:
                self.world.refusals.judge(error, self.container, request, request.bound_tokens)
                return None
            except (DuplicateRequestError, IdempotencyMismatchError) as error:
                self.seen[f"refused_{error.error_code}"] += 1
                return None
            else:
                self.slice_tokens = slice_tokens
                self.call.max_output_tokens = request.max_tokens if slice_tokens else grant.output_tokens
                self.seen["clamped"] += grant.output_tokens < first
                return grant
        self.seen["refused_stale"] += 1
        return None

    # ---- upstream

    def _use(self, grant: Grant) -> None:
        world, call, rng = self.world, self.call, self.rng
        if rng.random() < world.levels.upstream_refusal:
            call.released = True
            self.container.ledger.release(grant)
            call.settled_at = world.hub.now
            self.seen["upstream_refused"] += 1
            return
        call.starts += 1
        call.live = True
        self._sleep(0.2 + rng.random() * 0.8)
        try:
            self._meet_prompt()
            ended_well = self._stream()
        except QuotaExceededError:
            self.seen["stopped_for_quota"] += 1
            ended_well = False
        call.live = False
        self._settle(self._settlement(ended_well))

    def _meet_prompt(self) -> None:
        """message_start shows the true prompt: above the bound, the reservation grows or the stream stops."""
        self.call.prompt_told = True
        extra = self.call.prompt_tokens - self.request.bound_tokens
        if extra > 0:
            self.seen["prompt_above_bound"] += 1
            self._top_up(extra)

    def _top_up(self, extra: int) -> None:
        assert self.grant is not None
        try:
            self.grant = self.container.ledger.top_up(self.grant, extra)
        except QuotaExceededError:
            self.seen["top_up_refused"] += 1
            raise
        except StoreUnavailableError:
            self.seen["top_up_unanswered"] += 1
            now = datetime.now(UTC)
            raise QuotaExceededError("stop", remaining_tokens=0, needed_tokens=0, resets_at=now) from None
        self.seen["top_up_granted"] += 1

    def _stream(self) -> bool:
        """Chunks until the end; whether upstream told its final usage."""
        call, rng = self.call, self.rng
        assert self.grant is not None
        total = min(call.max_output_tokens, 1 + int(rng.expovariate(1 / 500)))
        fails_at = rng.randrange(total + 1) if rng.random() < self.world.levels.upstream_failure else None
        soft_end = self.started_at + self.world.scenario.timeout_seconds - SOFT_MARGIN_SECONDS
        reserved = self.grant.output_tokens
        while call.delivered_tokens < total:
            pause = 0.05 + rng.random() * self.world.scenario.pace_seconds
            left = soft_end - self.container.now_seconds()
            self._sleep(min(pause, max(0, left)))
            if pause >= left:
                self.seen["soft_deadline"] += 1
                call.output_tokens += int(rng.random() * (total - call.output_tokens + 1))
                return False
            chunk = min(total - call.delivered_tokens, 1 + int(rng.random() * call.max_output_tokens / 4))
            if fails_at is not None and call.delivered_tokens + chunk > fails_at:
                self.seen["upstream_cut"] += 1
                call.output_tokens = min(call.max_output_tokens, call.output_tokens + rng.choice([0, 0, 20]))
                return False
            call.delivered_tokens += chunk
            call.output_tokens += chunk
            if call.sliced and call.delivered_tokens >= reserved and call.delivered_tokens < total:
                self.seen["slices"] += 1
                step = min(self.slice_tokens or 0, call.max_output_tokens - reserved)
                self._top_up(call.delivered_tokens - reserved + step)
                reserved = call.delivered_tokens + step
        return True

    # ---- the end

    def _settle(self, settlement: Settlement) -> None:
        world, rng, grant = self.world, self.rng, self.grant
        assert grant is not None
        if world.is_stalled_by_adversary():
            self._sleep(world.stall_seconds())
        self._meet_change()
        outages = self.process.outages
        try:
            settled = self.container.ledger.settle(grant, settlement)
        except StoreUnavailableError:
            if outages == self.process.outages:
                world.oracle.report("unsettled", f"{self.process.name} was not settled although the table answered")
            raise
        self.seen["settled_late"] += settled.late
        self.call.settled_at = world.hub.now
        if rng.random() < world.levels.settled_twice:
            self.seen["settled_twice"] += 1
            self.container.ledger.settle(grant, settlement)

    def _settlement(self, ended_well: bool) -> Settlement:
        call, grant = self.call, self.grant
        assert grant is not None
        counts = TokenCounts(input_tokens=call.prompt_tokens, output_tokens=call.delivered_tokens)
        cost = cost_picousd(counts)
        if ended_well:
            call.final = counts
            return Settlement(call.used_tokens, counts=counts, cost_picousd=cost)
        charged, off = charge_for_unknown_end(
            self.world.scenario.policy,
            grant.reservation,
            call.prompt_tokens,
            call.prompt_tokens + call.max_output_tokens,
            call.delivered_tokens,
        )
        return Settlement(charged, off, counts=counts, cost_picousd=cost)

    def _meet_change(self) -> None:
        """In a restless run the plan often changes just now: the change reads before our write and writes after it."""
        if self.world.scenario.restless and self.rng.random() < 0.5:
            self.world.change_suddenly(self.request.user)
            self._sleep(0.01 + self.rng.random() * 0.02)

    def _sleep(self, seconds: float) -> None:
        self.world.hub.sleep(self.process, seconds)
