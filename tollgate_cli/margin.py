"""`tollgate margin`: what plans and users brought and cost in a month."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer

from tollgate.domain.ledger import Meter
from tollgate.domain.plans import Plan
from tollgate.domain.subscriptions import Interval, Subscriber
from tollgate.flows.earnings import (
    LATEST_LINE,
    LONGEST_PRICE,
    Earning,
    estimated_price,
    paid_in,
    usage_of,
)
from tollgate.providers.stripe_invoices import StripeInvoices
from tollgate_cli.connections import KEY_VARIABLE
from tollgate_cli.deployment import Deployment, Person, deployed, month_option
from tollgate_cli.figures import count, percent, table_of, usd
from tollgate_cli.output import aside, console, print_json
from tollgate_cli.plans import KeyParameter, Live

COLUMNS: Final = (
    "Price",
    "Overage",
    "Fees",
    "Claude",
    "Margin",
    "%",
    "Tokens",
    "Written off",
    "Estimated",
    "Orphans",
    "Unbooked",
)
NO_PLAN: Final = "none"
"""Of a payment for overage alone, by somebody who did not call in that month."""

Earned = dict[tuple[str, str], Earning]
"""By user and plan."""


@deployed
def margin(
    deployment: Deployment,
    month: Annotated[
        str | None,
        typer.Option(help="Usage periods and paid months that begin in it (the present one).", metavar="YYYY-MM"),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Only this user: id or address.", metavar="USER")] = None,
    limit: Annotated[int, typer.Option(min=0, max=10_000, help="So many users, those first who leave least.")] = 20,
    key_parameter: KeyParameter = None,
    live: Live = False,
) -> None:
    """Revenue, fees, Claude's cost and what is left, by plan and by user."""
    wanted = month_option(month, deployment.now)
    asks_stripe = key_parameter is not None or bool(deployment.connections.environ.get(KEY_VARIABLE, "").strip())
    notes: list[str] = []
    users: Earned = {}
    for person in deployment.each_person("Adding up", user):
        _add(users, _used(deployment, person, wanted, notes, estimates=not asks_stripe))
    if asks_stripe:
        key = deployment.connections.stripe_key(key_parameter, live=live)
        only = None if user is None else deployment.person(user)
        _add(users, _paid(deployment, key, wanted, notes, only, users))
    else:
        notes.insert(0, f"Prices are an ESTIMATE by today's subscriptions: set {KEY_VARIABLE} to add up what was paid.")
    if deployment.as_json:
        print_json(_document(wanted, users, "paid invoices" if asks_stripe else "estimate", notes))
    else:
        _print(wanted, users, limit, "" if asks_stripe else ", prices ESTIMATED")
    orphans = sum(each.orphans for each in users.values())
    if orphans:
        notes.append(f"What orphans cost is in no figure, where nobody was told their counts: {orphans} in all.")
    for note in dict.fromkeys(notes):
        aside().print(note, style="yellow", soft_wrap=True, markup=False)


def _add(users: Earned, more: Iterator[tuple[str, str, Earning]]) -> None:
    for user_id, plan_id, earned in more:
        users[user_id, plan_id] = users.get((user_id, plan_id), Earning()) + earned


def _used(
    deployment: Deployment, person: Person, month: str, notes: list[str], *, estimates: bool
) -> Iterator[tuple[str, str, Earning]]:
    """The user's usage periods of the month, and with `estimates` the price of the subscription."""
    billing = deployment.catalog.billing
    subscriber = deployment.subscriptions.find(person.tenant_id, person.user_id)
    priced = _estimate(deployment, subscriber, month, notes) if estimates else None
    if priced is not None:
        yield person.user_id, priced[0], priced[1]
    # On the invoice of the price, unless that is paid by the year. Stripe's invoices tell their payments themselves.
    monthly = priced is not None and subscriber.subscription and subscriber.subscription.interval is Interval.MONTH
    for meter in _meters(deployment, person, month):
        summary = deployment.periods.summary(meter)
        payments = 0 if monthly or not estimates else 1
        yield person.user_id, meter.plan_id, usage_of(meter, summary, billing, overage_payments=payments)


def _meters(deployment: Deployment, person: Person, month: str) -> Iterator[Meter]:
    for meter in deployment.meters.list_of_user(person.tenant_id, person.user_id):
        if f"{meter.key.period.start_at:%Y-%m}" == month:
            yield meter


def _estimate(
    deployment: Deployment, subscriber: Subscriber, month: str, notes: list[str]
) -> tuple[str, Earning] | None:
    plan_id = None if subscriber.subscription is None else subscriber.subscription.plan_id
    if plan_id is None:
        return None
    plan: Plan | None = deployment.catalog.plans.get(plan_id)
    if plan is None:
        notes.append(f"Plan {plan_id} is not in this catalog, so nobody knows its price (--catalog).")
        return None
    earned = estimated_price(plan, subscriber, deployment.catalog.billing, _bounds(month)[1])
    return (plan_id, earned) if earned.price_picousd else None


def _paid(
    deployment: Deployment, key: str, month: str, notes: list[str], only: Person | None, users: Earned
) -> Iterator[tuple[str, str, Earning]]:
    """What Stripe's paid invoices say of the month: also of users who did not call, and of those who are gone."""
    begin, end = _bounds(month)
    customer_id = None
    if only is not None:
        customer_id = deployment.subscriptions.find(only.tenant_id, only.user_id).customer_id
        if customer_id is None:
            return
    connections = deployment.connections
    stripe = StripeInvoices(lambda: key, base_url=connections.stripe_base_url, http_client=connections.stripe_wire)
    with aside().status("Asking Stripe for paid invoices …"):
        invoices = stripe.list_paid(begin - LONGEST_PRICE, end + LATEST_LINE, customer_id)
    unknown = 0
    for (customer, plan_id), earned in paid_in(month, invoices, deployment.catalog.billing).items():
        owner = deployment.subscriptions.find_customer(customer)
        if owner is None:
            unknown += plan_id is not None
        elif owner[0] == deployment.tenant_id:
            plans = [plan for user, plan in users if user == owner[1]]
            yield owner[1], plan_id or next(iter(plans), NO_PLAN), earned
    if unknown:
        notes.append(f"{unknown} customers paid for plans and are no users of this deployment: they are in no figure.")


def _bounds(month: str) -> tuple[datetime, datetime]:
    begin = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    return begin, (begin + timedelta(days=31)).replace(day=1)


def _of_plans(users: Earned) -> dict[str, tuple[int, Earning]]:
    """Users and sums by plan, in the order of names."""
    plans: dict[str, tuple[int, Earning]] = {}
    for (_, plan_id), earned in sorted(users.items()):
        number, before = plans.get(plan_id, (0, Earning()))
        plans[plan_id] = number + 1, before + earned
    return dict(sorted(plans.items()))


def _ordered(users: Earned) -> list[tuple[tuple[str, str], Earning]]:
    return sorted(users.items(), key=lambda entry: (entry[1].margin_picousd, entry[0]))


def _document(month: str, users: Earned, source: str, notes: list[str]) -> dict[str, Any]:
    whole = sum(users.values(), Earning())
    plans = {plan_id: {"users": number} | _figures(earned) for plan_id, (number, earned) in _of_plans(users).items()}
    listed = [{"user_id": name, "plan_id": plan_id} | _figures(each) for (name, plan_id), each in _ordered(users)]
    head = {"month": month, "prices": source, "notes": list(dict.fromkeys(notes))}
    return head | {"total": _figures(whole), "plans": plans, "users": listed}


def _print(month: str, users: Earned, limit: int, source: str) -> None:
    whole = sum(users.values(), Earning())
    rows = [(plan_id, count(number), *_row(earned)) for plan_id, (number, earned) in _of_plans(users).items()]
    rows.append(("all", count(len({user_id for user_id, _ in users})), *_row(whole)))
    headings = ("Plan", "Users", *COLUMNS)
    console().print(table_of(f"Plans in {month}{source}", headings, rows, right=("Users", *COLUMNS)))
    lines = [(name, plan_id, *_row(earned)) for (name, plan_id), earned in _ordered(users)[:limit]]
    if lines:
        title = f"{len(lines)} of {len(users)} users, those first who leave least"
        console().print(table_of(title, ("User", "Plan", *COLUMNS), lines, right=COLUMNS))


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
        count(earned.estimated),
        count(earned.orphans),
        count(earned.unbooked),
    )


def _figures(earned: Earning) -> dict[str, Any]:
    return asdict(earned) | {
        "revenue_picousd": earned.revenue_picousd,
        "margin_picousd": earned.margin_picousd,
        "margin_permille": earned.margin_permille,
    }
