"""`tollgate keys`: a user's API keys, as far as anybody but their owner may see them."""

from __future__ import annotations

from tollgate_cli.deployment import Deployment, deployed
from tollgate_cli.figures import count, moment, rfc3339, said, table_of
from tollgate_cli.output import console, print_json
from tollgate_cli.users import Named

COLUMNS = ("Key", "Name", "Ends in", "State", "Budget", "Per minute", "Models", "Made", "Last used", "Ends")


@deployed
def keys(deployment: Deployment, user: Named) -> None:
    """A user's API keys: never the keys themselves, which nobody has, nor their hashes."""
    person, now = deployment.person(user), deployment.now.timestamp()
    found = list(deployment.keys.list_keys(person.tenant_id, person.user_id))
    if deployment.as_json:
        documents = [
            {
                "id": key.id,
                "name": key.name,
                "mode": key.mode.value,
                "last_four": key.last_four,
                "state": key.state_at(now).value,
                "budget_tokens": key.budget_tokens,
                "requests_per_minute": key.requests_per_minute,
                "allowed_models": sorted(key.allowed_models),
                "created_at": rfc3339(key.created_at),
                "last_used_at": rfc3339(key.last_used_at),
                "expires_at": rfc3339(key.expires_at),
                "revoked_at": rfc3339(key.revoked_at),
            }
            for key in found
        ]
        print_json({"user_id": person.user_id, "keys": documents})
        return
    rows = [
        (
            key.id,
            said(key.name),
            f"{key.mode.value}…{key.last_four}",
            key.state_at(now).value,
            count(key.budget_tokens),
            count(key.requests_per_minute),
            ", ".join(sorted(key.allowed_models)) or "all of the plan",
            moment(key.created_at),
            moment(key.last_used_at),
            moment(key.revoked_at or key.expires_at),
        )
        for key in found
    ]
    console().print(
        table_of(f"API keys of {person.user_id}: {len(rows)}", COLUMNS, rows, right=("Budget", "Per minute"))
    )
