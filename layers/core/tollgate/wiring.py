"""The composition root: real collaborators, built once per container. The only place with a real clock and real ids."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Final

import botocore.session

from tollgate.catalog.loader import load_catalog
from tollgate.config import TOKENS_NEED, Settings, load_settings, needed
from tollgate.domain.sources import Clock, Report
from tollgate.flows.accounts import Accounts
from tollgate.flows.authenticate import Authenticator
from tollgate.flows.ledger import Ledger
from tollgate.providers.cognito import KeySetUrl, SigningKeys, TokenVerifier
from tollgate.providers.secrets import ParameterStore, Secrets
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.meters import Meters
from tollgate.storage.table import Table, hot_path_client
from tollgate.storage.users import Users
from tollgate.telemetry import Telemetry

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class SystemClock:
    """`tollgate.domain.sources.Clock` of this machine; Lambda keeps it within milliseconds of UTC."""

    def now_seconds(self) -> float:
        return time.time()


class SystemIds:
    """`tollgate.domain.sources.IdSource` from the operating system's generator.

    `secrets` draws from the kernel at every call, so ids stay unique when Lambda restores many environments from one
    snapshot.
    """

    def new_id(self, length: int) -> str:
        return "".join(secrets.choice(_BASE62) for _ in range(length))

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)


@dataclass(frozen=True, slots=True)
class AuthTools:
    """What functions/auth works with."""

    clock: Clock
    telemetry: Telemetry
    client_ids: frozenset[str]
    accounts: Accounts


@dataclass(frozen=True, slots=True)
class UsageTools:
    """What functions/usage works with."""

    clock: Clock
    telemetry: Telemetry
    client_ids: frozenset[str]
    accounts: Accounts
    meters: Meters
    ledger: Ledger


def build_auth() -> AuthTools:
    """Raises ConfigurationError when a setting is missing."""
    settings, clock = load_settings(required=TOKENS_NEED), SystemClock()
    return AuthTools(
        clock=clock,
        telemetry=Telemetry(service="auth", stage=settings.stage, clock=clock),
        client_ids=settings.cognito_client_ids,
        accounts=build_accounts(settings, build_table(settings, botocore.session.get_session()), clock),
    )


def build_usage() -> UsageTools:
    """Raises ConfigurationError when a setting is missing."""
    settings, clock = load_settings(required=TOKENS_NEED), SystemClock()
    table = build_table(settings, botocore.session.get_session())
    meters = Meters(table)
    return UsageTools(
        clock=clock,
        telemetry=Telemetry(service="usage", stage=settings.stage, clock=clock),
        client_ids=settings.cognito_client_ids,
        accounts=build_accounts(settings, table, clock),
        meters=meters,
        ledger=Ledger(meters, clock, SystemIds()),
    )


def build_table(settings: Settings, session: botocore.session.Session) -> Table:
    return Table(hot_path_client(settings.aws_region, session=session), settings.table_name)


def build_accounts(settings: Settings, table: Table, clock: Clock) -> Accounts:
    catalog = load_catalog(settings.catalog_name)
    return Accounts(Users(table), catalog, clock, default_plan_id=settings.default_plan_id)


def build_authenticator(
    settings: Settings, table: Table, secrets_of: Secrets, clock: Clock, report: Report
) -> Authenticator:
    """Needs TOKENS_NEED and API_KEYS_NEED; `secrets_of` must hold the pepper."""
    issuer, pepper_parameter = needed(settings.cognito_issuer), needed(settings.key_pepper_parameter)
    keys = SigningKeys(KeySetUrl(needed(settings.cognito_jwks_url), clock), clock, report)
    return Authenticator(
        ApiKeys(table),
        TokenVerifier(issuer=issuer, client_ids=settings.cognito_client_ids, keys=keys, clock=clock),
        lambda: secrets_of.value(pepper_parameter).encode(),
        clock,
        allow_test_keys=settings.allow_test_keys,
    )


def build_secrets(
    settings: Settings, session: botocore.session.Session, names: tuple[str, ...], clock: Clock, report: Report
) -> Secrets:
    """The SSM parameters of these names, read at the first use. Needs AWS_REGION."""
    store = ParameterStore(session, region=needed(settings.aws_region), endpoint_url=settings.ssm_endpoint_url)
    return Secrets(store, names, clock, report)
