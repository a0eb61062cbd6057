"""What really happened, kept apart from everything the code under test believes."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.simulation.hub import Process
from tollgate.domain.tokens import TokenCounts


@dataclass(slots=True)
class Call:
    """One invocation's upstream call, as the upstream knows it. Tokens are billable tokens at weight 1."""

    user: int
    process: Process | None = None
    starts: int = 0
    """How often the upstream was really called for this reservation; more than once is a double call."""
    live: bool = False
    max_output_tokens: int = 0
    """What the upstream was told: it may generate this much, whoever listens."""
    prompt_tokens: int = 0
    bound_tokens: int = 0
    """What the gateway could know of the prompt before the call."""
    output_tokens: int = 0
    unknown_end: bool = False
    known_tokens: int | None = None
    """Final usage as reported to the gateway; None when it never came."""
    known_least_tokens: int = 0
    """After an unknown end: what the gateway saw pass."""
    settled_at: float | None = None
    """The settlement was answered."""
    released: bool = False
    counts: TokenCounts = field(default_factory=TokenCounts)
    cost_picousd: int = 0
    sliced: bool = False

    @property
    def used_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens if self.starts else 0

    @property
    def hidden_tokens(self) -> int:
        """Prompt that nobody could see before the call."""
        return max(0, self.prompt_tokens - self.bound_tokens) if self.starts else 0


@dataclass(slots=True)
class Held:
    """One reservation from its first commit on; identified by its nonce, which is never reused."""

    nonce: str
    meter: tuple[str, str]
    owner: Process
    reserved_at: float
    amount_tokens: int
    expires_at: int
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
