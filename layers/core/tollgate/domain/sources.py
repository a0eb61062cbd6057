"""What logic may not make for itself: time and randomness. The real ones are in `tollgate.wiring`."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Tells the time; tests and the simulator bring their own."""

    def now_seconds(self) -> float:
        """Epoch seconds, UTC. Compare instants of other machines only with SKEW_SECONDS of tolerance."""


class IdSource(Protocol):
    """Makes ids nobody can guess and no two callers share."""

    def new_id(self, length: int) -> str:
        """`length` base62 characters, 5.95 bits each."""

    def random_bytes(self, count: int) -> bytes:
        """Bytes for a secret."""
