"""`tollgate margin`: what plans and users brought and cost in a month."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tollgate.flows.earnings import Earning, earning_of
from tollgate_cli.deployment import Deployment, Person, deployed
from tollgate_cli.figures import count, percent, table_of, usd
from tollgate_cli.output import CommandError, aside, console, print_json

COLUMNS = ("Price", "Overage", "Fees", "Claude", "Margin", "%", "Tokens", "Written off", "Orphans")


@deployed
def margin(
    deployment: Deployment,
    month: Annotated[
        str | None, typer.Option(help="Usage periods that begin in this month (the present one).", metavar="YYYY-MM")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Only this user: id or address.", metavar="USER")] = None,
    limit: Annotated[int, typer.Option(min=0, max=10_000, help="So many users, those first who leave least.")] = 20,
) -> None:
    """Revenue, fees, Claude's cost and what is left, by plan and by user."""
    wanted = month or f"{deployment.now:%Y-%m}"
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", wanted):
        raise CommandError(f"{wanted} is no month; write it like 2026-11.")
    plans: dict[str, Earning] = {}
    users: dict[tuple[str, str], Earning] = {}
    for person in deployment.each_person("Adding up", user):
        for plan_id, earned in _earnings(deployment, person, wanted):
            plans[plan_id] = plans.get(plan_id, Earning()) + earned
            name = person.user_id, plan_id
            users[name] = users.get(name, Earning()) + earned
    whole = sum(plans.values(), Earning())
    listed = sorted(users.items(), key=lambda entry: (entry[1].margin_picousd, entry[0]))
    if deployment.as_json:
        print_json(
            {
                "month": wanted,
                "total": _document(whole),
                "plans": {plan_id: _document(earned) for plan_id, earned in sorted(plans.items())},
                "users": [{"user_id": name, "plan_id": plan_id} | _document(each) for (name, plan_id), each in listed],
            }
        )
        return
    rows = [(plan_id, count(earned.periods), *_row(earned)) for plan_id, earned in sorted(plans.items())]
    rows.append(("all", count(whole.periods), *_row(whole)))
    console().print(table_of(f"Plans in {wanted}", ("Plan", "Users", *COLUMNS), rows, right=("Users", *COLUMNS)))
    lines = [(name, plan_id, *_row(earned)) for (name, plan_id), earned in listed[:limit]]
    if lines:
        title = f"{len(lines)} of {len(listed)} users, those first who leave least"
        console().print(table_of(title, ("User", "Plan", *COLUMNS), lines, right=COLUMNS))
    if whole.orphans:
        aside().print("What orphans cost is in no figure: nobody was told their counts.", style="yellow")


def _earnings(deployment: Deployment, person: Person, month: str) -> list[tuple[str, Earning]]:
    meters = [
        meter
        for meter in deployment.meters.list_of_user(person.tenant_id, person.user_id)
        if f"{meter.key.period.start_at:%Y-%m}" == month
    ]
    if not meters:
        return []
    subscriber = deployment.subscriptions.find(person.tenant_id, person.user_id)
    orphans = Counter(
        each.period_id
        for each in deployment.meters.list_expired(person.tenant_id, person.user_id)
        if not each.corrected
    )
    return [
        (
            meter.plan_id,
            earning_of(
                meter,
                deployment.catalog.plans.get(meter.plan_id),
                subscriber,
                deployment.catalog.billing,
                orphans=orphans[meter.key.period.id],
            ),
        )
        for meter in meters
    ]


def _row(earned: Earning) -> tuple[str, ...]:
    left = usd(earned.margin_picousd)
    return (
        usd(earned.price_picousd),
        usd(earned.overage_picousd),
        usd(earned.fees_picousd),
        usd(earned.cost_picousd),
        f"[red]{left}[/]" if earned.margin_picousd < 0 else left,
        percent(earned.margin_permille),
        count(earned.charged_tokens),
        count(earned.written_off_tokens),
        count(earned.orphans),
    )


def _document(earned: Earning) -> dict[str, Any]:
    return asdict(earned) | {
        "revenue_picousd": earned.revenue_picousd,
        "margin_picousd": earned.margin_picousd,
        "margin_permille": earned.margin_permille,
    }
