"""Margins as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from tollgate.catalog.loader import Catalog
from tollgate.domain.margins import PICOUSD_PER_CENT, Margin, ModelMargins, PlanMargins, Rate, TrialCost, Use
from tollgate.domain.plans import Plan
from tollgate.domain.pricing import PICOUSD_PER_MICROUSD

UNBOUNDED: Final = "no bound"


def dollars(picousd: int | None, *, signed: bool = False) -> str:
    """`$27.66`, to the nearest cent; with a sign where it is gain or loss."""
    if picousd is None:
        return UNBOUNDED
    cents = (abs(picousd) * 2 + PICOUSD_PER_CENT) // (2 * PICOUSD_PER_CENT)
    sign = "-" if picousd < 0 and cents else "+" if signed else ""
    return f"{sign}${cents // 100:,}.{cents % 100:02d}"


def _percent(permille: int | None) -> str:
    return "" if permille is None else f"{(permille + 5) // 10:,} %"


def _margin(margin: Margin) -> Text:
    if margin.picousd is None:
        return Text(UNBOUNDED, style="red")
    text = f"{dollars(margin.picousd, signed=True)} {_percent(margin.permille):>5}".rstrip()
    return Text(text, style="red" if margin.picousd < 0 else "green")


def _cost(picousd: int | None) -> Text:
    return Text(UNBOUNDED if picousd is None else f"-{dollars(picousd)}", style="red" if picousd is None else "yellow")


def _way(plan: Plan, model: ModelMargins) -> str:
    """`US-only, output on claude-sonnet-5-5`."""
    rate, cost = model.worst_rate, model.worst.cost_picousd
    if cost is None:
        return f"{rate.kind.replace('_', ' ')} on {model.model_id}, which nothing bounds"
    words = ["fast"] if rate.fast else []
    words += ["US-only"] if rate.us_only else []
    words += ["long prompts"] if rate.long_prompt else []
    if plan.quota_tokens is None or not rate.bounded or cost < rate.cost_picousd(plan.quota_tokens):
        what = "calls that fill the context"
    else:
        what = rate.kind.replace("_", " ")
    return f"{', '.join([*words, what])} on {model.model_id}"


def _prices(report: PlanMargins) -> Iterator[tuple[str, Margin, Margin]]:
    """What it is sold at, and the typical and the worst margin of that."""
    plan = report.plan
    if not report.given:
        yield f"{dollars(plan.price_cents * PICOUSD_PER_CENT)} monthly", report.typical, report.worst
    if report.annual_typical and report.annual_worst and plan.annual_price_cents:
        yield (
            f"{dollars(plan.annual_price_cents * PICOUSD_PER_CENT)} yearly",
            report.annual_typical,
            report.annual_worst,
        )
    if report.overage_typical and report.overage_worst:
        price = dollars(report.overage_worst.revenue_picousd)
        yield f"{price}/M overage", report.overage_typical, report.overage_worst


def lint_table(catalog: Catalog, reports: list[PlanMargins], at: datetime) -> Table:
    """Every price of every plan, with what it leaves when the whole quota is used."""
    table = _table(f"Margins of the catalog {catalog.name!r}, all of the quota used, at the prices of {at.date()}")
    table.add_column("Plan and price", no_wrap=True)
    for heading in ("After fees", "Typical", "Worst case"):
        table.add_column(heading, justify="right", no_wrap=True)
    for report in reports:
        table.add_row(Text(report.plan.name + (", protected" if report.plan.protected else ""), style="bold"))
        for price, typical, worst in _prices(report):
            after = worst.revenue_picousd - worst.fees_picousd
            table.add_row(f"  {price}", dollars(after), _margin(typical), _margin(worst))
        for price, trial in _given(report):
            table.add_row(f"  {price}", "", _cost(trial.typical_picousd), _cost(trial.worst_picousd))
        if report.plan.pool_tokens is not None:
            table.add_row("  pool, all users", "", "", _cost(report.pool_worst_picousd))
        table.add_section()
    return table


def worst_ways(reports: list[PlanMargins]) -> str:
    """What the worst case of each plan is made of."""
    return "\n".join(
        f"Worst case of {report.plan.name}: {_way(report.plan, report.worst_model)}." for report in reports
    )


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _given(report: PlanMargins) -> Iterator[tuple[str, TrialCost]]:
    if report.given:
        price = "free, each user" if not report.plan.price_cents else "unpaid, each user"
        yield price, TrialCost(report.typical.cost_picousd, report.worst.cost_picousd)
    if report.trial:
        yield f"{report.plan.trial_days} days' trial", report.trial


def verdicts(catalog: Catalog, reports: list[PlanMargins]) -> Iterator[tuple[str, str]]:
    """(`error` or `warning`, sentence)."""
    for report in reports:
        plan = report.plan
        prices = ", ".join(f"by the {name}" if name != "overage" else "with overage" for name in report.losing)
        if report.fails:
            yield "error", f"{plan.name} is protected and can lose money {prices}."
        elif report.losing and not report.given:
            yield "warning", f"{plan.name} can lose money {prices}. It is not protected, so this is only said."
        if report.given and plan.price_cents:
            yield "warning", f"{plan.name} is the default plan: users have it without paying its price."
        if not report.given and report.typical.loses:
            yield "warning", f"{plan.name} loses money when it is used as is typical."
    if catalog.billing.currency != "usd":
        yield "warning", f"Prices are in {catalog.billing.currency}, costs in usd: they are compared one to one."


def assumptions(catalog: Catalog, use: Use) -> str:
    billing, mix = catalog.billing, use.mix
    shares = [
        f"{part / 10:g} % {name}"
        for name, part in (
            ("input", mix.input),
            ("output", mix.output),
            ("cache writes", mix.cache_write_5m + mix.cache_write_1h),
            ("cache reads", mix.cache_read),
        )
        if part
    ]
    return (
        f"Typical: {', '.join(shares)}, short prompts, {use.call_tokens:,} tokens a call where calls are counted."
        " Worst case: every token of the dearest kind, in the longest prompts that fit, fast and US-only where offered,"
        " at every price known for later days."
        f" Fees: {billing.fee_permille / 10:g} % and {billing.fee_cents} cents a payment,"
        f" {billing.billing_fee_permille / 10:g} % for Billing."
        " In neither: web searches, discounts, refunds, tax, AWS."
    )


def simulation_table(report: PlanMargins, use: Use) -> Table:
    """One plan, model by model."""
    typical = report.typical
    after = dollars(typical.revenue_picousd - typical.fees_picousd)
    table = _table(
        f"{report.plan.name}, {use.used_permille / 10:g} % of the quota used:"
        f" {dollars(typical.revenue_picousd)} a month, {after} after fees"
    )
    table.add_column("All of it on", overflow="fold")
    for heading in ("Cost", "Typical", "Worst case", "Year", "Overage"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in report.models:
        year, overage = model.annual_typical, model.overage_worst
        table.add_row(
            model.model_id,
            dollars(model.typical.cost_picousd),
            _margin(model.typical),
            _margin(model.worst),
            dollars(year.picousd, signed=True) if year else "",
            dollars(overage.picousd, signed=True) if overage else "",
        )
    return table


# --- JSON ----------------------------------------------------------------------------------------------------------


def _microusd(picousd: int | None) -> int | None:
    return None if picousd is None else picousd // PICOUSD_PER_MICROUSD


def _margin_document(margin: Margin | None) -> dict[str, Any] | None:
    if margin is None:
        return None
    return {
        "model": margin.model_id,
        "revenue_microusd": _microusd(margin.revenue_picousd),
        "fees_microusd": _microusd(margin.fees_picousd),
        "cost_microusd": _microusd(margin.cost_picousd),
        "margin_microusd": _microusd(margin.picousd),
        "margin_permille": margin.permille,
    }


def _rate_document(rate: Rate) -> dict[str, Any]:
    return {"kind": rate.kind, "fast": rate.fast, "us_only": rate.us_only, "long_prompt": rate.long_prompt}


def plan_document(report: PlanMargins) -> dict[str, Any]:
    """Amounts are micro-USD; null: nothing bounds it, or there is no such price."""
    trial = report.trial
    return {
        "plan": report.plan.id,
        "protected": report.plan.protected,
        "given": report.given,
        "losing": list(report.losing),
        "fails": report.fails,
        "month": {"typical": _margin_document(report.typical), "worst": _margin_document(report.worst)},
        "year": {"typical": _margin_document(report.annual_typical), "worst": _margin_document(report.annual_worst)},
        "overage_of_a_million": {
            "typical": _margin_document(report.overage_typical),
            "worst": _margin_document(report.overage_worst),
        },
        "worst_way": _rate_document(report.worst_model.worst_rate),
        "trial": trial
        and {
            "typical_cost_microusd": _microusd(trial.typical_picousd),
            "worst_cost_microusd": _microusd(trial.worst_picousd),
        },
        "pool_worst_cost_microusd": _microusd(report.pool_worst_picousd),
        "models": [
            {
                "model": model.model_id,
                "typical": _margin_document(model.typical),
                "worst": _margin_document(model.worst),
                "worst_way": _rate_document(model.worst_rate),
                "overage_typical": _margin_document(model.overage_typical),
                "overage_worst": _margin_document(model.overage_worst),
            }
            for model in report.models
        ],
    }
