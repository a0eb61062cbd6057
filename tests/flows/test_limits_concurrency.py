"""The limits before sign-in and the pool, on a database that is exact under concurrency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest

from tests.flows.test_concurrency import CALLERS, at_once
from tests.support.clocks import FakeClock
from tests.support.ledger_world import START, a_plan, an_ask
from tollgate.catalog.email_domains import EmailDomains
from tollgate.domain.errors import TollgateError
from tollgate.domain.ledger import MeterKey
from tollgate.domain.open_routes import OPEN_ROUTES
from tollgate.domain.periods import period_at
from tollgate.domain.principals import Account, Profile
from tollgate.flows.ledger import Ledger
from tollgate.flows.open_door import Doorkeeper
from tollgate.storage.meters import Meters
from tollgate.storage.rate_limits import RateLimits
from tollgate.storage.table import Table, plain
from tollgate.storage.users import Users
from tollgate.wiring import SystemIds

pytestmark = pytest.mark.engine

numbers = count(1)


class Street:
    """Strangers at one address, each ask served by another process."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.clock = FakeClock()
        self.address = f"2001:db8:{next(numbers):x}::1"

    def keeper(self) -> Doorkeeper:
        return Doorkeeper(RateLimits(self.table), EmailDomains(frozenset()), lambda: b"pepper", self.clock)

    def admitted(self, route: str, email_of: Callable[[int], str], asks: int = CALLERS) -> int:
        """How many of so many asks at once pass; every other one is refused as too many."""
        seen: Counter[str] = Counter()

        def ask(number: int) -> None:
            try:
                self.keeper().admit(route, self.address, email=email_of(number))
            except TollgateError as error:
                seen[error.error_code] += 1
            else:
                seen["admitted"] += 1

        at_once([lambda number=number: ask(number) for number in range(asks)])  # type: ignore[misc]
        assert seen.keys() <= {"admitted", "too_many_attempts"}
        assert seen.total() == asks
        return seen["admitted"]


def a_stranger(number: int) -> str:
    return f"user{number}-{next(numbers)}@example.com"


@pytest.mark.parametrize("route", ["/auth/register", "/auth/resend", "/auth/confirm", "/auth/refresh"])
def test_as_many_pass_at_once_as_the_route_allows_one_address(table: Table, route: str) -> None:
    street = Street(table)
    [rate] = [rate for rate in OPEN_ROUTES[route].rates if rate.subject == "address"]
    burst, interval = min(rate.burst, CALLERS), rate.interval_ms / 1000
    assert street.admitted(route, a_stranger) == burst
    if burst < CALLERS:
        assert street.admitted(route, a_stranger) == 0
    street.clock.advance(interval * (rate.burst - burst) + interval)
    assert street.admitted(route, a_stranger) >= 1


def test_time_gives_back_one_by_one(table: Table) -> None:
    street = Street(table)
    interval = 24 * 3600 / 10
    for wait_seconds, passing in ((0, 10), (interval - 0.01, 0), (0.02, 1), (interval, 1), (2 * interval + 1, 2)):
        street.clock.advance(wait_seconds)
        assert street.admitted("/auth/register", a_stranger, asks=24) == passing


def test_mails_to_one_mailbox_are_three_at_once(table: Table) -> None:
    street = Street(table)
    mailbox = f"ada{next(numbers)}"
    assert street.admitted("/auth/resend", lambda number: f"{mailbox}+{number}@example.com", asks=10) == 3


def test_of_all_passwords_tried_at_once_for_one_mailbox_five_are_looked_at(table: Table) -> None:
    """Counted before it is known whether they are right: else all of them would be."""
    street = Street(table)
    mailbox = f"ada{next(numbers)}@example.com"
    # Thirty, which is what one address may ask at once.
    assert street.admitted("/auth/login", lambda _: mailbox, asks=30) == 5
    for wait_seconds in (1, 2, 4, 8, 16):
        street.clock.advance(wait_seconds)
        assert street.admitted("/auth/login", lambda _: mailbox, asks=wait_seconds) == 1


def test_of_all_passwords_tried_at_once_from_one_address_twenty_are_looked_at(table: Table) -> None:
    street = Street(table)
    assert street.admitted("/auth/login", a_stranger, asks=30) == 20


@pytest.mark.parametrize("places", [11, 63])
def test_fresh_users_at_once_get_the_places_that_the_pool_has(table: Table, places: int) -> None:
    """Two calls of each user at once: whoever gets in gets in once."""
    plan = a_plan(id=f"free{next(numbers)}", quota_tokens=1_000, pool_tokens=places * 1_000 + 999)
    meters, clock = Meters(table), FakeClock(START.timestamp())
    period = period_at(plan.period_kind, START, START)
    users = [f"{plan.id}-{number}" for number in range(CALLERS // 2 if places < 32 else CALLERS)]
    accounts = [Account(Users(table).create_profile(Profile("main", user, plan.id, 1, START)), plan) for user in users]
    seen: Counter[tuple[str, str]] = Counter()

    def call(account: Account) -> None:
        outcome = "served"
        for _ in range(20):  # so many at one item at once are told to try again
            try:
                Ledger(meters, clock, SystemIds()).reserve(
                    account, MeterKey("main", account.user_id, period), an_ask(10)
                )
            except TollgateError as error:
                outcome = error.error_code
            else:
                outcome = "served"
            if outcome not in {"contention", "store_unavailable"}:
                break
        seen[account.user_id, outcome] += 1

    calls = [lambda account=account: call(account) for account in accounts]
    at_once(calls * (CALLERS // len(calls)))
    served = {user for user, outcome in seen if outcome == "served"}
    assert {outcome for _, outcome in seen} <= {"served", "free_pool_exhausted"}
    assert len(served) == places
    [pool] = [
        plain(item)
        for item in table.client.scan(TableName=table.name)["Items"]
        if item["PK"]["S"] == f"TENANT#main#POOL#{plan.id}"
    ]
    assert pool["taken"] == places * 1_000
