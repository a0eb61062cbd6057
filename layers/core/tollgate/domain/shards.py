"""In which order a scheduled run takes the shards of an index."""

from __future__ import annotations

from datetime import datetime


def rotated(shards: int, now: datetime) -> list[int]:
    """All of them, beginning somewhere else in each run, whether runs come hourly, four times a day or once a day.

    So a run that is cut short never misses the same ones again.
    """
    hours = int(now.timestamp()) // 3600
    first = (hours + hours // 24) % shards  # the hour alone is always the same one in a daily run of 4, 8 or 24 shards
    return [(first + number) % shards for number in range(shards)]
