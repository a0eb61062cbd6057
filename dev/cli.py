"""The command line of the local stack: options, one stack per folder, the port, signals, single keys."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from dev import banner
from dev.engines import ROOT, EngineError
from dev.local_stripe import TEST_PREFIXES, StripeChoice
from dev.request_log import Screen
from dev.stack import ANTHROPIC_URL, Options, Stack
from dev.template import TemplateError

DEFAULT_PORT: Final = 8787
FAKE_SCRIPT: Final = "ttft_ms=20 pace_ms=15"
"""The pace of a quick model: one can watch it stream, and nobody waits."""


class CannotStartError(Exception):
    """Why the stack does not start, and what to do about it."""


def main(arguments: list[str]) -> int:
    """Runs until Ctrl-C, SIGTERM or q; 0 when it ended as it was asked to."""
    screen = Screen()
    try:
        options = _options(arguments, os.environ)
        with _lock(options), _listener(options) as listener:
            return _run(options, listener, screen)
    except (CannotStartError, EngineError, TemplateError) as error:
        screen.line(f" {screen.paint('red', '✗')} {error}")
        return 1


def _run(options: Options, listener: socket.socket, screen: Screen) -> int:
    screen.line(banner.welcome(screen))
    stack = Stack(options, listener, screen)
    try:
        with _signals(stack):
            stack.start()
            interactive = _is_interactive()

            def announce() -> None:
                stack.banner()
                screen.line(banner.watching(screen, interactive=interactive))

            with _keys(stack, screen) if interactive else contextlib.nullcontext():
                asyncio.run(stack.serve(announce))
    except KeyboardInterrupt:
        pass
    finally:
        stack.close()
    if stack.failure is not None:
        screen.line(f" {screen.paint('red', '✗')} {stack.failure}")
        return 1
    screen.line(" stopped; nothing is left running")
    return 0


def _options(arguments: list[str], environ: Mapping[str, str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m dev", description="Run Tollgate on this machine.")
    parser.add_argument("--port", help=f"0 takes any free one; default: $PORT or {DEFAULT_PORT}")
    parser.add_argument("--state-dir", type=Path, help="stack.json, state and logs; default: .dev")
    parser.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE", help="of template.yaml")
    parser.add_argument("--fake-claude", default=FAKE_SCRIPT, metavar="SCRIPT", help=f"its behaviour; {FAKE_SCRIPT}")
    parser.add_argument("--concurrency", type=int, default=100, help="most processes per function; more requests wait")
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="shorten every function's timeout to this")
    parser.add_argument("--one-clock", action="store_true", help="functions follow the clock of the Stripe double")
    chosen = parser.parse_args(arguments)
    port = _port(chosen.port or environ.get("PORT", ""))
    key = environ.get("ANTHROPIC_API_KEY") or None
    # A key alone means the real API; a base URL means exactly that address, with the key if there is one.
    upstream = environ.get("ANTHROPIC_BASE_URL") or (ANTHROPIC_URL if key else None)
    if upstream and (urlsplit(upstream).hostname, urlsplit(upstream).port) in (
        ("127.0.0.1", port),
        ("localhost", port),
    ):
        raise CannotStartError(
            f"ANTHROPIC_BASE_URL={upstream} is this gateway itself, not an upstream."
            " Run `unset ANTHROPIC_BASE_URL` in this terminal first."
        )
    return Options(
        port=port,
        base_dir=(chosen.state_dir or ROOT / ".dev").resolve(),
        upstream_url=upstream.rstrip("/") if upstream else None,
        upstream_key=key,
        stripe=_stripe(environ),
        fake_script=chosen.fake_claude,
        parameters=_parameters(chosen.parameter),
        concurrency=max(1, chosen.concurrency),
        longest_seconds=chosen.timeout,
        one_clock=chosen.one_clock,
    )


def _stripe(environ: Mapping[str, str]) -> StripeChoice | None:
    """Stripe's test mode where a key for it is set. Raises CannotStartError for any other key."""
    key = environ.get("STRIPE_SECRET_KEY", "").strip()
    if not key:
        return None
    if not key.startswith(TEST_PREFIXES):
        live = key.startswith(("sk_live_", "rk_live_"))
        what = "is for the live account, where money is real" if live else "is no secret key of a sandbox (sk_test_…)"
        raise CannotStartError(
            f"STRIPE_SECRET_KEY {what}. The local stack takes test keys only."
            " Run `unset STRIPE_SECRET_KEY` to use the built-in double."
        )
    return StripeChoice(key, environ.get("STRIPE_WEBHOOK_SECRET", "").strip() or None)


def _port(text: str) -> int:
    if not text:
        return DEFAULT_PORT
    if not text.isdecimal() or int(text) > 65_535:
        raise CannotStartError(f"PORT={text} is no port. Take a number up to 65535, or 0 for any free one.")
    return int(text)


def _parameters(words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise CannotStartError(f"--parameter wants NAME=VALUE, not {wrong[0]}")
    return {name: value for name, _, value in pairs}


@contextlib.contextmanager
def _lock(options: Options) -> Iterator[None]:
    """One stack per folder: two would share their state."""
    options.base_dir.mkdir(parents=True, exist_ok=True)
    path = options.base_dir / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStartError(_running_already(file, options.stack_file)) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        options.stack_file.unlink(missing_ok=True)  # of a stack that was killed
        yield


def _running_already(lock: IO[str], stack_file: Path) -> str:
    lock.seek(0)
    pid = lock.read().strip() or "?"
    where = "is still starting"
    with contextlib.suppress(OSError, ValueError, KeyError):
        where = f"runs at {json.loads(stack_file.read_text())['gateway_url']}"
    return f"A stack of this checkout {where} (pid {pid}). Use it, or stop it first: kill {pid}"


@contextlib.contextmanager
def _listener(options: Options) -> Iterator[socket.socket]:
    """The port, taken before anything is started for nothing."""
    # With the protocol named, asyncio sets TCP_NODELAY on what is accepted; without, answers wait 40 ms for an ACK.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", options.port))
        except OSError as error:
            raise CannotStartError(_port_taken(options.port, error)) from None
        yield listener


def _port_taken(port: int, error: OSError) -> str:
    ways = "Choose another one: make dev PORT=8788, or PORT=0 for any free one."
    with contextlib.suppress(OSError, ValueError, KeyError):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_dev/stack", timeout=2) as response:
            other = json.loads(response.read())
        return (
            f"Port {port} is taken by the stack of another checkout: {other['checkout']} (pid {other['pid']}). {ways}"
        )
    return f"Port {port} is not free ({error.strerror}). `lsof -i :{port}` tells who has it. {ways}"


@contextlib.contextmanager
def _signals(stack: Stack) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the stack in order; a second one does not wait for running requests."""

    def handle(_number: int, _frame: object) -> None:
        if not stack.serving or stack.stopping:
            raise KeyboardInterrupt
        stack.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # nothing may interrupt the cleaning up


def _is_interactive() -> bool:
    """Whether single keys can be read: a terminal, with this process in its foreground."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # stdin is closed, or is no controlling terminal
        return False


@contextlib.contextmanager
def _keys(stack: Stack, screen: Screen) -> Iterator[None]:
    """Reads single keys in a thread; the terminal is put back afterwards."""
    import termios  # noqa: PLC0415  not on every system
    import tty  # noqa: PLC0415

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    actions: dict[str, Callable[[], None]] = {"r": stack.reset, "m": stack.run_schedules, "q": stack.stop}

    def read() -> None:
        while key := os.read(terminal, 1):
            try:
                actions.get(key.decode(errors="replace"), lambda: None)()
            except Exception as error:  # noqa: BLE001  a failed reset must not end the reading of keys
                screen.line(f"   {type(error).__name__}: {error}")

    tty.setcbreak(terminal)
    threading.Thread(target=read, name="keys", daemon=True).start()
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
