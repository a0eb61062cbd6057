"""When a key was last used: once an hour, and never in the way of a call."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

import pytest

from tests.support.clocks import NOON, FakeClock, Reports
from tollgate.domain.errors import StoreUnavailableError
from tollgate.domain.principals import CredentialKind, Principal
from tollgate.flows.key_use import KeyUses
from tollgate.storage.api_keys import ApiKeys

ADA = Principal("main", "ada", CredentialKind.API_KEY, "key_1")


class Notes:
    """Stands in for the table: what is written, or the outage."""

    def __init__(self) -> None:
        self.written: list[tuple[str, datetime, datetime]] = []
        self.silent = False

    def note_use(self, tenant_id: str, user_id: str, key_id: str, at: datetime, *, older_than: datetime) -> bool:
        assert (tenant_id, user_id) == ("main", "ada")
        if self.silent:
            raise StoreUnavailableError("silent")
        self.written.append((key_id, at, older_than))
        return True


def uses_of(notes: Notes, clock: FakeClock, reports: Reports | None = None) -> KeyUses:
    return KeyUses(cast("ApiKeys", notes), clock, reports or Reports())


@pytest.mark.parametrize(("passed_seconds", "writes"), [(3_599, 1), (3_600, 2), (3_601, 2)])
def test_a_process_writes_once_an_hour_for_a_key(passed_seconds: int, writes: int) -> None:
    notes, clock = Notes(), FakeClock()
    uses = uses_of(notes, clock)
    for _ in range(100):
        uses.note(ADA)
    clock.advance(passed_seconds)
    uses.note(ADA)
    assert len(notes.written) == writes
    assert notes.written[0] == (
        "key_1",
        datetime.fromtimestamp(NOON, UTC),
        datetime.fromtimestamp(NOON - 3_600, UTC),
    )


def test_each_key_has_its_own_hour_and_tokens_have_none() -> None:
    notes = Notes()
    uses = uses_of(notes, FakeClock())
    uses.note(ADA)
    uses.note(replace(ADA, credential_id="key_2"))
    uses.note(replace(ADA, credential=CredentialKind.ACCESS_TOKEN, credential_id="client"))
    assert [key for key, _, _ in notes.written] == ["key_1", "key_2"]


def test_a_silent_table_is_told_of_and_tried_again_at_the_next_call() -> None:
    notes, reports = Notes(), Reports()
    notes.silent = True
    uses = uses_of(notes, FakeClock(), reports)
    uses.note(ADA)
    assert reports.lines == [("key_use_not_noted", "silent")]
    notes.silent = False
    uses.note(ADA)
    assert len(notes.written) == 1
