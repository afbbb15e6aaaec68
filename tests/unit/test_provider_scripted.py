"""The scripted provider: deterministic without a script, obedient with one."""

import json
import os

import pytest

from rlm_sandbox.broker.providers import create, script, weights
from rlm_sandbox.broker.providers.scripted import ScriptedProvider
from rlm_sandbox.broker.types import Call, Credentials, ProviderFault, Usage
from rlm_sandbox.errors import PrerequisiteError, UsageError

pytestmark = pytest.mark.unit


def call(prompt="what is 2+2?", **fields):
    base = {"model": "m", "system": None, "prefix": None, "max_tokens": 100, "cache": True}
    return Call(**(base | {"prompt": prompt, "thinking_budget": None, "schema": None, "sample": 0} | fields))


async def ask(provider, asked=None, began=lambda: None, timeout_s=5.0):
    return await provider.attempt(asked or call(), timeout_s=timeout_s, began=began)


def scripted(*rules, **settings):
    return ScriptedProvider(script.parse({"rules": list(rules), **settings}))


async def test_without_a_script_every_prompt_gets_an_answer_that_names_it():
    reply = await ask(create("scripted", Credentials()))
    assert "what is 2+2?" in reply.text
    assert reply.usage == Usage(input_tokens=4, output_tokens=len(reply.text) // 4 + 1)


async def test_an_empty_prompt_gets_an_answer_too():
    assert (await ask(ScriptedProvider(), call(""))).text.strip()


async def test_the_same_call_gets_the_same_answer_from_any_instance():
    assert await ask(ScriptedProvider()) == await ask(ScriptedProvider())


@pytest.mark.parametrize(
    "change", [{"prompt": "other"}, {"system": "s"}, {"prefix": "p"}, {"model": "n"}, {"sample": 1}]
)
async def test_whatever_could_change_a_models_answer_changes_this_one(change):
    assert (await ask(ScriptedProvider())).text != (await ask(ScriptedProvider(), call(**change))).text


async def test_a_schema_is_answered_with_an_instance_of_it():
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "n": {"type": "integer", "minimum": 3},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
            "ok": {"type": "boolean"},
            "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        },
    }
    reply = await ask(ScriptedProvider(), call(schema=json.dumps(schema)))
    assert json.loads(reply.text) == {"name": "scripted", "n": 3, "tags": ["a"], "ok": False, "maybe": None}


async def test_groups_of_the_pattern_are_put_into_the_answer():
    provider = scripted({"match": r"(?P<a>\d)\+(\d)", "answer": r"\g<a> and \2, C:\path \9"})
    assert (await ask(provider)).text == r"2 and 2, C:\path \9"


async def test_the_first_rule_whose_patterns_all_match_wins():
    provider = scripted(
        {"match": "2", "system": "x", "answer": "no"}, {"match": "2", "answer": "yes"}, {"answer": "last"}
    )
    assert (await ask(provider)).text == "yes"


async def test_an_answer_that_is_no_text_is_given_as_json():
    assert (await ask(scripted({"answer": {"a": [1, None]}}))).text == '{"a": [1, null]}'


async def test_a_rule_can_be_used_up():
    provider = scripted({"error": "overloaded", "times": 2}, {"answer": "there"})
    for _ in range(2):
        with pytest.raises(ProviderFault) as caught:
            await ask(provider)
        assert (caught.value.code, caught.value.billable, caught.value.overloaded) == ("overloaded", "no", True)
    assert (await ask(provider)).text == "there"


async def test_an_error_may_be_spelled_out():
    provider = scripted({"error": {"code": "rate_limited", "retry_after_s": 3, "retryable": False}})
    with pytest.raises(ProviderFault) as caught:
        await ask(provider)
    fault = caught.value
    assert (fault.retry_after_s, fault.retryable, fault.rate_limited, fault.billable) == (3.0, False, True, "no")


async def test_a_refusal_is_billable_and_says_what_it_used():
    with pytest.raises(ProviderFault) as caught:
        await ask(scripted({"error": "refusal", "usage": {"input_tokens": 9, "output_tokens": 1}}))
    assert caught.value.billable == "yes"
    assert caught.value.usage == Usage(9, 1)


async def test_a_strict_script_refuses_what_it_does_not_know():
    with pytest.raises(ProviderFault) as caught:
        await ask(scripted({"match": "never", "answer": "x"}, strict=True))
    assert (caught.value.code, caught.value.billable) == ("no_rule", "no")


async def test_usage_can_be_declared():
    usage = {"input_tokens": 1, "output_tokens": 2, "cache_read_tokens": 3, "cache_write_tokens": 4}
    assert (await ask(scripted({"answer": "x", "usage": usage}))).usage == Usage(1, 2, 3, 4)


async def test_prices_in_the_script_make_the_provider_priced():
    assert not scripted().priced
    provider = scripted(prices={"*": {"input": 1, "output": 5}})
    assert provider.priced
    assert provider.price_book.cost_micro("scripted", "any", Usage(2, 1)) == 7


def test_a_price_that_is_none_is_a_usage_error():
    with pytest.raises(UsageError, match="price"):
        scripted(prices={"*": {"input": -1, "output": 5}})


async def test_an_answer_later_than_the_deadline_is_a_timeout():
    with pytest.raises(ProviderFault) as caught:
        await ask(scripted({"answer": "x", "latency_ms": 60_000}), timeout_s=0.01)
    assert (caught.value.code, caught.value.billable) == ("timeout", "unknown")


async def test_the_response_begins_before_it_ends():
    began = []
    with pytest.raises(ProviderFault):
        await ask(scripted({"answer": "x", "duration_ms": 60_000}), began=lambda: began.append(1), timeout_s=0.01)
    assert began == [1]


async def test_queued_outcomes_come_first_and_calls_are_kept():
    provider = scripted({"answer": "rule"})
    provider.push("first", ProviderFault("no", code="x"))
    assert (await ask(provider)).text == "first"
    with pytest.raises(ProviderFault):
        await ask(provider)
    assert (await ask(provider)).text == "rule"
    assert [asked.prompt for asked in provider.calls] == ["what is 2+2?"] * 3


@pytest.mark.parametrize(
    ("name", "text"),
    [("s.json", '[{"match": "2", "answer": "four"}]'), ("s.toml", '[[rules]]\nmatch = "2"\nanswer = "four"\n')],
)
async def test_a_script_is_a_json_or_toml_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    provider = create("scripted", Credentials(extra={"script": str(tmp_path / name)}))
    assert (await ask(provider)).text == "four"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid"),
        ('{"rules": [{"match": "("}]}', "rule 0"),
        ('{"rules": [{"error": "nonsense"}]}', "nonsense"),
        ('{"rules": [{"anser": "x"}]}', "rules.0.anser"),
        ('{"rules": [{"latency_ms": -1}]}', "latency_ms"),
        ("3", "not valid"),
        ("[" * 100_000, "not valid"),
    ],
)
def test_a_mistake_in_a_script_is_named(tmp_path, text, says):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        create("scripted", Credentials(extra={"script": str(path)}))


@pytest.mark.parametrize(
    "text",
    [
        '{"capital of (\\\\w+)": "It is \\\\1town.", ".": "no"}',
        '[["capital of (\\\\w+)", "It is \\\\1town."], [".", "no"]]',
        '[{"pattern": "capital of (\\\\w+)", "answer": "It is \\\\1town."}, {"pattern": ".", "answer": "no"}]',
        "# rules\ncapital of (\\w+) -> It is \\1town.\n\n. -> no\n",
    ],
    ids=["mapping", "pairs", "pattern", "lines"],
)
async def test_a_script_of_answers_alone_may_be_short(tmp_path, text):
    path = tmp_path / "script"
    path.write_text(text)
    provider = create("scripted", Credentials(extra={"script": str(path)}))
    assert (await ask(provider, call("the capital of X?"))).text == "It is Xtown."
    assert (await ask(provider, call("else"))).text == "no"


def test_a_pipe_in_place_of_a_script_or_of_weights_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no file"):
        script.load(str(tmp_path / "pipe"))
    with pytest.raises(PrerequisiteError, match="no file"):
        weights.own(str(tmp_path / "pipe"))


def test_a_missing_script_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        create("scripted", Credentials(extra={"script": str(tmp_path / "none.json")}))
