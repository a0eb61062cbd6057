"""How the process starts: the wrapper script, sys.path, what it refuses, and SnapStart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dev.runtime_api import RuntimeInitError
from tests.runtime.conftest import StartFunction
from tests.runtime.function_process import BOOTSTRAP, LAYER, TASK_ROOT, environment

LIBRARY = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def test_the_wrapper_is_a_sh_script_that_everybody_may_run() -> None:
    """Lambda runs layers as another user, and ends the environment with "not executable" otherwise."""
    assert BOOTSTRAP.stat().st_mode & 0o777 == 0o755
    assert BOOTSTRAP.read_bytes().startswith(b"#!/bin/sh\n")


def test_the_wrapper_finds_its_package_under_any_name(tmp_path: Path) -> None:
    """`${0%/*}`: the folder that Lambda calls it in, which may hold spaces on somebody's machine."""
    layer = tmp_path / "a layer"
    layer.symlink_to(LAYER)
    wrapper = layer / "tollgate_runtime" / "bootstrap"
    run = subprocess.run(
        [wrapper, sys.executable, "x"], env={"PATH": "/bin"}, capture_output=True, text=True, check=False
    )
    assert "LAMBDA_TASK_ROOT" in run.stderr


def test_the_path_is_the_managed_runtimes_with_our_layer_in_front_of_its_own_packages(
    start_function: StartFunction,
) -> None:
    found = json.loads(start_function("handlers.surroundings").answer({}).body)
    expected = [
        str(TASK_ROOT),
        f"/opt/python/{LIBRARY}",
        "/opt/python",
        str(LAYER),
        f"/var/lang/{LIBRARY}",
        "/var/runtime",
    ]
    assert found["path"][:6] == expected
    assert found["pythonpath"] == "/var/runtime"
    assert str(LAYER / "tollgate_runtime") not in found["path"]


def test_a_pythonpath_of_the_user_stays_and_replaces_the_layers_folders(
    start_function: StartFunction, tmp_path: Path
) -> None:
    given = f"{tmp_path}:{LAYER}"
    found = json.loads(start_function("handlers.surroundings", PYTHONPATH=given).answer({}).body)
    assert found["path"][:4] == [str(TASK_ROOT), "/var/runtime", str(tmp_path), str(LAYER)]
    assert "/opt/python" not in found["path"]
    assert found["pythonpath"] == given


def test_managed_instances_are_refused_by_name(start_function: StartFunction) -> None:
    function = start_function("handlers.echo", AWS_LAMBDA_MAX_CONCURRENCY="4")
    with pytest.raises(RuntimeInitError, match="AWS_LAMBDA_MAX_CONCURRENCY"):
        function.api.wait_ready(20)
    assert function.wait_exited() == 1
    assert "AWS_LAMBDA_MAX_CONCURRENCY" in function.output


def test_without_a_runtime_api_the_process_ends_with_an_error() -> None:
    variables = environment("handlers.echo", AWS_LAMBDA_RUNTIME_API="127.0.0.1:1")
    run = subprocess.run([BOOTSTRAP, sys.executable, "x"], env=variables, capture_output=True, timeout=20, check=False)
    assert run.returncode != 0


def test_snapstart_hooks_run_around_the_snapshot_and_serving_follows(
    start_function: StartFunction, tmp_path: Path
) -> None:
    hooks = tmp_path / "hooks"
    variables = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start", "HOOKS_FILE": str(hooks)}
    function = start_function("snapstart.handler", **variables)
    function.api.wait_snapshot(20)
    assert hooks.read_text() == "before snapshot\n"
    with pytest.raises(TimeoutError):
        function.api.wait_ready(0.3)
    function.api.restore()
    function.api.wait_ready(20)
    assert function.answer({}).body == b"before snapshot\nafter restore\n"


def test_without_snapstart_no_hook_runs(start_function: StartFunction, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.touch()
    assert start_function("snapstart.handler", HOOKS_FILE=str(hooks)).answer({}).body == b"\n"


@pytest.mark.parametrize(
    ("failing", "error_type", "status"),
    [("before snapshot", "Runtime.BeforeSnapshotError", 64), ("after restore", "Runtime.AfterRestoreError", 65)],
)
def test_a_failing_snapstart_hook_is_reported(
    start_function: StartFunction, tmp_path: Path, failing: str, error_type: str, status: int
) -> None:
    variables = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start", "HOOKS_FILE": str(tmp_path / "hooks")}
    function = start_function("snapstart.handler", HOOKS_FAIL=failing, **variables)
    function.api.restore()
    with pytest.raises(RuntimeInitError, match=f"{failing} failed") as caught:
        function.api.wait_ready(20)
    assert caught.value.failed.error_type == error_type
    assert function.wait_exited() == status
