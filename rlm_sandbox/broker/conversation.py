"""A conversation with tools, as the broker carries it: the host's own root model is asked this way, a guest never is.

Messages, tools and content blocks have the shape of the Messages API, in JSON. A request's ``prompt`` is the list of messages and its ``tools`` the
list of tools; an answer's text is the list of the content blocks, of the types ``text`` and ``tool_use``. So everything between the host and the
adapter (bounds, caps, cache, ledger) treats a turn as it treats any call: a number of bytes that may leave, and an answer. Adapters that speak another
API translate here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Block = dict[str, Any]
Message = dict[str, Any]


def encode(value: Any) -> str:
    """Return the text form of messages, tools or blocks; one value has one text.

    Half a surrogate pair, which JSON can spell and a model may write, is no text that could be sent or kept: it becomes a question mark.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode()


def decode(text: str) -> list[dict[str, Any]]:
    """Return the value of a text that :func:`encode` made."""
    value: list[dict[str, Any]] = json.loads(text)
    return value


def blocks_of(content: Any) -> list[Block]:
    """Return a message's content as blocks."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def text_of(content: Any) -> str:
    """Return the text in a content, a tool result's included."""
    if isinstance(content, str):
        return content
    return "\n".join(str(block.get("text") or text_of(block.get("content") or "")) for block in content)


def answer(text: str) -> str:
    """Return an answer in the form of blocks, whatever form it has: a list of blocks stays, anything else is a text."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, list) and value and all(isinstance(item, dict) and "type" in item for item in value):
        return encode(
            [
                {"id": f"scripted_{number}", **item} if item["type"] == "tool_use" else item
                for number, item in enumerate(value)
            ]
        )
    return encode([{"type": "text", "text": text}])


def tool_use(name: str, ident: str, arguments: str) -> Block:
    """Return the block of a tool call whose arguments came as text; ``broken`` marks arguments that are no JSON object."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    block: Block = {"type": "tool_use", "id": ident, "name": name, "input": value if isinstance(value, dict) else {}}
    return block if isinstance(value, dict) else {**block, "broken": True}


def sent(messages: list[Message], *, mark: Block | None = None) -> list[Message]:
    """Return messages as the Messages API takes them; ``mark`` goes on the last block, up to which the provider caches."""
    clean = [
        {
            "role": message["role"],
            "content": [
                {name: part for name, part in block.items() if name != "broken"}
                for block in blocks_of(message["content"])
            ],
        }
        for message in messages
    ]
    if mark and clean:
        clean[-1]["content"][-1].update(mark)
    return clean


def cleaned(text: str, clean: Callable[[str], str]) -> str:
    """Return an encoded conversation with ``clean`` applied to each string in it."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, dict):
            return {name: walk(item) for name, item in value.items()}
        return value

    return encode(walk(json.loads(text)))


def to_chat(messages: list[Message]) -> list[Message]:
    """Translate messages for the Chat Completions API: tool calls and tool results stand apart from text there."""
    chat: list[Message] = []
    for message in messages:
        blocks = blocks_of(message["content"])
        text = "\n".join(block["text"] for block in blocks if block["type"] == "text")
        if message["role"] == "assistant":
            calls = [_call(block) for block in blocks if block["type"] == "tool_use"]
            chat.append({"role": "assistant", "content": text or None, **({"tool_calls": calls} if calls else {})})
            continue
        chat += [
            {"role": "tool", "tool_call_id": block["tool_use_id"], "content": text_of(block["content"])}
            for block in blocks
            if block["type"] == "tool_result"
        ]
        if text:
            chat.append({"role": "user", "content": text})
    return chat


def to_plain(messages: list[Message]) -> list[Message]:
    """Translate messages for a server that knows no tools: a call is its arguments, a result is what the user says."""
    return [
        {
            "role": message["role"],
            "content": "\n".join(
                json.dumps(block["input"]) if block["type"] == "tool_use" else text_of([block])
                for block in blocks_of(message["content"])
            ),
        }
        for message in messages
    ]


def _call(block: Block) -> dict[str, Any]:
    function = {"name": block["name"], "arguments": json.dumps(block["input"])}
    return {"id": block["id"], "type": "function", "function": function}


def to_functions(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Translate tools for the Chat Completions API."""
    return [
        {
            "type": "function",
            "function": {"name": tool["name"], "description": tool["description"], "parameters": tool["input_schema"]},
        }
        for tool in tools
    ]
