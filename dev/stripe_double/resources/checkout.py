"""Checkout sessions: opened by the product, completed (or not) by a person with a card."""

from __future__ import annotations

import re

from dev.stripe_double.errors import StripeRefusal
from dev.stripe_double.forms import Json
from dev.stripe_double.resources.catalog import amount_of, is_metered
from dev.stripe_double.resources.customers import Customers, known_customer, live_customer
from dev.stripe_double.resources.discounts import Discounts
from dev.stripe_double.resources.invoices import Invoices
from dev.stripe_double.resources.payments import DECLINED, OK, REQUIRES_ACTION, Payments
from dev.stripe_double.resources.subscriptions import Subscriptions
from dev.stripe_double.routes import Routes
from dev.stripe_double.shapes import page
from dev.stripe_double.store import DAY, HOUR, Store

NO_CARD = "none"
LINE_ITEMS_AT_MOST = 20
_URL = re.compile(r"https?://[^\s/?#]+([/?#]\S*)?")
REFERENCE_AT_MOST = 200


class Checkout:
    def __init__(
        self,
        store: Store,
        customers: Customers,
        subscriptions: Subscriptions,
        invoices: Invoices,
        payments: Payments,
        discounts: Discounts,
    ) -> None:
        self._store = store
        self._customers = customers
        self._subscriptions = subscriptions
        self._invoices = invoices
        self._payments = payments
        self._discounts = discounts
        self._given: dict[str, Json] = {}
        self.page_url = "https://checkout.stripe.com/c/pay/{id}"
        """Where the session's page is; the loopback server puts its own here."""

    def routes(self) -> Routes:
        return {
            "POST /v1/checkout/sessions": self.create,
            "GET /v1/checkout/sessions": self.browse,
            "GET /v1/checkout/sessions/{session}": self.retrieve,
            "GET /v1/checkout/sessions/{session}/line_items": self.line_items,
            "POST /v1/checkout/sessions/{session}/expire": self.expire,
        }

    def create(self, params: Json) -> Json:
        self._check(params)
        lines = [self._line(index, given) for index, given in enumerate(params["line_items"])]
        recurring = [line["price"] for line in lines if line["price"]["recurring"]]
        if not recurring:
            raise StripeRefusal(
                "You must provide at least one recurring price in `subscription` mode when using prices.",
                param="line_items",
            )
        subtotal = sum(line["amount_subtotal"] for line in lines)
        made = self._store.make(
            "checkout.session",
            allow_promotion_codes=params.get("allow_promotion_codes"),
            amount_subtotal=subtotal,
            amount_total=subtotal,
            billing_address_collection=params.get("billing_address_collection"),
            cancel_url=params.get("cancel_url"),
            client_reference_id=params.get("client_reference_id"),
            currency=recurring[0]["currency"],
            customer=params.get("customer"),
            customer_email=params.get("customer_email"),
            expires_at=params.get("expires_at", self._store.now + DAY),
            locale=params.get("locale"),
            metadata=params.get("metadata") or {},
            mode=params["mode"],
            payment_method_collection=params.get("payment_method_collection", "always"),
            payment_method_types=["card"],
            payment_status="unpaid",
            status="open",
            success_url=params.get("success_url"),
            total_details={"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
            ui_mode=params.get("ui_mode", "hosted_page"),
        )
        made["automatic_tax"]["enabled"] = params.get("automatic_tax", {}).get("enabled", False)
        if "managed_payments" in params:
            made["managed_payments"] = {"enabled": params["managed_payments"].get("enabled", False)}
        if "tax_id_collection" in params:
            made["tax_id_collection"] = {"enabled": params["tax_id_collection"]["enabled"], "required": "never"}
        made["url"] = self.page_url.format(id=made["id"])
        self._given[made["id"]] = {**params, "lines": lines}
        self._store.put(made)
        self._store.at(made["expires_at"], lambda: self._expire_if_open(made))
        return made

    def _check(self, params: Json) -> None:
        """The rules between parameters that types cannot say."""
        if params.get("mode") != "subscription":
            raise StripeRefusal(
                "The double serves Checkout in `subscription` mode only.", status=501, kind="api_error", param="mode"
            )
        if not params.get("line_items"):
            raise StripeRefusal("`line_items` is required in subscription mode.", param="line_items")
        if len(params["line_items"]) > LINE_ITEMS_AT_MOST:
            raise StripeRefusal("You can pass at most 20 line items.", param="line_items")
        _check_addresses(params)
        if "customer" in params:
            live_customer(self._store, params["customer"])
            if "customer_email" in params:
                raise StripeRefusal("You may only specify one of these parameters: customer, customer_email.")
        elif "customer_update" in params:
            raise StripeRefusal("`customer_update` can only be used with `customer`.", param="customer_update")
        for name in ("customer_creation", "invoice_creation", "payment_intent_data"):
            if name in params:
                raise StripeRefusal(f"You can not pass `{name}` in `subscription` mode.", param=name)
        if "discounts" in params and "allow_promotion_codes" in params:
            raise StripeRefusal(
                "You may only specify one of these parameters: allow_promotion_codes, discounts.", param="discounts"
            )
        if len(params.get("discounts", [])) > 1:
            raise StripeRefusal("You can apply at most one discount.", param="discounts")
        self._discounts.check(params.get("discounts", []), params.get("customer"))
        self._check_tax(params)
        self._check_times(params)

    def _check_tax(self, params: Json) -> None:
        automatic = params.get("automatic_tax", {}).get("enabled", False)
        if automatic and "customer" in params:
            address = self._store.get("customer", params["customer"])["address"]
            saves_address = params.get("customer_update", {}).get("address") == "auto"
            if not address and not saves_address:
                raise StripeRefusal(
                    "Automatic tax calculation in Checkout requires a valid address on the Customer. Add a valid "
                    "address to the Customer or set either `customer_update[address]` to 'auto' or "
                    "`customer_update[shipping]` to 'auto' to save the address entered in Checkout to the Customer.",
                    code="customer_tax_location_invalid",
                )
        collects_ids = params.get("tax_id_collection", {}).get("enabled", False)
        if collects_ids and "customer" in params and params.get("customer_update", {}).get("name") != "auto":
            raise StripeRefusal(
                "Tax ID collection requires updating business name on the customer. To enable tax ID collection for "
                "an existing customer, please set `customer_update[name]` to `auto`.",
                param="customer_update[name]",
            )
        if params.get("managed_payments", {}).get("enabled") and "automatic_tax" in params:
            raise StripeRefusal(
                "`automatic_tax` cannot be used with Managed Payments, which calculates tax itself.",
                param="automatic_tax",
            )

    def _check_times(self, params: Json) -> None:
        ahead = params.get("expires_at", self._store.now + DAY) - self._store.now
        if not HOUR // 2 <= ahead <= DAY:
            raise StripeRefusal(
                "The `expires_at` timestamp must be between 30 minutes and 24 hours from Checkout Session creation.",
                param="expires_at",
            )
        data = params.get("subscription_data", {})
        if "trial_end" in data and "trial_period_days" in data:
            raise StripeRefusal("You may only specify one of these parameters: trial_end, trial_period_days.")
        if "trial_end" in data and data["trial_end"] < self._store.now + 2 * DAY:
            raise StripeRefusal(
                "The `trial_end` date has to be at least 2 days in the future.", param="subscription_data[trial_end]"
            )
        if params.get("payment_method_collection") == "if_required" and "trial_settings" not in data:
            return
        if "trial_settings" in data and not ("trial_end" in data or "trial_period_days" in data):
            raise StripeRefusal("`trial_settings` needs a trial.", param="subscription_data[trial_settings]")

    def trial_days(self, identifier: str) -> int:
        """What the page says of a trial; the session itself does not tell."""
        return int(self._given[identifier].get("subscription_data", {}).get("trial_period_days", 0))

    def _line(self, index: int, given: Json) -> Json:
        path = f"line_items[{index}]"
        if "price" not in given:
            raise StripeRefusal(
                "The double sells stored prices: pass `price`.", status=501, kind="api_error", param=f"{path}[price]"
            )
        price = self._store.get("price", given["price"], f"{path}[price]")
        if not price["active"]:
            raise StripeRefusal(f"The price `{price['id']}` is not active.", param=f"{path}[price]")
        if is_metered(price) and "quantity" in given:
            raise StripeRefusal(
                "Quantity should not be specified where usage_type is `metered`. Remove `quantity` from `line_items`",
                param=f"{path}[quantity]",
            )
        if not is_metered(price) and "quantity" not in given:
            raise StripeRefusal(
                f"Missing required param: {path}[quantity].", code="parameter_missing", param=f"{path}[quantity]"
            )
        product = self._store.get("product", price["product"])
        amount = 0 if is_metered(price) else amount_of(price, given["quantity"])
        return self._store.make(
            "item",
            amount_subtotal=amount,
            amount_total=amount,
            currency=price["currency"],
            description=product["name"],
            price=price,
            quantity=given.get("quantity"),
        )

    def browse(self, params: Json) -> Json:
        known_customer(self._store, params)
        rows = [
            row
            for row in self._store.all("checkout.session")
            if all(params.get(key, row[key]) == row[key] for key in ("customer", "status", "subscription"))
        ]
        return self._store.page(rows, params, "/v1/checkout/sessions")

    def retrieve(self, _: Json, identifier: str) -> Json:
        return self._store.get("checkout.session", identifier, "session")

    def lines_of(self, identifier: str) -> Json:
        rows = self._given[identifier]["lines"]
        return page(rows, f"/v1/checkout/sessions/{identifier}/line_items")

    def line_items(self, params: Json, identifier: str) -> Json:
        self._store.get("checkout.session", identifier, "session")
        rows = self._given[identifier]["lines"]
        return self._store.page(rows[::-1], params, f"/v1/checkout/sessions/{identifier}/line_items")

    def expire(self, _: Json, identifier: str) -> Json:
        session = self._store.get("checkout.session", identifier, "session")
        if session["status"] != "open":
            raise StripeRefusal(
                f'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a '
                f"status of `{session['status']}`."
            )
        self._expire_if_open(session)
        return session

    def _expire_if_open(self, session: Json) -> None:
        if session["status"] == "open":
            session.update(status="expired", url=None)
            self._store.emit("checkout.session.expired", session)

    # The person at the page

    def complete(self, identifier: str, card: str, promotion_code: str | None) -> Json:
        """Press "Subscribe". A declined card leaves the session open to try again; so does one that wants 3-D Secure,
        which has made an incomplete subscription by then.
        """
        session = self._store.get("checkout.session", identifier, "session")
        if session["status"] != "open":
            raise StripeRefusal(f"This Checkout Session is {session['status']}.", code="checkout_session_not_open")
        given = self._given[identifier]
        self._need_card(session, given, card)
        if card == DECLINED or (card == OK and self._customer_declines(session)):
            return session
        customer = self._customer(session, given)
        if card != NO_CARD:
            self._payments.add_card(customer)
        subscription = self._store.find(given.get("started")) or self._start(session, given, card, promotion_code)
        given["started"] = subscription["id"]
        if subscription["status"] == "incomplete" and card == OK:
            invoice = self._store.get("invoice", subscription["latest_invoice"])
            self._invoices.collect(invoice, OK)
        if card == REQUIRES_ACTION:
            return session
        return self._finish(session, subscription)

    def settle(self, identifier: str, *, paid: bool) -> Json:
        """The bank's word on a delayed payment, days after the session was completed."""
        session = self._store.get("checkout.session", identifier, "session")
        if session["payment_status"] != "unpaid" or session["status"] != "complete":
            raise StripeRefusal("This Checkout Session waits for no payment.")
        invoice = self._store.get("invoice", session["invoice"])
        self._invoices.collect(invoice, OK if paid else DECLINED)
        if paid:
            session["payment_status"] = "paid"
        self._store.emit(f"checkout.session.async_payment_{'succeeded' if paid else 'failed'}", session)
        return session

    def _customer_declines(self, session: Json) -> bool:
        return session["customer"] is not None and self._payments.will(session["customer"], OK) == DECLINED

    def _need_card(self, session: Json, given: Json, card: str) -> None:
        if card == NO_CARD and session["payment_method_collection"] != "if_required":
            raise StripeRefusal("This session collects a payment method.", param="card")
        if card == NO_CARD and "trial_period_days" not in given.get("subscription_data", {}):
            raise StripeRefusal("Something is due today: a payment method is required.", param="card")

    def _customer(self, session: Json, given: Json) -> Json:
        if session["customer"] is None:
            email = session["customer_email"] or "buyer@example.com"
            session["customer"] = self._customers.create({"email": email})["id"]
        customer = self._store.get("customer", session["customer"])
        if given.get("customer_update", {}).get("address") == "auto" and not customer["address"]:
            customer["address"] = dict.fromkeys(("city", "line1", "line2", "state")) | {
                "country": "US",
                "postal_code": "94103",
            }
        session["customer_details"] = {
            "address": customer["address"],
            "business_name": None,
            "email": customer["email"],
            "individual_name": None,
            "name": customer["name"],
            "phone": None,
            "tax_exempt": "none",
            "tax_ids": [],
        }
        return customer

    def _start(self, session: Json, given: Json, card: str, promotion_code: str | None) -> Json:
        items = [
            {"price": line["price"]["id"], **({} if line["quantity"] is None else {"quantity": line["quantity"]})}
            for line in given["lines"]
            if line["price"]["recurring"]
        ]
        params = dict(given.get("subscription_data", {}))
        params["discounts"] = given.get("discounts", [])
        if promotion_code is not None:
            params["discounts"] = [{"promotion_code": self._code(session, promotion_code)}]
        for name in ("automatic_tax",):
            if name in given:
                params[name] = given[name]
        customer = self._store.get("customer", session["customer"])
        params["default_payment_method"] = customer["invoice_settings"]["default_payment_method"]
        return self._subscriptions.start(session["customer"], items, params, card=card)

    def _code(self, session: Json, text: str) -> str:
        if not session["allow_promotion_codes"]:
            raise StripeRefusal("This session does not take promotion codes.", param="promotion_code")
        for code in self._store.all("promotion_code"):
            if code["code"].lower() == text.lower():
                return str(code["id"])
        raise StripeRefusal("This code is invalid.", code="promotion_code_invalid", param="promotion_code")

    def _finish(self, session: Json, subscription: Json) -> Json:
        invoice = self._store.get("invoice", subscription["latest_invoice"])
        discount = sum(one["amount"] for one in invoice["total_discount_amounts"])
        session.update(
            amount_total=invoice["total"],
            invoice=invoice["id"],
            payment_status=_payment_status(invoice),
            status="complete",
            subscription=subscription["id"],
            total_details={"amount_discount": discount, "amount_shipping": 0, "amount_tax": 0},
            url=None,
        )
        self._store.emit("checkout.session.completed", session)
        return session


def _payment_status(invoice: Json) -> str:
    if invoice["status"] != "paid":
        return "unpaid"
    return "paid" if invoice["total"] else "no_payment_required"


def _check_addresses(params: Json) -> None:
    if params.get("ui_mode", "hosted_page") == "hosted_page" and "success_url" not in params:
        raise StripeRefusal("Missing required param: success_url.", code="parameter_missing", param="success_url")
    for name in ("success_url", "cancel_url"):
        if name in params and not _URL.fullmatch(params[name]):
            raise StripeRefusal("Not a valid URL", code="url_invalid", param=name)
    if len(params.get("client_reference_id", "")) > REFERENCE_AT_MOST:
        raise StripeRefusal("Invalid string: at most 200 characters.", param="client_reference_id")
