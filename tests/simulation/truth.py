"""What really happened, kept apart from everything the code under test believes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.simulation.hub import Process
from tollgate.domain.plans import Plan
from tollgate.domain.pricing import TokenPrices
from tollgate.domain.tokens import TokenCounts, TokenWeights


def billable(counts: TokenCounts, weights: TokenWeights) -> int:
    """Thousandths summed over the kinds, rounded up once."""
    pairs = (
        (counts.input_tokens, weights.input),
        (counts.output_tokens, weights.output),
        (counts.cache_write_5m_tokens, weights.cache_write_5m),
        (counts.cache_write_1h_tokens, weights.cache_write_1h),
        (counts.cache_read_tokens, weights.cache_read),
    )
    return (sum(tokens * weight for tokens, weight in pairs) + 999) // 1000


PRICES = TokenPrices(input=3, output=15, cache_write_5m=4, cache_write_1h=6, cache_read=1)
"""Micro-USD per million tokens, so that every token costs whole pico-USD."""


def cost_picousd(counts: TokenCounts) -> int:
    return (
        counts.input_tokens * PRICES.input
        + counts.output_tokens * PRICES.output
        + counts.cache_write_5m_tokens * PRICES.cache_write_5m
        + counts.cache_write_1h_tokens * PRICES.cache_write_1h
        + counts.cache_read_tokens * PRICES.cache_read
    )


@dataclass(slots=True)
class Call:
    """One invocation and its upstream call, as the upstream knows it."""

    user: int
    prompt: TokenCounts
    visible_prompt: bool = True
    """All of the prompt could be bounded from the request."""
    idempotency_key: str | None = None
    weights: TokenWeights = field(default_factory=TokenWeights)
    starts: int = 0
    """How often the upstream was really called; more than once for a reservation is a double call."""
    live: bool = False
    max_output_tokens: int = 0
    """What the upstream was told: it may generate this much, whoever listens."""
    output_tokens: int = 0
    """Generated."""
    prompt_told: bool = False
    """message_start has reached the gateway."""
    delivered_tokens: int = 0
    """Output that reached the gateway."""
    final: TokenCounts | None = None
    """Final usage as it reached the gateway; None when it never came."""
    settled_at: float | None = None
    """The settlement was answered."""
    released: bool = False
    """Upstream refused, or was not reached: nothing may be charged."""
    sliced: bool = False
    hard: bool = False
    streamed: bool = True

    @property
    def used_tokens(self) -> int:
        """Billable tokens that were really spent."""
        return self._billable(self.output_tokens) if self.starts else 0

    @property
    def prompt_tokens(self) -> int:
        return self._billable(0)

    @property
    def known_tokens(self) -> int | None:
        return None if self.final is None else billable(self.final, self.weights)

    @property
    def seen_tokens(self) -> int:
        """What the gateway saw pass, when final usage never came."""
        return self._billable(self.delivered_tokens) if self.prompt_told else 0

    def _billable(self, output_tokens: int) -> int:
        return billable(replace(self.prompt, output_tokens=output_tokens), self.weights)


@dataclass(slots=True)
class Held:
    """One reservation from its first commit on; told apart by its nonce, which is never reused."""

    id: str
    nonce: str
    meter: tuple[str, str]
    owner: Process
    plan: Plan
    """In force when it was reserved."""
    reserved_at: float
    amount_tokens: int
    prompt_bound_tokens: int
    key_id: str = ""
    """Whose budget it counts against."""
    open: bool = True
    charged_tokens: int = 0
    written_off_tokens: int = 0
    ends: int = 0
    swept: bool = False
    corrected: bool = False
    request_counted: bool = False
    counts: TokenCounts = field(default_factory=TokenCounts)
    cost_picousd: int = 0
    call: Call | None = None

    @property
    def hidden_tokens(self) -> int:
        """Prompt that nobody could see before the call."""
        if self.call is None or not self.call.starts or self.call.visible_prompt:
            return 0
        return max(0, self.call.prompt_tokens - self.prompt_bound_tokens)
