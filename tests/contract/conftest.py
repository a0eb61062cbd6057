"""Every contract test talks to the one running local stack, as a user of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway import Gateway
from tests.support.stack import RunningStack, stack

__all__ = ["gateway", "stack"]


@pytest.fixture(scope="session")
def gateway(stack: RunningStack) -> Iterator[Gateway]:
    found = Gateway(stack)
    yield found
    found.close()
