"""What users tell about themselves and what their apps remember for them: stored only while there is an account."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollgate.domain.errors import AuthenticationError

if TYPE_CHECKING:
    from tollgate.domain.principals import Account, Person, Principal
    from tollgate.flows.accounts import Accounts
    from tollgate.storage.preferences import Preferences
    from tollgate.storage.users import Users


class PersonalData:
    """Every operation raises AuthenticationError `account_deleted` for an account that was deleted."""

    def __init__(self, accounts: Accounts, users: Users, preferences: Preferences) -> None:
        self._accounts = accounts
        self._users = users
        self._preferences = preferences

    def person(self, principal: Principal) -> tuple[Account, Person]:
        account = self._accounts.find(principal, fresh=True)
        return account, self._users.find_person(principal.tenant_id, principal.user_id)

    def put_person(self, principal: Principal, person: Person) -> Account:
        """Replace all of it."""
        account = self._accounts.find(principal, fresh=True)
        if not self._users.put_person(principal.tenant_id, principal.user_id, person):
            raise _deleted()
        return account

    def preferences(self, principal: Principal) -> str:
        """The document's text; `{}` until one is put."""
        self._accounts.find(principal, fresh=True)
        return self._preferences.find_preferences(principal.tenant_id, principal.user_id) or "{}"

    def put_preferences(self, principal: Principal, document: str) -> None:
        """Replace it."""
        self._accounts.find(principal, fresh=True)
        if not self._preferences.put_preferences(principal.tenant_id, principal.user_id, document):
            raise _deleted()


def _deleted() -> AuthenticationError:
    return AuthenticationError("The account was deleted.", error_code="account_deleted")
