"""Usage thresholds at the data plane, through the real handler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.support.claude_function import ClaudeFunction, claude_function
from tests.support.ledger_world import Counting, an_ask
from tollgate.catalog.loader import load_catalog
from tollgate.domain.ledger import Settlement
from tollgate.domain.principals import Account
from tollgate.flows.ledger import Ledger, account_key
from tollgate.storage.meters import Meters
from tollgate.storage.users import Users
from tollgate.wiring import SystemClock


@pytest.fixture(scope="module")
def container() -> Iterator[ClaudeFunction]:
    with pytest.MonkeyPatch.context() as monkeypatch, claude_function(monkeypatch) as function:
        yield function


@pytest.fixture
def function(container: ClaudeFunction) -> ClaudeFunction:
    container.next_caller("free")
    return container


def use(function: ClaudeFunction, tokens: int) -> None:
    """Earlier calls of the user, in another process."""
    profile = Users(function.table).find_profile("main", function.user_id)
    assert profile is not None
    account = Account.of(profile, load_catalog("default").plan("free"))
    ledger = Ledger(Meters(function.table), SystemClock(), Counting(f"before{tokens}"))
    ask = an_ask(tokens, deadline_at_seconds=time.time() + 60)
    ledger.settle(ledger.reserve(account, account_key(account, datetime.now(UTC)), ask), Settlement(tokens))


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
