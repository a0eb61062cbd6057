"""Our function against what else could stand in its place, all in one run: only ratios within it mean anything.

Every round visits every target in another order, so what else the machine does meets all of them alike; figures are
medians over rounds.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from bench import litellm
from bench.function import Answer, FunctionProcess, Surroundings, message_event
from bench.litellm import KeyBudget, LiteLlm
from bench.process_stats import Memory
from bench.targets import PASS_THROUGH, Function, Server, Target, at_once
from bench.upstream import TEXT

DIRECT, BARE, OURS, LITELLM = "upstream directly", "bare pass-through", "Tollgate", "LiteLLM"
SHORT_EVENTS = 10
LITELLM_KEY = "sk-bench"
RETRIES, RETRY_AFTER_SECONDS = 2, 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 5
    short_streams: int = 60
    """One after the other, at full speed, in each round."""
    lanes: tuple[int, ...] = (1, 8, 64, 128)
    paced_events: int = 50
    pace_ms: int = 20
    """A model that writes fifty pieces a second."""
    starts: int = 5
    seed: int = 20261120


SMALL = Size(rounds=1, short_streams=5, lanes=(1, 4), paced_events=10, pace_ms=5, starts=1)


def measure(around: Surroundings, size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """The whole comparison; LiteLLM is left out, with the reason said, where it is not installed."""
    skipped = None if litellm.version() else litellm.ABSENT
    if skipped:
        say(skipped)
    with ExitStack() as stack:
        say("starts")
        starts = stack.enter_context(_folder())
        started = _starts(around, size, starts, with_litellm=skipped is None)
        targets = list(_targets(around, stack, starts / "proxy", with_litellm=skipped is None))
        dice = random.Random(size.seed)
        say("short streams")
        short = _short(targets, size, dice)
        paced = {}
        for lanes in size.lanes:
            say(f"{lanes} paced streams at a time")
            paced[str(lanes)] = _paced(targets, lanes, size, dice)
    return {
        "litellm_version": litellm.version(),
        "skipped": skipped,
        "rounds": size.rounds,
        "short_events": SHORT_EVENTS,
        "short_streams": size.short_streams * size.rounds,
        "paced_events": size.paced_events,
        "pace_ms": size.pace_ms,
        "start": started,
        "short": short,
        "paced": paced,
    }


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tollgate-bench-peers-") as name:
        yield Path(name)


def _targets(around: Surroundings, stack: ExitStack, folder: Path, *, with_litellm: bool) -> Iterator[Target]:
    functions = (
        Server(DIRECT, around.upstream_port, "none", around.upstream_pid),
        Function(BARE, around, "none", PASS_THROUGH),
        Function(OURS, around, around.api_key),
    )
    for target in functions:
        stack.callback(target.close)
        yield target
    if with_litellm:
        proxy = LiteLlm(folder, around.upstream_port, {LITELLM_KEY: KeyBudget(max_budget=1e9)}, books=True)
        stack.callback(proxy.close)
        server = Server(LITELLM, proxy.port, LITELLM_KEY, proxy.pid)
        stack.callback(server.close)
        yield server


# --- Start ----------------------------------------------------------------------------------------------------------


def _starts(around: Surroundings, size: Size, folder: Path, *, with_litellm: bool) -> dict[str, Any]:
    """From the start of the process to the end of its first 200; the least of several, byte code there already."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for number in range(size.starts + 1):
        measured = {
            BARE: _start_function(around, PASS_THROUGH),
            OURS: _start_function(around, None),
        }
        if with_litellm:
            proxy = LiteLlm(folder / f"start-{number}", around.upstream_port, {LITELLM_KEY: KeyBudget()})
            measured[LITELLM] = (proxy.start_cpu_seconds, proxy.start_seconds, Memory.of([proxy.pid]).rss_mb)
            proxy.close()
        for name, row in measured.items():
            rows.setdefault(name, []).append(row)
    return {
        name: {
            "cpu_seconds": round(min(cpu for cpu, _, _ in found[1:]), 3),  # the first one writes byte code
            "seconds": round(min(seconds for _, seconds, _ in found[1:]), 3),
            "rss_mb": min(rss for _, _, rss in found[1:]),
        }
        for name, found in rows.items()
    }


def _start_function(around: Surroundings, handler: str | None) -> tuple[float, float, float]:
    began = time.monotonic()
    if handler is None:
        process = FunctionProcess(around, timed=False, counted=False)
    else:
        process = FunctionProcess(around, handler=handler, timed=False, counted=False)
    try:
        answer = process.send(message_event(around.api_key, TEXT.format(events=1, pace_ms=0)))
        assert answer.is_whole_stream, answer
        return process.cpu_seconds, time.monotonic() - began, Memory.of([process.pid]).rss_mb
    finally:
        process.close()


# --- Streams --------------------------------------------------------------------------------------------------------


def _short(targets: Sequence[Target], size: Size, dice: random.Random) -> dict[str, Any]:
    """Streams of ten events at full speed, one after the other: what a request costs, apart from waiting."""
    text = TEXT.format(events=SHORT_EVENTS, pace_ms=0)
    rows: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
    for target in targets:
        target.open(1)
        _send_all(target, 1, text, times=10)
    for _ in range(size.rounds):
        for target in dice.sample(targets, len(targets)):
            rows[target.name].append(_measured(target, 1, text, size.short_streams))
    return _summary(rows)


def _paced(targets: Sequence[Target], lanes: int, size: Size, dice: random.Random) -> dict[str, Any]:
    """Streams at the speed at which a model writes, so many at the same time."""
    text = TEXT.format(events=size.paced_events, pace_ms=size.pace_ms)
    for target in targets:
        target.open(lanes)
        for lane in range(lanes):
            # One by one: the local stand-in for SSM cannot answer 64 cold processes at once.
            target.send(lane, TEXT.format(events=1, pace_ms=0))
        _send_all(target, lanes, TEXT.format(events=1, pace_ms=0), times=1)
    rows: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
    for _ in range(size.rounds):
        for target in dice.sample(targets, len(targets)):
            rows[target.name].append(_measured(target, lanes, text, 2 if lanes > 1 else 4))
    return _summary(rows)


def _send_all(target: Target, lanes: int, text: str, times: int) -> list[Any]:
    answers = []
    for _ in range(times):
        answers += at_once(lanes, lambda lane: _send_patiently(target, lane, text))
    failed = [answer for answer in answers if not answer.is_whole_stream]
    if failed:
        raise RuntimeError(f"{target.name}: {len(failed)} of {len(answers)} failed, the first with {failed[0]}")
    return answers


def _send_patiently(target: Target, lane: int, text: str) -> Answer:
    """As Anthropic's clients do it: a 429 of the moment is sent again, a second later and twice at most.

    Its time counts from the first sending. One user's meter is one item, and 128 calls at the same instant is a lot.
    """
    began = time.monotonic()
    for retries in range(RETRIES + 1):
        late = time.monotonic() - began
        answer = target.send(lane, text)
        if answer.status != HTTPStatus.TOO_MANY_REQUESTS or retries == RETRIES:
            break
        time.sleep(RETRY_AFTER_SECONDS)
    return replace(
        answer,
        first_byte_seconds=late + answer.first_byte_seconds,
        first_token_seconds=late + answer.first_token_seconds,
        last_byte_seconds=late + answer.last_byte_seconds,
        retries=retries,
    )


def _measured(target: Target, lanes: int, text: str, times: int) -> dict[str, float]:
    before, began = target.cpu_seconds(), time.monotonic()
    answers = _send_all(target, lanes, text, times)
    seconds = time.monotonic() - began
    cpu = target.cpu_seconds() - before
    firsts = sorted(answer.first_byte_seconds * 1000 for answer in answers)
    tokens = sorted(answer.first_token_seconds * 1000 for answer in answers)
    memory = Memory.of(target.pids(lanes))
    return {
        "cpu_ms_per_stream": cpu * 1000 / len(answers),
        "first_byte_ms": statistics.median(firsts),
        "first_token_ms": statistics.median(tokens),
        "first_token_p99_ms": tokens[int(len(tokens) * 0.99)],
        "stream_ms": statistics.median(answer.last_byte_seconds * 1000 for answer in answers),
        "retries": sum(answer.retries for answer in answers),
        "billed_ms": statistics.median(answer.seconds * 1000 for answer in answers),
        "streams_per_second": len(answers) / seconds,
        "rss_mb": memory.rss_mb,
        "pss_mb": memory.pss_mb,
    }


def _summary(rows: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over rounds; `streams_per_cpu_second` is what one core could do if it did nothing else."""
    result: dict[str, Any] = {}
    for name, measured in rows.items():
        figures = {key: statistics.median(row[key] for row in measured) for key in measured[0]}
        figures["retries"] = sum(row["retries"] for row in measured)
        figures["streams_per_cpu_second"] = 1000 / figures["cpu_ms_per_stream"]
        result[name] = {key: _rounded(value) for key, value in figures.items()}
    return result


def _rounded(value: float) -> float:
    return round(value, 3 if value < 10 else 1)
