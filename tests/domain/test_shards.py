"""The order in which scheduled runs take the shards."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tollgate.domain.shards import rotated

NOW = datetime(2026, 11, 20, 9, 0, 17, tzinfo=UTC)


@pytest.mark.parametrize("shards", [1, 4, 8, 16])
def test_a_run_takes_every_shard_once(shards: int) -> None:
    assert sorted(rotated(shards, NOW)) == list(range(shards))


@pytest.mark.parametrize("shards", [4, 8, 16])
@pytest.mark.parametrize("every_hours", [1, 6, 24])
def test_each_shard_is_first_again_and_again_however_often_the_job_runs(shards: int, every_hours: int) -> None:
    runs = [rotated(shards, NOW + timedelta(hours=every_hours * number)) for number in range(16 * 24 // every_hours)]
    assert {run[0] for run in runs} == set(range(shards))
