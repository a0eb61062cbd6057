"""Accuracy of a quota: 64 callers at the same moment want far more than is left, then one after another takes the rest.

Both sides get room for exactly twenty messages. What was really spent is added up from the answers that callers got,
not read from anybody's books.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import litellm
from bench.function import MODEL, Answer, Surroundings, add_user
from bench.litellm import KeyBudget, LiteLlm
from bench.targets import Function, Server, Target, at_once
from bench.upstream import TEXT
from tollgate.catalog.loader import load_catalog
from tollgate.domain.pricing import PICOUSD_PER_MICROUSD
from tollgate.domain.tokens import TokenCounts

MESSAGES = 20
"""That fit."""
OUTPUT_TOKENS = 100
INPUT_TOKENS = 12
"""As the upstream reports."""
LOOSE_MAX_TOKENS = 1000
PACE_MS = 5
SETTLE_SECONDS = 3.0
"""After the burst: LiteLLM books in the background, and is given the time to."""
_USAGE = re.compile(rb'"type":"message_delta".*?"output_tokens":(\d+)')
_OUT_OF_QUOTA = frozenset({400, 402, 422, 429})


@dataclass(frozen=True, slots=True)
class Size:
    """How large the burst is."""

    callers: int = 64
    then_at_most: int = 60
    """Messages one after the other, once the burst is over, until three in a row are refused."""


SMALL = Size(callers=24, then_at_most=6)


def measure(around: Surroundings, size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """Every side with `max_tokens` just so, and with ten times more than is used, as clients usually ask for."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-bench-quota-")))
        for max_tokens in (OUTPUT_TOKENS, LOOSE_MAX_TOKENS):
            say(f"Tollgate, max_tokens {max_tokens}")
            key = add_user(around.table, f"tight-{max_tokens}", "tight")
            target = Function("Tollgate", around, key)
            try:
                rows.append(_burst(target, "hard quota", max_tokens, size))
            finally:
                target.close()
        for strict in (False, True):
            if litellm.version():
                say(f"LiteLLM, {'strict' if strict else 'as it comes'}")
                rows += _litellm(around, folder / str(strict), size, strict=strict)
    return {
        "litellm_version": litellm.version(),
        "skipped": None if litellm.version() else litellm.ABSENT,
        "callers": size.callers,
        "messages_that_fit": MESSAGES,
        "tokens_of_a_message": INPUT_TOKENS + OUTPUT_TOKENS,
        "microusd_of_a_message": _message_microusd(),
        "rows": rows,
    }


def _message_microusd() -> int:
    """At the catalog's price, which is LiteLLM's too."""
    model = load_catalog("default").models[MODEL]
    counts = TokenCounts(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
    return model.prices[-1].standard.cost_picousd(counts) // PICOUSD_PER_MICROUSD


def _litellm(around: Surroundings, folder: Path, size: Size, *, strict: bool) -> Iterable[dict[str, Any]]:
    budget = MESSAGES * _message_microusd() / 1e6
    budgets = {f"sk-budget-{each}": KeyBudget(max_budget=budget) for each in (OUTPUT_TOKENS, LOOSE_MAX_TOKENS)}
    tokens = MESSAGES * (INPUT_TOKENS + OUTPUT_TOKENS)
    limits = {f"sk-tpm-{each}": KeyBudget(tpm_limit=tokens) for each in (OUTPUT_TOKENS, LOOSE_MAX_TOKENS)}
    with ExitStack() as stack:
        keys = {"sk-free": KeyBudget(), **budgets, **limits}
        proxy = LiteLlm(folder, around.upstream_port, keys, strict=strict, books=True)
        stack.callback(proxy.close)
        for name, keys in (("max_budget", budgets), ("tpm_limit", limits)):
            if strict and name == "tpm_limit":
                continue  # the flag is about budgets
            for key in keys:
                server = Server("LiteLLM", proxy.port, key, proxy.pid)
                stack.callback(server.close)
                yield _burst(server, f"{name}, strict" if strict else name, int(key.rpartition("-")[2]), size)


def _burst(target: Target, bound: str, max_tokens: int, size: Size) -> dict[str, Any]:
    text = TEXT.format(events=OUTPUT_TOKENS, pace_ms=PACE_MS)
    target.open(size.callers)
    burst = at_once(size.callers, lambda lane: target.send(lane, text, max_tokens))
    after: list[Answer] = []
    time.sleep(SETTLE_SECONDS)
    while len(after) < size.then_at_most and not _is_over(after):
        after.append(target.send(0, text, max_tokens))
        if after[-1].status != 200:
            time.sleep(SETTLE_SECONDS / 10)
    served, later = _spent(burst), _spent(burst) + _spent(after)
    room = MESSAGES * (INPUT_TOKENS + OUTPUT_TOKENS)
    return {
        "target": target.name,
        "bound": bound,
        "max_tokens": max_tokens,
        "served_in_burst": sum(answer.status == 200 for answer in burst),
        "refused_in_burst": sum(answer.status in _OUT_OF_QUOTA for answer in burst),
        "other_in_burst": sum(answer.status not in {200, *_OUT_OF_QUOTA} for answer in burst),
        "served_after": sum(answer.status == 200 for answer in after),
        "spent_in_burst_percent": round(100 * served / room, 1),
        "overspent_percent": round(100 * max(0, later - room) / room, 1),
        "unspent_percent": round(100 * max(0, room - later) / room, 1),
        "refusals": sorted({_error_of(answer) for answer in [*burst, *after] if answer.status != 200}),
    }


def _is_over(answers: list[Answer]) -> bool:
    return len(answers) > 2 and all(answer.status != 200 for answer in answers[-3:])


def _spent(answers: Iterable[Answer]) -> int:
    """Tokens that the upstream reported to those who were served."""
    spent = 0
    for answer in answers:
        if answer.status == 200:
            found = _USAGE.search(answer.body)
            spent += INPUT_TOKENS + (int(found[1]) if found else answer.body.count(b"content_block_delta\n"))
    return spent


def _error_of(answer: Answer) -> str:
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, KeyError):
        return f"{answer.status}"
    return f"{answer.status} {error.get('type')}"
