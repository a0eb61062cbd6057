"""`tollgate doctor`: looks a deployment over, and says for each thing what would mend it. Status 1 when one is wrong.

Reads only. It needs more rights than any function has, which is why no function does this. Secrets are read to be
tried, and never printed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.markup import escape

from tollgate.config import ConfigurationError, load_settings
from tollgate.domain.errors import TollgateError
from tollgate.domain.stripe_events import SNAPSHOT_TYPES
from tollgate.providers.secrets import MAX_NAMES, is_one_line
from tollgate.providers.stripe_client import API_VERSION
from tollgate.providers.stripe_reports import StripeReports
from tollgate_cli.deployment import Deployment, deployed
from tollgate_cli.figures import table_of
from tollgate_cli.output import FAILED, CommandError, aside, console, print_json

SECONDS: Final = 10
MOST_SKEW_SECONDS: Final = 5
"""What the ledger assumes of two clocks (tollgate.domain.ledger.SKEW_SECONDS)."""
OPTIONAL_SECRETS: Final = {"OPERATOR_WEBHOOK_SECRET_PARAMETER": "OPERATOR_WEBHOOK_URL"}
"""Only needed where the other variable is set."""
STRIPE_SECRETS: Final = ("STRIPE_SECRET_KEY_PARAMETER", "STRIPE_WEBHOOK_SECRET_PARAMETER")
_MARKS: Final = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]fail[/]", "skip": "[dim]skip[/]"}


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    about: str
    text: str
    remedy: str = ""


@deployed
def doctor(
    deployment: Deployment,
    strict: Annotated[bool, typer.Option("--strict", help="Status 1 for warnings too.")] = False,
) -> None:
    """Check a deployment: settings, table, secrets, Stripe, sign-in, Claude's key, clocks, queues and schedules."""
    patient = Patient(deployment)
    found: list[Finding] = []
    for name, look in patient.looks:
        with aside().status(f"Looking at {name} …"):
            found += _findings(name, look)
    if deployment.as_json:
        print_json({"findings": [asdict(each) for each in found], "ok": not _bad(found, strict=strict)})
    else:
        rows = [(_MARKS[each.level], escape(each.about), escape(each.text) + _remedy(each)) for each in found]
        console().print(table_of(f"Stack {deployment.stack or '(none named)'}", ("", "What", "Finding"), rows))
    if _bad(found, strict=strict):
        raise typer.Exit(FAILED)


def _remedy(finding: Finding) -> str:
    return f"\n[dim]→ {escape(finding.remedy)}[/]" if finding.remedy else ""


def _bad(found: list[Finding], *, strict: bool) -> bool:
    return any(each.level is Level.FAIL or (strict and each.level is Level.WARN) for each in found)


def _findings(name: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """One look; what stands in its way is a finding too, and does not stop the others."""
    try:
        return list(look())
    except CommandError as error:
        return [Finding(Level.SKIP, name, str(error))]
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unnamed")
        return [Finding(Level.FAIL, name, f"AWS refused {error.operation_name}: {code}", "Check region and rights.")]
    except BotoCoreError as error:
        return [Finding(Level.FAIL, name, f"AWS did not answer: {type(error).__name__}", "Check region and network.")]
    except TollgateError as error:
        told = getattr(error, "stripe_code", None)
        return [Finding(Level.FAIL, name, f"{error.public_message}{f' ({told})' if told else ''}")]


@dataclass(frozen=True)
class _Parameter:
    """One of SSM's, as stored."""

    encrypted: bool
    value: str = field(repr=False)


class Patient:
    """The deployment, with what several looks need."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    @property
    def looks(self) -> list[tuple[str, Callable[[], Iterator[Finding]]]]:
        return [
            ("stack", self.stack),
            ("settings", self.functions),
            ("catalog", self.catalog),
            ("table", self.table),
            ("secrets", self.secrets),
            ("sign-in", self.sign_in),
            ("Claude", self.claude),
            ("HTTP API", self.http_api),
            ("Stripe", self.stripe),
            ("queues", self.queues),
            ("schedules", self.schedules),
            ("notices", self.notices),
            ("mail", self.mail),
        ]

    # ---- what several looks need

    @cached_property
    def resources(self) -> list[dict[str, str]]:
        """Of the stack. Raises CommandError without one."""
        if self._deployment.stack is None:
            raise CommandError("Needs the stack's name (--stack).")
        pages = self._deployment.client("cloudformation").get_paginator("list_stack_resources")
        return [
            resource
            for page in pages.paginate(StackName=self._deployment.stack)
            for resource in page["StackResourceSummaries"]
        ]

    def of_type(self, kind: str) -> dict[str, str]:
        """Logical to physical id."""
        found = (each for each in self.resources if each["ResourceType"] == kind)
        return {each["LogicalResourceId"]: each.get("PhysicalResourceId", "") for each in found}

    @cached_property
    def environments(self) -> dict[str, dict[str, str]]:
        """Variables of each function, by logical id."""
        client = self._deployment.client("lambda")
        return {
            name: client.get_function_configuration(FunctionName=physical).get("Environment", {}).get("Variables", {})
            for name, physical in self.of_type("AWS::Lambda::Function").items()
        }

    @cached_property
    def settings(self) -> dict[str, str]:
        """All functions' variables together."""
        return {name: value for each in self.environments.values() for name, value in each.items() if value}

    def secret(self, variable: str) -> str:
        """Raises CommandError when there is none."""
        name = self.settings.get(variable)
        found = self._parameters([name]).get(name) if name else None
        if found is None or not found.value:
            raise CommandError(f"There is no secret behind {variable}.")
        if not is_one_line(found.value):
            # Nothing may be asked with it: the error would quote it.
            raise CommandError(f"{name} is not one line of printable ASCII.")
        return found.value

    def _parameters(self, names: Collection[str]) -> dict[str, _Parameter]:
        """Those that are there, by name. SSM takes ten names at once."""
        client, wanted = self._deployment.client("ssm"), sorted(set(names))
        answers = [
            client.get_parameters(Names=wanted[start : start + MAX_NAMES], WithDecryption=True)
            for start in range(0, len(wanted), MAX_NAMES)
        ]
        return {
            str(each["Name"]): _Parameter(each["Type"] == "SecureString", str(each["Value"]).strip())
            for answer in answers
            for each in answer["Parameters"]
        }

    # ---- looks

    def stack(self) -> Iterator[Finding]:
        if self._deployment.stack is None:
            raise CommandError("Needs the stack's name (--stack).")
        answer = self._deployment.client("cloudformation").describe_stacks(StackName=self._deployment.stack)
        status = str(answer["Stacks"][0]["StackStatus"])
        good = status.endswith("_COMPLETE") and "ROLLBACK" not in status and "DELETE" not in status
        yield Finding(
            Level.OK if good else Level.FAIL, "stack", status, "" if good else "Look at the stack's events, and deploy."
        )
        missing = sorted({"STAGE", "TABLE_NAME", "COGNITO_ISSUER"} - self.settings.keys())
        yield (
            Finding(Level.FAIL, "settings", f"No function has {', '.join(missing)}.", "Deploy the template anew.")
            if missing
            else Finding(Level.OK, "settings", f"Stage {self.settings['STAGE']}, {len(self.environments)} functions")
        )
        if self.settings.get("STAGE") == "prod" and self.settings.get("ALLOW_TEST_KEYS") == "true":
            yield Finding(Level.FAIL, "settings", "Test keys are accepted on prod.", "Deploy with AllowTestKeys=false.")

    def functions(self) -> Iterator[Finding]:
        """Whether each would start with its variables. Their own refusal names settings, and no value."""
        refused: dict[str, list[str]] = {}
        for name, variables in sorted(self.environments.items()):
            try:
                load_settings(variables)
            except ConfigurationError as error:
                refused.setdefault(str(error), []).append(name)
        for text, names in refused.items():
            yield Finding(Level.FAIL, "settings", f"{', '.join(names)}: {text}", "Deploy with other parameters.")
        if not refused:
            yield Finding(Level.OK, "settings", "every function can start with its own")

    def catalog(self) -> Iterator[Finding]:
        """By name: the path of a folder is another one here than in a function."""
        theirs, ours = self.settings.get("CATALOG", "default"), self._deployment.catalog.name
        yield _either(
            theirs.rstrip("/").rpartition("/")[2] == ours,
            "catalog",
            f"{ours}, as in the functions",
            f"the functions have {theirs}, this command has {ours}",
            "Name theirs with --catalog: this command takes plans and prices from it.",
            worst=Level.WARN,
        )

    def table(self) -> Iterator[Finding]:
        table = self._deployment.table
        described = table.client.describe_table(TableName=table.name)["Table"]
        indexes = {str(each["IndexName"]): each for each in described.get("GlobalSecondaryIndexes", [])}
        status = str(described["TableStatus"])
        yield Finding(Level.OK if status == "ACTIVE" else Level.FAIL, "table", f"{table.name}: {status}")
        index = indexes.get("GSI1")
        index_status = "missing" if index is None else str(index.get("IndexStatus", "ACTIVE"))
        yield Finding(
            Level.OK if index_status == "ACTIVE" else Level.FAIL,
            "index",
            f"GSI1: {index_status}",
            "" if index_status == "ACTIVE" else "Without it nothing due is found: deploy the template anew.",
        )
        ttl = table.client.describe_time_to_live(TableName=table.name)["TimeToLiveDescription"]
        expires = ttl.get("TimeToLiveStatus") == "ENABLED" and ttl.get("AttributeName") == "expires_at"
        yield _either(expires, "expiry", "by expires_at", "is off: the table only grows", "Deploy the template anew.")
        backups = table.client.describe_continuous_backups(TableName=table.name)["ContinuousBackupsDescription"]
        status = backups.get("PointInTimeRecoveryDescription", {}).get("PointInTimeRecoveryStatus", "DISABLED")
        yield _either(
            status == "ENABLED",
            "backup",
            "can be restored to any second",
            "no point-in-time recovery",
            "Deploy the template anew.",
            worst=Level.WARN,
        )

    def secrets(self) -> Iterator[Finding]:
        names = {
            variable: name
            for variable, name in sorted(self.settings.items())
            if variable.endswith("_PARAMETER") and self.settings.get(OPTIONAL_SECRETS.get(variable, variable))
        }
        if not names:
            raise CommandError("No function names a secret.")
        found = self._parameters(names.values())
        for variable, name in names.items():
            if name not in found:
                # Whoever sells nothing needs no Stripe.
                level = Level.WARN if variable in STRIPE_SECRETS else Level.FAIL
                remedy = f"aws ssm put-parameter --type SecureString --name {name} --value …"
                yield Finding(level, "secret", f"{name} is not there", remedy)
            elif not is_one_line(found[name].value):
                # What was pasted with a line end inside, or with a typographic quote. A function reads its secrets
                # together, so that one that it refuses keeps all of them from it.
                told = "not one line of printable ASCII" if found[name].value else "blank"
                remedy = "Store it again, as it was given to you."
                yield Finding(Level.FAIL, "secret", f"{name} is {told}", remedy)
            else:
                remedy = "Store it as SecureString."
                yield _either(found[name].encrypted, "secret", name, f"{name} is not encrypted", remedy)

    def sign_in(self) -> Iterator[Finding]:
        client = self._deployment.client("cognito-idp")
        pool_id, client_id = self._deployment.output("UserPoolId"), self._deployment.output("UserPoolClientId")
        app = client.describe_user_pool_client(UserPoolId=pool_id, ClientId=client_id)["UserPoolClient"]
        yield _either("ClientSecret" not in app, "app client", "public", "has a secret, which no app can keep", "")
        flows = set(app.get("ExplicitAuthFlows", []))
        needed = {"ALLOW_USER_PASSWORD_AUTH", "ALLOW_USER_SRP_AUTH"}
        yield _either(
            needed <= flows,
            "app client",
            "takes passwords and SRP",
            f"lacks {', '.join(sorted(needed - flows))}: nobody can sign in through /auth/login",
            "Deploy the template anew.",
        )
        named = self.settings.get("COGNITO_CLIENT_IDS", "").split(",")
        yield _either(client_id in named, "app client", "is the functions' own", "is not the one functions accept", "")
        trigger = client.describe_user_pool(UserPoolId=pool_id)["UserPool"].get("LambdaConfig", {})
        yield _either(
            "PreTokenGenerationConfig" in trigger or "PreTokenGeneration" in trigger,
            "user pool",
            "tokens show the plan",
            "no trigger: tokens do not show the plan",
            "Deploy the template anew.",
            worst=Level.WARN,
        )

    def claude(self) -> Iterator[Finding]:
        """By listing models, which costs nothing."""
        base = self.settings.get("UPSTREAM_BASE_URL", "https://api.anthropic.com").rstrip("/")
        headers = {"x-api-key": self.secret("UPSTREAM_API_KEY_PARAMETER"), "anthropic-version": "2023-06-01"}
        answer = _get(f"{base}/v1/models?limit=1", headers)
        if isinstance(answer, str):
            yield Finding(Level.FAIL, "Claude", f"{base}: {answer}", "Check UpstreamBaseUrl and the network.")
            return
        status, date = answer
        remedy = "Store a valid key in SSM; functions read it within five minutes." if status in (401, 403) else ""
        yield _either(status == 200, "Claude", "our key is accepted", f"answered {status} to our key", remedy)
        yield from self._skew("Anthropic", date)

    def http_api(self) -> Iterator[Finding]:
        answer = _get(f"{self._deployment.output('HttpApiUrl').rstrip('/')}/health", {})
        if isinstance(answer, str):
            yield Finding(Level.FAIL, "HTTP API", answer, "Look at the auth function's log.")
            return
        status, date = answer
        yield _either(status == 200, "HTTP API", "/health answers", f"/health answered {status}", "")
        yield from self._skew("AWS", date)

    def _skew(self, whose: str, date: str | None) -> Iterator[Finding]:
        try:
            theirs = parsedate_to_datetime(date or "")
        except ValueError:
            return
        if theirs.tzinfo is None:  # it ends in -0000, which is UTC of unknown origin
            theirs = theirs.replace(tzinfo=UTC)
        seconds = abs((self._deployment.now - theirs).total_seconds())
        # Their text has whole seconds, and the answer took a moment.
        yield _either(
            seconds <= MOST_SKEW_SECONDS + 2,
            "clock",
            f"this machine agrees with {whose}",
            f"this machine is {seconds:.0f} s off {whose}'s",
            "Set this machine's clock: signatures and this report depend on it.",
            worst=Level.WARN,
        )

    def stripe(self) -> Iterator[Finding]:
        key = self.secret("STRIPE_SECRET_KEY_PARAMETER")
        connections = self._deployment.connections
        base_url = self.settings.get("STRIPE_API_BASE_URL") or connections.stripe_base_url
        reports = StripeReports(lambda: key, base_url=base_url, http_client=connections.stripe_wire)
        account = str(reports.account()["id"])
        wanted = self.settings.get("STRIPE_ACCOUNT")
        yield _either(
            wanted in (None, account),
            "Stripe",
            f"account {account}",
            f"the key is of account {account}, events are taken from {wanted} only",
            "Deploy with the right StripeAccount, or store that account's key.",
        )
        live = self.settings.get("STRIPE_LIVEMODE") == "true"
        yield _either(
            key.startswith(("sk_live_", "rk_live_")) == live,
            "Stripe",
            "live mode" if live else "test mode",
            f"the key is for {'test' if live else 'live'} mode, events of {'live' if live else 'test'} mode are taken",
            "Store the key of the mode that is meant, or deploy with another StripeMode.",
        )
        yield from self._webhook(reports)
        if reports.find_meter(self._deployment.catalog.billing.meter_event_name) is None:
            yield Finding(Level.WARN, "Stripe", "there is no meter for overage", "tollgate plans sync")

    def _webhook(self, reports: StripeReports) -> Iterator[Finding]:
        url = self._deployment.output("StripeWebhookUrl")
        found = [each for each in reports.webhooks() if each["url"] == url]
        sync = f"tollgate plans sync --stack {self._deployment.stack}"
        if not found:
            yield Finding(Level.FAIL, "webhook", "Stripe does not send events to this deployment", sync)
        for endpoint in found:
            yield _either(endpoint["status"] == "enabled", "webhook", "is enabled", f"is {endpoint['status']}", sync)
            version = endpoint.get("api_version")
            yield _either(
                version == API_VERSION, "webhook", f"speaks {version}", f"speaks {version}, not {API_VERSION}", sync
            )
            lacking = sorted(set(SNAPSHOT_TYPES) - set(endpoint["enabled_events"]) - {"*"})
            complete = not lacking or "*" in endpoint["enabled_events"]
            yield _either(complete, "webhook", "sends all events", f"does not send {', '.join(lacking[:5])}", sync)

    def queues(self) -> Iterator[Finding]:
        client, names = self._deployment.client("sqs"), ["ApproximateNumberOfMessages"]
        for logical, url in sorted(self.of_type("AWS::SQS::Queue").items()):
            waiting = int(client.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"][names[0]])
            if "DeadLetter" not in logical:
                yield Finding(Level.OK, "queue", f"{logical}: {waiting} waiting")
                continue
            remedy = "tollgate events list" if "Stripe" in logical else "docs/operations.md, Hourly run"
            yield _either(not waiting, "dead letters", f"{logical} is empty", f"{logical} holds {waiting}", remedy)

    def schedules(self) -> Iterator[Finding]:
        client = self._deployment.client("scheduler")
        idle = not (self.settings.get("OPERATOR_WEBHOOK_URL") or self.settings.get("MAIL_FROM"))
        for logical, name in sorted(self.of_type("AWS::Scheduler::Schedule").items()):
            state = str(client.get_schedule(Name=name.rpartition("|")[2].rpartition("/")[2])["State"])
            if state != "ENABLED" and idle and logical.startswith("Notices"):
                yield Finding(Level.OK, "schedule", f"{logical} is off: nobody is to be told")
            else:
                remedy = "Enable it: periods are not closed and nothing expires without it."
                yield _either(state == "ENABLED", "schedule", f"{logical} runs", f"{logical} is {state}", remedy)

    def notices(self) -> Iterator[Finding]:
        dead = sum(1 for _ in self._deployment.notices.list_dead())
        yield _either(
            not dead,
            "notices",
            "none was given up",
            f"{dead} could not be delivered",
            "Mend the receiver, then: tollgate notices replay",
            worst=Level.WARN,
        )

    def mail(self) -> Iterator[Finding]:
        sender = self.settings.get("MAIL_FROM")
        if sender is None:
            raise CommandError("Users are not told by mail (MailFrom).")
        client = self._deployment.client("sesv2")
        account = client.get_account()
        yield _either(bool(account["SendingEnabled"]), "mail", "SES sends", "SES is paused", "Ask AWS support.")
        yield _either(
            bool(account["ProductionAccessEnabled"]),
            "mail",
            "to anybody",
            "SES is in its sandbox: only verified addresses get mail",
            "Request production access in the SES console.",
            worst=Level.WARN,
        )
        verified = [each for each in (sender, sender.rpartition("@")[2]) if _is_verified(client, each)]
        yield _either(
            bool(verified), "mail", f"{sender} may send", f"{sender} is not verified", "Verify it or its domain in SES."
        )


def _is_verified(client: Any, identity: str) -> bool:  # noqa: ANN401  a boto3 client
    try:
        return bool(client.get_email_identity(EmailIdentity=identity)["VerifiedForSendingStatus"])
    except client.exceptions.NotFoundException:
        return False


def _either(good: bool, about: str, text: str, otherwise: str, remedy: str, *, worst: Level = Level.FAIL) -> Finding:
    return Finding(Level.OK, about, text) if good else Finding(worst, about, otherwise, remedy)


def _get(url: str, headers: dict[str, str]) -> tuple[int, str | None] | str:
    """(status, date header), or what went wrong. Redirects are not followed."""
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=SECONDS)
    except (ValueError, HTTPException):
        return "is no address"
    try:
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=headers)
        answer = connection.getresponse()
        answer.read(1_000_000)
    except (OSError, HTTPException, ValueError, OverflowError) as error:
        # A ValueError's text would be the header that cannot be sent, or the address.
        return f"no answer: {type(error).__name__}"
    finally:
        connection.close()
    return answer.status, answer.headers.get("date")
