"""Stands where Lambda has /var/runtime/bootstrap.py: runs the handler named by `_HANDLER` on AWS's runtime client."""

import os
import sys

from awslambdaric.__main__ import main

if __name__ == "__main__":
    # Lambda starts in the task root and imports from there before anything else; this folder is not the function's.
    sys.path[0] = os.environ["LAMBDA_TASK_ROOT"]
    main(["bootstrap", os.environ["_HANDLER"]])
