"""What can go wrong between the product and Stripe, drawn from a seeded plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from enum import Enum

FaultPlan = Callable[[str, str], "Fault | None"]
"""Asked once for each request sent (method, url): what goes wrong with this one."""


class Fault(Enum):
    LOST_BEFORE = "the connection broke before Stripe saw the request"
    LOST_AFTER = "Stripe did it, and the answer was lost"
    ERROR_BEFORE = "500, and nothing was done"
    ERROR_AFTER = "500, and it was done all the same"
    CONFLICT = "409: the same idempotency key is under way"
    RATE_LIMITED = "429: too many requests"
    SLOW = "done, and answered only after others acted"


def NOTHING(_method: str, _url: str) -> Fault | None:  # noqa: N802 - a constant plan
    return None


class SeededFaults:
    """Each request fails with the chance given for each fault, in an order that the seed decides."""

    def __init__(self, seed: int, chances: Mapping[Fault, float], *, path_contains: str = "") -> None:
        self._random = random.Random(seed)
        self._chances = dict(chances)
        self._path_contains = path_contains
        self.drawn: list[tuple[str, str, Fault]] = []

    def __call__(self, method: str, url: str) -> Fault | None:
        if self._path_contains not in url:
            return None
        left = self._random.random()
        for fault, chance in self._chances.items():
            left -= chance
            if left < 0:
                self.drawn.append((method, url, fault))
                return fault
        return None


class ScriptedFaults:
    """The first requests meet these, one each; the rest go well."""

    def __init__(self, *script: Fault | None) -> None:
        self._script = list(script)

    def __call__(self, _method: str, _url: str) -> Fault | None:
        return self._script.pop(0) if self._script else None
