"""What logic may not make for itself: time, randomness, log lines. The real ones are in `tollgate.wiring`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Report = Callable[[str, Exception], None]
"""Told of a failure that was survived: the event's name, and an error of ours whose text is fit for a log."""


class UserReport(Protocol):
    """Told of a failure that concerned one user, while the others went on."""

    def __call__(self, name: str, error: Exception, /, *, tenant_id: str, user_id: str) -> None: ...


class Clock(Protocol):
    """Tells the time; tests and the simulator bring their own."""

    def now_seconds(self) -> float:
        """Epoch seconds, UTC. Compare instants of other machines only with SKEW_SECONDS of tolerance."""

    def pause(self, wait_seconds: float) -> None:
        """Let a short time pass: what is in the way now is gone in milliseconds."""


class IdSource(Protocol):
    """Makes ids nobody can guess and no two callers share."""

    def new_id(self, length: int) -> str:
        """`length` base62 characters, 5.95 bits each."""

    def random_bytes(self, count: int) -> bytes:
        """Bytes for a secret."""
