"""Cognito asks what to put into a token: the user's plan, so that apps can read it offline. Nothing secret.

The claim is a courtesy. No part of the server reads it: what a user may do is decided by the table at each call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from tollgate.flows.authenticate import MAIN_TENANT_ID
from tollgate.storage.users import Users
from tollgate.telemetry import Telemetry

_VERSIONS: Final = frozenset({"2", "3"})
"""Of the trigger's event; the first could change ID tokens only."""


class Tools(Protocol):
    """What the trigger is built with."""

    @property
    def telemetry(self) -> Telemetry: ...

    @property
    def users(self) -> Users: ...

    @property
    def default_plan_id(self) -> str: ...


class PlanClaim:
    """The trigger's handler. It never fails: a sign-in without the claim is better than none."""

    def __init__(self, build: Callable[[], Tools]) -> None:
        self._build = build
        self._tools: Tools | None = None

    def handle(self, event: dict[str, Any], _: object) -> dict[str, Any]:
        """The event with the claim added; unchanged after any failure, which is logged."""
        try:
            if self._tools is None:
                self._tools = self._build()
        except Exception as error:  # noqa: BLE001  whatever it is, Cognito would refuse the sign-in for it
            logging.getLogger(__name__).error("plan_claim_not_configured: %s", type(error).__name__)  # noqa: TRY400
            return event
        try:
            return with_plan(event, self._tools)
        except Exception as error:  # noqa: BLE001  as above
            self._tools.telemetry.failure("plan_claim_failed", error)
            return event


def with_plan(event: dict[str, Any], tools: Tools) -> dict[str, Any]:
    """A copy of the event that adds `plan` to both tokens; the same for an account that was deleted."""
    if event["version"] not in _VERSIONS:
        raise ValueError("the pool calls this trigger in a version that cannot change access tokens")
    profile = tools.users.find_profile(MAIN_TENANT_ID, event["request"]["userAttributes"]["sub"])
    if profile is not None and profile.deleted_at is not None:
        return event
    plan_id = tools.default_plan_id if profile is None else profile.plan_id
    claims = {"claimsToAddOrOverride": {"plan": plan_id}}
    details = {"idTokenGeneration": claims, "accessTokenGeneration": claims}
    return event | {"response": (event.get("response") or {}) | {"claimsAndScopeOverrideDetails": details}}
