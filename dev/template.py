"""Reads template.yaml: the only truth about functions, routes, environment, schedules, queues, table and pool.

Understands the part of CloudFormation and SAM that this template uses; whatever else it meets where a value is needed,
it refuses by name instead of guessing. Physical ids that exist only at run time (table, pool, client) are given as
`bindings`; other references become plausible names and ARNs, as nothing local looks behind them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import yaml

try:
    from yaml import CSafeLoader as SafeLoader  # ten times as fast, where PyYAML was built with libyaml
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

REGION: Final = "us-east-1"
ACCOUNT_ID: Final = "000000000000"
STACK_NAME: Final = "tollgate-local"

_QUEUE: Final = "AWS::SQS::Queue"
_QUEUE_ATTRIBUTES: Final = (
    "VisibilityTimeout",
    "MessageRetentionPeriod",
    "DelaySeconds",
    "ReceiveMessageWaitTimeSeconds",
)
_MAPPING_PROPERTIES: Final = {
    "BatchSize",
    "Enabled",
    "FunctionResponseTypes",
    "MaximumBatchingWindowInSeconds",
    "Queue",
    "ScalingConfig",  # one poller serves each mapping here, which is less than any bound it can name
}
_NO_VALUE: Final = object()
_PSEUDO: Final[dict[str, object]] = {
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT_ID,
    "AWS::StackName": STACK_NAME,
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
    "AWS::NoValue": _NO_VALUE,
}

Json = dict[str, Any]


class TemplateError(Exception):
    """template.yaml holds something that the local stack cannot follow; the message says where and what."""


@dataclass(frozen=True, slots=True)
class Cors:
    """Cross-origin rules; empty means nothing is allowed."""

    allow_origins: tuple[str, ...]
    allow_methods: tuple[str, ...]
    allow_headers: tuple[str, ...]
    expose_headers: tuple[str, ...]
    allow_credentials: bool
    max_age_seconds: int | None


@dataclass(frozen=True, slots=True)
class JwtAuthorizer:
    """An HTTP API authorizer; `audience` is compared with `aud`, or with `client_id` where a token has no `aud`."""

    name: str
    issuer: str
    audience: tuple[str, ...]
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the HTTP API; `path` may hold `{name}` and, last, `{name+}`."""

    method: str
    path: str
    function: str
    authorizer: JwtAuthorizer | None

    @property
    def key(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class FunctionUrl:
    """A function's own address."""

    streams: bool
    cors: Cors | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a function runs by itself, and with what event."""

    name: str
    function: str
    expression: str
    input: str


@dataclass(frozen=True, slots=True)
class Queue:
    """An SQS queue; a message received more than `max_receive_count` times moves to `dead_letters`, if there is one."""

    logical_id: str
    attributes: Mapping[str, str]
    """As CreateQueue takes them, without the redrive policy."""
    dead_letters: str | None
    """Logical id."""
    max_receive_count: int

    @property
    def name(self) -> str:
        return f"{STACK_NAME}-{self.logical_id}"

    @property
    def arn(self) -> str:
        return queue_arn(self.logical_id)


@dataclass(frozen=True, slots=True)
class QueueMapping:
    """A queue whose messages a function is given in batches."""

    name: str
    function: str
    queue: str
    """Logical id."""
    batch_size: int
    window_seconds: int
    """How long a batch may wait for more messages."""
    reports_failures: bool
    """Whether the function says which messages failed; otherwise a batch succeeds or fails as a whole."""


@dataclass(frozen=True, slots=True)
class Function:
    """A Lambda function as its process needs to know it."""

    logical_id: str
    code: Path
    handler: str
    runtime: str
    timeout_seconds: int
    memory_mb: int
    layers: tuple[Path, ...]
    environment: Mapping[str, str]
    log_format: str
    url: FunctionUrl | None

    @property
    def label(self) -> str:
        """How logs call it: its folder."""
        return self.code.name

    @property
    def name(self) -> str:
        return f"{STACK_NAME}-{self.logical_id}"

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{REGION}:{ACCOUNT_ID}:function:{self.name}"


@dataclass(frozen=True, slots=True)
class LocalTemplate:
    """Everything the local stack takes from the template."""

    functions: Mapping[str, Function]
    routes: tuple[Route, ...]
    api_cors: Cors | None
    schedules: tuple[Schedule, ...]
    queues: Mapping[str, Queue] = field(default_factory=dict)
    mappings: tuple[QueueMapping, ...] = ()

    @property
    def url_function(self) -> Function | None:
        """The one function behind a function URL: it gets every path that is no route of the HTTP API."""
        found = [function for function in self.functions.values() if function.url is not None]
        if len(found) > 1:
            raise TemplateError("two functions have a FunctionUrlConfig; one port can stand for one of them only")
        return found[0] if found else None


class Template:
    """The parsed file. Nothing is resolved before it is asked for, since some names exist only at run time."""

    def __init__(self, path: Path, parameters: Mapping[str, str] | None = None) -> None:
        """`parameters` override defaults, as `sam deploy --parameter-overrides` would; an unknown one is an error."""
        self._root = path.parent
        try:
            self._tree: Json = yaml.load(path.read_text(), Loader=_CloudFormationLoader)
        except (OSError, yaml.YAMLError) as error:
            raise TemplateError(f"{path.name} cannot be read: {error}") from error
        self._parameters = self._parameter_values(parameters or {})

    def resources(self, kind: str) -> dict[str, Json]:
        """Logical id to unresolved properties of every resource of a type whose condition holds."""
        found: Json = self._tree.get("Resources", {})
        resolver = self._resolver({})
        return {
            name: body.get("Properties", {})
            for name, body in found.items()
            if body.get("Type") == kind and resolver.holds(body.get("Condition"), name)
        }

    def properties(self, kind: str, bindings: Mapping[str, str] | None = None) -> tuple[str, Json]:
        """(logical id, resolved properties) of the only resource of a type."""
        found = self.resources(kind)
        if len(found) != 1:
            raise TemplateError(f"expected one {kind}, found {len(found)}")
        [(name, properties)] = found.items()
        resolved: Json = self._resolver(bindings or {}).resolve(properties, name)
        return name, resolved

    def local(self, bindings: Mapping[str, str], *, longest_seconds: int | None = None) -> LocalTemplate:
        """Functions and how they are reached.

        `bindings`: logical id to physical id of what really exists. `longest_seconds` bounds every timeout.
        """
        resolver = self._resolver(bindings)
        shared: Json = resolver.resolve(self._tree.get("Globals", {}).get("Function", {}), "Globals.Function")
        layers = {
            name: self._folder(resolver.resolve(body.get("ContentUri"), name), name)
            for name, body in self.resources("AWS::Serverless::LayerVersion").items()
        }
        apis = self.resources("AWS::Serverless::HttpApi")
        api: Json = resolver.resolve(next(iter(apis.values()), {}), "HttpApi")
        queues = {name: _queue(name, resolver.resolve(body, name)) for name, body in self.resources(_QUEUE).items()}
        functions: dict[str, Function] = {}
        routes: list[Route] = []
        schedules: list[Schedule] = []
        mappings: list[QueueMapping] = []
        for name, body in self.resources("AWS::Serverless::Function").items():
            # A function's own lists come after the global ones, its own values replace them: SAM's merging rule.
            merged = _merge(shared, resolver.resolve(body, name))
            function = self._function(name, merged, layers)
            timeout_seconds = min(function.timeout_seconds, longest_seconds or function.timeout_seconds)
            functions[name] = replace(function, timeout_seconds=timeout_seconds)
            for event_name, event in merged.get("Events", {}).items():
                where = f"{name}.Events.{event_name}"
                match event.get("Type"):
                    case "HttpApi":
                        routes.append(_route(name, event.get("Properties", {}), api, where))
                    case "ScheduleV2":
                        schedules.append(_schedule(name, event.get("Properties", {}), event_name))
                    case "SQS":
                        mappings += _mappings(name, event.get("Properties", {}), event_name, queues)
                    case other:
                        raise TemplateError(f"{where}: the local stack knows no event of type {other}")
        return LocalTemplate(
            functions, tuple(routes), _cors(api.get("CorsConfiguration")), tuple(schedules), queues, tuple(mappings)
        )

    def _function(self, name: str, body: Json, layers: Mapping[str, Path]) -> Function:
        url = body.get("FunctionUrlConfig")
        if url is not None and url.get("AuthType") != "NONE":
            raise TemplateError(f"{name}: the local stack serves function URLs with AuthType NONE only")
        variables = body.get("Environment", {}).get("Variables", {})
        return Function(
            logical_id=name,
            code=self._folder(body.get("CodeUri"), name),
            handler=str(body.get("Handler", "")),
            runtime=str(body.get("Runtime", "python3.13")),
            timeout_seconds=int(body.get("Timeout", 3)),
            memory_mb=int(body.get("MemorySize", 128)),
            layers=tuple(layers[layer] for layer in body.get("Layers", []) if layer in layers),
            environment={key: _text(value) for key, value in variables.items()},
            log_format=str(body.get("LoggingConfig", {}).get("LogFormat", "Text")),
            url=None
            if url is None
            else FunctionUrl(url.get("InvokeMode") == "RESPONSE_STREAM", _cors(url.get("Cors"))),
        )

    def _folder(self, uri: object, where: str) -> Path:
        folder = self._root / str(uri)
        if not uri or not folder.is_dir():
            raise TemplateError(f"{where}: there is no folder {uri}")
        return folder

    def _resolver(self, bindings: Mapping[str, str]) -> _Resolver:
        return _Resolver(self._tree, self._parameters, bindings)

    def _parameter_values(self, overrides: Mapping[str, str]) -> dict[str, object]:
        declared: Json = self._tree.get("Parameters", {})
        if unknown := set(overrides) - set(declared):
            raise TemplateError(f"template.yaml has no parameter {', '.join(sorted(unknown))}")
        values: dict[str, object] = {}
        for name, body in declared.items():
            value = overrides.get(name, body.get("Default", ""))
            is_list = body.get("Type") == "CommaDelimitedList"
            values[name] = [part.strip() for part in str(value).split(",")] if is_list else value
        return values


class _Resolver:
    """Replaces intrinsic functions by values."""

    def __init__(self, tree: Json, parameters: Mapping[str, object], bindings: Mapping[str, str]) -> None:
        self._resources: Json = tree.get("Resources", {})
        self._conditions: Json = tree.get("Conditions", {})
        self._names = {**parameters, **_PSEUDO, **bindings}
        self._functions: dict[str, Callable[[Any, str], object]] = {
            "Ref": self._ref,
            "Fn::Sub": self._sub,
            "Fn::GetAtt": self._get_att,
            "Fn::If": self._if,
            "Fn::Join": lambda value, where: str(self.resolve(value[0], where)).join(
                map(str, self.resolve(value[1], where))
            ),
            "Fn::Split": lambda value, where: _text(self.resolve(value[1], where)).split(value[0]),
            "Fn::Select": lambda value, where: self.resolve(value[1], where)[int(self.resolve(value[0], where))],
            "Fn::Equals": lambda value, where: (
                _text(self.resolve(value[0], where)) == _text(self.resolve(value[1], where))
            ),
            "Fn::And": lambda value, where: all(self.resolve(part, where) for part in value),
            "Fn::Or": lambda value, where: any(self.resolve(part, where) for part in value),
            "Fn::Not": lambda value, where: not self.resolve(value[0], where),
            "Condition": self._condition,
        }

    def resolve(self, value: Any, where: str) -> Any:  # noqa: ANN401  a template value is whatever YAML holds
        """The value with every intrinsic function replaced; entries that become AWS::NoValue are left out."""
        if isinstance(value, list):
            return [item for item in (self.resolve(part, where) for part in value) if item is not _NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            [(name, argument)] = value.items()
            if name in self._functions and (name != "Condition" or isinstance(argument, str)):
                return self._functions[name](argument, where)
            if str(name).startswith("Fn::"):
                raise TemplateError(f"{where}: the local stack does not know {name}")
        resolved = {key: self.resolve(part, f"{where}.{key}") for key, part in value.items()}
        return {key: part for key, part in resolved.items() if part is not _NO_VALUE}

    def _ref(self, name: str, where: str) -> object:
        if name in self._names:
            return self._names[name]
        if name not in self._resources:
            raise TemplateError(f"{where}: !Ref {name} names nothing")
        # A layer is found again by its logical id, the rest only needs some physical name.
        layer = self._resources[name].get("Type") == "AWS::Serverless::LayerVersion"
        return name if layer else f"{STACK_NAME}-{name}"

    def _get_att(self, value: Any, where: str) -> object:  # noqa: ANN401
        name, _, attribute = value.partition(".") if isinstance(value, str) else (value[0], ".", value[1])
        if name not in self._resources:
            raise TemplateError(f"{where}: !GetAtt {name}.{attribute} names nothing")
        if self._resources[name].get("Type") == _QUEUE:  # its Ref is an address, which is bound at run time
            return queue_arn(name) if attribute == "Arn" else f"{STACK_NAME}-{name}"
        physical = self._ref(name, where)
        if attribute == "Arn" and self._resources[name].get("Type") == "AWS::Serverless::Function":
            return f"arn:aws:lambda:{REGION}:{ACCOUNT_ID}:function:{physical}"  # as `Function.arn`
        return f"arn:aws:local:{REGION}:{ACCOUNT_ID}:{physical}" if attribute == "Arn" else f"{physical}-{attribute}"

    def _sub(self, value: Any, where: str) -> object:  # noqa: ANN401
        text, extra = (value, {}) if isinstance(value, str) else value

        def replaced(match: re.Match[str]) -> str:
            name = match[1]
            if name.startswith("!"):
                return "${" + name[1:] + "}"
            if name in extra:
                return _text(self.resolve(extra[name], where))
            return _text(self._get_att(name, where) if "." in name else self._ref(name, where))

        return re.sub(r"\$\{([^}]+)\}", replaced, text)

    def _if(self, value: Any, where: str) -> object:  # noqa: ANN401
        chosen: object = self.resolve(value[1] if self._condition(value[0], where) else value[2], where)
        return chosen

    def holds(self, condition: str | None, where: str) -> bool:
        """Whether a resource with this condition is made; one without always is."""
        return condition is None or self._condition(condition, where)

    def _condition(self, name: str, where: str) -> bool:
        if name not in self._conditions:
            raise TemplateError(f"{where}: there is no condition {name}")
        return bool(self.resolve(self._conditions[name], where))


class _CloudFormationLoader(SafeLoader):
    """YAML with the short forms of intrinsic functions."""


def _construct_intrinsic(loader: SafeLoader, suffix: str, node: yaml.Node) -> Json:
    value: object
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_CloudFormationLoader.add_multi_constructor("!", _construct_intrinsic)


def _merge(shared: Any, own: Any) -> Any:  # noqa: ANN401
    if isinstance(shared, dict) and isinstance(own, dict):
        return {key: _merge(shared.get(key), own.get(key)) for key in {**shared, **own}}
    if isinstance(shared, list) and isinstance(own, list):
        return shared + own
    return shared if own is None else own


def _route(function: str, event: Json, api: Json, where: str) -> Route:
    auth: Json = api.get("Auth", {})
    own: Json = event.get("Auth", {})
    chosen = own.get("Authorizer", auth.get("DefaultAuthorizer"))
    authorizer = None
    if chosen not in (None, "NONE"):
        if chosen not in auth.get("Authorizers", {}):
            raise TemplateError(f"{where}: there is no authorizer {chosen}")
        body = auth["Authorizers"][chosen]
        jwt = body.get("JwtConfiguration", {})
        if body.get("IdentitySource", "$request.header.Authorization") != "$request.header.Authorization":
            raise TemplateError(f"{where}: the local stack reads tokens from the Authorization header only")
        scopes = own.get("AuthorizationScopes", body.get("AuthorizationScopes", []))
        authorizer = JwtAuthorizer(chosen, str(jwt["issuer"]), tuple(map(str, jwt["audience"])), tuple(scopes))
    return Route(str(event.get("Method", "ANY")).upper(), str(event.get("Path", "/")), function, authorizer)


def queue_arn(logical_id: str) -> str:
    """What the stack's queue of this logical id is called on the whole of AWS."""
    return f"arn:aws:sqs:{REGION}:{ACCOUNT_ID}:{STACK_NAME}-{logical_id}"


def _queue(name: str, body: Json) -> Queue:
    if body.get("FifoQueue"):
        raise TemplateError(f"{name}: the local stack gives functions messages of standard queues only")
    redrive: Json = body.get("RedrivePolicy") or {}
    return Queue(
        logical_id=name,
        attributes={key: _text(body[key]) for key in _QUEUE_ATTRIBUTES if key in body},
        dead_letters=str(redrive["deadLetterTargetArn"]).rpartition(f":{STACK_NAME}-")[2] if redrive else None,
        max_receive_count=int(redrive.get("maxReceiveCount", 0)),
    )


def _mappings(function: str, event: Json, name: str, queues: Mapping[str, Queue]) -> list[QueueMapping]:
    """The mapping of an SQS event; none where it is switched off."""
    found = next((queue for queue in queues.values() if queue.arn == event.get("Queue")), None)
    if found is None:
        raise TemplateError(f"{function}.Events.{name}: there is no queue {event.get('Queue')}")
    if unknown := set(event) - _MAPPING_PROPERTIES:
        raise TemplateError(f"{function}.Events.{name}: the local stack does not know {', '.join(sorted(unknown))}")
    if _text(event.get("Enabled", True)) == "false":
        return []
    mapping = QueueMapping(
        name=name,
        function=function,
        queue=found.logical_id,
        batch_size=int(event.get("BatchSize", 10)),
        window_seconds=int(event.get("MaximumBatchingWindowInSeconds", 0)),
        reports_failures="ReportBatchItemFailures" in event.get("FunctionResponseTypes", ()),
    )
    return [mapping]


def _schedule(function: str, event: Json, event_name: str) -> Schedule:
    name = str(event.get("Name", event_name))
    return Schedule(name, function, str(event["ScheduleExpression"]), str(event.get("Input", "{}")))


def _cors(body: Json | bool | None) -> Cors | None:
    if not isinstance(body, dict):
        return None
    age = body.get("MaxAge")
    return Cors(
        allow_origins=tuple(body.get("AllowOrigins", ())),
        allow_methods=tuple(body.get("AllowMethods", ())),
        allow_headers=tuple(header.lower() for header in body.get("AllowHeaders", ())),
        expose_headers=tuple(body.get("ExposeHeaders", ())),
        allow_credentials=bool(body.get("AllowCredentials", False)),
        max_age_seconds=None if age is None else int(age),
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
