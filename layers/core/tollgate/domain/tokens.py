"""Token counts by kind, as the provider reports them."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The provider's own figures for one request. `input_tokens` excludes cached tokens, as in Claude's API."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Everything that went in; decides the prompt-size price."""
        return self.input_tokens + self.cache_write_5m_tokens + self.cache_write_1h_tokens + self.cache_read_tokens

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """What one token of each kind counts as, in thousandths of a billable token. All 1000: plain tokens."""

    input: int = 1000
    output: int = 1000
    cache_write_5m: int = 1000
    cache_write_1h: int = 1000
    cache_read: int = 1000

    @property
    def dearest_prompt(self) -> int:
        """The weight that bounds any prompt token before its kind is known."""
        return max(self.input, self.cache_write_5m, self.cache_write_1h, self.cache_read)

    def billable_tokens(self, counts: TokenCounts) -> int:
        """Weighted sum in whole billable tokens, rounded up once."""
        thousandths = (
            counts.input_tokens * self.input
            + counts.output_tokens * self.output
            + counts.cache_write_5m_tokens * self.cache_write_5m
            + counts.cache_write_1h_tokens * self.cache_write_1h
            + counts.cache_read_tokens * self.cache_read
        )
        return -(-thousandths // 1000)

    def billable_prompt_bound(self, prompt_tokens: int) -> int:
        """No prompt of at most `prompt_tokens` tokens can count for more than this."""
        return -(-prompt_tokens * self.dearest_prompt // 1000)

    def billable_output(self, output_tokens: int) -> int:
        return -(-output_tokens * self.output // 1000)

    def affordable_output(self, billable_tokens: int) -> int:
        """The most output tokens that `billable_tokens` can pay for; the inverse of `billable_output`."""
        return max(0, billable_tokens * 1000 // self.output)
