"""What the command writes: tables for people, one JSON document with --json, errors on the other stream.

Results go to standard output, everything said on the way to standard error, so that a pipe gets only the result.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import typer
from botocore.exceptions import BotoCoreError, ClientError
from click import ClickException
from rich.console import Console
from rich.markup import escape

from tollgate.domain.errors import TollgateError

FAILED: Final = 1
"""What was asked for failed, or a check did. 2 is wrong usage."""
DIFFERENT: Final = 3
"""`plans diff` found something to do: apart from 1, so that a script can tell it from an error."""


WRONG_USAGE: Final = 2
"""As typer's own refusals of options."""


class CommandError(Exception):
    """What stands in the way, in words for whoever typed the command."""


class UsageError(CommandError):
    """An option or argument that cannot be meant so: status 2."""


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
    """Around every command: failures become one line and status 1 or 2, never a traceback with secrets in it."""
    try:
        yield
    except UsageError as error:
        _fail(str(error), WRONG_USAGE)
    except CommandError as error:
        _fail(str(error))
    except TollgateError as error:
        _fail(" ".join([error.public_message, *_details(error)]))
    except ClientError as error:
        _fail(f"AWS refused {error.operation_name}: {error.response['Error'].get('Code', 'unnamed')}")
    except BotoCoreError as error:
        _fail(f"AWS did not answer: {type(error).__name__}. Are region and credentials set?")
    except (ClickException, typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001  its text may quote whatever could not be sent, a key among it
        place = traceback.extract_tb(error.__traceback__)[-1]
        _fail(f"{type(error).__name__}, which nobody foresaw, at {Path(place.filename).name}:{place.lineno}.")


def _details(error: TollgateError) -> Iterator[str]:
    """Codes and names of parameters, which the operator may see though callers may not."""
    for name in ("stripe_code", "stripe_param"):
        if value := getattr(error, name, None):
            yield f"({name.replace('_', ' ')}: {value})"


def _fail(text: str, status: int = FAILED) -> NoReturn:
    aside().print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)
    raise typer.Exit(status) from None
