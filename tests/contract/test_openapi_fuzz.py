"""docs/openapi.json against the handlers: schemathesis sends what it allows and what it forbids, and finds nothing.

Seeded and bounded. What it checks on every answer: no 5xx, a documented status, content type, headers and body, no
forbidden data taken and no allowed data refused, 401 without a token, 405 with the right Allow for other methods.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis import engine
from schemathesis.engine import events

from tests.support.api_world import api_world, served
from tests.support.sam import ROOT

pytestmark = pytest.mark.slow

SEED = 20_261_120
EXAMPLES = 6
FEWEST_CALLS = 500

# A schema cannot say which codes were mailed, which domains anybody can read, or which fields go together.
MEANING_BEYOND_THE_SCHEMA = {
    "/api-keys": "a day that has passed, a model that the plan does not have",
    "/api-keys/{key_id}": "a model that the plan does not have",
    "/auth/confirm": "the code",
    "/auth/login/mfa": "the session",
    "/auth/logout": "refresh_token, or everywhere",
    "/auth/mfa": "action says which fields go with it",
    "/auth/password/reset": "the code",
    "/auth/register": "addresses of throw-away domains",
    "/stripe/webhook": "the signature",
    "/usage/daily": "which month has a 31st, and which day comes first",
    "/usage/export": "the cursor, which day comes first",
    "/usage/requests": "the cursor, which day comes first",
    "/user/preferences": "the size of the whole document",
}
TAKEN = ["2xx", "401", "403", "404", "409", "429"]


@pytest.fixture(scope="module")
def run() -> Iterator[tuple[Counter[str], dict[str, str]]]:
    """(calls by phase, findings by what was found where)."""
    document: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert set(MEANING_BEYOND_THE_SCHEMA) <= set(document["paths"])
    with api_world() as world, served(world) as url:
        caller = world.sign_in("fuzz@example.com")
        schema = schemathesis.openapi.from_dict(document, config=_config(url, caller.access_token))
        yield _findings(engine.from_schema(schema).execute())


def _config(url: str, token: str) -> schemathesis.Config:
    also_400 = {"positive_data_acceptance": {"expected-statuses": ["400", *TAKEN]}}
    return schemathesis.Config.from_dict(
        {
            "base-url": url,
            "seed": SEED,
            "workers": 1,
            "auth": {"openapi": {"accessToken": {"bearer": token}}},
            "generation": {"max-examples": EXAMPLES, "deterministic": True, "database": "none"},
            "checks": {"positive_data_acceptance": {"expected-statuses": TAKEN}},
            "operations": [{"include-path": path, "checks": also_400} for path in MEANING_BEYOND_THE_SCHEMA],
        }
    )


def _findings(stream: Iterator[events.EngineEvent]) -> tuple[Counter[str], dict[str, str]]:
    calls: Counter[str] = Counter()
    found: dict[str, str] = {}
    for event in stream:
        if isinstance(event, events.ScenarioFinished):
            calls[event.phase.name] += len(event.recorder.interactions)
            for checks in event.recorder.checks.values():
                for check in checks:
                    if check.failure_info is not None:
                        failure = check.failure_info.failure
                        where = f"{failure.operation}: {check.name}: {failure.message}"
                        found.setdefault(where, check.failure_info.code_sample)
        elif isinstance(event, events.NonFatalError):
            found.setdefault(f"{event.label}: {event.value}", "")
        elif isinstance(event, events.FatalError):
            raise event.exception
    return calls, found


def test_schemathesis_finds_nothing(run: tuple[Counter[str], dict[str, str]]) -> None:
    _, found = run
    if found:
        pytest.fail("\n\n".join(f"{where}\n{sample}" for where, sample in found.items()), pytrace=False)


def test_it_has_looked_everywhere(run: tuple[Counter[str], dict[str, str]]) -> None:
    """A run that was cut off, or never got in, finds nothing either."""
    calls, _ = run
    assert sum(calls.values()) >= FEWEST_CALLS
    assert {"EXAMPLES", "COVERAGE", "FUZZING"} <= set(calls)
