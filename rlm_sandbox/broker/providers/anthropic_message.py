"""One message of the Messages API, put together from its events and believed only when it is whole.

Token counts arrive in two events, the later one cumulative; a count that is missing, negative or no integer makes the
answer unusable, because an account cannot be settled on it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rlm_sandbox.broker.providers.answer import Answer, Count, Strict
from rlm_sandbox.broker.types import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.broker.types import ProviderFault


class _Usage(Strict):
    input_tokens: Count
    output_tokens: Count
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


class _Head(Strict):
    id: str = ""
    model: str
    usage: Any = None
    """Checked at the end: what is no usage is an answer that cannot be counted, and not one that is worth asking for again."""


class _Block(Strict):
    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class _Delta(Strict):
    type: str
    text: str | None = None
    partial_json: str | None = None


class _End(Strict):
    stop_reason: str | None = None


class _Whole(_Head):
    content: list[_Block]
    stop_reason: str | None = None


class Message(Answer):
    """Collects events. ``reply()`` is the only way to an answer, and raises unless the message ended well."""

    def __init__(self, *, where: str, request_id: str | None, blocks: bool = False) -> None:
        super().__init__(where=where, request_id=request_id, blocks=blocks)
        self._tools: list[tuple[_Block, list[str]]] = []
        self._head: _Head | None = None
        self._usage: dict[str, Any] = {}
        self.complete = False
        """True once the message has ended."""

    def event(self, data: Any) -> bool:
        """Take in one event; True for the one that begins the message. Raises ValidationError or ProviderFault."""
        kind = data.get("type") if isinstance(data, dict) else None
        if kind == "message_start":
            self._begin(_Head.model_validate(data.get("message")))
            self._usage.pop("output_tokens", None)  # a guess at this point; the message_delta event has the count
            return True
        if kind == "content_block_start":
            self._block(_Block.model_validate(data.get("content_block")))
        elif kind == "content_block_delta":
            delta = _Delta.model_validate(data.get("delta"))
            if delta.type == "text_delta":
                self._text.append(delta.text or "")
            elif delta.type == "input_json_delta" and self._tools:
                self._tools[-1][1].append(delta.partial_json or "")
        elif kind == "message_delta":
            self._stop = _End.model_validate(data.get("delta")).stop_reason or self._stop
            self._count(data.get("usage"))
        elif kind == "message_stop":
            self.complete = True
        elif kind == "error":
            raise self._broken(data.get("error"))
        return False

    def whole(self, data: Any) -> None:
        """Take in a message that came in one piece, from a server that does not stream."""
        if isinstance(data, dict) and data.get("type") == "error":
            raise self._broken(data.get("error"))
        message = _Whole.model_validate(data)
        self._begin(message)
        for block in message.content:
            self._block(block)
        self._stop = message.stop_reason
        self.complete = True

    def reply(self) -> Reply:
        """Return the answer, or raise the fault that it amounts to."""
        if self._head is None or not self.complete:
            raise self.cut_off()
        usage = self._valid_usage()
        text = self.told(self._tool_uses(), usage, refused=self._stop == "refusal")
        raw = _Whole(
            id=self._head.id,
            model=self._head.model,
            usage=self._usage,
            content=[_Block(type="text", text=text)],
            stop_reason=self._stop,
        ).model_dump_json()
        return Reply(text, usage, self._head.model, self._stop, self._request_id, raw.encode())

    def _tool_uses(self) -> Iterator[tuple[str, str, str]]:
        for block, pieces in self._tools:
            yield block.name or "", block.id or "", "".join(pieces) or json.dumps(block.input or {})

    def _begin(self, head: _Head) -> None:
        self._head = head
        self._count(head.usage)

    def _block(self, block: _Block) -> None:
        if block.type == "text":
            self._text.append(block.text or "")
        elif block.type == "tool_use":
            self._tools.append((block, []))
        elif block.type in {"thinking", "redacted_thinking"}:
            self._thought = True

    def _count(self, usage: Any) -> None:
        """Merge counts: a later event repeats or completes an earlier one. Checked as a whole at the end."""
        if isinstance(usage, dict):
            self._usage.update({name: usage[name] for name in _Usage.model_fields if usage.get(name) is not None})

    def _valid_usage(self) -> Usage:
        try:
            counts = _Usage.model_validate(self._usage)
        except ValidationError as error:
            names = ", ".join(sorted({str(detail["loc"][0]) for detail in error.errors(include_input=False)}))
            raise self._uncounted(names) from error
        return Usage(
            counts.input_tokens,
            counts.output_tokens,
            counts.cache_read_input_tokens or 0,
            counts.cache_creation_input_tokens or 0,
        )

    def _broken(self, error: Any) -> ProviderFault:
        kind = error.get("type") if isinstance(error, dict) else None
        return self._broken_off(str(kind), overloaded=kind == "overloaded_error")
