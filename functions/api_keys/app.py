"""API keys: make, list, look at, change, rotate and revoke one's own; report a leaked one."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from aws_lambda_powertools.event_handler.openapi.params import Header, Path, Query

from tollgate.domain.errors import (
    ConflictError,
    DuplicateRequestError,
    IdempotencyMismatchError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    StoreUnavailableError,
    UpstreamUnavailableError,
)
from tollgate.domain.principals import Principal
from tollgate.edge.api_key_documents import (
    KeyChangeForm,
    KeyDocument,
    KeyForm,
    KeyPageDocument,
    NewKeyDocument,
    ReportedDocument,
    ReportForm,
    RotatedKeyDocument,
    RotationForm,
)
from tollgate.edge.api_key_views import (
    changed_key,
    key_document,
    key_page_document,
    key_wish,
    new_key_document,
    rotated_key_document,
)
from tollgate.edge.headers import IDEMPOTENCY_KEY_PATTERN
from tollgate.edge.http_api import HttpApi, refusals
from tollgate.wiring import ApiKeysTools, build_api_keys

api: HttpApi[ApiKeysTools] = HttpApi(build_api_keys)
handler = api.handle

OUTAGES = (StoreUnavailableError, UpstreamUnavailableError)
"""The table, or the secret under which keys are hashed, is out of reach."""

KeyId = Annotated[str, Path(min_length=1, max_length=64)]
AfterId = Annotated[str | None, Query(min_length=1, max_length=64, description="Id of the last key already seen.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="idempotency-key",
        pattern=IDEMPOTENCY_KEY_PATTERN,
        description="Your own name for this one request. Remembered for 24 hours.",
    ),
]


# --- Open: it asks the door first


@api.post("/api-keys/report", status_code=HTTPStatus.ACCEPTED, responses=refusals(RateLimitedError, *OUTAGES))
def report_key(form: ReportForm) -> ReportedDocument:
    """End a key that leaked, by its full text. The answer is the same for every text."""
    api.tools.door.admit("/api-keys/report", api.source_ip())
    found = api.tools.keys.report(form.key)
    api.tools.telemetry.event("key_reported", found=found)
    return ReportedDocument()


# --- The caller's own

CREATION = (PermissionDeniedError, NotFoundError, DuplicateRequestError, IdempotencyMismatchError, *OUTAGES)


@api.post("/api-keys", status_code=HTTPStatus.CREATED, responses=refusals(*CREATION))
def create_key(form: KeyForm, idempotency_key: IdempotencyKey = None) -> NewKeyDocument:
    """Make a key. This answer is the only one that shows it; under one idempotency-key at most one is made."""
    keys, account = api.tools.keys, api.tools.accounts.find(api.caller(), fresh=True)
    minted = keys.create(account, key_wish(form, keys), idempotency_key=idempotency_key, body_sha256=form.sha256)
    return new_key_document(minted, api.tools.clock.now_seconds())


@api.get("/api-keys", responses=refusals(StoreUnavailableError))
def list_keys(limit: Annotated[int, Query(ge=1, le=100)] = 20, after_id: AfterId = None) -> KeyPageDocument:
    """Keys, newest first; dead ones stay in the list for 90 days."""
    return key_page_document(api.tools.keys.page(_owner(), limit, after_id), api.tools.clock.now_seconds())


@api.get("/api-keys/<key_id>", responses=refusals(NotFoundError, StoreUnavailableError))
def get_key(key_id: KeyId) -> KeyDocument:
    """One key."""
    return key_document(api.tools.keys.find(_owner(), key_id), api.tools.clock.now_seconds())


CHANGE = (PermissionDeniedError, NotFoundError, ConflictError, StoreUnavailableError)


@api.patch("/api-keys/<key_id>", responses=refusals(*CHANGE))
def change_key(key_id: KeyId, form: KeyChangeForm) -> KeyDocument:
    """Rename a key or change its limits; in force everywhere within a minute."""
    keys, caller = api.tools.keys, _owner()
    account = api.tools.accounts.find(caller, fresh=True)
    key = keys.change(account, caller, key_id, lambda stored: changed_key(stored, form, keys))
    return key_document(key, api.tools.clock.now_seconds())


@api.delete("/api-keys/<key_id>", status_code=HTTPStatus.NO_CONTENT, responses=refusals(NotFoundError, *OUTAGES))
def revoke_key(key_id: KeyId) -> None:
    """End a key for good, everywhere within a minute. Safe to repeat."""
    api.tools.keys.revoke(_owner(), key_id)


@api.post("/api-keys/<key_id>/rotate", responses=refusals(NotFoundError, ConflictError, *OUTAGES))
def rotate_key(key_id: KeyId, form: RotationForm) -> RotatedKeyDocument:
    """A new key in the place of this one, with its limits and its budget; the old one is accepted a while longer."""
    minted, old = api.tools.keys.rotate(_owner(), key_id, form.overlap_seconds)
    return rotated_key_document(minted, old, api.tools.clock.now_seconds())


def _owner() -> Principal:
    """The caller, whose account is there. Raises AuthenticationError, also when the account was deleted."""
    caller = api.caller()
    api.tools.accounts.find(caller)
    return caller
