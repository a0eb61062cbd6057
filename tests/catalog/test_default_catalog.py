"""The shipped prices are Anthropic's, and no shipped plan can be used at a loss."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import ROUND_UP, Decimal

import pytest

from tollgate.catalog.loader import Catalog, load_catalog
from tollgate.domain.margins import plan_margins
from tollgate.domain.plans import ExpiryPolicy, PeriodKind, Plan, QuotaKind
from tollgate.domain.pricing import PriceRow, TokenPrices, cost_picousd
from tollgate.domain.tokens import TokenCounts, TokenWeights

PICOUSD = 10**12
TODAY = datetime(2026, 11, 20, tzinfo=UTC)
MTOK = 1_000_000

# USD per million tokens, as the price page prints them: in, 5 m write, 1 h write, cache read, out, context.
PUBLISHED = """
claude-haiku-5-5    0.10  0.125  0.20  0.01  0.50  1M
claude-haiku-4-5    1     1.25   2     0.10  5     200k
claude-sonnet-5-5   2     2.50   4     0.10  10    1M
claude-sonnet-5     2     2.50   4     0.20  10    1M
claude-sonnet-4-6   3     3.75   6     0.30  15    1M
claude-sonnet-4-5   3     3.75   6     0.30  15    200k
claude-opus-5-5     4     5      8     0.20  20    1M
claude-opus-5       5     6.25   10    0.50  25    1M
claude-opus-4-8     5     6.25   10    0.50  25    1M
claude-opus-4-7     5     6.25   10    0.50  25    1M
claude-opus-4-6     5     6.25   10    0.50  25    1M
claude-opus-4-5     5     6.25   10    0.50  25    200k
claude-fable-5-2    8     10     16    0.20  40    1M
claude-mythos-5-2   8     10     16    0.20  40    1M
claude-fable-5-1    10    12.50  20    0.25  50    1M
claude-mythos-5-1   10    12.50  20    0.25  50    1M
claude-fable-5      10    12.50  20    1.00  50    1M
claude-mythos-5     10    12.50  20    1.00  50    1M
"""
ROWS = [line.split() for line in PUBLISHED.strip().splitlines()]
CONTEXT = {"1M": 1_000_000, "200k": 200_000}


def dollars(text: str) -> int:
    """Micro-USD."""
    exact = Decimal(text) * 1_000_000
    assert exact == int(exact)
    return int(exact)


def row_today(model_id: str, prompt_tokens: int = 1) -> PriceRow:
    return load_catalog("default").models[model_id].price_row(prompt_tokens, TODAY)


def fees_picousd(plan: Plan) -> int:
    """Card and billing fees on the price of a plan: 2.9 % + $0.30, and 0.7 %."""
    return plan.price_cents * 36 * PICOUSD // 100_000 + 30 * PICOUSD // 100 if plan.price_cents else 0


def cost_of_quota_picousd(
    catalog: Catalog, plan: Plan, *, output_percent: int, speed: str = "standard", inference_geo: str = "global"
) -> int:
    """What the whole quota costs on the dearest model the plan allows."""
    assert plan.quota_tokens is not None
    output_tokens = plan.quota_tokens * output_percent // 100
    counts = TokenCounts(input_tokens=plan.quota_tokens - output_tokens, output_tokens=output_tokens)
    models = [model for model in catalog.models.values() if plan.allows_model(model.id)]
    return max(cost_picousd(model, counts, TODAY, speed=speed, inference_geo=inference_geo) for model in models)


def test_every_model_has_a_published_price_and_the_other_way_round() -> None:
    assert list(load_catalog("default").models) == [row[0] for row in ROWS]


@pytest.mark.parametrize(("model_id", "given", "write_5m", "write_1h", "read", "output", "context"), ROWS)
def test_prices_are_the_published_ones(
    model_id: str, given: str, write_5m: str, write_1h: str, read: str, output: str, context: str
) -> None:
    assert row_today(model_id).standard == TokenPrices(
        input=dollars(given),
        output=dollars(output),
        cache_write_5m=dollars(write_5m),
        cache_write_1h=dollars(write_1h),
        cache_read=dollars(read),
    )
    assert load_catalog("default").models[model_id].context_tokens == CONTEXT[context]


@pytest.mark.parametrize("model_id", [row[0] for row in ROWS])
def test_batch_is_half_and_a_search_a_cent(model_id: str) -> None:
    for row in load_catalog("default").models[model_id].prices:
        assert (row.batch_permille, row.web_search_microusd) == (500, dollars("0.01"))


@pytest.mark.parametrize("model_id", [row[0] for row in ROWS])
def test_inference_only_in_the_us_costs_a_tenth_more_from_the_46_models_on(model_id: str) -> None:
    offered = model_id not in {"claude-haiku-4-5", "claude-sonnet-4-5", "claude-opus-4-5"}

    assert row_today(model_id).us_only_permille == (1100 if offered else 1000)


@pytest.mark.parametrize("model_id", [row[0] for row in ROWS])
def test_fast_mode_is_twice_the_price_where_it_is_offered(model_id: str) -> None:
    offered = {"claude-opus-5-5", "claude-opus-5", "claude-opus-4-8", "claude-fable-5-2", "claude-mythos-5-2"}
    standard, fast = row_today(model_id).standard, row_today(model_id).fast

    assert (fast is not None) is (model_id in offered)
    if fast is not None:
        assert (fast.input, fast.output) == (2 * standard.input, 2 * standard.output)
        assert (fast.cache_write_5m, fast.cache_read) == (2 * standard.cache_write_5m, 2 * standard.cache_read)


def test_the_haiku_cliff() -> None:
    """99,999 against 100,001 prompt tokens and 500 of output: $0.0103 against $0.0513, rounded up."""
    haiku = load_catalog("default").models["claude-haiku-5-5"]

    below, above = (
        cost_picousd(haiku, TokenCounts(input_tokens=tokens, output_tokens=500), TODAY) for tokens in (99_999, 100_001)
    )

    assert (below, above) == (10_249_900_000, 51_250_500_000)
    hundredth_of_a_cent = Decimal("0.0001")
    assert [str((Decimal(cost) / PICOUSD).quantize(hundredth_of_a_cent, ROUND_UP)) for cost in (below, above)] == [
        "0.0103",
        "0.0513",
    ]


@pytest.mark.parametrize(("prompt_tokens", "factor"), [(99_999, 1), (100_000, 1), (100_001, 5)])
def test_a_long_haiku_prompt_costs_five_times_as_much(prompt_tokens: int, factor: int) -> None:
    small, this = row_today("claude-haiku-5-5").standard, row_today("claude-haiku-5-5", prompt_tokens).standard

    assert (this.input, this.output) == (factor * small.input, factor * small.output)
    assert (this.cache_write_5m, this.cache_write_1h) == (factor * small.cache_write_5m, factor * small.cache_write_1h)
    assert this.cache_read == factor * small.cache_read


@pytest.mark.parametrize(("day", "cache_read"), [(6, "0.20"), (7, "0.10"), (8, "0.10")])
def test_sonnet_cache_reads_halved_on_the_seventh_of_october(day: int, cache_read: str) -> None:
    sonnet = load_catalog("default").models["claude-sonnet-5-5"]

    assert sonnet.price_row(1, datetime(2026, 10, day, tzinfo=UTC)).standard.cache_read == dollars(cache_read)


@pytest.mark.parametrize("model_id", ["claude-sonnet-4-6", "claude-opus-4-6"])
@pytest.mark.parametrize(("day", "factor"), [(date(2026, 3, 12), 2), (date(2026, 3, 13), 1), (date(2026, 3, 14), 1)])
def test_the_premium_on_long_prompts_ended_in_march(model_id: str, day: date, factor: int) -> None:
    model = load_catalog("default").models[model_id]
    at = datetime(day.year, day.month, day.day, tzinfo=UTC)
    inputs = [model.price_row(tokens, at).standard.input for tokens in (199_999, 200_000, 200_001)]

    assert inputs == [inputs[0], inputs[0], factor * inputs[0]]


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-opus-4-5-20251101", "claude-opus-4-5"),
        ("claude-opus-4-6-20260205", "claude-opus-4-6"),
    ],
)
def test_dated_names_are_the_model(name: str, model_id: str) -> None:
    model = load_catalog("default").resolve_model(name)

    assert model is not None
    assert model.id == model_id


@pytest.mark.parametrize("name", ["claude-opus-4-20250514", "claude-3-5-haiku-20241022", "gpt-6", "claude-opus"])
def test_other_models_are_not_ours(name: str) -> None:
    assert load_catalog("default").resolve_model(name) is None


def test_a_model_nobody_priced_costs_as_much_as_the_dearest() -> None:
    catalog = load_catalog("default")
    counts = TokenCounts(MTOK, MTOK, MTOK, MTOK, MTOK)

    assert cost_picousd(catalog.dearest_model, counts, TODAY) == int(Decimal("93.50") * PICOUSD)
    assert cost_picousd(catalog.dearest_model, counts, TODAY, speed="fast") == 149 * PICOUSD


def test_by_default_a_billable_token_is_a_token() -> None:
    assert {model.weights for model in load_catalog("default").models.values()} == {TokenWeights()}


def test_the_plans_are_free_pro_and_enterprise() -> None:
    catalog = load_catalog("default")

    assert catalog.default_plan_id == "free"
    assert {
        plan.id: (
            plan.name,
            plan.quota_kind,
            plan.quota_tokens,
            plan.price_cents,
            plan.overage_price_microusd_per_1k_tokens,
        )
        for plan in catalog.plans.values()
    } == {
        "free": ("Free", QuotaKind.HARD, 100_000, 0, 0),
        "pro": ("Pro", QuotaKind.SOFT, 2_000_000, 29_00, dollars("0.02")),
        "enterprise": ("Enterprise", QuotaKind.SOFT, 10_000_000, 99_00, dollars("0.015")),
    }
    assert all(plan.quota_requests is None for plan in catalog.plans.values())


def test_free_fits_parallel_calls_and_charges_who_hangs_up() -> None:
    free = load_catalog("default").plan("free")

    assert (free.max_output_tokens, free.max_open_reservations) == (4_096, 4)
    assert (free.expiry_policy, free.slice_output_tokens) == (ExpiryPolicy.STRICT, None)
    assert free.period_kind is PeriodKind.CALENDAR_MONTH


def test_ten_thousand_free_users_a_month_are_all_that_the_operator_can_be_made_to_pay_for() -> None:
    catalog = load_catalog("default")
    free = catalog.plan("free")
    assert free.pool_tokens == 10_000 * free.most_tokens
    assert [plan.id for plan in catalog.plans.values() if plan.pool_tokens is not None] == ["free"]


@pytest.mark.parametrize("plan_id", ["pro", "enterprise"])
def test_paid_plans_reserve_in_slices_and_follow_the_subscription(plan_id: str) -> None:
    plan = load_catalog("default").plan(plan_id)

    assert (plan.slice_output_tokens, plan.max_output_tokens) == (8_192, None)
    assert (plan.expiry_policy, plan.period_kind) == (ExpiryPolicy.INPUT, PeriodKind.ANCHORED_MONTH)
    assert plan.overage_cap_tokens == plan.quota_tokens, "no bill above one foreseeable sum"


def test_a_year_costs_ten_months_and_overage_is_asked_for() -> None:
    catalog = load_catalog("default")
    for plan in (catalog.plan("pro"), catalog.plan("enterprise")):
        assert plan.annual_price_cents == 10 * plan.price_cents
        assert (plan.sold, plan.overage_opt_in, plan.trial_days, plan.issue_first_key) == (True, True, 0, False)
    assert not catalog.plan("free").sold
    assert [plan.id for plan in catalog.plans.values() if plan.protected] == ["pro"]


@pytest.mark.parametrize("name", ["default", "calls", "calls_pair", "models"])
def test_no_shipped_plan_that_is_protected_can_lose_money(name: str) -> None:
    catalog = load_catalog(name)
    for plan in catalog.plans.values():
        given = plan.id == catalog.default_plan_id
        report = plan_margins(plan, tuple(catalog.models.values()), catalog.billing, TODAY, given=given)
        assert not report.fails
        assert given or not report.typical.loses or not (plan.quota_tokens or plan.quota_requests)


def test_a_free_user_costs_at_most_fifty_cents() -> None:
    catalog = load_catalog("default")

    cost = cost_of_quota_picousd(catalog, catalog.plan("free"), output_percent=100, inference_geo="us")

    assert cost == PICOUSD // 2


@pytest.mark.parametrize(
    ("plan_id", "output_percent", "inference_geo"),
    [("pro", 25, "us"), ("pro", 100, "us"), ("enterprise", 25, "us"), ("enterprise", 93, "global")],
)
def test_a_plan_used_up_on_its_dearest_model_still_pays(plan_id: str, output_percent: int, inference_geo: str) -> None:
    catalog = load_catalog("default")
    plan = catalog.plan(plan_id)

    cost = cost_of_quota_picousd(catalog, plan, output_percent=output_percent, inference_geo=inference_geo)

    assert cost + fees_picousd(plan) < plan.price_cents * PICOUSD // 100


@pytest.mark.parametrize("plan_id", ["pro", "enterprise"])
def test_overage_is_never_sold_below_its_cost(plan_id: str) -> None:
    """Whatever the kind of token: fast, US-only, cached for an hour, in the longest prompt."""
    catalog = load_catalog("default")
    plan = catalog.plan(plan_id)
    sold_microusd_per_mtok = plan.overage_price_microusd_per_1k_tokens * 1_000

    for model_id in plan.models:
        for row in catalog.models[model_id].prices:
            prices = row.fast or row.standard
            dearest = max(prices.input, prices.output, prices.cache_write_1h) * row.us_only_permille // 1000
            assert dearest < sold_microusd_per_mtok
