"""Between the documents of API keys and the values behind them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tollgate.domain.api_keys import ApiKey, KeyMode, KeyWish
from tollgate.domain.principals import MaxTokensPolicy
from tollgate.edge.api_key_documents import (
    KeyChangeForm,
    KeyDocument,
    KeyForm,
    KeyPageDocument,
    NewKeyDocument,
    RateLimitForm,
    RotatedKeyDocument,
)
from tollgate.edge.errors import rfc3339

if TYPE_CHECKING:
    from tollgate.flows.api_keys import KeyRing, MintedKey
    from tollgate.storage.api_keys import KeyPage

_MODES = {"live": KeyMode.LIVE, "test": KeyMode.TEST}
_NAMES = {mode: name for name, mode in _MODES.items()}


def key_wish(form: KeyForm, keys: KeyRing) -> KeyWish:
    """What the form asks for. Raises InvalidRequestError for a model that is not in the catalog."""
    rate = form.rate_limit
    return KeyWish(
        name=form.name,
        mode=_MODES[form.mode],
        expires_at=None if form.expires_at is None else datetime.fromisoformat(form.expires_at),
        allowed_models=keys.model_ids(form.allowed_models or ()),
        budget_tokens=form.budget_tokens,
        requests_per_minute=None if rate is None else rate.requests_per_minute,
        burst_requests=None if rate is None else rate.burst,
        max_tokens_policy=MaxTokensPolicy(form.max_tokens_policy),
    )


def changed_key(key: ApiKey, form: KeyChangeForm, keys: KeyRing) -> ApiKey:
    """The key with the fields of the form that were sent. Raises InvalidRequestError."""
    changes: dict[str, Any] = {}
    for name in form.model_fields_set:
        value = getattr(form, name)
        if name == "rate_limit":
            changes |= _rate_limit(value)
        elif name == "allowed_models":
            changes[name] = keys.model_ids(value or ())
        else:
            changes[name] = MaxTokensPolicy(value) if name == "max_tokens_policy" else value
    return replace(key, **changes)


def key_document(key: ApiKey, now_seconds: float) -> KeyDocument:
    return KeyDocument.model_validate(_view(key, now_seconds))


def new_key_document(minted: MintedKey, now_seconds: float) -> NewKeyDocument:
    return NewKeyDocument.model_validate(_view(minted.key, now_seconds) | {"key": minted.text})


def rotated_key_document(minted: MintedKey, old: ApiKey, now_seconds: float) -> RotatedKeyDocument:
    replaces = {"key": minted.text, "replaces": _view(old, now_seconds)}
    return RotatedKeyDocument.model_validate(_view(minted.key, now_seconds) | replaces)


def key_page_document(page: KeyPage, now_seconds: float) -> KeyPageDocument:
    documents = [key_document(key, now_seconds) for key in page.keys]
    return KeyPageDocument(data=documents, has_more=page.has_more, last_id=page.last_id)


def _view(key: ApiKey, now_seconds: float) -> dict[str, object]:
    rate = {"requests_per_minute": key.requests_per_minute, "burst": key.burst_requests}
    return {
        "id": key.id,
        "name": key.name,
        "mode": _NAMES[key.mode],
        "prefix": key.mode.value,
        "last_four": key.last_four,
        "state": key.state_at(now_seconds).value,
        "created_at": rfc3339(key.created_at),
        "expires_at": _instant(key.expires_at),
        "last_used_at": _instant(key.last_used_at),
        "allowed_models": sorted(key.allowed_models) or None,
        "rate_limit": None if key.requests_per_minute is None else rate,
        "budget_tokens": key.budget_tokens,
        "max_tokens_policy": key.max_tokens_policy.value,
        "replaced_by": key.replaced_by,
    }


def _rate_limit(rate: RateLimitForm | None) -> dict[str, int | None]:
    if rate is None:
        return {"requests_per_minute": None, "burst_requests": None}
    return {"requests_per_minute": rate.requests_per_minute, "burst_requests": rate.burst}


def _instant(instant: datetime | None) -> str | None:
    return None if instant is None else rfc3339(instant)
