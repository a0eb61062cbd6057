"""Virtual time and processes: order, death, frost, and the client's behaviour under each misfortune."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError, ReadTimeoutError

from tests.simulation.hub import Hub, LivelockError, Process
from tests.simulation.memory_table import Answer, MemoryTable
from tests.simulation.network import MessageFaults, Network, SimulatedClient

KEY = {"PK": {"S": "A"}, "SK": {"S": "B"}}


class Bench:
    """A hub, a table and as many processes as a test wants."""

    def __init__(self, faults: MessageFaults = MessageFaults(), seed: int = 1) -> None:  # noqa: B008  frozen
        self.hub = Hub(0.0)
        self.table = MemoryTable("t")
        self.network = Network(self.hub, self.table, random.Random(seed), faults, Counter())

    def start(self, work: Callable[[Process, SimulatedClient], None], name: str = "p") -> Process:
        class Holder:
            process: Process

        holder = Holder()
        client = SimulatedClient(self.network, holder)

        def body(process: Process) -> None:
            work(process, client)

        holder.process = process = Process(self.hub, name, body, 0.0)
        self.hub.at(0, lambda: self.hub.start(process))
        return process

    def stored(self) -> int:
        item = self.table.find("A", "B")
        return int(item["n"]["N"]) if item else 0


def add_one(client: SimulatedClient) -> Answer:
    values = {":n": {"N": "1"}}
    return client.update_item(TableName="t", Key=KEY, UpdateExpression="ADD n :n", ExpressionAttributeValues=values)


def test_processes_take_turns_in_the_order_of_their_waits() -> None:
    bench, order = Bench(), []

    def work(process: Process, client: SimulatedClient) -> None:
        for _ in range(3):
            bench.hub.sleep(process, 3.0 if process.name == "slow" else 2.0)
            order.append((process.name, bench.hub.now))

    bench.start(work, "slow")
    bench.start(work, "fast")
    bench.hub.run()

    assert order == [("fast", 2), ("slow", 3), ("fast", 4), ("slow", 6), ("fast", 6), ("slow", 9)]


def test_the_dead_never_run_again_and_what_they_sent_still_lands() -> None:
    bench, after = Bench(), []

    def work(process: Process, client: SimulatedClient) -> None:
        try:
            add_one(client)
            after.append("answered")
        finally:
            after.append("cleaned up")
            add_one(client)

    process = bench.start(work)
    bench.hub.at(0.0001, lambda: bench.hub.kill(process))
    bench.hub.run()
    bench.hub.bury()

    assert after == ["cleaned up"]
    assert bench.stored() == 1


def test_a_killed_process_has_no_effect_after_its_death() -> None:
    bench, after = Bench(), []

    def work(process: Process, client: SimulatedClient) -> None:
        try:
            bench.hub.sleep(process, 10)
        finally:
            after.append("finally")
            add_one(client)

    process = bench.start(work)
    bench.hub.at(5, lambda: bench.hub.kill(process))
    bench.hub.run()
    bench.hub.bury()

    assert after == ["finally"]
    assert bench.stored() == 0
    assert not bench.hub.crashes


def test_a_frozen_process_goes_on_later() -> None:
    bench, woke = Bench(), []

    def work(process: Process, client: SimulatedClient) -> None:
        bench.hub.sleep(process, 10)
        woke.append(bench.hub.now)

    process = bench.start(work)
    bench.hub.at(5, lambda: bench.hub.freeze(process, 100))
    bench.hub.run()

    assert woke == [105]


def test_an_exception_in_a_process_is_kept() -> None:
    bench = Bench()

    def work(process: Process, client: SimulatedClient) -> None:
        raise RuntimeError("a bug")

    bench.start(work)
    bench.hub.run()

    assert [str(error) for _, error in bench.hub.crashes] == ["a bug"]


def test_endless_work_is_noticed() -> None:
    hub = Hub(0.0)

    def again() -> None:
        hub.after(1, again)

    again()
    with pytest.raises(LivelockError):
        hub.run()


def run_one(faults: MessageFaults, calls: int = 1) -> tuple[Bench, list[Any]]:
    bench, answers = Bench(faults), []

    def work(process: Process, client: SimulatedClient) -> None:
        for _ in range(calls):
            try:
                answers.append(add_one(client)["ResponseMetadata"]["RetryAttempts"])
            except (ClientError, ConnectTimeoutError, ReadTimeoutError) as error:
                answers.append(error)

    bench.start(work)
    bench.hub.run()
    return bench, answers


def test_a_request_without_misfortune_is_applied_once() -> None:
    bench, answers = run_one(MessageFaults())

    assert answers == [0]
    assert bench.stored() == 1


def test_lost_requests_are_sent_three_times_and_never_applied() -> None:
    bench, answers = run_one(MessageFaults(lost_request=1))

    assert isinstance(answers[0], ConnectTimeoutError | ReadTimeoutError)
    assert bench.stored() == 0
    assert bench.hub.now >= 3


def test_lost_answers_are_applied_every_time() -> None:
    bench, answers = run_one(MessageFaults(lost_answer=1))

    assert isinstance(answers[0], ReadTimeoutError)
    assert bench.stored() == 3


def test_late_requests_land_after_the_client_has_given_up() -> None:
    bench, answers = run_one(MessageFaults(late=1))

    assert isinstance(answers[0], ReadTimeoutError)
    assert bench.stored() == 3
    assert bench.hub.now <= 305


def test_throttling_is_retried_and_then_told() -> None:
    bench, answers = run_one(MessageFaults(throttled=1))

    assert answers[0].response["Error"]["Code"] == "ProvisionedThroughputExceededException"
    assert answers[0].response["ResponseMetadata"]["RetryAttempts"] == 2
    assert bench.stored() == 0


def test_a_conflict_is_told_at_once() -> None:
    _, answers = run_one(MessageFaults(conflict=1))

    assert answers[0].response["Error"]["Code"] == "TransactionConflictException"
    assert answers[0].response["ResponseMetadata"]["RetryAttempts"] == 0


def test_failures_are_applied_half_of_the_time() -> None:
    bench, answers = run_one(MessageFaults(failed=1), calls=100)

    assert all(error.response["ResponseMetadata"]["HTTPStatusCode"] == 500 for error in answers)
    assert 100 < bench.stored() < 200
