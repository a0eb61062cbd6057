"""Makes in the engines what CloudFormation would make on AWS: user pool, app client, table, queues, secrets.

Idempotent."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.exceptions import ClientError

from dev.template import ACCOUNT_ID, REGION, Queue, Template, queue_arn

if TYPE_CHECKING:
    from types_boto3_cognito_idp import CognitoIdentityProviderClient
    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_ssm import SSMClient

TABLE_NAME: Final = "tollgate-local"
_STAND_IN: Final = """\
import json, os, urllib.request

def handler(event, context):
    with urllib.request.urlopen(os.environ["URL"], json.dumps(event).encode(), timeout=5) as answer:
        return json.load(answer)
"""


@dataclass(slots=True)
class Remembered:
    """What must be the same after a restart; kept as JSON in the state folder, readable by its owner only."""

    pool_id: str = ""
    client_id: str = ""
    pool_definition: str = ""
    """Digest of the template's pool and client; another one means a new pool."""
    pepper: str = ""
    fake_upstream_key: str = ""
    fake_stripe_key: str = ""
    fake_stripe_webhook_secret: str = ""
    synced_plans: str = ""
    """Digest of the catalog that the double of Stripe was brought to."""
    api_keys: dict[str, str] = field(default_factory=dict)
    """E-mail address to the demo user's API key."""

    @classmethod
    def load(cls, path: Path) -> Remembered:
        """What was saved last; fresh secrets where nothing was."""
        saved: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        found = cls(**{name: value for name, value in saved.items() if name in cls.__slots__})
        found.pepper = found.pepper or base64.b64encode(secrets.token_bytes(32)).decode()
        found.fake_upstream_key = found.fake_upstream_key or f"sk-ant-fake-{secrets.token_urlsafe(24)}"
        found.fake_stripe_key = found.fake_stripe_key or f"sk_test_fake{secrets.token_hex(16)}"
        found.fake_stripe_webhook_secret = found.fake_stripe_webhook_secret or f"whsec_{secrets.token_hex(24)}"
        return found

    def save(self, path: Path) -> None:
        """Replaces the file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".tmp")
        scratch.touch(mode=0o600)
        scratch.write_text(json.dumps(asdict(self), indent=1))
        os.replace(scratch, path)


class Cloud:
    """Clients of the engines. Each has its own session: boto3's default one is not safe to share between threads."""

    def __init__(self, ministack_url: str, table_url: str) -> None:
        self.ministack_url = ministack_url
        self.table_url = table_url

    def cognito(self) -> CognitoIdentityProviderClient:
        return _session().client("cognito-idp", endpoint_url=self.ministack_url)

    def functions(self) -> Any:  # noqa: ANN401  no types are installed for this one
        return _session().client("lambda", endpoint_url=self.ministack_url)

    def ssm(self) -> SSMClient:
        return _session().client("ssm", endpoint_url=self.ministack_url)

    def sqs(self) -> Any:  # noqa: ANN401  no types are installed for this one
        return _session().client("sqs", endpoint_url=self.ministack_url)

    def dynamodb(self) -> DynamoDBClient:
        return _session().client("dynamodb", endpoint_url=self.table_url)


def ensure_pool(cognito: CognitoIdentityProviderClient, template: Template, remembered: Remembered) -> None:
    """The template's user pool and app client; fills in their ids. An edited definition gets a new pool."""
    _, pool = template.properties("AWS::Cognito::UserPool")
    _, client = template.properties("AWS::Cognito::UserPoolClient", {"UserPool": "pool"})
    definition = hashlib.sha256(json.dumps([pool, client], sort_keys=True).encode()).hexdigest()
    if remembered.pool_definition == definition and _pool_exists(cognito, remembered):
        return
    # CloudFormation's names are the API's own but for the pool's; what the API does not take is set apart there, too.
    taken = set(cognito.meta.service_model.operation_model("CreateUserPool").input_shape.members)  # type: ignore[union-attr]
    arguments = {name: value for name, value in pool.items() if name in taken}
    created = cognito.create_user_pool(PoolName=pool["UserPoolName"], **arguments)
    remembered.pool_id = created["UserPool"]["Id"]
    client = {**client, "UserPoolId": remembered.pool_id}
    remembered.client_id = cognito.create_user_pool_client(**client)["UserPoolClient"]["ClientId"]
    remembered.pool_definition = definition


def ensure_triggers(cloud: Cloud, template: Template, url: str) -> None:
    """Stand-ins in the engine for the functions that the pool calls: each passes its event on to `url` + its name.

    The engine runs small functions by itself, but not on our layers; the stack runs the real one and answers.
    """
    _, pool = template.properties("AWS::Cognito::UserPool")
    names = re.findall(r"function:([\w-]+)", json.dumps(pool.get("LambdaConfig", {})))
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("index.py", _STAND_IN)
    client = cloud.functions()
    for name in names:
        with suppress(client.exceptions.ResourceNotFoundException):
            client.delete_function(FunctionName=name)  # it would call the port of the last start
        client.create_function(
            FunctionName=name,
            Runtime="python3.13",
            Role=f"arn:aws:iam::{ACCOUNT_ID}:role/local",
            Handler="index.handler",
            Code={"ZipFile": code.getvalue()},
            Timeout=5,
            Environment={"Variables": {"URL": url + name}},
        )


def ensure_user(cognito: CognitoIdentityProviderClient, pool_id: str, email: str, password: str) -> str:
    """A confirmed user with this password; its id (`sub`)."""
    try:
        attributes = cognito.admin_get_user(UserPoolId=pool_id, Username=email)["UserAttributes"]
    except cognito.exceptions.UserNotFoundException:
        created = cognito.admin_create_user(
            UserPoolId=pool_id,
            Username=email,
            MessageAction="SUPPRESS",
            UserAttributes=[{"Name": "email", "Value": email}, {"Name": "email_verified", "Value": "true"}],
        )
        attributes = created["User"]["Attributes"]
        cognito.admin_set_user_password(UserPoolId=pool_id, Username=email, Password=password, Permanent=True)
    return next(attribute["Value"] for attribute in attributes if attribute["Name"] == "sub")


def delete_other_users(cognito: CognitoIdentityProviderClient, pool_id: str, keep: set[str]) -> None:
    """Removes everybody whose id is not kept."""
    for page in cognito.get_paginator("list_users").paginate(UserPoolId=pool_id):
        for user in page["Users"]:
            if user["Username"] not in keep:
                cognito.admin_delete_user(UserPoolId=pool_id, Username=user["Username"])


def ensure_secret(ssm: SSMClient, name: str, value: str) -> None:
    """A SecureString, as `docs/operations.md` has it stored on AWS."""
    ssm.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True)


def ensure_table(dynamodb: DynamoDBClient, template: Template) -> None:
    """The template's table; an existing one is taken as it is."""
    _, table = template.properties("AWS::DynamoDB::Table")
    wanted = ("BillingMode", "AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "LocalSecondaryIndexes")
    try:
        dynamodb.create_table(TableName=TABLE_NAME, **{name: table[name] for name in wanted if name in table})
    except dynamodb.exceptions.ResourceInUseException:
        return
    if ttl := table.get("TimeToLiveSpecification"):
        dynamodb.update_time_to_live(TableName=TABLE_NAME, TimeToLiveSpecification=ttl)


def queue_url(cloud: Cloud, queue: Queue) -> str:
    """Where functions find the queue; the engine's port is another one after each start."""
    return f"{cloud.ministack_url}/{ACCOUNT_ID}/{queue.name}"


def ensure_queues(cloud: Cloud, queues: Iterable[Queue]) -> None:
    """The template's queues, dead-letter ones first; what waits in an existing one goes on waiting."""
    client = cloud.sqs()
    for queue in sorted(queues, key=lambda queue: queue.dead_letters is not None):
        attributes = dict(queue.attributes)
        if queue.dead_letters is not None:
            redrive = {"deadLetterTargetArn": queue_arn(queue.dead_letters), "maxReceiveCount": queue.max_receive_count}
            attributes["RedrivePolicy"] = json.dumps(redrive)
        try:
            client.get_queue_url(QueueName=queue.name)
            client.set_queue_attributes(QueueUrl=queue_url(cloud, queue), Attributes=attributes)
        except client.exceptions.QueueDoesNotExist:
            client.create_queue(QueueName=queue.name, Attributes=attributes)


def empty_queues(cloud: Cloud, queues: Iterable[Queue]) -> None:
    """Throws away whatever waits."""
    client = cloud.sqs()
    for queue in queues:
        client.purge_queue(QueueUrl=queue_url(cloud, queue))


def empty_table(dynamodb: DynamoDBClient, template: Template) -> None:
    """The same table without its items."""
    dynamodb.delete_table(TableName=TABLE_NAME)
    ensure_table(dynamodb, template)


def _pool_exists(cognito: CognitoIdentityProviderClient, remembered: Remembered) -> bool:
    try:
        cognito.describe_user_pool_client(UserPoolId=remembered.pool_id, ClientId=remembered.client_id)
    except ClientError:
        return False
    return True


def _session() -> boto3.session.Session:
    return boto3.session.Session(aws_access_key_id="local", aws_secret_access_key="local", region_name=REGION)
