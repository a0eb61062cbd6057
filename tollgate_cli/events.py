"""`tollgate events`: Stripe's events that could not be handled, and handling one again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from tollgate.domain.stripe_events import StripeEvent, event_of, event_of_message
from tollgate.providers.stripe_billing import StripeBilling
from tollgate_cli.connections import Connections
from tollgate_cli.output import FAILED, CommandError, aside, console, failures, print_json
from tollgate_cli.plans import KeyParameter, Live

app = typer.Typer(help="Look at Stripe's events that failed, and handle them again.", no_args_is_help=True)

QUEUE_OUTPUT: Final = "StripeEventQueueUrl"
DEAD_LETTERS_OUTPUT: Final = "StripeEventDeadLetterQueueUrl"
BATCH: Final = 10  # of one ReceiveMessage
LOOK_SECONDS: Final = 30
"""For so long a message that was only looked at is hidden from others, should this command die."""
REPLAY_SECONDS: Final = 120
REPLAY_MARK: Final = "tollgate_replay"
"""Tells the function to act even on an event that it knows as done, which is what a replay asks for."""

Stack = Annotated[str | None, typer.Option(help="Deployed stack whose queues they are.", metavar="NAME")]
QueueUrl = Annotated[str | None, typer.Option(help="The queue of events, instead of the stack's.", metavar="URL")]
DeadLettersUrl = Annotated[str | None, typer.Option(help="The queue of dead letters, likewise.", metavar="URL")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
Most = Annotated[int, typer.Option("--max", min=1, max=10_000, help="No more than so many.")]


@dataclass(frozen=True)
class Letter:
    """A message of the dead letter queue; `event` is None for what this product never put there."""

    event: StripeEvent | None
    handle: str
    sent_at_ms: int
    received: int


@app.command("list")
def list_command(
    context: typer.Context,
    stack: Stack = None,
    dead_letters_url: DeadLettersUrl = None,
    most: Most = 100,
    as_json: AsJson = False,
) -> None:
    """Show the dead letters, and leave them there."""
    with failures():
        connections: Connections = context.obj
        queue = DeadLetters(
            connections.aws_client("sqs"), _url(connections, dead_letters_url, stack, DEAD_LETTERS_OUTPUT)
        )
        with aside().status("Reading the dead letters …"):
            letters = list(queue.take(most, LOOK_SECONDS))
            queue.put_back(letters)
        if as_json:
            print_json({"dead_letters": [_document(letter) for letter in letters]})
            return
        if not letters:
            console().print("[green]There are no dead letters.[/]")
            return
        table = Table(title=f"{len(letters)} dead letters", title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("Event", "Type", "About", "Customer"):
            table.add_column(heading, overflow="fold")
        for letter in letters:
            event = letter.event
            table.add_row(
                *(
                    ("not an event of ours", "", "", "")
                    if event is None
                    else (
                        event.id,
                        event.type,
                        event.object_id or "",
                        event.customer_id or "",
                    )
                )
            )
        console().print(table)


@app.command()
def replay(
    context: typer.Context,
    event: Annotated[
        list[str] | None, typer.Option(help="Fetch this event from Stripe instead; may be repeated.", metavar="evt_…")
    ] = None,
    stack: Stack = None,
    queue_url: QueueUrl = None,
    dead_letters_url: DeadLettersUrl = None,
    key_parameter: KeyParameter = None,
    live: Live = False,
    most: Most = 1_000,
    as_json: AsJson = False,
) -> None:
    """Handle events again: all dead letters, or those named by --event.

    They go through the queue, so an effect that was had already is not had twice. Letters that fail again come back.
    """
    with failures():
        connections: Connections = context.obj
        sqs = connections.aws_client("sqs")
        queue = EventQueue(sqs, _url(connections, queue_url, stack, QUEUE_OUTPUT))
        if event:
            replayed, left = _replay_from_stripe(connections, queue, event, key_parameter, live=live), 0
        else:
            dead_letters = DeadLetters(sqs, _url(connections, dead_letters_url, stack, DEAD_LETTERS_OUTPUT))
            replayed, left = _replay_letters(queue, dead_letters, most)
        if as_json:
            print_json({"replayed": replayed, "left": left})
        else:
            console().print(f"[green]{len(replayed)} events sent to be handled again.[/]")
            if left:
                console().print(f"[yellow]{left} letters are no events of ours: they stay where they are.[/]")
    if left:
        raise typer.Exit(FAILED)


def _replay_from_stripe(
    connections: Connections, queue: EventQueue, ids: list[str], key_parameter: str | None, *, live: bool
) -> list[str]:
    key = connections.stripe_key(key_parameter, live=live)
    stripe = StripeBilling(lambda: key, base_url=connections.stripe_base_url, http_client=connections.stripe_wire)
    events = []
    for event_id in dict.fromkeys(ids):
        found = stripe.find_event(event_id)
        if found is None:
            raise CommandError(f"Stripe has no event {event_id} (it keeps them for 30 days). Nothing was sent.")
        events.append(event_of(found))
    for event in events:
        queue.send(event)
    return [event.id for event in events]


def _replay_letters(queue: EventQueue, dead_letters: DeadLetters, most: int) -> tuple[list[str], int]:
    """Sent first and deleted then: one that is sent twice does no harm, one that is lost would."""
    # What comes back while this runs is not tried again: as many as there were, and no more.
    most = min(most, dead_letters.count())
    replayed, strangers = [], []
    columns = (TextColumn("Replaying"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=aside(), transient=True) as progress:
        task = progress.add_task("", total=most)
        for letter in dead_letters.take(most, REPLAY_SECONDS):
            if letter.event is None:
                strangers.append(letter)
            else:
                queue.send(letter.event)
                dead_letters.delete(letter)
                replayed.append(letter.event.id)
            progress.advance(task)
    dead_letters.put_back(strangers)
    return replayed, len(strangers)


def _url(connections: Connections, url: str | None, stack: str | None, output: str) -> str:
    if url is not None:
        return url
    if stack is None:
        raise CommandError("Which queue? Name the deployed stack (--stack), or give the queue's address.")
    return connections.stack_output(stack, output)


def _document(letter: Letter) -> dict[str, Any]:
    event = None if letter.event is None else letter.event.document()
    return {"event": event, "sent_at_ms": letter.sent_at_ms, "received": letter.received}


class EventQueue:
    """The queue from which the function takes events."""

    def __init__(self, sqs: Any, url: str) -> None:  # noqa: ANN401  a boto3 client
        self._sqs = sqs
        self._url = url

    def send(self, event: StripeEvent) -> None:
        body = json.dumps({**event.document(), REPLAY_MARK: True})
        self._sqs.send_message(QueueUrl=self._url, MessageBody=body)


class DeadLetters:
    """The queue of dead letters."""

    def __init__(self, sqs: Any, url: str) -> None:  # noqa: ANN401  a boto3 client
        self._sqs = sqs
        self._url = url

    def count(self) -> int:
        """About how many there are; SQS knows no better."""
        names = ["ApproximateNumberOfMessages"]
        answer = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=names)
        return int(answer["Attributes"][names[0]])

    def take(self, most: int, hidden_seconds: int) -> Iterator[Letter]:
        """At most so many, each once; hidden from others for the time given."""
        seen: set[str] = set()
        while len(seen) < most:
            messages = self._sqs.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=min(BATCH, most - len(seen)),
                VisibilityTimeout=hidden_seconds,
                # Long polling asks all of SQS's servers; a short one may find nothing where there is something.
                WaitTimeSeconds=2,
                AttributeNames=["SentTimestamp", "ApproximateReceiveCount"],
            ).get("Messages", [])
            fresh = [message for message in messages if message["MessageId"] not in seen]
            if not fresh:
                return
            for message in fresh:
                seen.add(message["MessageId"])
                yield _letter(message)

    def put_back(self, letters: list[Letter]) -> None:
        """Others see them again at once."""
        for letter in letters:
            self._sqs.change_message_visibility(QueueUrl=self._url, ReceiptHandle=letter.handle, VisibilityTimeout=0)

    def delete(self, letter: Letter) -> None:
        self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=letter.handle)


def _letter(message: dict[str, Any]) -> Letter:
    try:
        event = event_of_message(json.loads(message["Body"]))
    except ValueError:
        event = None
    attributes = message.get("Attributes", {})
    return Letter(
        event=event,
        handle=message["ReceiptHandle"],
        sent_at_ms=int(attributes.get("SentTimestamp", 0)),
        received=int(attributes.get("ApproximateReceiveCount", 0)),
    )
