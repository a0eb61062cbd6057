"""Accounts: register, sign in and out, forget a password, a second factor, who one is, what apps remember; health."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from tollgate.domain.errors import (
    AuthenticationError,
    PermissionDeniedError,
    RateLimitedError,
    SignInUnavailableError,
    StoreUnavailableError,
    UpstreamUnavailableError,
)
from tollgate.domain.principals import Person
from tollgate.edge.account_documents import (
    AcceptedDocument,
    ChallengeDocument,
    ConfirmedDocument,
    ConfirmForm,
    EmailForm,
    LoginForm,
    LogoutForm,
    PasswordResetDocument,
    PreferencesDocument,
    ProfileDocument,
    ProfileForm,
    RefreshForm,
    RegisterForm,
    ResetForm,
    SecondFactorDocument,
    SecondFactorForm,
    SecondFactorLoginForm,
    SignedInDocument,
    TokensDocument,
)
from tollgate.edge.account_views import (
    access_token_of,
    profile_document,
    sign_in_document,
    signed_in_document,
    tokens_document,
)
from tollgate.edge.documents import HealthDocument, MeDocument
from tollgate.edge.http_api import HttpApi, refusals
from tollgate.edge.views import plan_view, user_view
from tollgate.flows.second_factor import authenticator_uri
from tollgate.flows.sign_in import SignedIn
from tollgate.wiring import AuthTools, build_auth

api: HttpApi[AuthTools] = HttpApi(build_auth)


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Who closes an account waits for Stripe at most as long as can still be answered."""
    api.tools.stripe_deadline.begin(context.get_remaining_time_in_millis())
    return api.handle(event, context)


POOL = (SignInUnavailableError, RateLimitedError, StoreUnavailableError)
OPEN = (*POOL, UpstreamUnavailableError)
"""The door of the open routes hashes addresses under a secret that it has to read."""


# --- Open routes: each asks the door first


@api.post("/auth/register", status_code=HTTPStatus.ACCEPTED, responses=refusals(*OPEN))
def register(form: RegisterForm) -> AcceptedDocument:
    """Make an account, or mail its code again. The answer is the same for every address."""
    api.tools.door.admit("/auth/register", api.source_ip(), email=form.email)
    api.tools.sign_up.register(form.email, form.name)
    return AcceptedDocument()


@api.post("/auth/confirm", responses=refusals(*OPEN))
def confirm(form: ConfirmForm) -> ConfirmedDocument:
    """Open the account with the code that was mailed, under the password sent with it."""
    api.tools.door.admit("/auth/confirm", api.source_ip(), email=form.email)
    api.tools.sign_up.confirm(form.email, form.code, form.password)
    return ConfirmedDocument()


@api.post("/auth/resend", status_code=HTTPStatus.ACCEPTED, responses=refusals(*OPEN))
def resend(form: EmailForm) -> AcceptedDocument:
    """Mail a new code to an account that waits for one. The answer is the same for every address."""
    api.tools.door.admit("/auth/resend", api.source_ip(), email=form.email)
    api.tools.sign_up.resend_code(form.email)
    return AcceptedDocument()


@api.post("/auth/login", responses=refusals(AuthenticationError, PermissionDeniedError, *OPEN))
def login(form: LoginForm) -> SignedInDocument | ChallengeDocument:
    """Tokens with plan and usage; a challenge where the user has a second factor."""
    api.tools.door.admit("/auth/login", api.source_ip(), email=form.email)
    outcome = api.tools.sign_in.sign_in(form.email, form.password)
    if isinstance(outcome, SignedIn):
        api.tools.door.succeeded("/auth/login", api.source_ip(), email=form.email)
    return sign_in_document(outcome)


@api.post("/auth/login/mfa", responses=refusals(AuthenticationError, PermissionDeniedError, *OPEN))
def login_with_second_factor(form: SecondFactorLoginForm) -> SignedInDocument:
    """The rest of a sign-in: the code of the authenticator app."""
    api.tools.door.admit("/auth/login/mfa", api.source_ip(), email=form.email)
    outcome = api.tools.sign_in.answer_second_factor(form.email, form.session, form.code)
    # The session's owner, whoever the form names: nobody forgets failures at somebody else's mailbox.
    account = outcome.usage.account
    api.tools.door.succeeded("/auth/login", api.source_ip(), email=account.profile.email or account.user_id)
    return signed_in_document(outcome)


@api.post("/auth/refresh", responses=refusals(AuthenticationError, *OPEN))
def refresh(form: RefreshForm) -> TokensDocument:
    """New tokens; keep the refresh token of this answer, because the old one ends."""
    api.tools.door.admit("/auth/refresh", api.source_ip())
    return tokens_document(api.tools.sign_in.refresh(form.refresh_token))


@api.post("/auth/password/forgot", status_code=HTTPStatus.ACCEPTED, responses=refusals(*OPEN))
def forget_password(form: EmailForm) -> AcceptedDocument:
    """Mail a code that allows a new password. The answer is the same for every address."""
    api.tools.door.admit("/auth/password/forgot", api.source_ip(), email=form.email)
    api.tools.sign_up.forget_password(form.email)
    return AcceptedDocument()


@api.post("/auth/password/reset", responses=refusals(*OPEN))
def reset_password(form: ResetForm) -> PasswordResetDocument:
    """Set a new password with that code. Every sign-in made before ends."""
    api.tools.door.admit("/auth/password/reset", api.source_ip(), email=form.email)
    api.tools.sign_up.reset_password(form.email, form.code, form.password)
    return PasswordResetDocument()


@api.get("/health")
def health() -> HealthDocument:
    """Says nothing but that it runs: no version, no names, no dependency."""
    return HealthDocument(status="ok")


# --- The caller's own


@api.get("/auth/me", responses=refusals(*POOL))
def me() -> MeDocument:
    """The caller's profile and plan; the profile is made at the first call."""
    caller = api.caller()
    account = api.tools.sign_in.account_of(caller)
    credential = {"kind": caller.credential.value, "id": caller.credential_id}
    return MeDocument.model_validate(
        {
            "user": user_view(account),
            "plan": plan_view(account.plan),
            "paid": account.profile.paid,
            "credential": credential,
        }
    )


@api.delete("/auth/me", status_code=HTTPStatus.NO_CONTENT, responses=refusals(*POOL))
def delete_me() -> None:
    """Delete the account: keys end, the person goes, what was used stays without them. Safe to repeat."""
    api.tools.closer.close(api.caller())


@api.post("/auth/logout", status_code=HTTPStatus.NO_CONTENT, responses=refusals(*POOL))
def logout(form: LogoutForm) -> None:
    """End this sign-in, or all of them. Access tokens already issued live out their hour."""
    api.tools.sign_in.sign_out(api.caller(), form.refresh_token, everywhere=form.everywhere)


@api.post("/auth/mfa", responses=refusals(PermissionDeniedError, *OPEN))
def change_second_factor(form: SecondFactorForm) -> SecondFactorDocument:
    """Turn an authenticator app on (associate, then verify) or off. Changes ask for the password again."""
    caller, tools = api.caller(), api.tools
    token = access_token_of(api.current_event.raw_event)
    if form.action == "verify":
        tools.second_factor.finish(token, form.code or "")
        return SecondFactorDocument(status="enabled")
    email = tools.sign_in.account_of(caller).profile.email or caller.user_id
    tools.door.admit("/auth/login", api.source_ip(), email=email)
    password = form.password or ""
    if form.action == "disable":
        tools.second_factor.remove(caller, token, password)
        answer = SecondFactorDocument(status="disabled")
    else:
        secret = tools.second_factor.begin(caller, token, password)
        answer = SecondFactorDocument(status="associated", secret=secret, otpauth_uri=authenticator_uri(email, secret))
    tools.door.succeeded("/auth/login", api.source_ip(), email=email)
    return answer


@api.get("/user/profile", responses=refusals(StoreUnavailableError))
def profile() -> ProfileDocument:
    """What the caller has told about themselves."""
    return profile_document(*api.tools.personal_data.person(api.caller()))


@api.put("/user/profile", responses=refusals(StoreUnavailableError))
def put_profile(form: ProfileForm) -> ProfileDocument:
    """Replace it: what is left out is removed. The e-mail address is changed in the user pool only."""
    person = Person(form.display_name, form.locale, form.time_zone)
    return profile_document(api.tools.personal_data.put_person(api.caller(), person), person)


@api.get("/user/preferences", responses=refusals(StoreUnavailableError))
def preferences() -> PreferencesDocument:
    """What the caller's apps remember."""
    return PreferencesDocument.model_validate_json(api.tools.personal_data.preferences(api.caller()))


@api.put("/user/preferences", responses=refusals(StoreUnavailableError))
def put_preferences(form: PreferencesDocument) -> PreferencesDocument:
    """Replace it."""
    api.tools.personal_data.put_preferences(api.caller(), form.text())
    return form
