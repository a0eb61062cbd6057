"""The local stack as a whole: what is started in which order, what is told to the developer, how it ends.

Engines start first and side by side, then what they hold is made, then users are seeded while the data plane's first
process starts. `stack.json` is written last: whoever sees it can call.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from dev import banner, pages
from dev.authorizer import TokenChecker
from dev.code_watch import CodeWatch
from dev.cognito_front import TRIGGERS_PATH, CognitoFront
from dev.engines import (
    ROOT,
    Engine,
    find_dynoxide,
    install_engines,
    start_dynoxide,
    start_fake_claude,
    start_ministack,
)
from dev.events import schedule_event
from dev.gateway import DRAIN_SECONDS, Gateway, server_for
from dev.lambda_host import FunctionHost, Journey
from dev.local_stripe import LocalStripe, StripeChoice
from dev.mailbox import Mail, Mailbox
from dev.notice_sink import SENDER, NoticeSink
from dev.pages import Page
from dev.processes import Processes
from dev.provision import (
    TABLE_NAME,
    Cloud,
    Remembered,
    delete_other_users,
    empty_queues,
    empty_table,
    ensure_pool,
    ensure_queues,
    ensure_secret,
    ensure_table,
    ensure_triggers,
    ensure_user,
    queue_url,
)
from dev.queue_poller import QueuePoller
from dev.request_log import RequestLog, Screen, loud_text, parse_line
from dev.runtime_api import Buffered, Failed
from dev.schedule import next_run_at
from dev.seed import PASSWORD, DemoUser, common_model, seed_user, wanted_users
from dev.template import REGION, Function, Queue, Schedule, Template, TemplateError
from tollgate.catalog.loader import load_catalog
from tollgate.storage.table import Table

ANTHROPIC_URL: Final = "https://api.anthropic.com"
WATCH_SECONDS: Final = 0.7
FIRST_CALL_SECONDS: Final = 1.0
"""Before billing starts: the first line that somebody pastes has the machine for itself."""
LOUD_LEVELS: Final = frozenset({"WARNING", "WARN", "ERROR", "CRITICAL", "FATAL"})


@dataclass(frozen=True, slots=True)
class Options:
    """What the developer chose."""

    port: int
    base_dir: Path
    """Holds stack.json, the lock, state and logs."""
    upstream_url: str | None
    """Another upstream than the fake Claude."""
    upstream_key: str | None
    stripe: StripeChoice | None
    """Stripe itself instead of the double."""
    fake_script: str
    parameters: Mapping[str, str]
    """Template parameters that replace their defaults."""
    concurrency: int
    longest_seconds: int | None
    """Shortens every function's timeout to this, to see soon what happens after one."""
    one_clock: bool
    """Functions live by the clock of the double of Stripe."""

    @property
    def state_dir(self) -> Path:
        return self.base_dir / "state"

    @property
    def log_dir(self) -> Path:
        return self.base_dir / "logs"

    @property
    def clock_file(self) -> Path | None:
        return self.state_dir / "clock" if self.one_clock else None

    @property
    def stack_file(self) -> Path:
        return self.base_dir / "stack.json"


class Stack:
    """One local stack. `start`, then `serve` until it is asked to `stop`; `close` always."""

    def __init__(self, options: Options, listener: socket.socket, screen: Screen) -> None:
        self._options = options
        self._listener = listener
        self._screen = screen
        self._begun_at = time.monotonic()
        shutil.rmtree(options.log_dir, ignore_errors=True)  # of the stack before
        options.log_dir.mkdir(parents=True)
        self._log = RequestLog(screen)
        self._processes = Processes()
        self._sink = NoticeSink(self._on_notice)
        told = {"OperatorWebhookUrl": self._sink.webhook_url, "MailFrom": SENDER}
        self._template = Template(ROOT / "template.yaml", {"AllowTestKeys": "true", **told, **options.parameters})
        self._remembered_file = options.state_dir / "remembered.json"
        self._remembered = Remembered.load(self._remembered_file)
        self._hosts: dict[str, FunctionHost] = {}
        self._pollers: list[QueuePoller] = []
        self._stripe = LocalStripe(
            options.stripe,
            self._remembered,
            gateway_url=self.url,
            state_dir=options.state_dir,
            log_dir=options.log_dir,
            say=self._say,
            clock_file=options.clock_file,
        )
        self._mailbox = Mailbox(self._on_mail)
        self._front: CognitoFront | None = None
        self._users: tuple[DemoUser, ...] = ()
        self._started = False
        self.serving = False
        self._stopping = threading.Event()
        self._log_files = threading.Lock()
        self.failure: str | None = None
        """Why the stack had to end by itself."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    # Start.

    def start(self) -> None:
        """Starts everything but the gateway. Raises EngineError, TemplateError."""
        with ThreadPoolExecutor(6, thread_name_prefix="start") as pool:
            try:
                self._start(pool)
            except BaseException:
                # Whatever the other steps wait for must end, or leaving the pool would wait for them.
                self.stop()
                self._processes.stop_all()
                raise
        self._remembered.save(self._remembered_file)

    def _start(self, pool: ThreadPoolExecutor) -> None:
        ministack = pool.submit(self._step, "sign-in, secrets", self._start_ministack)
        table = pool.submit(self._step, "table", self._start_table_engine, ministack.result)
        claude = pool.submit(self._step, "Claude", self._start_upstream)
        catalog = pool.submit(load_catalog, self._catalog_name)
        self._cloud = Cloud(ministack.result().url, table.result().url)
        made = pool.submit(self._make_table)
        ensure_pool(self._cloud.cognito(), self._template, self._remembered)
        self._front = CognitoFront(
            self._cloud.ministack_url, self._remembered.pool_id, self._mailbox, run_trigger=self._run_trigger
        )
        self._front.start()
        self._sink.start()
        ensure_triggers(self._cloud, self._template, self._front.url + TRIGGERS_PATH)
        self._upstream_url, upstream_key = claude.result()
        self._local = self._template.local(self._bindings(), longest_seconds=self._options.longest_seconds)
        stored = pool.submit(self._put_secrets, upstream_key)
        self._catalog = catalog.result()
        made.result()
        stored.result()
        self._make_hosts()
        warm = pool.submit(self._step, "function", self._prewarm)
        self._step("demo data", self._seed)
        warm.result()

    def _step(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401  any step's result
        begun_at = time.monotonic()
        result = work(*arguments)
        self._screen.line(banner.tick(self._screen, name, self._describe(name), time.monotonic() - begun_at))
        return result

    def _describe(self, step: str) -> str:
        match step:
            case "sign-in, secrets":
                return "Cognito and SSM by ministack, codes checked and mailed to the local mailbox"
            case "table":
                return f"DynamoDB by {'dynoxide' if find_dynoxide() else 'ministack'}"
            case "Claude" if self._options.upstream_url is None:
                return "built-in fake, streams with exact token counts   (real: export ANTHROPIC_API_KEY=…)"
            case "Claude":
                without = "" if self._options.upstream_key else "   (with a made-up key: no ANTHROPIC_API_KEY is set)"
                return f"{self._options.upstream_url}{without}"
            case "demo data":
                return ", ".join(f"{user.email} on {user.plan.name}" for user in self._users)
            case _ if self._started:
                return "the Claude function waits for its first request"
            case _:
                return "the Claude function did NOT start, as said above; mend it and it starts anew"

    def _start_ministack(self) -> Engine:
        install_engines()
        engine = start_ministack(self._processes, self._options.state_dir, self._options.log_dir)
        self._watch(engine)
        return engine

    def _start_table_engine(self, ministack: Callable[[], Engine]) -> Engine:
        binary = find_dynoxide()
        if binary is None:
            return ministack()
        engine = start_dynoxide(self._processes, binary, self._options.state_dir, self._options.log_dir)
        self._watch(engine)
        return engine

    def _start_upstream(self) -> tuple[str, str]:
        """(base URL, API key) of what stands for Claude."""
        key = self._options.upstream_key or self._remembered.fake_upstream_key
        if self._options.upstream_url is not None:
            return self._options.upstream_url, key
        engine = start_fake_claude(self._processes, key, self._options.fake_script, self._options.log_dir)
        self._watch(engine)
        return engine.url, key

    def _watch(self, engine: Engine) -> None:
        def wait() -> None:
            status = engine.child.wait()
            if not self._stopping.is_set():
                self.stop(
                    f"{engine.name} ended by itself (status {status}); see {self._options.log_dir}/{engine.name}.log"
                )

        threading.Thread(target=wait, name=f"watch-{engine.name}", daemon=True).start()

    def _make_table(self) -> None:
        ensure_table(self._cloud.dynamodb(), self._template)

    @property
    def _catalog_name(self) -> str:
        return self._options.parameters.get("Catalog", "default")

    @cached_property
    def _queues(self) -> tuple[Queue, ...]:
        """Those whose messages a function is given, and where these end up."""
        local = self._template.local({})
        names = {name for one in local.mappings for name in (one.queue, local.queues[one.queue].dead_letters)}
        return tuple(queue for name, queue in local.queues.items() if name in names)

    def _bindings(self) -> dict[str, str]:
        remembered = self._remembered
        urls = {queue.logical_id: queue_url(self._cloud, queue) for queue in self._queues}
        return {"Table": TABLE_NAME, "UserPool": remembered.pool_id, "UserPoolClient": remembered.client_id, **urls}

    def _put_secrets(self, upstream_key: str) -> None:
        function = self._data_plane()
        ssm = self._cloud.ssm()
        ensure_secret(ssm, function.environment["KEY_PEPPER_PARAMETER"], self._remembered.pepper)
        ensure_secret(ssm, function.environment["UPSTREAM_API_KEY_PARAMETER"], upstream_key)
        stripe = self._stripe.secrets
        for variable, value in (
            ("STRIPE_SECRET_KEY_PARAMETER", stripe.key),
            ("STRIPE_WEBHOOK_SECRET_PARAMETER", stripe.webhook),
            ("OPERATOR_WEBHOOK_SECRET_PARAMETER", self._sink.secret),
        ):
            for name in {each.environment.get(variable) for each in self._local.functions.values()} - {None, ""}:
                ensure_secret(ssm, str(name), value)

    def _data_plane(self) -> Function:
        function = self._local.url_function
        if function is None:
            raise TemplateError(
                "template.yaml has no function with a FunctionUrlConfig: there is nothing to stream from"
            )
        return function

    def _make_hosts(self) -> None:
        assert self._front is not None
        overrides = {
            "UPSTREAM_BASE_URL": self._upstream_url,
            "AWS_ENDPOINT_URL_DYNAMODB": self._cloud.table_url,
            "AWS_ENDPOINT_URL_SSM": self._cloud.ministack_url,
            "AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER": self._front.url,
            "AWS_ENDPOINT_URL_SQS": self._cloud.ministack_url,
            "AWS_ENDPOINT_URL_SESV2": self._sink.url,
            "COGNITO_JWKS_URL": self._jwks_url(),
            **self._stripe.overrides(),
        }
        for name, function in self._local.functions.items():
            self._hosts[name] = FunctionHost(
                function,
                overrides,
                self._processes,
                self._on_line,
                concurrency=self._options.concurrency,
                clock_file=self._options.clock_file,
            )

    def _jwks_url(self) -> str:
        return f"{self._cloud.ministack_url}/{self._remembered.pool_id}/.well-known/jwks.json"

    def _prewarm(self) -> None:
        self._started = self._hosts[self._data_plane().logical_id].prewarm()

    def _seed(self) -> None:
        cognito = self._cloud.cognito()
        table = Table(self._cloud.dynamodb(), TABLE_NAME)
        users = []
        for wanted in wanted_users(self._catalog):
            user_id = ensure_user(cognito, self._remembered.pool_id, wanted.email, PASSWORD)
            users.append(seed_user(table, self._catalog, self._remembered, wanted, user_id))
        self._users = tuple(users)
        self._log.names = {user.user_id: user.label for user in users}

    def _write_stack_file(self) -> None:
        scratch = self._options.stack_file.with_suffix(".tmp")
        scratch.touch(mode=0o600)
        scratch.write_text(json.dumps(self._description(), indent=1) + "\n")
        os.replace(scratch, self._options.stack_file)

    def _description(self) -> dict[str, Any]:
        """stack.json: what another program needs to use this stack."""
        demo, nearly = ({"email": user.email, "password": PASSWORD, "api_key": user.api_key} for user in self._users)
        pool_id = self._remembered.pool_id
        return {
            "pid": os.getpid(),
            "gateway_url": self.url,
            "demo": demo,
            "near_quota": nearly,
            "cognito": {
                "issuer": f"https://cognito-idp.{REGION}.amazonaws.com/{pool_id}",
                "jwks_url": self._jwks_url(),
                "client_id": self._remembered.client_id,
            },
            "dynamodb": {"endpoint_url": self._cloud.table_url, "table": TABLE_NAME},
            "fake_claude_url": self._upstream_url if self._options.upstream_url is None else None,
            "fake_stripe_url": self._stripe.url,
        }

    # Serve.

    async def serve(self, on_ready: Callable[[], None]) -> None:
        """Answers requests until `stop`; stack.json and `on_ready` follow once connections are accepted."""
        gateway = Gateway(self._local, self._hosts, TokenChecker(self._jwks_url()), self._log, self._control)
        server = server_for(gateway)
        tasks = [asyncio.create_task(self._run_schedule(schedule)) for schedule in self._local.schedules]
        tasks.append(asyncio.create_task(self._watch_code()))
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        if server.started:
            self.serving = True
            self._write_stack_file()
            on_ready()
            threading.Thread(target=self._start_billing, name="billing", daemon=True).start()
        while not self.stopping and not serving.done():
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        if gateway.open_requests:
            self._screen.line(f" {gateway.open_requests} requests are running: waiting {DRAIN_SECONDS} s for them")
        server.should_exit = True
        await serving
        self._close_hosts()  # nothing that still waits for a function may hold up the end of the event loop

    def banner(self) -> None:
        """Prints where everything is and what to paste."""
        seconds = time.monotonic() - self._begun_at
        elsewhere = self._options.upstream_url is not None or self._options.stripe is not None
        text = banner.ready(
            self._screen,
            self.url,
            self._users,
            self._catalog,
            seconds,
            online=elsewhere,
            stripe=self._stripe.describe(),
        )
        self._screen.line(text)

    async def _control(self, method: str, path: str) -> dict[str, Any] | Page | None:
        if method == "POST":
            return await asyncio.to_thread(self._do, path)
        if path in pages.NAMES:
            return pages.html(path)
        match method, path:
            case "GET", "openapi.json":
                return pages.openapi_document()
            case "GET", "mail.json":
                return self._mailbox.document()
            case "GET", "notices.json":
                return self._sink.document()
            case "GET", "billing.json":
                model = common_model(self._catalog, self._users)
                return await asyncio.to_thread(self._stripe.document, self._users, model)
            case "GET", "stack":
                return {"pid": os.getpid(), "checkout": str(ROOT)}
            case "GET", "functions":
                return {"processes": [row for host in self._hosts.values() for row in host.processes()]}
        return None

    def _do(self, path: str) -> dict[str, Any] | None:
        match path.split("/"):
            case ["schedules"]:
                return {"runs": [self.run_now(item) for item in self._local.schedules]}
            case ["notices", "deliver"]:
                return next((self.run_now(item) for item in self._local.schedules if _is_minutely(item)), None)
            case ["recycle"]:
                for host in self._hosts.values():
                    host.recycle()
                return {}
            case ["reset"]:
                self.reset()
                return {}
            case ["billing", "advance", seconds] if seconds.isdecimal() and self._stripe.url is not None:
                return self._stripe.advance(int(seconds))
        return None

    # What a developer may ask for while it runs.

    def run_schedules(self) -> None:
        """Runs every scheduled function now."""
        for schedule in self._local.schedules:
            self.run_now(schedule)

    def run_now(self, schedule: Schedule, *, silently: bool = False) -> dict[str, Any]:
        """Runs a scheduled function once and says what came of it; `silently`: only if anything did."""
        begun_at = time.monotonic()
        event = schedule_event(schedule, datetime.now(UTC), str(uuid4()))
        result: dict[str, Any] = {"schedule": schedule.name}
        for part in self._hosts[schedule.function].invoke(event, Journey(str(uuid4()))):
            if isinstance(part, Buffered):
                result["result"] = json.loads(part.payload or b"null")
            elif isinstance(part, Failed):
                result["error"] = f"{part.error_type}: {part.message}"
        if silently and "error" not in result and not any(_figures(result)):
            return result
        label = self._local.functions[schedule.function].label
        shown = result.get("error") or json.dumps(result.get("result"))
        seconds = time.monotonic() - begun_at
        self._screen.line(f" {datetime.now().astimezone():%H:%M:%S} SCHEDULE {label}  {shown}  {seconds * 1000:.0f} ms")
        return result

    def _run_trigger(self, name: str, event: bytes) -> bytes | None:
        """Runs a function that Cognito calls; what goes wrong is in its log."""
        result: bytes | None = None
        host = next((host for host in self._hosts.values() if host.function.name == name), None)
        for part in () if host is None else host.invoke(event, Journey(str(uuid4()))):
            result = part.payload if isinstance(part, Buffered) else None
        return result

    def reset(self) -> None:
        """Puts the demo data back to the start; ids and keys stay the same."""
        empty_table(self._cloud.dynamodb(), self._template)
        delete_other_users(self._cloud.cognito(), self._remembered.pool_id, {user.user_id for user in self._users})
        empty_queues(self._cloud, self._queues)
        self._stripe.close_shop()
        self._mailbox.clear()
        self._sink.clear()
        self._seed()
        for host in self._hosts.values():
            host.recycle()
        threading.Thread(target=self._open_shop, kwargs={"emptied": True}, name="open-shop", daemon=True).start()
        self._say("data reset")

    async def _run_schedule(self, schedule: Schedule) -> None:
        while (due := next_run_at(schedule.expression, datetime.now(UTC))) is not None:
            # Short sleeps: a laptop that was closed meanwhile must not be late by its own absence.
            while datetime.now(UTC) < due:
                await asyncio.sleep(min(30.0, max(0.05, (due - datetime.now(UTC)).total_seconds())))
            await asyncio.to_thread(self.run_now, schedule, silently=_is_minutely(schedule))

    async def _watch_code(self) -> None:
        watch = CodeWatch(ROOT / "functions", ROOT / "layers")
        template = CodeWatch(ROOT / "template.yaml")
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if await asyncio.to_thread(template.changed):
                self._screen.line(self._screen.paint("yellow", "   template.yaml changed: start again to use it"))
            if changed := await asyncio.to_thread(watch.changed):
                await asyncio.to_thread(self._reload, changed)

    def _reload(self, changed: list[Path]) -> None:
        """New processes from now on; running requests end with the code they began with."""
        for host in self._hosts.values():
            host.recycle()
        names = ", ".join(path.name for path in changed[:3]) + (" …" if len(changed) > 3 else "")
        self._screen.line(f" {datetime.now().astimezone():%H:%M:%S} {names} changed: functions start anew")
        self._prewarm()

    def _start_billing(self) -> None:
        """What only billing needs, after all else: nobody waits for it who does not buy."""
        if self._stopping.wait(FIRST_CALL_SECONDS):
            return
        try:
            ensure_queues(self._cloud, self._queues)
            engine = self._stripe.start(self._processes)
        except (OSError, BotoCoreError, ClientError) as error:
            self._say(f"billing does not work: {error}")
            return
        if engine is not None:
            self._watch(engine)
        for mapping in self._local.mappings:
            queue, host = self._local.queues[mapping.queue], self._hosts[mapping.function]
            poller = QueuePoller(mapping, queue, queue_url(self._cloud, queue), self._cloud.sqs, host.invoke, self._say)
            poller.start()
            self._pollers.append(poller)
        self._open_shop()

    def _open_shop(self, *, emptied: bool = False) -> None:
        def save() -> None:
            self._remembered.save(self._remembered_file)

        self._stripe.open_shop(self._catalog, self._catalog_name, save, emptied=emptied)

    def _say(self, text: str) -> None:
        self._screen.line(f" {datetime.now().astimezone():%H:%M:%S} {text}")

    def _on_mail(self, mail: Mail) -> None:
        stamp = f"{datetime.now().astimezone():%H:%M:%S}"
        self._screen.line(f" {stamp} MAIL {mail.to}  {mail.text}  {self._screen.paint('dim', self.url + '/_dev/mail')}")

    def _on_notice(self, line: str) -> None:
        stamp = f"{datetime.now().astimezone():%H:%M:%S}"
        self._screen.line(f" {stamp} NOTICE {line}  {self._screen.paint('dim', self.url + '/_dev/notices')}")

    def _on_line(self, function: Function, journey: Journey | None, text: str) -> None:
        """Keeps every line in a file; shows those that somebody should see."""
        with self._log_files, (self._options.log_dir / f"{function.label}.log").open("a") as file:
            file.write(text + "\n")
        event = parse_line(text)
        if event is None and text.startswith("{"):
            return  # metrics
        if event is None or str(event.get("level", "")).upper() in LOUD_LEVELS:
            shown = text if event is None else loud_text(event)
            self._screen.line(self._screen.paint("yellow", f"   {function.label}: ") + shown)

    # Stop.

    def stop(self, failure: str | None = None) -> None:
        """Asks `serve` to end; may be called from anywhere, and twice."""
        self.failure = self.failure or failure
        self._stopping.set()

    def close(self) -> None:
        """Ends every process and removes stack.json; nothing is left running when this returns."""
        self._stopping.set()
        with suppress(FileNotFoundError):
            self._options.stack_file.unlink()
        for poller in self._pollers:
            poller.stop()
        self._close_hosts()
        if self._front is not None:
            self._front.close()
        self._sink.close()
        self._processes.stop_all()
        self._stripe.close()
        self._listener.close()

    def _close_hosts(self) -> None:
        for host in self._hosts.values():
            host.close()


def _is_minutely(schedule: Schedule) -> bool:
    """The delivery of notices. A line a minute about nothing would hide the lines that matter."""
    return schedule.expression == "rate(1 minute)"


def _figures(result: dict[str, Any]) -> list[int]:
    """What a run counted."""
    counted = result.get("result") or {}
    return [value for value in counted.values() if isinstance(value, int) and not isinstance(value, bool)]
