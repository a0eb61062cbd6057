"""What `bootstrap` runs in place of the managed runtime's own bootstrap.py."""

from __future__ import annotations

import os
import site
import sys


def set_up_path() -> None:
    """Make sys.path and PYTHONPATH what the managed runtime makes them, with this layer's awslambdaric before AWS's.

    As in /var/runtime/bootstrap.py: the function's folder, then /opt/python unless the user sets PYTHONPATH, .pth files
    of both, then the runtime's own folder.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    layer = os.path.dirname(package)
    task = os.environ["LAMBDA_TASK_ROOT"]
    runtime = os.environ.get("LAMBDA_RUNTIME_DIR", "/var/runtime")
    library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    given = [path for path in sys.path if path not in ("", package)]  # Python put the script's folder first
    layers = [] if "PYTHONPATH" in os.environ else [f"/opt/python/{library}", "/opt/python"]
    own = [] if layer in (*layers, *given) else [layer]
    built_in = [] if "PYTHONPATH" in os.environ else [f"/var/lang/{library}"]
    sys.path[:] = [task, *layers, *own, *built_in, runtime, *given]
    for folder in (task, *layers):
        site.addsitedir(folder)
    os.environ.setdefault("PYTHONPATH", runtime)


def main() -> None:
    """Serve invocations until the environment ends."""
    set_up_path()
    from awslambdaric import bootstrap  # noqa: PLC0415  # found only once the path is set
    from awslambdaric.lambda_config import LambdaConfigProvider  # noqa: PLC0415

    from tollgate_runtime.client import StreamingRuntimeClient  # noqa: PLC0415

    config = LambdaConfigProvider(["", os.environ["_HANDLER"]])
    client = StreamingRuntimeClient(config.api_address, config.use_thread_polling)
    if config.is_multi_concurrent:
        message = (
            "tollgate_runtime serves one invocation at a time: not for Managed Instances (AWS_LAMBDA_MAX_CONCURRENCY)"
        )
        client.post_init_error({"errorType": "Runtime.Unsupported", "errorMessage": message, "stackTrace": []})
        sys.exit(message)
    bootstrap.run(config.handler, client)


if __name__ == "__main__":
    main()
