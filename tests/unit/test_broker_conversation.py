"""Conversations with tools, on their way through the broker and in each provider's words."""

import json

import pytest

from rlm_sandbox.broker import conversation
from rlm_sandbox.broker.budget import tokens_in_bound
from rlm_sandbox.broker.canonical import canonical
from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.providers.anthropic import request_body
from rlm_sandbox.broker.providers.anthropic_message import Message
from rlm_sandbox.broker.providers.openai_message import Completion
from rlm_sandbox.broker.providers.scripted import ScriptedProvider
from rlm_sandbox.broker.text_size import TextSizes
from rlm_sandbox.broker.types import Call, Credentials, Request, SessionSpec
from rlm_sandbox.errors import PolicyError

pytestmark = pytest.mark.unit

TOOLS = [{"name": "python", "description": "Run.", "input_schema": {"type": "object"}}]
MESSAGES = [
    {"role": "user", "content": [{"type": "text", "text": "Go, é"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Look."},
            {"type": "tool_use", "id": "t1", "name": "python", "input": {"code": "1"}, "broken": True},
        ],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "one"}, {"type": "text", "text": "Last."}],
    },
]
SPEC = SessionSpec("s", "anthropic", "m", Credentials())


def request(**changes):
    given = {"prompt": conversation.encode(MESSAGES), "system": "S", "tools": conversation.encode(TOOLS)}
    return Request(**{**given, **changes})


def call(**changes) -> Call:
    return canonical(request(**changes), SPEC).call


async def bound(one):
    return await tokens_in_bound(one, TextSizes(), {})


async def test_tools_are_part_of_a_requests_name_and_size():
    plain, with_tools = canonical(request(tools=None), SPEC), canonical(request(), SPEC)
    assert plain.key != with_tools.key
    assert with_tools.bytes_out - plain.bytes_out == len(conversation.encode(TOOLS))
    assert await bound(with_tools.call) > await bound(plain.call) + len(conversation.encode(TOOLS))


async def test_the_bound_covers_every_byte_that_is_sent():
    body = request_body(call(), adaptive=False, form=None)
    texts = json.dumps([body["messages"], body["tools"]], ensure_ascii=False).replace(
        '"cache_control": {"type": "ephemeral"}', ""
    )
    bare = len("".join(texts.split()).encode())
    assert await bound(call()) > bare


def test_anthropic_gets_messages_and_tools_and_one_mark_at_the_end():
    body = request_body(call(), adaptive=False, form=None)
    assert body["tools"] == TOOLS
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert "broken" not in json.dumps(body)
    assert body["messages"][-1]["content"][-1]["cache_control"] == {"type": "ephemeral"}
    assert json.dumps(body["messages"]).count("cache_control") == 1
    assert "cache_control" not in json.dumps(request_body(call(cache=False), adaptive=False, form=None))


def streamed(*events, blocks=True):
    message = Message(where="anthropic", request_id=None, blocks=blocks)
    usage = {"input_tokens": 5, "output_tokens": 1}
    message.event({"type": "message_start", "message": {"model": "m", "usage": usage}})
    for event in events:
        message.event(event)
    message.event({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}})
    message.event({"type": "message_stop"})
    return message.reply()


def started(name="python"):
    return {"type": "content_block_start", "content_block": {"type": "tool_use", "id": "t", "name": name, "input": {}}}


def piece(text):
    return {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": text}}


def test_a_streamed_tool_call_is_put_together():
    reply = streamed(started(), piece('{"co'), piece('de": "x = 1"}'))
    assert conversation.decode(reply.text) == [
        {"type": "tool_use", "id": "t", "name": "python", "input": {"code": "x = 1"}}
    ]
    assert reply.stop_reason == "tool_use"
    assert reply.usage.output_tokens == 9


@pytest.mark.parametrize("arguments", ['{"code": "x', "[1]", "null", "[" * 100_000])
def test_arguments_that_are_no_object_are_marked(arguments):
    (block,) = conversation.decode(streamed(started(), piece(arguments)).text)
    assert block["broken"] is True
    assert block["input"] == {}


def test_a_plain_call_never_sees_blocks():
    text = {"type": "content_block_start", "content_block": {"type": "text", "text": "hello"}}
    assert streamed(text, blocks=False).text == "hello"


def test_the_chat_api_gets_calls_and_results_apart():
    chat = conversation.to_chat(MESSAGES)
    assert [message["role"] for message in chat] == ["user", "assistant", "tool", "user"]
    assert chat[1]["tool_calls"][0]["function"] == {"name": "python", "arguments": '{"code": "1"}'}
    assert chat[2] == {"role": "tool", "tool_call_id": "t1", "content": "one"}
    assert conversation.to_functions(TOOLS)[0]["function"]["parameters"] == {"type": "object"}


def test_a_chat_completions_tool_calls_are_put_together_streamed_or_whole():
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    pieces = [
        {"index": 0, "id": "c1", "function": {"name": "python", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"code": '}},
        {"index": 0, "function": {"arguments": '"y"}'}},
    ]
    stream = Completion(where="openai", request_id=None, model="m", blocks=True)
    for item in pieces:
        stream.add({"choices": [{"delta": {"tool_calls": [item]}}]})
    stream.add({"choices": [{"delta": {}, "finish_reason": "tool_calls"}], "usage": usage})
    whole = Completion(where="openai", request_id=None, model="m", blocks=True)
    calls = [{"id": "c1", "function": {"name": "python", "arguments": '{"code": "y"}'}}]
    whole.add({"choices": [{"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}], "usage": usage})
    expected = [{"type": "tool_use", "id": "c1", "name": "python", "input": {"code": "y"}}]
    for done in (stream, whole):
        assert conversation.decode(done.reply().text) == expected
        assert done.reply().stop_reason == "tool_use"


def test_a_server_without_tools_gets_plain_text():
    plain = conversation.to_plain(MESSAGES)
    assert [message["content"] for message in plain] == ["Go, é", 'Look.\n{"code": "1"}', "one\nLast."]


async def test_the_scripted_provider_answers_in_blocks():
    provider = ScriptedProvider()
    provider.push("Just talk.", '[{"type": "tool_use", "name": "python", "input": {}}]')
    first = await provider.attempt(call(), timeout_s=5, began=lambda: None)
    second = await provider.attempt(call(), timeout_s=5, began=lambda: None)
    assert conversation.decode(first.text) == [{"type": "text", "text": "Just talk."}]
    assert conversation.decode(second.text)[0]["id"] == "scripted_0"


def test_the_hosts_policy_binds_a_root_model_too():
    Policy().check_host_model("anything")
    with pytest.raises(PolicyError, match="does not allow the model"):
        Policy(models=frozenset({"small"})).check_host_model("large")


def test_a_text_inside_a_conversation_is_cleaned_without_breaking_it():
    secret = 'a "quoted" key\n-----BEGIN PRIVATE KEY-----\nabc'
    text = conversation.encode([{"role": "user", "content": [{"type": "text", "text": secret}]}])
    cleaned = conversation.cleaned(text, lambda part: part.split("-----")[0] + "[REDACTED]" if "KEY" in part else part)
    assert conversation.decode(cleaned)[0]["content"][0]["text"] == 'a "quoted" key\n[REDACTED]'


async def test_the_outbound_filter_reads_a_conversation_text_by_text():
    pytest.importorskip("detect_secrets")
    from rlm_sandbox.broker.redaction import OutboundFilter  # noqa: PLC0415 - needs the package that was just looked for

    found = "key:\nsk-ant-" + "a1B2" * 10 + '\n"quoted" text stays'
    asked = request(prompt=conversation.encode([{"role": "user", "content": [{"type": "text", "text": found}]}]))
    sent = await OutboundFilter("redact").apply(asked)
    text = conversation.decode(sent.prompt)[0]["content"][0]["text"]
    assert text == 'key:\n[REDACTED Anthropic API Key]\n"quoted" text stays'
    assert sent.tools == asked.tools
    with pytest.raises(PolicyError, match="Anthropic API Key"):
        await OutboundFilter("refuse").apply(asked)
