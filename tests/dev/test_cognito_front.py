"""The local Cognito with its front: codes are mailed, checked and refused as Cognito does it."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError

from dev.cognito_front import WRONG_TRIES, CognitoFront
from dev.engines import ROOT, install_engines, start_ministack
from dev.mailbox import MAILS_KEPT, Mail, Mailbox
from dev.processes import Processes
from dev.provision import Cloud, Remembered, ensure_pool
from dev.template import REGION, Template

if TYPE_CHECKING:
    from types_boto3_cognito_idp import CognitoIdentityProviderClient
    from types_boto3_cognito_idp.type_defs import AuthenticationResultTypeTypeDef

pytestmark = pytest.mark.stack

PASSWORD = "correct-Horse-9-battery"
_NUMBERS = count()


@dataclass
class Clock:
    now: float = 1_795_176_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Pool:
    """A pool of the template's, reached through the front."""

    cognito: CognitoIdentityProviderClient
    client_id: str
    mailbox: Mailbox
    clock: Clock

    def register(self) -> str:
        """A new, unconfirmed user's address."""
        email = f"user-{next(_NUMBERS)}@example.com"
        attributes: Any = [{"Name": "email", "Value": email}]
        self.cognito.sign_up(ClientId=self.client_id, Username=email, Password=PASSWORD, UserAttributes=attributes)
        return email

    def confirmed(self) -> str:
        email = self.register()
        self.confirm(email, self.code(email))
        return email

    def confirm(self, email: str, code: str) -> None:
        self.cognito.confirm_sign_up(ClientId=self.client_id, Username=email, ConfirmationCode=code)

    def reset(self, email: str, code: str, password: str = PASSWORD + "2") -> None:
        self.cognito.confirm_forgot_password(
            ClientId=self.client_id, Username=email, ConfirmationCode=code, Password=password
        )

    def sign_in(self, email: str, password: str = PASSWORD) -> AuthenticationResultTypeTypeDef:
        parameters = {"USERNAME": email, "PASSWORD": password}
        return self.cognito.initiate_auth(
            ClientId=self.client_id, AuthFlow="USER_PASSWORD_AUTH", AuthParameters=parameters
        )["AuthenticationResult"]

    def refresh(self, tokens: AuthenticationResultTypeTypeDef) -> None:
        self.cognito.get_tokens_from_refresh_token(ClientId=self.client_id, RefreshToken=tokens["RefreshToken"])

    def mails(self, email: str) -> list[Mail]:
        return [mail for mail in self.mailbox.mails() if mail.to == email]

    def code(self, email: str) -> str:
        return self.mails(email)[0].code


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    install_engines()
    folder = tmp_path_factory.mktemp("cognito")
    processes = Processes()
    try:
        url = start_ministack(processes, folder / "state", folder / "logs").url
        remembered, mailbox, clock = Remembered(), Mailbox(), Clock()
        ensure_pool(Cloud(url, url).cognito(), Template(ROOT / "template.yaml"), remembered)
        front = CognitoFront(url, remembered.pool_id, mailbox, clock)
        front.start()
        session = boto3.session.Session("local", "local", region_name=REGION)
        cognito = session.client("cognito-idp", endpoint_url=front.url)
        yield Pool(cognito, remembered.client_id, mailbox, clock)
        cognito.close()
        front.close()
    finally:
        processes.stop_all(gently=False)


def refused(call: Callable[..., object], *arguments: object) -> str:
    """The name of Cognito's error."""
    with pytest.raises(ClientError) as caught:
        call(*arguments)
    return caught.value.response["Error"]["Code"]


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06}"


def test_the_mailed_code_confirms_and_verifies_the_address(pool: Pool) -> None:
    email = pool.register()
    [mail] = pool.mails(email)
    assert (len(mail.code), mail.code in mail.text) == (6, True)
    assert mail.expires_at - mail.sent_at == timedelta(hours=24)
    assert refused(pool.sign_in, email) == "UserNotConfirmedException"
    pool.confirm(email, mail.code)
    found = pool.cognito.get_user(AccessToken=pool.sign_in(email)["AccessToken"])
    assert {"Name": "email_verified", "Value": "true"} in found["UserAttributes"]


@pytest.mark.parametrize("given", ["123456", "000000", "x", "\uff11\uff12\uff13\uff14\uff15\uff16"])
def test_a_wrong_code_confirms_nobody_and_the_right_one_still_does(pool: Pool, given: str) -> None:
    email = pool.register()
    if given == pool.code(email):
        given = wrong(given)
    assert refused(pool.confirm, email, given) == "CodeMismatchException"
    assert refused(pool.sign_in, email) == "UserNotConfirmedException"
    pool.confirm(email, pool.code(email))
    pool.sign_in(email)


@pytest.mark.parametrize(
    ("tries", "outcome"), [(WRONG_TRIES - 1, None), (WRONG_TRIES, "TooManyFailedAttemptsException")]
)
def test_too_many_wrong_codes_end_the_code(pool: Pool, tries: int, outcome: str | None) -> None:
    email = pool.register()
    code = pool.code(email)
    for _ in range(tries):
        assert refused(pool.confirm, email, wrong(code)) == "CodeMismatchException"
    if outcome is None:
        pool.confirm(email, code)
    else:
        assert refused(pool.confirm, email, code) == outcome
        pool.cognito.resend_confirmation_code(ClientId=pool.client_id, Username=email)
        pool.confirm(email, pool.code(email))


@pytest.mark.parametrize(("late_seconds", "good"), [(-1, True), (0, False), (1, False)])
def test_a_code_lives_24_hours(pool: Pool, late_seconds: int, good: bool) -> None:
    email = pool.register()
    pool.clock.now += 24 * 3600 + late_seconds
    if good:
        pool.confirm(email, pool.code(email))
    else:
        assert refused(pool.confirm, email, pool.code(email)) == "ExpiredCodeException"


def test_a_new_code_ends_the_one_before(pool: Pool) -> None:
    email = pool.register()
    old = pool.code(email)
    pool.cognito.resend_confirmation_code(ClientId=pool.client_id, Username=email)
    if old != pool.code(email):
        assert refused(pool.confirm, email, old) == "CodeMismatchException"
    pool.confirm(email, pool.code(email))


def test_a_code_works_once(pool: Pool) -> None:
    email = pool.confirmed()
    assert refused(pool.confirm, email, pool.code(email)) == "NotAuthorizedException"


def test_a_code_is_for_one_user(pool: Pool) -> None:
    email, other = pool.register(), pool.register()
    if pool.code(email) != pool.code(other):
        assert refused(pool.confirm, email, pool.code(other)) == "CodeMismatchException"


def test_a_forgotten_password_is_replaced_with_the_mailed_code_only(pool: Pool) -> None:
    email = pool.confirmed()
    pool.cognito.forgot_password(ClientId=pool.client_id, Username=email)
    code = pool.code(email)
    assert pool.mails(email)[0].expires_at - pool.mails(email)[0].sent_at == timedelta(hours=1)
    assert refused(pool.reset, email, wrong(code)) == "CodeMismatchException"
    assert refused(pool.reset, email, code, "short") == "InvalidPasswordException"
    pool.sign_in(email)
    pool.reset(email, code)
    assert refused(pool.sign_in, email) == "NotAuthorizedException"
    pool.sign_in(email, PASSWORD + "2")
    assert refused(pool.reset, email, code) == "ExpiredCodeException"


def test_a_code_for_one_purpose_does_not_serve_another(pool: Pool) -> None:
    email = pool.register()
    assert refused(pool.reset, email, pool.code(email)) == "ExpiredCodeException"
    operation = pool.cognito.forgot_password
    assert refused(lambda: operation(ClientId=pool.client_id, Username=email)) == "InvalidParameterException"


def test_nobody_gets_mail_who_has_no_account(pool: Pool) -> None:
    for operation in (pool.cognito.forgot_password, pool.cognito.resend_confirmation_code):
        operation(ClientId=pool.client_id, Username="nobody@example.com")
    assert pool.mails("nobody@example.com") == []
    assert refused(pool.confirm, "nobody@example.com", "123456") == "CodeMismatchException"


def test_signing_out_everywhere_ends_refresh_tokens_and_the_next_sign_in_gets_new_ones(pool: Pool) -> None:
    email = pool.confirmed()
    tokens = pool.sign_in(email)
    pool.refresh(tokens)
    pool.cognito.global_sign_out(AccessToken=tokens["AccessToken"])
    assert refused(pool.refresh, tokens) == "NotAuthorizedException"
    pool.refresh(pool.sign_in(email))


def test_a_revoked_refresh_token_gives_nothing_and_the_others_go_on(pool: Pool) -> None:
    email = pool.confirmed()
    one, two = pool.sign_in(email), pool.sign_in(email)
    pool.cognito.revoke_token(ClientId=pool.client_id, Token=one["RefreshToken"])
    assert refused(pool.refresh, one) == "NotAuthorizedException"
    pool.refresh(two)


def test_the_mailbox_keeps_the_newest_and_not_too_many() -> None:
    seen: list[Mail] = []
    mailbox = Mailbox(seen.append)
    for number in range(MAILS_KEPT + 1):
        instant = Clock().now
        mailbox.deliver(_mail(str(number), instant))
    assert len(seen) == MAILS_KEPT + 1
    assert (mailbox.mails()[0].code, len(mailbox.mails())) == (str(MAILS_KEPT), MAILS_KEPT)
    assert mailbox.document()["data"][0]["sent_at"] == "2026-11-20T12:00:00Z"
    mailbox.clear()
    assert mailbox.document() == {"data": []}


def _mail(code: str, at: float) -> Mail:
    instant = datetime.fromtimestamp(at, UTC)
    return Mail("a@example.com", "s", f"code {code}", code, instant, instant)


def test_everything_else_is_the_engines_own(pool: Pool) -> None:
    """The hosted sign-in page, the key set."""
    with urllib.request.urlopen(f"{pool.cognito.meta.endpoint_url}/_ministack/ready", timeout=10) as response:
        assert response.status == 200
