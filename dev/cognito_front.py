"""Stands between the functions and ministack's Cognito, which takes any code and sends none.

Codes are made, mailed to the local mailbox, checked and refused here, in Cognito's words; everything else passes
through. Nothing in functions/ or layers/ knows of it: they were only given another endpoint.

https://docs.aws.amazon.com/cognito-user-identity-pools/latest/APIReference/API_ConfirmSignUp.html (and its sisters)
"""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

from dev.mailbox import Mail, Mailbox

Json = dict[str, Any]

WRONG_TRIES: Final = 5
"""So many wrong codes end a code; a new one must be asked for."""
UPSTREAM_SECONDS: Final = 20
TRIGGERS_PATH: Final = "/_triggers/"
"""Where the engine's stand-ins for the pool's Lambda functions call back (`provision.ensure_triggers`)."""
_TARGET: Final = "AWSCognitoIdentityProviderService."
_TYPE: Final = "application/x-amz-json-1.1"


class Purpose(Enum):
    """What a code is for: subject, words before the code, and how long Cognito lets it live."""

    SIGN_UP = ("Confirm your e-mail address", "Your confirmation code is", 24 * 3600)
    PASSWORD = ("Reset your password", "Your password reset code is", 3600)

    @property
    def subject(self) -> str:
        return self.value[0]

    @property
    def words(self) -> str:
        return self.value[1]

    @property
    def lifetime_seconds(self) -> int:
        return self.value[2]


class CognitoError(Exception):
    """A refusal in Cognito's words; `code` is its name in the API."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class _Code:
    text: str
    expires_at: float
    wrong_tries: int = 0


class Codes:
    """The codes that are out. One per user and purpose: a new one ends the one before. Safe to use from threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._codes: dict[tuple[str, Purpose], _Code] = {}
        self._lock = threading.Lock()

    def issue(self, user_id: str, purpose: Purpose) -> tuple[str, float]:
        """(six digits, when they end in epoch seconds)."""
        text = f"{secrets.randbelow(1_000_000):06}"
        expires_at = self._clock() + purpose.lifetime_seconds
        with self._lock:
            self._codes[user_id, purpose] = _Code(text, expires_at)
        return text, expires_at

    def check(self, user_id: str, purpose: Purpose, given: object) -> None:
        """Raises CognitoError unless this is the user's code; it stays good until `forget`."""
        with self._lock:
            code = self._codes.get((user_id, purpose))
            if code is None or self._clock() >= code.expires_at:
                raise CognitoError("ExpiredCodeException", "Invalid code provided, please request a code again.")
            if code.wrong_tries >= WRONG_TRIES:
                raise CognitoError(
                    "TooManyFailedAttemptsException", "Attempt limit exceeded, please try after some time."
                )
            if given != code.text:
                code.wrong_tries += 1
                raise CognitoError("CodeMismatchException", "Invalid verification code provided, please try again.")

    def forget(self, user_id: str, purpose: Purpose) -> None:
        """The code was used."""
        with self._lock:
            self._codes.pop((user_id, purpose), None)

    def clear(self) -> None:
        with self._lock:
            self._codes.clear()


@dataclass(frozen=True, slots=True)
class _User:
    user_id: str
    email: str
    status: str
    email_verified: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = _TYPE

    @property
    def good(self) -> bool:
        return self.status == 200

    @property
    def document(self) -> Json:
        found: Json = json.loads(self.body or b"{}")
        return found


class CognitoFront:
    """A Cognito endpoint on loopback. `start`, then `url`; `close` at the end."""

    def __init__(
        self,
        engine_url: str,
        pool_id: str,
        mailbox: Mailbox,
        clock: Callable[[], float] = time.time,
        run_trigger: Callable[[str, bytes], bytes | None] = lambda name, event: None,
    ) -> None:
        """`clock`: epoch seconds. `run_trigger`: a function's name and event in, its result out, or None."""
        self._engine = urlsplit(engine_url)
        self._pool_id = pool_id
        self._mailbox = mailbox
        self._run_trigger = run_trigger
        self.codes = Codes(clock)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="cognito-front", daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> _Answer:
        """What Cognito would answer."""
        if path.startswith(TRIGGERS_PATH):
            result = self._run_trigger(path.removeprefix(TRIGGERS_PATH), body)
            return _Answer(500, b"") if result is None else _Answer(200, result)
        operation = headers.get("x-amz-target", "").removeprefix(_TARGET)
        request = _Request(method, path, headers, body)
        try:
            match operation:
                case "SignUp":
                    return self._sign_up(request)
                case "ResendConfirmationCode":
                    return self._resend(request)
                case "ForgotPassword":
                    return self._forgot(request)
                case "ConfirmSignUp":
                    return self._confirm(request)
                case "ConfirmForgotPassword":
                    return self._reset(request)
                case "GlobalSignOut" | "AdminUserGlobalSignOut":
                    # The engine compares whole seconds: tokens of this very second would live on.
                    time.sleep(1 - time.time() % 1)
            return self._pass(request)
        except CognitoError as error:
            document = {"__type": error.code, "message": str(error)}
            return _Answer(400, json.dumps(document).encode())

    def _sign_up(self, request: _Request) -> _Answer:
        answer = self._pass(request)
        if answer.good and not answer.document.get("UserConfirmed"):
            self._mail(self._find(str(answer.document["UserSub"])), Purpose.SIGN_UP)
        return answer

    def _resend(self, request: _Request) -> _Answer:
        user = self._find(request.document.get("Username"))
        if user is not None and user.status != "UNCONFIRMED":
            raise CognitoError("InvalidParameterException", "User is already confirmed.")
        answer = self._pass(request)
        if answer.good:
            self._mail(user, Purpose.SIGN_UP)
        return answer

    def _forgot(self, request: _Request) -> _Answer:
        user = self._find(request.document.get("Username"))
        if user is not None and not user.email_verified:
            message = "Cannot reset password for the user as there is no registered/verified email or phone_number"
            raise CognitoError("InvalidParameterException", message)
        answer = self._pass(request)
        if answer.good:
            self._mail(user, Purpose.PASSWORD)
        return answer

    def _confirm(self, request: _Request) -> _Answer:
        user = self._find(request.document.get("Username"))
        if user is None:
            return self._pass(request)  # the engine tells no strangers apart, like Cognito
        if user.status != "UNCONFIRMED":
            message = f"User cannot be confirmed. Current status is {user.status}"
            raise CognitoError("NotAuthorizedException", message)
        self.codes.check(user.user_id, Purpose.SIGN_UP, request.document.get("ConfirmationCode"))
        answer = self._pass(request)
        if answer.good:
            self.codes.forget(user.user_id, Purpose.SIGN_UP)
            # Cognito knows now that the address is theirs; the engine does not draw that conclusion.
            attributes = [{"Name": "email_verified", "Value": "true"}]
            self._call("AdminUpdateUserAttributes", {"Username": user.user_id, "UserAttributes": attributes})
        return answer

    def _reset(self, request: _Request) -> _Answer:
        user = self._find(request.document.get("Username"))
        if user is None:
            return self._pass(request)
        self.codes.check(user.user_id, Purpose.PASSWORD, request.document.get("ConfirmationCode"))
        answer = self._pass(request)
        if answer.good:
            self.codes.forget(user.user_id, Purpose.PASSWORD)
        return answer

    def _mail(self, user: _User | None, purpose: Purpose) -> None:
        """Nobody is told that there is nobody to mail to."""
        if user is None:
            return
        code, expires_at = self.codes.issue(user.user_id, purpose)
        sent_at = datetime.fromtimestamp(expires_at - purpose.lifetime_seconds, UTC)
        self._mailbox.deliver(
            Mail(
                to=user.email,
                subject=purpose.subject,
                text=f"{purpose.words} {code}.",
                code=code,
                sent_at=sent_at,
                expires_at=datetime.fromtimestamp(expires_at, UTC),
            )
        )

    def _find(self, name: object) -> _User | None:
        """The user of this id or address."""
        answer = self._call("AdminGetUser", {"Username": name})
        if not answer.good:
            return None
        found = answer.document
        attributes = {entry["Name"]: entry.get("Value", "") for entry in found["UserAttributes"]}
        return _User(
            user_id=attributes["sub"],
            email=attributes.get("email", ""),
            status=found["UserStatus"],
            email_verified=attributes.get("email_verified") == "true",
        )

    def _call(self, operation: str, body: Json) -> _Answer:
        headers = {"x-amz-target": _TARGET + operation, "content-type": _TYPE}
        data = json.dumps({"UserPoolId": self._pool_id, **body}).encode()
        return self._pass(_Request("POST", "/", headers, data))

    def _pass(self, request: _Request) -> _Answer:
        connection = http.client.HTTPConnection(
            self._engine.hostname or "", self._engine.port, timeout=UPSTREAM_SECONDS
        )
        try:
            kept = {name: value for name, value in request.headers.items() if name not in _OF_THE_CONNECTION}
            connection.request(request.method, request.path, request.body, kept)
            response = connection.getresponse()
            return _Answer(response.status, response.read(), response.headers.get("content-type", _TYPE))
        finally:
            connection.close()


_OF_THE_CONNECTION: Final = {"host", "connection", "content-length", "expect", "transfer-encoding", "accept-encoding"}


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Json:
        """The body; whatever is no JSON object is the engine's to refuse."""
        try:
            found = json.loads(self.body or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def _handler_for(front: CognitoFront) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes: the second would wait 40 ms for an ACK

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                answer = front.answer(self.command, self.path, headers, self.rfile.read(length))
            except (OSError, http.client.HTTPException):
                answer = _Answer(503, b'{"__type": "InternalErrorException", "message": "the engine does not answer"}')
            self.send_response(answer.status)
            self.send_header("content-type", answer.content_type)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = _serve  # noqa: N815  the library's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Bodies of these requests are passwords; nothing about them is printed."""

    return Handler
