"""A clock that moves only when it is told to."""

from __future__ import annotations

NOON = 1_795_176_000
"""2026-11-20T12:00:00Z in epoch seconds."""


class FakeClock:
    """`tollgate.domain.sources.Clock`."""

    def __init__(self, now_seconds: float = NOON) -> None:
        self.seconds = now_seconds

    def now_seconds(self) -> float:
        return self.seconds

    def pause(self, wait_seconds: float) -> None:
        self.seconds += wait_seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


def raise_reported(_name: str, error: Exception, /, **_: str) -> None:
    """`tollgate.domain.sources.Report` and `UserReport` where nothing may have to be survived."""
    raise error


class Reports:
    """`tollgate.domain.sources.Report` and `UserReport`, remembered."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.users: list[str | None] = []

    def __call__(self, name: str, error: Exception, /, **user: str) -> None:
        self.lines.append((name, str(error)))
        self.users.append(user.get("user_id"))
