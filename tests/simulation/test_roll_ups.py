"""What reports say of a run in which everything failed: the same as the meters, the records and the truth, to the unit.

The roll-ups run on what the simulator leaves behind, killed and cut off at random themselves.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from tests.simulation.containers import TENANT, user_id
from tests.simulation.scenario import Options, draw_scenario
from tests.simulation.truth import Held
from tests.simulation.world import World
from tests.support.scripted_dynamodb import Fate, ScriptedClient
from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.ledger import Meter
from tollgate.domain.rollups import PeriodUse
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.roll_up_usage import ROLL_UP_LAG_SECONDS, UsageRollUps
from tollgate.storage.meters import Meters, meter_of
from tollgate.storage.requests import Requests
from tollgate.storage.rollups import DayRollUps
from tollgate.storage.table import Table

SEEDS = (*range(150), 212, 1292)
"""The last two are runs in which a settlement was never answered: one landed, one was left to the sweep."""
TROUBLES = (Fate.NEVER_ARRIVED, Fate.APPLIED_NEVER_ANSWERED, Fate.ANSWER_LOST_THEN_RETRIED)


class Books:
    """Roll-ups over a run's table, by a clock that is turned."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.seconds = world.hub.now
        self.client = ScriptedClient(world.table, self.now_seconds)
        self.table = Table(cast("Any", self.client), world.table.name)
        self._ids = 0

    def now_seconds(self) -> float:
        return self.seconds

    def pause(self, wait_seconds: float) -> None:
        self.seconds += wait_seconds

    def new_id(self, length: int) -> str:
        self._ids += 1
        return str(self._ids).rjust(length, "g")

    def random_bytes(self, count: int) -> bytes:
        return bytes(count)

    def roll_ups(self) -> UsageRollUps:
        """A process of small bounds: a few records at once, a few rows in an item."""
        return UsageRollUps(
            Requests(self.table),
            DayRollUps(self.table, rows_bytes_at_most=self.rng.choice([150, 400, 100_000])),
            Meters(self.table),
            self.world.catalog,
            self,
            self,
            records_at_most=self.rng.choice([1, 3, 10_000]),
        )

    def roll_up_in_trouble(self, user: int, seen: Counter[str]) -> None:
        """One run that may die of a lost call anywhere, or end half way."""
        self.client.next_calls(
            *(self.rng.choice(TROUBLES) if self.rng.random() < 0.1 else Fate.FINE for _ in range(40))
        )
        try:
            rolled = self.roll_ups().roll_up_days(
                TENANT, user_id(user), until=datetime.fromtimestamp(self.seconds - self.rng.uniform(0, 7200), UTC)
            )
            seen["runs_complete" if rolled.complete else "runs_cut_short"] += 1
        except StoreUnavailableError:
            seen["runs_died"] += 1
        finally:
            self.client.heal()

    def use(self, user: int, meter: Meter) -> PeriodUse:
        roll_ups = UsageRollUps(
            Requests(self.table), DayRollUps(self.table), Meters(self.table), self.world.catalog, self, self
        )
        use = roll_ups.period_use(TENANT, user_id(user), meter.key.period)
        assert use.exact
        return use


def figures(seed: int, seen: Counter[str]) -> list[str]:
    """Differences of one run; there are none."""
    world = World(draw_scenario(seed, Options(relay=True)))
    world.run()
    books, differences = Books(world, random.Random(seed)), []
    for number in range(6):
        for user in range(len(world.chosen)):
            books.roll_up_in_trouble(user, seen)
        if number == 3:
            books.seconds += ROLL_UP_LAG_SECONDS + 24 * 3600
    told = {(pk, sk): use for pk, sk, use in every_use(books)}
    for (pk, sk), use in told.items():
        meter = meter_of(world.table.partitions[pk][sk])
        differences += compare(world, (pk, sk), meter, use, seen)
    for partition in world.table.partitions.values():
        for sk in [sk for sk in partition if sk.startswith("REQUEST#")]:
            del partition[sk]
    for pk, sk, use in every_use(books):
        if use != told[pk, sk]:
            differences.append(f"{seed} {sk}: {use} is left of {told[pk, sk]} when the records are gone")
    return differences


def every_use(books: Books) -> list[tuple[str, str, PeriodUse]]:
    found = []
    for pk, sk, item in books.world._meters():
        user = int(pk.rpartition("-")[2])
        found.append((pk, sk, books.use(user, meter_of(item))))
    return found


def compare(world: World, key: tuple[str, str], meter: Meter, use: PeriodUse, seen: Counter[str]) -> list[str]:
    records = {item["nonce"]["S"] for pk, _, item in world._items("REQUEST#") if pk == key[0]}
    told: list[Held] = []
    untold: list[Held] = []
    for held in world.oracle.reservations.values():
        if held.meter == key and not held.open:
            (told if held.nonce in records or (held.swept and not held.corrected) else untold).append(held)
    unrecorded_tokens = sum(held.charged_tokens for held in untold)
    unrecorded_written_off = sum(held.written_off_tokens for held in untold)
    counts = sum((held.counts for held in untold), TokenCounts())
    cost = sum(held.cost_picousd for held in untold)
    booked = use.booked
    seen["records"] += use.requests.requests
    seen["expired"] += use.expired.expired
    seen["corrected"] += use.expired.corrected
    seen["unbooked"] += use.unbooked.requests
    seen["estimated"] += use.requests.estimated_requests
    seen["unrecorded"] += len(untold)
    wanted = {
        "charged": (booked.charged_tokens + unrecorded_tokens, meter.settled_tokens),
        "written off": (booked.written_off_tokens + unrecorded_written_off, meter.written_off_tokens),
        "counts": (booked.counts + counts, meter.counts),
        "cost": (booked.cost_picousd + cost, meter.cost_picousd),
    }
    return [
        f"{world.scenario.seed} {key} {name}: {a} told, {b} in the meter" for name, (a, b) in wanted.items() if a != b
    ]


@pytest.mark.slow
def test_reports_agree_with_meters_and_records_to_the_unit_whatever_failed() -> None:
    """Aborted, estimated, expired, late, never answered: 0 differences, also when the records are gone."""
    seen: Counter[str] = Counter()
    differences = [difference for seed in SEEDS for difference in figures(seed, seen)]

    assert differences == []
    reached = "records expired corrected unbooked estimated unrecorded runs_complete runs_cut_short runs_died"
    assert [name for name in reached.split() if not seen[name]] == []
