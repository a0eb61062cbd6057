"""One stack for all of these tests, and a gateway to it; every test makes users of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway import Gateway
from tests.support.stack import RunningStack
from tests.support.stack import stack as stack


@pytest.fixture(scope="session")
def gateway(stack: RunningStack) -> Iterator[Gateway]:
    found = Gateway(stack)
    yield found
    found.close()
