"""How the double's Checkout, portal and invoice pages look: values in, HTML out. No script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Final

STYLE: Final = Path(__file__).with_name("static") / "pages.css"
CARD_OK: Final = "ok"
CARD_DECLINED: Final = "declined"
CARD_AUTHENTICATES: Final = "authenticates"
CARD_CONFIRMED: Final = "confirmed"
CARD_REFUSED: Final = "refused"
CARDS: Final = (
    (CARD_OK, "4242 4242 4242 4242", "Visa", "every payment succeeds"),
    (CARD_AUTHENTICATES, "4000 0025 0000 3155", "Visa", "the bank asks for confirmation first (3D Secure)"),
    (CARD_DECLINED, "4000 0000 0000 0002", "Visa", "the bank declines"),
)
_INVOICE_BADGES: Final = {"paid": "good", "open": "", "draft": "plain", "void": "plain", "uncollectible": "bad"}
_SUBSCRIPTION_BADGES: Final = {"active": "good", "trialing": "good", "past_due": "bad", "unpaid": "bad"}


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a bill; `detail` is small print below its name."""

    name: str
    amount: str
    detail: str = ""
    total: bool = False


@dataclass(frozen=True, slots=True)
class CheckoutView:
    """A Checkout Session that is open."""

    address: str
    """Path of the page; actions are below it."""
    title: str
    price: str
    interval: str
    trial: str
    """Words about the trial; empty when there is none."""
    email: str
    lines: tuple[Line, ...]
    takes_codes: bool
    code: str
    """As typed."""
    code_error: str
    applied_code: str
    cancel_url: str
    error: str
    button: str


@dataclass(frozen=True, slots=True)
class SubscriptionView:
    """A subscription in the portal."""

    id: str
    title: str
    price: str
    status: str
    renewal: str
    """When it renews or ends, as a sentence."""
    ends: bool
    """Cancelled at the period's end."""
    live: bool
    """Can be cancelled or resumed."""


@dataclass(frozen=True, slots=True)
class InvoiceView:
    """A row of the portal's list."""

    id: str
    number: str
    date: str
    amount: str
    status: str


@dataclass(frozen=True, slots=True)
class PortalView:
    """A portal session."""

    address: str
    email: str
    subscriptions: tuple[SubscriptionView, ...]
    invoices: tuple[InvoiceView, ...]
    card_declines: bool
    return_url: str
    note: str
    error: str


@dataclass(frozen=True, slots=True)
class BillView:
    """One invoice."""

    address: str
    number: str
    date: str
    email: str
    status: str
    lines: tuple[Line, ...]
    error: str


def money(cents: int, currency: str = "usd") -> str:
    """`$1,234.56`, or the amount before the currency's code for any other one."""
    digits = f"{abs(cents) // 100:,}.{abs(cents) % 100:02}"
    sign = "-" if cents < 0 else ""
    return f"{sign}${digits}" if currency == "usd" else f"{sign}{digits} {currency.upper()}"


def day(seconds: int) -> str:
    """`20 Nov 2026`, in UTC as Stripe counts."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment.day} {moment:%b %Y}"


def checkout_page(view: CheckoutView) -> str:
    price = f'<p class="price">{escape(view.price)} <small>{escape(view.interval)}</small></p>'
    trial = f'<p class="note good">{escape(view.trial)}</p>' if view.trial else ""
    summary = f"""<section class="card" aria-labelledby="what"><h1 id="what">{escape(view.title)}</h1>{price}{trial}
{_bill(view.lines)}{_code_form(view) if view.takes_codes else ""}</section>"""
    pay = f"""<section class="card" aria-labelledby="pay"><h2 id="pay">Pay with a test card</h2>
{_note(view.error, "bad")}<p class="dim small">For <b>{escape(view.email)}</b></p>
<form method="post" action="{escape(view.address)}/pay">{_cards(CARD_OK, at_once=True)}
{_hidden("code", view.applied_code)}<button class="main">{escape(view.button)}</button></form></section>"""
    return _page(f"Checkout: {view.title}", f'{_back(view.cancel_url)}<div class="split">{summary}{pay}</div>')


def challenge_page(address: str, code: str, amount: str) -> str:
    """The bank's question between the form and the payment."""

    def button(card: str, words: str, style: str) -> str:
        return f"""<form method="post" action="{escape(address)}/pay">{_hidden("card", card)}
{_hidden("code", code)}<button class="{style}">{words}</button></form>"""

    body = f"""<section class="card"><h1>Your bank asks</h1><p class="dim">Is it you who pays {escape(amount)}?
A real card would show its bank's own page here (3D Secure).</p>
{button(CARD_CONFIRMED, "Yes, complete the payment", "main")}<hr>
{button(CARD_REFUSED, "No, fail the authentication", "bad-button")}</section>"""
    return _page("3D Secure", body, narrow=True)


def portal_page(view: PortalView) -> str:
    cards = "".join(_subscription(view, item) for item in view.subscriptions)
    plans = cards or '<section class="card"><h2>Plan</h2><p class="dim">No subscription.</p></section>'
    body = f"""{_back(view.return_url)}<div><h1>Billing</h1><p class="dim">{escape(view.email)}</p></div>
{_note(view.error, "bad")}{_note(view.note, "good")}{plans}{_card_form(view)}{_invoices(view)}"""
    return _page("Billing portal", body)


def cancel_page(view: PortalView, item: SubscriptionView, until: str) -> str:
    """The question before a cancellation."""
    body = f"""<section class="card"><h1>Cancel {escape(item.title)}?</h1>
<p>It stays yours until <b>{escape(until)}</b> and is not renewed. You can change your mind until then.</p>
<form method="post" action="{escape(view.address)}/cancel">{_hidden("subscription", item.id)}
<div class="row"><button class="bad-button">Cancel at the period's end</button>
<a class="button" href="{escape(view.address)}">Keep it</a></div></form></section>"""
    return _page("Cancel the plan", body, narrow=True)


def bill_page(view: BillView) -> str:
    pay = ""
    if view.status == "open":
        pay = f'<form method="post" action="{escape(view.address)}/pay"><button class="main">Pay now</button></form>'
    body = f"""<section class="card"><div class="row apart"><h1>Invoice {escape(view.number)}</h1>
{_badge(view.status, _INVOICE_BADGES)}</div>
<p class="dim">{escape(view.date)} · {escape(view.email)}</p>
{_note(view.error, "bad")}{_bill(view.lines)}{pay}</section>"""
    return _page(f"Invoice {view.number}", body, narrow=True)


def message_page(title: str, text: str, link: tuple[str, str] | None = None) -> str:
    """A page that only says something; `link`: address and words."""
    button = f'<p><a class="button" href="{escape(link[0])}">{escape(link[1])}</a></p>' if link else ""
    body = f'<section class="card"><h1>{escape(title)}</h1><p class="dim">{escape(text)}</p>{button}</section>'
    return _page(title, body, narrow=True)


def _page(title: str, body: str, *, narrow: bool = False) -> str:
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{STYLE.read_text()}</style>
<p class="mode">Test mode: a double of Stripe on this machine. No money moves.</p>
<main{' class="narrow"' if narrow else ""}>{body}</main>
</html>
"""


def _back(url: str) -> str:
    return f'<a class="back" href="{escape(url)}">← Back</a>' if url else ""


def _note(text: str, kind: str) -> str:
    role = "alert" if kind == "bad" else "status"
    return f'<p class="note {kind}" role="{role}">{escape(text)}</p>' if text else ""


def _hidden(name: str, value: str) -> str:
    return f'<input type="hidden" name="{name}" value="{escape(value)}">'


def _badge(status: str, styles: dict[str, str]) -> str:
    words = status.replace("_", " ")
    return f'<span class="badge {styles.get(status, "")}">{escape(words)}</span>'


def _bill(lines: Iterable[Line]) -> str:
    rows = []
    for line in lines:
        detail = f"<small>{escape(line.detail)}</small>" if line.detail else ""
        kind = ' class="total"' if line.total else ""
        rows.append(f"<div{kind}><dt>{escape(line.name)}{detail}</dt><dd>{escape(line.amount)}</dd></div>")
    return f"<dl>{''.join(rows)}</dl>"


def _cards(chosen: str, *, at_once: bool) -> str:
    """`at_once`: the payer is there, so the bank can ask; a later payment has nobody to ask."""
    choices = "".join(
        f"""<label class="choice"><input type="radio" name="card" value="{card}"{" checked" if card == chosen else ""}>
<div><b>{brand} <span class="number">{number}</span></b><span>{effect}</span></div></label>"""
        for card, number, brand, effect in CARDS
        if at_once or card != CARD_AUTHENTICATES
    )
    return f"<fieldset><legend>Card</legend>{choices}</fieldset>"


def _code_form(view: CheckoutView) -> str:
    error = f'<p class="note bad" role="alert">{escape(view.code_error)}</p>' if view.code_error else ""
    return f"""<hr>
<form method="get" action="{escape(view.address)}">{error}<div class="row low">
<label class="field grow">Promotion code
<input type="text" name="code" value="{escape(view.code)}" autocomplete="off" spellcheck="false"></label>
<button>Apply</button></div></form>"""


def _subscription(view: PortalView, item: SubscriptionView) -> str:
    action = ""
    if item.live and item.ends:
        action = f"""<form method="post" action="{escape(view.address)}/resume">
{_hidden("subscription", item.id)}<button>Keep the plan</button></form>"""
    elif item.live:
        action = f"""<form method="get" action="{escape(view.address)}/cancel">
{_hidden("subscription", item.id)}<button class="bad-button">Cancel the plan</button></form>"""
    return f"""<section class="card"><div class="row apart"><div><h2 class="tight">{escape(item.title)}
{_badge(item.status, _SUBSCRIPTION_BADGES)}</h2><p class="dim">{escape(item.price)} · {escape(item.renewal)}</p></div>
{action}</div></section>"""


def _card_form(view: PortalView) -> str:
    chosen = CARD_DECLINED if view.card_declines else CARD_OK
    return f"""<section class="card"><h2>Payment method</h2><form method="post" action="{escape(view.address)}/card">
{_cards(chosen, at_once=False)}<button>Use this card from now on</button></form></section>"""


def _invoices(view: PortalView) -> str:
    if not view.invoices:
        return '<section class="card"><h2>Invoices</h2><p class="dim">None yet.</p></section>'
    rows = []
    for invoice in view.invoices:
        pay = ""
        if invoice.status == "open":
            pay = f"""<form method="post" action="{escape(view.address)}/invoice">
{_hidden("invoice", invoice.id)}<button>Pay</button></form>"""
        rows.append(f"""<tr><td><a href="/invoice/{escape(invoice.id)}">{escape(invoice.number)}</a></td>
<td class="date">{escape(invoice.date)}</td>
<td>{_badge(invoice.status, _INVOICE_BADGES)} {pay}</td><td class="end">{escape(invoice.amount)}</td></tr>""")
    return f"""<section class="card"><h2>Invoices</h2><div class="scroll"><table><thead><tr><th>Number</th><th>Date</th>
<th>Status</th><th class="end">Total</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div></section>"""
