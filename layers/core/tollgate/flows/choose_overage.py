"""A user's own say in overage: whether any, and how much in one usage period."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tollgate.domain.errors import PermissionDeniedError, StaleAccountError, StoreUnavailableError
from tollgate.domain.plans import Plan
from tollgate.domain.principals import NANOUSD_PER_CENT, Account, Principal

if TYPE_CHECKING:
    from tollgate.flows.accounts import Accounts
    from tollgate.flows.ledger import Ledger

MAX_ROUNDS: Final = 5


def choose_overage(
    principal: Principal, accounts: Accounts, ledger: Ledger, *, enabled: bool, cap_cents: int | None
) -> Account:
    """In force at the next call. `cap_cents` None: as much as the plan allows.

    Raises PermissionDeniedError (`overage_not_in_plan`) for a plan without overage, unless it is to be switched off;
    StoreUnavailableError.
    """
    for _ in range(MAX_ROUNDS):
        account = accounts.find(principal, fresh=True)
        plan = account.listed_plan
        most_cents = cap_cents_of(plan)
        if enabled and most_cents == 0:
            raise PermissionDeniedError(
                f"The {plan.name} plan has no overage. {plan.upgrade_message}".rstrip(),
                error_code="overage_not_in_plan",
            )
        wanted_cents = (most_cents if cap_cents is None else cap_cents) if enabled else 0
        try:
            ledger.choose_overage(account, wanted_cents)
        except StaleAccountError:
            continue
        return accounts.find(principal, fresh=True)
    raise StoreUnavailableError("This account is being changed at the same moment. Try again.")


def cap_cents_of(plan: Plan) -> int:
    """What all the overage that the plan allows costs, rounded up: the choice must not fall short of it."""
    if plan.hard:
        return 0
    return -(-plan.overage_cap_tokens * plan.overage_price_nanousd_per_token // NANOUSD_PER_CENT)
