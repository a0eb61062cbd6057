"""How the command reaches Stripe and AWS, and the one place where it reads its environment.

Secrets come from the environment or from SSM, never from an argument: arguments are in the shell's history and in the
list of processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tollgate.catalog.loader import Catalog, CatalogError, load_catalog, read_catalog
from tollgate.providers.secrets import is_one_line
from tollgate_cli.output import CommandError

if TYPE_CHECKING:
    import stripe

KEY_VARIABLE: Final = "STRIPE_SECRET_KEY"
BASE_URL_VARIABLE: Final = "STRIPE_API_BASE_URL"
_LIVE_PREFIXES: Final = ("sk_live_", "rk_live_")
_TEST_PREFIXES: Final = ("sk_test_", "rk_test_")


def _aws_client(service: str, **where: str) -> Any:  # noqa: ANN401  one of some 400 kinds
    import boto3  # noqa: PLC0415  half a second, which most commands can save
    from botocore.config import Config  # noqa: PLC0415

    retries: Any = {"mode": "standard", "total_max_attempts": 4}
    return boto3.client(service, config=Config(connect_timeout=5, read_timeout=30, retries=retries), **where)  # type: ignore[call-overload]


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Connections:
    """What a run of the command is given; the real ones by default."""

    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    aws_client: Callable[..., Any] = _aws_client
    """`region_name` and `endpoint_url` may follow the service."""
    stripe_wire: stripe.HTTPClient | None = None
    now: Callable[[], datetime] = _now
    pause: Callable[[float], None] = time.sleep
    """Waits so many seconds."""

    def __repr__(self) -> str:
        return "Connections()"

    @property
    def stripe_base_url(self) -> str | None:
        return self.environ.get(BASE_URL_VARIABLE)

    def stripe_key(self, parameter: str | None, *, live: bool) -> str:
        """The secret key. Raises CommandError: there is none, or it is for real money and `live` was not said."""
        key = self.read_parameter(parameter) if parameter else self.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            raise CommandError(
                f"There is no key for Stripe: set {KEY_VARIABLE}, or name the SSM parameter that holds it"
                " (--key-parameter)."
            )
        if key.startswith(_LIVE_PREFIXES) and not live:
            raise CommandError("This key is for the live account, where money is real. Say --live if you mean that.")
        if live and key.startswith(_TEST_PREFIXES):
            raise CommandError("--live was said, but this key is for a sandbox.")
        if not key.startswith((*_LIVE_PREFIXES, *_TEST_PREFIXES)):
            raise CommandError("This is no secret key of Stripe's: those begin with sk_ or rk_.")
        if not is_one_line(key):
            raise CommandError("The key for Stripe is not one line of printable ASCII; it is not shown here.")
        return key

    def read_parameter(self, name: str) -> str:
        """A secret from SSM, "" when there is none of this name."""
        ssm = self.aws_client("ssm")
        try:
            return str(ssm.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]).strip()
        except ssm.exceptions.ParameterNotFound:
            return ""

    def store_parameter(self, name: str, value: str) -> None:
        self.aws_client("ssm").put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True)

    def stack_output(self, stack: str, output: str) -> str:
        """One output of a deployed stack. Raises CommandError when it has none of this name."""
        answer = self.aws_client("cloudformation").describe_stacks(StackName=stack)
        outputs = {one["OutputKey"]: str(one["OutputValue"]) for one in answer["Stacks"][0].get("Outputs", [])}
        if output not in outputs:
            raise CommandError(f"Stack {stack} has no output {output}. Is it Tollgate's, and its newest version?")
        return outputs[output]


def read_named_catalog(name: str) -> Catalog:
    """A shipped catalog by its name, or the one in a folder. Raises CommandError with the place of what is wrong."""
    folder = Path(name)
    try:
        if (folder / "plans.toml").is_file():
            return read_catalog(folder.resolve(), folder.resolve().name)
        return load_catalog(name)
    except CatalogError as error:
        raise CommandError(str(error)) from error
