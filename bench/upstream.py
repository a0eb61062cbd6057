"""An upstream that costs next to nothing: it plays a recorded stream, in a process of its own.

A request whose text holds `events=100 pace_ms=10` gets that many deltas at that pace; `pace_ms=0` sends all at once.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

TEXT = "bench events={events} pace_ms={pace_ms}"
_WANTED = re.compile(rb"events=(\d+) pace_ms=(\d+)")
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nrequest-id: req_bench\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def event(name: str, **data: object) -> bytes:
    """One SSE event in the exact form of Claude's API."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data}, separators=(',', ':'))}\n\n".encode()


def recorded(events: int) -> tuple[bytes, list[bytes], bytes]:
    """(opening, deltas, closing) of an answer of `events` deltas, one output token each."""
    usage = {"input_tokens": 12, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1}
    message: dict[str, object] = {
        "id": "msg_bench",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    opening = (
        event("message_start", message=message)
        + event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        + event("ping")
    )
    delta = event("content_block_delta", index=0, delta={"type": "text_delta", "text": " word"})
    closing = (
        event("content_block_stop", index=0)
        + event("message_delta", delta={"stop_reason": "end_turn"}, usage={**usage, "output_tokens": events})
        + event("message_stop")
    )
    return opening, [delta] * events, closing


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            await _answer(writer, body)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _answer(writer: asyncio.StreamWriter, body: bytes) -> None:
    found = _WANTED.search(body)
    events, pace_ms = (int(found[1]), int(found[2])) if found else (10, 0)
    opening, deltas, closing = recorded(events)
    writer.write(_HEAD + _chunk(opening))
    if pace_ms:
        for delta in deltas:
            await asyncio.sleep(pace_ms / 1000)
            writer.write(_chunk(delta))
    else:
        writer.write(b"".join(map(_chunk, deltas)))
    writer.write(_chunk(closing) + b"0\r\n\r\n")
    await writer.drain()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    # The parent holds our standard input; when it is gone, so are we.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
