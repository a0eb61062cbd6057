"""What the routes of accounts answer, and the access token that some of them hand on to Cognito."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollgate.domain.errors import AuthenticationError
from tollgate.edge.account_documents import ChallengeDocument, ProfileDocument, SignedInDocument, TokensDocument
from tollgate.edge.documents import PlanDocument, UsageDocument, UserDocument
from tollgate.edge.views import plan_view, usage_view, user_view
from tollgate.flows.authenticate import MISSING
from tollgate.flows.sign_in import SignedIn

if TYPE_CHECKING:
    from tollgate.domain.principals import Account, Person
    from tollgate.providers.cognito_users import Challenge, Tokens


def sign_in_document(outcome: SignedIn | Challenge) -> SignedInDocument | ChallengeDocument:
    """Tokens with plan and usage, or what is still asked."""
    if not isinstance(outcome, SignedIn):
        return ChallengeDocument(challenge="SOFTWARE_TOKEN_MFA", session=outcome.session)
    return signed_in_document(outcome)


def signed_in_document(outcome: SignedIn) -> SignedInDocument:
    account = outcome.usage.account
    return SignedInDocument(
        **_tokens(outcome.tokens),
        user=UserDocument.model_validate(user_view(account)),
        plan=PlanDocument.model_validate(plan_view(account.plan)),
        usage=UsageDocument.model_validate(usage_view(outcome.usage)),
    )


def tokens_document(tokens: Tokens) -> TokensDocument:
    return TokensDocument(**_tokens(tokens))


def profile_document(account: Account, person: Person) -> ProfileDocument:
    return ProfileDocument(
        id=account.user_id,
        email=account.profile.email,
        display_name=person.display_name,
        locale=person.locale,
        time_zone=person.time_zone,
    )


def access_token_of(event: dict[str, Any]) -> str:
    """The token that the authorizer has verified, for Cognito to see. Who calls is never read from it."""
    headers = {str(name).lower(): str(value) for name, value in (event.get("headers") or {}).items()}
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise AuthenticationError(MISSING)
    return token.strip()


def _tokens(tokens: Tokens) -> dict[str, Any]:
    return {
        "access_token": tokens.access_token,
        "id_token": tokens.id_token,
        "refresh_token": tokens.refresh_token,
        "expires_in": tokens.expires_in_seconds,
    }
