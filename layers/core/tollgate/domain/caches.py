"""Bounded memory with an age, for what a container may remember between requests."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class AgingCache(Generic[K, V]):
    """Remembers at most `max_entries` values, each for less than `max_age_seconds`; the oldest goes first.

    The age counts from the instant given to `put`, which callers take *before* they read what they store: so a value
    is never served longer than `max_age_seconds` after it was true. Reading does not prolong a life.
    """

    def __init__(self, *, max_entries: int, max_age_seconds: float) -> None:
        self._max_entries = max_entries
        self._max_age_seconds = max_age_seconds
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, now_seconds: float) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        stored_at_seconds, value = entry
        # A clock that was set back must not stretch a life, so an entry from the future is gone too.
        if 0 <= now_seconds - stored_at_seconds < self._max_age_seconds:
            return value
        del self._entries[key]
        return None

    def put(self, key: K, value: V, now_seconds: float) -> None:
        self._entries.pop(key, None)
        while len(self._entries) >= self._max_entries:
            self._entries.popitem(last=False)
        self._entries[key] = (now_seconds, value)
