"""The composition root: real collaborators, built once per container. The only place with a real clock and real ids."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Final

import botocore.session

from tollgate.catalog.email_domains import load_email_domains
from tollgate.catalog.loader import Catalog, load_catalog
from tollgate.config import (
    API_KEYS_NEED,
    SIGN_IN_NEEDS,
    TOKENS_NEED,
    UPSTREAM_NEEDS,
    Settings,
    load_settings,
    needed,
)
from tollgate.domain.sources import Clock, Report
from tollgate.flows.accounts import Accounts
from tollgate.flows.api_keys import KeyRing
from tollgate.flows.authenticate import Authenticator
from tollgate.flows.close_account import AccountCloser
from tollgate.flows.count_tokens import TokenCounter
from tollgate.flows.current_usage import find_current_usage
from tollgate.flows.key_use import KeyUses
from tollgate.flows.ledger import Ledger
from tollgate.flows.open_door import Doorkeeper
from tollgate.flows.personal_data import PersonalData
from tollgate.flows.relay_message import MessageRelay
from tollgate.flows.second_factor import SecondFactor
from tollgate.flows.sign_in import SignIn
from tollgate.flows.sign_up import SignUp
from tollgate.providers.claude import ClaudeApi
from tollgate.providers.cognito import KeySetUrl, SigningKeys, TokenVerifier
from tollgate.providers.cognito_users import UserPool, pool_id_of, user_pool_client
from tollgate.providers.secrets import Secrets, parameter_client
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.meters import Meters
from tollgate.storage.preferences import Preferences
from tollgate.storage.rate_limits import RateLimits
from tollgate.storage.requests import Requests
from tollgate.storage.table import Table, hot_path_client
from tollgate.storage.users import Users
from tollgate.telemetry import Telemetry

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class SystemClock:
    """`tollgate.domain.sources.Clock` of this machine; Lambda keeps it within milliseconds of UTC."""

    def now_seconds(self) -> float:
        return time.time()

    def pause(self, wait_seconds: float) -> None:
        time.sleep(wait_seconds)


class SystemIds:
    """`tollgate.domain.sources.IdSource` from the operating system's generator.

    `secrets` draws from the kernel at every call, so ids stay unique when Lambda restores many environments from one
    snapshot.
    """

    def new_id(self, length: int) -> str:
        # One draw instead of one a character. A byte for less than six bits leaves a bias no one can measure.
        number = int.from_bytes(secrets.token_bytes(length + 2))
        characters = []
        for _ in range(length):
            number, digit = divmod(number, len(_BASE62))
            characters.append(_BASE62[digit])
        return "".join(characters)

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)


@dataclass(frozen=True, slots=True)
class AuthTools:
    """What functions/auth works with."""

    clock: Clock
    telemetry: Telemetry
    client_ids: frozenset[str]
    door: Doorkeeper
    sign_up: SignUp
    sign_in: SignIn
    second_factor: SecondFactor
    closer: AccountCloser
    personal_data: PersonalData


@dataclass(frozen=True, slots=True)
class PreTokenGenerationTools:
    """What functions/pre_token_generation works with."""

    telemetry: Telemetry
    users: Users
    default_plan_id: str
    """Plan of a user who has no profile yet."""


@dataclass(frozen=True, slots=True)
class ApiKeysTools:
    """What functions/api_keys works with."""

    clock: Clock
    telemetry: Telemetry
    client_ids: frozenset[str]
    accounts: Accounts
    keys: KeyRing
    door: Doorkeeper


@dataclass(frozen=True, slots=True)
class UsageTools:
    """What functions/usage works with."""

    clock: Clock
    telemetry: Telemetry
    client_ids: frozenset[str]
    accounts: Accounts
    meters: Meters
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class ClaudeTools:
    """What functions/claude works with."""

    clock: Clock
    telemetry: Telemetry
    max_body_bytes: int
    catalog: Catalog
    authenticator: Authenticator
    accounts: Accounts
    meters: Meters
    ledger: Ledger
    relay: MessageRelay
    counter: TokenCounter


@dataclass(frozen=True, slots=True)
class UsageResetTools:
    """What functions/usage_reset works with."""

    clock: Clock
    telemetry: Telemetry
    catalog: Catalog
    meters: Meters
    ledger: Ledger


def build_auth() -> AuthTools:
    """Raises ConfigurationError when a setting is missing."""
    settings, clock = load_settings(required=(*TOKENS_NEED, *API_KEYS_NEED, *SIGN_IN_NEEDS)), SystemClock()
    session = botocore.session.get_session()
    telemetry = Telemetry(service="auth", stage=settings.stage, clock=clock)
    table = build_table(settings, session)
    pepper_names = (needed(settings.key_pepper_parameter),)
    secrets_of = build_secrets(settings, session, pepper_names, clock, telemetry.report)
    pool = build_user_pool(settings, session)
    accounts, users, preferences = build_accounts(settings, table, clock), Users(table), Preferences(table)
    meters = Meters(table)
    ledger = Ledger(meters, clock, SystemIds())
    closer = AccountCloser(accounts, users, ApiKeys(table), preferences, pool, clock)
    return AuthTools(
        clock=clock,
        telemetry=telemetry,
        client_ids=settings.cognito_client_ids,
        door=build_doorkeeper(settings, table, secrets_of, clock),
        sign_up=SignUp(pool, clock, SystemIds(), telemetry.report),
        sign_in=SignIn(
            pool,
            accounts,
            users,
            closer,
            lambda account: find_current_usage(account, meters, ledger, clock),
            telemetry.report,
            client_id=needed(settings.cognito_client_id),
        ),
        second_factor=SecondFactor(pool),
        closer=closer,
        personal_data=PersonalData(accounts, users, preferences),
    )


def build_pre_token_generation() -> PreTokenGenerationTools:
    """Raises ConfigurationError when a setting is missing."""
    settings, clock = load_settings(required=("AWS_REGION",)), SystemClock()
    # Cognito waits five seconds and asks three times; a second try of ours would come after it has given up.
    client = hot_path_client(settings.aws_region, session=botocore.session.get_session(), attempts=1)
    catalog = load_catalog(settings.catalog_name)
    return PreTokenGenerationTools(
        telemetry=Telemetry(service="pre_token_generation", stage=settings.stage, clock=clock),
        users=Users(Table(client, settings.table_name)),
        default_plan_id=catalog.plan(settings.default_plan_id or catalog.default_plan_id).id,
    )


def build_api_keys() -> ApiKeysTools:
    """Raises ConfigurationError when a setting is missing."""
    settings, clock = load_settings(required=(*TOKENS_NEED, *API_KEYS_NEED)), SystemClock()
    session = botocore.session.get_session()
    telemetry = Telemetry(service="api_keys", stage=settings.stage, clock=clock)
    table, pepper_parameter = build_table(settings, session), needed(settings.key_pepper_parameter)
    secrets_of = build_secrets(settings, session, (pepper_parameter,), clock, telemetry.report)
    return ApiKeysTools(
        clock=clock,
        telemetry=telemetry,
        client_ids=settings.cognito_client_ids,
        accounts=build_accounts(settings, table, clock),
        keys=KeyRing(
            ApiKeys(table),
            Meters(table),
            load_catalog(settings.catalog_name),
            lambda: secrets_of.value(pepper_parameter).encode(),
            clock,
            SystemIds(),
            allow_test_keys=settings.allow_test_keys,
        ),
        door=build_doorkeeper(settings, table, secrets_of, clock),
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


def build_usage_reset() -> UsageResetTools:
    """Raises ConfigurationError when a setting is missing."""
    settings, clock = load_settings(), SystemClock()
    meters = Meters(build_table(settings, botocore.session.get_session()))
    return UsageResetTools(
        clock=clock,
        telemetry=Telemetry(service="usage_reset", stage=settings.stage, clock=clock),
        catalog=load_catalog(settings.catalog_name),
        meters=meters,
        ledger=Ledger(meters, clock, SystemIds()),
    )


def build_claude() -> ClaudeTools:
    """Raises ConfigurationError when a setting is missing."""
    settings, clock = load_settings(required=(*TOKENS_NEED, *API_KEYS_NEED, *UPSTREAM_NEEDS)), SystemClock()
    session = botocore.session.get_session()
    telemetry = Telemetry(service="claude", stage=settings.stage, clock=clock)
    table, catalog = build_table(settings, session), load_catalog(settings.catalog_name)
    upstream_key = needed(settings.upstream_api_key_parameter)
    names = (needed(settings.key_pepper_parameter), upstream_key)
    secrets_of = build_secrets(settings, session, names, clock, telemetry.report)
    accounts = build_accounts(settings, table, clock)
    meters = Meters(table)
    ledger = Ledger(meters, clock, SystemIds())
    upstream = ClaudeApi(settings.upstream_base_url, lambda: secrets_of.value(upstream_key), clock)
    return ClaudeTools(
        clock=clock,
        telemetry=telemetry,
        max_body_bytes=settings.max_body_bytes,
        catalog=catalog,
        authenticator=build_authenticator(settings, table, secrets_of, clock, telemetry.report),
        accounts=accounts,
        meters=meters,
        ledger=ledger,
        relay=MessageRelay(
            accounts=accounts,
            catalog=catalog,
            ledger=ledger,
            upstream=upstream,
            requests=Requests(table),
            clock=clock,
            journal=telemetry,
            note_use=KeyUses(ApiKeys(table), clock, telemetry.report).note,
        ),
        counter=TokenCounter(upstream, clock),
    )


def build_table(settings: Settings, session: botocore.session.Session) -> Table:
    return Table(hot_path_client(settings.aws_region, session=session), settings.table_name)


def build_user_pool(settings: Settings, session: botocore.session.Session) -> UserPool:
    """Needs TOKENS_NEED, SIGN_IN_NEEDS and AWS_REGION."""
    return UserPool(
        user_pool_client(session, needed(settings.aws_region)),
        pool_id=pool_id_of(needed(settings.cognito_issuer)),
        client_id=needed(settings.cognito_client_id),
    )


def build_accounts(settings: Settings, table: Table, clock: Clock) -> Accounts:
    catalog = load_catalog(settings.catalog_name)
    return Accounts(Users(table), catalog, clock, default_plan_id=settings.default_plan_id)


def build_authenticator(
    settings: Settings, table: Table, secrets_of: Secrets, clock: Clock, report: Report
) -> Authenticator:
    """Needs TOKENS_NEED and API_KEYS_NEED; `secrets_of` must hold the pepper."""
    issuer, pepper_parameter = needed(settings.cognito_issuer), needed(settings.key_pepper_parameter)
    keys = SigningKeys(KeySetUrl(needed(settings.cognito_jwks_url), clock).fetch, clock, report)
    return Authenticator(
        ApiKeys(table),
        TokenVerifier(issuer=issuer, client_ids=settings.cognito_client_ids, keys=keys, clock=clock),
        lambda: secrets_of.value(pepper_parameter).encode(),
        clock,
        allow_test_keys=settings.allow_test_keys,
    )


def build_doorkeeper(settings: Settings, table: Table, secrets_of: Secrets, clock: Clock) -> Doorkeeper:
    """The limits of the open routes. Needs API_KEYS_NEED; `secrets_of` must hold the pepper."""
    pepper_parameter = needed(settings.key_pepper_parameter)
    return Doorkeeper(
        RateLimits(table),
        load_email_domains(settings.disposable_domains_file),
        lambda: secrets_of.value(pepper_parameter).encode(),
        clock,
        percent=settings.open_route_rate_percent,
    )


def build_secrets(
    settings: Settings, session: botocore.session.Session, names: tuple[str, ...], clock: Clock, report: Report
) -> Secrets:
    """The SSM parameters of these names, read at the first use. Needs AWS_REGION."""
    return Secrets(parameter_client(session, needed(settings.aws_region)), names, clock, report)
