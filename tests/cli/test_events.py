"""`tollgate events`: dead letters are shown, sent again once, and never lost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dev.stripe_double.world import StripeWorld
from tests.cli.conftest import Command, aws_client, stack_with
from tests.cli.test_plans_margins import words
from tollgate.domain.stripe_events import StripeEvent, event_of_message

pytestmark = pytest.mark.usefixtures("aws")


class Queues:
    """The two queues of a stack, as moto has them."""

    def __init__(self) -> None:
        self.sqs = aws_client("sqs")
        self.events = self.sqs.create_queue(QueueName="events")["QueueUrl"]
        self.dead = self.sqs.create_queue(QueueName="dead")["QueueUrl"]

    @property
    def outputs(self) -> dict[str, str]:
        return {"StripeEventQueueUrl": self.events, "StripeEventDeadLetterQueueUrl": self.dead}

    def bury(self, *bodies: str) -> None:
        for body in bodies:
            self.sqs.send_message(QueueUrl=self.dead, MessageBody=body)

    def count(self, url: str) -> int:
        """Those that can be received now; a message in somebody's hands is not among them."""
        names = ["ApproximateNumberOfMessages"]
        return int(self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"][names[0]])

    def sent(self) -> list[dict[str, Any]]:
        messages = []
        while found := self.sqs.receive_message(QueueUrl=self.events, MaxNumberOfMessages=10).get("Messages"):
            messages += [json.loads(message["Body"]) for message in found]
        return messages


@pytest.fixture
def queues(aws: None) -> Queues:
    return Queues()


@pytest.fixture
def deployed(world: StripeWorld, queues: Queues) -> Command:
    return Command(world, aws_client=stack_with(queues.outputs))


def letter(number: int) -> str:
    event = StripeEvent(f"evt_{number}", "invoice.paid", f"in_{number}", "invoice", "cus_1", None, livemode=False)
    return json.dumps(event.document())


def test_dead_letters_are_listed_and_stay(deployed: Command, queues: Queues) -> None:
    queues.bury(letter(1), letter(2))

    said = words(deployed("events", "list", "--stack", "tollgate").stdout)

    assert "2 dead letters" in said
    assert "evt_1 invoice.paid in_1 cus_1" in said
    assert queues.count(queues.dead) == 2


def test_no_dead_letters_is_good_news(deployed: Command) -> None:
    assert words(deployed("events", "list", "--stack", "tollgate").stdout) == "There are no dead letters."
    assert deployed.json("events", "list", "--stack", "tollgate") == {"dead_letters": []}


@pytest.mark.parametrize("number", [1, 9, 10, 11, 25])
def test_every_dead_letter_is_sent_again_once(deployed: Command, queues: Queues, number: int) -> None:
    queues.bury(*(letter(one) for one in range(number)))

    document = deployed.json("events", "replay", "--stack", "tollgate")

    assert sorted(document["replayed"]) == sorted(f"evt_{one}" for one in range(number))
    sent = queues.sent()
    assert sorted(event_of_message(body).id for body in sent) == sorted(document["replayed"])
    assert all(body["tollgate_replay"] for body in sent), "or the function would think it had been done"
    assert queues.count(queues.dead) == 0


@pytest.mark.parametrize("most", [1, 10, 12])
def test_no_more_than_asked_for(deployed: Command, queues: Queues, most: int) -> None:
    queues.bury(*(letter(one) for one in range(15)))

    deployed("events", "replay", "--stack", "tollgate", "--max", str(most))

    assert (len(queues.sent()), queues.count(queues.dead)) == (most, 15 - most)


@pytest.mark.parametrize("body", ["", "{", "[]", "{}", '{"tollgate_event": 1}'])
def test_what_is_no_event_of_ours_stays_and_is_said(deployed: Command, queues: Queues, body: str) -> None:
    queues.bury(body or " ", letter(1))

    result = deployed("events", "replay", "--stack", "tollgate")

    assert result.exit_code == 1
    assert "1 letters are no events of ours" in words(result.stdout)
    assert (len(queues.sent()), queues.count(queues.dead)) == (1, 1)


def test_an_event_can_be_fetched_from_stripe_by_its_id(world: StripeWorld, queues: Queues) -> None:
    command = Command(world)
    command("plans", "sync", "--yes")
    event = world.store.events[-1]

    result = command("events", "replay", "--event", event["id"], "--event", event["id"], "--queue-url", queues.events)

    assert result.exit_code == 0
    [sent] = queues.sent()
    assert event_of_message(sent).id == event["id"]


def test_an_event_that_stripe_does_not_know_stops_before_anything_is_sent(world: StripeWorld, queues: Queues) -> None:
    command = Command(world)
    command("plans", "sync", "--yes")
    known = world.store.events[-1]["id"]

    result = command("events", "replay", "--event", known, "--event", "evt_gone", "--queue-url", queues.events)

    assert result.exit_code == 1
    assert "Stripe has no event evt_gone" in words(result.stderr)
    assert queues.sent() == []


def test_a_queue_must_be_named(tollgate: Command) -> None:
    assert "Name the deployed stack (--stack)" in words(tollgate("events", "list").stderr)


def test_a_queue_that_is_not_there_is_one_line(tollgate: Command) -> None:
    url = "https://sqs.us-east-1.amazonaws.com/123456789012/none"
    result = tollgate("events", "list", "--dead-letters-url", url)

    assert result.exit_code == 1
    assert words(result.stderr).startswith("error: AWS refused ReceiveMessage")
