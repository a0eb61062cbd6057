"""The function's process dies in mid-stream: nothing hangs, nothing is lost, and what it held comes back in time."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import psutil
import pytest

from dev.template import Template
from tests.support.catalogs import write_catalog
from tests.support.claude_sdk import claude_client
from tests.support.clocks import raise_reported
from tests.support.gateway import MODEL, Gateway, User, message
from tests.support.stack import ROOT, running_stack
from tollgate.catalog.loader import load_catalog
from tollgate.domain.ledger import Meter, Reservation
from tollgate.domain.plans import ExpiryPolicy, PeriodKind
from tollgate.flows.ledger import Ledger
from tollgate.flows.sweep_meters import SweepReport, sweep_meters
from tollgate.storage.activity import SHARDS, Activity
from tollgate.storage.meters import Meters
from tollgate.wiring import SystemIds

pytestmark = pytest.mark.stack

QUOTA = 100_000
MAX_TOKENS = 1_000
SLOW = "Take your time. [[fake pace_ms=60 tokens=800]]"
"""Some twelve seconds, unless somebody dies."""
TIMEOUT_SECONDS = Template(ROOT / "template.yaml").local({}).functions["ClaudeFunction"].timeout_seconds
SWEPT_AFTER_SECONDS = TIMEOUT_SECONDS + 60


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for each rule about calls whose end is never known."""
    plans = {policy.value: {"quota_tokens": QUOTA, "expiry_policy": policy.value} for policy in ExpiryPolicy}
    return write_catalog(tmp_path_factory.mktemp("catalog"), **plans)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, catalog: Path) -> Iterator[Gateway]:
    with running_stack(tmp_path_factory.mktemp("stack"), "--parameter", f"Catalog={catalog}") as stack:
        found = Gateway(stack)
        yield found
        found.close()


def add_user(gateway: Gateway, policy: ExpiryPolicy) -> User:
    return gateway.add_user(policy.value, period_kind=PeriodKind.CALENDAR_MONTH)


@dataclass(frozen=True, slots=True)
class LaterClock:
    """A clock of the time when the sweep comes."""

    seconds: float

    def now_seconds(self) -> float:
        return self.seconds

    def pause(self, wait_seconds: float) -> None:
        time.sleep(wait_seconds)


def sweep_at(gateway: Gateway, catalog: Path, seconds: float) -> SweepReport:
    """What the scheduled function does, at that time, on the stack's own table.

    As if no run had been there before: another test may have sent one at a later time, and a run goes on from the last.
    """
    for shard in range(SHARDS):
        key: Any = {"PK": {"S": f"ACTIVE#SWEPT#{shard}"}, "SK": {"S": "SWEPT"}}
        gateway.table.client.delete_item(TableName=gateway.table.name, Key=key)
    meters, clock = Meters(gateway.table), LaterClock(seconds)
    return sweep_meters(
        activity=Activity(gateway.table),
        meters=meters,
        ledger=Ledger(meters, clock, SystemIds()),
        catalog=load_catalog(str(catalog)),
        clock=clock,
        report=raise_reported,
        deadline_at_seconds=seconds + 60,
    )


@contextmanager
def streaming(gateway: Gateway, user: User) -> Iterator[tuple[http.client.HTTPResponse, int]]:
    """An answer in the middle of its stream, and the process that makes it."""
    before = set(gateway.stack.function_processes("claude", "busy"))
    body = json.dumps(message(SLOW, max_tokens=MAX_TOKENS)).encode()
    with gateway.open("POST", "/v1/messages", body, key=user.key) as response:
        seen = b""
        while seen.count(b"content_block_delta") < 4:
            seen += response.read1(4096)
        [pid] = set(gateway.stack.function_processes("claude", "busy")) - before
        yield response, pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def read_to_the_end(response: http.client.HTTPResponse) -> bytes:
    return response.read()


def only_reservation(meter: Meter) -> Reservation:
    [reservation] = meter.reservations.values()
    return reservation


@pytest.mark.parametrize("policy", ExpiryPolicy)
def test_what_a_killed_process_held_comes_back_within_timeout_and_a_minute(
    gateway: Gateway, catalog: Path, policy: ExpiryPolicy
) -> None:
    """Strict charges all of it, input the prompt's bound, void nothing; the rest is written off where it shows."""
    user = add_user(gateway, policy)
    before = time.time()
    with streaming(gateway, user) as (response, pid):
        kill(pid)
        with pytest.raises(http.client.IncompleteRead):
            read_to_the_end(response)
    killed_at = time.time()
    held = only_reservation(gateway.meter(user))
    assert held.amount_tokens == held.prompt_bound_tokens + MAX_TOKENS
    assert before + TIMEOUT_SECONDS < held.expires_at_seconds + 10 <= killed_at + SWEPT_AFTER_SECONDS + 1
    standing = gateway.standing(user)
    assert (standing["usage"], standing["reserved"]) == (0, held.amount_tokens)

    sweep_at(gateway, catalog, held.expires_at_seconds + 10)  # its owner may still be settling
    assert gateway.meter(user).reservations
    sweep_at(gateway, catalog, killed_at + SWEPT_AFTER_SECONDS + 1)
    meter = gateway.meter(user)
    charged = {
        ExpiryPolicy.STRICT: held.amount_tokens,
        ExpiryPolicy.INPUT: held.prompt_bound_tokens,
        ExpiryPolicy.VOID: 0,
    }[policy]
    assert not meter.reservations
    assert meter.settled_tokens == charged
    assert meter.remaining_tokens == QUOTA - charged
    assert meter.written_off_tokens == held.amount_tokens - charged
    assert gateway.standing(user)["usage"] == charged

    sweep_at(gateway, catalog, killed_at + 10 * SWEPT_AFTER_SECONDS)  # once more changes nothing
    assert gateway.meter(user) == meter
    [record] = [
        item for item in gateway.items() if item["PK"].endswith(f"#{user.id}") and item["SK"].startswith("EXPIRED#")
    ]
    assert (record["amount"], record["charged"], record["written_off"]) == (
        held.amount_tokens,
        charged,
        held.amount_tokens - charged,
    )


def test_calls_go_on_after_a_kill_and_beside_it(gateway: Gateway) -> None:
    """Other streams are other processes; the next call gets a fresh one."""
    user = add_user(gateway, ExpiryPolicy.STRICT)
    other = add_user(gateway, ExpiryPolicy.STRICT)
    beside: list[Any] = []
    text = "[[fake pace_ms=40]]"
    witness = threading.Thread(target=lambda: beside.append(gateway.send(other, text)))
    with streaming(gateway, user) as (response, pid):
        witness.start()
        time.sleep(0.2)
        kill(pid)
        with pytest.raises(http.client.IncompleteRead):
            read_to_the_end(response)
    after = gateway.send(user)
    assert (after.status, after.whole) == (200, True)
    assert after.body == gateway.sent_by_claude(after)
    witness.join()
    assert beside[0].body == gateway.sent_by_claude(beside[0])
    assert pid not in gateway.stack.function_processes("claude")
    usage = gateway.exchange(after)["usage"]
    meter = gateway.meter(user)
    assert meter.settled_tokens == usage["input_tokens"] + usage["output_tokens"]
    assert meter.open_count == 1


def test_many_killed_at_once_all_come_back(gateway: Gateway, catalog: Path) -> None:
    """Of one user, whose further calls fit beside what the dead still hold."""
    user = add_user(gateway, ExpiryPolicy.INPUT)
    running = 4
    killed: list[str] = []
    started = threading.Barrier(running + 1)

    def one() -> None:
        with gateway.open(
            "POST", "/v1/messages", json.dumps(message(SLOW, max_tokens=MAX_TOKENS)).encode(), key=user.key
        ) as response:
            response.read1(4096)
            started.wait()
            try:
                read_to_the_end(response)
            except http.client.IncompleteRead:
                killed.append(response.headers["request-id"])

    threads = [threading.Thread(target=one) for _ in range(running)]
    for thread in threads:
        thread.start()
    started.wait()
    for pid in gateway.stack.function_processes("claude", "busy"):
        kill(pid)
    for thread in threads:
        thread.join()
    assert len(set(killed)) == running
    held = gateway.meter(user)
    assert held.open_count == running
    assert gateway.send(user).status == 200
    used = gateway.meter(user).settled_tokens
    report = sweep_at(gateway, catalog, time.time() + SWEPT_AFTER_SECONDS + 1)
    assert report.complete
    assert report.expired_reservations >= running
    meter = gateway.meter(user)
    assert meter.open_count == 0
    assert meter.settled_tokens == used + sum(each.prompt_bound_tokens for each in held.reservations.values())


def test_the_sdk_sees_a_broken_stream_not_a_finished_one(gateway: Gateway) -> None:
    user = add_user(gateway, ExpiryPolicy.STRICT)
    before = set(gateway.stack.function_processes("claude", "busy"))
    with claude_client(gateway.stack.gateway_url, user.key) as client:
        said: Any = [{"role": "user", "content": SLOW}]
        with client.messages.create(model=MODEL, max_tokens=MAX_TOKENS, messages=said, stream=True) as stream:
            for event in stream:
                if event.type == "content_block_delta":
                    break
            [pid] = set(gateway.stack.function_processes("claude", "busy")) - before
            kill(pid)
            with pytest.raises((httpx2.TransportError, anthropic.APIError)):
                list(stream)
        assert len(client.calls) == 1


def test_a_process_killed_before_its_answer_began_is_a_server_error(gateway: Gateway) -> None:
    """Lambda's own answer then, which no function can shape; the reservation stays for the sweep."""
    user = add_user(gateway, ExpiryPolicy.STRICT)
    before = set(gateway.stack.function_processes("claude", "busy"))
    answers: list[Any] = []
    caller = threading.Thread(target=lambda: answers.append(gateway.send(user, "[[fake ttft_ms=8000]]", stream=False)))
    caller.start()
    limit = time.monotonic() + 10
    while gateway.find_meter(user) is None and time.monotonic() < limit:
        time.sleep(0.02)
    [pid] = set(gateway.stack.function_processes("claude", "busy")) - before
    kill(pid)
    caller.join()
    assert answers[0].status == 502
    assert gateway.meter(user).open_count == 1
    assert gateway.send(user).status == 200


def test_a_stop_in_mid_stream_leaves_no_process_and_an_exact_ledger(tmp_path: Path, catalog: Path) -> None:
    """SIGTERM: what runs is given a moment, then everything ends; the next start finds the books as they were."""
    parameter = ("--parameter", f"Catalog={catalog}")
    with running_stack(tmp_path, *parameter) as stack:
        gateway = Gateway(stack)
        user = add_user(gateway, ExpiryPolicy.STRICT)
        with streaming(gateway, user) as (response, _):
            family = [stack.process.pid, *(each.pid for each in psutil.Process(stack.process.pid).children(True))]
            assert len(family) >= 5
            stack.process.send_signal(signal.SIGTERM)
            with pytest.raises(http.client.IncompleteRead):
                read_to_the_end(response)
        assert stack.process.wait(10) == 0
        assert not [pid for pid in family if psutil.pid_exists(pid)]
        gateway.close()
    with running_stack(tmp_path, *parameter) as stack:
        gateway = Gateway(stack)
        held = only_reservation(gateway.meter(user))
        assert gateway.send(user).status == 200
        used = gateway.standing(user)["usage"]
        sweep_at(gateway, catalog, time.time() + SWEPT_AFTER_SECONDS + 1)
        meter = gateway.meter(user)
        assert (meter.open_count, meter.settled_tokens) == (0, used + held.amount_tokens)
        gateway.close()
