"""One Stripe account: its objects, its clock, and everything that happens as the clock moves on."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from dev.stripe_double.contract import KEPT_IN, Contract, Operation, Violation, installed_contract
from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.expansion import Expander
from dev.stripe_double.forms import Json, Value, parse_form
from dev.stripe_double.resources.catalog import Catalog
from dev.stripe_double.resources.changes import Changes
from dev.stripe_double.resources.checkout import Checkout
from dev.stripe_double.resources.customers import Customers
from dev.stripe_double.resources.destinations import Destinations
from dev.stripe_double.resources.discounts import Discounts
from dev.stripe_double.resources.events import Events
from dev.stripe_double.resources.invoices import Dunning, Invoices
from dev.stripe_double.resources.manual_invoices import ManualInvoices
from dev.stripe_double.resources.meters import ARRIVAL, Meters
from dev.stripe_double.resources.payments import DECLINED, OK, Payments
from dev.stripe_double.resources.pending import PendingItems
from dev.stripe_double.resources.portal import Portal
from dev.stripe_double.resources.schedules import Schedules
from dev.stripe_double.resources.subscriptions import Subscriptions
from dev.stripe_double.resources.updates import Updates
from dev.stripe_double.routes import Handler
from dev.stripe_double.shapes import page
from dev.stripe_double.store import DAY, Store
from dev.stripe_double.webhooks import SignedRequest, sign

__all__ = ["Answer", "Dunning", "Refused", "StripeWorld"]

IDEMPOTENCY_MEMORY = DAY
IDEMPOTENCY_KEY_AT_MOST = 255
THIN = "thin"
SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Refused:
    """A request that Stripe would not have taken as it was."""

    method: str
    path: str
    code: str
    param: str
    message: str


@dataclass
class _Remembered:
    asked: str
    at: int
    answer: Answer | None = field(default=None)


class StripeWorld:
    """The double. Requests go in by `handle`; people and banks act by the other methods; `advance` lets time pass."""

    def __init__(
        self,
        *,
        now: datetime,
        seed: int,
        webhook_secret: str,
        account_id: str,
        livemode: bool = False,
        contract: Contract | None = None,
        contract_cache: Path | None = KEPT_IN,
        last_by: str = ARRIVAL,
    ) -> None:
        self.contract = contract or installed_contract(contract_cache)
        self.webhook_secrets: list[str] = [webhook_secret]
        self.refused: list[Refused] = []
        """Every request the contract refused, or that the double does not serve: the product's tests want none."""
        self.requests: list[str] = []
        """Operations asked for, in order, as the stripe package spells them."""
        self.lock = threading.RLock()
        self.store = Store(self.contract, now=int(now.timestamp()), seed=seed, account_id=account_id, livemode=livemode)
        self._remembered: dict[str, _Remembered] = {}
        self._build(last_by)

    def _build(self, last_by: str) -> None:
        store = self.store
        self.events = Events(store)
        self.meters = Meters(store, last_by, self.events.report_meter_error)
        self.payments = Payments(store)
        self.discounts = Discounts(store)
        self.catalog = Catalog(store)
        self.invoices = Invoices(store, self.meters, self.payments, self.discounts)
        self.pending = PendingItems(store)
        self.subscriptions = Subscriptions(store, self.invoices, self.payments, self.discounts, self.pending)
        self.invoices.listener = self.subscriptions
        self.customers = Customers(store, self.subscriptions.end_all_of)
        self.checkout = Checkout(
            store, self.customers, self.subscriptions, self.invoices, self.payments, self.discounts
        )
        changes = Changes(store, self.subscriptions, self.discounts.net)
        self.updates = Updates(
            store, self.subscriptions, changes, self.invoices, self.payments, self.discounts, self.pending
        )
        self.schedules = Schedules(store, self.subscriptions, changes)
        self.portal = Portal(store, self.subscriptions, self.invoices, self.payments)
        self.subscriptions.on_paid = self.updates.paid
        self.subscriptions.on_ended = self.schedules.subscription_ended
        self.subscriptions.before_renewal = self.schedules.before_renewal
        self.updates.items_changed = self.schedules.items_changed
        self._handlers: dict[str, Handler] = {"GET /v1/account": self._account}
        for offered in (
            self.catalog,
            self.checkout,
            self.customers,
            Destinations(store, self.events.secrets),
            self.discounts,
            self.events,
            self.invoices,
            ManualInvoices(store, self.invoices, self.pending),
            self.meters,
            self.payments,
            self.pending,
            self.portal,
            self.schedules,
            self.updates,
        ):
            self._handlers |= offered.routes()
        strangers = self._handlers.keys() - self.contract.operations.keys()
        assert not strangers, f"not in Stripe's contract: {sorted(strangers)}"
        self._expander = Expander(
            store,
            {
                ("checkout.session", "line_items"): lambda thing: self.checkout.lines_of(thing["id"]),
                ("customer", "subscriptions"): lambda thing: self._of_customer("subscription", thing["id"]),
                ("invoice", "payments"): self._payments_of,
                ("charge", "refunds"): self._refunds_of,
            },
        )

    def _of_customer(self, kind: str, customer: str) -> Json:
        return page([row for row in self.store.all(kind) if row["customer"] == customer], f"/v1/{kind}s")

    def _payments_of(self, invoice: Json) -> Json:
        rows = [row for row in self.store.all("invoice_payment") if row["invoice"] == invoice["id"]]
        return page(rows, "/v1/invoice_payments")

    def _refunds_of(self, charge: Json) -> Json:
        rows = [row for row in self.store.all("refund") if row["charge"] == charge["id"]]
        return page(rows, f"/v1/charges/{charge['id']}/refunds")

    def _account(self, _: Json) -> Json:
        return self.store.make("account", id=self.store.account_id, type="standard", default_currency="usd")

    # The API

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """One API request; `path` may carry a query."""
        with self.lock:
            return self._handle(method.upper(), path, {key.lower(): value for key, value in headers.items()}, body)

    def _handle(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        request_id = self.store.new_request_id()
        split = urlsplit(target)
        key = headers.get("idempotency-key") if method == "POST" else None
        self.store.request = {"id": request_id, "idempotency_key": key}
        try:
            self._check_headers(headers)
            operation, ids, params = self._understand(method, split.path, split.query, body)
            answer = self._once(operation, ids, params, key, f"{method} {target} {body!r}")
        except StripeRefusal as refusal:
            answer = _refusal_answer(refusal)
        finally:
            self.store.request = None
        return Answer(answer.status, {**answer.headers, "Request-Id": request_id}, answer.body)

    def _check_headers(self, headers: Mapping[str, str]) -> None:
        secret = headers.get("authorization", "").removeprefix("Bearer ")
        mode = "live" if self.store.livemode else "test"
        if not secret.startswith((f"sk_{mode}_", f"rk_{mode}_")):
            raise StripeRefusal("Invalid API Key provided.", status=401)
        version = headers.get("stripe-version", self.contract.api_version)
        if version != self.contract.api_version:
            raise StripeRefusal(
                f"Invalid Stripe API version: {version}. The double serves {self.contract.api_version}, the version "
                "of the installed stripe package."
            )
        account = headers.get("stripe-account", self.store.account_id)
        if account != self.store.account_id:
            raise StripeRefusal(
                f"The provided key does not have access to account '{account}' (or that account does not exist).",
                status=403,
                code="account_invalid",
            )

    def _understand(self, method: str, path: str, query: str, body: bytes) -> tuple[Operation, list[str], Json]:
        matched = self.contract.match(method, path)
        if matched is None:
            self.refused.append(Refused(method, path, "url_unknown", "", "no such operation"))
            raise StripeRefusal(f"Unrecognized request URL ({method}: {path}).", status=404)
        operation, ids = matched
        given = parse_form(query)
        form = not (path.startswith("/v2/") and method != "GET")
        if body:
            given |= parse_form(body.decode()) if form else json.loads(body)
        typed, violations = self.contract.check(operation, given, form=form)
        self.requests.append(operation.key)
        if violations:
            self.refused.extend(Refused(method, path, one.code, one.param, one.message) for one in violations)
            raise _first(violations)
        if operation.key not in self._handlers:
            self.refused.append(Refused(method, path, "unserved", "", f"the double does not serve {operation.key}"))
            raise StripeRefusal(
                f"The double does not serve {operation.key}.",
                status=501,
                kind="api_error",
                headers={"Stripe-Should-Retry": "false"},
            )
        return operation, list(ids.values()), typed

    def _once(self, operation: Operation, ids: list[str], params: Json, key: str | None, asked: str) -> Answer:
        """An idempotency key stands for one request: the same again is answered the same, another is refused."""
        if key is None:
            return self._perform(operation, ids, params)
        if len(key) > IDEMPOTENCY_KEY_AT_MOST:
            raise StripeRefusal("Idempotency keys are at most 255 characters.", kind="idempotency_error")
        known = self._remembered.get(key)
        if known is not None and self.store.now - known.at < IDEMPOTENCY_MEMORY:
            if known.asked != asked:
                self.refused.append(Refused(operation.key, "", "idempotency_error", "", f"key {key} used differently"))
                raise StripeRefusal(
                    "Keys for idempotent requests can only be used with the same parameters they were first used "
                    f"with. Try using a key other than '{key}' if you meant to execute a different request.",
                    kind="idempotency_error",
                )
            if known.answer is not None:
                return Answer(
                    known.answer.status, {**known.answer.headers, "Idempotent-Replayed": "true"}, known.answer.body
                )
        remembered = self._remembered[key] = _Remembered(asked, self.store.now)
        try:
            remembered.answer = self._perform(operation, ids, params)
        except StripeRefusal as refusal:
            # What failed once it had begun is remembered too; what was never begun (a lock, a limit) is not.
            if refusal.status in (409, 429, 501):
                del self._remembered[key]
            else:
                remembered.answer = _refusal_answer(refusal)
            raise
        return remembered.answer

    def _perform(self, operation: Operation, ids: list[str], params: Json) -> Answer:
        made = self._handlers[operation.key](params, *ids)
        shown = self._expander.view(made, params.get("expand", []))
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(shown).encode())

    @property
    def served(self) -> list[str]:
        """The operations that are answered; the others of the contract are 501, after their check."""
        return sorted(self._handlers)

    # Time and deliveries

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.store.now, UTC)

    def advance(self, to: datetime) -> None:
        """Renewals, finalizations, retries and expiries up to then, each at its own moment, in order."""
        with self.lock:
            self.store.advance(int(to.timestamp()))

    def take_events(self) -> list[Json]:
        """Events nobody has taken yet, oldest first."""
        with self.lock:
            taken, self.store.undelivered = self.store.undelivered, []
        return taken

    def deliver(
        self,
        event: Json,
        kind: str = SNAPSHOT,
        *,
        at: datetime | None = None,
        secrets: Sequence[str] | None = None,
    ) -> SignedRequest:
        """The event as a webhook request, signed at `at` (the double's own clock unless given)."""
        with self.lock:
            shown = self.events.thin(event) if kind == THIN else event
            timestamp = int((at or self.now).timestamp())
        return sign(shown, secrets or self.webhook_secrets, timestamp)

    # People and banks

    def complete_checkout(self, session_id: str, card: str = OK, promotion_code: str | None = None) -> Json:
        """The buyer presses "Subscribe" with a card: ok, declined, requires_action, delayed (a bank debit), none."""
        with self.lock:
            return self.checkout.complete(session_id, card, promotion_code)

    def settle_delayed(self, session_id: str, *, paid: bool) -> Json:
        """The bank's word on a checkout completed with card="delayed"."""
        with self.lock:
            return self.checkout.settle(session_id, paid=paid)

    def add_card(self, customer_id: str) -> Json:
        """A card on file, from now on the default."""
        with self.lock:
            return self.payments.add_card(self.store.get("customer", customer_id))

    def fail_payments(self, customer_id: str, on: bool = True, *, outcome: str = DECLINED) -> None:
        with self.lock:
            self.payments.fail(customer_id, outcome if on else None)

    def refund(self, charge: str, amount: int | None = None) -> Json:
        with self.lock:
            return self.payments.create_refund({"charge": charge} | ({} if amount is None else {"amount": amount}))

    def dispute(self, charge: str, reason: str = "fraudulent") -> Json:
        with self.lock:
            return self.payments.dispute(charge, reason)

    def close_dispute(self, dispute_id: str, *, won: bool) -> Json:
        with self.lock:
            return self.payments.close_dispute(dispute_id, won=won)

    def fraud_warning(self, charge: str) -> Json:
        with self.lock:
            return self.payments.fraud_warning(charge)

    def pause(self, subscription_id: str, why: str = "pause_requested") -> None:
        with self.lock:
            self.subscriptions.pause(self.store.get("subscription", subscription_id), why)

    def resume(self, subscription_id: str) -> None:
        with self.lock:
            self.subscriptions.resume(self.store.get("subscription", subscription_id), unchanged=False)

    def delete_customer(self, customer_id: str) -> None:
        with self.lock:
            self.customers.delete({}, customer_id)

    def find(self, identifier: str) -> Value:
        """The object as it is now (a copy), or None: for assertions and pages."""
        with self.lock:
            return json.loads(json.dumps(self.store.find(identifier)))

    def all(self, kind: str) -> list[Json]:
        with self.lock:
            copied: list[Json] = json.loads(json.dumps(self.store.all(kind)))
        return copied


def _first(violations: list[Violation]) -> StripeRefusal:
    """Stripe answers with one error at a time."""
    one = violations[0]
    return StripeRefusal(one.message, code=one.code, param=one.param)


def _refusal_answer(refusal: StripeRefusal) -> Answer:
    body = json.dumps({"error": refusal.error}).encode()
    return Answer(refusal.status, {"Content-Type": "application/json", **refusal.headers}, body)
