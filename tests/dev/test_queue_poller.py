"""Messages of a queue reach a function in batches, and come back until they are taken or given up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dev.engines import install_engines, start_ministack
from dev.lambda_host import Journey
from dev.processes import Processes
from dev.provision import Cloud, ensure_queues, queue_url
from dev.queue_poller import QueuePoller, failed_ids
from dev.runtime_api import Buffered, Failed, Part
from dev.template import Queue, QueueMapping

WORK = Queue("Work", {"VisibilityTimeout": "1"}, "Dead", max_receive_count=2)
DEAD = Queue("Dead", {}, None, 0)
MAPPING = QueueMapping("Work", "Function", "Work", batch_size=10, window_seconds=0, reports_failures=True)
MESSAGES = [{"MessageId": "a"}, {"MessageId": "b"}]


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        (b"null", set()),
        (b"{}", set()),
        (b'{"batchItemFailures": []}', set()),
        (b'{"batchItemFailures": null}', set()),
        (b'{"batchItemFailures": [{"itemIdentifier": "b"}]}', {"b"}),
        (b'{"batchItemFailures": [{"itemIdentifier": ""}]}', {"a", "b"}),
        (b'{"batchItemFailures": [{"itemIdentifier": "c"}]}', {"a", "b"}),
        (b'{"batchItemFailures": [{"itemIdentifier": null}]}', {"a", "b"}),
        (b'{"batchItemFailures": [{"other": "a"}]}', {"a", "b"}),
        (b'"done"', {"a", "b"}),
        (b"not JSON", {"a", "b"}),
    ],
)
def test_an_answer_names_what_failed_and_an_unreadable_one_fails_everything(answer: bytes, failed: set[str]) -> None:
    assert failed_ids(MAPPING, MESSAGES, Buffered(answer)) == failed


def test_a_function_that_fails_fails_everything() -> None:
    assert failed_ids(MAPPING, MESSAGES, Failed("E", "broken", "error")) == {"a", "b"}
    assert failed_ids(MAPPING, MESSAGES, None) == {"a", "b"}


def test_a_function_that_reports_nothing_has_taken_everything() -> None:
    silent = replace(MAPPING, reports_failures=False)
    assert failed_ids(silent, MESSAGES, Buffered(b'{"batchItemFailures": [{"itemIdentifier": "a"}]}')) == set()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("engine")
    install_engines()
    processes = Processes()
    try:
        url = start_ministack(processes, folder, folder).url
        found = Cloud(url, url)
        ensure_queues(found, [WORK, DEAD])
        yield found
    finally:
        processes.stop_all()


class Function:
    """Notes what it is given and answers as told."""

    def __init__(self, answer: Callable[[list[dict[str, Any]]], Part]) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self._answer = answer

    def invoke(self, event: bytes, _journey: Journey) -> Iterator[Part]:
        records = json.loads(event)["Records"]
        self.batches.append(records)
        yield self._answer(records)


def poller(cloud: Cloud, function: Function, reports: list[str]) -> QueuePoller:
    return QueuePoller(MAPPING, WORK, queue_url(cloud, WORK), cloud.sqs, function.invoke, reports.append)


def waiting(cloud: Cloud, queue: Queue) -> list[str]:
    received = cloud.sqs().receive_message(QueueUrl=queue_url(cloud, queue), MaxNumberOfMessages=10)
    return [message["Body"] for message in received.get("Messages", [])]


@pytest.mark.stack
def test_what_a_function_took_is_gone_and_what_it_failed_comes_back_until_it_is_given_up(cloud: Cloud) -> None:
    client, reports = cloud.sqs(), list[str]()
    for body in ("good", "bad"):
        client.send_message(
            QueueUrl=queue_url(cloud, WORK),
            MessageBody=body,
            MessageAttributes={"kind": {"DataType": "String", "StringValue": body}},
        )
    function = Function(_fails_bad_ones)
    work = poller(cloud, function, reports)
    work.poll(client)
    limit = time.monotonic() + 20
    while sum(map(len, function.batches)) < 3 and time.monotonic() < limit:
        work.poll(client)
        time.sleep(0.1)

    first = function.batches[0][0]
    assert {record["body"] for batch in function.batches[:-1] for record in batch} == {"good", "bad"}
    assert [record["body"] for record in function.batches[-1]] == ["bad"]
    assert first["eventSource"] == "aws:sqs"
    assert first["eventSourceARN"] == WORK.arn
    assert first["messageAttributes"]["kind"]["stringValue"] == first["body"]
    assert function.batches[-1][0]["attributes"]["ApproximateReceiveCount"] == "2"
    assert any("come back" in text for text in reports)

    time.sleep(1.2)
    assert waiting(cloud, WORK) == []
    assert waiting(cloud, DEAD) == ["bad"]


def _fails_bad_ones(records: list[dict[str, Any]]) -> Part:
    failed = [{"itemIdentifier": record["messageId"]} for record in records if record["body"] == "bad"]
    return Buffered(json.dumps({"batchItemFailures": failed}).encode())


@pytest.mark.stack
def test_what_waits_survives_a_restart_of_the_engine(tmp_path: Path) -> None:
    """The engine's port is another one then, and with it the queue's address."""
    install_engines()
    for body in ("before", None):
        processes = Processes()
        try:
            url = start_ministack(processes, tmp_path, tmp_path).url
            restarted = Cloud(url, url)
            ensure_queues(restarted, [WORK, DEAD])
            if body:
                restarted.sqs().send_message(QueueUrl=queue_url(restarted, WORK), MessageBody=body)
            else:
                assert waiting(restarted, WORK) == ["before"]
        finally:
            processes.stop_all()
