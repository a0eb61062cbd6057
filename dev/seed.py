"""Demo data, made through the product's own storage and ledger: a user on Pro, and one with hardly any quota left."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from dev.provision import Remembered
from tollgate.catalog.loader import Catalog
from tollgate.domain.api_keys import ApiKey, KeyMode, hash_api_key, mint_api_key
from tollgate.domain.ledger import Ask, MeterKey, Settlement
from tollgate.domain.periods import period_at
from tollgate.domain.plans import Plan
from tollgate.domain.principals import Account, Profile
from tollgate.domain.tokens import TokenCounts
from tollgate.flows.ledger import Ledger
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.meters import Meters
from tollgate.storage.table import Table
from tollgate.storage.users import Users
from tollgate.wiring import SystemClock, SystemIds

TENANT_ID: Final = "main"
PASSWORD: Final = "tollgate-local-only"
NEARLY_USED_THOUSANDTHS: Final = 994
"""Of a quota of 100,000 tokens this leaves 600: enough for a short answer, not for the next one."""


@dataclass(frozen=True, slots=True)
class DemoUser:
    """One seeded user as the banner and stack.json show it."""

    label: str
    email: str
    user_id: str
    api_key: str
    plan: Plan
    settled_tokens: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """A user to seed."""

    label: str
    email: str
    plan_id: str
    used_thousandths: int


def wanted_users(catalog: Catalog) -> tuple[Wanted, Wanted]:
    """The demo user on Pro (or the catalog's dearest plan) and the near-quota one on the default plan."""
    dearest = max(catalog.plans.values(), key=lambda plan: plan.price_cents).id
    paid = "pro" if "pro" in catalog.plans else dearest
    return (
        Wanted("demo", "demo@example.com", paid, 0),
        Wanted("nearly", "nearly@example.com", catalog.default_plan_id, NEARLY_USED_THOUSANDTHS),
    )


def seed_user(table: Table, catalog: Catalog, remembered: Remembered, wanted: Wanted, user_id: str) -> DemoUser:
    """Profile, key and usage of one user; whatever is there already stays as it is."""
    now = datetime.now(UTC)
    profile = Users(table).create_profile(
        Profile(
            tenant_id=TENANT_ID,
            user_id=user_id,
            plan_id=wanted.plan_id,
            plan_version=1,
            anchor_at=now,
            email=wanted.email,
        )
    )
    account = Account.of(profile, catalog.plan(profile.plan_id))
    api_key = _ensure_key(ApiKeys(table), remembered, wanted, user_id)
    settled = _ensure_used(Meters(table), account, wanted.used_thousandths, now)
    return DemoUser(wanted.label, wanted.email, user_id, api_key, account.plan, settled)


def common_model(catalog: Catalog, users: tuple[DemoUser, ...]) -> str:
    """A model that every demo user may call, so that the pasted line works with either key."""
    allowed = [name for name in catalog.models if all(user.plan.allows_model(name) for user in users)]
    return allowed[0] if allowed else next(iter(catalog.models))


def _ensure_key(keys: ApiKeys, remembered: Remembered, wanted: Wanted, user_id: str) -> str:
    pepper = remembered.pepper.encode()
    text = remembered.api_keys.get(wanted.email, "")
    stored = keys.find_key(hash_api_key(text, pepper)) if text else None
    if stored is not None and stored.user_id == user_id:
        return text
    if stored is not None or not text:  # none yet, or the pool was made anew and the key is of a user who is gone
        text = mint_api_key(KeyMode.TEST, secrets.token_bytes(32))
        remembered.api_keys[wanted.email] = text
    keys.put_key(
        ApiKey(
            id=SystemIds().new_id(12),
            key_hash=hash_api_key(text, pepper),
            tenant_id=TENANT_ID,
            user_id=user_id,
            mode=KeyMode.TEST,
            last_four=text[-4:],
            created_at=datetime.now(UTC),
            name=f"{wanted.label} key of the local stack",
        )
    )
    return text


def _ensure_used(meters: Meters, account: Account, thousandths: int, now: datetime) -> int:
    """Books use until this share of the quota is settled; how many tokens are settled then."""
    plan = account.plan
    key = MeterKey(account.tenant_id, account.user_id, period_at(plan.period_kind, account.profile.anchor_at, now))
    meter = meters.find(key)
    settled = 0 if meter is None else meter.settled_tokens
    missing = (plan.quota_tokens or 0) * thousandths // 1000 - settled
    if missing <= 0:
        return settled
    # One large call instead of many small ones; the plan's rate limit is for callers.
    unhurried = replace(account, plan=replace(plan, requests_per_minute=None))
    ledger = Ledger(meters, SystemClock(), SystemIds())
    grant = ledger.reserve(
        unhurried,
        key,
        Ask(
            prompt_bound_tokens=missing,
            output_tokens=0,
            output_weight=1000,
            may_clamp=False,
            deadline_at_seconds=time.time() + 60,
        ),
    )
    ledger.settle(grant, Settlement(used_tokens=missing, counts=TokenCounts(input_tokens=missing)))
    return settled + missing
