"""A warm function process with production's own objects in it, on the simulator's client, clock and ids."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from tests.simulation.hub import KilledError, Warm
from tests.simulation.network import SimulatedClient
from tollgate.domain.ledger import MeterKey
from tollgate.domain.periods import period_at
from tollgate.domain.principals import Account, CredentialKind, KeyLimits, MaxTokensPolicy, Principal
from tollgate.flows.accounts import Accounts
from tollgate.flows.ledger import Ledger
from tollgate.storage.meters import Meters
from tollgate.storage.table import Table
from tollgate.storage.users import Users

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient

    from tests.simulation.world import World

TABLE = "tollgate"
TENANT = "main"


def user_id(user: int) -> str:
    return f"user-{user}"


class Container(Warm):
    """Serves one invocation at a time and keeps what it learned for the next."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, world.scenario.clock_error_seconds)
        self.world = world
        self.name = name
        self.table = Table(cast("DynamoDBClient", SimulatedClient(world.network, self)), TABLE)
        self.users = Users(self.table)
        self.meters = Meters(self.table)
        self.ledger = Ledger(self.meters, self, self)
        self.accounts = Accounts(self.users, world.catalog, self)

    def now_seconds(self) -> float:
        if self.process.dead:
            raise KilledError
        return super().now_seconds()

    def principal(self, user: int, *, may_clamp: bool = True, limits: KeyLimits | None = None) -> Principal:
        policy = MaxTokensPolicy.CLAMP if may_clamp else MaxTokensPolicy.REFUSE
        return Principal(TENANT, user_id(user), CredentialKind.API_KEY, "key", policy, limits=limits)

    def account(self, user: int, *, fresh: bool = False) -> Account:
        return self.accounts.find(self.principal(user), fresh=fresh)

    def key(self, account: Account) -> MeterKey:
        now = datetime.fromtimestamp(self.now_seconds(), UTC)
        period = period_at(account.plan.period_kind, account.profile.anchor_at, now)
        return MeterKey(TENANT, account.user_id, period)

    @property
    def deadline_at_seconds(self) -> float:
        """When this invocation is killed, by this container's clock."""
        return self.process.started_at + self.skew_seconds + self.world.scenario.timeout_seconds
