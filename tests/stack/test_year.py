"""A year of one user in `make dev`'s own process tree, where functions live by the clock of Stripe's double."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.stack.test_billing import MODEL, Answer, Person, fetch, near_quota, until, visit
from tests.support.stack import ROOT, RunningStack, running_stack
from tollgate.domain.overage import UNIT_NANOUSD

pytestmark = [pytest.mark.stack, pytest.mark.slow]

DAY = timedelta(days=1)
PRO, ENTERPRISE = 2_000, 6_000
OVERAGE = "tollgate_overage"
LOOKS_AFTER_AN_END = (timedelta(minutes=3), timedelta(minutes=40), timedelta(minutes=66))
"""When the job runs there: while the invoice is a draft, twice, the second time late enough to close the period; and
when the invoice is final. Otherwise only now and then: each run after a quiet time looks at all hours of the last three
days, and takes seconds for it."""

Json = dict[str, Any]


@pytest.fixture
def year(tmp_path: Path) -> Iterator[Year]:
    """The shipped plans with a thousandth of their quotas, so that few calls go beyond them."""
    catalog = tmp_path / "catalog"
    catalog.mkdir()
    plans = (ROOT / "layers" / "core" / "tollgate" / "catalog" / "plans.toml").read_text()
    plans = plans.replace("10_000_000", f"{ENTERPRISE:_}").replace("2_000_000", f"{PRO:_}")
    (catalog / "plans.toml").write_text(plans)
    with running_stack(tmp_path / "stack", "--one-clock", "--parameter", f"Catalog={catalog}") as stack:
        assert until(lambda: stack.billing()["open"]), stack.billing()
        yield Year(stack, near_quota(stack))


@dataclass
class Year:
    """The user, their time, and the job that runs in it."""

    stack: RunningStack
    person: Person
    runs: list[Json] = field(default_factory=list)
    """What usage_reset returned, run by run."""

    # ---- time

    def now(self) -> datetime:
        return datetime.fromisoformat(self.stack.stripe("GET", "clock")["now"])

    def pass_until(self, instant: datetime) -> None:
        """Nothing is under way when the clocks move: no call takes days."""
        self._settle()
        self.stack.advance(max(0, int((instant - self.now()).total_seconds())))
        self._settle()

    def live_until(self, instant: datetime) -> None:
        self.pass_until(instant)
        self.run_job()

    def run_job(self) -> None:
        [run] = [run for run in self.stack.run_schedules() if run["schedule"].endswith("usage-reset")]
        assert run.get("result", {}).get("complete"), (run, self.stack.logs("usage_reset")[-3000:])
        assert run["result"]["left_periods"] == 0, run
        self.runs.append(run["result"])

    def cross_end(self) -> None:
        """Over the end of the running period, until its invoice is final."""
        self.look_around(self.ends_at())

    def look_around(self, end: datetime) -> None:
        for after in LOOKS_AFTER_AN_END:
            self.live_until(end + after)

    def ends_at(self) -> datetime:
        return datetime.fromisoformat(self.person.status()["period"]["end_at"])

    def _settle(self) -> None:
        """Until every event has been told, and no message waits in a queue but those put off to later."""
        self.stack.advance(0)
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]

        def waiting() -> int:
            counts = [
                self.queues.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
                for url in self.queue_urls
            ]
            return sum(int(count[name]) for count in counts for name in names)

        assert until(lambda: waiting() == 0), self.stack.output()[-3000:]

    @cached_property
    def queues(self) -> Any:  # noqa: ANN401  no types are installed for SQS
        endpoint = str(self.stack.description["cognito"]["jwks_url"]).split("/us-east-1_")[0]
        return boto3.session.Session("local", "local", region_name="us-east-1").client("sqs", endpoint_url=endpoint)

    @cached_property
    def queue_urls(self) -> list[str]:
        return list(self.queues.list_queues()["QueueUrls"])

    # ---- what the user does

    def call(self, tokens: int, script: str = "") -> Answer:
        """An answer of so many tokens; about twenty more are the question."""
        text = f"[[fake tokens={tokens} {script}]]"
        body = {"model": MODEL, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}
        headers = {"x-api-key": self.person.key, "anthropic-version": "2023-06-01", "content-type": "application/json"}
        url = f"{self.stack.gateway_url}/v1/messages"
        status, answered, raw = fetch("POST", url, json.dumps(body).encode(), headers)
        return Answer(status, json.loads(raw), answered)

    def use_up(self, beyond: int = 0) -> None:
        """Calls until the quota is used, and at least so many tokens more."""
        wanted = self.tokens()["quota"] + beyond
        while (left := wanted - self.tokens()["used"]) > 0:
            answer = self.call(min(1000, max(left, 100)))
            assert answer.status == 200, answer

    def use_it_all(self) -> None:
        """Calls until one is refused, as overage is off."""
        while (answer := self.call(500)).status == 200:
            assert self.tokens()["overage"] == 0
        assert (answer.status, answer.code) == (429, "quota_exceeded"), answer

    def tokens(self) -> Json:
        return dict(self.person.status()["tokens"])

    def overage(self, *, enabled: bool) -> None:
        answer = self.person.ask("POST", "/billing/overage", {"enabled": enabled})
        assert (answer.status, answer.body["allowed"]) == (200, enabled), answer

    def change(self, plan: str, interval: str) -> str:
        answer = self.person.ask("POST", "/billing/change-plan", {"plan": plan, "interval": interval})
        assert answer.status == 200, answer
        return str(answer.body["effect"])

    def state(self) -> str:
        return str(self.person.status()["subscription"]["state"])

    # ---- the books

    def items(self, prefix: str) -> list[Json]:
        """What the table has of the user below this name."""
        session = boto3.session.Session("local", "local", region_name="us-east-1")
        where = self.stack.description["dynamodb"]
        table = session.resource("dynamodb", endpoint_url=where["endpoint_url"]).Table(where["table"])
        everything: list[Json] = table.scan()["Items"]
        [owner] = {item["PK"] for item in everything if item["SK"] == "SUBSCRIBER"}
        return [item for item in everything if item["PK"] == owner and str(item["SK"]).startswith(prefix)]

    def from_stripe(self, path: str) -> list[Json]:
        remembered = json.loads((self.stack.base_dir / "state" / "remembered.json").read_text())
        headers = {"authorization": f"Bearer {remembered['fake_stripe_key']}"}
        status, _, raw = fetch("GET", f"{self.stack.description['fake_stripe_url']}/v1/{path}", None, headers)
        assert status == 200, raw
        found: Json = json.loads(raw)
        assert not found["has_more"]
        return list(found["data"])

    @cached_property
    def prices(self) -> dict[str, str]:
        """Lookup keys by price."""
        return {one["id"]: one["lookup_key"] for one in self.from_stripe("prices?limit=100")}

    def customer(self) -> str:
        [item] = self.items("SUBSCRIBER")
        return str(item["customer_id"])


def test_a_year_is_closed_month_by_month_and_invoiced_to_the_unit(year: Year) -> None:
    begun_at = year.now()
    _buys_and_upgrades(year)
    _uses_more_than_is_included(year)
    _fails_to_pay(year)
    _goes_down_and_pays_for_a_year(year)
    months = 0
    while year.now() < begun_at + timedelta(days=366):
        year.use_up(beyond=333 + 7 * months)
        year.cross_end()
        months += 1
    periods = [item for item in year.items("USAGE#") if item["start_at"] >= int(begun_at.timestamp())]
    ended = [item for item in periods if item["end_at"] < int(year.now().timestamp())]
    assert len(ended) >= 12
    _every_period_is_closed(year, ended)
    invoices = sorted(year.from_stripe("invoices?limit=100"), key=lambda one: int(one["created"]))
    _overage_is_billed_to_the_unit(year, periods, invoices)
    _plans_are_billed(year, invoices, months)
    assert year.stack.stripe("GET", "refused")["data"] == []
    failed = [one for one in year.stack.stripe("GET", "deliveries")["data"] if one["status"] != 200]
    assert failed == []
    first_days = f"from={begun_at:%Y-%m-%d}&to={begun_at + 2 * DAY:%Y-%m-%d}"
    assert year.person.ask("GET", f"/usage/daily?{first_days}").status == 200
    assert sum(run["closed_periods"] for run in year.runs) == len(ended) + 1, "the Free period of before as well"


def _every_period_is_closed(year: Year, ended: list[Json]) -> None:
    summaries = {item["start_at"]: item for item in year.items("SUMMARY#")}
    for meter in ended:
        summary = summaries[meter["start_at"]]
        assert "closed_at" in meter
        assert "GSI1PK" not in meter, "it is in the index of periods to close"
        assert (summary["charged_tokens"], summary["overage_nanousd"]) == (meter["settled"], _owed_nanousd(meter))
        assert {name: left for name, left in summary.items() if name.startswith("unrecorded_") and left} == {}


def _owed_nanousd(meter: Json) -> int:
    beyond = max(0, int(meter["settled"]) - int(meter["quota"]))
    return int(meter.get("ov_nanousd", 0)) + beyond * int(meter.get("ov_rate", 0))


def _overage_is_billed_to_the_unit(year: Year, periods: list[Json], invoices: list[Json]) -> None:
    """Month by month and in all: what is less than a unit is carried to the next invoice."""
    assert {invoice["status"] for invoice in invoices} == {"paid"}
    lines = [line for invoice in invoices for line in invoice["lines"]["data"] if _sold(year, line) == OVERAGE]
    lines.sort(key=lambda line: int(line["period"]["start"]))
    owed_nanousd = billed = 0
    *ended, running = sorted(periods, key=lambda item: int(item["start_at"]))
    assert [line["period"]["start"] for line in lines] == [meter["start_at"] for meter in ended]
    for line, meter in zip(lines, ended, strict=True):
        owed_nanousd += _owed_nanousd(meter)
        billed += line["quantity"]
        assert billed == owed_nanousd // UNIT_NANOUSD, f"after {meter['SK']}"
    assert _owed_nanousd(running) == 0
    [account] = [item for item in year.items("OVERAGE") if item["SK"] == "OVERAGE"]
    assert account["billed_units"] == billed
    assert (account["written_off_units"], account["unbillable_nanousd"]) == (0, 0)
    assert sum(_owed_nanousd(meter) > 0 for meter in ended) >= 10


def _plans_are_billed(year: Year, invoices: list[Json], months_of_the_year: int) -> None:
    lines = [[line for line in one["lines"]["data"] if _sold(year, line) != OVERAGE] for one in invoices]
    sold = [[(_sold(year, line), line["amount"]) for line in some if line["amount"] > 0] for some in lines]
    pro, enterprise = ("tollgate_pro_month", 2900), ("tollgate_enterprise_month", 9900)
    bought = [pro, pro, *[enterprise] * 6, pro, ("tollgate_pro_year", 29_000)]
    assert sold == [*([one] for one in bought), *[[]] * months_of_the_year]
    for number, some in enumerate(lines):
        for credit in [line for line in some if line["amount"] < 0]:
            assert bought[number] != bought[number - 1]
            [before] = [line for line in lines[number - 1] if line["amount"] > 0]
            whole = before["period"]["end"] - before["period"]["start"]
            left = credit["period"]["end"] - credit["period"]["start"]
            assert abs(credit["amount"] + before["amount"] * left / whole) <= 1
    assert sum(line["amount"] < 0 for some in lines for line in some) == 2, "an upgrade, and the change to a year"


def _sold(year: Year, line: Json) -> str:
    return year.prices[line["pricing"]["price_details"]["price"]]


def _buys_and_upgrades(year: Year) -> None:
    """Months 1 and 2. Without overage a month ends at its quota; an upgrade begins another month at once."""
    visit(year.person.buy("pro").body["url"]).press("Subscribe")
    assert until(lambda: year.person.plan() == "pro")
    year.use_it_all()
    year.cross_end()
    year.overage(enabled=True)
    year.use_up(beyond=500)
    year.pass_until(year.now() + 12 * DAY)
    assert year.change("enterprise", "month") == "now"
    assert until(lambda: year.person.plan() == "enterprise")
    assert year.tokens()["used"] == 0
    year.pass_until(year.now() + timedelta(minutes=66))
    year.use_up(beyond=700)
    year.cross_end()


def _uses_more_than_is_included(year: Year) -> None:
    """Months 3 and 4: also in the middle of a month, also by an answer that ends after the month has ended."""
    year.use_up(beyond=400)
    year.live_until(year.now() + 10 * DAY)
    year.use_up(beyond=1_100)
    year.live_until(year.ends_at() - timedelta(minutes=65))
    year.cross_end()
    year.use_up(beyond=300)
    end = year.ends_at()
    year.pass_until(end - timedelta(seconds=20))
    before = year.tokens()["used"]
    late: list[Answer] = []
    caller = threading.Thread(target=lambda: late.append(year.call(900, "stall_after=10 stall_ms=4000")))
    caller.start()
    assert until(lambda: year.tokens()["reserved"] >= 900)
    year.pass_until(end + timedelta(seconds=20))
    assert year.tokens()["used"] < before
    assert not late, "the answer ended before the month did"
    caller.join()
    assert late[0].status == 200, late
    year.look_around(end)
    assert year.tokens()["used"] == 0, "the late answer is counted in the month in which it began"


def _fails_to_pay(year: Year) -> None:
    """Months 5 and 6: no overage while a payment is missing, and again when it has come."""
    customer = year.customer()
    year.stack.stripe("POST", "act/fail_payments", {"customer_id": customer, "on": True})
    year.use_up(beyond=50)
    year.cross_end()
    assert until(lambda: year.state() == "past_due")
    year.use_it_all()
    year.stack.stripe("POST", "act/fail_payments", {"customer_id": customer, "on": False})
    year.live_until(year.now() + 3 * DAY)
    assert until(lambda: year.state() == "active")
    year.use_up(beyond=640)
    year.cross_end()


def _goes_down_and_pays_for_a_year(year: Year) -> None:
    """Months 7 and 8: Pro again when the month is over, then Pro by the year, with overage still by the month."""
    year.use_up(beyond=77)
    assert year.change("pro", "month") == "at_period_end"
    year.cross_end()
    assert year.person.plan() == "pro"
    year.use_up(beyond=810)
    year.pass_until(year.now() + 9 * DAY)
    assert year.change("pro", "year") == "now"
    assert until(lambda: year.person.status()["subscription"]["interval"] == "year")
    assert year.tokens()["used"] == 0
    year.pass_until(year.now() + timedelta(minutes=66))
