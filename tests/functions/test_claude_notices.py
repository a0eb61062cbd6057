"""Usage thresholds at the data plane, through the real handler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.support.claude_function import ClaudeFunction, claude_function
from tests.support.ledger_world import Counting, an_ask
from tollgate.catalog.loader import load_catalog
from tollgate.domain.ledger import Grant, Settlement
from tollgate.domain.plans import Plan
from tollgate.domain.principals import Account
from tollgate.domain.subscriptions import Entitlements
from tollgate.flows.ledger import Ledger, account_key
from tollgate.storage.meters import Meters
from tollgate.storage.users import Users
from tollgate.wiring import SystemClock

FREE = load_catalog("default").plan("free")
"""A hard quota of 100,000 tokens; what a call that crashed had reserved is charged whole."""
LONG = "word " * 36_000
"""Needs more than a quarter of it."""


@pytest.fixture(scope="module")
def container() -> Iterator[ClaudeFunction]:
    with pytest.MonkeyPatch.context() as monkeypatch, claude_function(monkeypatch) as function:
        yield function


@pytest.fixture
def function(container: ClaudeFunction) -> ClaudeFunction:
    container.next_caller("free")
    return container


def account_of(function: ClaudeFunction, plan: Plan) -> Account:
    profile = Users(function.table).find_profile("main", function.user_id)
    assert profile is not None
    return Account.of(profile, plan)


def reserve(function: ClaudeFunction, tokens: int, *, seconds: float = 60, plan: Plan = FREE) -> tuple[Ledger, Grant]:
    """A call of the user that another process has begun, and may run for so long."""
    account = account_of(function, plan)
    ledger = Ledger(Meters(function.table), SystemClock(), Counting(f"before{tokens}"))
    ask = an_ask(tokens, deadline_at_seconds=time.time() + seconds)
    return ledger, ledger.reserve(account, account_key(account, datetime.now(UTC)), ask)


def use(function: ClaudeFunction, tokens: int, plan: Plan = FREE) -> Ledger:
    """Earlier calls of the user, in another process."""
    ledger, grant = reserve(function, tokens, plan=plan)
    ledger.settle(grant, Settlement(tokens))
    return ledger


def percents(function: ClaudeFunction) -> list[int]:
    return [item["threshold_percent"] for item in function.items("Notice")]


def test_an_answer_tells_the_share_that_was_used_before_it(function: ClaudeFunction) -> None:
    use(function, 42_999)
    answer = function.send()
    assert answer.headers["tollgate-quota-used-percent"] == "42"


def test_the_call_that_reaches_a_threshold_leaves_one_notice(function: ClaudeFunction) -> None:
    use(function, 74_999)
    assert percents(function) == []
    assert function.send().status == 200
    assert percents(function) == [75]
    [noted] = function.items("Notice")
    assert function.send().status == 200
    assert function.items("Notice") == [noted]


def test_a_call_below_every_threshold_writes_nothing_of_it(function: ClaudeFunction) -> None:
    assert function.send().status == 200
    assert percents(function) == []


def shares(function: ClaudeFunction) -> set[tuple[int, int]]:
    """(used, quota) of every notice."""
    return {(item["used"], item["quota"]) for item in function.items("Notice")}


class TestARefusedCall:
    def test_tells_what_a_sweep_has_charged(self, function: ClaudeFunction) -> None:
        """The process of a call of nearly all the quota died; whatever the user sends now is refused."""
        reserve(function, 99_990, seconds=-120)
        answer = function.send(LONG)
        assert (answer.status, answer.error["type"]) == (429, "billing_error")
        assert shares(function) == {(99_990, 100_000)}
        assert percents(function) == [75, 90], "not 100: it is 99 %"

    def test_tells_what_a_smaller_plan_has_made_of_it(self, function: ClaudeFunction) -> None:
        larger = replace(FREE, id="pro", quota_tokens=1_000_000)
        function.next_caller("pro")
        ledger = use(function, 400_000, plan=larger)
        assert percents(function) == []
        ledger.change_entitlements(account_of(function, larger), Entitlements("free", None), FREE)
        assert function.send().status == 429
        assert percents(function) == [75, 90, 100]
        assert shares(function) == {(400_000, 400_000)}, "the smaller plan's quota ends at what was used"

    @pytest.mark.parametrize(("used", "noted"), [(74_999, []), (75_000, [75]), (97_000, [75, 90]), (99_999, [75, 90])])
    def test_for_which_too_little_is_left_passes_no_threshold_by_itself(
        self, function: ClaudeFunction, used: int, noted: list[int]
    ) -> None:
        """A hard quota may end below 100 %, and is then said to be where it is."""
        use(function, used)
        answer = function.send(LONG)
        assert answer.status == 429
        assert percents(function) == noted
        assert shares(function) <= {(used, 100_000)}

    def test_does_not_count_what_running_calls_hold(self, function: ClaudeFunction) -> None:
        reserve(function, 99_990)
        assert function.send(LONG).status == 429
        assert percents(function) == []

    def test_costs_no_write_from_the_second_on(self, function: ClaudeFunction) -> None:
        use(function, 100_000)
        assert function.send().status == 429
        assert percents(function) == [75, 90, 100]
        function.table.calls.clear()
        for _ in range(10):
            assert function.send().status == 429
        assert function.table.calls["PutItem"] == 0
