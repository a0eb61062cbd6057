"""Secrets from SSM Parameter Store: one signed request for all of them, remembered for five minutes.

The request is signed by botocore and sent without an SSM client: the client's model costs a cold start 4.4 MB and
20 ms of CPU for this one call (docs/decisions.md, "Secrets without an SSM client").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session

from tollgate.domain.errors import UpstreamUnavailableError
from tollgate.domain.sources import Clock, Report

if TYPE_CHECKING:
    import botocore.session

FRESH_SECONDS: Final = 300
COOLDOWN_SECONDS: Final = 15
CONNECT_TIMEOUT_SECONDS: Final = 1
READ_TIMEOUT_SECONDS: Final = 2
ATTEMPTS: Final = 2
MAX_NAMES: Final = 10  # of one GetParameters call


class SecretFetchError(Exception):
    """The parameters could not be had. Says which names and why, never a value."""


class ParameterStore:
    """SSM's GetParameters. Needs `ssm:GetParameters` on the names and `kms:Decrypt` on their key."""

    def __init__(self, session: botocore.session.Session, *, region: str, endpoint_url: str | None = None) -> None:
        self._session = session
        self._region = region
        self._endpoint_url = (endpoint_url or f"https://ssm.{region}.amazonaws.com").rstrip("/") + "/"
        timeout: Any = (CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS)  # the stubs know only one number
        self._http = URLLib3Session(timeout=timeout, max_pool_connections=1)

    def read(self, names: tuple[str, ...]) -> dict[str, str]:
        """All of the parameters by name, decrypted. Raises SecretFetchError, also when one of them does not exist."""
        body = json.dumps({"Names": names, "WithDecryption": True}).encode()
        answer = self._answer(body)
        try:
            found = {parameter["Name"]: parameter["Value"] for parameter in answer["Parameters"]}
        except (KeyError, TypeError) as error:
            raise SecretFetchError("SSM's answer has no parameters") from error
        if absent := [name for name in names if not found.get(name)]:
            raise SecretFetchError(f"no such parameter, or an empty one: {', '.join(absent)}")
        return found

    def _answer(self, body: bytes) -> dict[str, Any]:
        problem = ""
        for _ in range(ATTEMPTS):
            try:
                response = self._http.send(self._signed(body))
            except BotoCoreError as error:
                problem = type(error).__name__
                continue
            if response.status_code == 200:
                return _json_object(response.content)
            problem = f"status {response.status_code} {_error_type(response.content)}"
            if response.status_code < 500:
                break
        raise SecretFetchError(f"SSM did not answer: {problem}")

    def _signed(self, body: bytes) -> Any:  # noqa: ANN401  botocore's AWSPreparedRequest, untyped in its stubs
        credentials = self._session.get_credentials()
        if credentials is None:
            raise SecretFetchError("there are no AWS credentials to ask SSM with")
        headers = {
            "Content-Type": "application/x-amz-json-1.1",
            "Host": urlsplit(self._endpoint_url).netloc,
            "X-Amz-Target": "AmazonSSM.GetParameters",
        }
        request = AWSRequest(method="POST", url=self._endpoint_url, data=body, headers=headers)
        SigV4Auth(credentials.get_frozen_credentials(), "ssm", self._region).add_auth(request)
        return request.prepare()


class Secrets:
    """The named secrets, as of at most five minutes ago; older ones while they cannot be read again.

    A failed read is reported and not repeated for 15 seconds. Nothing here is ever put into a message.
    """

    def __init__(self, store: ParameterStore, names: tuple[str, ...], clock: Clock, report: Report) -> None:
        if not names or len(names) > MAX_NAMES:
            raise ValueError(f"one call reads 1 to {MAX_NAMES} secrets")
        self._store = store
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
            self._values = self._store.read(self._names)
        except SecretFetchError as error:
            self._report("secrets_unavailable", error)
        else:
            self._read_at_seconds = self._tried_at_seconds

    def _within(self, since_seconds: float | None, span_seconds: int) -> bool:
        return since_seconds is not None and 0 <= self._clock.now_seconds() - since_seconds < span_seconds


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise SecretFetchError("SSM's answer is not JSON") from error
    if not isinstance(document, dict):
        raise SecretFetchError("SSM's answer is not a JSON object")
    return document


def _error_type(content: bytes) -> str:
    """The service's name of its error, e.g. AccessDeniedException; never its sentence."""
    try:
        name = str(json.loads(content)["__type"]).rpartition("#")[2]
    except (ValueError, KeyError, TypeError):
        return ""
    return name if name.isidentifier() else ""
