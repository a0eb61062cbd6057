"""What a function says about its work: one structured line per outcome, and metrics.

Only listed fields are written, and none of them can hold a body, a header, a claim or a credential. Of an error its
type and the place are written, never its text: texts of libraries quote what they failed on. The one exception are
our own survived failures (`report`), whose texts are made for this.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from io import TextIOBase
from pathlib import Path
from traceback import walk_tb
from typing import IO, Final, cast

from aws_lambda_powertools import Logger

from tollgate.domain.sources import Clock

FIELDS: Final = frozenset(
    {
        "attempt",
        "billable_tokens",
        "cache_read_tokens",
        "cache_write_1h_tokens",
        "cache_write_5m_tokens",
        "charged_tokens",
        "client_session_id",
        "closed_count",
        "cold_start",
        "cost_picousd",
        "counted_units",
        "credential",
        "credential_id",
        "duration_ms",
        "error_at",
        "error_code",
        "error_type",
        "estimated",
        "event_id",
        "event_type",
        "first_byte_ms",
        "found",
        "input_tokens",
        "invoice_id",
        "late",
        "late_tokens",
        "left_count",
        "method",
        "model",
        "outcome",
        "output_tokens",
        "overage_nanousd",
        "part",
        "period_id",
        "plan_id",
        "refused_count",
        "remaining_tokens",
        "reported_count",
        "request_id",
        "reserved_tokens",
        "route",
        "status",
        "streamed",
        "stripe_code",
        "subscription_id",
        "swept_count",
        "tenant_id",
        "told_units",
        "units",
        "unreconciled_count",
        "unrecorded_tokens",
        "upstream_request_id",
        "upstream_status",
        "user_id",
        "window_id",
        "written_off_tokens",
    }
)
"""Every field a line may have, in the words of the glossary."""

TALKATIVE: Final = ("aws_lambda_powertools", "botocore", "urllib3")
"""Libraries that write whole requests and answers at DEBUG, passwords and secrets among them. Where an operator sets
the log level to DEBUG, Lambda sets the root logger's, and theirs with it."""
CHATTY: Final = ("stripe",)
"""Writes each call at INFO, and the texts of Stripe's errors, which quote what was sent."""

MAX_TEXT_LENGTH: Final = 200
"""Longer values are cut: ids and names are short, and a caller chooses some of them."""

_PLACES: Final = 4


class _Stdout(TextIOBase):
    """Whatever `sys.stdout` is at the moment: Powertools keeps a service's first stream for the process's life."""

    def write(self, text: str) -> int:
        return sys.stdout.write(text)

    def flush(self) -> None:
        sys.stdout.flush()


class Telemetry:
    """Writes lines for one function. Its methods never raise for what they are given to write."""

    def __init__(self, *, service: str, stage: str, clock: Clock) -> None:
        """`service`: the function's name. The level comes from POWERTOOLS_LOG_LEVEL, which Powertools reads."""
        self._service = service
        self._stage = stage
        self._clock = clock
        self._logger = Logger(
            service=service,
            location=None,
            use_rfc3339=True,
            utc=True,
            stream=cast("IO[str]", _Stdout()),
            json_deserializer=str,  # by default every message is tried as JSON, and a name of ours is none
        )
        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.INFO)
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)

    def event(self, name: str, **fields: str | int | bool | None) -> None:
        """One outcome, e.g. `request_settled`. A field that is not listed is left out and named in `unlisted`."""
        self._logger.info(name, extra={"stage": self._stage} | _listed(fields))

    def failure(self, name: str, error: BaseException, **fields: str | int | bool | None) -> None:
        """Something an operator should look at: the error's types, down to its cause, and where it was raised."""
        self._logger.error(name, extra={"stage": self._stage} | _listed(fields) | _named(error))

    def report(self, name: str, error: Exception, **fields: str | int | bool | None) -> None:
        """A failure that was survived, in its own words; `tollgate.domain.sources.Report` and `UserReport`."""
        words = {"error": _short(str(error))}
        self._logger.warning(name, extra={"stage": self._stage} | _listed(fields) | _named(error) | words)

    def measure(self, values: Mapping[str, int], *, plan_id: str | None = None, model: str | None = None) -> None:
        """Metrics in CloudWatch's embedded format: counts, or milliseconds where a name ends so.

        Dimensions are the service, and the service with plan and model: every further value would be a metric to pay
        for, so ids belong into events. `model` must be one of the catalog's.
        """
        dimensions = [["service"]]
        members: dict[str, object] = {"service": self._service, **values}
        if plan_id is not None and model is not None:
            dimensions.append(["service", "plan", "model"])
            members |= {"plan": plan_id, "model": model}
        directive = {
            "Namespace": f"Tollgate/{self._stage}",
            "Dimensions": dimensions,
            "Metrics": [{"Name": name, "Unit": _unit(name)} for name in values],
        }
        header = {"Timestamp": int(self._clock.now_seconds() * 1000), "CloudWatchMetrics": [directive]}
        sys.stdout.write(json.dumps({"_aws": header} | members, separators=(",", ":")) + "\n")


def _listed(fields: Mapping[str, str | int | bool | None]) -> dict[str, object]:
    line: dict[str, object] = {
        name: _short(value) if isinstance(value, str) else value
        for name, value in fields.items()
        if name in FIELDS and value is not None
    }
    if unlisted := sorted(fields.keys() - FIELDS):
        line["unlisted"] = unlisted
    return line


def _short(text: str) -> str:
    """One that any terminal and any log store can hold: short, and ASCII, because a caller may have chosen it."""
    return text[:MAX_TEXT_LENGTH].encode("ascii", "backslashreplace").decode()


def _named(error: BaseException) -> dict[str, object]:
    return {"error_type": _types(error), "error_at": _places(error)}


def _types(error: BaseException) -> str:
    """`StoreUnavailableError < ReadTimeoutError`: the error and what caused it."""
    names: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(names) < _PLACES:
        names.append(type(cause).__name__)
        cause = cause.__cause__
    return " < ".join(names)


def _places(error: BaseException) -> str:
    """`meters.py:91 < relay_message.py:40`: where it was raised, innermost first."""
    frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    return " < ".join(f"{Path(filename).name}:{line}" for filename, line in reversed(frames[-_PLACES:]))


def _unit(name: str) -> str:
    return "Milliseconds" if name.endswith("Milliseconds") else "Count"
