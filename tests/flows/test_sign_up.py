"""An address may be registered by anybody: whatever strangers do and in whatever order, its owner's password counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from random import Random

import pytest

from tests.support.clocks import FakeClock, Reports
from tests.support.fake_cognito import POOL_ID, CognitoError, FakeCognito
from tests.support.moto_table import REGION, aws_session, set_credentials
from tests.support.user_pool import CLIENT_ID
from tollgate.domain.errors import InvalidRequestError, SignInUnavailableError
from tollgate.flows.sign_up import SignUp
from tollgate.providers.cognito_users import PoolRefusalError, Tokens, UserPool, user_pool_client

ADA = "ada@example.com"
OWNERS, STRANGERS = "correct horse battery", "chosen by a stranger"
WRONG_CODE = "000000"


class SeededIds:
    """`tollgate.domain.sources.IdSource`."""

    def __init__(self, seed: int = 4711) -> None:
        self._random = Random(seed)

    def new_id(self, length: int) -> str:
        return "".join(self._random.choices("0123456789abcdefghijklmnopqrstuvwxyz", k=length))

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


@dataclass
class World:
    cognito: FakeCognito
    pool: UserPool
    sign_up: SignUp
    reports: Reports

    def opens(self, password: str) -> bool:
        """Whether this password signs somebody in."""
        try:
            return isinstance(self.pool.sign_in(ADA, password), Tokens)
        except PoolRefusalError:
            return False

    def confirm(self, code: str | None = None, password: str = OWNERS) -> str:
        """`confirmed`, or the code of the refusal. Without `code`, the one in the newest mail."""
        try:
            self.sign_up.confirm(ADA, code or self.cognito.code_for(ADA), password)
        except InvalidRequestError as refusal:
            return refusal.error_code
        return "confirmed"


@pytest.fixture(params=[False, True], ids=["password first", "waiting first"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """On a pool that looks at the password first, and on one that tells anybody who waits for a code."""
    clock = FakeClock()
    with FakeCognito(clock.now_seconds) as cognito:
        cognito.tells_waiting_first = request.param
        set_credentials(monkeypatch)
        monkeypatch.setenv("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", cognito.url)
        client = user_pool_client(aws_session(), REGION)
        pool, reports = UserPool(client, pool_id=POOL_ID, client_id=CLIENT_ID), Reports()
        yield World(cognito, pool, SignUp(pool, clock, SeededIds(), reports), reports)
        client.close()


OWNER_STEPS = ("owner registers", "owner confirms")
STRANGER_STEPS = ("stranger registers", "stranger asks for a code", "stranger guesses a code", "stranger registers")


def orders() -> list[tuple[str, ...]]:
    """Every order of all steps in which each person's own come one after another."""
    places = set(permutations([*["owner"] * len(OWNER_STEPS), *["stranger"] * len(STRANGER_STEPS)]))
    found = []
    for who in sorted(places):
        steps = {"owner": iter(OWNER_STEPS), "stranger": iter(STRANGER_STEPS)}
        found.append(tuple(next(steps[name]) for name in who))
    return found


def test_in_every_order_the_strangers_password_never_works_and_the_owners_does(world: World) -> None:
    do: dict[str, Callable[[], object]] = {
        "owner registers": lambda: world.sign_up.register(ADA, None),
        "owner confirms": world.confirm,
        "stranger registers": lambda: world.sign_up.register(ADA, "A Stranger"),
        "stranger asks for a code": lambda: world.sign_up.resend_code(ADA),
        "stranger guesses a code": lambda: world.confirm(WRONG_CODE, STRANGERS),
    }
    assert len(orders()) == 15
    for order in orders():
        world.cognito.members.clear()
        for step in order:
            do[step]()
            assert not world.opens(STRANGERS), (order, step)
        assert world.opens(OWNERS), order
        assert len(world.cognito.members) == 1


def test_between_the_code_and_the_password_nobody_gets_in(world: World) -> None:
    """The two are two calls; what lies between them is a password that nobody has ever seen."""
    seen: list[bool] = []
    world.sign_up.register(ADA, None)
    world.cognito.meanwhile["AdminSetUserPassword"] = lambda: seen.extend(map(world.opens, (STRANGERS, OWNERS)))
    assert world.confirm() == "confirmed"
    assert seen == [False, False]


def test_of_two_who_send_the_same_code_at_once_one_chooses_the_password(world: World) -> None:
    world.sign_up.register(ADA, None)
    code, second = world.cognito.code_for(ADA), []
    world.cognito.meanwhile["AdminSetUserPassword"] = lambda: second.append(world.confirm(code, STRANGERS))
    assert world.confirm(code) == "confirmed"
    assert second == ["invalid_code"]
    assert (world.opens(OWNERS), world.opens(STRANGERS)) == (True, False)


def test_who_signed_the_address_up_at_cognito_itself_is_out_once_the_owner_has_confirmed(world: World) -> None:
    """Past our routes, so with a password they know. What they took in the moment between the two calls ends, too."""
    member = world.cognito.add(ADA, STRANGERS, confirmed=False)
    world.sign_up.register(ADA, None)
    taken: list[Tokens] = []

    def sign_in() -> None:
        tokens = world.pool.sign_in(ADA, STRANGERS)
        assert isinstance(tokens, Tokens)
        taken.append(tokens)

    world.cognito.meanwhile["AdminSetUserPassword"] = sign_in
    assert world.confirm() == "confirmed"
    assert (world.opens(STRANGERS), member.password) == (False, OWNERS)
    with pytest.raises(PoolRefusalError):
        world.pool.refresh(taken[0].refresh_token)
    assert world.opens(OWNERS)


def test_a_code_that_is_not_taken_sets_no_password_for_anybody(world: World) -> None:
    world.cognito.add(ADA, OWNERS)
    assert world.confirm(WRONG_CODE, STRANGERS) == "invalid_code"
    world.cognito.members.clear()
    assert world.confirm(WRONG_CODE, STRANGERS) == "invalid_code"
    world.sign_up.register(ADA, None)
    assert world.confirm(WRONG_CODE, STRANGERS) == "invalid_code"
    assert "AdminSetUserPassword" not in world.cognito.operations()


def test_a_confirmed_account_is_changed_by_nobody_who_registers_or_confirms_it_again(world: World) -> None:
    world.sign_up.register(ADA, None)
    code = world.cognito.code_for(ADA)
    world.confirm(code)
    member = world.cognito.member(ADA)
    world.sign_up.register(ADA, "A Stranger")
    assert world.confirm(code, STRANGERS) == "invalid_code"
    assert world.cognito.member(ADA) is member
    assert (member.password, len(world.cognito.mail)) == (OWNERS, 1)


def test_every_sign_up_has_a_password_of_its_own_that_nobody_gave(world: World) -> None:
    drawn = set()
    for _ in range(3):
        world.sign_up.register(ADA, None)
        drawn.add(world.cognito.members.popitem()[1].password)
    assert len(drawn) == 3
    assert all(len(password) == 44 for password in drawn)


@pytest.mark.parametrize("fault", ["InternalErrorException", "TooManyRequestsException", "UserNotFoundException"])
def test_an_account_whose_password_could_not_be_set_has_one_that_nobody_knows(world: World, fault: str) -> None:
    world.sign_up.register(ADA, None)
    world.cognito.faults["AdminSetUserPassword"] = [CognitoError(fault)] * 2
    with pytest.raises(SignInUnavailableError, match="/auth/password/forgot"):
        world.sign_up.confirm(ADA, world.cognito.code_for(ADA), OWNERS)
    assert not world.opens(OWNERS)
    world.sign_up.forget_password(ADA)
    world.sign_up.reset_password(ADA, world.cognito.code_for(ADA), OWNERS)
    assert world.opens(OWNERS)


def test_an_account_is_open_although_earlier_sign_ins_could_not_be_ended(world: World) -> None:
    world.sign_up.register(ADA, None)
    world.cognito.faults["AdminUserGlobalSignOut"] = [CognitoError("InternalErrorException")] * 2
    assert world.confirm() == "confirmed"
    assert world.opens(OWNERS)
    assert [name for name, _ in world.reports.lines] == ["sign_out_failed"]
