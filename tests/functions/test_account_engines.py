"""The same accounts on other engines, changed by settings only: what each cannot do is proven on the strict double.

docs/sign-in.md has the table of who proves what.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import botocore.session
import pytest

from dev.engines import install_engines, start_ministack
from dev.processes import Processes
from dev.provision import Remembered, ensure_pool
from dev.template import Template
from tests.support.auth_function import AuthFunction, auth_function
from tests.support.fake_cognito import totp
from tests.support.moto_table import REGION, set_credentials
from tests.support.sam import ROOT

if TYPE_CHECKING:
    from types_boto3_cognito_idp import CognitoIdentityProviderClient

PASSWORD = "correct horse battery"


@dataclass(frozen=True, slots=True)
class World:
    """The function on an engine; `lacks` names what it cannot do.

    Neither checks a mailed code, marks its address as verified, or ends access tokens.
    """

    auth: AuthFunction
    lacks: frozenset[str]


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Settings of a pool made from the template as it is."""
    install_engines()
    processes, folder = Processes(), tmp_path_factory.mktemp("ministack")
    try:
        engine = start_ministack(processes, folder / "state", folder / "log")
        with pytest.MonkeyPatch.context() as environ:
            set_credentials(environ)
            yield make_pool(engine.url) | {"AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": engine.url}
    finally:
        processes.stop_all(gently=False)


def make_pool(url: str | None = None) -> dict[str, str]:
    """The pool and the client of the template; the settings that name them."""
    session = botocore.session.get_session()
    client = session.create_client("cognito-idp", region_name=REGION, endpoint_url=url)
    remembered = Remembered()
    ensure_pool(cast("CognitoIdentityProviderClient", client), Template(ROOT / "template.yaml"), remembered)
    client.close()
    return {
        "COGNITO_ISSUER": f"https://cognito-idp.{REGION}.amazonaws.com/{remembered.pool_id}",
        "COGNITO_CLIENT_IDS": remembered.client_id,
        "COGNITO_CLIENT_ID": remembered.client_id,
    }


@pytest.fixture(params=["moto", "ministack"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    if request.param == "ministack":
        settings: dict[str, str] = request.getfixturevalue("ministack")
        with auth_function(monkeypatch, **settings) as auth:
            yield World(auth, frozenset())
    else:
        with auth_function(monkeypatch) as auth:
            settings = make_pool()
            for name, value in settings.items():
                monkeypatch.setenv(name, value)
            auth.client_id = settings["COGNITO_CLIENT_ID"]
            yield World(auth, frozenset({"refresh", "resend", "revoke"}))


def sign_up(world: World, email: str) -> dict[str, Any]:
    """A confirmed user's first sign-in."""
    auth = world.auth
    for _ in range(1 if "resend" in world.lacks else 2):
        answer = auth.send("POST /auth/register", {"email": email, "password": "not the one that counts"})
        assert answer.status == 202, answer.raw
    form = {"email": email, "code": "123456", "password": PASSWORD}
    assert auth.send("POST /auth/confirm", form).status == 200
    answer = auth.send("POST /auth/login", {"email": email, "password": PASSWORD})
    assert answer.status == 200, answer.raw
    body: dict[str, Any] = answer.body
    return body


def test_a_user_registers_signs_in_and_leaves(world: World) -> None:
    auth, email = world.auth, f"ada-{time.time_ns()}@example.com"
    first = sign_up(world, email)
    user_id = first["user"]["id"]
    assert first["usage"]["tokens"]["remaining"] == 100_000
    assert auth.send("GET /auth/me", user=user_id).body["user"]["email"] == first["user"]["email"]
    wrong = auth.send("POST /auth/login", {"email": email, "password": "not the password"})
    unknown = auth.send("POST /auth/login", {"email": f"x{email}", "password": PASSWORD})
    assert wrong.told() == unknown.told()
    assert wrong.status == 401
    assert auth.send("DELETE /auth/me", user=user_id).status == 204
    assert auth.send("GET /auth/me", user=user_id).status == 401
    assert auth.send("POST /auth/login", {"email": email, "password": PASSWORD}).told() == wrong.told()
    assert email not in auth.stored()


@pytest.mark.parametrize("world", ["ministack"], indirect=True)  # asking for the password ends in a RevokeToken
def test_a_second_factor_works_from_end_to_end(world: World) -> None:
    auth, email = world.auth, f"ada-{time.time_ns()}@example.com"
    first = sign_up(world, email)
    user_id, token = first["user"]["id"], first["access_token"]
    form = {"action": "associate", "password": PASSWORD}
    secret = auth.send("POST /auth/mfa", form, user=user_id, token=token).body["secret"]
    code = totp(secret + "=" * (-len(secret) % 8), time.time())
    assert auth.send("POST /auth/mfa", {"action": "verify", "code": code}, user=user_id, token=token).status == 200
    challenge = auth.send("POST /auth/login", {"email": email, "password": PASSWORD}).body
    form = {"email": email, "session": challenge["session"], "code": code}
    assert auth.send("POST /auth/login/mfa", form).body["user"]["id"] == user_id


def test_signing_out_ends_what_the_engine_can_end(world: World) -> None:
    auth, email = world.auth, f"ada-{time.time_ns()}@example.com"
    first = sign_up(world, email)
    user_id, refresh_token = first["user"]["id"], first["refresh_token"]
    if "refresh" not in world.lacks:
        answer = auth.send("POST /auth/refresh", {"refresh_token": refresh_token})
        assert answer.status == 200
        refresh_token = answer.body["refresh_token"]
    if "revoke" not in world.lacks:
        assert auth.send("POST /auth/logout", {"refresh_token": refresh_token}, user=user_id).status == 204
        assert auth.send("POST /auth/refresh", {"refresh_token": refresh_token}).status == 401
    assert auth.send("POST /auth/logout", {"everywhere": True}, user=user_id).status == 204


def test_a_forgotten_password_is_replaced(world: World) -> None:
    auth, email = world.auth, f"ada-{time.time_ns()}@example.com"
    sign_up(world, email)
    assert auth.send("POST /auth/password/forgot", {"email": email}).status == 202
    form = {"email": email, "code": "123456", "password": "a whole new password"}
    answer = auth.send("POST /auth/password/reset", form)
    assert answer.status == 200
    assert auth.send("POST /auth/login", {"email": email, "password": PASSWORD}).status == 401
    assert auth.send("POST /auth/login", {"email": email, "password": "a whole new password"}).status == 200
