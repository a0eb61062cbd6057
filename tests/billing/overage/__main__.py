"""`python -m tests.billing.overage`: run overage schedules, as tests/support/seeded_command.py says.

--last-by READING       one reading of `last` for all runs
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "layers" / "core"), str(ROOT)]

from tests.billing.overage.mutants import MUTANTS  # noqa: E402  the path first
from tests.billing.overage.runner import Summary, run_seed, run_seeds  # noqa: E402
from tests.billing.overage.scenario import READINGS, Options  # noqa: E402
from tests.support.seeded_command import Proof, main  # noqa: E402


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--last-by", choices=READINGS, help="one reading of `last` for all; else by turns")


PROOF = Proof(
    command="tests.billing.overage",
    about="Overage under every fault.",
    seeds=200,
    run_seed=run_seed,
    run_seeds=run_seeds,
    summary=Summary,
    mutants=MUTANTS,
    add_arguments=_add_arguments,
    options_of=lambda arguments: Options(last_by=arguments.last_by),
    replay_with=lambda options: f" --last-by {options.last_by}" if options.last_by else "",
)

if __name__ == "__main__":
    sys.exit(main(PROOF))
