"""The floor: the least that a function can do to pass a stream through. No identity, no ledger, no usage, no log."""

from __future__ import annotations

import http.client
import json
import os
from typing import Any
from urllib.parse import urlsplit

from tollgate_runtime import Response

_UPSTREAM = urlsplit(os.environ["UPSTREAM_BASE_URL"])
_connection = http.client.HTTPConnection(_UPSTREAM.hostname or "", _UPSTREAM.port, timeout=60)


def handler(event: dict[str, Any], context: object) -> object:
    body = event["body"].encode()
    json.loads(body)
    _connection.request("POST", event["rawPath"], body, {"content-type": "application/json"})
    answer = _connection.getresponse()
    with Response(answer.status, {"content-type": answer.headers["content-type"]}) as response:
        while chunk := answer.read1(65536):
            response.write(chunk)
    return response.result()
