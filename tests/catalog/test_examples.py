"""The example catalogs load, and sell what they say."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.catalog.test_default_catalog import PICOUSD, cost_of_quota_picousd, fees_picousd
from tollgate.catalog import loader
from tollgate.catalog.loader import load_catalog
from tollgate.domain.plans import UNLIMITED, QuotaKind
from tollgate.domain.pricing import cost_picousd
from tollgate.domain.tokens import TokenCounts

EXAMPLES = Path(loader.__file__).parent / "examples"
TODAY = datetime(2026, 11, 20, tzinfo=UTC)


def test_every_example_is_tested_here() -> None:
    assert {folder.name for folder in EXAMPLES.iterdir() if folder.is_dir()} == {"calls", "calls_pair", "models"}


@pytest.mark.parametrize("name", ["default", "calls", "calls_pair", "models"])
def test_catalogs_load_once_and_know_their_default(name: str) -> None:
    catalog = load_catalog(name)

    assert load_catalog(name) is catalog
    assert catalog.name == name
    assert catalog.plan(catalog.default_plan_id).id == catalog.default_plan_id


def test_calls_are_sold_by_the_call() -> None:
    plans = load_catalog("calls").plans

    assert {plan.name: plan.quota_requests for plan in plans.values()} == {
        "Free": 100,
        "Starter": 10_000,
        "Professional": 100_000,
        "Enterprise": None,
    }
    assert all(plan.quota_tokens is None and plan.overage_cap_tokens == 0 for plan in plans.values())
    assert [plan.name for plan in plans.values() if not plan.hard] == ["Enterprise"]
    assert plans["enterprise"].stored_quota_requests == plans["enterprise"].stored_quota_tokens == UNLIMITED


def test_the_pair_is_five_calls_and_five_hundred() -> None:
    plans = load_catalog("calls_pair").plans

    assert {plan.id: (plan.quota_requests, plan.hard) for plan in plans.values()} == {
        "trial": (5, True),
        "full": (500, True),
    }


@pytest.mark.parametrize(
    ("counts", "cents"),
    [
        (TokenCounts(input_tokens=2_000, output_tokens=500), "0.045"),
        (TokenCounts(input_tokens=1_000_000, output_tokens=4_096), "51.024"),
        (TokenCounts(cache_write_1h_tokens=1_000_000, output_tokens=4_096), "101.024"),
    ],
)
def test_a_call_costs_what_the_file_says(counts: TokenCounts, cents: str) -> None:
    haiku = load_catalog("calls").models["claude-haiku-5-5"]

    assert cost_picousd(haiku, counts, TODAY) == int(cents.replace(".", "").lstrip("0")) * PICOUSD // 100_000


def test_models_are_sold_by_the_model() -> None:
    plans = load_catalog("models").plans

    assert {plan.name: (plan.quota_tokens, plan.price_cents, plan.quota_kind) for plan in plans.values()} == {
        "BASIC": (50_000, 9_00, QuotaKind.HARD),
        "MAX": (250_000, 29_00, QuotaKind.HARD),
        "BEAST": (1_000_000, 99_00, QuotaKind.HARD),
    }
    assert plans["basic"].models < plans["max"].models
    assert not any(plans["max"].allows_model(model) for model in ("claude-fable-5-2", "claude-mythos-5"))
    assert all(plans["beast"].allows_model(model) for model in load_catalog("models").models)


@pytest.mark.parametrize("plan_id", ["basic", "max", "beast"])
def test_a_dear_model_cannot_eat_its_price(plan_id: str) -> None:
    """The whole quota as output of the dearest allowed model, fast and US-only."""
    catalog = load_catalog("models")
    plan = catalog.plan(plan_id)

    cost = cost_of_quota_picousd(catalog, plan, output_percent=100, speed="fast", inference_geo="us")

    assert cost + fees_picousd(plan) < plan.price_cents * PICOUSD // 100
