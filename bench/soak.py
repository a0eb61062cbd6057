"""`make soak`: an hour's worth of traffic in ten minutes. Memory and file descriptors stay flat, the ledger is exact.

Eight processes of the claude function and one of the usage function serve what a busy hour brings: whole streams, plain
messages, answers that break in every way the fake Claude can break, wrong keys, broken bodies, users at their quota.
What callers were told they used is added up here and compared with what the ledger booked.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from bench.function import (
    CLAUDE,
    ROOT,
    SECRETS,
    Answer,
    FunctionProcess,
    Surroundings,
    add_user,
    message_body,
    message_event,
    surroundings,
    url_event,
)
from bench.page import write_page
from bench.process_stats import open_files, rss_mb
from bench.results import machine, write
from bench.targets import STARTS_AT_ONCE
from dev.engines import start_fake_claude
from dev.processes import Processes
from tollgate.catalog.loader import load_catalog
from tollgate.flows.reconcile import Reconciler, UserCheck
from tollgate.storage.meters import Meters
from tollgate.storage.requests import RequestOutcome, RequestPosition, Requests
from tollgate.storage.rollups import DayRollUps
from tollgate.wiring import SystemClock

USAGE: Final = "functions.usage.app.handler"
HOUR_OF_TRAFFIC: Final = 18_000
"""Five requests a second: what one user of a full plan makes with a dozen agents, or a few hundred people by hand."""
SECONDS: Final = 600
LANES: Final = 8
USERS: Final = 12
TIGHT_USERS: Final = 3
"""Of them, on a plan whose quota they pass soon."""
SAMPLES: Final = 60
USAGE_ROUNDS: Final = 10
_INPUT = re.compile(rb'"input_tokens": ?(\d+)')
_OUTPUT = re.compile(rb'"output_tokens": ?(\d+)')

KINDS: Final = {
    # what: how often of a hundred, what the fake Claude is told
    "stream": (56, "tokens={tokens} pace_ms={pace}"),
    "message": (10, "tokens={tokens}"),
    "error in the stream": (5, "tokens=200 error_after={after}"),
    "cut off": (4, "tokens=200 truncate_after={after}"),
    "connection lost": (4, "tokens=200 disconnect_after={after}"),
    "overloaded": (4, "error=529"),
    "hidden prompt": (3, "tokens=40 hidden_input=300"),
    "usage": (5, ""),
    "models": (3, ""),
    "wrong key": (3, ""),
    "broken body": (3, ""),
}


@dataclass(frozen=True, slots=True)
class Traffic:
    """How much, from which dice."""

    seconds: float = SECONDS
    requests: int = HOUR_OF_TRAFFIC
    lanes: int = LANES
    seed: int = 20261120


@dataclass(slots=True)
class Seen:
    """What callers saw; the lanes write into it under the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    answers: Counter[str] = field(default_factory=Counter)
    """By kind and status."""
    tokens: Counter[str] = field(default_factory=Counter)
    """By user: what whole answers said they cost."""
    failures: list[str] = field(default_factory=list)
    """Invocations that failed: there may be none."""


@dataclass(slots=True)
class Sample:
    """One look at all processes."""

    at_seconds: float
    rss_mb: list[float]
    open_files: list[int]


class Soak:
    """One run."""

    def __init__(self, around: Surroundings, traffic: Traffic, stack: ExitStack) -> None:
        self._around = around
        self._traffic = traffic
        plans = ["tight"] * TIGHT_USERS + ["bench"] * (USERS - TIGHT_USERS)
        self._users = {f"soak-{number}": plan for number, plan in enumerate(plans)}
        self._keys = {user: add_user(around.table, user, plan) for user, plan in self._users.items()}
        self._seen = Seen()
        self._samples: list[Sample] = []
        with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
            started = pool.map(lambda _: self._process(), range(traffic.lanes))
            self._lanes = list(started)
        self._usage = self._process(USAGE)
        self._usage_lock = threading.Lock()
        for process in self._processes:
            stack.callback(process.close)

    @property
    def _processes(self) -> list[FunctionProcess]:
        return [*self._lanes, self._usage]

    def run(self) -> dict[str, Any]:
        """All of the traffic, then the books."""
        began = time.monotonic()
        cpu = sum(process.cpu_seconds for process in self._processes)
        done = threading.Event()
        sampler = threading.Thread(target=self._sample_until, args=(done, began))
        sampler.start()
        try:
            with ThreadPoolExecutor(self._traffic.lanes) as pool:
                list(pool.map(lambda lane: self._drive(lane, began), range(self._traffic.lanes)))
        finally:
            done.set()
            sampler.join()
        seconds = time.monotonic() - began
        cpu = sum(process.cpu_seconds for process in self._processes) - cpu
        return {
            "seconds": round(seconds, 1),
            "requests": self._traffic.requests,
            "requests_per_second": round(self._traffic.requests / seconds, 1),
            "processes": len(self._processes),
            "cpu_ms_per_request": round(1000 * cpu / self._traffic.requests, 2),
            "answers": dict(sorted(self._seen.answers.items())),
            "failed_invocations": self._seen.failures,
            "memory": self._memory(),
            "open_files": self._open_files(),
            "ledger": self._ledger(),
            "samples": [
                {
                    "at_seconds": round(sample.at_seconds, 1),
                    "rss_mb": round(sum(sample.rss_mb), 1),
                    "open_files": sum(sample.open_files),
                }
                for sample in self._samples
            ],
        }

    # Traffic.

    def _process(self, handler: str = CLAUDE) -> FunctionProcess:
        return FunctionProcess(self._around, handler=handler, timed=False, counted=False)

    def _drive(self, lane: int, began: float) -> None:
        """Every lane has its share of the numbers, and each number its time."""
        for number in range(lane, self._traffic.requests, self._traffic.lanes):
            due = began + number * self._traffic.seconds / self._traffic.requests
            time.sleep(max(0.0, due - time.monotonic()))
            dice = random.Random(f"{self._traffic.seed} {number}")
            kind = dice.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
            user = dice.choice(list(self._users))
            try:
                answer = self._send(lane, kind, user, dice)
            except RuntimeError as error:
                with self._seen.lock:
                    self._seen.failures.append(f"{number} {kind}: {str(error)[:300]}")
                continue
            with self._seen.lock:
                self._seen.answers[f"{kind}: {answer.status}"] += 1
                self._seen.tokens[user] += _told_tokens(kind, answer)

    def _send(self, lane: int, kind: str, user: str, dice: random.Random) -> Answer:
        process, key = self._lanes[lane], self._keys[user]
        match kind:
            case "usage":
                with self._usage_lock:
                    return self._usage.send(_usage_event(user))
            case "models":
                return process.send(url_event("GET", "/v1/models", key))
            case "wrong key":
                return process.send(message_event(key[:-4] + "0000", "hello"))
            case "broken body":
                return process.send(
                    url_event("POST", "/v1/messages", key, message_body("hello")[: dice.randint(1, 60)])
                )
        script = KINDS[kind][1].format(
            tokens=dice.randint(1, 300), pace=dice.choice((0, 0, 1, 5)), after=dice.randint(0, 40)
        )
        return process.send(message_event(key, f"[[fake {script}]]", stream=kind != "message"))

    # Watching.

    def _sample_until(self, done: threading.Event, began: float) -> None:
        pause = max(0.25, self._traffic.seconds / SAMPLES)
        while not done.wait(pause):
            pids = [process.pid for process in self._processes]
            self._samples.append(
                Sample(time.monotonic() - began, [rss_mb(pid) for pid in pids], [open_files(pid) for pid in pids])
            )

    def _memory(self) -> dict[str, float]:
        """Growth from the second quarter to the last, of the process that grew most; the first quarter warms up.

        The usage function stands apart: until the hourly roll-up it reads every record of a user, so what it holds at
        a time grows with them. Asked again and again about the same records it may not grow.
        """
        early, late = _quarters(self._samples)
        growth = [
            statistics.fmean(sample.rss_mb[lane] for sample in late)
            - statistics.fmean(sample.rss_mb[lane] for sample in early)
            for lane in range(len(self._processes))
        ]
        *lanes, usage = growth
        return {
            "rss_mb_of_a_process": round(statistics.fmean(mb for sample in late for mb in sample.rss_mb[:-1]), 1),
            "most_grown_mb": round(max(lanes), 2),
            "mean_growth_mb": round(statistics.fmean(lanes), 2),
            "usage_grown_with_records_mb": round(usage, 2),
            "usage_grown_on_the_same_mb": round(self._usage_growth(), 2),
        }

    def _usage_growth(self) -> float:
        """What the same questions, asked again on records that stand still, add to the usage function's memory."""
        for _ in range(USAGE_ROUNDS):
            self._ask_all_usage()
        before = rss_mb(self._usage.pid)
        for _ in range(USAGE_ROUNDS):
            self._ask_all_usage()
        return rss_mb(self._usage.pid) - before

    def _ask_all_usage(self) -> None:
        for user in self._users:
            answer = self._usage.send(_usage_event(user))
            assert answer.status == HTTPStatus.OK, answer

    def _open_files(self) -> dict[str, int]:
        early, late = _quarters(self._samples)
        lanes = range(len(self._processes))
        grown = [max(s.open_files[lane] for s in late) - max(s.open_files[lane] for s in early) for lane in lanes]
        return {"most_of_a_process": max(max(sample.open_files) for sample in late), "most_grown": max(grown)}

    # The books.

    def _ledger(self) -> dict[str, Any]:
        table, clock = self._around.table, SystemClock()
        meters, requests = Meters(table), Requests(table)
        catalog = load_catalog(str(ROOT / "bench" / "catalog"))
        reconciler = Reconciler(meters, requests, DayRollUps(table), catalog, clock)
        found = sum((reconciler.check("main", user) for user in self._users), UserCheck())
        every = [meter for user in self._users for meter in meters.list_of_user("main", user)]
        told = {user: self._seen.tokens[user] for user in self._users}
        booked = {user: _booked_tokens(requests, user) for user in self._users}
        return {
            "users": found.users,
            "records": found.records,
            "differences": [str(difference) for difference in found.differences],
            "open_reservations": sum(meter.open_count for meter in every),
            "over_hard_quota_tokens": sum(max(0, meter.settled_tokens - meter.quota_tokens) for meter in every),
            "settled_tokens": sum(meter.settled_tokens for meter in every),
            "told_tokens_of_whole_answers": sum(told.values()),
            "booked_tokens_of_whole_answers": sum(booked.values()),
            "users_told_otherwise_than_booked": sorted(user for user in told if told[user] != booked[user]),
        }


def _told_tokens(kind: str, answer: Answer) -> int:
    """What a whole answer says it cost; 0 of any other, for which the ledger's figure is an estimate."""
    whole = answer.is_whole_stream if kind != "message" else answer.status == 200
    if not whole or kind in {"usage", "models"}:
        return 0
    inputs, outputs = _INPUT.findall(answer.body), _OUTPUT.findall(answer.body)
    return int(inputs[-1]) + int(outputs[-1])


def _booked_tokens(requests: Requests, user: str) -> int:
    first, last = RequestPosition(datetime(2020, 1, 1, tzinfo=UTC)), RequestPosition(datetime(2100, 1, 1, tzinfo=UTC))
    return sum(
        record.charged_tokens
        for page in requests.pages("main", user, first, last)
        for record in page
        if record.outcome is RequestOutcome.COMPLETE
    )


def _quarters(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    quarter = max(1, len(samples) // 4)
    return samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]


def _usage_event(user: str) -> bytes:
    event: dict[str, Any] = json.loads((ROOT / "events" / "usage-current.json").read_text())
    event["requestContext"]["authorizer"]["jwt"]["claims"] |= {"sub": user, "username": user, "client_id": "bench"}
    return json.dumps(event).encode()


def soak(traffic: Traffic, say: Callable[[str], None]) -> dict[str, Any]:
    """The whole run with everything it needs; all of it gone afterwards."""
    with ExitStack() as stack:
        around = stack.enter_context(surroundings())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-soak-")))
        processes = Processes()
        stack.callback(processes.stop_all, gently=False)
        fake = start_fake_claude(processes, SECRETS["/bench/upstream"], "", folder)
        stack.callback(fake.child.stdin.close)
        around = replace(around, upstream_port=int(fake.url.rpartition(":")[2]))
        say(f"{traffic.requests} requests in {traffic.seconds:.0f} s, {traffic.lanes} processes")
        return {"measured_on": machine(around.engine)} | Soak(around, traffic, stack).run()


def main(arguments: Sequence[str]) -> int:
    """0 when memory and descriptors stayed flat and the ledger is exact."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="An hour's worth of traffic.")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument(
        "--requests", type=int, default=None, help="an hour's worth by default, less in less than 600 s"
    )
    options = parser.parse_args(arguments)
    share = min(1.0, options.seconds / SECONDS)
    requests = options.requests or int(HOUR_OF_TRAFFIC * share)
    result = soak(Traffic(seconds=options.seconds, requests=requests), print)
    result["faults"] = faults_of(result)
    print(json.dumps({name: value for name, value in result.items() if name != "samples"}, indent=1))
    if options.seconds >= SECONDS:
        write("soak", result)
        write_page()
    return 1 if result["faults"] else 0


GROWTH_MB_AT_MOST: Final = 4.0
"""Of one process between quarters of a run: an hour of leaks would be more, arenas of the allocator are less."""
GROWN_FILES_AT_MOST: Final = 1


def faults_of(result: dict[str, Any]) -> list[str]:
    """What is not as it must be, in words; nothing in a good run."""
    ledger = result["ledger"]
    checks = {
        f"failed invocations: {result['failed_invocations'][:3]}": bool(result["failed_invocations"]),
        f"memory grew by {result['memory']['most_grown_mb']} MB": result["memory"]["most_grown_mb"] > GROWTH_MB_AT_MOST,
        f"the usage function grew by {result['memory']['usage_grown_on_the_same_mb']} MB on the same records": result[
            "memory"
        ]["usage_grown_on_the_same_mb"]
        > GROWTH_MB_AT_MOST,
        f"{result['open_files']['most_grown']} more open files": result["open_files"]["most_grown"]
        > GROWN_FILES_AT_MOST,
        f"the ledger differs: {ledger['differences'][:3]}": bool(ledger["differences"]),
        f"{ledger['open_reservations']} open reservations": ledger["open_reservations"] != 0,
        f"{ledger['over_hard_quota_tokens']} tokens over a hard quota": ledger["over_hard_quota_tokens"] != 0,
        f"told otherwise than booked: {ledger['users_told_otherwise_than_booked']}": bool(
            ledger["users_told_otherwise_than_booked"]
        ),
        "statuses above 500 other than upstream's 529": any(
            int(answer.rpartition(" ")[2]) in {500, 502, 503, 504} and not answer.startswith("connection lost")
            for answer in result["answers"]
        ),
    }
    return [text for text, wrong in checks.items() if wrong]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
