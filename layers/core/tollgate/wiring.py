"""The composition root: real collaborators, built once per container. The only place with a real clock and real ids."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import botocore.session

from tollgate.catalog.email_domains import load_email_domains
from tollgate.catalog.loader import Catalog, load_catalog
from tollgate.config import (
    API_KEYS_NEED,
    SIGN_IN_NEEDS,
    STRIPE_NEEDS,
    TOKENS_NEED,
    UPSTREAM_NEEDS,
    WEBHOOK_NEEDS,
    Settings,
    load_settings,
    needed,
)
from tollgate.domain.return_urls import ReturnUrls
from tollgate.domain.sources import Clock, Report, UserReport
from tollgate.flows.accounts import Accounts
from tollgate.flows.api_keys import KeyRing
from tollgate.flows.apply_subscription import SubscriptionSync
from tollgate.flows.authenticate import Authenticator
from tollgate.flows.billing_status import BillingStatuses
from tollgate.flows.change_plan import PlanChanger
from tollgate.flows.checkout import Checkouts
from tollgate.flows.close_account import AccountCloser
from tollgate.flows.count_tokens import TokenCounter
from tollgate.flows.current_usage import find_current_usage
from tollgate.flows.end_billing import end_billing
from tollgate.flows.key_use import KeyUses
from tollgate.flows.ledger import Ledger
from tollgate.flows.note_activity import ActivityNotes
from tollgate.flows.note_overage import OverageNotes
from tollgate.flows.notices import UsageThresholds
from tollgate.flows.open_door import Doorkeeper
from tollgate.flows.personal_data import PersonalData
from tollgate.flows.relay_message import MessageRelay
from tollgate.flows.second_factor import SecondFactor
from tollgate.flows.sign_in import SignIn
from tollgate.flows.sign_up import SignUp
from tollgate.flows.stripe_events import StripeEventFlow
from tollgate.providers.claude import ClaudeApi
from tollgate.providers.cognito import KeySetUrl, SigningKeys, TokenVerifier
from tollgate.providers.cognito_users import UserPool, pool_id_of, user_pool_client
from tollgate.providers.secrets import Secrets, parameter_client
from tollgate.providers.stripe_billing import StripeBilling
from tollgate.providers.stripe_client import StripeDeadline
from tollgate.providers.stripe_queue import EventQueue, queue_client
from tollgate.storage.activity import Activity
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.meters import Meters
from tollgate.storage.notices import Notices
from tollgate.storage.overage import OverageAccounts, OverageMarks
from tollgate.storage.preferences import Preferences
from tollgate.storage.rate_limits import RateLimits
from tollgate.storage.requests import Requests
from tollgate.storage.stripe_events import StripeEvents
from tollgate.storage.subscriptions import Subscriptions
from tollgate.storage.table import Table, hot_path_client
from tollgate.storage.users import Users
from tollgate.telemetry import Telemetry

if TYPE_CHECKING:
    from tollgate.flows.close_period import PeriodCloser
    from tollgate.flows.deliver_notices import NoticeDelivery, Webhook
    from tollgate.flows.message_calls import Standing
    from tollgate.flows.report_overage import DueOverageReport, OverageReporter
    from tollgate.flows.roll_up_usage import UsageRollUps
    from tollgate.flows.usage_reports import UsageReports

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
    stripe_deadline: StripeDeadline
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
    reports: UsageReports


@dataclass(frozen=True, slots=True)
class BillingTools:
    """What functions/billing works with."""

    clock: Clock
    telemetry: Telemetry
    client_ids: frozenset[str]
    catalog: Catalog
    default_plan_id: str
    return_urls: ReturnUrls
    accounts: Accounts
    subscriptions: Subscriptions
    stripe: StripeBilling
    stripe_deadline: StripeDeadline
    checkouts: Checkouts
    plans: PlanChanger
    statuses: BillingStatuses
    meters: Meters
    ledger: Ledger
    keys: KeyRing


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
    reports: Callable[[], UsageReports]
    """Made when somebody asks for a report: what makes them is not loaded at the start."""


@dataclass(frozen=True, slots=True)
class UsageResetTools:
    """What functions/usage_reset works with."""

    clock: Clock
    telemetry: Telemetry
    catalog: Catalog
    activity: Activity
    meters: Meters
    ledger: Ledger
    subscriptions: Subscriptions
    sync: SubscriptionSync
    closer: PeriodCloser
    stripe_deadline: StripeDeadline
    report_overage: Callable[[float], DueOverageReport]
    """Until this instant, epoch seconds."""


@dataclass(frozen=True, slots=True)
class NoticesTools:
    """What functions/notices works with."""

    clock: Clock
    telemetry: Telemetry
    delivery: NoticeDelivery


@dataclass(frozen=True, slots=True)
class StripeWebhookTools:
    """What functions/stripe_webhook works with."""

    clock: Clock
    telemetry: Telemetry
    client_ids: frozenset[str]
    stripe_deadline: StripeDeadline
    events: StripeEventFlow
    signing_secrets: Callable[[], tuple[str, ...]]
    account_id: str | None
    livemode: bool


def build_auth() -> AuthTools:
    """Raises ConfigurationError when a setting is missing."""
    settings = load_settings(required=(*TOKENS_NEED, *API_KEYS_NEED, *SIGN_IN_NEEDS, *STRIPE_NEEDS))
    clock = SystemClock()
    session = botocore.session.get_session()
    telemetry = Telemetry(service="auth", stage=settings.stage, clock=clock)
    table = build_table(settings, session)
    pepper_names = (needed(settings.key_pepper_parameter),)
    secrets_of = build_secrets(settings, session, pepper_names, clock, telemetry.report)
    pool = build_user_pool(settings, session)
    accounts, users, preferences = build_accounts(settings, table, clock), Users(table), Preferences(table)
    meters = Meters(table)
    ledger = Ledger(meters, clock, SystemIds())
    # Read on their own, and only by who closes an account: a deployment that sells nothing need not have Stripe's key.
    stripe_names = (needed(settings.stripe_secret_key_parameter),)
    stripe_keys = build_secrets(settings, session, stripe_names, clock, telemetry.report)
    deadline = StripeDeadline(clock)
    stripe = build_stripe(settings, stripe_keys, deadline)
    flush = build_flush(settings, table, stripe_keys, clock, telemetry, deadline)
    subscriptions = Subscriptions(table)
    closer = AccountCloser(
        accounts,
        users,
        ApiKeys(table),
        preferences,
        pool,
        clock,
        lambda tenant_id, user_id: end_billing(tenant_id, user_id, subscriptions, stripe, flush),
    )
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
        stripe_deadline=deadline,
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
        reports=build_reports(table, load_catalog(settings.catalog_name), clock),
    )


def build_usage_reset() -> UsageResetTools:
    """Raises ConfigurationError when a setting is missing."""
    settings, clock = load_settings(required=STRIPE_NEEDS), SystemClock()
    session = botocore.session.get_session()
    telemetry = Telemetry(service="usage_reset", stage=settings.stage, clock=clock)
    table, names = build_table(settings, session), (needed(settings.stripe_secret_key_parameter),)
    secrets_of = build_secrets(settings, session, names, clock, telemetry.report)
    meters, catalog = Meters(table), load_catalog(settings.catalog_name)
    ledger, deadline = Ledger(meters, clock, SystemIds()), StripeDeadline(clock)
    return UsageResetTools(
        clock=clock,
        telemetry=telemetry,
        catalog=catalog,
        activity=Activity(table),
        meters=meters,
        ledger=ledger,
        closer=build_closer(table, ledger, catalog, clock, telemetry),
        subscriptions=Subscriptions(table),
        sync=build_sync(settings, table, build_stripe(settings, secrets_of, deadline), clock, telemetry),
        stripe_deadline=deadline,
        report_overage=build_overage_run(
            build_reporter(settings, table, secrets_of, clock, telemetry, deadline), table, telemetry.report
        ),
    )


def build_notices() -> NoticesTools:
    """Raises ConfigurationError when a setting is missing."""
    from tollgate.flows.deliver_notices import NoticeDelivery  # noqa: PLC0415  not at the start of the claude function
    from tollgate.providers.mail import SesMailer, mail_client  # noqa: PLC0415

    settings, clock = load_settings(required=("AWS_REGION",)), SystemClock()
    session = botocore.session.get_session()
    telemetry = Telemetry(service="notices", stage=settings.stage, clock=clock)
    table, region = build_table(settings, session), needed(settings.aws_region)
    delivery = NoticeDelivery(
        Notices(table),
        Users(table),
        Preferences(table),
        load_catalog(settings.catalog_name),
        clock,
        telemetry,
        webhook=build_operator_webhook(settings, session, clock, telemetry.report),
        mailer=SesMailer(mail_client(session, region), settings.mail_from) if settings.mail_from else None,
    )
    return NoticesTools(clock, telemetry, delivery)


def build_stripe_webhook() -> StripeWebhookTools:
    """Raises ConfigurationError when a setting is missing."""
    from tollgate.flows.report_overage import OverageFollower  # noqa: PLC0415  not at the start of the claude function

    settings, clock = load_settings(required=(*STRIPE_NEEDS, *WEBHOOK_NEEDS)), SystemClock()
    session = botocore.session.get_session()
    telemetry = Telemetry(service="stripe_webhook", stage=settings.stage, clock=clock)
    table, signing = build_table(settings, session), needed(settings.stripe_webhook_secret_parameter)
    names = (needed(settings.stripe_secret_key_parameter), signing)
    secrets_of = build_secrets(settings, session, names, clock, telemetry.report)
    deadline, queues = StripeDeadline(clock), queue_client(session, needed(settings.aws_region))
    stripe = build_stripe(settings, secrets_of, deadline)
    to_queue = EventQueue(queues, needed(settings.stripe_event_queue_url))
    return StripeWebhookTools(
        clock=clock,
        telemetry=telemetry,
        client_ids=settings.cognito_client_ids,
        stripe_deadline=deadline,
        events=StripeEventFlow(
            StripeEvents(table),
            Subscriptions(table),
            build_sync(settings, table, stripe, clock, telemetry),
            stripe,
            clock,
            SystemIds(),
            telemetry,
            to_queue=to_queue.send,
            to_dead_letters=EventQueue(queues, needed(settings.stripe_event_dlq_url)).send,
            follow_overage=OverageFollower(
                build_reporter(settings, table, secrets_of, clock, telemetry, deadline), to_queue.send
            ).follow,
        ),
        signing_secrets=lambda: tuple(secrets_of.value(signing).split()),
        account_id=settings.stripe_account,
        livemode=settings.stripe_livemode,
    )


def build_billing() -> BillingTools:
    """Raises ConfigurationError when a setting is missing."""
    settings = load_settings(required=(*TOKENS_NEED, *API_KEYS_NEED, *STRIPE_NEEDS))
    clock, session = SystemClock(), botocore.session.get_session()
    telemetry = Telemetry(service="billing", stage=settings.stage, clock=clock)
    table, catalog = build_table(settings, session), load_catalog(settings.catalog_name)
    pepper, stripe_key = needed(settings.key_pepper_parameter), needed(settings.stripe_secret_key_parameter)
    # Two readings: where one of the secrets is missing, what does not need it goes on.
    peppers = build_secrets(settings, session, (pepper,), clock, telemetry.report)
    stripe_keys = build_secrets(settings, session, (stripe_key,), clock, telemetry.report)
    deadline = StripeDeadline(clock)
    stripe = build_stripe(settings, stripe_keys, deadline)
    accounts, subscriptions, meters = build_accounts(settings, table, clock), Subscriptions(table), Meters(table)
    ledger, sync = Ledger(meters, clock, SystemIds()), build_sync(settings, table, stripe, clock, telemetry)
    default_plan_id = catalog.plan(settings.default_plan_id or catalog.default_plan_id).id
    return BillingTools(
        clock=clock,
        telemetry=telemetry,
        client_ids=settings.cognito_client_ids,
        catalog=catalog,
        default_plan_id=default_plan_id,
        return_urls=ReturnUrls(settings.billing_return_urls),
        accounts=accounts,
        subscriptions=subscriptions,
        stripe=stripe,
        stripe_deadline=deadline,
        checkouts=Checkouts(subscriptions, stripe, sync, catalog, clock, SystemIds()),
        plans=PlanChanger(
            subscriptions,
            stripe,
            sync,
            catalog,
            clock,
            SystemIds(),
            build_flush(settings, table, stripe_keys, clock, telemetry, deadline),
            default_plan_id=default_plan_id,
        ),
        statuses=BillingStatuses(accounts, subscriptions, stripe, sync, meters, ledger, clock, telemetry.report),
        meters=meters,
        ledger=ledger,
        keys=KeyRing(
            ApiKeys(table),
            meters,
            catalog,
            lambda: peppers.value(pepper).encode(),
            clock,
            SystemIds(),
            allow_test_keys=settings.allow_test_keys,
        ),
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
            note_active=ActivityNotes(Activity(table), clock, telemetry.report).note,
            note_use=KeyUses(ApiKeys(table), clock, telemetry.report).note,
            note_standing=all_told(
                UsageThresholds(Notices(table), catalog.notices.thresholds_percent, clock, telemetry.report).note,
                OverageNotes(OverageMarks(table), clock, telemetry.report).note,
            ),
        ),
        counter=TokenCounter(upstream, clock),
        reports=lambda: build_reports(table, catalog, clock),
    )


def all_told(*notes: Callable[[Standing], None]) -> Callable[[Standing], None]:
    """One that tells each of these."""

    def tell(standing: Standing) -> None:
        for note in notes:
            note(standing)

    return tell


def build_table(settings: Settings, session: botocore.session.Session) -> Table:
    return Table(hot_path_client(settings.aws_region, session=session), settings.table_name)


def build_operator_webhook(
    settings: Settings, session: botocore.session.Session, clock: Clock, report: Report
) -> Webhook | None:
    """None where no address is set. Needs AWS_REGION, and with an address the parameter of its secrets."""
    from tollgate.providers.operator_webhook import OperatorWebhook  # noqa: PLC0415  as above

    if settings.operator_webhook_url is None:
        return None
    parameter = needed(settings.operator_webhook_secret_parameter)
    secrets_of = build_secrets(settings, session, (parameter,), clock, report)
    return OperatorWebhook(
        settings.operator_webhook_url, lambda: tuple(secrets_of.value(parameter).split()), settings.stage
    )


def build_closer(table: Table, ledger: Ledger, catalog: Catalog, clock: Clock, telemetry: Telemetry) -> PeriodCloser:
    from tollgate.flows.close_period import PeriodCloser  # noqa: PLC0415  not at the start of the claude function
    from tollgate.storage.period_summaries import PeriodSummaries  # noqa: PLC0415

    marks = OverageMarks(table)
    return PeriodCloser(
        meters=Meters(table),
        ledger=ledger,
        roll_ups=build_roll_ups(table, catalog, clock),
        summaries=PeriodSummaries(table),
        users=Users(table),
        catalog=catalog,
        clock=clock,
        journal=telemetry,
        hand_over_overage=lambda meter: marks.put(
            meter.key.tenant_id,
            meter.key.user_id,
            meter.key.period.id,
            datetime.fromtimestamp(int(clock.now_seconds()), UTC),
        ),
    )


def build_roll_ups(table: Table, catalog: Catalog, clock: Clock) -> UsageRollUps:
    from tollgate.flows.roll_up_usage import UsageRollUps  # noqa: PLC0415  not at the start of the claude function
    from tollgate.storage.rollups import DayRollUps  # noqa: PLC0415

    return UsageRollUps(Requests(table), DayRollUps(table), Meters(table), catalog, clock, SystemIds())


def build_reports(table: Table, catalog: Catalog, clock: Clock) -> UsageReports:
    from tollgate.flows.usage_reports import UsageReports  # noqa: PLC0415  not at the start of the claude function

    return UsageReports(build_roll_ups(table, catalog, clock), Requests(table), Meters(table), catalog, clock)


def build_stripe(settings: Settings, secrets_of: Secrets, deadline: StripeDeadline) -> StripeBilling:
    """Needs STRIPE_NEEDS; `secrets_of` must hold Stripe's secret key."""
    parameter = needed(settings.stripe_secret_key_parameter)
    base_url = settings.stripe_api_base_url
    return StripeBilling(lambda: secrets_of.value(parameter), base_url=base_url, deadline=deadline)


def build_reporter(
    settings: Settings,
    table: Table,
    secrets_of: Secrets,
    clock: Clock,
    telemetry: Telemetry,
    deadline: StripeDeadline,
) -> OverageReporter:
    """Needs STRIPE_NEEDS; `secrets_of` must hold Stripe's secret key."""
    from tollgate.flows.report_overage import OverageReporter  # noqa: PLC0415  not at the start of the claude function
    from tollgate.providers.stripe_meter import StripeMeter  # noqa: PLC0415

    parameter = needed(settings.stripe_secret_key_parameter)
    billing = load_catalog(settings.catalog_name).billing
    return OverageReporter(
        OverageAccounts(table),
        Meters(table),
        Subscriptions(table),
        StripeMeter(
            lambda: secrets_of.value(parameter),
            billing.meter_event_name,
            base_url=settings.stripe_api_base_url,
            deadline=deadline,
        ),
        clock,
        SystemIds(),
        telemetry,
        stack=settings.stage,
        late_usage=billing.late_usage,
    )


def build_flush(
    settings: Settings,
    table: Table,
    secrets_of: Secrets,
    clock: Clock,
    telemetry: Telemetry,
    deadline: StripeDeadline,
) -> Callable[[str, str], None]:
    """Of a tenant's user; what does it is loaded for the first one. Needs what `build_reporter` needs."""

    def flush(tenant_id: str, user_id: str) -> None:
        from tollgate.flows.flush_overage import flush_overage  # noqa: PLC0415  few requests need it

        reporter = build_reporter(settings, table, secrets_of, clock, telemetry, deadline)
        flush_overage(tenant_id, user_id, reporter, telemetry.report)

    return flush


def build_overage_run(
    reporter: OverageReporter, table: Table, report: UserReport
) -> Callable[[float], DueOverageReport]:
    """The part of the scheduled job that reports overage, until the instant that it is given."""
    from tollgate.flows.report_overage import report_due_overage  # noqa: PLC0415  not at the start of the claude function

    accounts, marks = OverageAccounts(table), OverageMarks(table)
    return lambda deadline_at_seconds: report_due_overage(
        accounts=accounts, marks=marks, reporter=reporter, report=report, deadline_at_seconds=deadline_at_seconds
    )


def build_sync(
    settings: Settings, table: Table, stripe: StripeBilling, clock: Clock, telemetry: Telemetry
) -> SubscriptionSync:
    return SubscriptionSync(
        Subscriptions(table),
        Users(table),
        Ledger(Meters(table), clock, SystemIds()),
        stripe,
        load_catalog(settings.catalog_name),
        clock,
        SystemIds(),
        telemetry,
        default_plan_id=settings.default_plan_id,
    )


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
