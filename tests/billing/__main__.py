"""`python -m tests.billing`: run webhook schedules, as tests/support/seeded_command.py says.

--adversarial           functions outlive their deadline in every run
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "layers" / "core"), str(ROOT)]

from tests.billing.mutants import MUTANTS  # noqa: E402  the path first
from tests.billing.runner import Summary, run_seed, run_seeds  # noqa: E402
from tests.billing.scenario import Options  # noqa: E402
from tests.support.seeded_command import Proof, main  # noqa: E402


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--adversarial", action="store_true", help="functions outlive their deadline in every run")


PROOF = Proof(
    command="tests.billing",
    about="Webhook schedules under every fault.",
    seeds=500,
    run_seed=run_seed,
    run_seeds=run_seeds,
    summary=Summary,
    mutants=MUTANTS,
    add_arguments=_add_arguments,
    options_of=lambda arguments: Options(adversarial=arguments.adversarial or None),
    replay_with=lambda options: " --adversarial" if options.adversarial else "",
)

if __name__ == "__main__":
    sys.exit(main(PROOF))
