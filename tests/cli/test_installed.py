"""The command is there after `make dev` or `make test`, and on nobody's Lambda."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_uv_builds_the_command_itself() -> None:
    """Only with its own version; with another it would ask the network for that one."""
    assert PROJECT["build-system"]["requires"] == [PROJECT["dependency-groups"]["uv"][0].replace("uv==", "uv_build==")]
    assert PROJECT["project"]["scripts"] == {"tollgate": "tollgate_cli.__main__:main"}


def test_both_tasks_of_a_newcomer_install_it() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    dev = re.search(r"^dev:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert dev is not None
    assert ".venv/command.stamp" in dev[1]
    assert re.search(r"^\.venv/test\.stamp: .*\.venv/command\.stamp", makefile, re.MULTILINE)


def test_the_command_runs_as_a_process() -> None:
    """From any folder, in an empty environment."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tollgate_cli.__main__ import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program, "plans", "lint", "--json"],
        cwd="/", env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (ran.returncode, ran.stderr) == (0, "")
    assert '"catalog": "default"' in ran.stdout


def test_the_command_reaches_another_stripe_by_its_address() -> None:
    """As in the local stack: the double is a process of its own, and so is the command."""
    double = subprocess.Popen(
        [sys.executable, "-m", "dev.stripe_double", "--until-stdin-closes"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert double.stdin is not None
    assert double.stdout is not None
    try:
        address = double.stdout.readline().strip()
        environ = {"STRIPE_SECRET_KEY": "sk_test_x", "STRIPE_API_BASE_URL": address, "HOME": "/nowhere"}

        def tollgate(*arguments: str) -> int:
            command = [sys.executable, "-m", "tollgate_cli", "plans", *arguments]
            return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, check=False).returncode

        assert [tollgate("diff"), tollgate("sync", "--yes"), tollgate("diff")] == [3, 0, 0]
    finally:
        double.stdin.close()
        double.wait(10)
        double.stdout.close()


def test_nothing_that_is_deployed_knows_the_command() -> None:
    for path in [*(ROOT / "functions").rglob("*.py"), *(ROOT / "layers").rglob("*.py")]:
        assert not re.search(r"^\s*(from|import) (tollgate_cli|typer|rich)\b", path.read_text(), re.MULTILINE), path
    pins = (ROOT / "layers" / "core" / "requirements.txt").read_text()
    assert not re.search(r"^(typer|rich)==", pins, re.MULTILINE)


def test_no_part_of_the_deployment_is_made_from_its_folder() -> None:
    template = re.sub(r"!\w+", "", (ROOT / "template.yaml").read_text(encoding="utf-8"))
    resources = yaml.safe_load(template)["Resources"].values()
    folders = {
        resource["Properties"][key]
        for resource in resources
        for key in ("CodeUri", "ContentUri")
        if key in resource.get("Properties", {})
    }

    assert folders
    assert all(str(folder).startswith(("functions/", "layers/")) for folder in folders)
