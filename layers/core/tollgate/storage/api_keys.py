"""API keys in the table: found by the hash of the key in one read, and by their owner through an entry for each.

Three kinds of items, written together:
- the key, PK `KEY#<hash>`: all that a call needs to know;
- its entry, PK `TENANT#<t>#USER#<u>`, SK `APIKEY#<id>`: which hash, and when it was last used. Ids sort by creation;
- the user's places, SK `APIKEYS`: the set of keys that count against the plan. It is a set and not a number, because
  taking a key out twice is harmless: nobody has to remember who gave back what. Beside it the number of rotations:
  each keeps a line alive that may have looked dead, so whoever frees places says how many there were at the time.

The key's own end is stored as `key_expires_at`, because the table's TTL deletes items by `expires_at`: an expired key
must still be found to be told apart from an unknown one. Keys go KEPT_SECONDS after their end; TTL takes a key and its
entry days apart and in any order, so an entry may be there without its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from botocore.exceptions import ClientError

from tollgate.domain.api_keys import ApiKey, KeyMode
from tollgate.domain.principals import MaxTokensPolicy
from tollgate.storage.table import (
    Table,
    attributes,
    condition_failed,
    epoch_seconds,
    error_code,
    from_epoch_seconds,
    n,
    plain,
    s,
    store_outages,
    user_pk,
)
from tollgate.storage.users import IN_USE, profile_key

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef, TransactWriteItemTypeDef

KEPT_SECONDS: Final = 90 * 24 * 3600
"""How long a dead key is still told apart from one that never was."""
MARKER_SECONDS: Final = 24 * 3600
"""How long an idempotency key is remembered."""
LARGEST_BATCH: Final = 100
"""Items of one BatchGetItem, DynamoDB's own limit."""

_FAILED: Final = "ConditionalCheckFailed"
_ALL_OLD: Final[Literal["ALL_OLD"]] = "ALL_OLD"


@dataclass(frozen=True, slots=True)
class KeyMarker:
    """The stored use of an idempotency key: which key was made, from which body."""

    key_id: str
    body_sha256: str


@dataclass(frozen=True, slots=True)
class KeyPage:
    """A part of a user's keys, newest first."""

    keys: list[ApiKey]
    last_id: str | None
    """Where the next page begins: of the last entry, also when its key is gone. None: there was no entry."""
    has_more: bool


@dataclass(frozen=True, slots=True)
class Places:
    """What counts against a user's plan, as it was read."""

    line_ids: frozenset[str] = frozenset()
    rotations: int = 0
    """How often any of the user's keys had been rotated."""


@dataclass(frozen=True, slots=True)
class Creation:
    """The answer to one attempt to store a new key. None of them set: others were writing, look again."""

    applied: bool = False
    no_account: bool = False
    """The owner's profile is not there, or was deleted."""
    full: bool = False
    """The user has as many keys as asked for at most."""
    marker: KeyMarker | None = None
    """The idempotency key was used before."""


class ApiKeys:
    """The keys of every tenant. All operations raise StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find_key(self, key_hash: str) -> ApiKey | None:
        """One consistent read, so that a revocation that has been answered is seen."""
        with store_outages():
            found = self._table.client.get_item(
                TableName=self._table.name, Key=_key(key_hash), ConsistentRead=True
            ).get("Item")
        return None if found is None else _from_item(plain(found))

    def find_users_key(self, tenant_id: str, user_id: str, key_id: str) -> ApiKey | None:
        """A user's key by its id, with its last use; None for an id of somebody else (two consistent reads)."""
        with store_outages():
            entry = self._table.client.get_item(
                TableName=self._table.name, Key=_entry_key(tenant_id, user_id, key_id), ConsistentRead=True
            ).get("Item")
        return next(self._with_keys([plain(entry)]), None) if entry else None

    def list_page(self, tenant_id: str, user_id: str, *, most: int, after_id: str | None = None) -> KeyPage:
        """Up to `most` of a user's keys, newest first, after the one named (consistent).

        Fewer, even none, do not mean that it was the last page.
        """
        prefix = _entry_sk("")
        condition = "PK = :pk AND begins_with(SK, :prefix)"
        values = attributes(**{":pk": user_pk(tenant_id, user_id), ":prefix": prefix})
        if after_id is not None:
            condition = "PK = :pk AND SK BETWEEN :prefix AND :after"
            # One more than asked for: BETWEEN includes its end, the key named.
            values |= attributes(**{":after": _entry_sk(after_id)})
        with store_outages():
            answer = self._table.client.query(
                TableName=self._table.name,
                KeyConditionExpression=condition,
                ExpressionAttributeValues=values,
                ScanIndexForward=False,
                ConsistentRead=True,
                Limit=most + 2,
            )
        entries = [entry for entry in map(plain, answer["Items"]) if entry["SK"] != _entry_sk(after_id or "")]
        page = entries[:most]
        last_id = page[-1]["SK"].removeprefix(prefix) if page else None
        return KeyPage(list(self._with_keys(page)), last_id, has_more=len(entries) > most)

    def list_keys(self, tenant_id: str, user_id: str) -> Iterator[ApiKey]:
        """Every key that a user has or had lately, newest first."""
        page = KeyPage([], None, has_more=True)
        # It ends: each page begins below the last entry of the one before, whether that entry's key is there or not.
        while page.has_more:
            page = self.list_page(tenant_id, user_id, most=LARGEST_BATCH, after_id=page.last_id)
            yield from page.keys

    def put_key(self, key: ApiKey) -> bool:
        """Store a new key whatever the plan says; False when its hash is already taken, and then nothing changed."""
        return not self._transact([*self._put_both(key), self._take_place(key, None)])

    def create_key(
        self, key: ApiKey, *, most_keys: int, idempotency_key: str | None = None, body_sha256: str = ""
    ) -> Creation:
        """Store a new key if its owner has an account and fewer than `most_keys`, all in one write."""
        writes = [
            self._check_account(key),
            self._take_place(key, most_keys),
            *self._put_both(key),
        ]
        if idempotency_key is not None:
            writes.append(self._put_marker(key, idempotency_key, body_sha256))
        reasons = self._transact(writes)
        if not reasons:
            return Creation(applied=True)
        account, places, *_, last = reasons
        if idempotency_key is not None and last.get("Code") == _FAILED:
            found = plain(last["Item"])
            return Creation(marker=KeyMarker(found["key_id"], found["body_sha256"]))
        return Creation(no_account=account.get("Code") == _FAILED, full=places.get("Code") == _FAILED)

    def rotate_key(self, old: ApiKey, new: ApiKey, old_expires_at: datetime) -> Creation:
        """Put `new` in the place of `old`, which is accepted until `old_expires_at`, if its owner has an account.

        Not applied when `old` was revoked, rotated or changed meanwhile, or others were writing; then nothing changed.
        """
        gone = n(epoch_seconds(old_expires_at) + KEPT_SECONDS)
        as_seen, names, seen = _as_seen(old)
        end: TransactWriteItemTypeDef = {
            "Update": {
                "TableName": self._table.name,
                "Key": _key(old.key_hash),
                "UpdateExpression": "SET replaced_by = :new, key_expires_at = :end, expires_at = :gone",
                "ConditionExpression": as_seen,
                "ExpressionAttributeNames": names,
                "ExpressionAttributeValues": {
                    ":new": s(new.id),
                    ":end": n(epoch_seconds(old_expires_at)),
                    ":gone": gone,
                    **seen,
                },
            }
        }
        last: TransactWriteItemTypeDef = {
            "Update": {
                "TableName": self._table.name,
                "Key": _entry_key(old.tenant_id, old.user_id, old.id),
                "UpdateExpression": "SET expires_at = :gone",
                "ConditionExpression": "attribute_exists(PK)",
                "ExpressionAttributeValues": {":gone": gone},
            }
        }
        place = self._take_place(new, None)
        # A place freed by a clock ahead of ours is taken again, and whoever looked before this does not free it.
        place["Update"]["UpdateExpression"] += ", rotations :one"
        place["Update"]["ExpressionAttributeValues"] |= {":one": n(1)}
        reasons = self._transact([self._check_account(new), place, end, last, *self._put_both(new)])
        return Creation(applied=not reasons, no_account=bool(reasons) and reasons[0].get("Code") == _FAILED)

    def change_key(self, old: ApiKey, key: ApiKey) -> ApiKey | None:
        """Store a key's name, models, limits and policy as they are in `key`.

        None when it was changed, rotated or revoked since it was read as `old`; then nothing changed.
        """
        changes = _changeable(key)
        as_seen, names, seen = _as_seen(old)
        given = {name: value for name, value in changes.items() if value is not None}
        gone = [f"#{name}" for name in changes if name not in given]
        update = "SET " + ", ".join(f"#{name} = :{name}" for name in given)
        try:
            with store_outages():
                answer = self._table.client.update_item(
                    TableName=self._table.name,
                    Key=_key(key.key_hash),
                    UpdateExpression=f"{update} REMOVE {', '.join(gone)}" if gone else update,
                    ConditionExpression=as_seen,
                    ExpressionAttributeNames=names,
                    ExpressionAttributeValues=attributes(**{f":{name}": value for name, value in given.items()}) | seen,
                    ReturnValues="ALL_NEW",
                )
        except ClientError as error:
            if condition_failed(error):
                return None
            raise
        return replace(_from_item(plain(answer["Attributes"])), last_used_at=key.last_used_at)

    def revoke_key(self, key_hash: str, revoked_at: datetime) -> bool:
        """End a key for good and give its place back; False when there is no such key. Repeating keeps the instant."""
        return self._end_key(key_hash, revoked_at, "SET revoked_at = if_not_exists(revoked_at, :at), expires_at = :end")

    def forget_key(self, key_hash: str, revoked_at: datetime) -> bool:
        """The same for a user who goes: what they called the key goes too."""
        return self._end_key(
            key_hash,
            revoked_at,
            "SET revoked_at = if_not_exists(revoked_at, :at), expires_at = :end, #name = :nothing",
        )

    def places(self, tenant_id: str, user_id: str) -> Places:
        """The lines of keys that count against the plan (consistent read)."""
        key = _places_key(tenant_id, user_id)
        with store_outages():
            answer = self._table.client.get_item(TableName=self._table.name, Key=attributes(**key), ConsistentRead=True)
        item = plain(answer.get("Item", {}))
        return Places(item.get("place_ids", frozenset()), item.get("rotations", 0))

    def free_places(self, tenant_id: str, user_id: str, line_ids: Iterable[str], *, seen: Places) -> bool:
        """Take lines that were found dead after `seen` was read out of the count; harmless when somebody else did.

        False when a key was rotated since, whose successor may keep one of the lines alive; then nothing changed.
        """
        condition, values = "attribute_not_exists(rotations)", {}
        if seen.rotations:
            condition, values = "rotations = :seen", {":seen": n(seen.rotations)}
        return self._drop_places(tenant_id, user_id, line_ids, condition, values)

    def note_use(self, tenant_id: str, user_id: str, key_id: str, at: datetime, *, older_than: datetime) -> bool:
        """Remember when a key was last used; False when the stored instant is not before `older_than`."""
        try:
            with store_outages():
                self._table.client.update_item(
                    TableName=self._table.name,
                    Key=_entry_key(tenant_id, user_id, key_id),
                    UpdateExpression="SET last_used_at = :at",
                    ConditionExpression="attribute_exists(PK)"
                    " AND (attribute_not_exists(last_used_at) OR last_used_at < :before)",
                    ExpressionAttributeValues={":at": n(epoch_seconds(at)), ":before": n(epoch_seconds(older_than))},
                )
        except ClientError as error:
            if condition_failed(error):
                return False
            raise
        return True

    # ---- parts of the writes

    def _check_account(self, key: ApiKey) -> TransactWriteItemTypeDef:
        return {
            "ConditionCheck": {
                "TableName": self._table.name,
                "Key": profile_key(key.tenant_id, key.user_id),
                "ConditionExpression": IN_USE,
            }
        }

    def _put_both(self, key: ApiKey) -> list[TransactWriteItemTypeDef]:
        entry = attributes(
            PK=user_pk(key.tenant_id, key.user_id),
            SK=_entry_sk(key.id),
            Type="ApiKeyEntry",
            key_hash=key.key_hash,
            expires_at=_gone_at(key),
        )
        return [
            {
                "Put": {
                    "TableName": self._table.name,
                    "Item": item,
                    "ConditionExpression": "attribute_not_exists(PK)",
                }
            }
            for item in (_item(key), entry)
        ]

    def _put_marker(self, key: ApiKey, idempotency_key: str, body_sha256: str) -> TransactWriteItemTypeDef:
        now = epoch_seconds(key.created_at)
        marker = attributes(
            PK=user_pk(key.tenant_id, key.user_id),
            SK=f"APIKEYIDEM#{idempotency_key}",
            Type="ApiKeyMarker",
            key_id=key.id,
            body_sha256=body_sha256,
            expires_at=now + MARKER_SECONDS,
        )
        return {
            "Put": {
                "TableName": self._table.name,
                "Item": marker,
                "ConditionExpression": "attribute_not_exists(PK) OR expires_at < :now",
                "ExpressionAttributeValues": {":now": n(now)},
                "ReturnValuesOnConditionCheckFailure": _ALL_OLD,
            }
        }

    def _take_place(self, key: ApiKey, most_keys: int | None) -> dict[str, Any]:
        values: dict[str, AttributeValueTypeDef] = {
            ":line": {"SS": [key.line_id]},
            ":type": _places_item(key.tenant_id, key.user_id)["Type"],
        }
        condition = {}
        if most_keys is not None:
            # No set is an empty one, and must not pass where no key is allowed at all.
            few = (
                "attribute_not_exists(place_ids) OR size(place_ids) < :most" if most_keys else "size(place_ids) < :most"
            )
            condition = {"ConditionExpression": few}
            values[":most"] = n(most_keys)
        update = {
            "TableName": self._table.name,
            "Key": attributes(**_places_key(key.tenant_id, key.user_id)),
            "UpdateExpression": "SET #type = :type ADD place_ids :line",
            "ExpressionAttributeNames": {"#type": "Type"},
            "ExpressionAttributeValues": values,
            **condition,
        }
        return {"Update": update}

    def _drop_places(
        self,
        tenant_id: str,
        user_id: str,
        line_ids: Iterable[str],
        condition: str,
        values: Mapping[str, AttributeValueTypeDef],
    ) -> bool:
        try:
            with store_outages():
                self._table.client.update_item(
                    TableName=self._table.name,
                    Key=attributes(**_places_key(tenant_id, user_id)),
                    UpdateExpression="DELETE place_ids :gone",
                    ConditionExpression=f"attribute_exists(PK) AND {condition}",
                    ExpressionAttributeValues={":gone": {"SS": sorted(line_ids)}, **values},
                )
        except ClientError as error:
            if condition_failed(error):
                return False
            raise
        return True

    def _end_key(self, key_hash: str, at: datetime, update: str) -> bool:
        values = {":at": n(epoch_seconds(at)), ":end": n(epoch_seconds(at) + KEPT_SECONDS)}
        names = {}
        if ":nothing" in update:
            values[":nothing"], names = s(""), {"ExpressionAttributeNames": {"#name": "name"}}
        try:
            with store_outages():
                answer = self._table.client.update_item(
                    TableName=self._table.name,
                    Key=_key(key_hash),
                    UpdateExpression=update,
                    ConditionExpression="attribute_exists(PK)",
                    ExpressionAttributeValues=values,
                    ReturnValues="ALL_NEW",
                    **names,  # type: ignore[arg-type]
                )
        except ClientError as error:
            if condition_failed(error):
                return False
            raise
        key = _from_item(plain(answer["Attributes"]))
        self._let_go(key, epoch_seconds(at) + KEPT_SECONDS)
        return True

    def _let_go(self, key: ApiKey, end_seconds: int) -> None:
        """What follows a revocation; what a crash leaves undone is made up for when the place is needed."""
        with store_outages():
            try:
                self._table.client.update_item(
                    TableName=self._table.name,
                    Key=_entry_key(key.tenant_id, key.user_id, key.id),
                    UpdateExpression="SET expires_at = :end",
                    ConditionExpression="attribute_exists(PK)",
                    ExpressionAttributeValues={":end": n(end_seconds)},
                )
            except ClientError as error:
                if not condition_failed(error):
                    raise
        # A predecessor may live out its overlap: such a place is freed when it is needed.
        if key.replaced_by is None and not key.first_id:
            line = {":line": s(key.line_id)}
            self._drop_places(key.tenant_id, key.user_id, [key.line_id], "contains(place_ids, :line)", line)

    # ---- reading and writing

    def _with_keys(self, entries: list[dict[str, Any]]) -> Iterator[ApiKey]:
        """The keys behind entries, in their order, each with its last use."""
        wanted = [_key(entry["key_hash"]) for entry in entries]
        found: dict[str, ApiKey] = {}
        while wanted:
            with store_outages():
                answer = self._table.client.batch_get_item(
                    RequestItems={self._table.name: {"Keys": wanted, "ConsistentRead": True}}
                )
            for item in answer["Responses"][self._table.name]:
                key = _from_item(plain(item))
                found[key.key_hash] = key
            wanted = _unprocessed(answer.get("UnprocessedKeys"), self._table.name)
        for entry in entries:
            if entry["key_hash"] in found:
                yield replace(found[entry["key_hash"]], last_used_at=_instant(entry.get("last_used_at")))

    def _transact(self, writes: list[Any]) -> list[dict[str, Any]]:
        """All of the writes or none; DynamoDB's reason for each when none, nothing when applied."""
        with store_outages():
            try:
                self._table.client.transact_write_items(TransactItems=writes)
            except ClientError as error:
                if error_code(error) != "TransactionCanceledException":
                    raise
                reasons: list[Any] = error.response["CancellationReasons"]
                return reasons
        return []


def _key(key_hash: str) -> dict[str, AttributeValueTypeDef]:
    return {"PK": s(f"KEY#{key_hash}"), "SK": s("KEY")}


def _entry_sk(key_id: str) -> str:
    return f"APIKEY#{key_id}"


def _entry_key(tenant_id: str, user_id: str, key_id: str) -> dict[str, AttributeValueTypeDef]:
    return attributes(PK=user_pk(tenant_id, user_id), SK=_entry_sk(key_id))


def _places_key(tenant_id: str, user_id: str) -> dict[str, str]:
    return {"PK": user_pk(tenant_id, user_id), "SK": "APIKEYS"}


def _places_item(tenant_id: str, user_id: str) -> dict[str, AttributeValueTypeDef]:
    return attributes(**_places_key(tenant_id, user_id), Type="ApiKeyPlaces")


def _item(key: ApiKey) -> dict[str, AttributeValueTypeDef]:
    return _key(key.key_hash) | attributes(
        Type="ApiKey",
        key_id=key.id,
        tenant_id=key.tenant_id,
        user_id=key.user_id,
        mode=key.mode.value,
        last_four=key.last_four,
        created_at=epoch_seconds(key.created_at),
        key_expires_at=_seconds(key.expires_at),
        revoked_at=_seconds(key.revoked_at),
        pepper_version=key.pepper_version,
        first_id=key.first_id or None,
        replaced_by=key.replaced_by,
        expires_at=_gone_at(key),
        **_changeable(key),
    )


def _changeable(key: ApiKey) -> dict[str, str | int | None]:
    """What an owner may change, as stored."""
    return {
        "name": key.name or None,
        "allowed_models": " ".join(sorted(key.allowed_models)) or None,
        "budget_tokens": key.budget_tokens,
        "requests_per_minute": key.requests_per_minute,
        "burst_requests": key.burst_requests,
        "max_tokens_policy": key.max_tokens_policy.value,
    }


def _as_seen(key: ApiKey) -> tuple[str, dict[str, str], dict[str, AttributeValueTypeDef]]:
    """The condition that a key lives, was not replaced, and has what its owner may change as it is in `key`.

    With the names and values that it needs: without it, of two changes at once the later undoes the earlier, and a
    rotation brings back what a change has just taken away.
    """
    stored = _changeable(key)
    same = (
        f"attribute_not_exists(#{name})" if value is None else f"#{name} = :seen_{name}"
        for name, value in stored.items()
    )
    alive = "attribute_exists(PK) AND attribute_not_exists(revoked_at) AND attribute_not_exists(replaced_by)"
    return (
        " AND ".join((alive, *same)),
        {f"#{name}": name for name in stored},
        attributes(**{f":seen_{name}": value for name, value in stored.items()}),
    )


def _from_item(item: dict[str, Any]) -> ApiKey:
    return ApiKey(
        id=item["key_id"],
        key_hash=item["PK"].removeprefix("KEY#"),
        tenant_id=item["tenant_id"],
        user_id=item["user_id"],
        mode=KeyMode(item["mode"]),
        last_four=item["last_four"],
        created_at=from_epoch_seconds(item["created_at"]),
        name=item.get("name", ""),
        expires_at=_instant(item.get("key_expires_at")),
        revoked_at=_instant(item.get("revoked_at")),
        max_tokens_policy=MaxTokensPolicy(item["max_tokens_policy"]),
        pepper_version=item["pepper_version"],
        allowed_models=frozenset(item.get("allowed_models", "").split()),
        budget_tokens=item.get("budget_tokens"),
        requests_per_minute=item.get("requests_per_minute"),
        burst_requests=item.get("burst_requests"),
        first_id=item.get("first_id", ""),
        replaced_by=item.get("replaced_by"),
    )


def _gone_at(key: ApiKey) -> int | None:
    """When the table may delete it; never, while it can be used."""
    return None if key.expires_at is None else epoch_seconds(key.expires_at) + KEPT_SECONDS


def _seconds(instant: datetime | None) -> int | None:
    return None if instant is None else epoch_seconds(instant)


def _instant(seconds: int | None) -> datetime | None:
    return None if seconds is None else from_epoch_seconds(seconds)


def _unprocessed(left: Mapping[str, Any] | None, table_name: str) -> list[dict[str, AttributeValueTypeDef]]:
    """The keys of a batch that DynamoDB did not get to."""
    keys: list[dict[str, AttributeValueTypeDef]] = (left or {}).get(table_name, {}).get("Keys", [])
    return keys
