"""Disposable e-mail domains: data that is shipped, and an operator's own beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tollgate.catalog.email_domains import load_email_domains
from tollgate.catalog.loader import CatalogError

SHIPPED = Path(__file__).parents[2] / "layers" / "core" / "tollgate" / "catalog" / "disposable_domains.txt"
MAILBOXES_OF_PEOPLE = (
    "gmail.com googlemail.com outlook.com hotmail.com live.com msn.com yahoo.com yahoo.co.jp ymail.com aol.com"
    " icloud.com me.com mac.com gmx.de gmx.net gmx.ch web.de t-online.de freenet.de posteo.de mailbox.org proton.me"
    " protonmail.com pm.me tutanota.com tuta.io fastmail.com hey.com zoho.com yandex.ru mail.ru bk.ru qq.com 163.com"
    " 126.com sina.com naver.com daum.net orange.fr free.fr laposte.net wanadoo.fr libero.it virgilio.it wp.pl o2.pl"
    " onet.pl interia.pl seznam.cz bluewin.ch hispeed.ch comcast.net verizon.net att.net btinternet.com sky.com"
    " duck.com simplelogin.com mozmail.com relay.firefox.com privaterelay.appleid.com example.com"
)


@pytest.mark.parametrize(
    "email",
    [
        "a@mailinator.com",
        "a@MAILINATOR.com",
        "a@team.mailinator.com",
        "a@mailinator.com.",
        "a+b@yopmail.fr",
        "a@10minutemail.com",
        "a@sharklasers.com",
        '"odd@name"@trashmail.de',
    ],
)
def test_a_known_domain_is_refused_with_its_subdomains(email: str) -> None:
    assert load_email_domains().refuse(email)


@pytest.mark.parametrize(
    "email", ["a@notmailinator.example", "a@mailinator.com.example", "mailinator.com@example.com", "a@com", "a@", ""]
)
def test_what_only_looks_like_one_is_not(email: str) -> None:
    assert not load_email_domains().refuse(email)


@pytest.mark.parametrize("domain", MAILBOXES_OF_PEOPLE.split())
def test_where_people_have_their_mail_is_accepted_forwarders_included(domain: str) -> None:
    """A forwarder hides an address but leads to one; whoever wants to refuse those has a file of their own."""
    assert not load_email_domains().refuse(f"ada@{domain}")


def test_the_shipped_list_is_sorted_without_doubles_and_of_some_size() -> None:
    lines = [line for line in SHIPPED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines == sorted(set(lines))
    assert len(lines) > 500


def test_an_operators_file_adds_and_takes_away(tmp_path: Path) -> None:
    own = tmp_path / "domains.txt"
    own.write_text("# ours\nEvil.example  # seen in May\n\n!yopmail.com\n", encoding="utf-8")
    domains = load_email_domains(str(own))
    assert domains.refuse("a@mx.evil.example")
    assert not domains.refuse("a@yopmail.com")
    assert domains.refuse("a@yopmail.fr")


@pytest.mark.parametrize("line", ["evil", "evil..example", "a@evil.example", "-evil.example", "*.evil.example", "ü.de"])
def test_a_line_that_is_no_domain_stops_the_start_and_says_where(tmp_path: Path, line: str) -> None:
    own = tmp_path / "domains.txt"
    own.write_text(f"ok.example\n{line}\n", encoding="utf-8")
    with pytest.raises(CatalogError, match=r"domains\.txt line 2: .* is no domain"):
        load_email_domains(str(own))


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read"):
        load_email_domains(str(tmp_path / "none.txt"))
