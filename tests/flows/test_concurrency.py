"""The ledger on a database that is exact under concurrency: every limit holds to the unit, whoever races whom.

The simulator proves the same over interleavings it can choose; here the engine, the SDK and the threads are real.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import ExactTable, exact_table
from tests.support.ledger_world import START, a_plan, an_ask
from tollgate.catalog.loader import load_catalog
from tollgate.domain.api_keys import ApiKey, KeyWish
from tollgate.domain.errors import (
    ConflictError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitedError,
    StaleAccountError,
    StoreUnavailableError,
    TollgateError,
)
from tollgate.domain.ledger import Grant, Meter, MeterKey, Settlement
from tollgate.domain.periods import period_at
from tollgate.domain.plans import ExpiryPolicy, Plan, QuotaKind
from tollgate.domain.principals import Account, CredentialKind, KeyLimits, Principal, Profile
from tollgate.domain.subscriptions import Entitlements
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.api_keys import KeyRing, MintedKey
from tollgate.flows.ledger import Ledger
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.meters import Meters
from tollgate.storage.table import Table, plain
from tollgate.storage.users import Users
from tollgate.wiring import SystemIds

pytestmark = pytest.mark.engine

CALLERS = 64
AMOUNT = 100
SEED = 20261120
numbers = count(1)


@dataclass
class Clock:
    """Turned by the test, the same for everybody: what is limited by time is then exact, too."""

    seconds: float = START.timestamp()

    def now_seconds(self) -> float:
        return self.seconds

    def pause(self, wait_seconds: float) -> None:
        """Really: contenders have to get out of each other's way."""
        time.sleep(wait_seconds)


@dataclass
class Crowd:
    """One user whom many processes serve at once; every ledger stands for one of them."""

    table: Table
    plan: Plan
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        user_id = f"u{next(numbers)}"
        profile = Profile("main", user_id, self.plan.id, 1, START)
        self.account = Account(Users(self.table).create_profile(profile), self.plan)
        self.key = MeterKey("main", user_id, period_at(self.plan.period_kind, START, START))
        self.meters = Meters(self.table)

    def ledger(self) -> Ledger:
        return Ledger(self.meters, self.clock, SystemIds())

    def reserve_all(self, asks: int = CALLERS, **changes: Any) -> tuple[list[Grant], Counter[str]]:  # noqa: ANN401
        """So many asks at once, each from another process: what was granted, and the codes of what was refused."""
        refused: Counter[str] = Counter()
        granted: list[Grant] = []

        def one() -> None:
            try:
                granted.append(self.ledger().reserve(self.account, self.key, an_ask(**{"may_clamp": False} | changes)))
            except TollgateError as error:
                refused[error.error_code] += 1

        at_once([one] * asks)
        return granted, refused

    @property
    def meter(self) -> Meter:
        """As stored, with the sums checked that hold after every write."""
        meter = self.meters.find(self.key)
        assert meter is not None
        assert meter.remaining_tokens == meter.quota_tokens - meter.settled_tokens - meter.reserved_tokens
        assert meter.remaining_tokens >= -meter.overage_cap_tokens
        assert meter.open_count == len(meter.reservations)
        return meter


def at_once(calls: Sequence[Callable[[], object]]) -> None:
    """Runs them all, begun at the same moment; raises what the first of them raised."""
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        gate.wait()
        call()

    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(run, call) for call in calls]:
            done.result()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExactTable]:
    with exact_table(tmp_path_factory.mktemp("engine")) as running:
        yield running


@pytest.fixture(scope="module")
def table(engine: ExactTable) -> Iterator[Table]:
    client = engine.client(attempts=3, connections=CALLERS)
    yield Table(client, engine.name)
    client.close()


# ---- one limit at a time, by callers that all come at once


@pytest.mark.parametrize(("quota_tokens", "fitting"), [(11 * AMOUNT - 1, 10), (11 * AMOUNT, 11), (11 * AMOUNT + 1, 11)])
def test_as_many_reservations_are_granted_as_fit(table: Table, quota_tokens: int, fitting: int) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=quota_tokens, max_open_reservations=CALLERS))
    granted, refused = crowd.reserve_all()
    assert len(granted) == len({grant.reservation.id for grant in granted}) == fitting
    assert refused == {"quota_exceeded": CALLERS - fitting}
    assert crowd.meter.remaining_tokens == quota_tokens - fitting * AMOUNT


def test_callers_that_may_be_clamped_share_the_last_token(table: Table) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=11 * AMOUNT + 57, max_open_reservations=CALLERS))
    granted, refused = crowd.reserve_all(may_clamp=True)
    assert sorted(grant.reservation.amount_tokens for grant in granted) == [57, *[AMOUNT] * 11]
    assert refused == {"quota_exceeded": CALLERS - 12}
    assert crowd.meter.remaining_tokens == 0
    assert {grant.output_tokens for grant in granted} == {90, 47}


def test_as_many_requests_are_granted_as_the_plan_has(table: Table) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=None, quota_requests=13, max_open_reservations=CALLERS))
    granted, refused = crowd.reserve_all()
    assert (len(granted), refused) == (13, {"quota_exceeded": CALLERS - 13})
    at_once([lambda grant=grant: crowd.ledger().release(grant) for grant in granted[:5]])  # type: ignore[misc]
    assert len(crowd.reserve_all()[0]) == 5
    assert crowd.meter.remaining_requests == 0


def test_as_many_calls_run_as_the_plan_allows(table: Table) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=1_000_000, max_open_reservations=7))
    granted, refused = crowd.reserve_all()
    assert (len(granted), refused) == (7, {"too_many_streams": CALLERS - 7})
    at_once([lambda grant=grant: crowd.ledger().settle(grant, Settlement(10)) for grant in granted[:3]])  # type: ignore[misc]
    granted, refused = crowd.reserve_all()
    assert (len(granted), refused) == (3, {"too_many_streams": CALLERS - 3})


def test_a_burst_is_as_large_as_the_plan_says_and_time_gives_back_one_by_one(table: Table) -> None:
    """60 a minute, 10 at once: ten, then one a second, then at most ten again however long nobody came."""
    plan = a_plan(quota_tokens=1_000_000, requests_per_minute=60, burst_requests=10, max_open_reservations=4 * CALLERS)
    crowd = Crowd(table, plan)
    for wait_ms, fitting in ((0, 10), (0, 0), (999, 0), (1, 1), (1_000, 1), (2_500, 2), (3_600_000, 10)):
        crowd.clock.seconds += wait_ms / 1000
        granted, refused = crowd.reserve_all()
        assert (len(granted), refused) == (fitting, Counter({"rate_limited": CALLERS - fitting})), wait_ms


def test_the_first_reservation_of_a_period_opens_one_meter(table: Table) -> None:
    """Everybody finds none and wants to make it; one does, nobody's reservation is lost or made twice."""
    crowd = Crowd(table, a_plan(quota_tokens=1_000_000, max_open_reservations=CALLERS))
    granted, refused = crowd.reserve_all()
    assert (len(granted), refused) == (CALLERS, {})
    assert set(crowd.meter.reservations) == {grant.reservation.id for grant in granted}


def test_one_idempotency_key_is_accepted_once(table: Table) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=1_000_000, max_open_reservations=CALLERS))
    granted, refused = crowd.reserve_all(16, idempotency_key="order-66", body_sha256="ab" * 32)
    assert len(granted) == crowd.meter.open_count == 1
    assert refused.keys() <= {"duplicate_request", "contention"}


def test_top_ups_share_what_is_left_to_the_token(table: Table) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=10 * AMOUNT + 7 * 50 + 49, max_open_reservations=CALLERS))
    granted, _ = crowd.reserve_all(10)
    bigger: list[Grant] = []

    def top_up(grant: Grant) -> None:
        with suppress(QuotaExceededError):
            bigger.append(crowd.ledger().top_up(grant, 50))

    at_once([lambda grant=grant: top_up(grant) for grant in granted])  # type: ignore[misc]
    assert len(bigger) == 7
    assert crowd.meter.remaining_tokens == 49


def test_a_settlement_and_a_sweep_of_one_reservation_exclude_each_other(table: Table) -> None:
    """Sixteen processes sweep while the owner comes back late: charged once, by the owner's figure."""
    crowd = Crowd(table, a_plan(quota_tokens=1_000_000, max_open_reservations=CALLERS))
    granted, _ = crowd.reserve_all(32)
    crowd.clock.seconds += 10_000
    meter = crowd.meter
    late: list[bool] = []
    calls: list[Callable[[], object]] = [
        lambda grant=grant: late.append(crowd.ledger().settle(grant, Settlement(60)).late)  # type: ignore[misc]
        for grant in granted
    ]
    swept: list[int] = []
    calls += [lambda: swept.append(crowd.ledger().sweep(meter, ExpiryPolicy.STRICT))] * 16
    random.Random(SEED).shuffle(calls)
    at_once(calls)
    meter = crowd.meter
    assert (meter.open_count, meter.settled_tokens) == (0, 32 * 60)
    assert sum(swept) == sum(late)


def test_calls_and_changes_of_plan_at_once_leave_no_token_and_no_cent_behind(table: Table) -> None:
    """Both plans have one price, so whatever the order was, all overage is owed at it."""
    small = a_plan(quota_kind=QuotaKind.SOFT, overage_cap_tokens=10**6, overage_price_microusd_per_1k_tokens=7)
    crowd = Crowd(table, replace(small, max_open_reservations=CALLERS))
    big = replace(crowd.plan, id="big", quota_tokens=2_000)
    latest, charged = [crowd.account], []

    def call(number: int) -> None:
        ledger, account = crowd.ledger(), crowd.account
        for _ in range(20):
            try:
                grant = ledger.reserve(account, crowd.key, an_ask(AMOUNT))
            except (StaleAccountError, RateLimitedError):
                account = latest[0]
                continue
            charged.append(ledger.settle(grant, Settlement(AMOUNT - number % 3)).charged_tokens)
            return

    def change_plans() -> None:
        for plan in (big, crowd.plan) * 5:
            with suppress(StoreUnavailableError):
                entitlements = Entitlements(plan.id, None)
                latest[0] = crowd.ledger().change_entitlements(latest[0], entitlements, plan)

    at_once([partial(call, number) for number in range(CALLERS - 1)] + [change_plans])
    meter = crowd.meter
    assert meter.settled_tokens == sum(charged) > 4_000
    assert meter.overage_tokens > 0
    assert meter.overage_nanousd == meter.overage_tokens * 7
    assert meter.plan_version == latest[0].profile.plan_version > 1


def test_an_end_that_everybody_repeats_is_booked_once(table: Table) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=1_000_000, max_open_reservations=CALLERS))
    [grant], _ = crowd.reserve_all(1)
    grant = replace(grant, sent_twice=True)
    at_once([lambda: crowd.ledger().settle(grant, Settlement(60, counts=TokenCounts(output_tokens=60)))] * 32)
    meter = crowd.meter
    assert (meter.settled_tokens, meter.counts.output_tokens, meter.open_count) == (60, 60, 0)


# ---- API keys: their budgets, and how many there are


@pytest.mark.parametrize(("budget", "fitting"), [(11 * AMOUNT - 1, 10), (11 * AMOUNT, 11), (11 * AMOUNT + 1, 11)])
def test_as_many_reservations_are_granted_as_fit_a_keys_budget(table: Table, budget: int, fitting: int) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=1_000_000, max_open_reservations=CALLERS))
    granted, refused = crowd.reserve_all(limits=KeyLimits("key1", "key1", budget_tokens=budget))
    assert len(granted) == fitting
    assert refused == {"key_budget_exceeded": CALLERS - fitting}
    assert crowd.meter.key_tokens == {"key1": fitting * AMOUNT}
    at_once([lambda grant=grant: crowd.ledger().settle(grant, Settlement(60)) for grant in granted])  # type: ignore[misc]
    assert crowd.meter.key_tokens == {"key1": fitting * 60}


def test_callers_that_may_be_clamped_share_the_last_token_of_a_key(table: Table) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=1_000_000, max_open_reservations=CALLERS))
    limits = KeyLimits("key1", "key1", budget_tokens=11 * AMOUNT + 57)
    granted, refused = crowd.reserve_all(may_clamp=True, limits=limits)
    assert sorted(grant.reservation.amount_tokens for grant in granted) == [57, *[AMOUNT] * 11]
    assert refused == {"key_budget_exceeded": CALLERS - 12}


def test_top_ups_share_what_a_key_has_left_to_the_token(table: Table) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=1_000_000, max_open_reservations=CALLERS))
    granted, _ = crowd.reserve_all(10, limits=KeyLimits("key1", "key1", budget_tokens=10 * AMOUNT + 7 * 50 + 49))
    bigger: list[Grant] = []

    def top_up(grant: Grant) -> None:
        with suppress(QuotaExceededError):
            bigger.append(crowd.ledger().top_up(grant, 50))

    at_once([lambda grant=grant: top_up(grant) for grant in granted])  # type: ignore[misc]
    assert len(bigger) == 7
    assert crowd.meter.key_tokens == {"key1": 10 * AMOUNT + 7 * 50}


def test_a_keys_burst_is_as_large_as_it_says(table: Table) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=1_000_000, max_open_reservations=4 * CALLERS))
    limits = KeyLimits("key1", "key1", requests_per_minute=60, burst_requests=10)
    for wait_ms, fitting in ((0, 10), (999, 0), (1, 1), (2_500, 2)):
        crowd.clock.seconds += wait_ms / 1000
        granted, refused = crowd.reserve_all(limits=limits)
        assert (len(granted), refused) == (fitting, Counter({"key_rate_limited": CALLERS - fitting})), wait_ms


def a_ring(table: Table) -> KeyRing:
    catalog = load_catalog("default")
    pepper = lambda: b"pepper"  # noqa: E731
    return KeyRing(ApiKeys(table), Meters(table), catalog, pepper, Clock(), SystemIds(), allow_test_keys=False)


@pytest.mark.parametrize("most", [1, 5])
def test_as_many_keys_are_made_as_the_plan_allows(table: Table, most: int) -> None:
    crowd = Crowd(table, a_plan(max_api_keys=most))
    refused: Counter[str] = Counter()
    made: list[MintedKey] = []

    def make() -> None:
        try:
            made.append(a_ring(table).create(crowd.account, KeyWish("k")))
        except TollgateError as error:
            refused[error.error_code] += 1

    at_once([make] * CALLERS)
    assert len(made) <= most
    # Somebody who met others ten times in a row is told to try again; a place may be left over then, and is taken.
    while len(made) < most:
        make()
    refused.clear()
    at_once([make] * 8)
    assert len(made) == most
    assert refused.keys() <= {"api_key_limit_reached", "store_unavailable"}
    keys = ApiKeys(table)
    stored = list(keys.list_keys("main", crowd.key.user_id))
    places = keys.places("main", crowd.key.user_id).line_ids
    assert {key.id for key in stored} == places == {minted.key.id for minted in made}


def test_of_many_who_rotate_a_key_one_does_and_a_revocation_excludes_the_rest(table: Table) -> None:
    crowd = Crowd(table, a_plan(max_api_keys=3))
    owner = Principal("main", crowd.key.user_id, CredentialKind.ACCESS_TOKEN, "client")
    minted = a_ring(table).create(crowd.account, KeyWish("k"))
    rotated: list[MintedKey] = []

    def rotate() -> None:
        with suppress(ConflictError, StoreUnavailableError):
            rotated.append(a_ring(table).rotate(owner, minted.key.id, 60)[0])

    def revoke() -> None:
        a_ring(table).revoke(owner, minted.key.id)

    at_once([rotate] * 12 + [revoke])
    keys = ApiKeys(table)
    alive = {key.id for key in keys.list_keys("main", crowd.key.user_id) if key.revoked_at is None}
    assert len(rotated) <= 1
    assert alive == {new.key.id for new in rotated}
    assert keys.places("main", crowd.key.user_id).line_ids == ({minted.key.id} if rotated else set())


def test_places_are_exact_while_keys_are_rotated_revoked_and_made_at_once(table: Table) -> None:
    """Each rotation ends a key at once, so whoever looks for dead places in between must not take its line for dead."""
    most, rounds = 3, 12
    crowd = Crowd(table, a_plan(max_api_keys=most))
    owner = Principal("main", crowd.key.user_id, CredentialKind.ACCESS_TOKEN, "client")
    keys = ApiKeys(table)

    def living() -> list[ApiKey]:
        now = crowd.clock.now_seconds()
        return [key for key in keys.list_keys("main", crowd.key.user_id) if key.refusal_at(now) is None]

    def rotate(key_id: str) -> None:
        with suppress(ConflictError, StoreUnavailableError):
            a_ring(table).rotate(owner, key_id, 0)

    def make() -> None:
        with suppress(PermissionDeniedError, StoreUnavailableError):
            a_ring(table).create(crowd.account, KeyWish("k"))

    for number in range(rounds):
        for _ in range(most):
            make()
        alive = living()
        assert len(alive) == most
        if number % 2:
            a_ring(table).revoke(owner, alive[0].id)
        at_once([*[make] * 4, *[partial(rotate, key.id) for key in alive] * 2])
        assert len(living()) <= most
        assert {key.line_id for key in living()} <= keys.places("main", crowd.key.user_id).line_ids


# ---- several processes


PROCESS = """
import sys
from tests.flows.test_concurrency import reserve_in_a_process
reserve_in_a_process(*sys.argv[1:])
"""


def reserve_in_a_process(url: str, name: str, user_id: str, quota_tokens: str) -> None:
    """What each process of the test below does: waits for the word, asks from 16 threads, prints what it got."""
    client = ExactTable("", url, name).client(attempts=3, connections=16)
    crowd = Crowd.__new__(Crowd)
    crowd.plan = a_plan(quota_tokens=int(quota_tokens), max_open_reservations=CALLERS)
    crowd.clock, crowd.meters = Clock(), Meters(Table(client, name))
    crowd.account = Account(Profile("main", user_id, crowd.plan.id, 1, START), crowd.plan)
    crowd.key = MeterKey("main", user_id, period_at(crowd.plan.period_kind, START, START))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    granted, refused = crowd.reserve_all(16)
    sys.stdout.write(f"{len(granted)} {sum(refused.values())}\n")


def test_four_processes_of_sixteen_threads_are_granted_what_fits(engine: ExactTable, table: Table) -> None:
    crowd = Crowd(table, a_plan(quota_tokens=11 * AMOUNT + 99, max_open_reservations=CALLERS))
    arguments = [engine.url, engine.name, crowd.key.user_id, str(crowd.plan.quota_tokens)]
    command = [sys.executable, "-c", PROCESS, *arguments]
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": f"{root / 'layers' / 'core'}:{root / 'layers' / 'stream_runtime'}:{root}"}
    processes = [
        subprocess.Popen(command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        answers = []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            printed, _ = process.communicate(timeout=30)
            answers.append([int(word) for word in printed.split()])
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert sum(granted for granted, _ in answers) == 11
    assert sum(refused for _, refused in answers) == CALLERS - 11
    assert crowd.meter.remaining_tokens == 99


# ---- everything at once


@dataclass
class Books:
    """What the callers were told, to be compared with what is stored."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    charged_tokens: int = 0
    written_off_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    abandoned: list[Grant] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def note(self, outcome: str, *, charged: int = 0, written_off: int = 0, output: int = 0, requests: int = 0) -> None:
        with self.lock:
            self.outcomes[outcome] += 1
            self.charged_tokens += charged
            self.written_off_tokens += written_off
            self.output_tokens += output
            self.requests += requests


def live(crowd: Crowd, books: Books, dice: random.Random, steps: int) -> None:
    """One process's life: calls that end in every way there is, and a sweep now and then."""
    ledger = crowd.ledger()
    for _ in range(steps):
        if dice.random() < 0.1:
            sweep(crowd, books, ledger)
        deadline = crowd.clock.now_seconds() + dice.choice([-200, 30])  # some owners are long dead when they end
        ask = an_ask(dice.randint(20, 400), deadline_at_seconds=deadline, may_clamp=dice.random() < 0.5)
        try:
            grant = ledger.reserve(crowd.account, crowd.key, ask)
        except (QuotaExceededError, RateLimitedError) as error:
            books.note(error.error_code)
            continue
        if dice.random() < 0.3:
            try:
                grant = ledger.top_up(grant, dice.randint(1, 200))
            except QuotaExceededError:
                books.note("top_up_refused")
        end(books, ledger, grant, dice)


def end(books: Books, ledger: Ledger, grant: Grant, dice: random.Random) -> None:
    luck = dice.random()
    if luck < 0.15:
        with books.lock:
            books.abandoned.append(grant)
        return
    if luck < 0.3:
        ledger.release(grant)
        books.note("released")
        return
    used = dice.randint(0, grant.reservation.amount_tokens + 100)
    settled = ledger.settle(grant, Settlement(used, counts=TokenCounts(output_tokens=used)))
    assert settled.charged_tokens + settled.written_off_tokens == used
    books.note(
        "late" if settled.late else "settled",
        charged=settled.charged_tokens,
        written_off=settled.written_off_tokens,
        output=used,
        requests=1,
    )


def sweep(crowd: Crowd, books: Books, ledger: Ledger) -> None:
    meter = crowd.meters.find(crowd.key)
    if meter is not None:
        ended = ledger.sweep(meter, crowd.plan.expiry_policy)
        with books.lock:
            books.outcomes["swept"] += ended


def watch(crowd: Crowd, done: threading.Event, seen: list[int]) -> None:
    """Looks at the meter all the time; every look is one moment, as the item is read whole."""
    while not done.is_set():
        if crowd.meters.find(crowd.key) is not None:
            meter = crowd.meter
            seen.append(meter.settled_tokens + meter.reserved_tokens)
        time.sleep(0.005)


@pytest.mark.parametrize("policy", ExpiryPolicy)
def test_whatever_happens_at_once_the_books_agree_in_the_end(table: Table, policy: ExpiryPolicy) -> None:
    """Reservations, top-ups, ends, crashes, sweeps and late owners of 24 processes, all at the limit.

    Each call's charge as it was told adds up to what is stored, at no moment is more than the quota settled and
    reserved, and nothing stays held.
    """
    crowd = Crowd(table, a_plan(quota_tokens=20_000, max_open_reservations=20, expiry_policy=policy))
    books, done, seen = Books(), threading.Event(), [0]
    watcher = threading.Thread(target=watch, args=(crowd, done, seen))
    watcher.start()
    try:
        lives = [random.Random(f"{SEED} {policy} {number}") for number in range(24)]
        at_once([lambda dice=dice: live(crowd, books, dice, 8) for dice in lives])  # type: ignore[misc]
    finally:
        done.set()
        watcher.join()
    assert max(seen) <= 20_000
    crowd.clock.seconds += 10_000
    sweep(crowd, books, crowd.ledger())
    for number, grant in enumerate(books.abandoned):  # every second dead owner comes back after all
        if number % 2:
            settled = crowd.ledger().settle(grant, Settlement(7))
            assert settled.late
            books.note("came back", charged=settled.charged_tokens, written_off=settled.written_off_tokens, requests=1)
    meter = crowd.meter
    expired = [record for record in records(table, crowd) if record["outcome"] == "expired"]
    assert (meter.open_count, meter.reserved_tokens) == (0, 0)
    assert meter.settled_tokens == books.charged_tokens + sum(record["charged"] for record in expired)
    assert meter.settled_tokens <= 20_000
    assert meter.written_off_tokens == books.written_off_tokens + sum(record["written_off"] for record in expired)
    assert meter.counts.output_tokens == books.output_tokens
    assert meter.settled_requests == books.requests + len(expired)
    assert min(books.outcomes[each] for each in ("settled", "swept", "came back", "released")) > 0, books.outcomes


def records(table: Table, crowd: Crowd) -> list[dict[str, Any]]:
    """What sweeps have left of this user's reservations."""
    pk = f"TENANT#main#USER#{crowd.key.user_id}"
    answer = table.client.query(
        TableName=table.name,
        KeyConditionExpression="PK = :pk AND begins_with(SK, :sk)",
        ExpressionAttributeValues={":pk": {"S": pk}, ":sk": {"S": "EXPIRED#"}},
    )
    return [plain(item) for item in answer["Items"]]
