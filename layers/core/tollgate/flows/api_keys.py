"""What owners do with their API keys: make, look, change, rotate, revoke; and what a finder of a leaked one does.

The promise: no user ever has more keys than the plan allows, however many are made at once, and no key is shown twice.
A key counts until it is dead: what expired is taken out of the count when the place is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tollgate.domain.api_keys import (
    SECRET_BYTES,
    ApiKey,
    KeyMode,
    KeyState,
    KeyWish,
    hash_api_key,
    is_well_formed,
    key_id,
    mint_api_key,
    overlap_end,
)
from tollgate.domain.errors import (
    ConflictError,
    DuplicateRequestError,
    IdempotencyMismatchError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    StoreUnavailableError,
)
from tollgate.domain.ledger import MeterKey
from tollgate.domain.periods import period_at
from tollgate.domain.principals import Account, Principal
from tollgate.domain.sources import Clock, IdSource

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog
    from tollgate.storage.api_keys import ApiKeys, Creation, KeyPage
    from tollgate.storage.meters import Meters

MAX_ROUNDS: Final = 10
PAUSE_SECONDS: Final = 0.01
"""First wait while another of the user's keys is being made; doubled each round."""
MOST_COUNTED_KEYS: Final = 64
"""Keys with limits of their own that one usage period counts: each leaves some 40 bytes in the meter until it ends, and
making and revoking them without end must not make that item large. Above this at most the plan's keys come on top."""


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new key, and the only sight of its text."""

    key: ApiKey
    text: str


class KeyRing:
    """Every step on users' API keys. Holds nothing between calls. All methods raise StoreUnavailableError."""

    def __init__(
        self,
        api_keys: ApiKeys,
        meters: Meters,
        catalog: Catalog,
        pepper: Callable[[], bytes],
        clock: Clock,
        ids: IdSource,
        *,
        allow_test_keys: bool,
    ) -> None:
        self._api_keys = api_keys
        self._meters = meters
        self._catalog = catalog
        self._pepper = pepper
        self._clock = clock
        self._ids = ids
        self._allow_test_keys = allow_test_keys

    # ---- making

    def create(
        self, account: Account, wish: KeyWish, *, idempotency_key: str | None = None, body_sha256: str = ""
    ) -> MintedKey:
        """Make a key. With an idempotency key at most one is made, even when its answer was lost.

        Raises PermissionDeniedError (`api_keys_not_in_plan`, `api_key_limit_reached`), InvalidRequestError,
        DuplicateRequestError (the key exists and cannot be shown again), IdempotencyMismatchError.
        """
        self._check(account, wish)
        minted = self._mint(account.tenant_id, account.user_id, wish)
        for round_number in range(MAX_ROUNDS):
            creation = self._api_keys.create_key(
                minted.key,
                most_keys=account.plan.max_api_keys,
                idempotency_key=idempotency_key,
                body_sha256=body_sha256,
            )
            if creation.applied:
                return minted
            _refuse_repetition(creation, body_sha256)
            if creation.no_account:
                raise NotFoundError("There is no such account any more.")
            if not creation.full:
                self._wait(round_number)
            elif not self._free_dead_places(account):
                _refuse_more_keys(account)
        raise StoreUnavailableError("Too many keys of this account are being made at the same moment. Try again.")

    def _check(self, account: Account, wish: KeyWish) -> None:
        """Everything that needs no write."""
        now = self._clock.now_seconds()
        if account.plan.max_api_keys == 0:
            raise PermissionDeniedError(
                f"The {account.plan.name} plan includes no API keys. {account.plan.upgrade_message}".rstrip(),
                error_code="api_keys_not_in_plan",
            )
        if wish.mode is KeyMode.TEST and not self._allow_test_keys:
            raise InvalidRequestError("mode: test keys are not accepted on this deployment", error_code="invalid_field")
        if wish.expires_at is not None and wish.expires_at.timestamp() <= now:
            raise InvalidRequestError("expires_at: must be in the future", error_code="invalid_field")
        if wish.budget_tokens is not None or wish.requests_per_minute is not None:
            self._refuse_too_many_counted(account, now)

    def _refuse_too_many_counted(self, account: Account, now_seconds: float) -> None:
        now = datetime.fromtimestamp(now_seconds, UTC)
        period = period_at(account.plan.period_kind, account.profile.anchor_at, now)
        meter = self._meters.find(MeterKey(account.tenant_id, account.user_id, period))
        if meter is not None and len(meter.key_tokens.keys() | meter.key_rate_tats_ms.keys()) >= MOST_COUNTED_KEYS:
            raise PermissionDeniedError(
                f"{MOST_COUNTED_KEYS} keys with limits of their own were used in this usage period, as many as are"
                " counted. Change or rotate one of them, or make a key without limits.",
                error_code="api_key_limit_reached",
            )

    def _free_dead_places(self, account: Account) -> bool:
        """Take out of the count what can never be used again; whether another try helps."""
        now = self._clock.now_seconds()
        # Before the keys are read: one made meanwhile is in neither list, and stays in the count. One rotated
        # meanwhile may be seen dead without its successor being seen at all, so then nothing is freed.
        seen = self._api_keys.places(account.tenant_id, account.user_id)
        dead = set(seen.line_ids)
        if len(dead) < account.plan.max_api_keys:
            return True  # somebody gave a place back meanwhile
        for key in self._api_keys.list_keys(account.tenant_id, account.user_id):
            if key.refusal_at(now) is None:  # also one that was replaced and is accepted still
                dead.discard(key.line_id)
            if not dead:
                return False
        self._api_keys.free_places(account.tenant_id, account.user_id, dead, seen=seen)
        return True

    def _mint(self, tenant_id: str, user_id: str, wish: KeyWish, *, first_id: str = "") -> MintedKey:
        now = int(self._clock.now_seconds())
        text = mint_api_key(wish.mode, self._ids.random_bytes(SECRET_BYTES))
        key = ApiKey(
            id=key_id(now, self._ids.new_id(6)),
            key_hash=hash_api_key(text, self._pepper()),
            tenant_id=tenant_id,
            user_id=user_id,
            mode=wish.mode,
            last_four=text[-4:],
            created_at=datetime.fromtimestamp(now, UTC),
            name=wish.name,
            expires_at=wish.expires_at,
            max_tokens_policy=wish.max_tokens_policy,
            allowed_models=wish.allowed_models,
            budget_tokens=wish.budget_tokens,
            requests_per_minute=wish.requests_per_minute,
            burst_requests=wish.burst_requests,
            first_id=first_id,
        )
        return MintedKey(key, text)

    def model_ids(self, names: Iterable[str]) -> frozenset[str]:
        """The models of these ids and aliases. Raises InvalidRequestError for a name that is none of the catalog's."""
        found = {name: self._catalog.resolve_model(name) for name in names}
        unknown = [name for name, model in found.items() if model is None]
        if unknown:
            raise InvalidRequestError(f"allowed_models: no such model: {unknown[0][:100]}", error_code="invalid_field")
        return frozenset(model.id for model in found.values() if model is not None)

    # ---- looking and changing

    def find(self, principal: Principal, key_id: str) -> ApiKey:
        """One of the caller's keys. Raises NotFoundError, the same for an id of somebody else as for none."""
        key = self._api_keys.find_users_key(principal.tenant_id, principal.user_id, key_id)
        if key is None:
            raise NotFoundError("There is no such API key.")
        return key

    def page(self, principal: Principal, limit: int, after_id: str | None) -> KeyPage:
        """Up to `limit` of the caller's keys, newest first, beginning after one."""
        return self._api_keys.list_page(principal.tenant_id, principal.user_id, most=limit, after_id=after_id)

    def change(self, account: Account, principal: Principal, key_id: str, change: Callable[[ApiKey], ApiKey]) -> ApiKey:
        """Store what `change` makes of the key's name, models, limits and policy; in force within a minute.

        Raises NotFoundError, ConflictError when the key is dead or was replaced, PermissionDeniedError when it would
        get its first limits and too many keys with limits are counted already.
        """
        for round_number in range(MAX_ROUNDS):
            key = self.find(principal, key_id)
            self._refuse_inactive(key)
            wanted = change(key)
            if key.limits is None and wanted.limits is not None:
                self._refuse_too_many_counted(account, self._clock.now_seconds())
            changed = self._api_keys.change_key(key, wanted)
            if changed is not None:
                return changed
            self._wait(round_number)
        raise StoreUnavailableError("The key is being changed. Try again.")

    def rotate(self, principal: Principal, key_id: str, overlap_seconds: int) -> tuple[MintedKey, ApiKey]:
        """A new key in the place of this one: same limits, same budget, same end; and the old one, with its new end.

        The old key is accepted for `overlap_seconds` more, but never beyond its own end. Raises NotFoundError,
        ConflictError when the key is dead or was replaced already.
        """
        now = datetime.fromtimestamp(self._clock.now_seconds(), UTC)
        for round_number in range(MAX_ROUNDS):
            old = self.find(principal, key_id)
            self._refuse_inactive(old)
            wish = KeyWish(
                old.name,
                old.mode,
                old.expires_at,
                old.allowed_models,
                old.budget_tokens,
                old.requests_per_minute,
                old.burst_requests,
                old.max_tokens_policy,
            )
            minted = self._mint(old.tenant_id, old.user_id, wish, first_id=old.line_id)
            end = overlap_end(old, now, overlap_seconds)
            rotation = self._api_keys.rotate_key(old, minted.key, end)
            if rotation.applied:
                return minted, replace(old, expires_at=end, replaced_by=minted.key.id)
            if rotation.no_account:
                raise NotFoundError("There is no such account any more.")
            self._wait(round_number)
        raise StoreUnavailableError("The key is being changed. Try again.")

    def revoke(self, principal: Principal, key_id: str) -> None:
        """End a key for good; within a minute no process accepts it. Repeating is harmless. Raises NotFoundError."""
        key = self.find(principal, key_id)
        self._api_keys.revoke_key(key.key_hash, self._now())

    def report(self, text: str) -> bool:
        """End a key that somebody found, by its full text. Whether it was one is for our own log only.

        White space around it is not the key's: who copied the end of a line, too, would be told that all is well.
        """
        text = text.strip()
        return is_well_formed(text) and self._api_keys.revoke_key(hash_api_key(text, self._pepper()), self._now())

    # ---- helpers

    def _refuse_inactive(self, key: ApiKey) -> None:
        state = key.state_at(self._clock.now_seconds())
        if state is not KeyState.ACTIVE:
            raise ConflictError(f"The API key is {state.value}.", error_code="key_not_active")

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now_seconds()), UTC)

    def _wait(self, round_number: int) -> None:
        share = 0.5 + self._ids.random_bytes(1)[0] / 510
        self._clock.pause(PAUSE_SECONDS * 2 ** min(round_number, 5) * share)


def _refuse_repetition(creation: Creation, body_sha256: str) -> None:
    if creation.marker is None:
        return
    if creation.marker.body_sha256 != body_sha256:
        raise IdempotencyMismatchError("This idempotency key was used before with another request.")
    raise DuplicateRequestError(
        f"This request made the API key {creation.marker.key_id} before. A key is shown only once: rotate it to get"
        " another one in its place, or delete it."
    )


def _refuse_more_keys(account: Account) -> None:
    plan = account.plan
    raise PermissionDeniedError(
        f"The {plan.name} plan allows {plan.max_api_keys} API keys, and there are as many."
        f" Delete one first. {plan.upgrade_message}".rstrip(),
        error_code="api_key_limit_reached",
    )
