"""Bring an account at Stripe to what a catalog sells: read, decide, do what can be done, read again.

What to do is decided in `tollgate.domain.selling` from what Stripe has now, never from what this run did before. So a
run may end between any two calls, or two runs may overlap: the next one finds what is left, and a second one nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tollgate.catalog.loader import Catalog
from tollgate.domain.selling import (
    Action,
    Change,
    Kind,
    Shelf,
    WantedMeter,
    WantedPortal,
    WantedPrice,
    WantedProduct,
    WantedWebhook,
    Work,
    shelf_of,
    work_to_do,
)
from tollgate.providers.stripe_admin import StripeAdmin
from tollgate.providers.stripe_client import API_VERSION

MOST_ROUNDS: Final = 6
"""Two are needed: what waits for a meter, and what is outdated once its successor is there."""


class SyncConflictError(Exception):
    """Something that is not ours is where ours should be; nothing was changed."""

    def __init__(self, conflicts: tuple[str, ...]) -> None:
        super().__init__("; ".join(conflicts))
        self.conflicts = conflicts


class SyncUnsettledError(Exception):
    """Somebody else changes the same things: what was approved is not what is to do, or there is no end to it."""


@dataclass(frozen=True, slots=True)
class PlansSync:
    """One catalog and one account. `webhook_url`: of the deployment's function; None leaves webhooks alone."""

    catalog: Catalog
    stripe: StripeAdmin
    webhook_url: str | None = None

    def find_work(self) -> Work:
        """What differs now. Changes nothing."""
        shelf = self._shelf()
        found = self.stripe.read([price.lookup_key for price in shelf.prices], webhooks=bool(shelf.webhooks))
        return work_to_do(shelf, found)

    def run(
        self,
        *,
        hand_over: Callable[[str], None],
        done: Callable[[Change], None],
        approved: tuple[Change, ...] | None = None,
    ) -> int:
        """Do it all; how many changes it took. `hand_over` gets each new signing secret, `done` each change made.

        `approved`: what `find_work` found and somebody said yes to; nothing else is begun with. Raises
        SyncConflictError before the first change, SyncUnsettledError, and what StripeAdmin raises.
        """
        made = 0
        for number in range(MOST_ROUNDS):
            work = self.find_work()
            if work.conflicts:
                raise SyncConflictError(work.conflicts)
            if number == 0 and approved is not None and work.changes != approved:
                raise SyncUnsettledError
            if not work.changes:
                return made
            for change in work.changes:
                if not change.waits:
                    self._make(change, hand_over)
                    done(change)
                    made += 1
        raise SyncUnsettledError

    def _shelf(self) -> Shelf:
        return shelf_of(self.catalog.plans, self.catalog.billing, webhook_url=self.webhook_url, api_version=API_VERSION)

    def _make(self, change: Change, hand_over: Callable[[str], None]) -> None:
        target = change.target_id or ""
        match change.action:
            case Action.CREATE:
                self._create(change, hand_over)
            case Action.UPDATE:
                self._update(change, target)
            case Action.ARCHIVE if change.kind is Kind.PRICE:
                self.stripe.archive_price(target)
            case Action.ARCHIVE:
                self.stripe.archive_product(target)
            case Action.DELETE:
                self.stripe.delete_webhook(target, thin=change.kind is Kind.THIN_WEBHOOK)

    def _create(self, change: Change, hand_over: Callable[[str], None]) -> None:
        match change.wanted:
            case WantedProduct() as product:
                self.stripe.create_product(product)
            case WantedPrice() as price:
                self.stripe.create_price(price)
            case WantedMeter() as meter:
                self.stripe.create_meter(meter)
            case WantedPortal() as portal:
                self.stripe.create_portal(portal)
            case WantedWebhook() as webhook:
                webhook_id, secret = self.stripe.create_webhook(webhook)
                # In this order: an endpoint without the mark is made anew, and its secret with it.
                hand_over(secret)
                self.stripe.mark_handed_over(webhook_id, thin=webhook.thin)

    def _update(self, change: Change, target: str) -> None:
        match change.wanted:
            case WantedProduct() as product:
                self.stripe.update_product(product)
            case WantedPrice() as price:
                self.stripe.update_price(target, price, tax=change.touches("tax"))
            case WantedMeter() as meter:
                if change.touches("active"):
                    self.stripe.reactivate_meter(target)
                if change.touches("name"):
                    self.stripe.rename_meter(target, meter.display_name)
            case WantedPortal() as portal:
                self.stripe.update_portal(target, portal)
            case WantedWebhook() as webhook:
                self.stripe.update_webhook(target, webhook)
