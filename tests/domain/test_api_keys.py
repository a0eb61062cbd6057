"""API keys: form, checksum, hash and the instant from which a key is refused."""

from __future__ import annotations

import hashlib
import hmac
import random
import string
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.clocks import NOON
from tollgate.domain.api_keys import (
    SECRET_BYTES,
    ApiKey,
    KeyMode,
    KeyRefusal,
    hash_api_key,
    is_well_formed,
    mint_api_key,
    mode_of,
)

BASE62 = string.digits + string.ascii_letters
SEED = 20261120
PEPPER = b"pepper-of-the-tests"


def a_key_text(mode: KeyMode = KeyMode.LIVE, seed: int = SEED) -> str:
    return mint_api_key(mode, random.Random(seed).randbytes(SECRET_BYTES))


def a_key(**changes: object) -> ApiKey:
    values: dict[str, object] = {
        "id": "key_1",
        "key_hash": "hash",
        "tenant_id": "main",
        "user_id": "u1",
        "mode": KeyMode.LIVE,
        "last_four": "wxyz",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return ApiKey(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", KeyMode)
def test_a_minted_key_is_well_formed_and_names_its_mode(mode: KeyMode) -> None:
    for seed in range(200):
        text = a_key_text(mode, seed)
        assert is_well_formed(text)
        assert mode_of(text) is mode
        assert len(text) == 44
        assert text.startswith(("tg_live_", "tg_test_"))


def test_two_keys_from_different_bytes_differ_and_one_from_the_same_bytes_is_the_same() -> None:
    assert len({a_key_text(seed=seed) for seed in range(1000)}) == 1000
    assert a_key_text(seed=1) == a_key_text(seed=1)


def test_a_key_is_not_minted_from_too_few_bytes() -> None:
    assert mint_api_key(KeyMode.LIVE, bytes(SECRET_BYTES))
    with pytest.raises(ValueError, match="32 random bytes"):
        mint_api_key(KeyMode.LIVE, bytes(SECRET_BYTES - 1))


def test_one_wrong_character_anywhere_is_refused() -> None:
    text = a_key_text()
    for position in range(len(text)):
        for other in BASE62 + "_":
            if other != text[position]:
                assert not is_well_formed(text[:position] + other + text[position + 1 :])


def test_two_swapped_neighbours_are_refused() -> None:
    text = a_key_text()
    swaps = [
        text[:position] + text[position + 1] + text[position] + text[position + 2 :]
        for position in range(len(text) - 1)
        if text[position] != text[position + 1]
    ]
    assert len(swaps) > 30
    assert not any(is_well_formed(swap) for swap in swaps)


def test_the_other_mode_does_not_share_the_checksum() -> None:
    assert not is_well_formed(KeyMode.TEST + a_key_text(KeyMode.LIVE).removeprefix(KeyMode.LIVE))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tg_live_",
        a_key_text()[:-1],
        a_key_text() + "0",
        " " + a_key_text(),
        a_key_text() + "\n",
        a_key_text().upper(),
        "sk-ant-api03-" + "a" * 31,
        "tg_live_" + "é" * 36,
        "tg_live_" + "٣" * 36,  # Arabic digits: str.isalnum alone would take them
        "tg_live_" + "\x00" * 36,
        "tg_live_" + "-" * 36,
    ],
)
def test_what_only_resembles_a_key_is_refused(text: str) -> None:
    assert not is_well_formed(text)


def test_the_stored_form_is_the_hmac_of_the_whole_key_under_the_pepper() -> None:
    text = a_key_text()
    assert hash_api_key(text, PEPPER) == hmac.new(PEPPER, text.encode(), hashlib.sha256).hexdigest()
    assert hash_api_key(text, PEPPER) != hash_api_key(text, b"another pepper")
    assert text not in hash_api_key(text, PEPPER)


def test_without_a_pepper_nothing_is_hashed() -> None:
    with pytest.raises(ValueError, match="pepper"):
        hash_api_key(a_key_text(), b"")


@pytest.mark.parametrize(("offset_seconds", "refusal"), [(-1, None), (0, KeyRefusal.EXPIRED), (1, KeyRefusal.EXPIRED)])
def test_a_key_is_refused_from_its_expiry_on(offset_seconds: int, refusal: KeyRefusal | None) -> None:
    key = a_key(expires_at=datetime.fromtimestamp(NOON, UTC))
    assert key.refusal_at(NOON + offset_seconds) is refusal


def test_a_key_without_expiry_stays_good() -> None:
    assert a_key().refusal_at(NOON + 10 * 365 * 86_400) is None


def test_a_revoked_key_is_called_revoked_even_when_it_has_expired_too() -> None:
    noon = datetime.fromtimestamp(NOON, UTC)
    key = a_key(expires_at=noon - timedelta(days=1), revoked_at=noon)
    assert key.refusal_at(NOON) is KeyRefusal.REVOKED
