"""Gives a function the messages of a queue in batches, as Lambda's event source mapping does.

What a function took is deleted; what it failed comes back after the queue's visibility timeout, and moves to the
dead-letter queue when it was received too often. Both are the queue's own doing.
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from dev.events import encode
from dev.lambda_host import Journey
from dev.runtime_api import Buffered, Part
from dev.template import REGION, Queue, QueueMapping

MESSAGES_AT_ONCE: Final = 10
"""SQS hands out no more in one answer."""
PAUSE_SECONDS: Final = 0.5
"""Between two looks at an empty queue. A long poll would be open when the engine is asked to end, and hold it up."""

Json = dict[str, Any]
Invoke = Callable[[bytes, Journey], Iterator[Part]]


class QueuePoller:
    """One mapping. `start` once; `stop` returns at once; the thread ends after its batch."""

    def __init__(
        self,
        mapping: QueueMapping,
        queue: Queue,
        url: str,
        connect: Callable[[], Any],
        invoke: Invoke,
        report: Callable[[str], None],
    ) -> None:
        """`connect` makes an SQS client; `report` is told of every batch that was not taken whole."""
        self._mapping = mapping
        self._queue = queue
        self._url = url
        self._connect = connect
        self._invoke = invoke
        self._report = report
        self._stopping = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"poll-{self._queue.logical_id}", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self) -> None:
        client = self._connect()
        while not self._stopping.is_set():
            try:
                found = self.poll(client)
            except (BotoCoreError, ClientError) as error:
                found = False
                if not self._stopping.is_set():
                    self._report(f"{self._queue.logical_id} cannot be read: {type(error).__name__}")
            if not found:
                self._stopping.wait(PAUSE_SECONDS)

    def poll(self, client: Any) -> bool:  # noqa: ANN401  no types are installed for SQS
        """Gives the function one batch, if anything waits; whether anything did."""
        received = client.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=min(self._mapping.batch_size, MESSAGES_AT_ONCE),
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        messages: list[Json] = received.get("Messages", [])
        if not messages:
            return False
        failed = failed_ids(self._mapping, messages, self._answer(messages))
        for message in messages:
            if message["MessageId"] not in failed:
                client.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
        if failed:
            self._report(f"{len(failed)} of {len(messages)} messages of {self._queue.logical_id} failed and come back")
        return True

    def _answer(self, messages: list[Json]) -> Part | None:
        event = encode({"Records": [record(message, self._queue.arn) for message in messages]})
        last: Part | None = None
        for part in self._invoke(event, Journey(str(uuid4()))):
            last = part
        return last


def record(message: Json, queue_arn: str) -> Json:
    """A received message as a function sees it."""
    attributes = message.get("MessageAttributes", {})
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message.get("Attributes", {}),
        "messageAttributes": {name: _attribute(value) for name, value in attributes.items()},
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn,
        "awsRegion": REGION,
    }


def failed_ids(mapping: QueueMapping, messages: list[Json], answer: Part | None) -> set[str]:
    """Which messages the function did not take. An answer that Lambda cannot read fails all of them."""
    everyone = {str(message["MessageId"]) for message in messages}
    if not isinstance(answer, Buffered):
        return everyone
    if not mapping.reports_failures:
        return set()
    try:
        named = set(_named(json.loads(answer.payload or b"null")))
    except (ValueError, TypeError, KeyError):
        return everyone
    return named if named <= everyone else everyone


def _named(value: object) -> Iterator[str]:
    if value is None:
        return
    if not isinstance(value, dict):
        raise TypeError
    for item in value.get("batchItemFailures") or ():
        if not isinstance(item["itemIdentifier"], str):
            raise TypeError
        yield item["itemIdentifier"]


def _attribute(value: Json) -> Json:
    return {
        "stringValue": value.get("StringValue"),
        "stringListValues": [],
        "binaryListValues": [],
        "dataType": value["DataType"],
    }
