"""What the provider says a call used: counts by kind and model, and the facts that decide their price."""

from __future__ import annotations

from dataclasses import dataclass

from tollgate.domain.tokens import TokenCounts


@dataclass(frozen=True, slots=True)
class UsageEntry:
    """The counts of one sampling; `model` is None where the provider means the model of the answer."""

    counts: TokenCounts
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """One answer's usage as reported so far. The counts are cumulative: a newer Usage replaces an older one."""

    entries: tuple[UsageEntry, ...] = ()
    """One for a plain answer; several when the provider sampled more than once (compaction, fallbacks, advisors)."""
    model: str | None = None
    """The model that served the answer."""
    speed: str | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    web_searches: int = 0
    web_fetches: int = 0

    @property
    def counts(self) -> TokenCounts:
        """The sum over all entries."""
        return sum((entry.counts for entry in self.entries), TokenCounts())
