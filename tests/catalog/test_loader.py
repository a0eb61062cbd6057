"""A catalog is read strictly: whatever could sell tokens for free or at a guess is refused, with its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tollgate.catalog.loader import CatalogError, load_catalog, read_catalog
from tollgate.domain.plans import UNLIMITED, Billing, ExpiryPolicy, PeriodKind, QuotaKind, TaxKind

PLANS = """
default_plan = "small"

[plans.small]
name = "Small"
price_cents = 0
quota_kind = "hard"
quota_tokens = 1_000
models = ["claude-a"]
max_open_reservations = 2
expiry_policy = "strict"
period_kind = "calendar_month"

[plans.large]
name = "Large"
price_cents = 2_900
quota_kind = "soft"
quota_tokens = 2_000
overage_cap_tokens = 500
overage_price_microusd_per_1k_tokens = 20_000
models = ["a-latest", "claude-b"]
requests_per_minute = 60
burst_requests = 10
max_open_reservations = 4
max_output_tokens = 8_000
slice_output_tokens = 4_000
expiry_policy = "input"
period_kind = "anchored_month"
max_api_keys = 3
upgrade_message = "Ask us."
pool_tokens = 25_000
annual_price_cents = 29_000
trial_days = 14
trial_quota_tokens = 100
overage_opt_in = true
issue_first_key = true
protected = true
"""
SELLING = """annual_price_cents = 29_000
trial_days = 14
trial_quota_tokens = 100
overage_opt_in = true
issue_first_key = true
"""
PRICE = "{ input = 1_000, output = 2_000, cache_write_5m = 3_000, cache_write_1h = 4_000, cache_read = 5_000 }"
ROW = f"""
[[models.claude-a.prices]]
effective_from = 2026-01-01
microusd_per_mtok = {PRICE}
batch_permille = 500
us_only_permille = 1_100
web_search_microusd = 10_000
"""
MODELS = f"""
[models.claude-a]
display_name = "A"
description = "The first"
context_tokens = 200_000
max_output_tokens = 64_000
created_at = 2026-01-01
aliases = ["a-latest"]
weights = {{ output = 5_000 }}
{ROW}
[models.claude-b]
display_name = "B"
description = "The second"
context_tokens = 200_000
max_output_tokens = 64_000
created_at = 2026-02-01
deprecated_at = 2026-12-01
retires_at = 2027-02-01
{ROW.replace("claude-a", "claude-b")}"""


def write(folder: Path, plans: str = PLANS, models: str = MODELS) -> Path:
    (folder / "plans.toml").write_text(plans, encoding="utf-8")
    (folder / "models.toml").write_text(models, encoding="utf-8")
    return folder


def changed(text: str, old: str, new: str) -> str:
    assert old in text, "the change would test nothing"
    return text.replace(old, new, 1)


def test_a_plan_is_what_its_table_says(tmp_path: Path) -> None:
    plan = read_catalog(write(tmp_path), "mine").plan("large")

    assert (plan.id, plan.name, plan.price_cents) == ("large", "Large", 2_900)
    assert (plan.quota_kind, plan.quota_tokens, plan.quota_requests) == (QuotaKind.SOFT, 2_000, None)
    assert (plan.overage_cap_tokens, plan.overage_price_microusd_per_1k_tokens) == (500, 20_000)
    assert plan.models == {"claude-a", "claude-b"}, "aliases are resolved"
    assert (plan.requests_per_minute, plan.burst_requests, plan.max_open_reservations) == (60, 10, 4)
    assert (plan.max_output_tokens, plan.slice_output_tokens) == (8_000, 4_000)
    assert (plan.expiry_policy, plan.period_kind) == (ExpiryPolicy.INPUT, PeriodKind.ANCHORED_MONTH)
    assert plan.upgrade_message == "Ask us."
    assert plan.max_api_keys == 3
    assert (plan.pool_tokens, plan.most_tokens) == (25_000, 2_500)
    assert (plan.sold, plan.annual_price_cents) == (True, 29_000)
    assert (plan.trial_days, plan.trial_quota_tokens) == (14, 100)
    assert plan.overage_opt_in
    assert plan.issue_first_key
    assert plan.protected


def test_what_a_plan_leaves_out_is_not_limited(tmp_path: Path) -> None:
    plan = read_catalog(write(tmp_path), "mine").plan("small")

    assert plan.quota_requests is plan.requests_per_minute is plan.max_output_tokens is plan.slice_output_tokens is None
    assert (plan.overage_cap_tokens, plan.burst_requests, plan.upgrade_message) == (0, 0, "")
    assert plan.max_api_keys == 10
    assert plan.pool_tokens is plan.annual_price_cents is plan.trial_quota_tokens is None
    assert plan.trial_days == 0
    assert not any([plan.sold, plan.overage_opt_in, plan.issue_first_key, plan.protected])


def test_how_a_catalog_is_sold_has_a_default_for_everything(tmp_path: Path) -> None:
    assert read_catalog(write(tmp_path), "mine").billing == Billing()


def test_how_a_catalog_is_sold_is_what_its_table_says(tmp_path: Path) -> None:
    lines = """
[billing]
currency = "eur"
tax = "managed"
promotion_codes = true
grace_days = 0
fee_permille = 15
fee_cents = 25
billing_fee_permille = 0
overage_lookup_key = "overage_2"
meter_event_name = "overage_2"
"""
    billing = read_catalog(write(tmp_path, PLANS + lines), "mine").billing

    assert billing == Billing("eur", TaxKind.MANAGED, True, 0, 15, 25, 0, "overage_2", "overage_2")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('currency = "USD"', "currency"),
        ('currency = "jpy"', "currency"),
        ("currency = 1", "currency"),
        ('tax = "maybe"', "tax"),
        ("promotion_codes = 1", "promotion_codes"),
        ("grace_days = 61", "grace_days"),
        ("grace_days = -1", "grace_days"),
        ("fee_permille = 2.9", "fee_permille"),
        ('overage_lookup_key = "Über"', "overage_lookup_key"),
        ('meter_event_name = ""', "meter_event_name"),
        ("discount = 1", "discount"),
    ],
)
def test_a_fault_in_how_it_is_sold_is_named(tmp_path: Path, line: str, key: str) -> None:
    with pytest.raises(CatalogError) as raised:
        read_catalog(write(tmp_path, f"{PLANS}\n[billing]\n{line}\n"), "mine")

    assert (raised.value.table, raised.value.key) == ("billing", key)


@pytest.mark.parametrize(("price_cents", "sold"), [(0, False), (1, True)])
def test_a_plan_with_a_price_is_sold_unless_it_is_the_default(tmp_path: Path, price_cents: int, sold: bool) -> None:
    anchored = changed(PLANS, '"calendar_month"', '"anchored_month"')
    priced = changed(anchored, "price_cents = 0", f"price_cents = {price_cents}")
    plans = read_catalog(write(tmp_path, priced), "mine").plans
    other = read_catalog(write(tmp_path, changed(priced, '= "small"', '= "large"').replace(SELLING, "")), "mine").plans

    assert (plans["small"].sold, plans["large"].sold) == (False, True)
    assert (other["small"].sold, other["large"].sold) == (sold, False)


def test_a_plan_with_a_price_can_be_kept_from_sale(tmp_path: Path) -> None:
    plans = PLANS.replace(SELLING, "sold = false\n")

    assert not read_catalog(write(tmp_path, plans), "mine").plan("large").sold


@pytest.mark.parametrize(
    ("annual_cents", "right"), [(2_899, False), (2_900, True), (2_901, True), (34_800, True), (34_801, False)]
)
def test_a_year_costs_between_one_month_and_twelve(tmp_path: Path, annual_cents: int, right: bool) -> None:
    folder = write(tmp_path, changed(PLANS, "annual_price_cents = 29_000", f"annual_price_cents = {annual_cents}"))
    if right:
        assert read_catalog(folder, "mine").plan("large").annual_price_cents == annual_cents
        return
    with pytest.raises(CatalogError, match=r"annual_price_cents: is .* a year costs between"):
        read_catalog(folder, "mine")


@pytest.mark.parametrize(("number", "right"), [(-1, False), (0, True), (1, True), (100, True), (101, False)])
def test_a_plan_has_none_to_a_hundred_api_keys(tmp_path: Path, number: int, right: bool) -> None:
    plans = changed(PLANS, "issue_first_key = true\n", "")
    folder = write(tmp_path, changed(plans, "max_api_keys = 3", f"max_api_keys = {number}"))
    if right:
        assert read_catalog(folder, "mine").plan("large").max_api_keys == number
        return
    with pytest.raises(CatalogError, match="max_api_keys"):
        read_catalog(folder, "mine")


def test_the_smallest_plan_there_can_be_is_one(tmp_path: Path) -> None:
    plans = PLANS
    for key, least in [
        ("quota_tokens = 2_000", "quota_tokens = 1\nquota_requests = 1"),
        ("trial_quota_tokens = 100", "trial_quota_tokens = 1"),
        ("overage_cap_tokens = 500", "overage_cap_tokens = 0"),
        ("1k_tokens = 20_000", "1k_tokens = 0"),
        ("per_minute = 60", "per_minute = 1"),
        ("burst_requests = 10", "burst_requests = 1"),
        ("reservations = 4", "reservations = 1"),
        ("max_output_tokens = 8_000", "max_output_tokens = 1"),
        ("slice_output_tokens = 4_000", "slice_output_tokens = 1"),
    ]:
        plans = changed(plans, key, least)

    plan = read_catalog(write(tmp_path, plans), "mine").plan("large")

    assert (plan.quota_tokens, plan.quota_requests, plan.overage_cap_tokens) == (1, 1, 0)
    assert plan.slice_output_tokens == plan.max_output_tokens == 1, "a slice may be the whole"


def test_the_largest_quota_there_can_be_is_one_nobody_reaches(tmp_path: Path) -> None:
    plans = changed(PLANS, "tokens = 1_000", "tokens = 1_000_000_000_000_000")

    assert read_catalog(write(tmp_path, plans), "mine").plan("small").quota_tokens == UNLIMITED


def test_all_models_are_allowed_only_by_saying_so(tmp_path: Path) -> None:
    plans = changed(PLANS, 'models = ["claude-a"]', 'models = "all"')

    assert read_catalog(write(tmp_path, plans), "mine").plan("small").models == frozenset()


def test_a_model_is_what_its_table_says(tmp_path: Path) -> None:
    model = read_catalog(write(tmp_path), "mine").models["claude-a"]

    assert (model.display_name, model.description) == ("A", "The first")
    assert (model.context_tokens, model.max_output_tokens) == (200_000, 64_000)
    assert model.created_at.isoformat() == "2026-01-01T00:00:00+00:00"
    assert model.deprecated_at is model.retires_at is None
    assert (model.weights.input, model.weights.output) == (1_000, 5_000), "what is left out counts as one"
    [row] = model.prices
    assert (row.standard.input, row.standard.cache_read, row.fast) == (1_000, 5_000, None)
    assert (row.batch_permille, row.us_only_permille, row.web_search_microusd) == (500, 1_100, 10_000)


def test_a_model_ends_when_its_table_says(tmp_path: Path) -> None:
    model = read_catalog(write(tmp_path), "mine").models["claude-b"]

    assert model.deprecated_at is not None
    assert model.retires_at is not None
    assert model.deprecated_at.isoformat() == "2026-12-01T00:00:00+00:00"
    assert model.retires_at.isoformat() == "2027-02-01T00:00:00+00:00"


def test_rows_are_sorted_whatever_their_order_in_the_file(tmp_path: Path) -> None:
    sized = changed(ROW, "microusd_per_mtok", "max_prompt_tokens = 1_000\nmicrousd_per_mtok")
    later = changed(ROW, "2026-01-01", "2026-06-01")
    models = changed(MODELS, ROW, later + ROW + sized)

    prices = read_catalog(write(tmp_path, models=models), "mine").models["claude-a"].prices

    assert [(row.effective_from.month, row.max_prompt_tokens) for row in prices] == [(1, 1_000), (1, None), (6, None)]


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("claude-a", "claude-a"),
        ("a-latest", "claude-a"),
        ("claude-b-20260201", "claude-b"),
        ("a-latest-20260201", "claude-a"),
        ("claude-b-2026020", None),
        ("claude-b-202602011", None),
        ("claude-b-2026020x", None),
        ("claude-b-²⁰²⁶⁰²⁰¹", None),
        ("claude-b-20260201-20260201", None),
        ("claude-c", None),
        ("claude-c-20260201", None),
        ("Claude-A", None),
        ("20260201", None),
        ("-20260201", None),
        ("", None),
    ],
)
def test_a_model_is_found_by_id_alias_or_dated_snapshot(tmp_path: Path, name: str, model_id: str | None) -> None:
    model = read_catalog(write(tmp_path), "mine").resolve_model(name)

    assert (model.id if model else None) == model_id


def test_a_folder_without_models_uses_the_shipped_ones(tmp_path: Path) -> None:
    plans = PLANS.replace("claude-a", "claude-haiku-5-5").replace("a-latest", "claude-haiku-4-5")
    (tmp_path / "plans.toml").write_text(plans.replace("claude-b", "claude-opus-5"), encoding="utf-8")

    assert read_catalog(tmp_path, "mine").models == load_catalog("default").models


def test_a_plan_that_users_are_on_but_the_file_lost_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"plans\.toml \[plans\.gone\]: no such plan") as raised:
        read_catalog(write(tmp_path), "mine").plan("gone")
    assert raised.value.table == "plans.gone"


def test_a_shared_catalog_cannot_be_changed(tmp_path: Path) -> None:
    """It lives as long as the process and serves every tenant."""
    catalog = read_catalog(write(tmp_path), "mine")
    with pytest.raises(TypeError):
        catalog.plans["small"] = catalog.plans["large"]  # type: ignore[index]
    with pytest.raises(TypeError):
        del catalog.models["claude-a"]  # type: ignore[attr-defined]


PLAN_FAULTS = [
    pytest.param('name = "Small"', "nmae = 1", "plans.small", "nmae", "unknown key", id="a key that does not exist"),
    pytest.param('name = "Small"', "", "plans.small", "name", "is missing", id="a key left out"),
    pytest.param('"Small"', '" "', "plans.small", "name", "must be text", id="an empty name"),
    pytest.param('"Small"', "7", "plans.small", "name", "must be text", id="a number for a name"),
    pytest.param("cents = 0", "cents = -1", "plans.small", "price_cents", "from 0", id="a negative price"),
    pytest.param("cents = 0", "cents = 0.0", "plans.small", "price_cents", "whole numbers", id="a float price"),
    pytest.param("cents = 0", "cents = true", "plans.small", "price_cents", "whole number", id="a truth for a price"),
    pytest.param("cents = 0", 'cents = "0"', "plans.small", "price_cents", "whole number", id="text for a price"),
    pytest.param('"hard"', '"harsh"', "plans.small", "quota_kind", "hard, soft", id="a kind that does not exist"),
    pytest.param("tokens = 1_000", "tokens = 0", "plans.small", "quota_tokens", "from 1", id="a quota of nothing"),
    pytest.param(
        "tokens = 1_000",
        "tokens = 1_000_000_000_000_001",
        "plans.small",
        "quota_tokens",
        "to 1000000000000000",
        id="a quota beyond what the table counts exactly",
    ),
    pytest.param(
        "quota_tokens = 1_000", "", "plans.small", "quota_kind", "neither", id="a hard quota with nothing to hold"
    ),
    pytest.param(
        "quota_tokens = 1_000",
        "quota_tokens = 1_000\noverage_cap_tokens = 1",
        "plans.small",
        "overage_cap_tokens",
        "only a soft quota",
        id="overage beyond a hard quota",
    ),
    pytest.param(
        "quota_tokens = 1_000",
        "quota_tokens = 1_000\nslice_output_tokens = 1",
        "plans.small",
        "slice_output_tokens",
        "only soft",
        id="slices of a hard quota",
    ),
    pytest.param(
        "overage_cap_tokens = 500", "", "plans.large", "overage_cap_tokens", "is missing", id="overage without a cap"
    ),
    pytest.param(
        "overage_price_microusd_per_1k_tokens = 20_000",
        "",
        "plans.large",
        "overage_price_microusd_per_1k_tokens",
        "is missing",
        id="overage without a price",
    ),
    pytest.param(
        "quota_tokens = 2_000",
        "quota_requests = 2_000",
        "plans.large",
        "overage_cap_tokens",
        "only a soft quota of tokens",
        id="overage of calls",
    ),
    pytest.param(
        "pool_tokens = 25_000", "pool_tokens = 2_499", "plans.large", "pool_tokens", "less than the 2500", id="no room"
    ),
    pytest.param(
        "quota_tokens = 1_000",
        "quota_requests = 10\npool_tokens = 1_000",
        "plans.small",
        "pool_tokens",
        "this plan has none",
        id="a pool of calls",
    ),
    pytest.param("= 14", "= 731", "plans.large", "trial_days", "to 730", id="a trial longer than Stripe has"),
    pytest.param("= 14", "= 0", "plans.large", "trial_quota_tokens", "no trial", id="the quota of no trial"),
    pytest.param(
        "trial_quota_tokens = 100", "trial_quota_tokens = 2_001", "plans.large", "trial_quota_tokens", "more", id="more"
    ),
    pytest.param("max_api_keys = 3", "max_api_keys = 0", "plans.large", "issue_first_key", "no key", id="no key"),
    pytest.param(
        '"anchored_month"', '"calendar_month"', "plans.large", "period_kind", "two quotas", id="two calendars"
    ),
    pytest.param("cents = 0", "cents = 0\nsold = true", "plans.small", "sold", "default plan", id="a gift for sale"),
    pytest.param("cents = 2_900", "cents = 0\nsold = true", "plans.large", "sold", "no price", id="sold for nothing"),
    pytest.param("cents = 0", "cents = 0\ntrial_days = 1", "plans.small", "trial_days", "only a plan", id="not sold"),
    pytest.param(
        "cents = 0", "cents = 0\noverage_opt_in = true", "plans.small", "overage_opt_in", "only a soft", id="no overage"
    ),
    pytest.param("protected = true", 'protected = "yes"', "plans.large", "protected", "true or false", id="text"),
    pytest.param("burst_requests = 10", "", "plans.large", "burst_requests", "together", id="a rate without a burst"),
    pytest.param(
        "requests_per_minute = 60", "", "plans.large", "burst_requests", "together", id="a burst without a rate"
    ),
    pytest.param(
        "slice_output_tokens = 4_000",
        "slice_output_tokens = 8_001",
        "plans.large",
        "slice_output_tokens",
        "more than max_output_tokens",
        id="a slice above the whole",
    ),
    pytest.param('["claude-a"]', "[]", "plans.small", "models", "list of names", id="an empty list of models"),
    pytest.param('["claude-a"]', '"claude-a"', "plans.small", "models", '"all"', id="a model that is not in a list"),
    pytest.param('["claude-a"]', '["claude-x"]', "plans.small", "models", "claude-x", id="a model that does not exist"),
    pytest.param('["claude-a"]', '["claude-a", "claude-a"]', "plans.small", "models", "twice", id="a model twice"),
    pytest.param('["claude-a"]', "[1]", "plans.small", "models", "list of names", id="a number in the list"),
    pytest.param("reservations = 2", "reservations = 0", "plans.small", "max_open_reservations", "from 1", id="none"),
    pytest.param('"strict"', '"strcit"', "plans.small", "expiry_policy", "strict, input, void", id="a policy misspelt"),
    pytest.param('"calendar_month"', '"week"', "plans.small", "period_kind", "anchored_month", id="a period misspelt"),
    pytest.param('= "small"', '= "tiny"', "", "default_plan", "none of the plans", id="a default that does not exist"),
    pytest.param('default_plan = "small"', "", "", "default_plan", "is missing", id="no default"),
    pytest.param("default_plan", "x = 1\ndefault_plan", "", "x", "unknown key", id="an unknown key at the top"),
    pytest.param("[plans.large]", "[plans.Large]", "plans.Large", "", "plan id", id="an id with a capital"),
    pytest.param("[plans.large]", '[plans."a#b"]', "plans.a#b", "", "plan id", id="an id with a separator"),
    pytest.param("[plans.large]", f"[plans.{'a' * 17}]", f"plans.{'a' * 17}", "", "at most 16", id="an id too long"),
    pytest.param("[plans.small]", "[plans]\nx = 1\n[plans.small]", "plans.x", "", "must be a table", id="no table"),
]


@pytest.mark.parametrize(("old", "new", "table", "key", "problem"), PLAN_FAULTS)
def test_a_fault_in_the_plans_is_named(tmp_path: Path, old: str, new: str, table: str, key: str, problem: str) -> None:
    with pytest.raises(CatalogError) as raised:
        read_catalog(write(tmp_path, plans=changed(PLANS, old, new)), "mine")

    assert (raised.value.file, raised.value.table, raised.value.key) == ("plans.toml", table, key)
    assert problem in str(raised.value)


A_ROW = "models.claude-a.prices #1"
MODEL_FAULTS = [
    pytest.param('name = "A"', 'name = "A"\nname = "A"', "models.claude-a", "name", "unknown key", id="unknown key"),
    pytest.param("display_name", "#", "models.claude-a", "display_name", "is missing", id="a key left out"),
    pytest.param(
        "context_tokens = 200_000", "context_tokens = 0", "models.claude-a", "context_tokens", "from 1", id="no context"
    ),
    pytest.param(
        "created_at = 2026-01-01",
        'created_at = "2026-01-01"',
        "models.claude-a",
        "created_at",
        "a date",
        id="a date as text",
    ),
    pytest.param(
        "created_at = 2026-01-01",
        "created_at = 2026-01-01T00:00:00Z",
        "models.claude-a",
        "created_at",
        "a date",
        id="an instant for a date",
    ),
    pytest.param(
        '["a-latest"]',
        '["claude-b"]',
        "models.claude-a",
        "aliases",
        "already names claude-b",
        id="an alias that is a model",
    ),
    pytest.param(
        "retires_at",
        'aliases = ["a-latest"]\nretires_at',
        "models.claude-b",
        "aliases",
        "already names claude-a",
        id="an alias twice",
    ),
    pytest.param(
        "{ output = 5_000 }",
        "{ output = 0 }",
        "models.claude-a.weights",
        "output",
        "from 1",
        id="output that counts for nothing",
    ),
    pytest.param(
        "{ output = 5_000 }",
        "{ output = 5.0 }",
        "models.claude-a.weights",
        "output",
        "whole numbers",
        id="a float weight",
    ),
    pytest.param(
        "{ output = 5_000 }",
        "{ thinking = 1 }",
        "models.claude-a.weights",
        "thinking",
        "unknown key",
        id="a kind that does not exist",
    ),
    pytest.param(
        "{ output = 5_000 }", "{ input = -1 }", "models.claude-a.weights", "input", "from 0", id="a negative weight"
    ),
    pytest.param(ROW, "", "models.claude-a", "prices", "is missing", id="no price row"),
    pytest.param(ROW, "prices = []", "models.claude-a", "prices", "one or more tables", id="an empty list of rows"),
    pytest.param(
        ROW,
        ROW + ROW,
        "models.claude-a.prices",
        "effective_from",
        "overlap",
        id="two rows for the same prompts and date",
    ),
    pytest.param(
        "effective_from = 2026-01-01",
        "effective_from = 2026-01-01\nmax_prompt_tokens = 9",
        "models.claude-a.prices",
        "max_prompt_tokens",
        "above 9",
        id="no row for larger prompts",
    ),
    pytest.param("effective_from = 2026-01-01\n", "", A_ROW, "effective_from", "is missing", id="a row without a date"),
    pytest.param(
        "input = 1_000", "input = 1.0", f"{A_ROW}.microusd_per_mtok", "input", "whole numbers", id="a float price"
    ),
    pytest.param(
        "input = 1_000", "input = 0", f"{A_ROW}.microusd_per_mtok", "input", "from 1", id="a price of nothing"
    ),
    pytest.param("input = 1_000", "input = -1", f"{A_ROW}.microusd_per_mtok", "input", "from 1", id="a negative price"),
    pytest.param(
        ", cache_read = 5_000",
        "",
        f"{A_ROW}.microusd_per_mtok",
        "cache_read",
        "is missing",
        id="a kind without a price",
    ),
    pytest.param(
        "input = 1_000",
        "input = 1_001",
        f"{A_ROW}.microusd_per_mtok",
        "input",
        "no whole batch",
        id="a price that does not halve",
    ),
    pytest.param(
        "input = 1_000",
        "input = 1_002",
        f"{A_ROW}.microusd_per_mtok",
        "input",
        "no whole batch",
        id="a price without a whole surcharge",
    ),
    pytest.param(
        "batch_permille = 500", "batch_permille = 1_001", A_ROW, "batch_permille", "to 1000", id="batch above the price"
    ),
    pytest.param(
        "us_only_permille = 1_100",
        "us_only_permille = 999",
        A_ROW,
        "us_only_permille",
        "from 1000",
        id="a surcharge below the price",
    ),
    pytest.param(
        "web_search_microusd = 10_000",
        "web_search_microusd = 0.01",
        A_ROW,
        "web_search_microusd",
        "whole numbers",
        id="a float search price",
    ),
    pytest.param(
        f"microusd_per_mtok = {PRICE}",
        "microusd_per_mtok = 3",
        A_ROW,
        "microusd_per_mtok",
        "must be a table",
        id="one price for all kinds",
    ),
]


@pytest.mark.parametrize(("old", "new", "table", "key", "problem"), MODEL_FAULTS)
def test_a_fault_in_the_models_is_named(tmp_path: Path, old: str, new: str, table: str, key: str, problem: str) -> None:
    with pytest.raises(CatalogError) as raised:
        read_catalog(write(tmp_path, models=changed(MODELS, old, new)), "mine")

    assert (raised.value.file, raised.value.table, raised.value.key) == ("models.toml", table, key)
    assert problem in str(raised.value)


def test_an_error_reads_as_a_place_and_a_reason(tmp_path: Path) -> None:
    plans = changed(PLANS, "price_cents = 2_900", "price_cents = 29.0")
    with pytest.raises(CatalogError) as raised:
        read_catalog(write(tmp_path, plans=plans), "mine")

    reason = "is 29.0; money and tokens are whole numbers, in the unit the key names"
    assert str(raised.value) == f"plans.toml [plans.large] price_cents: {reason}"


def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"^plans\.toml: is not TOML: .*line 2"):
        read_catalog(write(tmp_path, plans="\ndefault_plan = small"), "mine")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "plans.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(CatalogError, match=r"^plans\.toml: cannot be read"):
        read_catalog(tmp_path, "mine")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"^plans\.toml: cannot be read"):
        read_catalog(tmp_path, "mine")


@pytest.mark.parametrize("name", ["nowhere", "", "..", "../catalog", "examples", "default/../default"])
def test_a_name_that_is_no_catalog_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(CatalogError, match="there are: default, calls, calls_pair, models"):
        load_catalog(name)


def test_reading_a_catalog_imports_only_the_standard_library() -> None:
    """The streaming function reads it at start; every module counts there."""
    program = (
        "import sys; from tollgate.catalog.loader import load_catalog; load_catalog('default');"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    )
    core = Path(__file__).parents[2] / "layers" / "core"
    ran = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(core)}
    )
    assert set(ran.stdout.split()) - {"__main__"} == {"tollgate"}


@pytest.mark.parametrize("kind", [PeriodKind.CALENDAR_MONTH, PeriodKind.EVERY_30_DAYS])
def test_only_a_plan_that_is_not_sold_may_count_otherwise_than_from_the_purchase(
    tmp_path: Path, kind: PeriodKind
) -> None:
    """The first of the month, or the 31st day, is a second quota within the month that was paid for."""
    plans = PLANS.replace('"calendar_month"', f'"{kind}"')
    assert read_catalog(write(tmp_path, plans=plans), "mine").plans["small"].period_kind is kind
    medium = plans[plans.index("[plans.small]") : plans.index("[plans.large]")].replace("small", "medium")
    plans += medium.replace("price_cents = 0", "price_cents = 100")
    with pytest.raises(CatalogError, match="two quotas") as raised:
        read_catalog(write(tmp_path, plans=plans), "mine")

    assert (raised.value.table, raised.value.key) == ("plans.medium", "period_kind")
    given = changed(plans, "price_cents = 100", "price_cents = 100\nsold = false")
    assert read_catalog(write(tmp_path, plans=given), "mine").plans["medium"].period_kind is kind
