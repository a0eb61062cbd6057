"""The queue of Stripe's events: what need not be done before Stripe is answered waits in it, and what cannot be done.

Messages are the ids of an event (`tollgate.domain.stripe_events`), never its body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tollgate.domain.errors import StoreUnavailableError

if TYPE_CHECKING:
    import botocore.session


class QueueClient(Protocol):
    """The part of botocore's SQS client that is used."""

    def send_message(self, *, QueueUrl: str, MessageBody: str, DelaySeconds: int) -> object: ...  # noqa: N803  AWS's


def queue_client(session: botocore.session.Session, region: str) -> QueueClient:
    """An SQS client that answers or fails within six seconds."""
    config = Config(
        connect_timeout=1,
        read_timeout=2,
        retries={"mode": "standard", "total_max_attempts": 2},
        max_pool_connections=1,
    )
    return cast("QueueClient", session.create_client("sqs", region_name=region, config=config))


class EventQueue:
    """One queue, written to."""

    def __init__(self, client: QueueClient, url: str) -> None:
        self._client = client
        self._url = url

    def send(self, text: str, delay_seconds: int = 0) -> None:
        """Keep a message durably, and give it to nobody for so long (900 at most).

        Raises StoreUnavailableError, also when our role or the address is wrong.
        """
        try:
            self._client.send_message(QueueUrl=self._url, MessageBody=text, DelaySeconds=delay_seconds)
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError("The queue of events did not answer. Send the event again.") from error
