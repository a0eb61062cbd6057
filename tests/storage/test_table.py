"""How values are spelled in the table, and what counts as an outage of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO

import botocore.session
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ParamValidationError,
    ReadTimeoutError,
)

from tests.support.moto_table import set_credentials
from tollgate.domain.errors import StoreUnavailableError
from tollgate.storage.table import (
    attributes,
    epoch_seconds,
    from_epoch_seconds,
    hot_path_client,
    plain,
    store_outages,
    user_pk,
)


def an_error(code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "text"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "GetItem",
    )


def test_values_come_back_as_they_were_stored() -> None:
    values: dict[str, str | int | bool] = {
        "text": "a",
        "empty": "",
        "whole": 7,
        "negative": -3,
        "zero": 0,
        "yes": True,
        "no": False,
    }
    assert plain(attributes(**values)) == values


def test_a_large_amount_stays_exact() -> None:
    assert plain(attributes(cost_picousd=10**37 + 1))["cost_picousd"] == 10**37 + 1


def test_none_leaves_the_attribute_out() -> None:
    assert attributes(name=None) == {}


def test_nested_values_are_read() -> None:
    item = {"list": {"L": [{"N": "1"}, {"NULL": True}]}, "map": {"M": {"a": {"BOOL": True}}}}
    assert plain(item) == {"list": [1, None], "map": {"a": True}}


def test_a_kind_that_this_table_never_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="kind B"):
        plain({"blob": {"B": b"x"}})


def test_a_stored_fraction_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        plain({"tokens": {"N": "1.5"}})


def test_instants_are_stored_in_whole_seconds_of_utc() -> None:
    instant = datetime(2026, 11, 20, 12, 0, 0, 999_999, tzinfo=UTC)
    assert from_epoch_seconds(epoch_seconds(instant)) == instant.replace(microsecond=0)


def test_a_users_key_contains_the_tenant() -> None:
    assert user_pk("main", "u1") == "TENANT#main#USER#u1"


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="https://dynamodb"),
        ConnectTimeoutError(endpoint_url="https://dynamodb"),
        ReadTimeoutError(endpoint_url="https://dynamodb"),
        an_error("InternalServerError", 500),
        an_error("AnythingElse", 503),
        an_error("ThrottlingException", 400),
        an_error("ProvisionedThroughputExceededException", 400),
    ],
)
def test_silence_and_overload_are_an_outage_that_tells_no_detail(error: Exception) -> None:
    with pytest.raises(StoreUnavailableError) as refusal, store_outages():
        raise error
    assert refusal.value.__cause__ is error
    assert "dynamodb" not in refusal.value.public_message.lower()


@pytest.mark.parametrize(
    "error",
    [
        an_error("ConditionalCheckFailedException", 400),
        an_error("ValidationException", 400),
        an_error("AccessDeniedException", 400),
        ParamValidationError(report="wrong"),
    ],
)
def test_answers_and_our_own_mistakes_are_not_called_an_outage(error: Exception) -> None:
    with pytest.raises(type(error)), store_outages():
        raise error


def test_the_client_gives_up_in_seconds_and_tries_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)
    config = hot_path_client("eu-west-1", session=botocore.session.get_session()).meta.config
    assert (config.connect_timeout, config.read_timeout) == (1, 1)  # type: ignore[attr-defined]
    assert config.retries == {"mode": "standard", "total_max_attempts": 3}  # type: ignore[attr-defined]


def test_a_request_goes_out_as_it_was_made_and_names_botocore(monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)
    session = botocore.session.get_session()
    client = hot_path_client("eu-west-1", session=session)
    sent: list[AWSPreparedRequest] = []

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, HTTPHeaders(), _Body(b"{}"))

    client.meta.events.register("before-send.dynamodb", answer)  # type: ignore[arg-type]  # its answer counts
    client.get_item(TableName="", Key={})  # botocore's own check would refuse the empty name
    [request] = sent
    assert request.body == b'{"TableName": "", "Key": {}}'
    assert session.user_agent() in str(request.headers["User-Agent"])  # Powertools adds its own name


class _Body(BytesIO):
    """An answer's body as botocore reads it."""

    def stream(self) -> Iterator[bytes]:
        yield self.read()
