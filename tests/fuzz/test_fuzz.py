"""The bounded part of `make fuzz`. A failure prints the command that replays its input."""

from __future__ import annotations

import pytest

from tests.fuzz.data_plane import data_plane
from tests.fuzz.runner import MOST_GROWTH_MB, Summary, run, run_one
from tests.fuzz.targets import TARGETS, spread

INPUTS = 6_000
SEED = 20_261_120


@pytest.fixture(scope="module")
def summary() -> Summary:
    return run(spread(INPUTS), SEED)


@pytest.mark.slow
def test_odd_inputs_are_answered_and_tell_nothing(summary: Summary) -> None:
    assert summary.failures == []
    assert summary.inputs >= INPUTS * 0.99


@pytest.mark.slow
def test_odd_inputs_leave_nothing_in_memory(summary: Summary) -> None:
    assert summary.growth_mb <= MOST_GROWTH_MB


@pytest.mark.slow
@pytest.mark.parametrize(
    "outcome",
    [
        "bodies 200",
        "bodies 400",
        "requests 200",
        "requests 404",
        "requests 405",
        "credentials 200",
        "credentials 401",
        "streams 200",
        "reader final",
        "reader not final",
        "signatures event",
        "signatures refused",
    ],
)
def test_inputs_are_neither_all_right_nor_all_wrong(summary: Summary, outcome: str) -> None:
    """Else nothing behind the first check would have been reached, or nothing refused."""
    assert summary.outcomes[outcome] > 10, summary.outcomes


@pytest.mark.parametrize("target", TARGETS)
def test_an_input_is_the_same_whenever_it_is_run(target: str) -> None:
    def outcomes(first: int) -> list[str]:
        with data_plane() as plane:
            return [run_one(plane, target, 3, number) for number in range(first, 20)]

    assert outcomes(0)[-1] == outcomes(19)[0]
