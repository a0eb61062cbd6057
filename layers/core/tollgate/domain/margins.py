"""What a plan leaves its seller: price less Stripe's fees less what its use costs upstream, in whole pico-USD.

Two readings of the same quota, all of it used:

- typical: plain calls with short prompts, three parts input to one part output, at today's price;
- worst: every billable token is of the kind that costs most for what it counts as, in the dearest way that a call of
  the plan can be made: the longest prompts that fit into the quota, `speed: fast`, US-only inference, and every price
  that is already in the file for a later day. It is a bound: no use of the plan costs more.

Not in either: web searches (a cent each, in no quota), discounts, refunds, tax, AWS, and what an `expiry_policy` writes
off. Amounts of a currency other than USD are taken as if they were USD.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from fractions import Fraction
from typing import Final

from tollgate.domain.plans import Billing, Plan
from tollgate.domain.pricing import PICOUSD_PER_MICROUSD, WHOLE_PERMILLE, Model, PriceRow, TokenPrices
from tollgate.domain.tokens import TokenWeights

PICOUSD_PER_CENT: Final = 10_000 * PICOUSD_PER_MICROUSD
MTOK: Final = 1_000_000
MONTHS: Final = 12
SHORTEST_MONTH_DAYS: Final = 28


@dataclass(frozen=True, slots=True)
class Mix:
    """How tokens divide by kind, in thousandths that add up to 1,000. The names are those of TokenPrices."""

    input: int
    output: int
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0

    def __post_init__(self) -> None:
        parts = [getattr(self, field.name) for field in fields(self)]
        if min(parts) < 0 or sum(parts) != WHOLE_PERMILLE:
            raise ValueError(f"shares of tokens must add up to {WHOLE_PERMILLE} thousandths, not {sum(parts)}")

    def sum_of(self, values: TokenPrices | TokenWeights) -> int:
        """Of 1,000 tokens."""
        return sum(getattr(self, field.name) * getattr(values, field.name) for field in fields(self))


CHAT: Final = Mix(input=750, output=250)
AGENT: Final = Mix(input=50, output=50, cache_write_5m=50, cache_read=850)
"""A coding agent: nearly everything it sends was sent before."""


@dataclass(frozen=True, slots=True)
class Use:
    """How much of a plan is used, and for what."""

    mix: Mix = CHAT
    used_permille: int = WHOLE_PERMILLE
    """Of the quota; above 1,000 it is overage, as far as the plan's cap."""
    call_tokens: int = 2_000
    """Of one call, where the quota counts calls."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What billable tokens cost in the dearest way: so many pico-USD for so many thousandths of a billable token."""

    picousd: int
    billable_permille: int
    """0: this kind counts as nothing, so no quota bounds it."""
    kind: str
    fast: bool
    us_only: bool
    long_prompt: bool

    @property
    def bounded(self) -> bool:
        return self.billable_permille > 0 or self.picousd == 0

    def cost_picousd(self, billable_tokens: int) -> int:
        return -(-billable_tokens * self.picousd * 1000 // self.billable_permille)


@dataclass(frozen=True, slots=True)
class Margin:
    """Of one sum of money: a month's price, a year's, or a million tokens of overage."""

    revenue_picousd: int
    fees_picousd: int
    cost_picousd: int | None
    """None: nothing bounds it."""
    model_id: str

    @property
    def picousd(self) -> int | None:
        return None if self.cost_picousd is None else self.revenue_picousd - self.fees_picousd - self.cost_picousd

    @property
    def permille(self) -> int | None:
        """Of the revenue, rounded to the nearest; None when there is none, or no bound."""
        if self.picousd is None or not self.revenue_picousd:
            return None
        return (2 * self.picousd * WHOLE_PERMILLE + self.revenue_picousd) // (2 * self.revenue_picousd)

    @property
    def loses(self) -> bool:
        return self.picousd is None or self.picousd < 0


@dataclass(frozen=True, slots=True)
class ModelMargins:
    """A plan whose whole quota goes to one model."""

    model_id: str
    typical: Margin
    worst: Margin
    worst_rate: Rate
    annual_typical: Margin | None
    annual_worst: Margin | None
    overage_typical: Margin | None
    """Of a million tokens."""
    overage_worst: Margin | None


@dataclass(frozen=True, slots=True)
class TrialCost:
    """What one user on trial costs, who pays nothing."""

    typical_picousd: int | None
    worst_picousd: int | None


@dataclass(frozen=True, slots=True)
class PlanMargins:
    """A plan over all models that it allows; each figure is that of the dearest of them."""

    plan: Plan
    given: bool
    """Users have it without paying."""
    models: tuple[ModelMargins, ...]
    """Never empty; cheapest first, by what their quota typically costs."""
    trial: TrialCost | None
    pool_worst_picousd: int | None
    """The most that all users of the plan can cost in a month together; None without a pool."""

    @property
    def typical(self) -> Margin:
        return _least([model.typical for model in self.models])

    @property
    def worst(self) -> Margin:
        return _least([model.worst for model in self.models])

    @property
    def worst_model(self) -> ModelMargins:
        return next(model for model in self.models if model.worst is self.worst)

    @property
    def annual_typical(self) -> Margin | None:
        return _least_of([model.annual_typical for model in self.models])

    @property
    def annual_worst(self) -> Margin | None:
        return _least_of([model.annual_worst for model in self.models])

    @property
    def overage_typical(self) -> Margin | None:
        return _least_of([model.overage_typical for model in self.models])

    @property
    def overage_worst(self) -> Margin | None:
        return _least_of([model.overage_worst for model in self.models])

    @property
    def losing(self) -> tuple[str, ...]:
        """Which prices can lose money: of `month`, `year`, `overage`."""
        prices = {"month": self.worst, "year": self.annual_worst, "overage": self.overage_worst}
        return tuple(name for name, margin in prices.items() if margin is not None and margin.loses)

    @property
    def fails(self) -> bool:
        """It is protected and can lose money."""
        return self.plan.protected and bool(self.losing)


def plan_margins(
    plan: Plan, models: tuple[Model, ...], billing: Billing, at: datetime, *, given: bool, use: Use | None = None
) -> PlanMargins:
    """Margins of a plan over those of `models` that it allows and that are still served at `at` (aware).

    `given`: it is the catalog's default, held without paying, whatever its price. Raises ValueError when the plan
    allows no model that is still served.
    """
    use = use or Use()
    served = [
        model for model in models if plan.allows_model(model.id) and (model.retires_at is None or model.retires_at > at)
    ]
    if not served:
        raise ValueError(f"plan {plan.id}: none of its models is served on {at.date()}")
    given = given or not plan.price_cents
    margins = [_model_margins(plan, model, billing, at, given=given, use=use) for model in served]
    margins.sort(key=lambda model: (-(model.typical.picousd or 0), model.model_id))
    return PlanMargins(
        plan=plan,
        given=given,
        models=tuple(margins),
        trial=_trial_cost(plan, served, at, use) if plan.trial_days else None,
        pool_worst_picousd=(
            None
            if plan.pool_tokens is None
            else _most([_worst_picousd(plan, model, at, tokens=plan.pool_tokens, requests=None) for model in served])
        ),
    )


def payment_fees_picousd(billing: Billing, amount_cents: int, *, payments: int = 1) -> int:
    """What Stripe keeps of `amount_cents` that came in so many payments."""
    permille = billing.fee_permille + billing.billing_fee_permille
    percentage = -(-amount_cents * PICOUSD_PER_CENT * permille // WHOLE_PERMILLE)
    return percentage + payments * billing.fee_cents * PICOUSD_PER_CENT


def worst_rate(plan: Plan, model: Model, at: datetime) -> Rate:
    """The dearest way to use up a billable token of this plan on this model, at `at` or any day after."""
    return max(
        _rates(plan, model, at),
        key=lambda rate: (not rate.bounded, Fraction(rate.picousd, rate.billable_permille or 1)),
    )


def _rates(plan: Plan, model: Model, at: datetime) -> Iterator[Rate]:
    for row, smallest_prompt_tokens in _reachable_rows(plan, model, at):
        prices = row.standard.dearer(row.fast or row.standard)
        for field in fields(TokenPrices):
            picousd = getattr(prices, field.name)
            yield Rate(
                picousd=picousd * row.us_only_permille // WHOLE_PERMILLE,
                billable_permille=getattr(model.weights, field.name),
                kind=field.name,
                fast=picousd > getattr(row.standard, field.name),
                us_only=row.us_only_permille > WHOLE_PERMILLE,
                long_prompt=smallest_prompt_tokens > 1,
            )


def _reachable_rows(plan: Plan, model: Model, at: datetime) -> Iterator[tuple[PriceRow, int]]:
    """Rows in force at `at` or later that some call of the plan can be priced by, with the smallest prompt of each."""
    cheapest_prompt = min(
        getattr(model.weights, field.name) for field in fields(TokenWeights) if field.name != "output"
    )
    today = model.price_row(0, at).effective_from
    smallest: dict[object, int] = {}
    for row in model.prices:
        if row.effective_from < today:
            continue
        prompt_tokens = smallest.get(row.effective_from, 1)
        smallest[row.effective_from] = (row.max_prompt_tokens or 0) + 1
        billable = -(-prompt_tokens * cheapest_prompt // WHOLE_PERMILLE) + model.weights.billable_output(1)
        if prompt_tokens == 1 or (prompt_tokens < model.context_tokens and billable <= plan.most_tokens):
            yield row, prompt_tokens


def _model_margins(plan: Plan, model: Model, billing: Billing, at: datetime, *, given: bool, use: Use) -> ModelMargins:
    typical_picousd, overage_tokens = _typical_picousd(plan, model, at, use)
    worst_picousd = _worst_picousd(plan, model, at, tokens=plan.quota_tokens, requests=plan.quota_requests)
    overage_cents = overage_tokens * plan.overage_price_microusd_per_1k_tokens // 10_000_000
    monthly_cents = 0 if given else plan.price_cents

    def margin(cents: int, cost_picousd: int | None, *, payments: int = 1, months: int = 1) -> Margin:
        total_picousd = None if cost_picousd is None else cost_picousd * months
        fees_picousd = payment_fees_picousd(billing, cents, payments=payments) if cents else 0
        return Margin(cents * PICOUSD_PER_CENT, fees_picousd, total_picousd, model.id)

    def annual(cost_picousd: int | None, overage_cents: int) -> Margin | None:
        if plan.annual_price_cents is None:
            return None
        # Overage of an annual plan is invoiced by the month, each time a payment of its own.
        payments = 1 + (MONTHS if overage_cents else 0)
        cents = plan.annual_price_cents + MONTHS * overage_cents
        return margin(cents, cost_picousd, payments=payments, months=MONTHS)

    return ModelMargins(
        model_id=model.id,
        typical=margin(monthly_cents + overage_cents, typical_picousd),
        worst=margin(monthly_cents, worst_picousd),
        worst_rate=worst_rate(plan, model, at),
        annual_typical=annual(typical_picousd, overage_cents),
        annual_worst=annual(worst_picousd, 0),
        overage_typical=_overage_margin(plan, model, billing, _mix_picousd(model, at, MTOK, use.mix)),
        overage_worst=_overage_margin(
            plan, model, billing, _worst_picousd(plan, model, at, tokens=MTOK, requests=None)
        ),
    )


def _overage_margin(plan: Plan, model: Model, billing: Billing, cost_picousd: int | None) -> Margin | None:
    """Of a million tokens. The fixed fee is that of the invoice which the plan's price is on, so not counted again."""
    if not plan.overage_cap_tokens:
        return None
    revenue_picousd = plan.overage_price_microusd_per_1k_tokens * 1_000 * PICOUSD_PER_MICROUSD
    fees_picousd = -(-revenue_picousd * (billing.fee_permille + billing.billing_fee_permille) // WHOLE_PERMILLE)
    return Margin(revenue_picousd, fees_picousd, cost_picousd, model.id)


def _mix_picousd(model: Model, at: datetime, billable_tokens: int, mix: Mix) -> int:
    """What so many billable tokens of this mix cost: short prompts, the standard price of the day."""
    counted = mix.sum_of(model.weights)
    return -(-billable_tokens * WHOLE_PERMILLE * mix.sum_of(model.price_row(0, at).standard) // counted)


def _typical_picousd(plan: Plan, model: Model, at: datetime, use: Use) -> tuple[int | None, int]:
    """What `use` costs in a usage period, and the overage tokens in it."""
    tokens = requests = None
    overage_tokens = 0
    if plan.quota_tokens is not None:
        tokens = min(plan.quota_tokens * use.used_permille // WHOLE_PERMILLE, plan.most_tokens)
        overage_tokens = max(0, tokens - plan.quota_tokens)
    if plan.quota_requests is not None:
        requests = plan.quota_requests * min(use.used_permille, WHOLE_PERMILLE) // WHOLE_PERMILLE
    return _used_picousd(model, at, use, tokens=tokens, requests=requests), overage_tokens


def _used_picousd(model: Model, at: datetime, use: Use, *, tokens: int | None, requests: int | None) -> int | None:
    """Of two quotas, the one that is used up first ends it; None without any."""
    costs = []
    if tokens is not None:
        costs.append(_mix_picousd(model, at, tokens, use.mix))
    if requests is not None:
        price = use.mix.sum_of(model.price_row(0, at).standard)
        costs.append(-(-requests * use.call_tokens * price // WHOLE_PERMILLE))
    return min(costs, default=None)


def _worst_picousd(plan: Plan, model: Model, at: datetime, *, tokens: int | None, requests: int | None) -> int | None:
    """A bound of what so many billable tokens and so many calls can cost; None when neither bounds it."""
    rate = worst_rate(plan, model, at)
    bounds = []
    if tokens is not None and rate.bounded:
        bounds.append(rate.cost_picousd(tokens))
    if requests is not None:
        bounds.append(requests * _dearest_call_picousd(plan, model, at))
    return min(bounds, default=None)


def _dearest_call_picousd(plan: Plan, model: Model, at: datetime) -> int:
    """The dearest call there can be: the context full, with as much answer as is allowed if that is what costs more."""
    longest = min(plan.max_output_tokens or model.max_output_tokens, model.max_output_tokens)
    dearest = 0
    for row, _ in _reachable_rows(plan, model, at):
        prices = row.standard.dearer(row.fast or row.standard)
        prompt_price = max(prices.input, prices.cache_write_5m, prices.cache_write_1h, prices.cache_read)
        output_tokens = longest if prices.output >= prompt_price else 1
        room = model.context_tokens - output_tokens
        prompt_tokens = room if row.max_prompt_tokens is None else min(row.max_prompt_tokens, room)
        picousd = prompt_tokens * prompt_price + output_tokens * prices.output
        dearest = max(dearest, -(-picousd * row.us_only_permille // WHOLE_PERMILLE))
    return dearest


def _trial_cost(plan: Plan, models: list[Model], at: datetime, use: Use) -> TrialCost:
    """Every usage period that can begin in the trial has the trial's quota, and overage in none."""
    periods = -(-plan.trial_days // SHORTEST_MONTH_DAYS)
    tokens = plan.quota_tokens if plan.trial_quota_tokens is None else plan.trial_quota_tokens
    requests = plan.quota_requests
    typical = [_used_picousd(model, at, use, tokens=tokens, requests=requests) for model in models]
    worst = [_worst_picousd(plan, model, at, tokens=tokens, requests=requests) for model in models]
    typical_picousd, worst_picousd = _most(typical), _most(worst)
    return TrialCost(
        typical_picousd=None if typical_picousd is None else typical_picousd * periods,
        worst_picousd=None if worst_picousd is None else worst_picousd * periods,
    )


def _most(amounts: list[int | None]) -> int | None:
    """None, no bound, is more than any amount."""
    known = [amount for amount in amounts if amount is not None]
    return max(known) if len(known) == len(amounts) else None


def _least(margins: list[Margin]) -> Margin:
    """The first of those that leave least; no bound is less than any."""
    return min(margins, key=lambda margin: (margin.picousd is not None, margin.picousd or 0))


def _least_of(margins: list[Margin | None]) -> Margin | None:
    known = [margin for margin in margins if margin is not None]
    return _least(known) if known else None
