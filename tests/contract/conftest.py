"""Every contract test talks to the one running local stack."""

from __future__ import annotations

from tests.support.stack import stack

__all__ = ["stack"]
