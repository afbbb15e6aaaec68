"""What is sent to a provider, as it arrives at a server, and how a server's dialect is learnt."""

import asyncio
import json

import pytest

from rlm_sandbox.broker.types import ProviderFault
from tests.support.asking import ask, fail
from tests.support.fault_server import Fault

pytestmark = pytest.mark.component

MARK = {"type": "ephemeral"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


async def body(server, provider, **fields):
    await ask(provider, **fields)
    return server.log[-1].body


async def test_shared_blocks_come_first_and_are_marked_for_the_prompt_cache(server, connect):
    sent = await body(server, connect("anthropic"), system="sys", prefix="pre", prompt="own")
    assert sent["system"] == [{"type": "text", "text": "sys", "cache_control": MARK}]
    first, second = sent["messages"][0]["content"]
    assert first == {"type": "text", "text": "pre", "cache_control": MARK}
    assert second == {"type": "text", "text": "own"}


@pytest.mark.parametrize(
    ("fields", "streams"),
    [
        ({}, False),
        ({"prefix": "short"}, False),
        ({"prefix": "p" * 20_000}, True),
        ({"prefix": "p" * 20_000, "cache": False}, False),
        ({"max_tokens": 4097}, True),
        ({"max_tokens": 4000, "thinking_budget": 1000}, True),
    ],
)
async def test_a_stream_is_asked_for_where_others_wait_for_its_begin_or_it_may_take_long(
    server, connect, fields, streams
):
    assert (await body(server, connect("anthropic"), **fields))["stream"] is streams


async def test_without_cache_nothing_is_marked(server, connect):
    sent = await body(server, connect("anthropic"), system="sys", prefix="pre", cache=False)
    assert "cache_control" not in json.dumps(sent)


@pytest.mark.parametrize(
    ("model", "thinking", "config"),
    [
        ("claude-haiku-4-5", {"type": "enabled", "budget_tokens": 3000}, None),
        ("claude-3-7-sonnet-20250219", {"type": "enabled", "budget_tokens": 3000}, None),
        ("claude-opus-4-20250514", {"type": "enabled", "budget_tokens": 3000}, None),
        ("claude-opus-4-7", {"type": "adaptive"}, {"effort": "medium"}),
        ("claude-haiku-5-5", {"type": "adaptive"}, {"effort": "medium"}),
    ],
)
async def test_thinking_is_asked_for_as_the_model_knows_it(server, connect, model, thinking, config):
    sent = await body(server, connect("anthropic"), model=model, thinking_budget=3000, max_tokens=50)
    assert sent["thinking"] == thinking
    assert sent.get("output_config") == config
    assert sent["max_tokens"] == 3050


@pytest.mark.parametrize(
    ("api", "model"), [("anthropic", "claude-haiku-5-5"), ("openai", "gpt-6-luna"), ("openai", "openai/gpt-5.6-mini")]
)
async def test_a_model_that_thinks_by_default_answers_within_a_short_limit(server, connect, api, model):
    server.default = "thinks_unless_told"
    provider = connect(api)
    assert provider.default_model() in {"claude-haiku-5-5", "gpt-6-luna"}
    assert (await ask(provider, model=model, max_tokens=20)).text == "pong"


@pytest.mark.parametrize(
    ("model", "thinking"),
    [
        ("claude-sonnet-5-5", {"type": "between_tools"}),
        ("anthropic.claude-haiku-5-5-v1:0", {"type": "disabled"}),
        ("claude-haiku-4-5", None),
        ("claude-opus-5-5", None),
        ("claude-someday", None),
    ],
)
async def test_only_models_that_take_it_are_told_not_to_think(server, connect, model, thinking):
    assert (await body(server, connect("anthropic"), model=model)).get("thinking") == thinking


@pytest.mark.parametrize(
    ("model", "effort"),
    [("gpt-6-astra", None), ("gpt-5-mini", None), ("o4-mini", None), ("gpt-4o-mini", None), ("gpt-6-luna", "none")],
)
async def test_only_models_that_have_it_get_the_effort_none(server, connect, model, effort):
    assert (await body(server, connect("openai"), model=model)).get("reasoning_effort") == effort


async def test_a_model_that_cannot_be_told_not_to_think_is_asked_without_next(server, connect):
    provider = connect("anthropic")
    server.plan = [Fault("status", {"status": 400, "kind": "invalid_request_error", "message": "thinking: x"})]
    got = await fail(provider, model="claude-haiku-5-5")
    assert (got.code, got.billable, got.retryable) == ("unsupported_parameter", "no", True)
    assert "thinking" not in await body(server, provider, model="claude-haiku-5-5")


@pytest.mark.parametrize(("budget", "limit", "thinks"), [(500, 1000, True), (500, 50, False)])
async def test_thinking_below_the_minimum_is_raised_only_within_what_was_held_for(
    server, connect, budget, limit, thinks
):
    sent = await body(server, connect("anthropic"), thinking_budget=budget, max_tokens=limit)
    assert sent["max_tokens"] == budget + limit
    assert sent.get("thinking") == ({"type": "enabled", "budget_tokens": 1024} if thinks else None)


async def test_a_model_that_refuses_a_thinking_budget_is_asked_the_other_way_next(server, connect):
    provider = connect("anthropic")
    text = '"thinking.type.enabled" is not supported for this model.'
    server.plan = [Fault("status", {"status": 400, "kind": "invalid_request_error", "message": text})]
    got = await fail(provider, model="claude-someday", thinking_budget=2000)
    assert (got.billable, got.retryable) == ("no", True)
    sent = await body(server, provider, model="claude-someday", thinking_budget=2000)
    assert sent["thinking"] == {"type": "adaptive"}


async def test_a_schema_becomes_structured_output(server, connect):
    sent = await body(server, connect("anthropic"), schema=json.dumps(SCHEMA))
    assert sent["output_config"]["format"]["type"] == "json_schema"
    assert sent["output_config"]["format"]["schema"]["properties"]["n"]["type"] == "integer"
    sent = await body(server, connect("openai"), schema=json.dumps(SCHEMA))
    assert sent["response_format"]["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("schema", "form"),
    [
        ({"type": ["string", "null"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}, None),
        ({"type": "string", "pattern": "a+"}, None),
        ({"enum": ["a", "b", None]}, None),
    ],
    ids=str,
)
async def test_a_schema_is_sent_in_the_form_that_the_api_knows(server, connect, schema, form):
    sent = await body(server, connect("anthropic"), schema=json.dumps(schema), prompt="own")
    found = sent["output_config"]["format"]["schema"]
    assert found == form if form else found.keys() >= schema.keys() - {"pattern"}
    assert sent["messages"][-1]["content"][-1]["text"] == "own"


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"a": True}},
        {"type": "object", "properties": {"a": {}}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
        {"type": "array"},
        {"type": "array", "items": False},
        {"type": "array", "prefixItems": [{"type": "string"}]},
        {"const": {"a": 1}},
        {"enum": [{"a": 1}]},
        {"not": {"type": "string"}},
        {"$ref": "#/definitions/a", "definitions": {"a": {"type": "string"}}},
        {"$ref": "#"},
        {"title": "anything"},
    ],
    ids=str,
)
async def test_a_schema_that_the_api_has_no_words_for_is_asked_for_in_ours(server, connect, schema):
    sent = await body(server, connect("anthropic"), schema=json.dumps(schema), prompt="own")
    assert "output_config" not in sent
    text = sent["messages"][-1]["content"][-1]["text"]
    assert text.startswith("own\n\nAnswer with one JSON value")
    assert text.endswith(json.dumps(schema))


async def test_a_schema_that_the_api_refuses_is_asked_for_in_words_by_all_who_had_asked(server, connect):
    provider = connect("anthropic")
    server.latency_s = 0.1
    server.default = Fault("unsupported", {"parameter": "output_config"})
    got = await asyncio.gather(*(fail(provider, schema=json.dumps(SCHEMA), prompt=f"p{n}") for n in range(5)))
    assert {(fault.code, fault.billable, fault.retryable) for fault in got} == {("unsupported_parameter", "no", True)}
    sent = await body(server, provider, schema=json.dumps(SCHEMA), prompt="own")
    assert sent["messages"][-1]["content"][-1]["text"].endswith(json.dumps(SCHEMA))


async def test_what_one_call_learns_of_a_server_does_not_fail_those_under_way(server, connect):
    provider = connect("openai")
    server.latency_s = 0.1
    server.default = Fault("unsupported", {"parameter": "stream_options"})
    got = await asyncio.gather(*(fail(provider, prompt=f"p{n}") for n in range(5)))
    assert {(fault.code, fault.retryable) for fault in got} == {("unsupported_parameter", True)}
    provider = connect("openai")
    server.plan = [Fault("usage", {"missing": True})] * 5
    got = await asyncio.gather(*(fail(provider, prompt=f"q{n}") for n in range(5)))
    assert {(fault.code, fault.retryable) for fault in got} == {("bad_usage", True)}


async def test_a_prefix_is_joined_to_the_prompt_as_rlm_skill_did(server, connect):
    sent = await body(server, connect("openai"), system="sys", prefix="pre", prompt="own")
    assert sent["messages"] == [{"role": "system", "content": "sys"}, {"role": "user", "content": "pre\n\nown"}]
    assert sent["max_tokens"] == 100
    assert sent["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(("budget", "effort"), [(2000, "low"), (8000, "medium"), (8001, "high")])
async def test_a_thinking_budget_becomes_an_effort(server, connect, budget, effort):
    sent = await body(server, connect("openai"), model="o4-mini", thinking_budget=budget, max_tokens=10)
    assert sent["reasoning_effort"] == effort
    assert sent["max_completion_tokens"] == budget + 10
    assert "max_tokens" not in sent


@pytest.mark.parametrize("model", ["o1", "o3-mini", "gpt-5-nano", "gpt-6", "openai/gpt-5"])
async def test_models_that_think_get_the_other_limit(server, connect, model):
    assert "max_completion_tokens" in await body(server, connect("openai"), model=model)


@pytest.mark.parametrize(
    ("parameter", "fields"),
    [
        ("stream_options", {}),
        ("max_tokens", {}),
        ("max_completion_tokens", {"model": "o4-mini"}),
        ("reasoning_effort", {"thinking_budget": 100}),
        ("response_format", {"schema": json.dumps(SCHEMA)}),
    ],
)
async def test_a_parameter_that_a_server_refuses_is_left_out_of_the_next_attempt(server, connect, parameter, fields):
    provider = connect("openai")
    server.default = Fault("unsupported", {"parameter": parameter})
    got = await fail(provider, **fields)
    assert (got.code, got.billable, got.retryable) == ("unsupported_parameter", "no", True)
    assert (await ask(provider, **fields)).text == "pong"
    assert len(server.log) == 2


async def test_a_schema_that_a_server_does_not_take_is_asked_for_in_words(server, connect):
    provider = connect("openai")
    server.default = Fault("unsupported", {"parameter": "response_format"})
    await fail(provider, schema=json.dumps(SCHEMA))
    sent = await body(server, provider, schema=json.dumps(SCHEMA), prompt="own")
    assert sent["messages"][-1]["content"].startswith("own\n\nAnswer with one JSON value")
    assert sent["messages"][-1]["content"].endswith(json.dumps(SCHEMA))


async def test_a_schema_that_a_server_has_no_grammar_for_is_asked_for_in_words_and_others_are_not(server, connect):
    provider = connect("openai")
    text = "Automatic parser generation failed: JSON schema error at #/properties/a: schema must be an object"
    server.plan = [Fault("status", {"status": 400, "message": text})]
    got = await fail(provider, schema='{"properties":{"a":true}}')
    assert (got.code, got.retryable) == ("unsupported_parameter", True)
    sent = await body(server, provider, schema='{"properties":{"a":true}}', prompt="own")
    assert "response_format" not in sent
    assert sent["messages"][-1]["content"].startswith("own\n\nAnswer with one JSON value")
    assert "response_format" in await body(server, provider, schema=json.dumps(SCHEMA))


async def test_a_server_that_counts_only_whole_answers_is_asked_for_those(server, connect):
    provider = connect("openai")
    server.plan = [Fault("usage", {"missing": True})]
    got = await fail(provider)
    assert (got.code, got.retryable) == ("bad_usage", True)
    assert "stream" not in await body(server, provider)


async def test_more_cached_tokens_than_tokens_are_not_believed(server, connect):
    server.plan = [Fault("usage", {"input": -4, "cache_read": 5, "cache_write": 0})]
    with pytest.raises(ProviderFault, match="more cached tokens"):
        await ask(connect("openai"))
