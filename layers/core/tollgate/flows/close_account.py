"""Delete an account: the person goes, the books stay. Each step may be repeated, and every call does them all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tollgate.domain.sources import Clock

if TYPE_CHECKING:
    from tollgate.domain.principals import Principal
    from tollgate.flows.accounts import Accounts
    from tollgate.providers.cognito_users import UserPool
    from tollgate.storage.api_keys import ApiKeys
    from tollgate.storage.preferences import Preferences
    from tollgate.storage.users import Users


class AccountCloser:
    """Ends accounts. What was used stays under the user's id, which nothing connects with a person any more."""

    def __init__(
        self,
        accounts: Accounts,
        users: Users,
        api_keys: ApiKeys,
        preferences: Preferences,
        pool: UserPool,
        clock: Clock,
        end_billing: Callable[[str, str], None],
    ) -> None:
        """`end_billing`: of a tenant's user, `tollgate.flows.end_billing`."""
        self._accounts = accounts
        self._users = users
        self._api_keys = api_keys
        self._preferences = preferences
        self._pool = pool
        self._clock = clock
        self._end_billing = end_billing

    def close(self, principal: Principal) -> None:
        """The account is gone when this returns; after an error, calling again (or signing in) goes on with it.

        What is paid for comes first: while Stripe does not answer, nothing is deleted, because nobody must pay for an
        account that is gone. Then the shell of the profile: from then on no credential is served, whatever else fails.
        The user pool comes last, because without it nobody could sign in to call again.
        Raises StoreUnavailableError, StripeUnavailableError, StripeRefusedError, SignInUnavailableError,
        RateLimitedError.
        """
        tenant_id, user_id = principal.tenant_id, principal.user_id
        # Also for somebody who never called: a token that is still valid must find the shell, not nothing.
        self._accounts.find_any(principal, fresh=True)
        self._end_billing(tenant_id, user_id)
        now = datetime.fromtimestamp(int(self._clock.now_seconds()), UTC)
        self._users.bury_profile(tenant_id, user_id, now)
        for key in self._api_keys.list_keys(tenant_id, user_id):
            self._api_keys.forget_key(key.key_hash, now)
        self._preferences.delete_preferences(tenant_id, user_id)
        self._pool.delete(user_id)
        # So that this container, too, answers by the shell.
        self._accounts.find_any(principal, fresh=True)
