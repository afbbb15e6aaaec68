"""The control socket's messages: the channel's frames once more, with a document as payload.

A request is ``{"op", "version"}`` and a JSON object of arguments, followed for ``exec`` by a second frame with the code. The daemon answers with any
number of ``{"event": "progress"}`` frames and exactly one ``{"event": "result" | "error"}``, whose payload is the document; ``final`` answers with
``{"event": "data"}`` frames before it. Kept free of heavy imports: every command passes through here.
"""

from __future__ import annotations

import json

from rlm_sandbox.wire.frames import FrameDecoder, encode

TYPE_CHECKING = False  # as typing has it, see the package
if TYPE_CHECKING:
    from typing import Any

CONTROL_VERSION = 1
"""Raised when a request or an event changes meaning. A client of another version is told to restart the daemon."""

CHUNK = 4 * 1024 * 1024
"""Bytes of one payload; documents and answers that are longer come in several frames."""


def request(op: str, arguments: dict[str, Any], body: bytes | None = None) -> bytes:
    """Return the bytes of a request."""
    raw = json.dumps(arguments).encode()
    head = encode({"op": op, "version": CONTROL_VERSION, "body": body is not None}, raw)
    return head if body is None else head + encode({"part": "body"}, body)


def event(kind: str, document: Any) -> bytes:
    """Return the bytes of one event with a JSON document, cut into frames where it is long."""
    return pieces(kind, json.dumps(document).encode())


def pieces(kind: str, raw: bytes) -> bytes:
    """Return ``raw`` as one or more frames of ``kind``; ``more`` is true on all but the last."""
    cuts = range(0, max(len(raw), 1), CHUNK)
    return b"".join(encode({"event": kind, "more": at + CHUNK < len(raw)}, raw[at : at + CHUNK]) for at in cuts)


class EventReader:
    """Joins the frames of events: bytes in, ``(kind, raw payload)`` out."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """Return the events that ``data`` completes."""
        self._decoder.feed(data)
        events = []
        for header, payload in self._decoder:
            self._parts.append(payload)
            if not header.get("more"):
                events.append((str(header.get("event")), b"".join(self._parts)))
                self._parts = []
        return events
