"""What a million requests cost on AWS: list prices times what was counted, without Anthropic's bill and free tiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

PRICES_OF: Final = "us-east-1, arm64, list prices of November 2026, without free tiers"
USD_PER_GB_SECOND: Final = 0.0000133334
USD_PER_MILLION_INVOCATIONS: Final = 0.20
USD_PER_MILLION_WRITES: Final = 0.625
"""Write request units of a table on demand; one is a write of up to 1 KB, two in a transaction."""
USD_PER_MILLION_READS: Final = 0.125
USD_PER_GB_OF_LOGS: Final = 0.50
USD_PER_MILLION_URL_CALLS: Final = 0.0
"""A function URL itself is free of charge."""
MEMORY_GB: Final = 0.5
"""MemorySize of the claude function in template.yaml."""
LENGTHS_SECONDS: Final = (2, 10, 30)
"""How long the model writes: a short answer, a usual one, one of an agent."""

FORMULA: Final = """\
invocations x $0.20/M + function URL x $0
+ (model seconds + own seconds) x 0.5 GB x $0.0000133334
+ write units x $0.625/M + read units x $0.125/M
+ log bytes x $0.50/GB"""

_MILLION: Final = 1_000_000


def per_million(
    *, own_ms: float, writes: float, reads: float, log_bytes: float, model_seconds: float
) -> dict[str, float]:
    """US dollars of a million streams whose model writes for so long, by what they are paid for."""
    parts = {
        "lambda_waiting": _MILLION * model_seconds * MEMORY_GB * USD_PER_GB_SECOND,
        "lambda_own": _MILLION * own_ms / 1000 * MEMORY_GB * USD_PER_GB_SECOND,
        "lambda_requests": USD_PER_MILLION_INVOCATIONS + USD_PER_MILLION_URL_CALLS,
        "table": writes * USD_PER_MILLION_WRITES + reads * USD_PER_MILLION_READS,
        "logs": _MILLION * log_bytes / 1e9 * USD_PER_GB_OF_LOGS,
    }
    return {name: round(usd, 2) for name, usd in (parts | {"all": sum(parts.values())}).items()}


def of_results(claude: Mapping[str, Any], own_ms: float) -> dict[str, dict[str, float]]:
    """The table for every length, from what `bench.claude` counted and the time that the function added."""
    units = claude["table"]["capacity_units_per_request"]
    reads = sum(amount for name, amount in units.items() if name in {"GetItem", "Query", "BatchGetItem"})
    return {
        str(seconds): per_million(
            own_ms=own_ms,
            writes=sum(units.values()) - reads,
            reads=reads,
            log_bytes=claude["log_bytes_per_request"],
            model_seconds=seconds,
        )
        for seconds in LENGTHS_SECONDS
    }
