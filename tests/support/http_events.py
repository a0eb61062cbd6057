"""HTTP API events (payload format 2.0) as API Gateway sends them to a function behind its JWT authorizer."""

from __future__ import annotations

from typing import Any

from tests.support.user_pool import CLIENT_ID, ISSUER, SUBJECT


def claims_of(subject: str = SUBJECT, **changes: Any) -> dict[str, Any]:  # noqa: ANN401  any JSON
    """Verified claims; API Gateway turns every value into text. A change to None removes the claim."""
    claims = {
        "auth_time": "1795176000",
        "client_id": CLIENT_ID,
        "exp": "1795179600",
        "iat": "1795176000",
        "iss": ISSUER,
        "scope": "aws.cognito.signin.user.admin",
        "sub": subject,
        "token_use": "access",
        "username": subject,
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


def http_event(method: str, path: str, claims: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """One request; without claims it passed no authorizer."""
    context: dict[str, Any] = {
        "accountId": "111122223333",
        "apiId": "a1b2c3d4e5",
        "domainName": "a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com",
        "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.7", "userAgent": "t"},
        "requestId": "ZxYwVuTsRqPoNmL=",
        "routeKey": f"{method} {path}",
        "stage": "$default",
        "time": "20/Nov/2026:12:00:00 +0000",
        "timeEpoch": 1795176000000,
    }
    if claims is not None:
        context["authorizer"] = {"jwt": {"claims": claims, "scopes": None}}
    return {
        "version": "2.0",
        "routeKey": f"{method} {path}",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"accept": "application/json", "authorization": "Bearer eyJ0.eyJ0.c2ln"},
        "requestContext": context,
        "isBase64Encoded": False,
        **changes,
    }
