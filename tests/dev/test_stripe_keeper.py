"""The double's state outlives its process; its clock runs ahead when told; its events reach whoever listens."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from dev.stripe_double.delivery import RETRY_SECONDS, Deliveries
from dev.stripe_double.keeper import STEP, Keeper

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
Json = dict[str, Any]


@dataclass
class Reply:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class SmallWorld:
    """Notes what is done to it. Ids are of its seed, as the real one's are."""

    now: datetime
    seed: int
    status: int = 200
    history: list[str] = field(default_factory=list)
    fresh: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        made = "" if method == "GET" else f" {self._event(path)}"
        self.history.append(f"{self.now:%d %H:%M} {method} {path} {body.decode()}{made}")
        return Reply(self.status, body)

    def advance(self, to: datetime) -> None:
        assert to >= self.now
        self.now = to

    def take_events(self) -> list[Json]:
        taken, self.fresh = self.fresh, []
        return taken

    def refund(self, charge: str) -> None:
        self.history.append(f"{self.now:%d %H:%M} refund {charge} {self._event('refund')}")

    def dispute(self, charge: str) -> None:
        raise ValueError(f"no charge {charge}")

    def _event(self, kind: str) -> str:
        made = f"evt_{self._random.randrange(10**6)}"
        self.fresh.append({"id": made, "type": kind})
        return made


class Life:
    """One process after another with the same journal."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.now = NOW
        self.status = 200
        self.worlds: list[SmallWorld] = []
        self.events: list[Json] = []

    def begin(self) -> Keeper:
        def make(now: datetime, seed: int) -> SmallWorld:
            self.worlds.append(SmallWorld(now, seed, self.status))
            return self.worlds[-1]

        self.events = []
        return Keeper(
            make, self.journal, clock=lambda: self.now, seed=lambda: len(self.worlds), on_events=self.events.extend
        )


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path / "state" / "stripe.jsonl")


def test_a_restarted_process_has_the_same_world(life: Life) -> None:
    first = life.begin()
    first.ask("POST", "/v1/customers", {"stripe-version": "x"}, b"email=ada")
    first.ask("GET", "/v1/customers", {}, b"")
    life.now += timedelta(hours=3)
    first.act("refund", {"charge": "ch_1"})
    life.now += timedelta(days=2)
    life.begin()
    before, after = life.worlds
    assert after.history == [line for line in before.history if " GET " not in line]


def test_what_the_world_refused_is_refused_again_and_no_reason_to_forget(life: Life) -> None:
    first = life.begin()
    with pytest.raises(ValueError, match="no charge"):
        first.act("dispute", {"charge": "ch_0"})
    first.act("refund", {"charge": "ch_1"})
    again = life.begin()
    assert again.set_aside is None
    assert life.worlds[0].history == life.worlds[1].history


def test_only_events_that_did_not_arrive_are_delivered_after_a_restart(life: Life) -> None:
    first = life.begin()
    first.ask("POST", "/v1/one", {}, b"")
    first.ask("POST", "/v1/two", {}, b"")
    first.sent(life.events[0]["id"])
    life.begin()
    assert [event["type"] for event in life.events] == ["/v1/two"]


def test_a_journey_in_time_lasts_over_a_restart(life: Life) -> None:
    first = life.begin()
    first.travel(2 * STEP + timedelta(seconds=1), lambda: None)
    assert first.now() == NOW + 2 * STEP + timedelta(seconds=1)
    first.ask("POST", "/v1/later", {}, b"")
    life.now += timedelta(minutes=1)
    again = life.begin()
    assert again.now() == NOW + 2 * STEP + timedelta(minutes=1, seconds=1)
    assert life.worlds[0].history == life.worlds[1].history


def test_a_journal_that_leads_elsewhere_is_set_aside(life: Life) -> None:
    life.begin().ask("POST", "/v1/one", {}, b"")
    life.status = 400
    again = life.begin()
    assert again.set_aside is not None
    assert "POST /v1/one is answered 400 now" in again.set_aside
    assert life.journal.with_suffix(".old").is_file()
    life.status = 200
    assert life.begin().set_aside is None


def test_a_line_that_a_killed_process_did_not_finish_is_left_out(life: Life) -> None:
    life.begin().ask("POST", "/v1/one", {}, b"")
    with life.journal.open("a") as file:
        file.write('{"at":1,"ask":{"meth')
    again = life.begin()
    assert again.set_aside is None
    again.ask("POST", "/v1/two", {}, b"")
    assert life.begin().set_aside is None
    assert [len(world.history) for world in life.worlds] == [1, 2, 2]


def test_a_reset_begins_an_empty_world_in_the_present(life: Life) -> None:
    first = life.begin()
    first.travel(timedelta(days=1), lambda: None)
    first.ask("POST", "/v1/one", {}, b"")
    first.reset()
    assert first.now() == NOW
    life.begin()
    assert life.worlds[-1].history == []


def test_the_journal_is_its_owners_only(life: Life) -> None:
    life.begin()
    assert life.journal.stat().st_mode & 0o777 == 0o600


# Deliveries.


class Receiver:
    """An endpoint that answers what it is told, and notes what it gets."""

    def __init__(self, answers: Callable[[int], int]) -> None:
        self.bodies: list[str] = []
        self.answers = answers
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.bodies.append(self.rfile.read(int(self.headers["content-length"])).decode())
                self.send_response(receiver.answers(len(receiver.bodies)))
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@contextmanager
def receiving(answers: Callable[[int], int]) -> Iterator[Receiver]:
    receiver = Receiver(answers)
    thread = threading.Thread(target=receiver.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


@dataclass
class Plain:
    headers: Mapping[str, str]
    body: bytes


def deliveries(url: str, done: list[str]) -> Deliveries:
    started = Deliveries(url, lambda event, kind: Plain({}, f"{event['id']} {kind}".encode()), done.append, print)
    started.start()
    return started


def until(true: Callable[[], bool]) -> bool:
    wait = threading.Event()
    return any(true() or wait.wait(0.02) for _ in range(500))


EVENTS: list[Json] = [{"id": f"evt_{number}", "type": "t"} for number in range(4)]


def test_events_arrive_in_order_and_once() -> None:
    done: list[str] = []
    with receiving(lambda _: 200) as receiver:
        sender = deliveries(receiver.url, done)
        sender.put(EVENTS)
        assert sender.wait_tried()
        assert until(lambda: len(done) == 4)
        assert receiver.bodies == [f"evt_{number} snapshot" for number in range(4)]


def test_an_event_is_sent_again_until_it_is_taken() -> None:
    done: list[str] = []
    with receiving(lambda attempt: 500 if attempt < 3 else 200) as receiver:
        deliveries(receiver.url, done).put(EVENTS[:1])
        assert until(lambda: done == ["evt_0"])
        assert len(receiver.bodies) == 3
    assert RETRY_SECONDS[0] < 1


def test_events_come_twice_shuffled_and_thin_when_asked() -> None:
    done: list[str] = []
    with receiving(lambda _: 204) as receiver:
        sender = deliveries(receiver.url, done)
        sender.set_manner(kind="thin", copies=2, shuffled=True)
        sender.put(EVENTS)
        assert until(lambda: len(done) == 4)
        assert sorted(receiver.bodies) == sorted(f"evt_{number} thin" for number in range(4) for _ in range(2))


def test_nobody_there_loses_no_event() -> None:
    done: list[str] = []
    with receiving(lambda _: 200) as receiver:
        url = receiver.url
    sender = deliveries(url, done)
    sender.put(EVENTS[:1])
    assert sender.wait_tried()
    assert done == []
    assert [attempt["status"] for attempt in sender.attempts][:1] == [0]
