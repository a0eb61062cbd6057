"""What the command writes: tables for people, one JSON document with --json, errors on the other stream.

Results go to standard output, everything said on the way to standard error, so that a pipe gets only the result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.markup import escape

from tollgate.domain.errors import TollgateError

FAILED: Final = 1
"""What was asked for failed, or a check did. 2 is wrong usage."""
DIFFERENT: Final = 3
"""`plans diff` found something to do: apart from 1, so that a script can tell it from an error."""


class CommandError(Exception):
    """What stands in the way, in words for whoever typed the command."""


def console() -> Console:
    """For results."""
    return Console(highlight=False)


def aside() -> Console:
    """For what is said on the way."""
    return Console(stderr=True, highlight=False)


def print_json(document: Any) -> None:  # noqa: ANN401  any JSON
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


@contextmanager
def failures() -> Iterator[None]:
    """Around every command: known failures become one line and status 1, never a traceback with secrets in it."""
    try:
        yield
    except CommandError as error:
        _fail(str(error))
    except TollgateError as error:
        _fail(" ".join([error.public_message, *_details(error)]))
    except ClientError as error:
        _fail(f"AWS refused {error.operation_name}: {error.response['Error'].get('Code', 'unnamed')}")
    except BotoCoreError as error:
        _fail(f"AWS did not answer: {type(error).__name__}. Are region and credentials set?")


def _details(error: TollgateError) -> Iterator[str]:
    """Codes and names of parameters, which the operator may see though callers may not."""
    for name in ("stripe_code", "stripe_param"):
        if value := getattr(error, name, None):
            yield f"({name.replace('_', ' ')}: {value})"


def _fail(text: str) -> None:
    aside().print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)
    raise typer.Exit(FAILED)
