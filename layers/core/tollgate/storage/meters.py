"""The meter: one item that holds a user's usage period, and every write that changes it.

Owns the exact DynamoDB requests of the ledger. Each write is one conditional UpdateItem or one transaction; its
condition is written in named parts, so that a refusal can be explained and a test can switch one part off. Nothing
here decides: `tollgate.flows.ledger` does. Names are short because the hot item must stay under 1 KB (1 WU a write);
none is a reserved word. Late duplicates, lost answers and retries are expected; the conditions make them harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, Literal
from zlib import crc32

from botocore.exceptions import ClientError

from tollgate.domain.ledger import Meter, MeterKey, MeterName, Reservation, resize
from tollgate.domain.periods import UsagePeriod
from tollgate.domain.plans import Plan
from tollgate.domain.principals import Account, Profile
from tollgate.domain.tokens import TokenCounts
from tollgate.storage.table import (
    Table,
    attributes,
    condition_failed,
    epoch_seconds,
    error_code,
    from_epoch_seconds,
    ids_of,
    item_of,
    n,
    plain,
    query_items,
    s,
    store_outages,
    user_pk,
)
from tollgate.storage.users import entitle, profile_key

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef, TransactWriteItemTypeDef

SHARDS: Final = 16
"""The index of periods that are not closed is spread over this many partitions."""
TOMBSTONES_A_WRITE: Final = 100
"""Taken away in one write: its text may have 4 KB."""
RECORD_SECONDS: Final = 90 * 24 * 3600
"""Expired-reservation records are kept as long as request records."""
MARKER_SECONDS: Final = 24 * 3600
"""How long an idempotency key is remembered."""

_CONFLICTS: Final = frozenset({"TransactionConflictException", "TransactionConflict", "TransactionInProgressException"})
_FAILED: Final = "ConditionalCheckFailed"

ALL_OLD: Final[Literal["ALL_OLD"]] = "ALL_OLD"
ALL_NEW: Final[Literal["ALL_NEW"]] = "ALL_NEW"


@dataclass(frozen=True, slots=True)
class Written:
    """The answer to one write of the meter."""

    applied: bool
    meter: Meter | None
    """After an applied write the new meter, after a refused one what stands there (None: no meter)."""
    sent_twice: bool = False
    """The SDK sent the request more than once: a duplicate may still arrive."""
    conflict: bool = False
    """Refused only because a transaction was under way on the item: the same write may be tried again."""


class Opening(Enum):
    """What became of an attempt to open a meter."""

    OPEN = auto()
    """It is open; somebody else may have been first."""
    STALE_PLAN = auto()
    """The profile carries another plan version by now."""
    POOL_USED_UP = auto()
    """The plan's pool has no room for another user this month."""
    CONFLICT = auto()
    """Refused only because another transaction was under way: the same may be tried again."""


class Changing(Enum):
    """What became of an attempt to change what a user may do."""

    DONE = auto()
    STALE_ACCOUNT = auto()
    """The profile carries another version by now."""
    SUPERSEDED = auto()
    """What was to be written with it was refused by its own condition."""
    MOVED = auto()
    """A meter moved since it was read, or another transaction was under way: read it and try again."""


@dataclass(frozen=True, slots=True)
class RunningMeter:
    """The meter of a period that contains now, as read; None: not opened yet."""

    key: MeterKey
    meter: Meter | None


@dataclass(frozen=True, slots=True)
class RateStep:
    """One GCRA step in epoch milliseconds: admit when the theoretical arrival time allows, then move it on.

    Two forms, because conditions cannot compute a maximum: `idle` when the stored time has passed, else busy.
    """

    now_ms: int
    interval_ms: int
    tolerance_ms: int
    idle: bool


@dataclass(frozen=True, slots=True)
class KeyStep:
    """What one reservation takes of its API key's own limits, in the same write.

    `k#<id>` counts up: what is charged to the key plus what its running calls hold. Nothing about the budget itself is
    stored: each reservation brings the budget it knows and is refused above it, so a changed budget needs no write, and
    the sum is right whatever budgets came and went.
    """

    id: str
    budget_tokens: int | None
    rate: RateStep | None


@dataclass(frozen=True, slots=True)
class IdempotencyMarker:
    """The stored use of a client's idempotency key."""

    reservation_id: str
    body_sha256: str


@dataclass(frozen=True, slots=True)
class _Transacted:
    """The answer to one transaction: DynamoDB's reason for each write when it was refused, none when applied."""

    applied: bool
    sent_twice: bool
    reasons: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Expired:
    """The record a sweep leaves, by which a late owner corrects its charge exactly once."""

    amount_tokens: int
    charged_tokens: int
    written_off_tokens: int
    corrected: bool


@dataclass(frozen=True, slots=True)
class ExpiredReservation:
    """One swept reservation as reports tell it."""

    period_id: str
    reservation_id: str
    nonce: str
    amount_tokens: int
    charged_tokens: int
    written_off_tokens: int
    corrected: bool
    """Its owner came late and corrected the charge; the request's own record tells it, if it was written."""
    swept_at: datetime


@dataclass(frozen=True, slots=True)
class Booking:
    """What one end of a reservation adds to the meter."""

    charged_tokens: int
    written_off_tokens: int
    counts: TokenCounts
    cost_picousd: int
    returns_request: bool
    """The call does not count against the request quota."""


class Meters:
    """Reads and writes meters. Every method raises StoreUnavailableError when the table does not answer."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find(self, key: MeterKey) -> Meter | None:
        """Access pattern: a user's meter of one usage period (consistent read)."""
        return self.find_named(MeterName(key.tenant_id, key.user_id, key.period.id))

    def find_named(self, name: MeterName) -> Meter | None:
        """The same by the period's id, as records and indexes have it."""
        pk, sk = user_pk(name.tenant_id, name.user_id), f"USAGE#{name.period_id}"
        with store_outages():
            answer = self._table.client.get_item(
                TableName=self._table.name, Key=attributes(PK=pk, SK=sk), ConsistentRead=True
            )
        return meter_of(answer["Item"]) if "Item" in answer else None

    def list_ending(self, shard: int, before: datetime, *, since: datetime | None = None) -> Iterator[MeterName]:
        """Access pattern: the periods not closed that end in [since, before), one shard, paged.

        Earliest end first; `since` None: from the first. As the index has it, so read the meter before acting.
        """
        found = query_items(
            self._table,
            IndexName="GSI1",
            KeyConditionExpression="GSI1PK = :shard AND GSI1SK BETWEEN :since AND :before",
            ExpressionAttributeValues={
                ":shard": s(_shard_pk(shard)),
                ":since": s("0" if since is None else _end_text(since)),
                ":before": s(_end_text(before)),  # shorter than every key of that end, so none of them
            },
        )
        for item in found:
            tenant_id, user_id = ids_of(item)
            yield MeterName(tenant_id, user_id, item["SK"]["S"].removeprefix("USAGE#"))

    def create(self, key: MeterKey, plan: Plan, plan_version: int, *, listed: Plan | None = None) -> Opening:
        """Open the meter of a period on the given plan, and take the most it can ever use out of the plan's pool.

        Together or not at all, so that what is taken is exactly what the open meters can use. A meter that already
        exists is left alone, and takes nothing. `listed`: the plan as the catalog has it, where the user's own allows
        less for now; it counts for the pool, which cannot be asked again when the user is allowed more.
        """
        pk = user_pk(key.tenant_id, key.user_id)
        item = attributes(
            PK=pk,
            SK=_sk(key.period),
            Type="Meter",
            GSI1PK=_shard_pk(_shard(key.user_id)),
            GSI1SK=_ending_sk(key),
            start_at=epoch_seconds(key.period.start_at),
            end_at=epoch_seconds(key.period.end_at),
            quota=plan.stored_quota_tokens,
            remaining=plan.stored_quota_tokens,
            overage_cap=plan.overage_cap_tokens,
            req_quota=plan.stored_quota_requests,
            req_remaining=plan.stored_quota_requests,
            plan_id=plan.id,
            plan_version=plan_version,
            ov_rate=plan.overage_price_nanousd_per_token or None,
            **dict.fromkeys(_COUNTERS, 0),
        )
        put: TransactWriteItemTypeDef = {
            "Put": {"TableName": self._table.name, "Item": item, "ConditionExpression": "attribute_not_exists(PK)"}
        }
        pool = [] if plan.pool_tokens is None else [self._take_from_pool(key, listed or plan, plan.pool_tokens)]
        done = self._transact([self._check_plan_version(key, plan_version), put, *pool])
        if done.applied:
            return Opening.OPEN
        of_profile, of_meter, of_pool = (reason.get("Code") == _FAILED for reason in (*done.reasons, {})[:3])
        if of_profile:
            return Opening.STALE_PLAN
        if of_meter:
            return Opening.OPEN
        return Opening.POOL_USED_UP if of_pool else Opening.CONFLICT

    def _take_from_pool(self, key: MeterKey, plan: Plan, pool_tokens: int) -> TransactWriteItemTypeDef:
        pool = _pool(key, plan)
        return {
            "Update": {
                "TableName": self._table.name,
                "Key": {name: pool[name] for name in ("PK", "SK")},
                "UpdateExpression": "SET #type = :type, taken = if_not_exists(taken, :zero) + :most",
                "ConditionExpression": "attribute_not_exists(taken) OR taken <= :room",
                "ExpressionAttributeNames": {"#type": "Type"},
                "ExpressionAttributeValues": {
                    ":type": pool["Type"],
                    ":zero": n(0),
                    ":most": n(plan.most_tokens),
                    ":room": n(pool_tokens - plan.most_tokens),
                },
            }
        }

    def reserve(
        self,
        key: MeterKey,
        reservation: Reservation,
        *,
        plan: Plan,
        plan_version: int,
        overage_cap_tokens: int,
        rate: RateStep | None,
        key_step: KeyStep | None = None,
    ) -> Written:
        """W1, the write before the first byte: hold the amount, one request, one stream slot and one rate step.

        `key_step`: and the calling key's own budget and rate step.
        """
        request = self._reserve_request(reservation, plan, plan_version, overage_cap_tokens, rate, key_step)
        return self._update(key, request)

    def reserve_once(
        self,
        key: MeterKey,
        reservation: Reservation,
        *,
        plan: Plan,
        plan_version: int,
        overage_cap_tokens: int,
        rate: RateStep | None,
        idempotency_key: str,
        body_sha256: str,
        now_seconds: int,
        key_step: KeyStep | None = None,
    ) -> tuple[Written, IdempotencyMarker | None]:
        """W1 together with the marker of the client's idempotency key; the marker found, if it was there before."""
        update = self._reserve_request(reservation, plan, plan_version, overage_cap_tokens, rate, key_step)
        marker = attributes(
            **_marker_key(key, idempotency_key),
            Type="IdempotencyMarker",
            reservation_id=reservation.id,
            nonce=reservation.nonce,
            body_sha256=body_sha256,
            expires_at=now_seconds + MARKER_SECONDS,
        )
        put: TransactWriteItemTypeDef = {
            "Put": {
                "TableName": self._table.name,
                "Item": marker,
                "ConditionExpression": "attribute_not_exists(PK) OR expires_at < :now",
                "ExpressionAttributeValues": {":now": n(now_seconds)},
                "ReturnValuesOnConditionCheckFailure": ALL_OLD,
            }
        }
        done = self._transact([put, self._in_transaction(key, update)])
        if done.applied:
            return Written(True, self.find(key), done.sent_twice), None  # transactions return no values
        of_marker, of_meter = done.reasons
        found = _marker_of(plain(of_marker["Item"])) if of_marker.get("Item") else None
        conflict = any(reason.get("Code") in _CONFLICTS for reason in done.reasons)
        meter = meter_of(of_meter["Item"]) if of_meter.get("Item") else None
        return Written(False, meter, done.sent_twice, conflict), found

    def forget_marker(self, key: MeterKey, idempotency_key: str, reservation: Reservation) -> None:
        """Free an idempotency key whose reservation was given up, so that the client's own retry is served."""
        with store_outages():
            try:
                self._table.client.delete_item(
                    TableName=self._table.name,
                    Key=attributes(**_marker_key(key, idempotency_key)),
                    ConditionExpression="reservation_id = :id AND nonce = :nonce",
                    ExpressionAttributeValues={":id": s(reservation.id), ":nonce": s(reservation.nonce)},
                )
            except ClientError as error:
                if not condition_failed(error):
                    raise

    def top_up(
        self,
        key: MeterKey,
        reservation: Reservation,
        bigger: Reservation,
        overage_cap_tokens: int,
        budget_tokens: int | None = None,
    ) -> Written:
        """Replace an open reservation by a bigger one of the same owner.

        `budget_tokens`: of the key whose budget the reservation counts against.
        """
        extra = bigger.amount_tokens - reservation.amount_tokens
        condition = " AND ".join(
            (
                "#r = :reservation",  # still ours, still this amount
                "remaining >= :need",  # room, overage included
                "overage_cap = :cap",  # the cap this room was computed with
            )
        )
        names = {"#r": f"r#{reservation.id}"}
        values = {
            ":extra": n(extra),
            ":bigger": s(bigger.encode()),
            ":reservation": s(reservation.encode()),
            ":need": n(extra - overage_cap_tokens),
            ":cap": n(overage_cap_tokens),
        }
        update = "SET remaining = remaining - :extra, #r = :bigger"
        if reservation.key_id:
            update += ", #k = #k + :extra"
            names["#k"] = f"k#{reservation.key_id}"
        if reservation.key_id and budget_tokens is not None:
            condition += " AND #k <= :key_most"
            values[":key_most"] = n(budget_tokens - extra)
        return self._update(
            key,
            {
                "UpdateExpression": update,
                "ConditionExpression": condition,
                "ExpressionAttributeNames": names,
                "ExpressionAttributeValues": values,
            },
        )

    def settle(
        self,
        key: MeterKey,
        reservation: Reservation,
        booking: Booking,
        *,
        tombstone_at_seconds: int | None,
        drop_tombstones: tuple[str, ...] = (),
    ) -> Written:
        """W2, the write after the end: the exact stored value is the fence, so it happens once."""
        names = {"#r": f"r#{reservation.id}"} | _key_name(reservation)
        values = {**_booking_values(booking), ":one": n(1), ":reservation": s(reservation.encode())}
        values[":back"] = n(reservation.amount_tokens - booking.charged_tokens)
        tombstone = ""
        if tombstone_at_seconds is not None:
            tombstone = ", #x = :at"
            names["#x"] = f"x#{reservation.id}"
            values[":at"] = n(tombstone_at_seconds)
        old = {f"#g{index}": f"x#{name}" for index, name in enumerate(drop_tombstones)}
        return self._update(
            key,
            {
                "UpdateExpression": f"{_book(reservation)}{tombstone} REMOVE {', '.join(('#r', *old))}",
                "ConditionExpression": "#r = :reservation",
                "ExpressionAttributeNames": {**names, **old},
                "ExpressionAttributeValues": values,
            },
        )

    def forbid(self, key: MeterKey, reservation_id: str, now_seconds: int) -> Written:
        """Tombstone: a reserve that may still be under way must not land any more."""
        return self._update(
            key,
            {
                "UpdateExpression": "SET #x = :at",
                "ConditionExpression": "attribute_exists(PK) AND attribute_not_exists(#r) AND attribute_not_exists(#x)",
                "ExpressionAttributeNames": {"#r": f"r#{reservation_id}", "#x": f"x#{reservation_id}"},
                "ExpressionAttributeValues": {":at": n(now_seconds)},
            },
        )

    def expire(self, key: MeterKey, reservation: Reservation, booking: Booking, now_seconds: int) -> bool:
        """Sweep one reservation and leave its expired-reservation record, together; False when it was ended before."""
        record = attributes(
            **_expired_key(key, reservation),
            Type="ExpiredReservation",
            period=key.period.id,
            amount=reservation.amount_tokens,
            charged=booking.charged_tokens,
            written_off=booking.written_off_tokens,
            outcome="expired",
            swept_at=now_seconds,
            expires_at=now_seconds + RECORD_SECONDS,
        )
        values = {**_booking_values(booking), ":one": n(1), ":reservation": s(reservation.encode())}
        values[":back"] = n(reservation.amount_tokens - booking.charged_tokens)
        values[":at"] = n(now_seconds)
        update = {
            "UpdateExpression": f"{_book(reservation)}, #x = :at REMOVE #r",
            "ConditionExpression": "#r = :reservation",
            "ExpressionAttributeNames": {"#r": f"r#{reservation.id}", "#x": f"x#{reservation.id}"}
            | _key_name(reservation),
            "ExpressionAttributeValues": values,
        }
        put: TransactWriteItemTypeDef = {
            "Put": {"TableName": self._table.name, "Item": record, "ConditionExpression": "attribute_not_exists(PK)"}
        }
        return self._transact([self._in_transaction(key, update), put]).applied

    def find_expired(self, key: MeterKey, reservation: Reservation) -> Expired | None:
        """Access pattern: the record of one swept reservation (consistent read)."""
        with store_outages():
            answer = self._table.client.get_item(
                TableName=self._table.name, Key=attributes(**_expired_key(key, reservation)), ConsistentRead=True
            )
        if "Item" not in answer:
            return None
        item = plain(answer["Item"])
        return Expired(item["amount"], item["charged"], item["written_off"], corrected=item["outcome"] != "expired")

    def list_of_user(self, tenant_id: str, user_id: str, *, after: str = "") -> Iterator[Meter]:
        """Access pattern: a user's meters after the period of this id, by usage period, paged (consistent read)."""
        found = query_items(
            self._table,
            KeyConditionExpression="PK = :pk AND SK BETWEEN :first AND :last",
            ExpressionAttributeValues={
                ":pk": s(user_pk(tenant_id, user_id)),
                ":first": s(f"USAGE#{after}"),
                ":last": s("USAGE#~"),
            },
            ConsistentRead=True,
        )
        yield from (meter_of(item) for item in found if item["SK"]["S"] > f"USAGE#{after}")

    def list_expired(self, tenant_id: str, user_id: str) -> Iterator[ExpiredReservation]:
        """Access pattern: records of a user's swept reservations, by usage period, paged (consistent read)."""
        found = query_items(
            self._table,
            KeyConditionExpression="PK = :pk AND begins_with(SK, :expired)",
            ExpressionAttributeValues={":pk": s(user_pk(tenant_id, user_id)), ":expired": s("EXPIRED#")},
            ConsistentRead=True,
        )
        yield from (_expired_reservation(plain(item)) for item in found)

    def correct(
        self,
        key: MeterKey,
        reservation: Reservation,
        expired: Expired,
        booking: Booking,
        overage_cap_tokens: int,
        budget_tokens: int | None = None,
    ) -> bool:
        """Late correction: the swept charge becomes the true one, once; False when refused (read again).

        `booking` holds the final figures; the meter moves by their difference from what the sweep booked.
        """
        more = booking.charged_tokens - expired.charged_tokens
        more_written_off = booking.written_off_tokens - expired.written_off_tokens
        fix: TransactWriteItemTypeDef = {
            "Update": {
                "TableName": self._table.name,
                "Key": attributes(**_expired_key(key, reservation)),
                "UpdateExpression": "SET outcome = :corrected, charged = :charged, written_off = :written_off",
                "ConditionExpression": "outcome = :expired AND charged = :swept",
                "ExpressionAttributeValues": {
                    ":corrected": s("corrected"),
                    ":expired": s("expired"),
                    ":charged": n(booking.charged_tokens),
                    ":written_off": n(booking.written_off_tokens),
                    ":swept": n(expired.charged_tokens),
                },
            }
        }
        values = _booking_values(booking) | {
            ":charged": n(more),
            ":back": n(-more),
            ":written_off": n(more_written_off),
            ":requests": n(int(booking.returns_request)),
            ":one": n(0),  # the sweep has closed the stream slot
        }
        condition = "attribute_exists(PK)"
        if more > 0:
            condition += " AND overage_cap = :cap AND remaining >= :need"
            values |= {":need": n(more - overage_cap_tokens), ":cap": n(overage_cap_tokens)}
        if more > 0 and reservation.key_id and budget_tokens is not None:
            condition += " AND #k <= :key_most"
            values[":key_most"] = n(budget_tokens - more)
        meter: dict[str, Any] = {
            # Back into the index: a period that was closed is closed again, with what came late.
            "UpdateExpression": f"{_book(reservation)}, GSI1PK = :shard, GSI1SK = :ending",
            "ConditionExpression": condition,
            "ExpressionAttributeValues": values | _index_values(key),
        }
        if reservation.key_id:
            meter["ExpressionAttributeNames"] = _key_name(reservation)
        return self._transact([fix, self._in_transaction(key, meter)]).applied

    def drop_tombstones(self, meter: Meter) -> Written:
        """Take away as many as one write can; only of a period in which no reserve can be under way any more."""
        return self._update(
            meter.key,
            {
                "UpdateExpression": f"REMOVE {', '.join(_tombstone_names(meter))}",
                "ConditionExpression": "attribute_exists(PK)",
                "ExpressionAttributeNames": _tombstone_names(meter),
            },
        )

    def close(self, meter: Meter, closed_at: datetime, also: Sequence[TransactWriteItemTypeDef]) -> bool:
        """Close the period as it was seen, together with `also`, and leave the index; False when the meter moved.

        False also when somebody else has closed it. Takes the tombstones along, as `drop_tombstones` does.
        """
        names = _tombstone_names(meter)
        update: dict[str, Any] = {
            "UpdateExpression": f"SET closed_at = :at REMOVE {', '.join(('GSI1PK', 'GSI1SK', *names))}",
            "ConditionExpression": " AND ".join(
                (
                    "attribute_exists(GSI1PK)",  # not closed yet, or something came late
                    "end_at = :end",
                    "open_count = :none",
                    "settled = :settled AND written_off = :written_off AND picousd = :picousd",  # what `also` tells
                )
            ),
            "ExpressionAttributeValues": {
                ":at": n(epoch_seconds(closed_at)),
                ":end": n(epoch_seconds(meter.key.period.end_at)),
                ":none": n(0),
                ":settled": n(meter.settled_tokens),
                ":written_off": n(meter.written_off_tokens),
                ":picousd": n(meter.cost_picousd),
            },
        }
        if names:
            update["ExpressionAttributeNames"] = names
        return self._transact([self._in_transaction(meter.key, update), *also]).applied

    def carry_plan(self, key: MeterKey, meter: Meter, account: Account) -> Changing:
        """Bring a running meter to the profile's newer version."""
        check = self._check_plan_version(key, account.profile.plan_version)
        return self._change([check], [self._resize(key, meter, account)], ())

    def change_entitlements(
        self,
        seen: Profile,
        account: Account,
        *,
        leaves: RunningMeter | None,
        enters: RunningMeter,
        also: Sequence[TransactWriteItemTypeDef],
    ) -> Changing:
        """Profile, running meters and the caller's own items, all or none: `account` is what the user becomes.

        `enters`: of the period that runs under it, brought to its plan. `leaves`: of the period that ran until now,
        when that is another one; it keeps its figures and is closed to whoever still has the old version in hand.
        """
        meters = [self._resize_or_absent(enters, account)]
        if leaves is not None:
            meters.append(self._leave_or_absent(leaves, account.profile.plan_version))
        return self._change([entitle(self._table, account.profile, seen.plan_version)], meters, also)

    def write_unchanged(self, profile: Profile, also: Sequence[TransactWriteItemTypeDef]) -> Changing:
        """The caller's own items alone, as long as the profile is the one that was seen."""
        return self._change([self._check_plan_version(profile, profile.plan_version)], [], also)

    def _change(
        self,
        profile: list[TransactWriteItemTypeDef],
        meters: list[TransactWriteItemTypeDef],
        also: Sequence[TransactWriteItemTypeDef],
    ) -> Changing:
        done = self._transact([*profile, *meters, *also])
        if done.applied:
            return Changing.DONE
        failed = [reason.get("Code") == _FAILED for reason in done.reasons]
        if failed[0]:
            return Changing.STALE_ACCOUNT
        return Changing.SUPERSEDED if any(failed[1 + len(meters) :]) else Changing.MOVED

    def _resize_or_absent(self, running: RunningMeter, account: Account) -> TransactWriteItemTypeDef:
        if running.meter is None:
            return self._check_absent(running.key)
        return self._resize(running.key, running.meter, account)

    def _leave_or_absent(self, running: RunningMeter, plan_version: int) -> TransactWriteItemTypeDef:
        if running.meter is None:
            return self._check_absent(running.key)
        return self._in_transaction(
            running.key,
            {
                "UpdateExpression": "SET plan_version = :next",
                # Whatever happened to it since: the version only moves on, and the profile's stands for all of them.
                "ConditionExpression": "attribute_exists(PK)",
                "ExpressionAttributeValues": {":next": n(plan_version)},
            },
        )

    def _check_absent(self, key: MeterKey) -> TransactWriteItemTypeDef:
        return {
            "ConditionCheck": {
                "TableName": self._table.name,
                "Key": attributes(PK=user_pk(key.tenant_id, key.user_id), SK=_sk(key.period)),
                "ConditionExpression": "attribute_not_exists(PK)",
            }
        }

    def _resize(self, key: MeterKey, meter: Meter, account: Account) -> TransactWriteItemTypeDef:
        plan, to = account.plan, resize(meter, account)
        condition = "plan_version = :seen AND settled = :settled"
        values = {
            ":quota": n(to.quota_tokens),
            ":more": n(to.quota_tokens - meter.quota_tokens),
            ":cap": n(to.overage_cap_tokens),
            ":price": n(to.overage_price_nanousd),
            ":banked": n(to.banked_tokens),
            ":nanousd": n(to.banked_nanousd),
            ":req_quota": n(plan.stored_quota_requests),
            ":more_requests": n(plan.stored_quota_requests - meter.quota_requests),
            ":plan": s(plan.id),
            ":next": n(account.profile.plan_version),
            # Months from two anchors may begin together and end a day apart.
            ":end": n(epoch_seconds(key.period.end_at)),
            ":seen": n(meter.plan_version),
            ":settled": n(meter.settled_tokens),
            **_index_values(key),
        }
        if to.counts_reserved:
            condition += " AND remaining = :remaining"
            values[":remaining"] = n(meter.remaining_tokens)
        return self._in_transaction(
            key,
            {
                "UpdateExpression": (
                    "SET quota = :quota, remaining = remaining + :more, overage_cap = :cap, ov_rate = :price,"
                    " ov_tokens = :banked, ov_nanousd = :nanousd, req_quota = :req_quota,"
                    " req_remaining = req_remaining + :more_requests, plan_id = :plan, plan_version = :next,"
                    " end_at = :end, GSI1PK = :shard, GSI1SK = :ending REMOVE closed_at"
                ),
                "ConditionExpression": condition,
                "ExpressionAttributeValues": values,
            },
        )

    def _check_plan_version(self, user: MeterKey | Profile, plan_version: int) -> TransactWriteItemTypeDef:
        return {
            "ConditionCheck": {
                "TableName": self._table.name,
                "Key": profile_key(user.tenant_id, user.user_id),
                "ConditionExpression": "plan_version = :version",
                "ExpressionAttributeValues": {":version": n(plan_version)},
            }
        }

    def _reserve_request(
        self,
        reservation: Reservation,
        plan: Plan,
        plan_version: int,
        overage_cap_tokens: int,
        rate: RateStep | None,
        key_step: KeyStep | None,
    ) -> dict[str, Any]:
        condition, update = _RESERVE_IF, _RESERVE
        names = {"#r": f"r#{reservation.id}", "#x": f"x#{reservation.id}"}
        values = {
            ":amount": n(reservation.amount_tokens),
            ":need": n(reservation.amount_tokens - overage_cap_tokens),
            ":reservation": s(reservation.encode()),
            ":one": n(1),
            ":max_open": n(plan.max_open_reservations),
            ":version": n(plan_version),
            ":cap": n(overage_cap_tokens),
        }
        if rate is not None:
            form = _RATE_IDLE if rate.idle else _RATE_BUSY
            condition, update = f"{condition} AND {form[0]}", f"{update}, {form[1]}"
            values[":now"] = n(rate.now_ms)
            if rate.idle:
                values[":next"] = n(rate.now_ms + rate.interval_ms)
            else:
                values |= {":interval": n(rate.interval_ms), ":latest": n(rate.now_ms + rate.tolerance_ms)}
        if key_step is not None:
            more_condition, more_update, more_values = _key_parts(key_step, reservation.amount_tokens)
            condition, update = f"{condition} AND {more_condition}", f"{update}, {more_update}"
            names |= _key_names(key_step)
            values |= more_values
        return {
            "UpdateExpression": update,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
        }

    def _in_transaction(self, key: MeterKey, request: dict[str, Any]) -> TransactWriteItemTypeDef:
        update: Any = {
            "TableName": self._table.name,
            "Key": attributes(PK=user_pk(key.tenant_id, key.user_id), SK=_sk(key.period)),
            "ReturnValuesOnConditionCheckFailure": ALL_OLD,
            **request,
        }
        return {"Update": update}

    def _update(self, key: MeterKey, request: dict[str, Any]) -> Written:
        with store_outages():
            try:
                answer = self._table.client.update_item(
                    TableName=self._table.name,
                    Key=attributes(PK=user_pk(key.tenant_id, key.user_id), SK=_sk(key.period)),
                    ReturnValues=ALL_NEW,
                    ReturnValuesOnConditionCheckFailure=ALL_OLD,
                    **request,
                )
            except ClientError as error:
                twice = _sent_twice(error.response)
                if condition_failed(error):
                    item = item_of(error)
                    return Written(False, meter_of(item) if item else None, sent_twice=twice)
                if error_code(error) in _CONFLICTS:
                    return Written(False, None, sent_twice=twice, conflict=True)
                raise
        return Written(True, meter_of(answer["Attributes"]), sent_twice=_sent_twice(answer))

    def _transact(self, items: list[TransactWriteItemTypeDef]) -> _Transacted:
        """All of the writes or none.

        botocore fills in ClientRequestToken, so its own retries of one call are applied once (ten minutes).
        """
        with store_outages():
            try:
                answer = self._table.client.transact_write_items(TransactItems=items)
            except ClientError as error:
                if error_code(error) != "TransactionCanceledException":
                    raise
                reasons: list[Any] = error.response["CancellationReasons"]
                return _Transacted(False, _sent_twice(error.response), tuple(reasons))
        return _Transacted(True, _sent_twice(answer))


_COUNTERS: Final = (
    "settled",
    "written_off",
    "open_count",
    "rate_tat",
    "t_in",
    "t_out",
    "t_w5",
    "t_w1",
    "t_rd",
    "picousd",
)

_RESERVE: Final = (
    "SET remaining = remaining - :amount, req_remaining = req_remaining - :one,"
    " open_count = open_count + :one, #r = :reservation"
)
_RESERVE_IF: Final = " AND ".join(
    (
        "attribute_exists(PK)",  # the meter is there
        "attribute_not_exists(#r)",  # not reserved yet: an earlier attempt of ours, or an id collision
        "attribute_not_exists(#x)",  # not ended before: a late duplicate must not revive a reservation
        "remaining >= :need",  # room for the amount, overage included
        "req_remaining >= :one",  # a request is left
        "open_count < :max_open",  # a stream slot is free
        "plan_version = :version",  # the plan in hand is the one in force
        "overage_cap = :cap",  # the cap this room was computed with
    )
)
_RATE_IDLE: Final = ("rate_tat <= :now", "rate_tat = :next")
_RATE_BUSY: Final = ("rate_tat > :now AND rate_tat <= :latest", "rate_tat = rate_tat + :interval")

_KEY_COUNT: Final = "#k = if_not_exists(#k, :zero) + :amount"
_KEY_FITS: Final = "(attribute_not_exists(#k) OR #k <= :key_most)"
_KEY_NEVER_FITS: Final = "#k <= :key_most"
_KEY_RATE_IDLE: Final = ("(attribute_not_exists(#q) OR #q <= :key_now)", "#q = :key_next")
_KEY_RATE_BUSY: Final = ("#q > :key_now AND #q <= :key_latest", "#q = #q + :key_interval")

_BOOK: Final = (
    "SET remaining = remaining + :back, settled = settled + :charged, written_off = written_off + :written_off,"
    " open_count = open_count - :one, req_remaining = req_remaining + :requests,"
    " t_in = t_in + :in, t_out = t_out + :out, t_w5 = t_w5 + :w5, t_w1 = t_w1 + :w1, t_rd = t_rd + :rd,"
    " picousd = picousd + :picousd"
)


def _key_parts(step: KeyStep, amount_tokens: int) -> tuple[str, str, dict[str, AttributeValueTypeDef]]:
    """(condition, update, values) by which a reservation takes its share of the key's own limits."""
    forms: list[tuple[str, str]] = []
    values: dict[str, AttributeValueTypeDef] = {}
    if step.budget_tokens is not None:
        most = step.budget_tokens - amount_tokens
        # A key not counted yet has used nothing: an amount above the whole budget must not pass for that.
        forms.append((_KEY_FITS if most >= 0 else _KEY_NEVER_FITS, _KEY_COUNT))
        values |= {":key_most": n(most), ":zero": n(0)}
    if step.rate is not None:
        forms.append(_KEY_RATE_IDLE if step.rate.idle else _KEY_RATE_BUSY)
        values[":key_now"] = n(step.rate.now_ms)
        if step.rate.idle:
            values[":key_next"] = n(step.rate.now_ms + step.rate.interval_ms)
        else:
            values[":key_interval"] = n(step.rate.interval_ms)
            values[":key_latest"] = n(step.rate.now_ms + step.rate.tolerance_ms)
    return " AND ".join(form[0] for form in forms), ", ".join(form[1] for form in forms), values


def _key_names(step: KeyStep) -> dict[str, str]:
    names = {} if step.budget_tokens is None else {"#k": f"k#{step.id}"}
    return names if step.rate is None else names | {"#q": f"q#{step.id}"}


def _key_name(reservation: Reservation) -> dict[str, str]:
    """The counter that a reservation moves beside the quota, if it moves one."""
    return {"#k": f"k#{reservation.key_id}"} if reservation.key_id else {}


def _book(reservation: Reservation) -> str:
    """The end of a reservation: what goes back to the quota goes back to the key's budget."""
    return f"{_BOOK}, #k = #k - :back" if reservation.key_id else _BOOK


def _tombstone_names(meter: Meter) -> dict[str, str]:
    """Placeholder to attribute; the oldest first, so that a run that dies leaves the same as one that does not."""
    oldest = sorted(meter.tombstones, key=lambda name: (meter.tombstones[name], name))[:TOMBSTONES_A_WRITE]
    return {f"#g{index}": f"x#{name}" for index, name in enumerate(oldest)}


def _sent_twice(answer: Mapping[str, Any]) -> bool:
    retries: int = answer["ResponseMetadata"].get("RetryAttempts", 0)
    return retries > 0


def _booking_values(booking: Booking) -> dict[str, AttributeValueTypeDef]:
    return {
        ":charged": n(booking.charged_tokens),
        ":written_off": n(booking.written_off_tokens),
        ":requests": n(int(booking.returns_request)),
        ":in": n(booking.counts.input_tokens),
        ":out": n(booking.counts.output_tokens),
        ":w5": n(booking.counts.cache_write_5m_tokens),
        ":w1": n(booking.counts.cache_write_1h_tokens),
        ":rd": n(booking.counts.cache_read_tokens),
        ":picousd": n(booking.cost_picousd),
    }


def _sk(period: UsagePeriod) -> str:
    return f"USAGE#{period.id}"


def _pool(key: MeterKey, plan: Plan) -> dict[str, AttributeValueTypeDef]:
    """The pool of a plan and month. Its size is not stored: the catalog's of today counts."""
    month = key.period.start_at.strftime("%Y-%m")
    return attributes(PK=f"TENANT#{key.tenant_id}#POOL#{plan.id}", SK=f"MONTH#{month}", Type="PlanPool")


def _shard(user_id: str) -> int:
    return crc32(user_id.encode()) % SHARDS


def _shard_pk(shard: int) -> str:
    return f"METERS#{shard}"


def _ending_sk(key: MeterKey) -> str:
    """Sorts by the period's end. A meter is in the index until its period is closed, and no longer."""
    return f"{_end_text(key.period.end_at)}#{key.tenant_id}#{key.user_id}"


def _end_text(end_at: datetime) -> str:
    end_utc = end_at.astimezone(UTC)
    return f"{end_utc:%Y-%m-%dT%H:%M:%SZ}"


def _index_values(key: MeterKey) -> dict[str, AttributeValueTypeDef]:
    return {":shard": s(_shard_pk(_shard(key.user_id))), ":ending": s(_ending_sk(key))}


def _expired_key(key: MeterKey, reservation: Reservation) -> dict[str, str]:
    return {
        "PK": user_pk(key.tenant_id, key.user_id),
        "SK": f"EXPIRED#{key.period.id}#{reservation.id}#{reservation.nonce}",
    }


def _expired_reservation(item: dict[str, Any]) -> ExpiredReservation:
    _, period_id, reservation_id, nonce = item["SK"].split("#")
    return ExpiredReservation(
        period_id=period_id,
        reservation_id=reservation_id,
        nonce=nonce,
        amount_tokens=item["amount"],
        charged_tokens=item["charged"],
        written_off_tokens=item["written_off"],
        corrected=item["outcome"] != "expired",
        swept_at=from_epoch_seconds(item["swept_at"]),
    )


def _marker_key(key: MeterKey, idempotency_key: str) -> dict[str, str]:
    return {"PK": user_pk(key.tenant_id, key.user_id), "SK": f"IDEM#{idempotency_key}"}


def _marker_of(item: dict[str, Any]) -> IdempotencyMarker:
    return IdempotencyMarker(reservation_id=item["reservation_id"], body_sha256=item["body_sha256"])


def meter_of(item: Mapping[str, Any]) -> Meter:
    """The stored item as a value."""
    plain_item = plain(item)
    _, tenant_id, _, user_id = plain_item["PK"].split("#", 3)
    period = UsagePeriod(from_epoch_seconds(plain_item["start_at"]), from_epoch_seconds(plain_item["end_at"]))
    named = _named(plain_item)
    return Meter(
        key=MeterKey(tenant_id, user_id, period),
        quota_tokens=plain_item["quota"],
        overage_cap_tokens=plain_item["overage_cap"],
        remaining_tokens=plain_item["remaining"],
        settled_tokens=plain_item["settled"],
        written_off_tokens=plain_item["written_off"],
        quota_requests=plain_item["req_quota"],
        remaining_requests=plain_item["req_remaining"],
        open_count=plain_item["open_count"],
        rate_tat_ms=plain_item["rate_tat"],
        plan_id=plain_item["plan_id"],
        plan_version=plain_item["plan_version"],
        counts=TokenCounts(
            input_tokens=plain_item["t_in"],
            output_tokens=plain_item["t_out"],
            cache_write_5m_tokens=plain_item["t_w5"],
            cache_write_1h_tokens=plain_item["t_w1"],
            cache_read_tokens=plain_item["t_rd"],
        ),
        cost_picousd=plain_item["picousd"],
        reservations={name: Reservation.decode(name, text) for name, text in named["r"].items()},
        tombstones=named["x"],
        key_tokens=named["k"],
        key_rate_tats_ms=named["q"],
        overage_price_nanousd=plain_item.get("ov_rate", 0),
        banked_tokens=plain_item.get("ov_tokens", 0),
        banked_nanousd=plain_item.get("ov_nanousd", 0),
        closed_at=None if "GSI1PK" in plain_item else from_epoch_seconds(plain_item["closed_at"]),
    )


def _named(plain_item: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The attributes whose names carry an id, by kind; one pass, because every write answers with the whole item."""
    named: dict[str, dict[str, Any]] = {"r": {}, "x": {}, "k": {}, "q": {}}
    for name, value in plain_item.items():
        if name[1:2] == "#":
            named[name[0]][name[2:]] = value
    return named
