"""A Messages API on loopback that plays an assistant: the real client, and the real broker, talk to it.

Turns of the main conversation (the client's, or a root model's that the broker asks) are played in order; each is a dict (:func:`tool`, :func:`say`) or a function of the conversation so far that returns
one. What comes from the broker (sub-calls) is answered apart, and so is what the client asks on the side (titles, token counts). Every request is
kept, so that a test can see what left the machine.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def tool(name: str, **arguments: Any) -> dict[str, Any]:
    """A turn that calls one tool."""
    return {"type": "tool_use", "name": name, "input": arguments}


def say(text: str) -> dict[str, Any]:
    """A turn of text, the last one of a conversation."""
    return {"type": "text", "text": text}


@dataclass(frozen=True)
class Conversation:
    """The messages of a request, as an assistant would see them."""

    messages: list[dict[str, Any]]

    def results(self) -> list[dict[str, Any]]:
        """Every tool result: its text and whether it is an error."""
        lists = (message["content"] for message in self.messages if isinstance(message["content"], list))
        blocks = (block for content in lists for block in content if block.get("type") == "tool_result")
        return [{"text": flat(block.get("content")), "error": bool(block.get("is_error"))} for block in blocks]

    @property
    def text(self) -> str:
        return "\n".join(flat(message["content"]) for message in self.messages)

    @property
    def session(self) -> str:
        """The name that ``start`` printed last."""
        return re.findall(r"(?m)^session: (\S+)$", "\n".join(result["text"] for result in self.results()))[-1]


def flat(content: Any) -> str:
    """The text in a message's content."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(flat(part) for part in content)
    if isinstance(content, dict):
        return flat(content.get("text") or content.get("content") or "")
    return ""


@dataclass
class Api:
    """The server. ``main`` and ``sub`` are the requests of the client's conversation and of the broker."""

    turns: list[Any] = field(default_factory=list)
    sub_answer: str = "It is a known kind of failure."
    main: list[dict[str, Any]] = field(default_factory=list)
    sub: list[dict[str, Any]] = field(default_factory=list)
    side: list[dict[str, Any]] = field(default_factory=list)
    played: int = 0
    defects: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def conversation(self) -> Conversation:
        """The longest state of the main conversation."""
        return Conversation(self.main[-1]["messages"])

    def answer(self, request: dict[str, Any], agent: str) -> dict[str, Any]:
        """Choose what to say."""
        with self._lock:
            if "claude-cli" not in agent and not request.get("tools"):
                self.sub.append(request)
                return say(self.sub_answer)
            if not request.get("tools") or request.get("max_tokens", 0) <= 1:
                self.side.append(request)
                return say("ok")
            self.main.append(request)
            if self.played >= len(self.turns):
                return say("The script has ended.")
            turn = self.turns[self.played]
            self.played += 1
            try:
                return turn(Conversation(request["messages"])) if callable(turn) else turn
            except Exception as exc:  # noqa: BLE001 - reported by the test, instead of a client that tries for minutes
                self.defects.append(f"turn {self.played}: {type(exc).__name__}: {exc}")
                self.played = len(self.turns)
                return say("The script is broken.")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: Api

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._json({"data": [], "has_more": False})

    def do_HEAD(self) -> None:
        self._json({})

    def do_POST(self) -> None:
        request = json.loads(self._body() or b"{}")
        path = self.path.split("?")[0]
        if path.endswith("/count_tokens"):
            self._json({"input_tokens": len(json.dumps(request)) // 4})
        elif path == "/v1/messages":
            block = self.api.answer(request, self.headers.get("user-agent", ""))
            self._message(request, block)
        else:
            self._json({})

    def _body(self) -> bytes:
        if (self.headers.get("transfer-encoding") or "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def _json(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _message(self, request: dict[str, Any], block: dict[str, Any]) -> None:
        number = len(self.api.main) + len(self.api.sub) + len(self.api.side)
        if block["type"] == "tool_use":
            block = {**block, "id": f"toolu_{number:022d}"}
        stop = "tool_use" if block["type"] == "tool_use" else "end_turn"
        usage = {"input_tokens": len(json.dumps(request)) // 4 + 1, "output_tokens": len(json.dumps(block)) // 4 + 1}
        message = {
            "id": f"msg_{number:024d}", "type": "message", "role": "assistant", "model": request["model"],
            "content": [block], "stop_reason": stop, "stop_sequence": None, "usage": usage,
        }  # fmt: skip
        if request.get("stream"):
            self._stream(message, block)
        else:
            self._json(message)

    def _stream(self, message: dict[str, Any], block: dict[str, Any]) -> None:
        empty = {**block, "text": ""} if block["type"] == "text" else {**block, "input": {}}
        delta = (
            {"type": "text_delta", "text": block["text"]}
            if block["type"] == "text"
            else {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        )
        events = [
            {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
            {"type": "content_block_start", "index": 0, "content_block": empty},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
                "usage": message["usage"],
            },
            {"type": "message_stop"},
        ]
        body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
