"""What Lambda tells a function about an invocation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LambdaContext:
    """An invocation with `remaining_ms` left; it does not run down."""

    function_name: str = "tollgate-test"
    aws_request_id: str = "0c1d2e3f-4a5b-4c6d-8e9f-001122334455"
    remaining_ms: int = 30_000

    @property
    def function_version(self) -> str:
        return "$LATEST"

    @property
    def memory_limit_in_mb(self) -> int:
        return 512

    @property
    def invoked_function_arn(self) -> str:
        return f"arn:aws:lambda:us-east-1:111122223333:function:{self.function_name}"

    @property
    def log_group_name(self) -> str:
        return f"/aws/lambda/{self.function_name}"

    @property
    def log_stream_name(self) -> str:
        return "2026/11/20/[$LATEST]0"

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms
