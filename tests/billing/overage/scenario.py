"""What one seed stands for: which misfortunes, how much is used when, and what becomes of the subscription."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tests.billing.scenario import DAY, HOUR, MINUTE
from tests.billing.wire import WireFaults
from tests.simulation.network import MessageFaults

READINGS = ("arrival", "timestamp")

CHANGES = (
    ("change_plan", 6),
    ("schedule_change", 2),
    ("new_anchor", 3),
    ("end_at_period_end", 3),
    ("keep", 1),
    ("end_now", 1),
    ("end_with_invoice", 2),
    ("pause", 1),
    ("resume", 2),
    ("subscribe", 4),
    ("cards_fail", 2),
    ("cards_work", 3),
    ("lower_use", 2),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One action at a time, in seconds after the start."""

    at_seconds: float
    action: str
    draw: int


@dataclass(frozen=True, slots=True)
class Outage:
    """A stretch of time, in seconds after the start, in which Stripe or all of our functions are down."""

    from_seconds: float
    to_seconds: float
    whole: bool
    """Our functions, too."""


@dataclass(frozen=True, slots=True)
class Options:
    faults: bool = True
    last_by: str | None = None
    """Which reading of `last` Stripe follows; None: drawn by the seed."""


@dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    last_by: str
    late_usage: str
    steps: tuple[Step, ...]
    outages: tuple[Outage, ...]
    table: MessageFaults
    stripe: WireFaults
    delayed: float
    """Share of meter events whose sender sees a time-out and which arrive up to 40 minutes later."""
    duplicate: float
    """Share of meter events of which the network delivers a second copy some time later."""
    kill: float
    """Share of invocations that are killed before or after one of their requests."""
    freeze: float
    unseen: float
    """Share of Stripe's events that come hours late, or never."""
    concurrent: int
    """Reporters that are started for each reason to report."""
    summary_lag_seconds: int
    clock_error_seconds: float
    calm_endings: bool
    """Nothing new goes wrong from an hour before a window's end until its invoice is final."""
    often_seconds: float
    """How long after the run before another one comes by, around a window's end."""
    opens_with: str
    """What the user begins with: a subscription, a trial, or the operator's gift of a plan."""


def draw_scenario(seed: int, options: Options) -> Scenario:
    rng = random.Random(f"overage {seed}")
    faulty = options.faults
    days = rng.choice((70, 100, 130))
    drawn = Scenario(
        seed=seed,
        last_by=options.last_by or READINGS[seed % 2],
        late_usage=rng.choice(("carry", "carry", "carry", "write_off")),
        steps=tuple(_steps(rng, days)),
        outages=tuple(_outages(rng, days)) if faulty else (),
        table=MessageFaults.draw(rng) if faulty else MessageFaults(),
        stripe=WireFaults.draw(rng, most=0.15, most_failed=0.1) if faulty else WireFaults(),
        delayed=rng.choice((0, 0.2, 0.6)) if faulty else 0,
        duplicate=rng.choice((0, 0.1, 0.4)) if faulty else 0,
        kill=rng.choice((0, 0.1, 0.4)) if faulty else 0,
        freeze=rng.choice((0, 0.05, 0.2)) if faulty else 0,
        unseen=rng.choice((0, 0.1, 0.5)) if faulty else 0,
        concurrent=rng.choice((1, 2, 3)),
        summary_lag_seconds=rng.choice((0, 60, 180)),
        clock_error_seconds=rng.choice((0.0, 2.0)),
        calm_endings=rng.random() < 0.5,
        often_seconds=rng.choice((8 * MINUTE, 20 * MINUTE, HOUR)),
        opens_with=rng.choice(("subscription",) * 7 + ("trial", "gift")),
    )
    if not faulty or seed % 4 != 2:
        return drawn
    # Every fourth: nothing but requests that are held up, by which only the comparison is tried.
    return replace(
        drawn,
        delayed=0.6,
        kill=0,
        unseen=0,
        outages=(),
        often_seconds=8 * MINUTE,
        calm_endings=True,
        opens_with="subscription",
    )


def _outages(rng: random.Random, days: int) -> list[Outage]:
    found = []
    for _ in range(rng.choice((0, 0, 1, 2))):
        # Around the end of a month as often as anywhere.
        begin = rng.choice((rng.uniform(0, days * DAY), rng.choice((30, 61, 92)) * DAY - rng.uniform(0, 32 * HOUR)))
        found.append(Outage(begin, begin + rng.choice((2, 30)) * HOUR, whole=rng.random() < 0.5))
    return found


def _steps(rng: random.Random, days: int) -> list[Step]:
    steps = []
    for month in (30, 61, 92):
        # Something happens all the time towards the end.
        at = month * DAY - 3 * HOUR
        while rng.random() < 0.85 and at < month * DAY + 10 * MINUTE:
            at += rng.choice((5.0, 40.0)) * MINUTE * rng.random()
            steps.append(Step(at, "use", rng.getrandbits(32)))
    for _ in range(rng.randint(2, 12)):
        at = rng.choice((rng.uniform(0, days * DAY), rng.choice((30, 61, 92)) * DAY + rng.uniform(-6, 3) * HOUR))
        for _ in range(rng.choice((1, 1, 3))):
            at += rng.choice((1.0, 30.0, 20 * MINUTE)) * rng.random()
            steps.append(Step(at, "use", rng.getrandbits(32)))
    names, weights = [name for name, _ in CHANGES], [weight for _, weight in CHANGES]
    for _ in range(rng.choice((0, 1, 2, 4))):
        at = rng.uniform(0, days * DAY)
        if steps and rng.random() < 0.4:
            # Just before or after something was used.
            at = rng.choice(steps).at_seconds + rng.uniform(-90, 90)
        steps.append(Step(max(0.0, at), rng.choices(names, weights)[0], rng.getrandbits(32)))
    return sorted(steps, key=lambda step: step.at_seconds)
