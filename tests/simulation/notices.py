"""Somebody's standing changes: a notice of their subscription arrives, or they choose how much overage they want.

The first is written as the real handler writes it: read the record, ask what is true now (which takes a while, in which
it may become untrue), write both together if neither moved, else begin again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.containers import TABLE, TENANT, Container, user_id
from tollgate.domain.errors import StaleAccountError, StoreUnavailableError, SupersededError
from tollgate.storage.table import attributes, n, store_outages, user_pk

if TYPE_CHECKING:
    from tests.simulation.world import World

ROUNDS = 6
LATER_SECONDS = 20


def apply_notice(world: World, user: int, container: Container) -> None:
    try:
        for _ in range(ROUNDS):
            version = _find_version(container, user)
            account = container.account(user, fresh=True)
            sold = world.oracle.standings.sold[user_pk(TENANT, user_id(user))]
            serial, entitlements = len(sold) - 1, sold[-1]
            world.hub.sleep(container.process, world.rng.random() * world.rng.choice([0.01, 0.01, 2]))
            plan = world.scenario.plans[entitlements.plan_id]
            also = [_put(user, version, serial)]
            try:
                changed = container.ledger.change_entitlements(account, entitlements, plan, also=also)
            except (StaleAccountError, SupersededError) as error:
                world.seen["plan_change_raced"] += isinstance(error, StaleAccountError)
                world.seen["plan_change_superseded"] += isinstance(error, SupersededError)
                continue
            world.seen["plan_changes"] += changed.profile != account.profile
            return
    except StoreUnavailableError:
        pass
    world.hub.after(LATER_SECONDS, lambda: world.deliver_notice(user))


def apply_choice(world: World, user: int, container: Container) -> None:
    try:
        for _ in range(ROUNDS):
            account = container.account(user, fresh=True)
            try:
                container.ledger.choose_overage(account, world.chosen[user])
            except StaleAccountError:
                continue
            world.seen["overage_choices"] += 1
            return
    except StoreUnavailableError:
        pass
    world.hub.after(LATER_SECONDS, lambda: world.deliver_choice(user))


def _record_key(user: int) -> dict[str, Any]:
    return attributes(PK=user_pk(TENANT, user_id(user)), SK="SUBSCRIBER")


def _find_version(container: Container, user: int) -> int:
    with store_outages():
        answer = container.table.client.get_item(TableName=TABLE, Key=_record_key(user), ConsistentRead=True)
    return int(answer["Item"]["version"]["N"]) if "Item" in answer else 0


def _put(user: int, seen_version: int, serial: int) -> Any:  # noqa: ANN401  a TransactWriteItem
    item = _record_key(user) | attributes(Type="Subscriber", version=seen_version + 1, serial=serial)
    condition, values = "attribute_not_exists(PK)", {}
    if seen_version:
        condition, values = "version = :seen", {"ExpressionAttributeValues": {":seen": n(seen_version)}}
    return {"Put": {"TableName": TABLE, "Item": item, "ConditionExpression": condition, **values}}
