"""What a developer reads first: ticks while the stack starts, then links, keys and lines to paste."""

from __future__ import annotations

import json
import platform

from dev.request_log import Screen
from dev.seed import PASSWORD, DemoUser, common_model
from tollgate.catalog.loader import Catalog


def welcome(screen: Screen) -> str:
    return tick(screen, "Python", platform.python_version(), None)


def tick(screen: Screen, name: str, text: str, seconds: float | None) -> str:
    """One finished step of the start."""
    took = "" if seconds is None else f"{seconds:6.1f} s"
    return f" {screen.paint('green', '✓')} {name:<17}{text:<82}{took}".rstrip()


def ready(
    screen: Screen,
    url: str,
    users: tuple[DemoUser, ...],
    catalog: Catalog,
    seconds: float,
    *,
    online: bool,
    stripe: str,
) -> str:
    """Everything there is to know once requests are answered; every link in it works.

    `online`: something is elsewhere, so this does need a network. `stripe`: what stands for it.
    """
    demo = users[0]
    needs = "No AWS account or Docker needed." if online else "No AWS account, Docker or network needed."
    model = common_model(catalog, users)
    body = {
        "model": model,
        "max_tokens": 64,
        "stream": True,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    lines = [
        f"   {needs:<91}{screen.paint('bold', f'ready in {seconds:.1f} s')}",
        "",
        f"   Gateway   {screen.paint('bold', f'{url:<43}')}  API docs  {url}/docs",
        f"   Billing   {url + '/_dev/billing':<43}  Mailbox   {url}/_dev/mail",
        f"   Notices   {url + '/_dev/notices'}",
        f"   Stripe    {stripe}",
        "",
        *(_user_line(screen, user) for user in users),
        f"   Password of both: {PASSWORD}    (sign in with POST /auth/login)",
        "",
        f"   curl -N {url}/v1/messages -H 'x-api-key: {demo.api_key}' \\",
        "     -H 'anthropic-version: 2023-06-01' -H 'content-type: application/json' \\",
        f"     -d '{json.dumps(body, separators=(',', ':'))}'",
        "",
        f'   Python       Anthropic(base_url="{url}", api_key="{demo.api_key}")',
        f"   Claude Code  ANTHROPIC_BASE_URL={url} ANTHROPIC_AUTH_TOKEN={demo.api_key} ANTHROPIC_MODEL={model} claude",
        "",
    ]
    return "\n".join(lines)


def watching(screen: Screen, *, interactive: bool) -> str:
    """The last line before the request log."""
    keys = "r reset data · m run the scheduled function · q quit" if interactive else "Ctrl-C stops everything"
    return screen.paint("dim", f"   Watching functions/ and layers/. {keys}")


def _user_line(screen: Screen, user: DemoUser) -> str:
    quota = "no quota" if user.plan.quota_tokens is None else f"{user.plan.quota_tokens:,}"
    used = f"{user.settled_tokens:>9,} of {quota:>9}"
    return f"   {user.email:<19} {user.plan.name:<11} {used}  {screen.paint('cyan', user.api_key)}"
