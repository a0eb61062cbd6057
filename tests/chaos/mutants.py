"""Guards switched off inside the function processes, to see that the books notice. `tests/simulation` has them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tollgate.domain.ledger import Reservation
from tollgate.flows import settle_message
from tollgate.storage import meters
from tollgate.storage.meters import Meters


def admit_without_room() -> None:
    meters._RESERVE_IF = meters._RESERVE_IF.replace(  # type: ignore[misc]
        "remaining >= :need", "(remaining >= :need OR attribute_exists(PK))"
    )


def settle_twice() -> None:
    """As a client does whose answer is lost and whose write has no fence."""
    true_update = Meters._update

    def update(self: Meters, key: Any, request: dict[str, Any]) -> Any:  # noqa: ANN401
        if "REMOVE #r" in request["UpdateExpression"]:
            request = {**request, "ConditionExpression": "attribute_exists(PK) OR #r = :reservation"}
        return true_update(self, key, request)

    Meters._update = update  # type: ignore[method-assign]


def reserve_half() -> None:
    true_encode = Reservation.encode

    def encode(self: Reservation) -> str:
        return true_encode(replace(self, amount_tokens=self.amount_tokens // 2))

    Reservation.encode = encode  # type: ignore[method-assign]


def charge_nothing_for_unknown_ends() -> None:
    settle_message.charge_for_unknown_end = lambda *_: (0, 0)  # type: ignore[attr-defined]


MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (admit_without_room, settle_twice, reserve_half, charge_nothing_for_unknown_ends)
}
