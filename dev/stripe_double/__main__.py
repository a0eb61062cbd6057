"""`python -m dev.stripe_double`: the double as a process of its own, for the local stack or for trying things out."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import socket
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from dev.stripe_double.delivery import Deliveries
from dev.stripe_double.keeper import Json, Keeper
from dev.stripe_double.pages import Pages, use_addresses
from dev.stripe_double.server import DoubleServer
from dev.stripe_double.webhooks import SignedRequest
from dev.stripe_double.world import StripeWorld

TICK_SECONDS = 2.0
CACHE = Path(__file__).resolve().parent.parent.parent / ".dev"


def main() -> int:
    """Serves until Ctrl-C or, for the local stack, until stdin closes."""
    chosen = _arguments()
    listener = _listener(chosen)
    host, port = listener.getsockname()[:2]
    address = f"http://{host}:{port}"

    def make_world(now: datetime, seed: int) -> StripeWorld:
        world = StripeWorld(
            now=now,
            seed=seed,
            webhook_secret=chosen.webhook_secret,
            account_id=chosen.account,
            contract_cache=CACHE,
        )
        use_addresses(world, address)
        return world

    def sign(event: Json, kind: str) -> SignedRequest:
        # The receiver's clock decides whether a signature is fresh, and that one is ahead only if it is ours.
        at = keeper.now() if chosen.clock_file else datetime.now(UTC)
        signed: SignedRequest = keeper.read(lambda world: world.deliver(event, kind, at=at))
        return signed

    def wanted(events: list[Json]) -> list[Json]:
        return [event for event in events if not chosen.event_type or event["type"] in chosen.event_type]

    def done(event_id: str) -> None:
        keeper.sent(event_id)

    deliveries = Deliveries(chosen.webhook_url, sign, done, _say) if chosen.webhook_url else None
    keeper = Keeper(
        make_world,
        chosen.journal,
        clock=lambda: datetime.now(UTC),
        seed=lambda: secrets.randbits(48),
        on_events=lambda events: deliveries.put(wanted(events)) if deliveries else None,
        clock_file=chosen.clock_file,
    )
    if keeper.set_aside:
        _say(f"the state of before cannot be used ({keeper.set_aside}); it begins empty")
    if deliveries:
        deliveries.start()
    pages = Pages(keeper, {"authorization": "Bearer sk_test_pages"})
    server = DoubleServer(listener, keeper, deliveries, pages, shares_clock=chosen.clock_file is not None)
    threading.Thread(target=_tick, args=(keeper,), name="clock", daemon=True).start()
    threading.Thread(target=server.serve_forever, name="server", daemon=True).start()
    _say(address)
    with contextlib.suppress(KeyboardInterrupt):
        if chosen.until_stdin_closes:
            sys.stdin.read()
        else:
            threading.Event().wait()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dev.stripe_double", description="A double of Stripe's API.")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes any free port")
    parser.add_argument("--fd", type=int, help="a socket that listens already, instead of a port")
    parser.add_argument("--account", default="acct_tollgatelocal", help="the account's id")
    parser.add_argument("--webhook-url", help="where events are delivered to")
    parser.add_argument("--webhook-secret", default="whsec_local", help="what deliveries are signed with")
    parser.add_argument("--event-type", action="append", default=[], help="deliver only these; may be repeated")
    parser.add_argument("--journal", type=Path, help="keeps the state over a restart")
    parser.add_argument("--clock-file", type=Path, help="is told how far ahead the clock is, for others")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end together with whoever holds the pipe")
    return parser.parse_args()


def _listener(chosen: argparse.Namespace) -> socket.socket:
    if chosen.fd is not None:
        return socket.socket(fileno=chosen.fd)
    return socket.create_server(("127.0.0.1", chosen.port), backlog=128)


def _say(text: str) -> None:
    print(text, flush=True)


def _tick(keeper: Keeper) -> None:
    """Lets happen what is due although nobody asks."""
    while True:
        threading.Event().wait(TICK_SECONDS)
        keeper.tick()


if __name__ == "__main__":
    sys.exit(main())
