"""The API key that a plan issues with its first payment: made when its owner asks for it, and shown that once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tollgate.domain.api_keys import KeyWish
from tollgate.domain.errors import ConflictError, TollgateError
from tollgate.domain.principals import Account
from tollgate.flows.api_keys import KeyRing, MintedKey

if TYPE_CHECKING:
    from tollgate.storage.subscriptions import Subscriptions

NAME: Final = "First key"


def fetch_first_key(account: Account, subscriptions: Subscriptions, keys: KeyRing) -> MintedKey:
    """The key. It is nowhere before this, so nothing can leak that its owner has not seen.

    Raises ConflictError (`first_key_not_due`), and what making a key raises; then it is due still.
    """
    tenant_id, user_id = account.tenant_id, account.user_id
    if not subscriptions.take_first_key(tenant_id, user_id):
        raise ConflictError(
            "No first key is due: the plan issues none, it is not paid yet, or the key was fetched already. Make or"
            " rotate keys at /api-keys.",
            error_code="first_key_not_due",
        )
    try:
        return keys.create(account, KeyWish(NAME))
    except TollgateError:
        subscriptions.give_back_first_key(tenant_id, user_id)
        raise
