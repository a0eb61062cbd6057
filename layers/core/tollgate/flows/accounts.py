"""The account behind a principal: its profile, made at the first call, with the plan resolved."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tollgate.domain.caches import AgingCache
from tollgate.domain.errors import AuthenticationError
from tollgate.domain.principals import Account, Principal, Profile
from tollgate.domain.sources import Clock

if TYPE_CHECKING:
    from tollgate.catalog.loader import Catalog
    from tollgate.storage.users import Users

CACHE_SECONDS: Final = 60
"""A plan change is not waited for: the ledger notices a newer version on the meter and asks with fresh=True."""
CACHE_ENTRIES: Final = 1024
FIRST_PLAN_VERSION: Final = 1


class Accounts:
    """Finds accounts. Plan and tenant come from our table only, whatever a credential claims."""

    def __init__(
        self,
        users: Users,
        catalog: Catalog,
        clock: Clock,
        *,
        default_plan_id: str | None = None,
        cache_entries: int = CACHE_ENTRIES,
        cache_seconds: float = CACHE_SECONDS,
    ) -> None:
        """`default_plan_id`: a new user's plan; None: the catalog's own default. Raises CatalogError: no such plan."""
        self._users = users
        self._catalog = catalog
        self._clock = clock
        self._default_plan_id = catalog.plan(default_plan_id or catalog.default_plan_id).id
        self._cache: AgingCache[tuple[str, str], Account] = AgingCache(
            max_entries=cache_entries, max_age_seconds=cache_seconds
        )

    def find(self, principal: Principal, *, fresh: bool = False) -> Account:
        """The caller's account, at most a minute old, or read now when `fresh`.

        A user seen for the first time gets a profile with the default plan; two first calls at once agree on one.
        Raises StoreUnavailableError; AuthenticationError when the account was deleted, however valid the credential
        still is; CatalogError when the catalog no longer has the user's plan.
        """
        account = self.find_any(principal, fresh=fresh)
        if account.profile.deleted_at is not None:
            raise AuthenticationError("The account was deleted.", error_code="account_deleted")
        return account

    def find_any(self, principal: Principal, *, fresh: bool = False) -> Account:
        """The same, deleted or not: for those who finish a deletion."""
        now = self._clock.now_seconds()
        key = (principal.tenant_id, principal.user_id)
        known = None if fresh else self._cache.get(key, now)
        if known is not None:
            return known
        profile = self._users.find_profile(*key) or self._users.create_profile(self._new_profile(principal, now))
        account = Account.of(profile, self._catalog.plan(profile.plan_id))
        self._cache.put(key, account, now)
        return account

    def _new_profile(self, principal: Principal, now_seconds: float) -> Profile:
        return Profile(
            tenant_id=principal.tenant_id,
            user_id=principal.user_id,
            plan_id=self._default_plan_id,
            plan_version=FIRST_PLAN_VERSION,
            # Stored in whole seconds; the copy in hand must equal the stored one.
            anchor_at=datetime.fromtimestamp(int(now_seconds), UTC),
        )
