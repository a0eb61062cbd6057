"""Checkout, portal and invoices as a person clicks them: forms in, pages and redirects out.

Everything is read by Stripe's own API and done by it where it has a request for it, so a page can do no more than an
owner of the account could.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

from dev.stripe_double import page_layout
from dev.stripe_double.keeper import Json, Keeper
from dev.stripe_double.page_layout import (
    CARD_AUTHENTICATES,
    CARD_CONFIRMED,
    CARD_DECLINED,
    CARD_OK,
    CARD_REFUSED,
    BillView,
    CheckoutView,
    InvoiceView,
    Line,
    PortalView,
    SubscriptionView,
    day,
    money,
)
from dev.stripe_double.world import StripeWorld

PAGES: Final = ("/checkout/", "/portal/", "/invoice/")
DECLINED: Final = "The card was declined. Try another one."
UNAUTHENTICATED: Final = "The bank could not confirm that it is you. Try again, or another card."
_OUTCOMES: Final = {
    CARD_OK: "ok",
    CARD_CONFIRMED: "ok",
    CARD_AUTHENTICATES: "requires_action",
    CARD_DECLINED: "declined",
}
_LIVE: Final = frozenset({"active", "trialing", "past_due", "unpaid", "paused", "incomplete"})
_INVOICES_SHOWN: Final = 24


def use_addresses(world: StripeWorld, address: str) -> None:
    """Lets what the API tells of pages point here."""
    world.checkout.page_url = address + "/checkout/{id}"
    world.portal.page_url = address + "/portal/{id}"
    world.invoices.page_url = address + "/invoice/{id}"


class RefusedError(Exception):
    """Stripe said no; the text is its own."""


class NothingHereError(Exception):
    """The address names nothing."""


@dataclass(frozen=True, slots=True)
class PageAnswer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Pages:
    """Answers the double's browser side."""

    def __init__(self, keeper: Keeper, headers: dict[str, str]) -> None:
        """`headers`: those that the API wants, the key and the version among them."""
        self._keeper = keeper
        self._headers = headers

    def answer(self, method: str, path: str, query: str, body: str) -> PageAnswer:
        _, kind, identifier, *rest = path.split("/")
        form = dict(parse_qsl(body if method == "POST" else query, keep_blank_values=True))
        action = f"{method} {rest[0] if rest else ''}".strip()
        try:
            match kind, action:
                case "checkout", "GET":
                    return self._checkout(identifier, form.get("code", ""))
                case "checkout", "POST pay":
                    return self._pay_checkout(identifier, form)
                case "portal", "GET":
                    return _page(page_layout.portal_page(self._portal(identifier)))
                case "portal", "GET cancel":
                    return self._ask_cancel(identifier, form["subscription"])
                case "portal", "POST cancel" | "POST resume" | "POST card" | "POST invoice":
                    return self._change(identifier, action.removeprefix("POST "), form)
                case "invoice", "GET":
                    return _page(page_layout.bill_page(self._bill(identifier)))
                case "invoice", "POST pay":
                    return self._pay_bill(identifier)
        except (NothingHereError, KeyError):
            pass
        except RefusedError as error:
            return _page(page_layout.message_page("This does not work", str(error)), 400)
        return _page(page_layout.message_page("Nothing is here", "The link is old, or was never right."), 404)

    # Checkout.

    def _checkout(self, session_id: str, code: str, *, error: str = "") -> PageAnswer:
        session = self._session(session_id)
        if session["status"] == "complete":
            link = (_success_url(session), "Back to the shop")
            return _page(page_layout.message_page("This checkout is done", "The payment was made before.", link))
        if session["status"] == "expired":
            back = (session.get("cancel_url") or "/", "Back to the shop")
            text = "Nothing was paid. Start again in the shop."
            return _page(page_layout.message_page("This checkout has expired", text, back), 410)
        view = self._checkout_view(session, code, error)
        return _page(page_layout.checkout_page(view), 402 if error else 200)

    def _pay_checkout(self, session_id: str, form: dict[str, str]) -> PageAnswer:
        session = self._session(session_id)
        card, code = form["card"], form.get("code", "")
        if session["status"] == "complete":  # a second click, or the browser's back button
            return _see_other(_success_url(session))
        if card == CARD_REFUSED:
            return self._checkout(session_id, code, error=UNAUTHENTICATED)
        refusal = self._act(
            "complete_checkout", {"session_id": session_id, "card": _OUTCOMES[card], "promotion_code": code or None}
        )
        session = self._session(session_id)
        if session["status"] == "complete":
            return _see_other(_success_url(session))
        if card == CARD_AUTHENTICATES and not refusal:
            due = self._checkout_view(session, code, "").lines[-1].amount
            return _page(page_layout.challenge_page(f"/checkout/{session_id}", code, due))
        return self._checkout(session_id, code, error=refusal or DECLINED)

    def _checkout_view(self, session: Json, code: str, error: str) -> CheckoutView:
        promotion = self._promotion(code) if code else None
        currency = session["currency"]
        prices = [line["price"] for line in session["line_items"]["data"]]
        fixed = [price for price in prices if not _is_metered(price)]
        days = int(self._keeper.read(lambda world: world.checkout.trial_days(session["id"])))
        price, interval = money(sum(map(_cents, fixed)), currency), _interval(fixed[0]) if fixed else ""
        lines = [Line(self._name(price), money(_cents(price), currency)) for price in fixed]
        lines += [
            Line(self._name(price), "as used", "billed at the period's end") for price in prices if _is_metered(price)
        ]
        due = session["amount_total"]
        if promotion is not None:
            coupon = promotion["promotion"]["coupon"]
            less = _discount(coupon, due)
            lines.append(Line(f"{promotion['code']} ({_coupon_text(coupon)})", money(-less, currency)))
            due -= less
        elif discount := (session.get("total_details") or {}).get("amount_discount"):
            lines.append(Line("Discount", money(-discount, currency)))
        due = 0 if days else due
        lines.append(Line("Due today", money(due, currency), total=True))
        return CheckoutView(
            address=f"/checkout/{session['id']}",
            title=self._name(fixed[0]) if fixed else "Checkout",
            price=price,
            interval=interval,
            trial=f"{days} days free, then {price} {interval}. Nothing is charged today." if days else "",
            email=self._email(session),
            lines=tuple(lines),
            takes_codes=bool(session.get("allow_promotion_codes")),
            code=promotion["code"] if promotion else code,
            code_error="" if promotion or not code else f"There is no code {code} that can be used now.",
            applied_code=promotion["code"] if promotion else "",
            cancel_url=session.get("cancel_url") or "",
            error=error,
            button="Start the trial" if days else f"Subscribe for {money(due, currency)}",
        )

    def _session(self, session_id: str) -> Json:
        return self._get(f"/v1/checkout/sessions/{quote(session_id, safe='')}", expand=["line_items"])

    def _promotion(self, code: str) -> Json | None:
        expand = ["data.promotion.coupon"]
        found = self._get("/v1/promotion_codes", code=code, active="true", limit="1", expand=expand)["data"]
        return found[0] if found else None

    # Portal.

    def _portal(self, session_id: str, *, note: str = "", error: str = "") -> PortalView:
        session = self._portal_session(session_id)
        customer = session["customer"]
        subscriptions = self._get("/v1/subscriptions", customer=customer, status="all", limit="10")["data"]
        invoices = self._get("/v1/invoices", customer=customer, limit=str(_INVOICES_SHOWN))["data"]
        live = [item for item in subscriptions if item["status"] in _LIVE]
        return PortalView(
            address=f"/portal/{session_id}",
            email=self._email({"customer": customer}),
            subscriptions=tuple(map(self._subscription_view, live or subscriptions[:1])),
            invoices=tuple(map(_invoice_view, invoices)),
            card_declines=bool(self._keeper.read(lambda world: world.payments.will(customer) != "ok")),
            return_url=session.get("return_url") or "",
            note=note,
            error=error,
        )

    def _subscription_view(self, subscription: Json) -> SubscriptionView:
        items = subscription["items"]["data"]
        item = next((item for item in items if not _is_metered(item["price"])), items[0])
        ends_at = subscription.get("cancel_at")
        if subscription.get("cancel_at_period_end"):
            ends_at = item["current_period_end"]
        live = subscription["status"] in _LIVE
        renewal = f"ended on {day(subscription['ended_at'])}" if subscription.get("ended_at") else ""
        if live:
            renewal = f"ends on {day(ends_at)}" if ends_at else f"renews on {day(item['current_period_end'])}"
        price = item["price"]
        return SubscriptionView(
            id=subscription["id"],
            title=self._name(price),
            price=f"{money(_cents(price), price['currency'])} {_interval(price)}",
            status=subscription["status"],
            renewal=renewal,
            ends=bool(ends_at),
            live=live,
        )

    def _ask_cancel(self, session_id: str, subscription_id: str) -> PageAnswer:
        view = self._portal(session_id)
        item = next((item for item in view.subscriptions if item.id == subscription_id and item.live), None)
        if item is None:
            raise NothingHereError
        return _page(page_layout.cancel_page(view, item, item.renewal.removeprefix("renews on ")))

    def _change(self, session_id: str, action: str, form: dict[str, str]) -> PageAnswer:
        customer = self._portal_session(session_id)["customer"]
        own = {"session_id": session_id}
        note, refusal = "", ""
        match action:
            case "cancel":
                refusal = self._act("portal.cancel", {**own, "subscription_id": form["subscription"]})
                note = "The plan is cancelled and ends with what is paid for."
            case "resume":
                refusal = self._act("portal.keep", {**own, "subscription_id": form["subscription"]})
                note = "The plan goes on."
            case "card" if form["card"] == CARD_DECLINED:
                self._act("fail_payments", {"customer_id": customer, "on": True})
                note = "Payments from now on are declined."
            case "card":
                refusal = self._act("portal.new_card", own)
                note = "Payments from now on succeed, and what was open is tried again."
            case "invoice":
                try:
                    self._post(f"/v1/invoices/{self._own_invoice(customer, form['invoice'])}/pay", {})
                    note = "The invoice is paid."
                except RefusedError as error:
                    refusal = str(error)
        if refusal:
            return _page(page_layout.portal_page(self._portal(session_id, error=refusal)), 400)
        return _page(page_layout.portal_page(self._portal(session_id, note=note)))

    def _own_invoice(self, customer: str, invoice_id: str) -> str:
        """The id, if it is this customer's: a portal shows nobody else's."""
        found = self._get(f"/v1/invoices/{quote(invoice_id, safe='')}")
        if found["customer"] != customer:
            raise NothingHereError
        return str(found["id"])

    def _portal_session(self, session_id: str) -> Json:
        found: Json | None = self._keeper.read(lambda world: world.find(session_id))
        if found is None or found["object"] != "billing_portal.session":
            raise NothingHereError
        return found

    # Invoices.

    def _bill(self, invoice_id: str, error: str = "") -> BillView:
        invoice = self._get(f"/v1/invoices/{quote(invoice_id, safe='')}")
        currency = invoice["currency"]
        lines = [
            Line(line["description"] or "", money(line["amount"], currency), _period(line))
            for line in invoice["lines"]["data"]
        ]
        taken = invoice.get("total_discount_amounts") or []
        lines += [Line("Discount", money(-discount["amount"], currency)) for discount in taken]
        lines.append(Line("Total", money(invoice["total"], currency), total=True))
        return BillView(
            address=f"/invoice/{invoice_id}",
            number=invoice["number"] or "(draft)",
            date=day(invoice["created"]),
            email=self._email(invoice),
            status=invoice["status"],
            lines=tuple(lines),
            error=error,
        )

    def _pay_bill(self, invoice_id: str) -> PageAnswer:
        try:
            self._post(f"/v1/invoices/{quote(invoice_id, safe='')}/pay", {})
        except RefusedError as error:
            return _page(page_layout.bill_page(self._bill(invoice_id, str(error))), 402)
        return _see_other(f"/invoice/{quote(invoice_id)}")

    # Reading and doing.

    def _name(self, price: Json) -> str:
        if price.get("nickname"):
            return str(price["nickname"])
        product = price["product"]
        return str(
            self._get(f"/v1/products/{quote(product, safe='')}")["name"]
            if isinstance(product, str)
            else product["name"]
        )

    def _email(self, about: Json) -> str:
        given = about.get("customer_email") or (about.get("customer_details") or {}).get("email")
        customer = about.get("customer")
        if given or not customer:
            return str(given or "")
        return str(self._get(f"/v1/customers/{customer}").get("email") or customer)

    def _get(self, path: str, *, expand: Iterable[str] = (), **parameters: str) -> Json:
        pairs = [*parameters.items(), *(("expand[]", name) for name in expand)]
        return self._ask("GET", path + (f"?{urlencode(pairs)}" if pairs else ""), b"")

    def _post(self, path: str, parameters: dict[str, str]) -> Json:
        return self._ask("POST", path, urlencode(parameters).encode())

    def _ask(self, method: str, path: str, body: bytes) -> Json:
        answer = self._keeper.ask(method, path, self._headers, body)
        found: Json = json.loads(answer.body)
        if answer.status == 404:
            raise NothingHereError
        if answer.status >= 400:
            raise RefusedError(found["error"]["message"])
        return found

    def _act(self, name: str, arguments: Json) -> str:
        """Why it was refused; empty when it was not."""
        try:
            self._keeper.act(name, arguments)
        except Exception as error:  # noqa: BLE001  what the world refuses, the page shows
            return str(error) or type(error).__name__
        return ""


def _page(html: str, status: int = 200) -> PageAnswer:
    return PageAnswer(status, html.encode(), {"content-type": "text/html; charset=utf-8"})


def _see_other(url: str) -> PageAnswer:
    return PageAnswer(303, b"", {"location": url})


def _success_url(session: Json) -> str:
    return str(session["success_url"] or "/").replace("{CHECKOUT_SESSION_ID}", session["id"])


def _is_metered(price: Json) -> bool:
    return bool((price.get("recurring") or {}).get("usage_type") == "metered")


def _cents(price: Json) -> int:
    return int(price.get("unit_amount") or 0)


def _interval(price: Json) -> str:
    recurring = price.get("recurring") or {}
    return f"per {recurring['interval']}" if recurring else "once"


def _discount(coupon: Json, cents: int) -> int:
    if coupon.get("percent_off") is not None:
        share = Decimal(str(coupon["percent_off"])) * cents / 100
        return int(share.quantize(Decimal(1), ROUND_HALF_UP))
    return min(cents, int(coupon.get("amount_off") or 0))


def _coupon_text(coupon: Json) -> str:
    if coupon.get("percent_off") is not None:
        return f"{Decimal(str(coupon['percent_off'])).normalize():f} % off"
    return f"{money(int(coupon['amount_off']), coupon['currency'])} off"


def _invoice_view(invoice: Json) -> InvoiceView:
    return InvoiceView(
        id=invoice["id"],
        number=invoice["number"] or "draft",
        date=day(invoice["created"]),
        amount=money(invoice["total"], invoice["currency"]),
        status=invoice["status"],
    )


def _period(line: Json) -> str:
    period = line["period"]
    return "" if period["start"] == period["end"] else f"{day(period['start'])} to {day(period['end'])}"
