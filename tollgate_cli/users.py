"""`tollgate users`: who has an account, on which plan, and how they stand."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Final

import typer

from tollgate.domain.notices import used_percent
from tollgate.domain.periods import period_at
from tollgate.domain.principals import Account, Profile
from tollgate.domain.subscriptions import Subscriber
from tollgate.flows.ledger import account_key
from tollgate_cli.deployment import Deployment, Person, deployed
from tollgate_cli.figures import count, moment, of_quota, rfc3339, said, table_of
from tollgate_cli.output import CommandError, aside, console, print_json

app = typer.Typer(help="Look up users.", no_args_is_help=True)

PROFILE_FIELDS: Final = (
    "user_id",
    "tenant_id",
    "email",
    "email_verified",
    "plan_id",
    "plan_version",
    "paid",
    "trial",
    "overage_blocked",
    "overage_cap_cents",
    "created_at",
    "anchor_at",
    "deleted_at",
)
"""Of profile_document, in order."""

Named = Annotated[str, typer.Argument(help="User id or e-mail address.", metavar="USER")]


@app.command("list")
@deployed
def list_command(
    deployment: Deployment,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many at a time.")] = 50,
    after: Annotated[str, typer.Option(help="Go on behind this place.", metavar="PLACE")] = "",
    plan: Annotated[str | None, typer.Option(help="Only users of this plan.", metavar="ID")] = None,
) -> None:
    """Users in the order in which they came."""
    rows: list[Profile] = []
    last, more = "", False
    for person in deployment.people(after=after):
        profile = deployment.users.find_profile(person.tenant_id, person.user_id)
        if profile is None or (plan is not None and profile.plan_id != plan):
            continue
        if len(rows) == limit:
            more = True
            break
        rows.append(profile)
        last = person.place
    if deployment.as_json:
        users = [profile_document(profile) for profile in rows]
        print_json({"users": users, "next_after": last if more else None})
        return
    lines = [
        (profile.user_id, said(profile.email), profile.plan_id, standing(profile), moment(profile.created_at))
        for profile in rows
    ]
    console().print(table_of(f"Users: {len(lines)}", ("User", "E-mail", "Plan", "Standing", "Since"), lines))
    if more:
        aside().print(f"There are more: --after '{said(last)}'", soft_wrap=True)


@app.command()
@deployed
def find(deployment: Deployment, address: Annotated[str, typer.Argument(metavar="EMAIL")]) -> None:
    """The user of an e-mail address: by the user pool with --stack, else by going through all profiles."""
    found = deployment.by_email(address)
    if found is None:
        raise CommandError(f"No user has the address {address}.")
    _show(deployment, found)


@app.command()
@deployed
def show(deployment: Deployment, user: Named) -> None:
    """One user: plan, payment, the running usage period, keys and notices."""
    _show(deployment, deployment.person(user))


def _show(deployment: Deployment, person: Person) -> None:
    profile = deployment.profile(person)
    subscriber = deployment.subscriptions.find(person.tenant_id, person.user_id)
    usage = _running(deployment, profile)
    keys = sum(1 for _ in deployment.keys.list_keys(person.tenant_id, person.user_id))
    notices = list(islice(deployment.notices.list_of_user(person.tenant_id, person.user_id), 1_000))
    if deployment.as_json:
        document = profile_document(profile) | {
            "subscription": subscription_document(subscriber),
            "running_period": usage,
            "api_keys": keys,
            "notices": [f"{each.notice.period.id} {each.notice.threshold_percent} %" for each in notices],
        }
        print_json(document)
        return
    remote = subscriber.subscription
    lines = {
        "User": profile.user_id,
        "E-mail": f"{said(profile.email)}{'' if profile.email_verified else ' (not confirmed)'}",
        "Since": moment(profile.created_at),
        "Plan": f"{profile.plan_id} (version {profile.plan_version})",
        "Standing": standing(profile),
        "Customer": subscriber.customer_id or "none",
        "Subscription": "none" if remote is None else f"{remote.id}, {remote.status.value}, {remote.plan_id}",
        "Period": f"{usage['period']}, ends {usage['ends_at']}",
        "Used": f"{of_quota(usage['used_tokens'], usage['quota_tokens'])} tokens,"
        f" {of_quota(usage['used_requests'], usage['quota_requests'])} requests",
        "Held": f"{count(usage['reserved_tokens'])} tokens by {usage['open_reservations']} calls",
        "Written off": f"{count(usage['written_off_tokens'])} tokens",
        "Estimated": f"{count(usage['estimated_tokens'])} tokens of {count(usage['estimated_requests'])} calls",
        "Orphans": f"{count(usage['expired_requests'])} calls, and {count(usage['unbooked_requests'])} unbooked",
        "Overage": f"{count(usage['overage_tokens'])} tokens",
        "API keys": str(keys),
        "Notices": ", ".join(f"{each.notice.threshold_percent} % ({each.notice.period.id})" for each in notices[-6:]),
    }
    made = table_of("", ("", ""), list(lines.items()))
    made.show_header = False
    console().print(made)


def _running(deployment: Deployment, profile: Profile) -> dict[str, Any]:
    plan = deployment.catalog.plans.get(profile.plan_id)
    if plan is None:
        raise CommandError(f"Plan {profile.plan_id} is not in the catalog. Name the deployment's own (--catalog).")
    account = Account.of(profile, plan)
    period = period_at(plan.period_kind, profile.anchor_at, deployment.now)
    meter = deployment.meters.find(account_key(account, deployment.now))
    use = None if meter is None else deployment.periods.summary(meter)
    return {
        "period": period.id,
        "ends_at": rfc3339(period.end_at),
        "quota_tokens": account.plan.quota_tokens if meter is None else meter.quota_tokens,
        "used_tokens": 0 if meter is None else meter.settled_tokens,
        "reserved_tokens": 0 if meter is None else meter.reserved_tokens,
        "open_reservations": 0 if meter is None else meter.open_count,
        "written_off_tokens": 0 if meter is None else meter.written_off_tokens,
        "overage_tokens": 0 if meter is None else meter.overage_tokens,
        "quota_requests": account.plan.quota_requests if meter is None else meter.quota_requests,
        "used_requests": 0 if meter is None else meter.settled_requests,
        "estimated_requests": 0 if use is None else use.estimated_requests,
        "estimated_tokens": 0 if use is None else use.estimated_tokens,
        "expired_requests": 0 if use is None else use.expired_requests,
        "unbooked_requests": 0 if use is None else use.unbooked_requests,
        "used_percent": 0 if meter is None else used_percent(meter),
        "cost_picousd": 0 if meter is None else meter.cost_picousd,
    }


def standing(profile: Profile) -> str:
    """In a word or two."""
    said = [
        word
        for word, applies in (
            ("deleted", profile.deleted_at is not None),
            ("unpaid", not profile.paid),
            ("trial", profile.trial),
            ("no overage: payment failed", profile.overage_blocked),
            ("address not confirmed", not profile.email_verified),
        )
        if applies
    ]
    return ", ".join(said) or "good"


def profile_document(profile: Profile) -> dict[str, Any]:
    return {
        "user_id": profile.user_id,
        "tenant_id": profile.tenant_id,
        "email": profile.email,
        "email_verified": profile.email_verified,
        "plan_id": profile.plan_id,
        "plan_version": profile.plan_version,
        "paid": profile.paid,
        "trial": profile.trial,
        "overage_blocked": profile.overage_blocked,
        "overage_cap_cents": profile.overage_cap_cents,
        "created_at": rfc3339(profile.created_at),
        "anchor_at": rfc3339(profile.anchor_at),
        "deleted_at": rfc3339(profile.deleted_at),
    }


def subscription_document(subscriber: Subscriber) -> dict[str, Any] | None:
    remote = subscriber.subscription
    if remote is None:
        return None
    return {
        "customer_id": subscriber.customer_id,
        "id": remote.id,
        "status": remote.status.value,
        "plan_id": remote.plan_id,
        "interval": None if remote.interval is None else remote.interval.value,
        "period_end_at": rfc3339(remote.period_end_at),
        "cancel_at": rfc3339(remote.cancel_at),
        "open_disputes": len(subscriber.dispute_ids),
    }
