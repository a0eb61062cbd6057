"""`python -m tests.simulation`: run the ledger's simulation, as tests/support/seeded_command.py says.

--adversarial           functions outlive their deadline in every run
--policy POLICY         what becomes of calls that never settled; else by the seed
--calls KIND            those of the ledger's own or whole relayed ones only
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "layers" / "core"), str(ROOT)]

from tests.simulation.mutants import MUTANTS  # noqa: E402  the path first
from tests.simulation.runner import Summary, run_seed, run_seeds  # noqa: E402
from tests.simulation.scenario import Options  # noqa: E402
from tests.support.seeded_command import Proof, main  # noqa: E402
from tollgate.domain.plans import ExpiryPolicy  # noqa: E402


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--adversarial", action="store_true", help="functions outlive their deadline in every run")
    parser.add_argument(
        "--policy", choices=[policy.value for policy in ExpiryPolicy], help="drawn by the seed if not given"
    )
    parser.add_argument("--calls", choices=["both", "ledger", "relay"], default="both")


def _options_of(arguments: Namespace) -> Options:
    return Options(
        policy=ExpiryPolicy(arguments.policy) if arguments.policy else None,
        adversarial=arguments.adversarial or None,
        relay=None if arguments.calls == "both" else arguments.calls == "relay",
    )


def _replay_with(options: Options) -> str:
    policy = f" --policy {options.policy.value}" if options.policy else ""
    calls = "" if options.relay is None else f" --calls {'relay' if options.relay else 'ledger'}"
    return policy + calls + (" --adversarial" if options.adversarial else "")


PROOF = Proof(
    command="tests.simulation",
    about="The ledger under every fault.",
    seeds=2000,
    run_seed=run_seed,
    run_seeds=run_seeds,
    summary=Summary,
    mutants=MUTANTS,
    add_arguments=_add_arguments,
    options_of=_options_of,
    replay_with=_replay_with,
)

if __name__ == "__main__":
    sys.exit(main(PROOF))
