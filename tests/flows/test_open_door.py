"""The door of the open routes: who may ask how often, and what a refusal costs."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from tests.simulation.memory_table import MemoryTable
from tests.support.clocks import FakeClock
from tests.support.sam import functions_of, load_template
from tests.support.scripted_dynamodb import Fate, ScriptedClient
from tollgate.catalog.email_domains import EmailDomains
from tollgate.domain.errors import InvalidRequestError, RateLimitedError, StoreUnavailableError
from tollgate.domain.open_routes import OPEN_ROUTES, Subject
from tollgate.flows.open_door import Doorkeeper
from tollgate.storage.rate_limits import RateLimits
from tollgate.storage.table import Table

HOME = "203.0.113.7"
AWAY = "198.51.100.20"
ADA = "ada@example.com"
HOUR = 3600


class Door:
    """One table, one clock, and as many processes as a test wants."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.table = MemoryTable("t")
        self.client = ScriptedClient(self.table, self.clock.now_seconds)
        self.keeper = self.another()

    def another(self, *, secret: bytes = b"pepper", percent: int = 100) -> Doorkeeper:
        limits = RateLimits(Table(cast("Any", self.client), "t"))
        domains = EmailDomains(frozenset({"trash.example"}))
        return Doorkeeper(limits, domains, lambda: secret, self.clock, percent=percent)

    def admitted(self, route: str, ip: str | None = HOME, email: str | None = ADA, *, asks: int = 1) -> int:
        """How many of so many asks pass."""
        return sum(self.wait(route, ip, email) is None for _ in range(asks))

    def wait(self, route: str, ip: str | None = HOME, email: str | None = ADA) -> int | None:
        """None when the ask passes, else the seconds it is told to wait."""
        try:
            self.keeper.admit(route, ip, email=email)
        except RateLimitedError as error:
            refusal = error
        else:
            return None
        assert refusal.error_code == "too_many_attempts"
        assert type(refusal.retry_after_seconds) is int
        assert refusal.retry_after_seconds >= 1
        return refusal.retry_after_seconds


@pytest.fixture
def door() -> Door:
    return Door()


def mail(number: int) -> str:
    return f"user{number}@example.com"


# --- Rates


@pytest.mark.parametrize("route", [route for route, limits in OPEN_ROUTES.items() if not limits.guards_password])
def test_each_rate_lets_its_burst_pass_and_then_one_an_interval(door: Door, route: str) -> None:
    """Each rate alone: what else the route counts is spread over others. Of two by one subject the tighter shows."""
    for subject in {rate.subject for rate in OPEN_ROUTES[route].rates}:
        rate = min((rate for rate in OPEN_ROUTES[route].rates if rate.subject is subject), key=lambda rate: rate.burst)
        for number in range(rate.burst):
            assert ask_within(door, route, rate.subject, number)
        assert not ask_within(door, route, rate.subject, rate.burst)
        door.clock.advance(rate.interval_ms / 1000 - 0.002)
        assert not ask_within(door, route, rate.subject, rate.burst)
        door.clock.advance(0.002)
        assert ask_within(door, route, rate.subject, rate.burst)
        assert not ask_within(door, route, rate.subject, rate.burst + 1)
        door.clock.advance(30 * 24 * HOUR)


def ask_within(door: Door, route: str, subject: Subject, number: int) -> bool:
    """One ask by the same subject, and by a new one in every other respect."""
    ip = {Subject.NETWORK: f"203.0.113.{number}", Subject.MAILBOX: f"10.{number}.{number}.1"}.get(subject, HOME)
    return door.wait(route, ip, ADA if subject in (Subject.MAILBOX, Subject.PAIR) else mail(number)) is None


def test_the_wait_is_told_in_whole_seconds_and_is_enough(door: Door) -> None:
    for number in range(10):
        assert door.wait("/auth/register", email=mail(number)) is None
    wait = door.wait("/auth/register", email=mail(11))
    assert wait == 24 * HOUR // 10
    door.clock.advance(wait)
    assert door.wait("/auth/register", email=mail(11)) is None


def test_at_most_twenty_accounts_are_made_from_one_address_in_any_day(door: Door) -> None:
    made = []
    for minute in range(3 * 24 * 60):
        if door.wait("/auth/register", email=mail(minute)) is None:
            made.append(minute)
        door.clock.advance(60)
    assert len(made) == 10 + 3 * 10 - 1
    assert max(sum(start <= minute < start + 24 * 60 for minute in made) for start in made) <= 20


def test_other_addresses_are_not_held_up(door: Door) -> None:
    for number in range(11):
        door.wait("/auth/register", email=mail(number))
    assert door.wait("/auth/register", HOME, mail(20)) is not None
    assert door.wait("/auth/register", AWAY, mail(20)) is None


def test_mails_to_one_mailbox_are_few_whichever_route_sends_them_and_wherever_it_is_asked(door: Door) -> None:
    spellings = [ADA, "ADA@example.com", "ada+1@Example.com", " ada+news@example.com."]
    routes = ["/auth/register", "/auth/resend", "/auth/password/forgot", "/auth/resend"]
    passed = [
        door.wait(route, f"10.0.{number}.1", email) is None
        for number, (route, email) in enumerate(zip(routes, spellings, strict=True))
    ]
    assert passed == [True, True, True, False]


def test_an_address_is_what_api_gateway_saw_and_a_64_of_ipv6_is_one(door: Door) -> None:
    same = ["2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:0DB8:1:2::7"]
    assert sum(door.wait("/auth/register", same[n % 3], mail(n)) is None for n in range(15)) == 10
    assert door.wait("/auth/register", "2001:db8:1:3::1", mail(20)) is None
    assert sum(door.wait("/auth/register", ip, mail(n)) is None for n, ip in enumerate(["::ffff:10.0.0.1"] * 11)) == 10
    assert door.wait("/auth/register", "10.0.0.1", mail(30)) is not None


def test_one_mailbox_makes_at_most_ten_accounts_in_any_day(door: Door) -> None:
    """Each with another +tag and from another address."""
    made = []
    for minute in range(2 * 24 * 60):
        if door.wait("/auth/register", f"10.{minute // 250}.{minute % 250}.1", f"ada+{minute}@example.com") is None:
            made.append(minute)
        door.clock.advance(60)
    assert max(sum(start <= minute < start + 24 * 60 for minute in made) for start in made) in (9, 10)


def test_a_network_that_changes_its_address_every_time_is_held_up_too(door: Door) -> None:
    addresses = [f"2001:db8:1:{number:x}::1" for number in range(60)]
    assert sum(door.wait("/auth/register", ip, mail(n)) is None for n, ip in enumerate(addresses)) == 50


@pytest.mark.parametrize("unreadable", [None, "", " ", "localhost", "1.2.3", "1.2.3.4, 5.6.7.8", "1.2.3.4:80", "\x00"])
def test_without_a_readable_address_all_share_one_allowance(door: Door, unreadable: str | None) -> None:
    assert sum(door.wait("/auth/register", "", mail(n)) is None for n in range(9)) == 9
    assert door.wait("/auth/register", unreadable, mail(20)) is None
    assert door.wait("/auth/register", unreadable, mail(21)) is not None


def test_many_users_behind_one_address_are_a_matter_of_settings(door: Door) -> None:
    """The mailbox has one owner whatever the setting says."""
    door.keeper = door.another(percent=300)
    assert sum(door.wait("/auth/register", email=mail(n)) is None for n in range(40)) == 30
    assert door.admitted("/auth/resend", AWAY, asks=10) == 3
    door.keeper = door.another(percent=1)
    assert sum(door.wait("/auth/resend", "192.0.2.1", mail(n)) is None for n in range(40)) == 1


def test_a_route_that_counts_mailboxes_cannot_be_asked_without_one(door: Door) -> None:
    with pytest.raises(ValueError, match="needs the e-mail"):
        door.keeper.admit("/auth/resend", HOME)


def test_every_open_route_of_the_template_has_limits() -> None:
    """But what touches nothing before it has said who may go on: reachability, the price list, signed webhooks."""
    functions = functions_of(load_template()).values()
    events = [event for function in functions for event in function.get("Events", {}).values()]
    open_paths = {
        event["Properties"]["Path"]
        for event in events
        if event["Type"] == "HttpApi" and event["Properties"].get("Auth") == {"Authorizer": "NONE"}
    }
    assert open_paths - {"/health", "/billing/plans", "/stripe/webhook"} == set(OPEN_ROUTES)


# --- What a flood costs


@pytest.mark.parametrize("route", OPEN_ROUTES)
def test_after_the_first_refusal_a_flood_costs_no_call_of_the_table(door: Door, route: str) -> None:
    while door.wait(route) is None:
        pass
    door.client.calls.clear()
    began = time.process_time()
    assert door.admitted(route, asks=2_000) == 0
    assert (time.process_time() - began) / 2_000 < 0.001
    assert door.client.calls == []


def test_a_flood_of_made_up_mailboxes_costs_no_call_either(door: Door) -> None:
    for number in range(400):
        door.wait("/auth/login", HOME, mail(number))
    door.client.calls.clear()
    assert sum(door.wait("/auth/login", HOME, mail(number)) is None for number in range(1_000)) == 0
    assert door.client.calls == []


def test_who_is_admitted_costs_one_write_a_limit(door: Door) -> None:
    door.wait("/auth/resend")
    assert door.client.calls == ["UpdateItem"] * 2


def test_another_process_refuses_at_its_first_look(door: Door) -> None:
    for number in range(12):
        door.wait("/auth/register", email=mail(number))
    door.keeper = door.another()
    assert door.admitted("/auth/register", email=mail(40)) == 0


def test_a_table_that_was_emptied_is_no_reason_to_fail(door: Door) -> None:
    """As `make dev` does when it starts anew under a process that remembers."""
    for number in range(5):
        door.wait("/auth/register", email=mail(number))
    door.table.partitions.clear()
    assert door.wait("/auth/register", email=mail(9)) is None


def test_when_the_table_is_silent_nobody_passes(door: Door) -> None:
    door.client.next_calls(Fate.NEVER_ARRIVED)
    with pytest.raises(StoreUnavailableError):
        door.keeper.admit("/auth/register", HOME, email=ADA)


def test_an_answer_that_was_lost_never_lets_more_pass(door: Door) -> None:
    door.client.next_calls(*[Fate.ANSWER_LOST_THEN_RETRIED] * 100)
    assert sum(door.wait("/auth/register", email=mail(n)) is None for n in range(30)) <= 10


# --- What is stored


def test_nothing_stored_tells_an_address_or_an_e_mail_and_all_of_it_ends(door: Door) -> None:
    for route in OPEN_ROUTES:
        door.wait(route)
    door.keeper.succeeded("/auth/login", HOME, email=ADA)
    items = [item for _, _, item in door.table.items()]
    assert {item["Type"]["S"] for item in items} == {"OpenRouteRate", "SignInFailures", "KnownAddress"}
    for item in items:
        assert not any(word in str(item) for word in (HOME, "203.0.113", "ada", "example"))
        ends = int(item["expires_at"]["N"])
        assert door.clock.now_seconds() < ends <= door.clock.now_seconds() + 31 * 24 * HOUR


def test_what_is_stored_cannot_be_recomputed_without_the_secret(door: Door) -> None:
    """Four thousand million IPv4 addresses are hashed in an hour; only the key keeps the digest from being read."""
    keys = set()
    for secret in (b"pepper", b"another"):
        door.another(secret=secret).admit("/api-keys/report", HOME)
        keys.add(frozenset(pk for pk, _, _ in door.table.items()))
    assert sorted(len(found) for found in keys) == [1, 2]


# --- Disposable addresses


@pytest.mark.parametrize("email", ["a@trash.example", "a@TRASH.example", "a@mx.trash.example", "a+b@trash.example."])
def test_a_disposable_address_is_refused_openly_and_before_anything_is_written(door: Door, email: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        door.keeper.admit("/auth/register", HOME, email=email)
    assert refusal.value.error_code == "email_domain_not_accepted"
    assert door.client.calls == []


@pytest.mark.parametrize("email", ["a@example.com", "trash.example@example.com", "a@nottrash.example", "a@example"])
def test_other_addresses_may_register(door: Door, email: str) -> None:
    assert door.wait("/auth/register", HOME, email) is None


def test_who_has_an_account_may_use_it_whatever_its_domain(door: Door) -> None:
    assert door.wait("/auth/login", HOME, "a@trash.example") is None


# --- Failed sign-ins


def test_five_wrong_passwords_are_free_and_then_each_doubles_the_wait(door: Door) -> None:
    """The wait grows to five minutes, from whichever address one comes: each time another here."""
    addresses = (f"10.{number // 250}.{number % 250}.1" for number in range(10_000))
    waits = []
    for _ in range(20):
        wait = door.wait("/auth/login", next(addresses))
        if wait is not None:
            waits.append(wait)
            door.clock.advance(wait - 1)
            assert door.wait("/auth/login", next(addresses)) == 1
            door.clock.advance(1)
            assert door.wait("/auth/login", next(addresses)) is None
    assert waits[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert set(waits[10:]) == {300}


def test_a_wait_is_whole_also_between_two_seconds(door: Door) -> None:
    door.clock.advance(0.999)
    assert door.admitted("/auth/login", asks=9) == 5
    door.clock.advance(1)
    assert door.wait("/auth/login") is not None
    door.clock.advance(0.002)
    assert door.wait("/auth/login") is None


def test_one_address_that_tries_many_mailboxes_has_twenty_tries(door: Door) -> None:
    assert sum(door.wait("/auth/login", HOME, mail(number)) is None for number in range(30)) == 20
    assert door.wait("/auth/login", AWAY, mail(40)) is None
    door.clock.advance(1)
    assert sum(door.wait("/auth/login", HOME, mail(number)) is None for number in range(50, 60)) == 1
    assert door.wait("/auth/login", HOME, mail(70)) == 2


def test_a_success_resets_the_mailbox(door: Door) -> None:
    for _ in range(5):
        assert door.admitted("/auth/login", asks=4) == 4
        door.keeper.succeeded("/auth/login", HOME, email=ADA)
        door.clock.advance(60)


def test_a_success_with_an_account_of_ones_own_buys_no_guesses_at_others(door: Door) -> None:
    def guesses(address: str, *, signs_in: bool) -> int:
        passed = 0
        for number in range(200):
            door.clock.advance(10)
            if signs_in and door.admitted("/auth/login", address, "eve@example.com"):
                door.keeper.succeeded("/auth/login", address, email="eve@example.com")
            passed += door.admitted("/auth/login", address, mail(number))
        return passed

    assert guesses(HOME, signs_in=True) == guesses(AWAY, signs_in=False) < 40


def test_a_success_that_is_told_again_and_again_buys_no_tries(door: Door) -> None:
    """As a second factor does: the password's success and the code's are one."""
    door.wait("/auth/login")
    for _ in range(9):
        door.keeper.succeeded("/auth/login", HOME, email=ADA)
    door.clock.advance(60)
    assert sum(door.wait("/auth/login", HOME, mail(number)) is None for number in range(30)) == 20


def test_an_office_that_signs_in_at_nine_is_not_held_up(door: Door) -> None:
    for number in range(300):
        assert door.wait("/auth/login", HOME, mail(number)) is None
        door.keeper.succeeded("/auth/login", HOME, email=mail(number))
        door.clock.advance(2)


def test_failures_are_forgotten_after_an_hour_of_quiet(door: Door) -> None:
    assert door.admitted("/auth/login", asks=9) == 5
    door.clock.advance(HOUR + 1)
    assert door.admitted("/auth/login", asks=9) == 5
    door.clock.advance(HOUR - 1)
    assert door.admitted("/auth/login", asks=9) == 1


def test_strangers_cannot_lock_the_owner_out_of_an_address_they_have_signed_in_from(door: Door) -> None:
    door.wait("/auth/login")
    door.keeper.succeeded("/auth/login", HOME, email=ADA)
    for number in range(60):
        door.wait("/auth/login", f"10.1.{number}.1")
    assert door.wait("/auth/login", "192.0.2.9") is not None, "a stranger waits"
    assert door.wait("/auth/login", HOME) is None
    door.keeper.succeeded("/auth/login", HOME, email=ADA)


def test_also_from_a_known_address_guesses_are_few(door: Door) -> None:
    door.wait("/auth/login")
    door.keeper.succeeded("/auth/login", HOME, email=ADA)
    assert door.admitted("/auth/login", asks=50) == 10
    for _ in range(15):
        wait = door.wait("/auth/login")
        assert wait is None or wait <= 900
        door.clock.advance(wait or 0)


def test_a_known_address_is_forgotten_after_a_month(door: Door) -> None:
    door.wait("/auth/login")
    door.keeper.succeeded("/auth/login", HOME, email=ADA)
    door.clock.advance(31 * 24 * HOUR)
    assert door.admitted("/auth/login", asks=9) == 5


def test_an_unreadable_address_is_never_a_known_one(door: Door) -> None:
    door.wait("/auth/login", None)
    door.keeper.succeeded("/auth/login", None, email=ADA)
    assert door.admitted("/auth/login", None, asks=20) == 5


def test_a_refused_attempt_on_a_mailbox_does_not_count_against_the_address(door: Door) -> None:
    for number in range(60):
        door.wait("/auth/login", f"10.1.{number}.1")
    for _ in range(25):
        assert door.wait("/auth/login", HOME) is not None
        door.keeper = door.another()
    door.clock.advance(60)
    assert sum(door.wait("/auth/login", HOME, mail(number)) is None for number in range(25)) == 20


def test_a_success_elsewhere_is_heard_of_within_ten_seconds(door: Door) -> None:
    assert door.admitted("/auth/login", asks=5) == 5
    for _ in range(8):
        door.clock.advance(door.wait("/auth/login") or 0)
    assert (door.wait("/auth/login") or 0) > 10
    door.another().succeeded("/auth/login", HOME, email=ADA)
    door.clock.advance(10)
    assert door.wait("/auth/login") is None


def test_success_is_no_matter_where_no_password_is_guarded(door: Door) -> None:
    door.keeper.succeeded("/auth/confirm", HOME, email=ADA)
    assert door.client.calls == []


def test_whether_an_account_exists_changes_nothing(door: Door) -> None:
    """The door never looks: known, unknown and impossible names wait the same."""
    waits = [
        [door.wait("/auth/login", f"10.{n}.{m}.1", name) for m in range(9)]
        for n, name in enumerate([ADA, "nobody@example.com", "no mailbox at all"])
    ]
    assert waits[0] == waits[1] == waits[2]
