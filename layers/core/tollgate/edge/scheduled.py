"""A scheduled job of several parts, each in its turn whatever happens to the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tollgate.telemetry import Telemetry

Figures = Mapping[str, int | bool]
"""What a part did; `complete` is False when its deadline came first."""
Part = Callable[[float], Figures]
"""Does what is due until this instant, epoch seconds."""


def run_parts(
    parts: Sequence[tuple[str, int, Part]], began_at_seconds: float, left_seconds: int, telemetry: Telemetry
) -> dict[str, int | bool]:
    """The figures of all parts. Each part: its name, the percent of `left_seconds` at which it ends, what it does.

    Raises what the first of those that failed has raised, when the others have had their turn: the run has failed.
    """
    done: dict[str, int | bool] = {}
    complete, failed = True, None
    for name, until_percent, part in parts:
        try:
            figures = part(began_at_seconds + left_seconds * until_percent // 100)
        except Exception as error:  # noqa: BLE001  the entry: raised again below
            telemetry.failure("scheduled_part_failed", error, part=name)
            failed = failed or error
        else:
            done |= {**figures}
            complete = complete and bool(figures.get("complete", True))
    if failed is not None:
        raise failed
    return {**done, "complete": complete}
