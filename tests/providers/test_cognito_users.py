"""The user pool's provider: what goes over the wire, and what never comes back in words."""

from __future__ import annotations

import time
from collections.abc import Iterator

import botocore.session
import pytest

from tests.support.fake_cognito import POOL_ID, CognitoError, FakeCognito
from tests.support.moto_table import REGION, set_credentials
from tests.support.scripted_http import ScriptedServer, answer
from tests.support.user_pool import CLIENT_ID, ISSUER
from tollgate.domain.errors import RateLimitedError, SignInUnavailableError
from tollgate.providers.cognito_users import (
    Challenge,
    PoolRefusalError,
    Refusal,
    Tokens,
    UserPool,
    normal_email,
    pool_id_of,
    user_pool_client,
)

ADA, PASSWORD = "ada@example.com", "correct horse battery"


@pytest.fixture
def cognito() -> Iterator[FakeCognito]:
    with FakeCognito(time.time) as cognito:
        yield cognito


@pytest.fixture
def pool(cognito: FakeCognito, monkeypatch: pytest.MonkeyPatch) -> Iterator[UserPool]:
    set_credentials(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", cognito.url)
    client = user_pool_client(botocore.session.get_session(), REGION)
    yield UserPool(client, pool_id=POOL_ID, client_id=CLIENT_ID)
    client.close()


def test_signing_in_gives_tokens_whose_owner_is_known(pool: UserPool, cognito: FakeCognito) -> None:
    ada = cognito.add(ADA, PASSWORD)
    for name in (ADA, ada.sub):
        tokens = pool.sign_in(name, PASSWORD)
        assert isinstance(tokens, Tokens)
        assert tokens.user_id == ada.sub
        assert tokens.expires_in_seconds == 3600


def test_tokens_and_sessions_are_in_no_text(pool: UserPool, cognito: FakeCognito) -> None:
    ada = cognito.add(ADA, PASSWORD)
    tokens = pool.sign_in(ADA, PASSWORD)
    assert isinstance(tokens, Tokens)
    for secret in (tokens.access_token, tokens.id_token, tokens.refresh_token):
        assert secret not in repr(tokens)
    ada.second_factor = True
    challenge = pool.sign_in(ADA, PASSWORD)
    assert isinstance(challenge, Challenge)
    assert challenge.session not in repr(challenge)


@pytest.mark.parametrize("reason", Refusal)
def test_a_refusal_has_its_reason_and_none_of_cognitos_words(
    pool: UserPool, cognito: FakeCognito, reason: Refusal
) -> None:
    cognito.faults["ConfirmSignUp"] = [CognitoError(reason.value)] * 2  # botocore tries a limit twice
    with pytest.raises(PoolRefusalError) as refusal:
        pool.confirm(ADA, "123456")
    assert refusal.value.reason is reason
    assert "text of Cognito" not in str(refusal.value)


@pytest.mark.parametrize("code", ["TooManyRequestsException", "ThrottlingException", "ForbiddenException"])
def test_being_throttled_is_told_with_a_time_to_wait(pool: UserPool, cognito: FakeCognito, code: str) -> None:
    cognito.faults["ConfirmSignUp"] = [CognitoError(code)] * 2
    with pytest.raises(RateLimitedError) as refusal:
        pool.confirm(ADA, "123456")
    assert refusal.value.retry_after_seconds >= 1


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"Authen'])
def test_garbage_with_a_failing_status_is_an_outage(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    set_credentials(monkeypatch)
    with ScriptedServer(answer(body, "502 Bad Gateway")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", server.url)
        client = user_pool_client(botocore.session.get_session(), REGION)
        with pytest.raises(SignInUnavailableError):
            UserPool(client, pool_id=POOL_ID, client_id=CLIENT_ID).sign_in(ADA, PASSWORD)
        client.close()


def test_a_user_is_found_by_id_with_a_confirmed_address_only(pool: UserPool, cognito: FakeCognito) -> None:
    ada = cognito.add(ADA, PASSWORD, confirmed=False, name="Ada")
    found = pool.find(ada.sub)
    assert found is not None
    assert (found.user_id, found.email, found.name) == (ada.sub, None, "Ada")
    ada.confirmed = True
    found = pool.find(ada.sub)
    assert found is not None
    assert found.email == ADA
    assert pool.find("nobody") is None


def test_deleting_somebody_who_is_gone_is_done(pool: UserPool, cognito: FakeCognito) -> None:
    ada = cognito.add(ADA, PASSWORD)
    for _ in range(2):
        pool.delete(ada.sub)
    assert not cognito.members


def test_an_address_is_spelled_in_one_way() -> None:
    """The pool does not tell cases apart: UsernameConfiguration in template.yaml."""
    assert normal_email(" Ada@Example.COM ") == ADA


def test_the_pool_is_named_by_its_issuer() -> None:
    assert pool_id_of(ISSUER) == pool_id_of(f"{ISSUER}/") == "eu-west-1_Example"
    assert pool_id_of("http://127.0.0.1:9229/local_1") == "local_1"


def test_no_operation_sends_more_than_it_has_to(pool: UserPool, cognito: FakeCognito) -> None:
    pool.sign_up(ADA, PASSWORD, None)
    assert cognito.calls == [
        (
            "SignUp",
            {
                "ClientId": CLIENT_ID,
                "Username": ADA,
                "Password": PASSWORD,
                "UserAttributes": [{"Name": "email", "Value": ADA}],
            },
        )
    ]
