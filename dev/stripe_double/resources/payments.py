"""Cards, payment intents and charges; refunds, disputes and fraud warnings."""

from __future__ import annotations

from dataclasses import dataclass

from dev.stripe_double.errors import StripeRefusal, missing
from dev.stripe_double.forms import Json
from dev.stripe_double.routes import Handler, Routes
from dev.stripe_double.store import DAY, Store

OK = "ok"
DECLINED = "declined"
REQUIRES_ACTION = "requires_action"
DELAYED = "delayed"
"""A bank debit: taken now, paid or returned days later."""
_TEST_CARDS = {
    "pm_card_authenticationRequired": REQUIRES_ACTION,
    "pm_card_chargeCustomerFail": DECLINED,
    "pm_card_threeDSecure2Required": REQUIRES_ACTION,
    "pm_card_visa": None,
}


@dataclass(frozen=True)
class Attempt:
    outcome: str
    intent: Json


class Payments:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._failing: dict[str, str] = {}

    def routes(self) -> Routes:
        return {
            "GET /v1/charges": self._lister("charge", "/v1/charges", "customer", "payment_intent"),
            "GET /v1/charges/{charge}": self._getter("charge"),
            "GET /v1/payment_intents": self._lister("payment_intent", "/v1/payment_intents", "customer"),
            "GET /v1/payment_intents/{intent}": self._getter("payment_intent"),
            "GET /v1/payment_methods": self._lister("payment_method", "/v1/payment_methods", "customer", "type"),
            "GET /v1/payment_methods/{payment_method}": self._getter("payment_method"),
            "GET /v1/customers/{customer}/payment_methods": self.customer_methods,
            "POST /v1/payment_methods/{payment_method}/attach": self.attach,
            "POST /v1/payment_methods/{payment_method}/detach": self.detach,
            "POST /v1/refunds": self.create_refund,
            "GET /v1/refunds": self._lister("refund", "/v1/refunds", "charge", "payment_intent"),
            "GET /v1/refunds/{refund}": self._getter("refund"),
            "GET /v1/disputes": self._lister("dispute", "/v1/disputes", "charge", "payment_intent"),
            "GET /v1/disputes/{dispute}": self._getter("dispute"),
            "POST /v1/disputes/{dispute}/close": self.close_by_api,
            "GET /v1/invoice_payments": self.list_invoice_payments,
            "GET /v1/invoice_payments/{invoice_payment}": self._getter("invoice_payment"),
            "GET /v1/radar/early_fraud_warnings": self._lister(
                "radar.early_fraud_warning", "/v1/radar/early_fraud_warnings", "charge", "payment_intent"
            ),
            "GET /v1/radar/early_fraud_warnings/{early_fraud_warning}": self._getter("radar.early_fraud_warning"),
        }

    def _lister(self, kind: str, url: str, *filters: str) -> Handler:
        def answer(params: Json) -> Json:
            rows = [
                row for row in self._store.all(kind) if all(params.get(key, row[key]) == row[key] for key in filters)
            ]
            return self._store.page(rows, params, url)

        return answer

    def _getter(self, kind: str) -> Handler:
        return lambda _, identifier: self._store.get(kind, identifier, kind.rpartition(".")[2])

    # Cards

    def fail(self, customer: str, outcome: str | None) -> None:
        """From now on each payment of the customer ends so; None: they succeed again."""
        if outcome is None:
            self._failing.pop(customer, None)
        else:
            self._failing[customer] = outcome

    def add_card(self, customer: Json) -> Json:
        card = {
            "brand": "visa",
            "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass"},
            "country": "US",
            "display_brand": "visa",
            "exp_month": 12,
            "exp_year": 2034,
            "fingerprint": "Xt5EWLLDS7FJjR1c",
            "funding": "credit",
            "generated_from": None,
            "last4": "4242",
            "networks": {"available": ["visa"], "preferred": None},
            "regulated_status": "unregulated",
            "three_d_secure_usage": {"supported": True},
            "wallet": None,
        }
        made = self._store.make("payment_method", type="card", customer=customer["id"])
        made = {key: value for key, value in made.items() if value is not None} | {"card": card}
        self._store.put(made)
        customer["invoice_settings"]["default_payment_method"] = made["id"]
        self._store.emit("payment_method.attached", made)
        self._store.emit("customer.updated", customer, {"invoice_settings": {"default_payment_method": None}})
        return made

    def customer_methods(self, params: Json, customer: str) -> Json:
        self._store.get("customer", customer, "customer")
        rows = [row for row in self._store.all("payment_method") if row.get("customer") == customer]
        return self._store.page(rows, params, f"/v1/customers/{customer}/payment_methods")

    def attach(self, params: Json, token: str) -> Json:
        """Stripe's test cards: `pm_card_visa` works, `pm_card_chargeCustomerFail` is declined at each payment."""
        if token not in _TEST_CARDS:
            raise missing("PaymentMethod", token, "payment_method")
        customer = self._store.get("customer", params.get("customer", ""), "customer")
        self.fail(customer["id"], _TEST_CARDS[token])
        return self.add_card(customer)

    def detach(self, _: Json, identifier: str) -> Json:
        method = self._store.get("payment_method", identifier, "payment_method")
        owner = self._store.find(method.pop("customer", None))
        method["customer"] = None
        if owner is not None and owner["invoice_settings"]["default_payment_method"] == identifier:
            owner["invoice_settings"]["default_payment_method"] = None
        self._store.emit("payment_method.detached", method)
        return method

    # Payments

    def will(self, customer: str, card: str | None = None) -> str:
        """How a payment of this customer would end now; without `card`, by the card on file."""
        if card not in (None, OK):
            return str(card)
        if customer in self._failing:
            return self._failing[customer]
        return OK if card == OK or self.has_card(customer) else DECLINED

    def has_card(self, customer: str) -> bool:
        settings = self._store.get("customer", customer)["invoice_settings"]
        return settings["default_payment_method"] is not None

    def pay(self, invoice: Json, intent_id: str | None, card: str | None) -> Attempt:
        """One attempt to collect an invoice; later attempts go on with the same payment intent."""
        customer = invoice["customer"]
        outcome = self.will(customer, card)
        intent = self._store.find(intent_id) or self._new_intent(invoice)
        intent.update(last_payment_error=None, next_action=None)
        if outcome == DELAYED:
            intent["status"] = "processing"
            self._store.emit("payment_intent.processing", intent)
            return Attempt(outcome, intent)
        if outcome == REQUIRES_ACTION:
            intent["status"] = "requires_action"
            self._store.emit("payment_intent.requires_action", intent)
            return Attempt(outcome, intent)
        charge = self._new_charge(intent, paid=outcome == OK)
        intent["latest_charge"] = charge["id"]
        if outcome == OK:
            intent.update(status="succeeded", amount_received=intent["amount"])
            self._store.emit("charge.succeeded", charge)
            self._store.emit("payment_intent.succeeded", intent)
        else:
            intent["status"] = "requires_payment_method"
            self._store.emit("charge.failed", charge)
            self._store.emit("payment_intent.payment_failed", intent)
        return Attempt(outcome, intent)

    def _new_intent(self, invoice: Json) -> Json:
        made = self._store.make(
            "payment_intent",
            amount=invoice["amount_due"],
            capture_method="automatic",
            confirmation_method="automatic",
            currency=invoice["currency"],
            customer=invoice["customer"],
            payment_method_types=["card"],
            setup_future_usage="off_session",
            status="requires_payment_method",
        )
        made["client_secret"] = f"{made['id']}_secret_{self._store.new_id('')[1:]}"
        self._store.emit("payment_intent.created", self._store.put(made))
        return made

    def _new_charge(self, intent: Json, *, paid: bool) -> Json:
        customer = self._store.find(intent["customer"]) or {}
        made = self._store.make(
            "charge",
            amount=intent["amount"],
            amount_captured=intent["amount"] if paid else 0,
            captured=paid,
            currency=intent["currency"],
            customer=intent["customer"],
            failure_code=None if paid else "card_declined",
            failure_message=None if paid else "Your card was declined.",
            paid=paid,
            payment_intent=intent["id"],
            payment_method=(customer.get("invoice_settings") or {}).get("default_payment_method"),
            status="succeeded" if paid else "failed",
        )
        return self._store.put(made)

    def record(self, invoice: Json, intent: Json) -> Json:
        """That this payment paid that invoice: the only link between them since charges lost `invoice`."""
        paid_at = self._store.now
        made = self._store.make(
            "invoice_payment",
            amount_paid=invoice["amount_due"],
            amount_requested=invoice["amount_due"],
            currency=invoice["currency"],
            invoice=invoice["id"],
            is_default=True,
            payment={"type": "payment_intent", "payment_intent": intent["id"]},
            status="paid",
            status_transitions={"canceled_at": None, "paid_at": paid_at},
        )
        self._store.emit("invoice_payment.paid", self._store.put(made))
        return made

    def list_invoice_payments(self, params: Json) -> Json:
        payment = params.get("payment", {})
        rows = [
            row
            for row in self._store.all("invoice_payment")
            if params.get("invoice", row["invoice"]) == row["invoice"]
            and params.get("status", row["status"]) == row["status"]
            and payment.get("payment_intent", row["payment"]["payment_intent"]) == row["payment"]["payment_intent"]
        ]
        return self._store.page(rows, params, "/v1/invoice_payments")

    # What customers and banks take back

    def create_refund(self, params: Json) -> Json:
        if ("charge" in params) == ("payment_intent" in params):
            raise StripeRefusal(
                "One of the following params should be provided: charge, payment_intent.", param="charge"
            )
        if "payment_intent" in params:
            intent = self._store.get("payment_intent", params["payment_intent"], "payment_intent")
            charge = self._store.get("charge", intent["latest_charge"] or "", "payment_intent")
        else:
            charge = self._store.get("charge", params["charge"], "charge")
        left = charge["amount_captured"] - charge["amount_refunded"]
        if left == 0:
            raise StripeRefusal(f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
        amount = params.get("amount", left)
        if not 0 < amount <= left:
            raise StripeRefusal(
                f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})", param="amount"
            )
        charge["amount_refunded"] += amount
        charge["refunded"] = charge["amount_refunded"] == charge["amount"]
        made = self._store.make(
            "refund",
            amount=amount,
            charge=charge["id"],
            currency=charge["currency"],
            metadata=params.get("metadata") or {},
            payment_intent=charge["payment_intent"],
            reason=params.get("reason"),
            status="succeeded",
        )
        self._store.put(made)
        for kind, about in (("refund.created", made), ("charge.refunded", charge), ("refund.updated", made)):
            self._store.emit(kind, about)
        return made

    def dispute(self, charge_id: str, reason: str) -> Json:
        charge = self._store.get("charge", charge_id, "charge")
        charge["disputed"] = True
        made = self._store.make(
            "dispute",
            amount=charge["amount"],
            charge=charge_id,
            currency=charge["currency"],
            payment_intent=charge["payment_intent"],
            reason=reason,
            status="needs_response",
        )
        made["evidence_details"].update(due_by=self._store.now + 10 * DAY)
        self._store.put(made)
        self._store.emit("charge.dispute.created", made)
        self._store.emit("charge.dispute.funds_withdrawn", made)
        return made

    def close_dispute(self, identifier: str, *, won: bool) -> Json:
        dispute = self._store.get("dispute", identifier, "dispute")
        if dispute["status"] in ("won", "lost"):
            raise StripeRefusal("This dispute is already closed.", param="dispute")
        dispute["status"] = "won" if won else "lost"
        if won:
            self._store.emit("charge.dispute.funds_reinstated", dispute)
        self._store.emit("charge.dispute.closed", dispute)
        return dispute

    def close_by_api(self, _: Json, identifier: str) -> Json:
        """The seller's own closing is giving in."""
        return self.close_dispute(identifier, won=False)

    def fraud_warning(self, charge_id: str) -> Json:
        charge = self._store.get("charge", charge_id, "charge")
        made = self._store.make(
            "radar.early_fraud_warning",
            actionable=True,
            charge=charge_id,
            fraud_type="made_with_stolen_card",
            payment_intent=charge["payment_intent"],
        )
        self._store.emit("radar.early_fraud_warning.created", self._store.put(made))
        return made
