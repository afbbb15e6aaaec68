"""A Messages API on loopback that takes a fixed time for every answer, with a prompt cache: what sub-calls are measured against.

    python messages_server.py DELAY_SECONDS    # prints its port

Runs as a process of its own, so that it takes no time from whom it serves. An entry of the prompt cache is readable from when the
answer that wrote it began.
"""

import asyncio
import json
import sys

TOKENS_OUT = 20
CHARS_PER_TOKEN = 4
MIN_CACHEABLE = 1024


class Cache:
    """Which prefixes are readable."""

    def __init__(self):
        self.readable = set()

    def usage(self, body):
        """Return the usage of a request and the key to make readable when it is answered."""
        key, marked, total = None, 0, 0
        for text, is_marked in parts(body):
            total += len(text) // CHARS_PER_TOKEN
            if is_marked and total >= MIN_CACHEABLE:
                marked, key = total, (key, text)
            elif marked == 0:
                key = (key, text)
        used = {"output_tokens": TOKENS_OUT, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
        used["input_tokens"] = max(1, total - marked)
        if marked:
            name = "cache_read_input_tokens" if key in self.readable else "cache_creation_input_tokens"
            used[name] = marked
        return used, key if marked else None


def parts(body):
    """Yield the texts of a request in order, and whether a cache entry ends with each."""
    system = body.get("system") or []
    blocks = [{"text": system}] if isinstance(system, str) else list(system)
    for message in body["messages"]:
        content = message["content"]
        blocks += [{"text": content}] if isinstance(content, str) else content
    for block in blocks:
        yield block.get("text", ""), "cache_control" in block


def answer(body, usage):
    """Return ``(content type, bytes)``: events where the request asks for a stream, else a document."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "stop_reason": None}
    message |= {"stop_sequence": None, "content": [], "usage": {**usage, "output_tokens": 1}}
    done = {"stop_reason": "end_turn", "stop_sequence": None}
    if not body.get("stream"):
        whole = message | done | {"content": [{"type": "text", "text": "an answer"}], "usage": usage}
        return "application/json", json.dumps(whole).encode()
    events = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "an answer"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": done, "usage": {"output_tokens": TOKENS_OUT}},
        {"type": "message_stop"},
    ]
    lines = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return "text/event-stream", "".join(lines).encode()


async def serve(delay):
    cache = Cache()

    async def client(reader, writer):
        while head := await request_head(reader):
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            body = json.loads(await reader.readexactly(length))
            usage, entry = cache.usage(body)
            await asyncio.sleep(delay)
            if entry is not None:
                cache.readable.add(entry)
            kind, raw = answer(body, usage)
            writer.write(
                f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nrequest-id: req_1\r\ncontent-length: {len(raw)}\r\n\r\n".encode()
                + raw
            )
        writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0, backlog=1024, limit=2**22)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def request_head(reader):
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
