"""Accounts through the function's door, against a user pool as strict as Cognito: see tests/support/fake_cognito.py."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.auth_function import Answer, AuthFunction, auth_function
from tests.support.fake_cognito import CognitoError, FakeCognito, Member, totp
from tollgate.domain.api_keys import ApiKey, KeyMode
from tollgate.storage.api_keys import ApiKeys
from tollgate.storage.users import Users

ADA, PASSWORD = "ada@example.com", "correct horse battery"
STRANGERS = "chosen by a stranger"
STRANGER = "nobody@example.com"
WRONG_CODE = "000000"
CANARY = "canary-person-41c7"


@pytest.fixture
def pool() -> Iterator[FakeCognito]:
    with FakeCognito(time.time) as pool:
        yield pool


@pytest.fixture
def auth(pool: FakeCognito, monkeypatch: pytest.MonkeyPatch) -> Iterator[AuthFunction]:
    with auth_function(monkeypatch, AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER=pool.url) as function:
        yield function


@pytest.fixture
def ada(pool: FakeCognito) -> Member:
    return pool.add(ADA, PASSWORD, name="Ada Lovelace")


def log_in(auth: AuthFunction, email: str = ADA, password: str = PASSWORD) -> Answer:
    return auth.send("POST /auth/login", {"email": email, "password": password})


def confirm(auth: AuthFunction, code: str, email: str = ADA, password: str = PASSWORD) -> Answer:
    return auth.send("POST /auth/confirm", {"email": email, "code": code, "password": password})


# --- Register and confirm


def test_a_new_user_registers_confirms_and_signs_in(auth: AuthFunction, pool: FakeCognito) -> None:
    form = {"email": "Ada@Example.com", "password": PASSWORD, "name": "Ada Lovelace"}
    registered = auth.send("POST /auth/register", form)
    assert (registered.status, registered.body) == (202, {"status": "accepted"})
    assert auth.table.calls["PutItem"] == 0  # nothing is stored about somebody who has not shown to own the address
    confirmed = confirm(auth, pool.code_for(ADA))
    assert (confirmed.status, confirmed.body) == (200, {"status": "confirmed"})
    answer = log_in(auth)
    assert answer.status == 200
    user_id = pool.member(ADA).sub
    assert answer.body["user"] == {"id": user_id, "tenant_id": "main", "email": ADA}
    assert answer.body["plan"]["id"] == "free"
    assert answer.body["usage"]["tokens"]["remaining"] == 100_000
    assert answer.body["token_type"] == "Bearer"
    assert answer.body["expires_in"] == 3600
    assert answer.body["access_token"].count(".") == answer.body["id_token"].count(".") == 2
    assert answer.body["refresh_token"] in pool.member(ADA).refresh_tokens
    profile = auth.send("GET /user/profile", user=user_id).body
    assert (profile["email"], profile["display_name"]) == (ADA, "Ada Lovelace")


def test_registering_again_sends_another_code_and_the_old_one_ends(auth: AuthFunction, pool: FakeCognito) -> None:
    form = {"email": ADA, "password": PASSWORD}
    answers = [auth.send("POST /auth/register", form) for _ in range(2)]
    assert answers[0].told() == answers[1].told()
    assert len(pool.members) == 1
    [(_, old), (_, new)] = pool.mail
    assert confirm(auth, old).error_code == "invalid_code"
    assert confirm(auth, new).status == 200


@pytest.mark.parametrize("tells_waiting_first", [False, True])
@pytest.mark.parametrize("order", [(STRANGERS, PASSWORD), (PASSWORD, STRANGERS)], ids=["stranger first", "owner first"])
def test_whoever_registers_an_address_only_its_owner_gets_in(
    auth: AuthFunction, pool: FakeCognito, order: tuple[str, str], tells_waiting_first: bool
) -> None:
    """The owner reads the newest code and sends it with their own password; the stranger has only ever had theirs."""
    pool.tells_waiting_first = tells_waiting_first
    answers = [auth.send("POST /auth/register", {"email": ADA, "password": password}) for password in order]
    assert answers[0].told() == answers[1].told()
    assert [log_in(auth, ADA, password).status for password in order] == [401, 401]
    assert confirm(auth, pool.code_for(ADA)).status == 200
    assert log_in(auth, ADA, STRANGERS).told() == log_in(auth, STRANGER).told()
    answer = log_in(auth)
    assert answer.status == 200
    assert pool.member(ADA).refresh_tokens == {answer.body["refresh_token"]}
    assert not pool.member(ADA).second_factor


def test_registering_wants_no_password_and_checks_one_that_is_sent(auth: AuthFunction, pool: FakeCognito) -> None:
    assert auth.send("POST /auth/register", {"email": ADA}).status == 202
    assert auth.send("POST /auth/register", {"email": ADA, "password": "x" * 11}).status == 400
    assert log_in(auth, ADA, "x" * 11).status == 401
    assert pool.operations() == ["SignUp", "InitiateAuth"]


@pytest.mark.parametrize("password", [None, "", "x" * 11, "x" * 257])
def test_confirming_wants_a_password_by_the_rules_before_it_takes_the_code(
    auth: AuthFunction, pool: FakeCognito, password: str | None
) -> None:
    pool.add(ADA, STRANGERS, confirmed=False).code = "654321"
    form = {"email": ADA, "code": "654321"} | ({} if password is None else {"password": password})
    assert auth.send("POST /auth/confirm", form).status == 400
    assert pool.operations() == []
    assert confirm(auth, "654321").status == 200


def test_a_code_whose_password_could_not_be_set_is_told_the_way_on(auth: AuthFunction, pool: FakeCognito) -> None:
    """Nobody gets in until the owner has chosen a password by mail: not the stranger either."""
    auth.send("POST /auth/register", {"email": ADA, "password": STRANGERS})
    pool.faults["AdminSetUserPassword"] = [CognitoError("InternalErrorException")] * 2
    answer = confirm(auth, pool.code_for(ADA))
    assert (answer.status, answer.error_code) == (503, "sign_in_unavailable")
    assert "/auth/password/forgot" in answer.raw
    assert [log_in(auth, ADA, password).status for password in (STRANGERS, PASSWORD)] == [401, 401]
    auth.send("POST /auth/password/forgot", {"email": ADA})
    form = {"email": ADA, "code": pool.code_for(ADA), "password": PASSWORD}
    assert auth.send("POST /auth/password/reset", form).status == 200
    assert log_in(auth).status == 200


def test_registering_after_the_pool_lost_the_user_makes_a_new_account(auth: AuthFunction, pool: FakeCognito) -> None:
    """The table knows somebody whom the pool does not: their old id stays as it is, and the address is free."""
    old = pool.add(ADA, PASSWORD)
    assert log_in(auth).status == 200
    del pool.members[old.sub]
    assert auth.send("POST /auth/register", {"email": ADA, "password": PASSWORD}).status == 202
    assert confirm(auth, pool.code_for(ADA)).status == 200
    answer = log_in(auth)
    assert answer.status == 200
    assert answer.body["user"]["id"] != old.sub
    assert Users(auth.table).find_profile("main", old.sub) is not None


def test_a_user_whom_the_table_does_not_know_is_made_there_by_any_first_call(auth: AuthFunction, ada: Member) -> None:
    """From the sign-in page, without /auth/login; the address comes from the pool."""
    answer = auth.send("GET /auth/me", user=ada.sub)
    assert answer.body["user"] == {"id": ada.sub, "tenant_id": "main", "email": ADA}
    profile = Users(auth.table).find_profile("main", ada.sub)
    assert profile is not None
    assert profile.email == ADA


def test_the_pool_is_asked_for_an_address_once(auth: AuthFunction, pool: FakeCognito, ada: Member) -> None:
    for _ in range(3):
        auth.send("GET /auth/me", user=ada.sub)
    assert pool.operations() == ["AdminGetUser"]


def test_a_changed_address_arrives_with_the_next_sign_in(auth: AuthFunction, ada: Member) -> None:
    log_in(auth)
    auth.send("PUT /user/profile", {"display_name": "Countess"}, user=ada.sub)
    ada.email = "countess@example.com"
    assert log_in(auth, ada.email).body["user"]["email"] == "countess@example.com"
    assert auth.send("GET /user/profile", user=ada.sub).body["display_name"] == "Countess"


def test_an_address_that_is_not_confirmed_is_not_stored_and_noted(auth: AuthFunction, pool: FakeCognito) -> None:
    """Until it is: somebody whom the operator made by hand confirms later."""
    member = pool.add(ADA, PASSWORD, confirmed=False)
    for _ in range(2):
        assert auth.send("GET /auth/me", user=member.sub).body["user"]["email"] is None
    profile = Users(auth.table).find_profile("main", member.sub)
    assert profile is not None
    assert (profile.email, profile.email_verified) == (None, False)
    member.confirmed = True
    assert auth.send("GET /auth/me", user=member.sub).body["user"]["email"] == ADA
    profile = Users(auth.table).find_profile("main", member.sub)
    assert profile is not None
    assert (profile.email, profile.email_verified) == (ADA, True)


def test_while_the_pool_is_silent_the_caller_is_still_served(
    auth: AuthFunction, pool: FakeCognito, ada: Member
) -> None:
    pool.faults["AdminGetUser"] = [CognitoError("InternalErrorException")] * 2  # botocore tries twice
    assert auth.send("GET /auth/me", user=ada.sub).body["user"]["email"] is None
    assert auth.send("GET /auth/me", user=ada.sub).body["user"]["email"] == ADA


# --- Nobody is told who has an account


MAILED = ("POST /auth/register", "POST /auth/resend", "POST /auth/password/forgot")


@pytest.mark.parametrize("route", MAILED)
def test_what_mails_answers_the_same_for_everybody_and_as_slowly(
    auth: AuthFunction, pool: FakeCognito, route: str
) -> None:
    pool.add("confirmed@example.com", PASSWORD)
    pool.add("waiting@example.com", PASSWORD, confirmed=False)
    answers = []
    for email in ("confirmed@example.com", "waiting@example.com", STRANGER):
        form = {"email": email} | ({"password": PASSWORD} if "register" in route else {})
        auth.waits.clear()
        started = time.monotonic()
        answers.append(auth.send(route, form).told())
        assert time.monotonic() - started + sum(auth.waits) >= 0.5
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0] == 202
    told = {address for address, _ in pool.mail}
    assert (
        told
        == {
            "POST /auth/register": {"waiting@example.com", STRANGER},
            "POST /auth/resend": {"waiting@example.com"},
            "POST /auth/password/forgot": {"confirmed@example.com"},
        }[route]
    )


@pytest.mark.parametrize("route", MAILED)
@pytest.mark.parametrize(
    "code",
    [
        "LimitExceededException",
        "CodeDeliveryFailureException",
        "InvalidParameterException",
        "UserNotFoundException",
        "NotAuthorizedException",
    ],
)
def test_what_cognito_says_about_one_address_stays_here(
    auth: AuthFunction, pool: FakeCognito, route: str, code: str
) -> None:
    operation = {"register": "SignUp", "resend": "ResendConfirmationCode", "forgot": "ForgotPassword"}
    pool.faults[operation[route.rpartition("/")[2]]] = [CognitoError(code)]
    form = {"email": ADA} | ({"password": PASSWORD} if "register" in route else {})
    assert auth.send(route, form).status == 202


@pytest.mark.parametrize("route", ["POST /auth/confirm", "POST /auth/password/reset"])
def test_a_wrong_code_is_refused_the_same_for_everybody(auth: AuthFunction, pool: FakeCognito, route: str) -> None:
    pool.add("confirmed@example.com", PASSWORD)
    pool.add("waiting@example.com", PASSWORD, confirmed=False).code = "654321"
    answers = [
        auth.send(route, {"email": email, "code": WRONG_CODE, "password": password}).told()
        for email in ("confirmed@example.com", "waiting@example.com", STRANGER)
        for password in (PASSWORD, STRANGERS)
    ]
    assert len({json.dumps(answer) for answer in answers}) == 1
    assert answers[0][0] == 400
    assert "AdminSetUserPassword" not in pool.operations()


def test_a_wrong_password_an_unknown_address_and_one_to_reset_are_one_answer(
    auth: AuthFunction, pool: FakeCognito, ada: Member
) -> None:
    answers = [log_in(auth, ADA, "wrong password 1"), log_in(auth, STRANGER)]
    for code in ("UserNotFoundException", "PasswordResetRequiredException"):
        pool.faults["InitiateAuth"] = [CognitoError(code)]
        answers.append(log_in(auth))
    assert len({json.dumps(answer.told()) for answer in answers}) == 1
    assert (answers[0].status, answers[0].error_code) == (401, "invalid_credentials")


@pytest.mark.parametrize("tells_waiting_first", [False, True])
def test_nobody_learns_by_signing_in_that_an_address_waits_for_its_code(
    auth: AuthFunction, pool: FakeCognito, tells_waiting_first: bool
) -> None:
    pool.tells_waiting_first = tells_waiting_first
    pool.add(ADA, PASSWORD, confirmed=False)
    answers = [log_in(auth), log_in(auth, ADA, "wrong password 1"), log_in(auth, STRANGER)]
    assert len({json.dumps(answer.told()) for answer in answers}) == 1
    assert answers[0].status == 401


# --- Passwords


def test_a_forgotten_password_is_replaced_once_and_every_sign_in_ends(
    auth: AuthFunction, pool: FakeCognito, ada: Member
) -> None:
    refresh_token = log_in(auth).body["refresh_token"]
    assert auth.send("POST /auth/password/forgot", {"email": ADA}).status == 202
    form = {"email": ADA, "code": pool.code_for(ADA), "password": "a whole new password"}
    answer = auth.send("POST /auth/password/reset", form)
    assert (answer.status, answer.body) == (200, {"status": "password_reset"})
    assert auth.send("POST /auth/password/reset", form).error_code == "invalid_code"
    assert auth.send("POST /auth/refresh", {"refresh_token": refresh_token}).status == 401
    assert log_in(auth).status == 401
    assert log_in(auth, ADA, "a whole new password").status == 200


def test_a_reset_counts_although_the_sign_ins_could_not_be_ended(
    auth: AuthFunction, pool: FakeCognito, ada: Member, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code is used up: an error would make its owner ask for another one for nothing."""
    ada.reset_code = "123456"
    pool.faults["AdminUserGlobalSignOut"] = [CognitoError("InternalErrorException")] * 2
    form = {"email": ADA, "code": "123456", "password": "a whole new password"}
    assert auth.send("POST /auth/password/reset", form).status == 200
    assert "sign_out_failed" in capsys.readouterr().out


def test_a_password_below_the_rules_is_refused_before_anybody_is_asked(auth: AuthFunction, pool: FakeCognito) -> None:
    for password, status in (("x" * 11, 400), ("x" * 12, 202), ("x" * 256, 202), ("x" * 257, 400), (" " * 12, 400)):
        answer = auth.send("POST /auth/register", {"email": f"u{len(password)}@example.com", "password": password})
        assert answer.status == status, password
    assert pool.operations() == ["SignUp", "SignUp"]


@pytest.mark.parametrize("code", ["InvalidPasswordException", "PasswordHistoryPolicyViolationException"])
def test_a_password_that_only_the_pool_refuses_is_told(auth: AuthFunction, pool: FakeCognito, code: str) -> None:
    pool.add(ADA, STRANGERS, confirmed=False).code = "654321"
    pool.faults["AdminSetUserPassword"] = [CognitoError(code)]
    assert confirm(auth, "654321").error_code == "invalid_password"
    pool.faults["ConfirmForgotPassword"] = [CognitoError(code)]
    form = {"email": ADA, "code": WRONG_CODE, "password": PASSWORD}
    assert auth.send("POST /auth/password/reset", form).error_code == "invalid_password"


# --- Tokens


def test_a_refresh_token_serves_once_and_its_answer_has_the_next(auth: AuthFunction, ada: Member) -> None:
    first = log_in(auth).body["refresh_token"]
    answer = auth.send("POST /auth/refresh", {"refresh_token": first})
    assert answer.status == 200
    assert answer.body.keys() == {"token_type", "access_token", "id_token", "refresh_token", "expires_in"}
    assert answer.body["refresh_token"] != first
    refused = auth.send("POST /auth/refresh", {"refresh_token": first})
    assert (refused.status, refused.error_code) == (401, "invalid_credentials")
    assert auth.send("POST /auth/refresh", {"refresh_token": answer.body["refresh_token"]}).status == 200


def test_signing_out_ends_this_sign_in_and_may_be_repeated(auth: AuthFunction, ada: Member) -> None:
    here, there = (log_in(auth).body["refresh_token"] for _ in range(2))
    for _ in range(2):
        answer = auth.send("POST /auth/logout", {"refresh_token": here}, user=ada.sub)
        assert (answer.status, answer.raw) == (204, "")
    assert auth.send("POST /auth/refresh", {"refresh_token": here}).status == 401
    assert auth.send("POST /auth/refresh", {"refresh_token": there}).status == 200


def test_signing_out_everywhere_ends_them_all(auth: AuthFunction, pool: FakeCognito, ada: Member) -> None:
    pool.add("eve@example.com", PASSWORD)
    tokens = [log_in(auth).body["refresh_token"] for _ in range(2)]
    other = log_in(auth, "eve@example.com").body["refresh_token"]
    assert auth.send("POST /auth/logout", {"everywhere": True}, user=ada.sub).status == 204
    assert [auth.send("POST /auth/refresh", {"refresh_token": token}).status for token in tokens] == [401, 401]
    assert auth.send("POST /auth/refresh", {"refresh_token": other}).status == 200


def test_signing_out_of_nothing_is_refused(auth: AuthFunction, ada: Member) -> None:
    assert auth.send("POST /auth/logout", {}, user=ada.sub).status == 400
    assert auth.send("POST /auth/logout", {"everywhere": False}, user=ada.sub).status == 400


def test_a_password_that_has_to_be_chosen_anew_is_told(
    auth: AuthFunction, pool: FakeCognito, ada: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody whom the operator invited, with the password from the invitation."""
    challenge = {"ChallengeName": "NEW_PASSWORD_REQUIRED", "Session": "s" * 30, "ChallengeParameters": {}}
    monkeypatch.setattr(pool, "_InitiateAuth", lambda _: challenge)
    assert (log_in(auth).status, log_in(auth).error_code) == (403, "password_change_required")


# --- The second factor


def turn_on(auth: AuthFunction, ada: Member) -> str:
    """Ada's secret."""
    token = log_in(auth).body["access_token"]
    form = {"action": "associate", "password": PASSWORD}
    answer = auth.send("POST /auth/mfa", form, user=ada.sub, token=token)
    assert answer.body["status"] == "associated"
    secret: str = answer.body["secret"]
    assert answer.body["otpauth_uri"] == f"otpauth://totp/Tollgate:ada%40example.com?secret={secret}&issuer=Tollgate"
    form = {"action": "verify", "code": totp(secret, time.time())}
    assert auth.send("POST /auth/mfa", form, user=ada.sub, token=token).body["status"] == "enabled"
    return secret


def test_a_second_factor_is_asked_for_after_the_password(auth: AuthFunction, ada: Member) -> None:
    secret = turn_on(auth, ada)
    challenge = log_in(auth)
    assert challenge.status == 200
    assert challenge.body.keys() == {"challenge", "session"}
    assert challenge.body["challenge"] == "SOFTWARE_TOKEN_MFA"
    form = {"email": ADA, "session": challenge.body["session"], "code": totp(secret, time.time())}
    answer = auth.send("POST /auth/login/mfa", form)
    assert answer.status == 200
    assert answer.body["user"]["id"] == ada.sub
    assert answer.body["usage"]["plan"]["id"] == "free"
    assert auth.send("POST /auth/login/mfa", form).error_code == "invalid_code"


def test_a_wrong_second_factor_or_another_users_session_is_refused(
    auth: AuthFunction, pool: FakeCognito, ada: Member
) -> None:
    secret = turn_on(auth, ada)
    pool.add("eve@example.com", PASSWORD)
    code = totp(secret, time.time())
    wrong = str((int(code) + 1) % 1_000_000).zfill(6)
    for email, given in ((ADA, wrong), ("eve@example.com", code), (STRANGER, code)):
        form = {"email": email, "session": log_in(auth).body["session"], "code": given}
        assert auth.send("POST /auth/login/mfa", form).error_code == "invalid_code"


def test_a_stolen_access_token_neither_adds_nor_removes_a_second_factor(auth: AuthFunction, ada: Member) -> None:
    token = log_in(auth).body["access_token"]
    for action in ("associate", "disable"):
        form = {"action": action, "password": "wrong password 1"}
        answer = auth.send("POST /auth/mfa", form, user=ada.sub, token=token)
        assert (answer.status, answer.error_code) == (403, "wrong_password")
        assert auth.send("POST /auth/mfa", {"action": action}, user=ada.sub, token=token).status == 400
    assert ada.secret is None


def test_proving_the_password_leaves_no_sign_in_behind(auth: AuthFunction, ada: Member) -> None:
    token = log_in(auth).body["access_token"]
    auth.send("POST /auth/mfa", {"action": "associate", "password": PASSWORD}, user=ada.sub, token=token)
    assert len(ada.refresh_tokens) == 1


def test_a_second_factor_counts_only_after_its_first_right_code(auth: AuthFunction, ada: Member) -> None:
    token = log_in(auth).body["access_token"]
    auth.send("POST /auth/mfa", {"action": "associate", "password": PASSWORD}, user=ada.sub, token=token)
    right = totp(ada.secret or "", time.time())
    form = {"action": "verify", "code": str((int(right) + 1) % 1_000_000).zfill(6)}
    assert auth.send("POST /auth/mfa", form, user=ada.sub, token=token).error_code == "invalid_code"
    assert "access_token" in log_in(auth).body


def test_a_second_factor_that_was_not_begun_has_nothing_to_verify(auth: AuthFunction, ada: Member) -> None:
    token = log_in(auth).body["access_token"]
    answer = auth.send("POST /auth/mfa", {"action": "verify", "code": WRONG_CODE}, user=ada.sub, token=token)
    assert (answer.status, answer.error_code) == (400, "second_factor_not_begun")
    assert "associate" in answer.raw


def test_a_second_factor_is_turned_off_with_the_password(auth: AuthFunction, ada: Member, pool: FakeCognito) -> None:
    turn_on(auth, ada)
    token = pool.tokens.access_token(time.time(), sub=ada.sub)
    form = {"action": "disable", "password": PASSWORD}
    assert auth.send("POST /auth/mfa", form, user=ada.sub, token=token).body["status"] == "disabled"
    assert "access_token" in log_in(auth).body


def test_a_sign_in_that_was_ended_changes_no_second_factor(auth: AuthFunction, ada: Member) -> None:
    token = log_in(auth).body["access_token"]
    auth.send("POST /auth/logout", {"everywhere": True}, user=ada.sub)
    form = {"action": "verify", "code": WRONG_CODE}
    assert auth.send("POST /auth/mfa", form, user=ada.sub, token=token).status == 401


# --- Profile and preferences


def test_a_profile_is_replaced_as_a_whole_and_the_address_is_not_the_clients(auth: AuthFunction, ada: Member) -> None:
    log_in(auth)
    whole = {"display_name": "Ada", "locale": "en-GB", "time_zone": "Europe/London"}
    assert auth.send("PUT /user/profile", whole, user=ada.sub).status == 200
    assert auth.send("GET /user/profile", user=ada.sub).body == {"id": ada.sub, "email": ADA, **whole}
    auth.send("PUT /user/profile", {"locale": "de"}, user=ada.sub)
    stored = auth.send("GET /user/profile", user=ada.sub).body
    assert stored == {"id": ada.sub, "email": ADA, "display_name": None, "locale": "de", "time_zone": None}
    assert auth.send("PUT /user/profile", {}, user=ada.sub).status == 200
    for field in ("email", "plan_id", "id", "tenant_id", "paid", "deleted_at"):
        assert auth.send("PUT /user/profile", {field: "x"}, user=ada.sub).status == 400, field
    profile = Users(auth.table).find_profile("main", ada.sub)
    assert profile is not None
    assert (profile.email, profile.plan_id, profile.paid) == (ADA, "free", True)


@pytest.mark.parametrize(
    "form",
    [
        {"display_name": ""},
        {"display_name": "   "},
        {"display_name": "x" * 101},
        {"display_name": "a\nb"},
        {"display_name": 7},
        {"locale": "english please"},
        {"locale": "de_CH"},
        {"time_zone": "../../etc/passwd"},
        {"time_zone": "Europe/"},
        [],
        "text",
        "{",
    ],
)
def test_a_profile_that_is_none_is_refused(auth: AuthFunction, ada: Member, form: object) -> None:
    assert auth.send("PUT /user/profile", form, user=ada.sub).status == 400


def test_preferences_are_empty_until_they_are_put(auth: AuthFunction, ada: Member) -> None:
    assert auth.send("GET /user/preferences", user=ada.sub).body == {
        "theme": None,
        "default_model": None,
        "apps": None,
        "usage_emails": None,
    }
    document = {
        "usage_emails": False,
        "theme": "dark",
        "default_model": "claude-haiku-4-5",
        "apps": {"notes": {"fonts": [1, 2.5, "ü", None]}},
    }
    assert auth.send("PUT /user/preferences", document, user=ada.sub).body == document
    assert auth.send("GET /user/preferences", user=ada.sub).body == document
    auth.send("PUT /user/preferences", {"theme": "light"}, user=ada.sub)
    assert auth.send("GET /user/preferences", user=ada.sub).body["apps"] is None


def preferences_of(length: int) -> dict[str, Any]:
    empty = len(json.dumps({"apps": {"notes": ""}}, separators=(",", ":")))
    return {"apps": {"notes": "x" * (length - empty)}}


@pytest.mark.parametrize(("length", "status"), [(8191, 200), (8192, 200), (8193, 400)])
def test_preferences_are_small(auth: AuthFunction, ada: Member, length: int, status: int) -> None:
    assert auth.send("PUT /user/preferences", preferences_of(length), user=ada.sub).status == status


@pytest.mark.parametrize(("levels", "status"), [(4, 200), (5, 200), (6, 400), (10_000, 400)])
def test_preferences_are_flat(auth: AuthFunction, ada: Member, levels: int, status: int) -> None:
    """Six levels with the one of `apps` itself."""
    nested = '{"apps":{"notes":' + "[" * levels + "]" * levels + "}}"
    assert auth.send("PUT /user/preferences", nested, user=ada.sub).status == status


@pytest.mark.parametrize(
    "document",
    [
        {"theme": "pink"},
        {"theme": 1},
        {"unknown": 1},
        {"apps": []},
        {"apps": {"": 1}},
        {"apps": {"Notes": 1}},
        {"default_model": "a b"},
        '{"apps":{"notes":NaN}}',
        '{"theme":"dark","theme":"light"}',
    ],
)
def test_preferences_have_a_schema(auth: AuthFunction, ada: Member, document: object) -> None:
    assert auth.send("PUT /user/preferences", document, user=ada.sub).status == 400


def test_each_user_has_their_own(auth: AuthFunction, pool: FakeCognito, ada: Member) -> None:
    eve = pool.add("eve@example.com", PASSWORD)
    auth.send("PUT /user/preferences", {"theme": "dark"}, user=ada.sub)
    auth.send("PUT /user/profile", {"display_name": "Ada"}, user=ada.sub)
    assert auth.send("GET /user/preferences", user=eve.sub).body["theme"] is None
    assert auth.send("GET /user/profile", user=eve.sub).body["display_name"] is None


# --- Deletion


def live_in(auth: AuthFunction, ada: Member) -> ApiKey:
    """Ada uses her account; one of her keys."""
    log_in(auth)
    auth.send("PUT /user/profile", {"display_name": CANARY, "locale": "en"}, user=ada.sub)
    auth.send("PUT /user/preferences", {"apps": {"notes": CANARY}}, user=ada.sub)
    key = ApiKey(
        id="0000000000key1",
        key_hash="a" * 64,
        tenant_id="main",
        user_id=ada.sub,
        mode=KeyMode.LIVE,
        last_four="wxyz",
        created_at=datetime(2026, 11, 1, tzinfo=UTC),
        name=CANARY,
    )
    assert ApiKeys(auth.table).put_key(key)
    return key


def assert_gone(auth: AuthFunction, pool: FakeCognito, ada: Member, key: ApiKey) -> None:
    assert ada.sub not in pool.members
    assert CANARY not in auth.stored()
    assert ADA not in auth.stored()
    stored_key = ApiKeys(auth.table).find_key(key.key_hash)
    assert stored_key is not None
    assert stored_key.revoked_at is not None


def test_a_deleted_account_leaves_no_person_behind(auth: AuthFunction, pool: FakeCognito, ada: Member) -> None:
    key = live_in(auth, ada)
    answer = auth.send("DELETE /auth/me", user=ada.sub)
    assert (answer.status, answer.raw) == (204, "")
    assert_gone(auth, pool, ada, key)
    shell = Users(auth.table).find_profile("main", ada.sub)
    assert shell is not None
    assert shell.deleted_at is not None
    assert shell.plan_id == "free"  # the books go on without the person


def test_deleting_again_is_the_same(auth: AuthFunction, pool: FakeCognito, ada: Member) -> None:
    key = live_in(auth, ada)
    auth.send("DELETE /auth/me", user=ada.sub)
    shell = Users(auth.table).find_profile("main", ada.sub)
    assert auth.send("DELETE /auth/me", user=ada.sub).status == 204
    assert Users(auth.table).find_profile("main", ada.sub) == shell
    assert_gone(auth, pool, ada, key)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("GET /auth/me", None),
        ("GET /user/profile", None),
        ("PUT /user/profile", {"display_name": CANARY}),
        ("GET /user/preferences", None),
        ("PUT /user/preferences", {"apps": {"notes": CANARY}}),
    ],
)
def test_a_token_that_is_still_valid_does_not_bring_an_account_back(
    auth: AuthFunction, ada: Member, route: str, body: object
) -> None:
    """Also of somebody who deletes before any other call: the shell is made first."""
    auth.send("DELETE /auth/me", user=ada.sub)
    stored = auth.stored()
    answer = auth.send(route, body, user=ada.sub)
    assert (answer.status, answer.error_code) == (401, "account_deleted")
    assert auth.stored() == stored


FINISH: list[Callable[[AuthFunction, Member], int]] = [
    lambda auth, ada: auth.send("DELETE /auth/me", user=ada.sub).status,
    lambda auth, _: log_in(auth).status,
]


@pytest.mark.parametrize(("finish", "status"), list(zip(FINISH, (204, 401), strict=True)), ids=["delete", "login"])
def test_a_deletion_that_stopped_half_way_goes_on_with_the_next_call(
    auth: AuthFunction,
    pool: FakeCognito,
    ada: Member,
    finish: Callable[[AuthFunction, Member], int],
    status: int,
) -> None:
    key = live_in(auth, ada)
    pool.faults["AdminDeleteUser"] = [CognitoError("InternalErrorException")] * 2
    refused = auth.send("DELETE /auth/me", user=ada.sub)
    assert (refused.status, refused.error_code) == (503, "sign_in_unavailable")
    assert auth.send("GET /auth/me", user=ada.sub).status == 401  # nothing is served from then on
    assert finish(auth, ada) == status
    assert_gone(auth, pool, ada, key)


def test_an_address_may_register_again_after_its_account_was_deleted(
    auth: AuthFunction, pool: FakeCognito, ada: Member
) -> None:
    log_in(auth)
    auth.send("DELETE /auth/me", user=ada.sub)
    auth.send("POST /auth/register", {"email": ADA, "password": PASSWORD})
    confirm(auth, pool.code_for(ADA))
    answer = log_in(auth)
    assert answer.status == 200
    assert answer.body["user"]["id"] != ada.sub


def test_a_user_whom_the_pool_no_longer_has_is_not_made_anew(auth: AuthFunction, pool: FakeCognito) -> None:
    answer = auth.send("GET /auth/me", user="c0ffee00-0000-4000-8000-000000000000")
    assert (answer.status, answer.error_code) == (401, "account_deleted")


# --- Cognito fails


CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST /auth/register", "SignUp", {"email": ADA, "password": PASSWORD}),
    ("POST /auth/confirm", "ConfirmSignUp", {"email": ADA, "code": WRONG_CODE, "password": PASSWORD}),
    ("POST /auth/resend", "ResendConfirmationCode", {"email": ADA}),
    ("POST /auth/login", "InitiateAuth", {"email": ADA, "password": PASSWORD}),
    ("POST /auth/login/mfa", "RespondToAuthChallenge", {"email": ADA, "session": "s" * 36, "code": WRONG_CODE}),
    ("POST /auth/refresh", "GetTokensFromRefreshToken", {"refresh_token": "r.e.f"}),
    ("POST /auth/password/forgot", "ForgotPassword", {"email": ADA}),
    ("POST /auth/password/reset", "ConfirmForgotPassword", {"email": ADA, "code": WRONG_CODE, "password": PASSWORD}),
    ("POST /auth/logout", "RevokeToken", {"refresh_token": "r.e.f"}),
    ("POST /auth/logout", "AdminUserGlobalSignOut", {"everywhere": True}),
    ("POST /auth/mfa", "VerifySoftwareToken", {"action": "verify", "code": WRONG_CODE}),
]
MISFORTUNES = [
    ("TooManyRequestsException", 429, "rate_limited"),
    ("InternalErrorException", 503, "sign_in_unavailable"),
    ("ResourceNotFoundException", 503, "sign_in_unavailable"),
    ("UnexpectedLambdaException", 503, "sign_in_unavailable"),
    ("SomethingNobodyKnowsException", 503, "sign_in_unavailable"),
]


@pytest.mark.parametrize(("fault", "status", "error_code"), MISFORTUNES)
def test_misfortunes_of_the_pool_are_told_without_its_words(
    auth: AuthFunction, pool: FakeCognito, ada: Member, fault: str, status: int, error_code: str
) -> None:
    for route, operation, body in CALLS:
        pool.faults[operation] = [CognitoError(fault)] * 2
        answer = auth.send(route, body, user=ada.sub, token=pool.tokens.access_token(time.time(), sub=ada.sub))
        assert (answer.status, answer.error_code) == (status, error_code), route
        assert int(answer.headers["retry-after"]) >= 1
        assert fault not in answer.raw
        assert "text of Cognito" not in answer.raw
        pool.faults.clear()


def test_a_pool_that_cannot_be_reached_is_503(auth: AuthFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed_port = listener.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", f"http://127.0.0.1:{closed_port}")
    answer = log_in(auth)
    assert (answer.status, answer.error_code) == (503, "sign_in_unavailable")
    assert "127.0.0.1" not in answer.raw


def test_signing_up_and_in_uses_no_right_of_the_function(auth: AuthFunction, pool: FakeCognito, ada: Member) -> None:
    """Only what names one user, by id or behind a code that was taken, is signed: see AuthRole in template.yaml."""
    for route, _, body in CALLS:
        auth.send(route, body, user=ada.sub, token=pool.tokens.access_token(time.time(), sub=ada.sub))
    log_in(auth)
    pool.add("new@example.com", STRANGERS, confirmed=False).code = "654321"
    confirm(auth, "654321", "new@example.com")
    auth.send("DELETE /auth/me", user=ada.sub)
    assert pool.signed == {"AdminGetUser", "AdminSetUserPassword", "AdminUserGlobalSignOut", "AdminDeleteUser"}


# --- The door


@pytest.mark.parametrize(("route", "operation", "body"), [call for call in CALLS if "logout" not in call[0]][:8])
def test_an_open_route_asks_the_door_before_the_pool(
    auth: AuthFunction, pool: FakeCognito, route: str, operation: str, body: dict[str, Any]
) -> None:
    for _ in range(200):
        pool.faults["SignUp"] = [CognitoError("InternalErrorException")] * 2
        answer = auth.send(route, body)
        if answer.status == 429:
            break
    assert (answer.status, answer.error_code) == (429, "too_many_attempts")
    assert int(answer.headers["retry-after"]) >= 1
    asked = len(pool.calls)
    auth.send(route, body)
    assert len(pool.calls) == asked


def test_failed_sign_ins_make_wait_and_a_right_one_forgets_them(
    auth: AuthFunction, pool: FakeCognito, ada: Member
) -> None:
    for _ in range(3):
        assert log_in(auth, ADA, "wrong password 1").status == 401
    assert log_in(auth).status == 200
    # Ten, because the address is a known one by now and has five of its own.
    answers = [log_in(auth, ADA, "wrong password 1").status for _ in range(14)]
    assert answers[:4] == [401] * 4
    assert 429 in answers


def test_a_second_factor_forgets_failures_at_its_owners_mailbox_whomever_the_form_names(
    auth: AuthFunction, pool: FakeCognito, ada: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the pool took a session with somebody else's name: else a guesser would buy tries with their own app."""
    eve = pool.add("eve@example.com", PASSWORD)
    monkeypatch.setattr(pool, "_RespondToAuthChallenge", lambda _: pool._issue(eve))
    assert [log_in(auth, ADA, "wrong password 1").status for _ in range(5)] == [401] * 5
    answer = auth.send("POST /auth/login/mfa", {"email": ADA, "session": "s" * 36, "code": WRONG_CODE})
    assert answer.body["user"]["email"] == eve.email
    assert [log_in(auth, ADA, "wrong password 1").status for _ in range(5)] != [401] * 5


# --- Nothing of it is written down


def test_no_password_code_or_token_is_logged_or_stored(
    auth: AuthFunction, pool: FakeCognito, ada: Member, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = turn_on(auth, ada)
    challenge = log_in(auth).body["session"]
    code = totp(secret, time.time())
    tokens = auth.send("POST /auth/login/mfa", {"email": ADA, "session": challenge, "code": code}).body
    fresh = auth.send("POST /auth/refresh", {"refresh_token": tokens["refresh_token"]}).body
    auth.send("POST /auth/password/forgot", {"email": ADA})
    reset = pool.code_for(ADA)
    auth.send("POST /auth/password/reset", {"email": ADA, "code": reset, "password": "a whole new password"})
    for _, operation, _ in CALLS:
        pool.faults[operation] = [CognitoError("InternalErrorException", CANARY)] * 2
    for route, _, body in CALLS:
        auth.send(route, body, user=ada.sub, token=fresh["access_token"])
    captured = capsys.readouterr()
    written = captured.out + captured.err
    assert "request_refused" in written
    secrets = [PASSWORD, "a whole new password", secret, challenge, CANARY]
    secrets += [value for body in (tokens, fresh) for name, value in body.items() if name.endswith("_token")]
    for text in secrets:
        assert text not in written
        assert text not in auth.stored()
    assert ADA not in written
