"""Secrets from SSM Parameter Store: one call for all of them, remembered for five minutes.

The client is botocore's own, made from a model that knows GetParameters only (models/ssm): the whole model of 150
operations costs a cold start 4.2 MB and 35 ms of CPU more than this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tollgate.domain.errors import UpstreamUnavailableError
from tollgate.domain.sources import Clock, Report

if TYPE_CHECKING:
    import botocore.session
    from types_boto3_ssm.client import SSMClient

FRESH_SECONDS: Final = 300
COOLDOWN_SECONDS: Final = 15
MAX_NAMES: Final = 10  # of one GetParameters call

_PRINTABLE: Final = re.compile(r"[ -~]+")
_MODELS: Final = str(Path(__file__).parent / "models")


class SecretFetchError(Exception):
    """The parameters could not be had. Says which names and why, never a value."""


def parameter_client(session: botocore.session.Session, region: str) -> SSMClient:
    """An SSM client with the one operation this project uses; it answers or fails within six seconds."""
    paths = session.get_component("data_loader").search_paths
    if _MODELS not in paths:
        paths.insert(0, _MODELS)
    config = Config(
        connect_timeout=1,
        read_timeout=2,
        retries={"mode": "standard", "total_max_attempts": 2},
        max_pool_connections=1,
    )
    return cast("SSMClient", session.create_client("ssm", region_name=region, config=config))


def is_one_line(secret: str) -> bool:
    """Printable ASCII and something at all: what a header can carry. Anything else would be told in an error's text."""
    return _PRINTABLE.fullmatch(secret) is not None


def read_parameters(client: SSMClient, names: tuple[str, ...]) -> dict[str, str]:
    """All of the parameters by name, decrypted, without the space and line ends that copying leaves around them.

    Raises SecretFetchError, also when one of them does not exist, or is no line of printable ASCII: no header could
    carry it, and every request would fail for a reason that nobody sees. Needs `ssm:GetParameters` on the names and
    `kms:Decrypt` on their key.
    """
    try:
        answer = client.get_parameters(Names=list(names), WithDecryption=True)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        raise SecretFetchError(f"SSM refused: {code if code.isidentifier() else 'unnamed'}") from error
    except BotoCoreError as error:
        raise SecretFetchError(f"SSM did not answer: {type(error).__name__}") from error
    parameters = answer.get("Parameters", [])
    found = {parameter.get("Name", ""): parameter.get("Value", "").strip() for parameter in parameters}
    if absent := [name for name in names if not found.get(name)]:
        raise SecretFetchError(f"no such parameter, or an empty one: {', '.join(absent)}")
    if unfit := [name for name in names if not is_one_line(found[name])]:
        raise SecretFetchError(f"not one line of printable ASCII: {', '.join(unfit)}")
    return found


class Secrets:
    """The named secrets, as of at most five minutes ago; older ones while they cannot be read again.

    A failed read is reported and not repeated for 15 seconds. Nothing here is ever put into a message.
    """

    def __init__(self, client: SSMClient, names: tuple[str, ...], clock: Clock, report: Report) -> None:
        if not names or len(names) > MAX_NAMES:
            raise ValueError(f"one call reads 1 to {MAX_NAMES} secrets")
        self._client = client
        self._names = names
        self._clock = clock
        self._report = report
        self._values: Mapping[str, str] = {}
        self._read_at_seconds: float | None = None
        self._tried_at_seconds: float | None = None

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self._names)})"

    def value(self, name: str) -> str:
        """Raises UpstreamUnavailableError when the secret has never been read and cannot be now."""
        if not self._within(self._read_at_seconds, FRESH_SECONDS):
            self._refresh()
        if name not in self._values:
            raise UpstreamUnavailableError(
                "The gateway cannot read its own secrets right now. Try again shortly.",
                error_code="secrets_unavailable",
            )
        return self._values[name]

    def _refresh(self) -> None:
        if self._within(self._tried_at_seconds, COOLDOWN_SECONDS):
            return
        self._tried_at_seconds = self._clock.now_seconds()
        try:
            self._values = read_parameters(self._client, self._names)
        except SecretFetchError as error:
            self._report("secrets_unavailable", error)
        else:
            self._read_at_seconds = self._tried_at_seconds

    def _within(self, since_seconds: float | None, span_seconds: int) -> bool:
        return since_seconds is not None and 0 <= self._clock.now_seconds() - since_seconds < span_seconds
