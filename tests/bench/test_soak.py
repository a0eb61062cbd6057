"""The soak's bounded part: half a minute of the traffic that `make soak` sends for ten."""

from __future__ import annotations

import pytest

from bench.soak import Traffic, faults_of, soak
from dev.engines import find_dynoxide

pytestmark = [pytest.mark.alone, pytest.mark.engine, pytest.mark.slow]


def test_memory_and_files_stay_flat_and_the_ledger_is_exact() -> None:
    """Whatever breaks upstream: what callers were told is what was booked, and nothing is left open."""
    if find_dynoxide() is None:
        pytest.skip("dynoxide is not installed; the soak needs an engine that keeps up")
    result = soak(Traffic(seconds=20, requests=300, lanes=4), print)

    assert faults_of(result) == []
    assert result["ledger"]["records"] > 100
    assert result["ledger"]["told_tokens_of_whole_answers"] > 1_000
    assert sum(result["answers"].values()) == 300
    kinds = {answer.partition(":")[0] for answer in result["answers"]}
    assert {"cut off", "connection lost", "overloaded", "usage", "wrong key"} <= kinds
