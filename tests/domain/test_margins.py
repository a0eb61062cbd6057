"""What plans leave their seller: the sums of the research note, and a worst case that nothing exceeds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollgate.catalog.loader import load_catalog
from tollgate.domain.margins import (
    AGENT,
    CHAT,
    MTOK,
    PICOUSD_PER_CENT,
    Mix,
    PlanMargins,
    Use,
    payment_fees_picousd,
    plan_margins,
    worst_rate,
)
from tollgate.domain.plans import Billing, Plan, QuotaKind
from tollgate.domain.pricing import Model, PriceRow, TokenPrices, cost_picousd
from tollgate.domain.tokens import TokenCounts, TokenWeights

TODAY = datetime(2026, 11, 20, tzinfo=UTC)
CATALOG = load_catalog("default")
MODELS = tuple(CATALOG.models.values())
BILLING = Billing()
CENT = PICOUSD_PER_CENT
PRO, FREE = CATALOG.plan("pro"), CATALOG.plan("free")

# $29 with 2,000,000 tokens: cost in cents at 90/10, 75/25, 50/50 and for an agent, margin in percent, and what overage
# at $20 a million leaves before fees, in dollars, at 75/25 and all output. From research/stripe.md, section 12.
PUBLISHED = """
claude-haiku-5-5     28    40   60    9   94  19.80  19.50
claude-haiku-4-5    280   400  600   90   82  18     15
claude-sonnet-5-5   560   800 1200  162   68  16     10
claude-sonnet-4-6   840  1200 1800  269   54  14      5
claude-opus-5-5    1120  1600 2400  324   40  12      0
claude-opus-5      1400  2000 3000  447   26  10     -5
claude-opus-4-8    1400  2000 3000  447   26  10     -5
claude-fable-5-2   2240  3200 4800  614  -15   4    -20
claude-fable-5-1   2800  4000 6000  767  -43   0    -30
"""
ROWS = [line.split() for line in PUBLISHED.strip().splitlines()]


def margins(plan: Plan, *models: Model, use: Use | None = None, given: bool = False) -> PlanMargins:
    return plan_margins(plan, models or MODELS, BILLING, TODAY, given=given, use=use)


def of_all_models(plan: Plan) -> Plan:
    return replace(plan, models=frozenset())


@pytest.mark.parametrize(("model_id", "heavy_input", "chat", "even", "agent", "percent", "over", "over_output"), ROWS)
def test_the_published_table_comes_out(
    model_id: str, heavy_input: str, chat: str, even: str, agent: str, percent: str, over: str, over_output: str
) -> None:
    model, plan = CATALOG.models[model_id], of_all_models(PRO)
    mixes = [Mix(900, 100), CHAT, Mix(500, 500), AGENT]
    reports = [margins(plan, model, use=Use(mix=mix)) for mix in mixes]
    costs = [report.typical.cost_picousd or 0 for report in reports]

    assert costs[:3] == [int(cents) * CENT for cents in (heavy_input, chat, even)]
    # The note rounds half a cent down or up as it falls.
    assert abs(costs[3] - int(agent) * CENT) <= CENT // 2
    assert ((reports[1].typical.permille or 0) + 5) // 10 == int(percent)
    all_output = margins(plan, model, use=Use(mix=Mix(0, 1000)))
    for report, dollars in ((reports[1], over), (all_output, over_output)):
        overage = report.overage_typical
        assert overage is not None
        assert overage.cost_picousd is not None
        assert overage.revenue_picousd - overage.cost_picousd == round(float(dollars) * 100) * CENT


def test_stripe_keeps_134_cents_of_29_dollars() -> None:
    assert payment_fees_picousd(BILLING, 2_900) == 1_344 * CENT // 10
    assert payment_fees_picousd(BILLING, 2_900, payments=2) == 1_644 * CENT // 10


def test_a_year_brings_one_price_and_costs_twelve_months() -> None:
    report = margins(PRO)
    annual, monthly = report.annual_worst, report.worst

    assert annual is not None
    assert (annual.revenue_picousd, annual.cost_picousd) == (29_000 * CENT, 12 * (monthly.cost_picousd or 0))
    assert annual.fees_picousd == payment_fees_picousd(BILLING, 29_000)
    assert report.losing == ()


@pytest.mark.parametrize(("annual_cents", "loses"), [(27_416, True), (27_417, True), (27_418, False)])
def test_a_year_may_cost_down_to_what_its_worst_use_costs(annual_cents: int, loses: bool) -> None:
    """12 x $22 and 30 cents, of which 96.4 % remain after fees: $274.17 and a bit."""
    report = margins(replace(PRO, annual_price_cents=annual_cents))

    assert report.losing == (("year",) if loses else ())
    assert report.fails is loses, "Pro is protected"


@pytest.mark.parametrize(("rate_microusd", "loses"), [(11_410, True), (11_411, False), (11_412, False)])
def test_overage_may_be_sold_down_to_its_worst_cost(rate_microusd: int, loses: bool) -> None:
    """$11 a million for output of Sonnet with US-only inference, which are 96.4 % of $11.4108."""
    report = margins(replace(PRO, overage_price_microusd_per_1k_tokens=rate_microusd))

    assert report.losing == (("overage",) if loses else ())


def test_a_plan_is_as_good_as_the_dearest_model_it_allows() -> None:
    report = margins(of_all_models(PRO))

    assert report.worst_model.model_id.startswith(("claude-fable", "claude-mythos"))
    assert report.losing == ("month", "year", "overage")
    assert report.typical.picousd == min(model.typical.picousd or 0 for model in report.models)


def test_fast_mode_and_us_only_inference_are_in_the_worst_case() -> None:
    opus = CATALOG.models["claude-opus-5-5"]
    rate = worst_rate(of_all_models(PRO), opus, TODAY)

    assert (rate.kind, rate.fast, rate.us_only) == ("output", True, True)
    assert rate.cost_picousd(MTOK) == 44 * 100 * CENT


# A prompt of 100,001 tokens and one token of output is the smallest call that Haiku prices five times higher.
@pytest.mark.parametrize(("quota_tokens", "long_prompt"), [(100_001, False), (100_002, True), (100_003, True)])
def test_the_long_prompt_price_counts_where_a_long_prompt_fits(quota_tokens: int, long_prompt: bool) -> None:
    haiku = CATALOG.models["claude-haiku-5-5"]

    rate = worst_rate(replace(FREE, quota_tokens=quota_tokens), haiku, TODAY)

    assert rate.long_prompt is long_prompt
    assert rate.picousd == (2_750_000 if long_prompt else 550_000)


def test_overage_makes_room_for_a_long_prompt() -> None:
    haiku = CATALOG.models["claude-haiku-5-5"]
    soft = replace(PRO, quota_tokens=60_000, overage_cap_tokens=60_000)

    assert worst_rate(soft, haiku, TODAY).long_prompt


def test_weights_make_a_dear_token_count_for_more() -> None:
    """Output that counts five times is as cheap for the seller as input; the cache's dearest kind is then the worst."""
    sonnet = CATALOG.models["claude-sonnet-5-5"]
    weighted = replace(sonnet, weights=TokenWeights(1000, 5000, 1250, 2000, 50))
    rate = worst_rate(PRO, weighted, TODAY)

    assert rate.cost_picousd(MTOK) == 220 * CENT, (
        "every kind costs $2 for a billable million, and a tenth more in the US"
    )
    assert margins(PRO, weighted).typical.cost_picousd == 2 * 200 * CENT


def test_a_kind_that_counts_as_nothing_has_no_bound() -> None:
    free_reads = replace(CATALOG.models["claude-sonnet-5-5"], weights=TokenWeights(cache_read=0))

    report = margins(PRO, free_reads)

    assert report.worst.cost_picousd is None
    assert report.worst.permille is None
    assert report.losing == ("month", "year", "overage")
    assert report.worst_model.worst_rate.kind == "cache_read"
    assert not report.typical.loses


def test_a_quota_of_calls_bounds_even_that() -> None:
    """Ten calls, each a whole context written to the cache for an hour and as much answer as there may be."""
    sonnet = replace(CATALOG.models["claude-sonnet-5-5"], weights=TokenWeights(cache_read=0))
    plan = replace(FREE, models=frozenset(), quota_tokens=None, quota_requests=10, pool_tokens=None)

    report = margins(plan, sonnet)

    output_tokens = 4_096
    call = (1_000_000 - output_tokens) * 4_000_000 + output_tokens * 10_000_000
    assert report.worst.cost_picousd == 10 * call * 11 // 10
    assert report.typical.cost_picousd == 10 * (1_500 * 2_000_000 + 500 * 10_000_000)


def test_of_two_quotas_the_one_used_up_first_counts() -> None:
    both = replace(PRO, quota_requests=100)

    assert (margins(both).typical.cost_picousd or 0) < (margins(PRO).typical.cost_picousd or 0)
    assert margins(replace(PRO, quota_requests=10**9)).typical == margins(PRO).typical


def test_without_any_quota_there_is_no_bound() -> None:
    endless = replace(PRO, quota_tokens=None, overage_cap_tokens=0, annual_price_cents=None)
    report = margins(endless)

    assert report.typical.cost_picousd is report.worst.cost_picousd is None
    assert report.losing == ("month",)


def test_what_is_given_brings_nothing_and_costs_no_fees() -> None:
    report = margins(FREE)

    assert report.given
    assert (report.worst.revenue_picousd, report.worst.fees_picousd) == (0, 0)
    assert report.worst.cost_picousd == 50 * CENT
    assert report.pool_worst_picousd == 10_000 * 50 * CENT
    assert report.losing == ("month",)


def test_the_default_plan_is_given_whatever_its_price() -> None:
    assert margins(PRO, given=True).worst.revenue_picousd == 0


@pytest.mark.parametrize(("days", "periods"), [(27, 1), (28, 1), (29, 2)])
def test_a_trial_costs_its_quota_in_every_period_that_can_begin_in_it(days: int, periods: int) -> None:
    report = margins(replace(PRO, trial_days=days, trial_quota_tokens=100_000))

    assert report.trial is not None
    assert report.trial.worst_picousd == periods * 110 * CENT
    assert report.trial.typical_picousd == periods * 40 * CENT


def test_a_trial_without_a_quota_of_its_own_has_the_plan_s() -> None:
    trial = margins(replace(PRO, trial_days=7)).trial

    assert trial is not None
    assert trial.worst_picousd == margins(PRO).worst.cost_picousd


@pytest.mark.parametrize(
    ("used", "tokens", "overage_cents"), [(500, 1, 0), (1_000, 2, 0), (1_500, 3, 2_000), (9_000, 4, 4_000)]
)
def test_use_beyond_the_quota_is_overage_as_far_as_the_cap(used: int, tokens: int, overage_cents: int) -> None:
    sonnet = CATALOG.models["claude-sonnet-5-5"]
    typical = margins(PRO, sonnet, use=Use(used_permille=used)).typical

    assert typical.cost_picousd == tokens * 400 * CENT
    assert typical.revenue_picousd == (2_900 + overage_cents) * CENT


def test_overage_of_a_year_is_paid_by_the_month() -> None:
    annual = margins(PRO, use=Use(used_permille=1_500)).annual_typical

    assert annual is not None
    assert annual.fees_picousd == payment_fees_picousd(BILLING, 29_000 + 12 * 2_000, payments=13)


def test_a_model_that_is_no_longer_served_costs_nothing() -> None:
    sonnet = CATALOG.models["claude-sonnet-4-5"]
    assert sonnet.retires_at is not None
    plan = replace(PRO, models=frozenset({"claude-sonnet-4-5", "claude-haiku-5-5"}))

    def served(at: datetime) -> set[str]:
        return {model.model_id for model in plan_margins(plan, MODELS, BILLING, at, given=False).models}

    assert "claude-sonnet-4-5" in served(sonnet.retires_at - timedelta(seconds=1))
    assert served(sonnet.retires_at) == {"claude-haiku-5-5"}


def test_a_plan_whose_models_are_all_gone_is_named() -> None:
    with pytest.raises(ValueError, match="plan pro: none of its models is served"):
        plan_margins(replace(PRO, models=frozenset({"gone"})), MODELS, BILLING, TODAY, given=False)


def test_a_price_that_is_already_announced_is_in_the_worst_case_only() -> None:
    sonnet = CATALOG.models["claude-sonnet-5-5"]
    today = sonnet.prices[-1]
    dearer = replace(today, effective_from=date(2027, 1, 1), standard=replace(today.standard, output=20_000_000))
    announced = replace(sonnet, prices=(*sonnet.prices, dearer))

    before, after = margins(PRO, sonnet), margins(PRO, announced)

    assert after.typical == before.typical
    assert after.worst.cost_picousd == 2 * (before.worst.cost_picousd or 0)


@pytest.mark.parametrize("shares", [(500, 400), (600, 500), (1_100, -100)])
def test_a_mix_is_a_whole(shares: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="add up to 1000"):
        Mix(*shares)


# ---- the worst case is a bound

prices = st.builds(TokenPrices, *(st.integers(1, 50).map(lambda price: price * 2_000) for _ in range(5)))
weights = st.builds(TokenWeights, *(st.integers(1, 6_000) for _ in range(5)))
counts = st.builds(TokenCounts, *(st.just(0) | st.integers(0, 5_000) for _ in range(5)))


@st.composite
def models(draw: st.DrawFn) -> Model:
    def row(limit: int | None) -> PriceRow:
        fast = draw(st.none() | prices)
        return PriceRow(date(2026, 1, 1), limit, draw(prices), fast, 500, draw(st.sampled_from([1000, 1100])), 10_000)

    sizes = [*sorted(draw(st.sets(st.integers(1, 9_000), max_size=2))), None]
    return replace(MODELS[0], weights=draw(weights), prices=tuple(row(size) for size in sizes))


@settings(max_examples=300, deadline=None)
@given(models(), st.lists(st.tuples(counts, st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_no_use_of_a_quota_costs_more_than_its_worst_case(
    model: Model, calls: list[tuple[TokenCounts, bool, bool]]
) -> None:
    """Calls of any kinds and sizes, and a quota that they use up to the last token."""
    billable = cost = 0
    for used, fast, us_only in calls:
        # A call reads at least one token and answers with one, or there is nothing to bill.
        made = replace(used, output_tokens=used.output_tokens + 1, input_tokens=used.input_tokens + 1)
        billable += model.weights.billable_tokens(made)
        speed, place = "fast" if fast else None, "us" if us_only else None
        cost += cost_picousd(model, made, TODAY, speed=speed, inference_geo=place)
    plan = replace(FREE, models=frozenset(), quota_tokens=billable, pool_tokens=None)

    worst = margins(plan, model).worst.cost_picousd

    assert worst is not None
    assert cost <= worst


def test_a_hard_quota_of_tokens_knows_no_overage() -> None:
    hard = replace(PRO, quota_kind=QuotaKind.HARD, overage_cap_tokens=0, overage_price_microusd_per_1k_tokens=0)

    assert margins(hard).overage_worst is None
