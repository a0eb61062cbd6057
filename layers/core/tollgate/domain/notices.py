"""Usage thresholds: how much of a quota is used, and what is told when so much of it is.

A threshold is passed once in a usage period. What counts is the share of the plan that the user has now, so a larger
plan lowers it; a threshold that was passed before does not become new by that. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Final

from tollgate.domain.ledger import Meter
from tollgate.domain.periods import UsagePeriod
from tollgate.domain.plans import UNLIMITED

DEFAULT_THRESHOLDS_PERCENT: Final = (75, 90, 100)


class NotDeliveredError(Exception):
    """A notice did not arrive, or nobody knows whether it did. Its text is ours, and fit for a log."""


class NoticeRefusedError(NotDeliveredError):
    """The other side answers, and does not take this one notice: that says nothing about any other."""


class QuotaUnit(StrEnum):
    """What a quota counts."""

    TOKENS = "tokens"
    REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class NoticeRules:
    """When users and the operator are told; the same for all plans of a catalog."""

    thresholds_percent: tuple[int, ...] = DEFAULT_THRESHOLDS_PERCENT
    """Rising; empty: nobody is told anything."""


@dataclass(frozen=True, slots=True)
class QuotaShare:
    """How much of one quota is used. What running calls hold does not count: most of it returns."""

    unit: QuotaUnit
    used: int
    quota: int

    @property
    def percent(self) -> int:
        """Rounded down, so that 100 means all of it; more than that is overage."""
        return self.used * 100 // max(1, self.quota)


@dataclass(frozen=True, slots=True)
class UsageNotice:
    """One threshold, passed by one user in one usage period."""

    tenant_id: str
    user_id: str
    period: UsagePeriod
    plan_id: str
    threshold_percent: int
    share: QuotaShare
    """As it stood when the threshold was found passed."""
    noticed_at: datetime
    highest: bool = True
    """No higher threshold was passed at the same moment. People get a mail about that one only."""

    @property
    def id(self) -> str:
        """The same for everybody who finds this threshold passed, however often it is delivered."""
        name = "#".join(
            (self.tenant_id, self.user_id, self.period.id, self.share.unit.value, str(self.threshold_percent))
        )
        return f"ntc_{sha256(name.encode()).hexdigest()[:24]}"


def quota_shares(meter: Meter) -> tuple[QuotaShare, ...]:
    """Of each quota that the user's plan has. Overage of earlier plans in the period is no use of this one."""
    shares = []
    if meter.quota_tokens < UNLIMITED:
        used_tokens = max(0, meter.settled_tokens - meter.banked_tokens)
        shares.append(QuotaShare(QuotaUnit.TOKENS, used_tokens, meter.plan_quota_tokens))
    if meter.quota_requests < UNLIMITED:
        shares.append(QuotaShare(QuotaUnit.REQUESTS, max(0, meter.settled_requests), meter.quota_requests))
    return tuple(shares)


def used_percent(meter: Meter) -> int | None:
    """Of the quota that is nearest to its end; None for a plan without any."""
    return max((share.percent for share in quota_shares(meter)), default=None)


def passed_thresholds(share: QuotaShare, thresholds_percent: Iterable[int]) -> tuple[int, ...]:
    """Those that the share has reached, lowest first."""
    return tuple(sorted(percent for percent in thresholds_percent if share.percent >= percent))
