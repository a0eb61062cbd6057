"""GET /auth/me: who the caller is. GET /health: whether the function runs."""

from __future__ import annotations

from tollgate.edge.http_api import HttpApi
from tollgate.edge.views import plan_view, user_view
from tollgate.wiring import AuthTools, build_auth

api: HttpApi[AuthTools] = HttpApi(build_auth)
handler = api.handle


@api.get("/auth/me")
def me() -> dict[str, object]:
    """The caller's profile and plan; the profile is made at the first call."""
    caller = api.caller()
    account = api.tools.accounts.find(caller, fresh=True)
    credential = {"kind": caller.credential.value, "id": caller.credential_id}
    return {
        "user": user_view(account),
        "plan": plan_view(account.plan),
        "paid": account.profile.paid,
        "credential": credential,
    }


@api.get("/health")
def health() -> dict[str, object]:
    """Says nothing but that it runs: no version, no names, no dependency."""
    return {"status": "ok"}
