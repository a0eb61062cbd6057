"""What is asked for at once, by processes of its own each: an exact table, and a shop whose plans are for sale."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dev.stripe_double.transport import InProcess
from dev.stripe_double.world import StripeWorld
from tests.support.billing_function import PLANS, SECRET_KEY, stripe_world
from tests.support.engines import exact_table
from tollgate.catalog.loader import Catalog, load_catalog
from tollgate.flows.sync_plans import PlansSync
from tollgate.providers.stripe_admin import StripeAdmin
from tollgate.storage.table import Table

CONNECTIONS = 64
"""As many as ever ask at once."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    with exact_table(tmp_path_factory.mktemp("engine")) as running:
        client = running.client(attempts=3, connections=CONNECTIONS)
        yield Table(client, running.name)
        client.close()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "plans.toml").write_text(PLANS)
    return load_catalog(str(folder))


@pytest.fixture(scope="module")
def world(catalog: Catalog) -> StripeWorld:
    world = stripe_world()
    admin = StripeAdmin(lambda: SECRET_KEY, http_client=InProcess(world))
    PlansSync(catalog, admin).run(hand_over=lambda _: None, done=lambda _: None)
    return world
