"""API keys: form, checksum, hash and the instant from which a key is refused."""

from __future__ import annotations

import hashlib
import hmac
import random
import string
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.clocks import NOON
from tollgate.domain.api_keys import (
    SECRET_BYTES,
    ApiKey,
    KeyMode,
    KeyRefusal,
    KeyState,
    hash_api_key,
    is_well_formed,
    key_id,
    mint_api_key,
    mode_of,
    overlap_end,
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


# --- States, rotation, limits

WEEK = 7 * 24 * 3600
INSTANTS = st.integers(NOON - WEEK, NOON + WEEK)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, KeyState.ACTIVE),
        ({"replaced_by": "key_2"}, KeyState.REPLACED),
        ({"replaced_by": "key_2", "expires_at": datetime.fromtimestamp(NOON, UTC)}, KeyState.EXPIRED),
        ({"replaced_by": "key_2", "revoked_at": datetime.fromtimestamp(NOON, UTC)}, KeyState.REVOKED),
    ],
)
def test_a_key_has_one_state(changes: dict[str, object], state: KeyState) -> None:
    assert a_key(**changes).state_at(NOON) is state


@given(own_end=st.none() | INSTANTS, now=INSTANTS, overlap=st.integers(0, WEEK), seen=INSTANTS)
def test_a_rotation_never_makes_the_old_key_live_longer(own_end: int | None, now: int, overlap: int, seen: int) -> None:
    """Whenever one looks: what is accepted after the rotation was accepted without it, and not beyond the overlap."""
    key = a_key(expires_at=None if own_end is None else datetime.fromtimestamp(own_end, UTC))
    end = overlap_end(key, datetime.fromtimestamp(now, UTC), overlap)
    rotated = a_key(expires_at=end, replaced_by="key_2")
    assert end.timestamp() <= now + overlap
    if rotated.refusal_at(seen) is None:
        assert key.refusal_at(seen) is None
        assert seen < now + overlap
    elif key.refusal_at(seen) is None:
        assert seen >= now + overlap, "no shorter than asked for either"


@given(own_end=st.none() | INSTANTS, rotations=st.lists(st.tuples(INSTANTS, st.integers(0, WEEK)), max_size=5))
def test_no_line_of_rotations_outlives_the_first_keys_end(
    own_end: int | None, rotations: list[tuple[int, int]]
) -> None:
    """A successor inherits the end, so rotating again and again is no way around an expiry."""
    first = a_key(expires_at=None if own_end is None else datetime.fromtimestamp(own_end, UTC))
    for now, overlap in rotations:
        end = overlap_end(first, datetime.fromtimestamp(now, UTC), overlap)
        assert first.expires_at is None or end <= first.expires_at


@given(instant=st.integers(NOON - WEEK, NOON + WEEK), milliseconds=st.integers(0, 999))
def test_an_overlap_ends_on_a_whole_second_as_it_is_stored(instant: int, milliseconds: int) -> None:
    now = datetime.fromtimestamp(instant, UTC) + timedelta(milliseconds=milliseconds)
    assert overlap_end(a_key(), now, 60) == datetime.fromtimestamp(instant + 60, UTC)


@given(first=st.integers(NOON, NOON + WEEK), second=st.integers(NOON, NOON + WEEK))
def test_ids_sort_by_the_second_of_creation(first: int, second: int) -> None:
    earlier, later = key_id(min(first, second), "zzzzzz"), key_id(max(first, second) + 1, "000000")
    assert earlier < later
    assert len(earlier) == len(later) == 12


def test_a_key_without_budget_and_rate_has_no_limits_to_count() -> None:
    assert a_key(max_tokens_policy="refuse", allowed_models=frozenset({"m"})).limits is None


@pytest.mark.parametrize(
    ("changes", "label"),
    [({"name": "ci"}, '"ci" (…wxyz)'), ({"name": ""}, "…wxyz")],
)
def test_limits_name_the_key_as_its_owner_knows_it(changes: dict[str, object], label: str) -> None:
    limits = a_key(budget_tokens=5, **changes).limits
    assert limits is not None
    assert limits.label == label


def test_a_successor_shares_the_counters_of_the_first_key_of_its_line() -> None:
    limits = a_key(id="key_3", first_id="key_1", budget_tokens=5).limits
    assert limits is not None
    assert limits.id == "key_1"
