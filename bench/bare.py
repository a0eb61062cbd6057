"""An empty function: what the runtime itself costs to start."""

from __future__ import annotations


def handler(event: object, context: object) -> dict[str, int]:
    return {"statusCode": 200}
