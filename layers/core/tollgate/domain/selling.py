"""What has to be at Stripe for a catalog to be sold, what is there, and the difference between the two.

Everything that is ours carries metadata `tollgate`; what does not is never changed. No I/O: `tollgate.flows.sync_plans`
reads, asks here what to do, does it, and reads again until nothing is left. So every step is decided from what Stripe
has now, and a run that broke off anywhere is finished by the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from tollgate.domain.plans import Billing, Plan, TaxKind
from tollgate.domain.price_keys import OWNED_FIELD, PLAN_FIELD, price_lookup_key, price_metadata
from tollgate.domain.stripe_events import SNAPSHOT_TYPES, THIN_TYPES
from tollgate.domain.subscriptions import Interval

OVERAGE_PRODUCT_ID: Final = "tollgate_overage"
OVERAGE_UNIT: Final = 1
"""Overage is metered in hundredths of a cent, so one unit of it costs one."""
METER_FORMULA: Final = "last"
SOFTWARE_TAX_CODE: Final = "txcd_10103001"
"""Software as a service for business use: what Stripe taxes access to an API as."""
TAX_BEHAVIOR: Final = "exclusive"
PORTAL_NAME: Final = "Tollgate"
HANDED_OVER: Final = "tollgate_secret"
"""Metadata of an endpoint whose signing secret has reached its owner; Stripe tells it once, at creation."""


class Kind(StrEnum):
    PRODUCT = "product"
    METER = "meter"
    PRICE = "price"
    PORTAL = "portal"
    WEBHOOK = "webhook"
    THIN_WEBHOOK = "thin webhook"


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    ARCHIVE = "archive"
    DELETE = "delete"


# --- what should be there ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WantedProduct:
    id: str
    """Chosen by us, so that making it twice makes one."""
    name: str
    metadata: Mapping[str, str]
    tax_code: str | None


@dataclass(frozen=True, slots=True)
class WantedPrice:
    lookup_key: str
    product_id: str
    currency: str
    unit_hundredth_cents: int
    interval: Interval
    metered: bool
    metadata: Mapping[str, str]
    taxed: bool
    meter_id: str | None = None
    """Of a metered price; None until the meter is made."""


@dataclass(frozen=True, slots=True)
class WantedMeter:
    event_name: str
    display_name: str


@dataclass(frozen=True, slots=True)
class WantedPortal:
    """A page for the card, the invoices and the end of a subscription; plans are changed with us."""

    features: Mapping[str, Mapping[str, bool | str | tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class WantedWebhook:
    url: str
    api_version: str
    """Of snapshot events; thin ones carry nothing that has a version."""
    events: tuple[str, ...]
    thin: bool = False


Wanted = WantedProduct | WantedPrice | WantedMeter | WantedPortal | WantedWebhook


@dataclass(frozen=True, slots=True)
class Shelf:
    """All of it."""

    products: tuple[WantedProduct, ...]
    prices: tuple[WantedPrice, ...]
    meter: WantedMeter | None
    portal: WantedPortal
    webhooks: tuple[WantedWebhook, ...]


def shelf_of(plans: Mapping[str, Plan], billing: Billing, *, webhook_url: str | None, api_version: str) -> Shelf:
    """What a catalog needs at Stripe; no webhooks without the address of the function."""
    sold = [plan for plan in plans.values() if plan.sold]
    overage = any(plan.overage_cap_tokens for plan in sold)
    tax_code = None if billing.tax is TaxKind.NONE else SOFTWARE_TAX_CODE
    products = [
        WantedProduct(plan_product_id(plan.id), plan.name, {OWNED_FIELD: "plan", PLAN_FIELD: plan.id}, tax_code)
        for plan in sold
    ]
    prices = [
        WantedPrice(
            lookup_key=price_lookup_key(plan.id, interval),
            product_id=plan_product_id(plan.id),
            currency=billing.currency,
            unit_hundredth_cents=cents * 100,
            interval=interval,
            metered=False,
            metadata={OWNED_FIELD: "plan", **price_metadata(plan.id, interval)},
            taxed=tax_code is not None,
        )
        for plan in sold
        for interval, cents in ((Interval.MONTH, plan.price_cents), (Interval.YEAR, plan.annual_price_cents))
        if cents is not None
    ]
    if overage:
        metadata = {OWNED_FIELD: "overage"}
        products.append(WantedProduct(OVERAGE_PRODUCT_ID, "Overage", metadata, tax_code))
        prices.append(
            WantedPrice(
                lookup_key=billing.overage_lookup_key,
                product_id=OVERAGE_PRODUCT_ID,
                currency=billing.currency,
                unit_hundredth_cents=OVERAGE_UNIT,
                interval=Interval.MONTH,
                metered=True,
                metadata=metadata,
                taxed=tax_code is not None,
            )
        )
    webhooks = (
        ()
        if webhook_url is None
        else (
            WantedWebhook(webhook_url, api_version, SNAPSHOT_TYPES),
            WantedWebhook(webhook_url, api_version, THIN_TYPES, thin=True),
        )
    )
    return Shelf(
        products=tuple(products),
        prices=tuple(prices),
        meter=WantedMeter(billing.meter_event_name, "Overage, in hundredths of a cent") if overage else None,
        portal=_portal(billing),
        webhooks=webhooks,
    )


def plan_product_id(plan_id: str) -> str:
    return f"tollgate_plan_{plan_id}"


def _portal(billing: Billing) -> WantedPortal:
    taxed = billing.tax is not TaxKind.NONE
    return WantedPortal(
        {
            "customer_update": {"enabled": True, "allowed_updates": ("address", "tax_id")}
            if taxed
            else {"enabled": False},
            "invoice_history": {"enabled": True},
            "payment_method_update": {"enabled": True},
            # What was paid for is kept until its end; nothing is paid back by itself.
            "subscription_cancel": {"enabled": True, "mode": "at_period_end"},
            # Stripe cannot switch plans beside a metered price; POST /billing/change-plan does.
            "subscription_update": {"enabled": False},
        }
    )


# --- what is there -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RemoteProduct:
    id: str
    name: str
    active: bool
    metadata: Mapping[str, str]
    tax_code: str | None

    @property
    def owned(self) -> bool:
        return OWNED_FIELD in self.metadata


@dataclass(frozen=True, slots=True)
class RemotePrice:
    id: str
    product_id: str
    lookup_key: str | None
    active: bool
    currency: str
    unit_hundredth_cents: int | None
    """None: tiers, or finer than we count."""
    interval: str | None
    interval_count: int
    metered: bool
    meter_id: str | None
    tax_behavior: str | None
    metadata: Mapping[str, str]

    @property
    def owned(self) -> bool:
        return OWNED_FIELD in self.metadata


@dataclass(frozen=True, slots=True)
class RemoteMeter:
    id: str
    event_name: str
    display_name: str
    formula: str
    active: bool


@dataclass(frozen=True, slots=True)
class RemotePortal:
    id: str
    active: bool
    metadata: Mapping[str, str]
    features: Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class RemoteWebhook:
    id: str
    url: str
    api_version: str | None
    events: tuple[str, ...]
    enabled: bool
    metadata: Mapping[str, str]
    thin: bool = False

    @property
    def owned(self) -> bool:
        return OWNED_FIELD in self.metadata


@dataclass(frozen=True, slots=True)
class Found:
    """What one reading of an account brought."""

    products: tuple[RemoteProduct, ...] = ()
    prices: tuple[RemotePrice, ...] = ()
    """Of our products, and whatever has one of our lookup keys."""
    meters: tuple[RemoteMeter, ...] = ()
    portals: tuple[RemotePortal, ...] = ()
    webhooks: tuple[RemoteWebhook, ...] = ()


# --- the difference ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of an object, as it is and as it should be."""

    field: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Change:
    """One call to Stripe."""

    action: Action
    kind: Kind
    name: str
    """What people know it by."""
    differences: tuple[Difference, ...] = ()
    target_id: str | None = None
    """Stripe's id of what is changed; None: it is made."""
    wanted: Wanted | None = None
    waits: bool = False
    """It needs something that is made before it: done in the next round."""

    def touches(self, name: str) -> bool:
        return any(difference.field == name for difference in self.differences)


@dataclass(frozen=True, slots=True)
class Work:
    """What to do, in order, and what stands in the way."""

    changes: tuple[Change, ...]
    conflicts: tuple[str, ...]
    """Things that are not ours where ours should be: somebody has to decide."""


def work_to_do(shelf: Shelf, found: Found) -> Work:
    """Every call that is missing. Those that `wait` are known again, and possible, after the others are done."""
    conflicts: list[str] = []
    changes = [
        *_product_changes(shelf, found, conflicts),
        *_meter_changes(shelf.meter, found, conflicts),
        *_price_changes(shelf, found, conflicts),
        *_outdated_products(shelf, found),
        *_portal_changes(shelf.portal, found),
        *(change for wanted in shelf.webhooks for change in _webhook_changes(wanted, found)),
    ]
    return Work(tuple(changes), tuple(conflicts))


def _product_changes(shelf: Shelf, found: Found, conflicts: list[str]) -> Iterator[Change]:
    there = {product.id: product for product in found.products}
    for wanted in shelf.products:
        product = there.get(wanted.id)
        if product is None:
            yield Change(Action.CREATE, Kind.PRODUCT, wanted.name, wanted=wanted)
        elif not product.owned:
            conflicts.append(f"product {wanted.id} is not ours: it has no metadata `{OWNED_FIELD}`")
        else:
            differences = [
                *_difference("name", product.name, wanted.name),
                *_difference("active", _yes(product.active), _yes(True)),
                *_metadata_differences(product.metadata, wanted.metadata),
                *(_difference("tax code", product.tax_code or "none", wanted.tax_code) if wanted.tax_code else ()),
            ]
            if differences:
                yield Change(Action.UPDATE, Kind.PRODUCT, wanted.name, tuple(differences), product.id, wanted)


def _outdated_products(shelf: Shelf, found: Found) -> Iterator[Change]:
    wanted = {product.id for product in shelf.products}
    for product in found.products:
        if product.owned and product.active and product.id not in wanted:
            yield Change(Action.ARCHIVE, Kind.PRODUCT, product.name, target_id=product.id)


def _meter_changes(wanted: WantedMeter | None, found: Found, conflicts: list[str]) -> Iterator[Change]:
    if wanted is None:
        return
    meter = _meter_named(wanted.event_name, found)
    if meter is None:
        yield Change(Action.CREATE, Kind.METER, wanted.event_name, wanted=wanted)
    elif meter.formula != METER_FORMULA:
        conflicts.append(
            f"meter {meter.id} takes the events {wanted.event_name} and counts their {meter.formula}, which cannot be "
            f"changed to {METER_FORMULA}: deactivate it, or choose another meter_event_name"
        )
    else:
        differences = (
            *_difference("name", meter.display_name, wanted.display_name),
            *_difference("active", _yes(meter.active), _yes(True)),
        )
        if differences:
            yield Change(Action.UPDATE, Kind.METER, wanted.event_name, differences, meter.id, wanted)


def _meter_named(event_name: str, found: Found) -> RemoteMeter | None:
    """The active one; else one that can be activated again, which one of another formula is not worth."""
    named = [meter for meter in found.meters if meter.event_name == event_name]
    active = [meter for meter in named if meter.active]
    return next(iter(active or [meter for meter in named if meter.formula == METER_FORMULA]), None)


def _price_changes(shelf: Shelf, found: Found, conflicts: list[str]) -> Iterator[Change]:
    meter = None if shelf.meter is None else _meter_named(shelf.meter.event_name, found)
    holders = {price.lookup_key: price for price in found.prices if price.lookup_key is not None}
    wanted_keys = {wanted.lookup_key for wanted in shelf.prices}
    outdated = [price for price in found.prices if price.owned and price.active and price.lookup_key not in wanted_keys]
    for wanted in shelf.prices:
        ready = replace(wanted, meter_id=meter.id if meter else None) if wanted.metered else wanted
        holder = holders.get(wanted.lookup_key)
        if holder is not None and not holder.owned:
            conflicts.append(
                f"price {holder.id} has the lookup key {wanted.lookup_key} and is not ours: take the key from it"
            )
            continue
        waits = ready.metered and ready.meter_id is None
        fixed = () if holder is None else tuple(_fixed_differences(holder, ready))
        if holder is None or fixed:
            target = None if holder is None else holder.id
            yield Change(Action.CREATE, Kind.PRICE, wanted.lookup_key, fixed, target, ready, waits)
            if holder is not None and holder.active:
                yield Change(Action.ARCHIVE, Kind.PRICE, wanted.lookup_key, target_id=holder.id, waits=True)
        elif differences := tuple(_soft_differences(holder, ready)):
            yield Change(Action.UPDATE, Kind.PRICE, wanted.lookup_key, differences, holder.id, ready)
    for price in outdated:
        yield Change(Action.ARCHIVE, Kind.PRICE, price.lookup_key or _described(price), target_id=price.id)


def _described(price: RemotePrice) -> str:
    amount = money(price.unit_hundredth_cents, price.currency)
    return f"{price.metadata.get(PLAN_FIELD) or price.product_id}, {amount} a {price.interval}"


def _fixed_differences(price: RemotePrice, wanted: WantedPrice) -> Iterator[Difference]:
    """What a price cannot change: with any of these a new one takes over the lookup key."""
    yield from _difference(
        "amount", money(price.unit_hundredth_cents, price.currency), money(wanted.unit_hundredth_cents, wanted.currency)
    )
    every = "" if price.interval_count == 1 else f"{price.interval_count} "
    yield from _difference("paid every", f"{every}{price.interval}", str(wanted.interval))
    yield from _difference("product", price.product_id, wanted.product_id)
    yield from _difference("metered", _yes(price.metered), _yes(wanted.metered))
    yield from _difference("meter", price.meter_id or "none", wanted.meter_id or "none")


def _soft_differences(price: RemotePrice, wanted: WantedPrice) -> Iterator[Difference]:
    yield from _difference("active", _yes(price.active), _yes(True))
    yield from _metadata_differences(price.metadata, wanted.metadata)
    # Once said, Stripe keeps it; who has said `inclusive` meant it.
    if wanted.taxed and price.tax_behavior in (None, "unspecified"):
        yield Difference("tax", "unspecified", TAX_BEHAVIOR)


def _portal_changes(wanted: WantedPortal, found: Found) -> Iterator[Change]:
    owned = sorted(
        (portal for portal in found.portals if OWNED_FIELD in portal.metadata), key=lambda one: not one.active
    )
    if not owned:
        yield Change(Action.CREATE, Kind.PORTAL, PORTAL_NAME, wanted=wanted)
        return
    differences = [*_difference("active", _yes(owned[0].active), _yes(True))]
    for feature, values in wanted.features.items():
        there = owned[0].features.get(feature, {})
        for name, value in values.items():
            differences += _difference(f"{feature}.{name}", _shown(there.get(name)), _shown(value))
    if differences:
        yield Change(Action.UPDATE, Kind.PORTAL, PORTAL_NAME, tuple(differences), owned[0].id, wanted)


def _webhook_changes(wanted: WantedWebhook, found: Found) -> Iterator[Change]:
    kind = Kind.THIN_WEBHOOK if wanted.thin else Kind.WEBHOOK
    ours = [one for one in found.webhooks if one.owned and one.thin == wanted.thin and one.url == wanted.url]
    usable = [
        one for one in ours if HANDED_OVER in one.metadata and (wanted.thin or one.api_version == wanted.api_version)
    ]
    if not usable:
        yield Change(Action.CREATE, kind, wanted.url, wanted=wanted)
    else:
        differences = (
            *_difference("enabled", _yes(usable[0].enabled), _yes(True)),
            *_difference("events", ", ".join(sorted(usable[0].events)), ", ".join(sorted(wanted.events))),
        )
        if differences:
            yield Change(Action.UPDATE, kind, wanted.url, differences, usable[0].id, wanted)
    for one in ours:
        if one not in usable[:1]:
            # Its secret was lost before anybody had it, or it speaks another version, or it delivers a second time.
            yield Change(Action.DELETE, kind, wanted.url, target_id=one.id, waits=not usable)


def money(hundredth_cents: int | None, currency: str) -> str:
    """`29.00 usd`; as many digits as it takes below a cent."""
    if hundredth_cents is None:
        return "none"
    whole, rest = divmod(hundredth_cents, 10_000)
    digits = f"{rest:04d}"
    return f"{whole}.{digits[:2]}{digits[2:].rstrip('0')} {currency}"


def _difference(name: str, old: str, new: str) -> tuple[Difference, ...]:
    return () if old == new else (Difference(name, old, new),)


def _metadata_differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Difference]:
    for name, value in new.items():
        yield from _difference(f"metadata {name}", old.get(name, "none"), value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return _yes(value)
    if isinstance(value, list | tuple):
        return ", ".join(sorted(map(str, value))) or "none"
    return "none" if value is None else str(value)
