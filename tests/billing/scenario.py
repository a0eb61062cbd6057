"""What one seed stands for: which misfortunes, and what users, banks and operators do when."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.billing.wire import WireFaults
from tests.simulation.network import MessageFaults

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0

SUBSCRIBED = (
    ("change_plan", 5),
    ("schedule_change", 2),
    ("end_at_period_end", 2),
    ("keep", 2),
    ("end_now", 2),
    ("cards_fail", 4),
    ("cards_work", 5),
    ("pay_invoices", 4),
    ("pause", 1),
    ("resume", 2),
    ("dispute", 3),
    ("close_dispute", 3),
    ("refund", 3),
    ("fraud_warning", 1),
    ("second_subscription", 2),
    ("other_product", 1),
    ("delete_customer", 1),
    ("subscribe", 4),
    ("open_checkout", 1),
    ("call", 4),
    ("sync", 2),
    ("first_key", 1),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One action, some time after the one before it."""

    after_seconds: float
    action: str
    user: int
    draw: int
    """For whatever the action has to choose."""


@dataclass(frozen=True, slots=True)
class Options:
    faults: bool = True
    adversarial: bool | None = None
    """Functions that outlive their time limit, and leases with it; None: drawn by the seed."""


@dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    users: int
    steps: tuple[Step, ...]
    table: MessageFaults
    stripe: WireFaults
    queue: WireFaults
    kill: float
    """Share of invocations that are killed somewhere."""
    freeze: float
    adversarial: bool
    unseen_answer: float
    """Share of deliveries whose 200 does not reach Stripe."""
    duplicate: float
    thin: float
    bus: float
    longest_delay_seconds: float
    clock_error_seconds: float
    grace_days: int = 7
    notes: list[str] = field(default_factory=list)


def draw_scenario(seed: int, options: Options) -> Scenario:
    rng = random.Random(f"billing {seed}")
    users = rng.choice((1, 1, 2))
    faulty = options.faults
    adversarial = rng.random() < 0.25 if options.adversarial is None else options.adversarial
    return Scenario(
        seed=seed,
        users=users,
        steps=tuple(_steps(rng, users)),
        table=MessageFaults.draw(rng) if faulty else MessageFaults(),
        stripe=WireFaults.draw(rng, most=0.1, most_failed=0.05) if faulty else WireFaults(),
        queue=WireFaults.draw(rng, most=0.1, most_failed=0.05) if faulty else WireFaults(),
        kill=rng.choice((0, 0.05, 0.25)) if faulty else 0,
        freeze=rng.choice((0, 0.05, 0.2)) if faulty else 0,
        adversarial=adversarial,
        unseen_answer=rng.choice((0, 0.1)) if faulty else 0,
        duplicate=rng.choice((0, 0.2, 0.6)),
        thin=rng.choice((0, 0.5, 1)),
        bus=rng.choice((0, 0.3)),
        longest_delay_seconds=rng.choice((1.0, 30.0, HOUR, 2 * DAY)),
        clock_error_seconds=rng.choice((0.0, 1.0)),
    )


def _steps(rng: random.Random, users: int) -> list[Step]:
    names = [name for name, _ in SUBSCRIBED]
    weights = [weight for _, weight in SUBSCRIBED]
    # Everybody begins with a subscription; nothing else can happen to who has none.
    steps = [Step(rng.random() * HOUR, "subscribe", user, rng.getrandbits(32)) for user in range(users)]
    for _ in range(rng.randint(3, 9)):
        pause = rng.choice((0.0, 0.2, 2.0, MINUTE, HOUR, 3 * DAY, 9 * DAY, 33 * DAY)) * rng.uniform(0.5, 1.5)
        action = rng.choices(names, weights)[0]
        steps.append(Step(pause, action, rng.randrange(users), rng.getrandbits(32)))
    return steps
