"""What the double remembers: objects, the agenda of its virtual clock, and the events that happened."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable, Iterable

from dev.stripe_double.contract import Contract
from dev.stripe_double.errors import StripeRefusal, missing
from dev.stripe_double.forms import Json, Value
from dev.stripe_double.shapes import blank, page

DAY = 86_400
HOUR = 3_600
PAGE_DEFAULT = 10
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PREFIXES = {
    "billing.meter": "mtr",
    "billing_portal.configuration": "bpc",
    "billing_portal.session": "bps",
    "charge": "ch",
    "checkout.session": "cs",
    "coupon": "coupon",
    "customer": "cus",
    "discount": "di",
    "dispute": "du",
    "event": "evt",
    "invoice": "in",
    "invoice_payment": "inpay",
    "invoiceitem": "ii",
    "line_item": "il",
    "item": "li",
    "payment_intent": "pi",
    "payment_method": "pm",
    "plan": "plan",
    "price": "price",
    "product": "prod",
    "promotion_code": "promo",
    "radar.early_fraud_warning": "issfr",
    "refund": "re",
    "subscription": "sub",
    "subscription_item": "si",
    "subscription_schedule": "sub_sched",
    "v2.core.event": "evt",
    "v2.core.event_destination": "ed",
    "webhook_endpoint": "we",
}
_MODE_IN_ID = {"checkout.session", "billing.meter", "billing_portal.session"}


class Store:
    def __init__(self, contract: Contract, *, now: int, seed: int, account_id: str, livemode: bool) -> None:
        self.contract = contract
        self.now = now
        self.account_id = account_id
        self.livemode = livemode
        self.request: Json | None = None
        """The API request in progress ({id, idempotency_key}): events carry what caused them."""
        self.events: list[Json] = []
        self.undelivered: list[Json] = []
        self._events: dict[str, Json] = {}
        self._objects: dict[str, Json] = {}
        self._by_kind: dict[str, dict[str, Json]] = {}
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._turn = 0
        self._random = random.Random(seed)
        self._request_random = random.Random(seed + 1)

    # Objects

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{''.join(self._random.choices(_ALPHABET, k=24))}"

    def new_request_id(self) -> str:
        """Of its own source: a question must not change what is made next, or a journal of changes would not do."""
        return f"req_{''.join(self._request_random.choices(_ALPHABET, k=24))}"

    def id_for(self, kind: str) -> str:
        prefix = _PREFIXES[kind]
        if kind in _MODE_IN_ID:
            prefix += "_live" if self.livemode else "_test"
        return self.new_id(prefix)

    def make(self, kind: str, **fields: Value) -> Json:
        """A new object, in no list yet."""
        made = blank(self.contract, kind)
        made["object"] = kind
        if "id" in made and "id" not in fields:
            made["id"] = self.id_for(kind)
        if "created" in made:
            made["created"] = self.now
        if "livemode" in made:
            made["livemode"] = self.livemode
        unknown = fields.keys() - self.contract.resources[self.contract.by_object[kind]]["o"].keys()
        assert not unknown, f"{kind} has no {sorted(unknown)} in {self.contract.api_version}"
        made.update(fields)
        return made

    def put(self, made: Json) -> Json:
        self._objects[made["id"]] = made
        self._by_kind.setdefault(made["object"], {})[made["id"]] = made
        return made

    def drop(self, identifier: str) -> None:
        gone = self._objects.pop(identifier)
        del self._by_kind[gone["object"]][identifier]

    def find(self, identifier: Value) -> Json | None:
        return self._objects.get(identifier) if isinstance(identifier, str) else None

    def get(self, kind: str, identifier: str, param: str = "id") -> Json:
        found = self._objects.get(identifier)
        if found is None or found["object"] != kind:
            raise missing(kind.rpartition(".")[2].replace("_", " "), identifier, param)
        return found

    def all(self, kind: str) -> list[Json]:
        return list(self._by_kind.get(kind, {}).values())

    def page(self, rows: Iterable[Json], params: Json, url: str) -> Json:
        """One page, newest first, by Stripe's cursor parameters."""
        found = [row for row in reversed(list(rows)) if _in_range(row.get("created"), params.get("created"))]
        limit = int(params.get("limit", PAGE_DEFAULT))
        if not 1 <= limit <= 100:
            raise StripeRefusal(f"Invalid limit: {limit}; must be between 1 and 100.", param="limit")
        ids = [row["id"] for row in found]
        for cursor in ("starting_after", "ending_before"):
            if cursor in params and params[cursor] not in ids:
                raise missing("object", params[cursor], cursor)
        if "starting_after" in params:
            found = found[ids.index(params["starting_after"]) + 1 :]
        if "ending_before" in params:
            before = found[: ids.index(params["ending_before"])]
            return page(before[-limit:], url, has_more=len(before) > limit)
        return page(found[:limit], url, has_more=len(found) > limit)

    def event(self, identifier: str) -> Json | None:
        return self._events.get(identifier)

    # Time

    def at(self, moment: int, action: Callable[[], None]) -> None:
        """`action` runs when the clock gets there; it looks for itself whether it still applies."""
        self._turn += 1
        heapq.heappush(self._agenda, (moment, self._turn, action))

    def advance(self, to: int) -> None:
        """Everything due happens at its own moment and in order, then the clock stands at `to`."""
        while self._agenda and self._agenda[0][0] <= to:
            moment, _, action = heapq.heappop(self._agenda)
            self.now = max(self.now, moment)
            action()
        self.now = max(self.now, to)

    # Events

    def emit(self, kind: str, about: Json, previous: Json | None = None) -> None:
        data: Json = {"object": json.loads(json.dumps(about))}
        if previous:
            data["previous_attributes"] = previous
        event = self.make(
            "event",
            api_version=self.contract.api_version,
            data=data,
            pending_webhooks=1,
            request=self.request or {"id": None, "idempotency_key": None},
            type=kind,
        )
        event.pop("account", None)
        event.pop("context", None)
        self.events.append(event)
        self._events[event["id"]] = event
        self.undelivered.append(event)


def _in_range(created: Value, wanted: Value) -> bool:
    if wanted is None or created is None:
        return True
    if not isinstance(wanted, dict):
        return bool(created == wanted)
    return bool(
        wanted.get("gt", created - 1) < created < wanted.get("lt", created + 1)
        and wanted.get("gte", created) <= created <= wanted.get("lte", created)
    )


def merge_metadata(current: Json | None, given: Value) -> Json:
    """Stripe's rule: keys given are set, keys given as "" are removed, "" for the whole removes all."""
    if given == "":
        return {}
    merged = {**(current or {}), **given}
    return {key: value for key, value in merged.items() if value != ""}
