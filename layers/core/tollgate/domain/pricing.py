"""What one request costs upstream, in exact integers, by the price that was in force when it began.

Unit: pico-USD (10^-12 USD), because tokens x micro-USD per million tokens is a whole number of them for every price
there is. The numbers live in `tollgate.catalog`; nothing here knows a model by name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, date, datetime

from tollgate.domain.tokens import TokenCounts, TokenWeights

PICOUSD_PER_MICROUSD = 1_000_000
WHOLE_PERMILLE = 1000


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """Micro-USD per million tokens of each kind."""

    input: int
    output: int
    cache_write_5m: int
    cache_write_1h: int
    cache_read: int

    def cost_picousd(self, counts: TokenCounts) -> int:
        return (
            counts.input_tokens * self.input
            + counts.output_tokens * self.output
            + counts.cache_write_5m_tokens * self.cache_write_5m
            + counts.cache_write_1h_tokens * self.cache_write_1h
            + counts.cache_read_tokens * self.cache_read
        )

    def dearer(self, other: TokenPrices) -> TokenPrices:
        """Kind by kind the higher of the two."""
        return TokenPrices(*(max(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class PriceRow:
    """Prices from one date on, for prompts up to one size. Every token of a request is priced by the same row."""

    effective_from: date
    """First UTC day."""
    max_prompt_tokens: int | None
    """The largest prompt (cache reads and writes included) this row prices; None: any."""
    standard: TokenPrices
    fast: TokenPrices | None
    """Prices of `speed: fast`; None: the model has no fast mode, and upstream bills the standard price."""
    batch_permille: int
    """Share of the token price that batch processing costs."""
    us_only_permille: int
    """Share of the token price that US-only inference costs; 1000 where it is not offered."""
    web_search_microusd: int
    """For one search; no batch or US-only rate applies."""

    def covers_prompt(self, prompt_tokens: int) -> bool:
        return self.max_prompt_tokens is None or prompt_tokens <= self.max_prompt_tokens


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the catalog: what it can do, what it costs us, and what its tokens count as."""

    id: str
    display_name: str
    description: str
    context_tokens: int
    max_output_tokens: int
    created_at: datetime
    """Release; the epoch where Anthropic published no date, as in its own models endpoint."""
    deprecated_at: datetime | None
    retires_at: datetime | None
    """When upstream stops serving it, as far as announced."""
    aliases: tuple[str, ...]
    weights: TokenWeights
    prices: tuple[PriceRow, ...]
    """Oldest first; within a date smallest prompts first. Never empty, and each date ends in a row for any prompt."""

    def price_row(self, prompt_tokens: int, at: datetime) -> PriceRow:
        """The row in force at `at` (aware; refused otherwise). Before the first date: the first date's."""
        if at.utcoffset() is None:
            raise ValueError("a price needs an aware instant, got a naive one")
        day = at.astimezone(UTC).date()
        dates = [row.effective_from for row in self.prices if row.effective_from <= day]
        in_force = dates[-1] if dates else self.prices[0].effective_from
        return next(row for row in self.prices if row.effective_from == in_force and row.covers_prompt(prompt_tokens))


def cost_picousd(
    model: Model,
    counts: TokenCounts,
    at: datetime,
    *,
    speed: str | None = None,
    service_tier: str | None = None,
    inference_geo: str | None = None,
    web_searches: int = 0,
) -> int:
    """Exact upstream cost of one request that began at `at` (aware), in pico-USD.

    `speed`, `service_tier` and `inference_geo` are the values of the response's `usage`, as they came: upstream says
    there what it really did, whatever was asked for. A value we have never heard of takes the dearer reading: no
    discount but for `batch`, the surcharge for every place but `global` and `not_available`.
    """
    row = model.price_row(counts.prompt_tokens, at)
    fast = row.fast if speed not in (None, "standard") else None
    tokens_picousd = (fast or row.standard).cost_picousd(counts)
    millionths = _millionths(row, service_tier, inference_geo)
    # Whole: the catalog refuses prices whose batch and US-only forms are not whole micro-USD per million tokens.
    tokens_picousd = tokens_picousd * millionths // (WHOLE_PERMILLE * WHOLE_PERMILLE)
    return tokens_picousd + web_searches * row.web_search_microusd * PICOUSD_PER_MICROUSD


@dataclass(frozen=True, slots=True)
class CostParts:
    """The same cost by what it was paid for."""

    input_picousd: int = 0
    output_picousd: int = 0
    cache_write_5m_picousd: int = 0
    cache_write_1h_picousd: int = 0
    cache_read_picousd: int = 0
    web_search_picousd: int = 0

    @property
    def total_picousd(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def cost_parts(
    model: Model,
    counts: TokenCounts,
    at: datetime,
    *,
    speed: str | None = None,
    service_tier: str | None = None,
    inference_geo: str | None = None,
    web_searches: int = 0,
) -> CostParts:
    """`cost_picousd` by kind of token; the parts add up to it."""
    row = model.price_row(counts.prompt_tokens, at)
    fast = row.fast if speed not in (None, "standard") else None
    prices, millionths = fast or row.standard, _millionths(row, service_tier, inference_geo)
    whole = WHOLE_PERMILLE * WHOLE_PERMILLE
    return CostParts(
        counts.input_tokens * prices.input * millionths // whole,
        counts.output_tokens * prices.output * millionths // whole,
        counts.cache_write_5m_tokens * prices.cache_write_5m * millionths // whole,
        counts.cache_write_1h_tokens * prices.cache_write_1h * millionths // whole,
        counts.cache_read_tokens * prices.cache_read * millionths // whole,
        web_searches * row.web_search_microusd * PICOUSD_PER_MICROUSD,
    )


def _millionths(row: PriceRow, service_tier: str | None, inference_geo: str | None) -> int:
    """Share of the token price that is paid, for batch processing and for the place."""
    batch_permille = row.batch_permille if service_tier == "batch" else WHOLE_PERMILLE
    geo_permille = WHOLE_PERMILLE if inference_geo in (None, "", "global", "not_available") else row.us_only_permille
    return batch_permille * geo_permille


def dearest_model(models: tuple[Model, ...]) -> Model:
    """A model that costs and counts, kind by kind, at least as much as each of `models`, at any time and prompt size.

    What a model nobody has priced is charged as: too dear can be corrected, free cannot.
    """
    rows = [row for model in models for row in model.prices]
    standard, fast = rows[0].standard, rows[0].fast or rows[0].standard
    for row in rows:
        standard = standard.dearer(row.standard)
        fast = fast.dearer(row.fast or row.standard)
    prices = PriceRow(
        effective_from=min(row.effective_from for row in rows),
        max_prompt_tokens=None,
        standard=standard,
        fast=fast,
        batch_permille=max(row.batch_permille for row in rows),
        us_only_permille=max(row.us_only_permille for row in rows),
        web_search_microusd=max(row.web_search_microusd for row in rows),
    )
    weights = TokenWeights(
        *(max(getattr(model.weights, field.name) for model in models) for field in fields(TokenWeights))
    )
    return Model(
        id="unknown",
        display_name="Unknown model",
        description="Priced as the dearest model of the catalog in every respect.",
        context_tokens=max(model.context_tokens for model in models),
        max_output_tokens=max(model.max_output_tokens for model in models),
        created_at=min(model.created_at for model in models),
        deprecated_at=None,
        retires_at=None,
        aliases=(),
        weights=weights,
        prices=(prices,),
    )
