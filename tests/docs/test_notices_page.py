"""docs/notices.md: the check of the signature that it shows works, and its figures are the code's."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tollgate.domain.notices import DEFAULT_THRESHOLDS_PERCENT
from tollgate.flows.deliver_notices import FIRST_WAIT, LONGEST_WAIT, MAX_ATTEMPTS, OUTDATED_AFTER
from tollgate.providers.operator_webhook import SECONDS, SIGNATURE_HEADER, signature

PAGE = (Path(__file__).parents[2] / "docs" / "notices.md").read_text(encoding="utf-8")


def shown_check() -> Callable[[bytes, str, str], bool]:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Callable[[bytes, str, str], bool]] = {}
    exec("\n".join(line[2:] for line in code.splitlines()), names)
    return names["is_ours"]


def test_the_check_takes_what_we_sign_and_nothing_else() -> None:
    is_ours, now, body = shown_check(), datetime.fromtimestamp(int(time.time()), UTC), b'{"id":"ntc_1"}'
    header = signature(body, ("new", "old"), now)
    assert is_ours(body, header, "new")
    assert is_ours(body, header, "old")
    assert not is_ours(body, header, "another")
    assert not is_ours(body + b" ", header, "new")
    assert not is_ours(body, signature(body, ("new",), now - timedelta(seconds=301)), "new")


def test_its_figures_are_those_of_the_code() -> None:
    assert SIGNATURE_HEADER in PAGE
    assert DEFAULT_THRESHOLDS_PERCENT == (75, 90, 100)
    assert "75, 90 and 100 %" in PAGE
    assert SECONDS == 5
    assert "within five seconds" in PAGE
    waits = [min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) for attempt in range(MAX_ATTEMPTS - 1)]
    assert f"{MAX_ATTEMPTS} times in about {round(sum(waits, timedelta()) / timedelta(hours=1))} hours" in PAGE
    assert timedelta(days=7) == OUTDATED_AFTER
