"""What a run is made of: everything that one seed draws before the first event."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from tests.simulation.network import MessageFaults
from tollgate.domain.periods import UsagePeriod, period_at
from tollgate.domain.plans import ExpiryPolicy, PeriodKind, Plan, QuotaKind
from tollgate.domain.principals import KeyLimits
from tollgate.domain.subscriptions import Entitlements
from tollgate.domain.tokens import TokenWeights


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller of a run may pin; None lets the seed draw it."""

    policy: ExpiryPolicy | None = None
    adversarial: bool | None = None
    faults: bool = True
    relay: bool | None = None
    """True: whole calls through flows.relay_message; False: through the ledger's doors only."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Probabilities of what befalls processes and upstream, per invocation."""

    kill: float = 0
    freeze: float = 0
    upstream_failure: float = 0
    upstream_refusal: float = 0
    repeated_request: float = 0
    hidden_prompt: float = 0
    settled_twice: float = 0.1
    id_collision: float = 0

    @classmethod
    def draw(cls, rng: random.Random) -> Levels:
        return cls(
            kill=rng.choice([0, 0.05, 0.3]),
            freeze=rng.choice([0, 0.05, 0.2]),
            upstream_failure=rng.choice([0, 0.05, 0.2]),
            upstream_refusal=rng.choice([0, 0, 0.05]),
            repeated_request=rng.choice([0, 0.1, 0.3]),
            hidden_prompt=rng.choice([0, 0, 0.1, 0.4]),
            id_collision=rng.choice([0, 0, 0, 0.02]),
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client, as sent."""

    user: int
    at_seconds: float
    prompt_tokens: int
    bound_tokens: int
    max_tokens: int
    may_clamp: bool
    idempotency_key: str | None
    body_sha256: str
    limits: KeyLimits | None = None
    """Of the API key it is sent with, as the container that takes it knows them."""


@dataclass(frozen=True, slots=True)
class PlanChange:
    user: int
    at_seconds: float
    entitlements: Entitlements
    deliveries: tuple[float, ...]
    """Instants at which the notice arrives; the handler looks up what is true by then."""


@dataclass(frozen=True, slots=True)
class OverageChoice:
    """A user says how much overage they want."""

    user: int
    at_seconds: float
    cap_cents: int | None


@dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    policy: ExpiryPolicy
    adversarial: bool
    relay: bool
    start_seconds: float
    boundary_seconds: float | None
    """The end of a usage period inside the run."""
    span_seconds: float
    timeout_seconds: float
    clock_error_seconds: float
    message_faults: MessageFaults
    levels: Levels
    plans: dict[str, Plan]
    first_plan_ids: tuple[str, ...]
    """Per user."""
    period_kind: PeriodKind
    anchor_at: datetime
    requests: tuple[Request, ...]
    plan_changes: tuple[PlanChange, ...]
    choices: tuple[OverageChoice, ...]
    restless: bool
    """Users change plans just when their calls begin and end."""
    sweeps_at: tuple[float, ...]
    weights: TokenWeights
    pace_seconds: float
    """Longest pause between two chunks of an answer."""
    whole_job: bool
    """The last sweep goes through the scheduled job's own listing of meters."""
    containers: int
    """How many warm containers may be reused; 0: every invocation starts cold."""


_WEIGHTS = (
    TokenWeights(),
    TokenWeights(input=1000, output=5000, cache_write_5m=1250, cache_write_1h=2000, cache_read=100),
    TokenWeights(input=333, output=1667, cache_write_5m=417, cache_write_1h=667, cache_read=34),
)
_BOUNDARIES = (
    # kind, anchor, an instant in the period whose end the run crosses (or not)
    (PeriodKind.CALENDAR_MONTH, datetime(2026, 1, 10, tzinfo=UTC), datetime(2026, 1, 20, tzinfo=UTC)),
    (PeriodKind.CALENDAR_MONTH, datetime(2026, 1, 10, tzinfo=UTC), datetime(2027, 12, 20, tzinfo=UTC)),
    (PeriodKind.ANCHORED_MONTH, datetime(2026, 1, 31, 10, 30, tzinfo=UTC), datetime(2026, 2, 10, tzinfo=UTC)),
    (PeriodKind.ANCHORED_MONTH, datetime(2026, 1, 31, 10, 30, tzinfo=UTC), datetime(2028, 3, 10, tzinfo=UTC)),
    (PeriodKind.ANCHORED_MONTH, datetime(2026, 5, 15, 23, 59, 59, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)),
)


def draw_scenario(seed: int, options: Options) -> Scenario:
    """Everything of a run that is fixed before it starts, from one integer."""
    rng = random.Random(seed)
    policy = options.policy or rng.choice(list(ExpiryPolicy))
    adversarial = options.adversarial if options.adversarial is not None else rng.random() < 0.3
    relay = options.relay if options.relay is not None else rng.random() < 0.4
    timeout = rng.choice([20.0, 60.0, 120.0, 300.0])
    span = rng.choice([20.0, 100.0, 100.0, 800.0, 3000.0])
    kind, anchor, inside = rng.choice(_BOUNDARIES)
    period = period_at(kind, anchor, inside)
    crossing = rng.random() < 0.5
    start = _start(rng, period, span) if crossing else _inside(rng, period)
    plans = _with_pools(_draw_plans(rng, policy, kind), seed)
    users = rng.choice([1, 1, 2, 3])
    first = tuple(rng.choice(list(plans)) for _ in range(users))
    levels = Levels.draw(rng) if options.faults else Levels(settled_twice=0)
    scenario = Scenario(
        seed=seed,
        policy=policy,
        adversarial=adversarial and options.faults,
        relay=relay,
        start_seconds=start,
        boundary_seconds=period.end_at.timestamp() if crossing else None,
        span_seconds=span,
        timeout_seconds=timeout,
        clock_error_seconds=rng.choice([0, 0.5, 5.0]) if options.faults else 0,
        message_faults=MessageFaults.draw(rng) if options.faults else MessageFaults(),
        levels=levels,
        plans=plans,
        first_plan_ids=first,
        period_kind=kind,
        anchor_at=anchor,
        requests=(),
        plan_changes=(),
        choices=(),
        restless=False,
        sweeps_at=_sweeps(rng, start, span + timeout + 120),
        weights=rng.choice(_WEIGHTS) if relay else TokenWeights(),
        pace_seconds=rng.choice([0.2, 0.5, 5, 15]),
        whole_job=rng.random() < 0.15,
        containers=rng.choice([0, 1, 4]),
    )
    scenario = replace(
        scenario, requests=_draw_requests(rng, scenario, users), plan_changes=_draw_plan_changes(rng, scenario, users)
    )
    scenario = _with_subscriptions(replace(scenario, requests=_with_keys(scenario)), users)
    stormy = options.faults and crossing and len(plans) > 1 and rng.random() < 0.1
    return _boundary_storm(rng, scenario) if stormy else scenario


def _boundary_storm(rng: random.Random, scenario: Scenario) -> Scenario:
    """Fast clocks open the next period's meter, slow ones change the plan in the last; then a herd finds it behind."""
    boundary = scenario.boundary_seconds
    assert boundary is not None
    early = [replace(one, at_seconds=boundary - rng.uniform(1, 4.5)) for one in scenario.requests[::2]]
    late = [replace(one, at_seconds=boundary + 5 + rng.random() * 0.02) for one in scenario.requests[1::2]]
    changes = []
    for user, first_id in enumerate(scenario.first_plan_ids):
        at = boundary - rng.uniform(0, 3)
        other = rng.choice([plan_id for plan_id in scenario.plans if plan_id != first_id])
        changes.append(PlanChange(user, at, Entitlements(other, None), (at,)))
    return replace(
        scenario,
        clock_error_seconds=5.0,
        containers=0,
        requests=tuple(sorted([*early, *late], key=lambda one: one.at_seconds)),
        plan_changes=tuple(changes),
    )


def _start(rng: random.Random, period: UsagePeriod, span: float) -> float:
    """The run crosses the end of the usage period."""
    return period.end_at.timestamp() - span * rng.uniform(0.1, 0.9)


def _inside(rng: random.Random, period: UsagePeriod) -> float:
    return (period.start_at + timedelta(days=rng.randrange(1, 20))).timestamp()


def _sweeps(rng: random.Random, start: float, span: float) -> tuple[float, ...]:
    instants: list[float] = []
    at = start + 30
    while at < start + span:
        instants += [at + rng.random() * 2 for _ in range(rng.choice([1, 1, 2]))]
        at += rng.choice([60, 150, 600]) if span < 1000 else rng.choice([300, 900])
    return tuple(instants)


def _draw_plans(rng: random.Random, policy: ExpiryPolicy, kind: PeriodKind) -> dict[str, Plan]:
    base = rng.choice([2_000, 5_000, 20_000, 100_000])
    count = rng.choice([1, 2, 3])
    plans = {}
    for index, factor in enumerate([2, 6, 1][:count]):
        soft = rng.random() < 0.35
        quota = base * factor // 2
        plans[f"plan{index}"] = Plan(
            id=f"plan{index}",
            name=f"Plan {index}",
            quota_kind=QuotaKind.SOFT if soft else QuotaKind.HARD,
            quota_tokens=quota if rng.random() < 0.9 else None,
            quota_requests=rng.choice([None, None, 4, 15]),
            overage_cap_tokens=quota // 2 if soft else 0,
            overage_price_microusd_per_1k_tokens=20_000 if soft else 0,
            price_cents=0,
            period_kind=kind,
            models=frozenset(),
            requests_per_minute=rng.choice([None, None, 6, 30, 120]),
            burst_requests=rng.choice([1, 3, 10]),
            max_open_reservations=rng.choice([2, 4, 8, 40]),
            max_output_tokens=None,
            slice_output_tokens=rng.choice([None, 200]) if soft else None,
            expiry_policy=policy,
        )
    return plans


def _with_pools(plans: dict[str, Plan], seed: int) -> dict[str, Plan]:
    """In an eighth of the runs the first plan's users share a pool that may be too small for all of them."""
    dice = random.Random(f"pool {seed}")
    plan = plans["plan0"]
    if plan.quota_tokens is None or dice.random() > 0.125:
        return plans
    return plans | {plan.id: replace(plan, pool_tokens=plan.most_tokens * dice.choice([1, 2]) + dice.choice([0, 1]))}


def _draw_requests(rng: random.Random, scenario: Scenario, users: int) -> tuple[Request, ...]:
    count = rng.choice([6, 12, 24, 40])
    herds = rng.random() < 0.5
    at_the_boundary = rng.random() < 0.5
    requests: list[Request] = []
    for index in range(count):
        at = rng.random() * scenario.span_seconds
        if herds:
            at = at // 30 * 30 + rng.random() * 0.2
        at += scenario.start_seconds
        if scenario.boundary_seconds is not None and at_the_boundary and rng.random() < 0.4:
            at = scenario.boundary_seconds + rng.choice([rng.uniform(-5, 8), 5 + rng.random() * 0.02])
        prompt = rng.choice([5, 50, 300, 2000])
        bound = int(prompt * rng.uniform(1.0, 2.0)) + 1
        if rng.random() < scenario.levels.hidden_prompt:
            prompt = bound + rng.choice([50, 800, 3000])
        repeats = rng.random() < scenario.levels.repeated_request
        request = Request(
            user=rng.randrange(users),
            at_seconds=at,
            prompt_tokens=prompt,
            bound_tokens=bound,
            max_tokens=rng.choice([10, 50, 400, 1000, 4000]),
            may_clamp=rng.random() < 0.8,
            idempotency_key=f"key-{index}" if repeats else None,
            body_sha256=f"{index:064x}",
        )
        requests.append(request)
        if repeats:
            requests += _repeats(rng, request)
    return tuple(sorted(requests, key=lambda request: request.at_seconds))


def _with_keys(scenario: Scenario) -> tuple[Request, ...]:
    """In a third of the runs most requests come with one of two keys, whose limits change once on the way.

    From a generator of its own: the other runs are what they were before there were keys.
    """
    rng = random.Random(scenario.seed ^ 0x6B657973)
    if rng.random() >= 1 / 3:
        return scenario.requests
    quota = min(plan.stored_quota_tokens for plan in scenario.plans.values())
    keys = [(_draw_limits(rng, f"key{number}", quota), _draw_limits(rng, f"key{number}", quota)) for number in range(2)]
    changed_at = scenario.start_seconds + scenario.span_seconds * rng.uniform(0.2, 1.5)
    requests = []
    for request in scenario.requests:
        before, after = rng.choice(keys)
        # Containers remember a key for up to a minute, so old and new limits are in use side by side.
        limits = after if request.at_seconds > changed_at + rng.uniform(-60, 0) else before
        requests.append(replace(request, limits=limits if rng.random() < 0.85 else None))
    return tuple(requests)


def _draw_limits(rng: random.Random, key_id: str, quota_tokens: int) -> KeyLimits:
    limited = quota_tokens if quota_tokens < 1_000_000 else 20_000
    return KeyLimits(
        id=key_id,
        label=key_id,
        budget_tokens=rng.choice([None, 60, limited // 10, limited // 4, limited // 2, limited * 2]),
        requests_per_minute=rng.choice([None, None, 6, 60]),
        burst_requests=rng.choice([1, 3]),
    )


def _repeats(rng: random.Random, request: Request) -> list[Request]:
    """The client sends it again, up to 100 s later; now and then it reuses the key for another body."""
    copies = []
    for _ in range(rng.choice([1, 2])):
        delay = rng.choice([0, 0.005, 0.5, 20, 100]) * rng.random()
        digest = request.body_sha256 if rng.random() < 0.9 else "f" * 64
        copies.append(replace(request, at_seconds=request.at_seconds + delay, body_sha256=digest))
    return copies


def _draw_plan_changes(rng: random.Random, scenario: Scenario, users: int) -> tuple[PlanChange, ...]:
    changes: list[PlanChange] = []
    for user in range(users):
        for _ in range(rng.choice([0, 0, 1, 3])):
            at = scenario.start_seconds + rng.random() * scenario.span_seconds
            if scenario.boundary_seconds is not None and rng.random() < 0.4:
                at = scenario.boundary_seconds + rng.uniform(-6, 3)
            deliveries = tuple(
                at + rng.choice([0, 0.01, 3, 60]) * rng.random() for _ in range(rng.choice([1, 1, 2, 3]))
            )
            entitlements = Entitlements(rng.choice(list(scenario.plans)), None)
            changes.append(PlanChange(user, at, entitlements, deliveries))
    return tuple(changes)


def _with_subscriptions(scenario: Scenario, users: int) -> Scenario:
    """In two thirds of the runs plans change as subscriptions do: periods move, trials, failed payments, own choices.

    From a generator of its own, as keys are.
    """
    rng = random.Random(scenario.seed ^ 0x5B5C)
    if rng.random() < 1 / 3:
        return scenario
    thirsty = rng.random() < 0.3
    scenario = replace(scenario, plans={plan.id: _as_sold(rng, plan, thirsty) for plan in scenario.plans.values()})
    again = _draw_plan_changes(rng, scenario, users)
    changes, anchors = [], {user: [scenario.anchor_at] for user in range(users)}
    for change in sorted([*scenario.plan_changes, *again], key=lambda one: one.at_seconds):
        subscribed_at = datetime.fromtimestamp(int(change.at_seconds), UTC)
        trial = rng.random() < 0.15
        anchor_at = rng.choice(
            [None, subscribed_at + timedelta(days=10 if trial else 0), rng.choice(anchors[change.user])]
        )
        if anchor_at is not None:
            anchors[change.user].append(anchor_at)
        entitlements = Entitlements(
            change.entitlements.plan_id,
            anchor_at,
            trial=trial,
            overage_blocked=rng.random() < 0.15,
            paid=rng.random() < 0.95,
        )
        changes.append(replace(change, entitlements=entitlements))
    return replace(
        scenario,
        plan_changes=tuple(changes),
        choices=_draw_choices(rng, scenario, users),
        restless=thirsty and not scenario.relay and rng.random() < 0.3,
    )


def _as_sold(rng: random.Random, plan: Plan, thirsty: bool) -> Plan:
    """Prices, periods and trials that differ by plan; if `thirsty`, quotas so small that most use is overage."""
    quota = plan.quota_tokens
    if thirsty and quota is not None and plan.pool_tokens is None:
        plan = replace(plan, quota_kind=QuotaKind.SOFT, quota_tokens=quota // 8, overage_cap_tokens=quota)
    soft, quota = plan.overage_cap_tokens > 0, plan.quota_tokens
    kind = rng.choice([plan.period_kind, PeriodKind.CALENDAR_MONTH, PeriodKind.ANCHORED_MONTH])
    # By a generator of its own: the seeds that are known to catch a mutant stay what they are.
    if random.Random(f"{plan.id} {quota}").random() < 0.1:
        kind = PeriodKind.EVERY_30_DAYS
    return replace(
        plan,
        period_kind=kind,
        overage_price_microusd_per_1k_tokens=rng.choice([20_000, 15_000, 7_001, 0]) if soft else 0,
        overage_opt_in=soft and rng.random() < 0.25,
        trial_quota_tokens=None if quota is None or rng.random() < 0.5 else quota // 4,
    )


def _draw_choices(rng: random.Random, scenario: Scenario, users: int) -> tuple[OverageChoice, ...]:
    choices = []
    for user in range(users):
        for _ in range(rng.choice([0, 1, 2])):
            at = scenario.start_seconds + rng.random() * scenario.span_seconds
            choices.append(OverageChoice(user, at, rng.choice([None, 0, 1, 3, 20, 1000])))
    return tuple(choices)
