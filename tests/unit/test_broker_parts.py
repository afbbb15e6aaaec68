"""Canonical names, worst cases, the response cache and the outbound filter, each by itself."""

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import threading
import time
import unicodedata

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from jsonschema_specifications import REGISTRY

from rlm_sandbox.broker.budget import SCHEMA_TOKENS, TEMPLATE_TOKENS, tokens_in_bound, worst_case
from rlm_sandbox.broker.cache import ResponseCache
from rlm_sandbox.broker.canonical import canonical, destination
from rlm_sandbox.broker.keeper import Keeper
from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.redaction import OutboundFilter
from rlm_sandbox.broker.schema import PLAIN_WORDS, Validation, is_plain
from rlm_sandbox.broker.text_size import TextSizes
from rlm_sandbox.broker.types import Call, Credentials, Position, Reply, Request, Secret, Usage
from rlm_sandbox.errors import PolicyError
from tests.support.broker_double import FakeProvider, FlatPrices, account, spec

pytestmark = pytest.mark.unit


def call(prompt="q", **changes):
    fields = {
        "model": "m",
        "system": None,
        "prefix": None,
        "max_tokens": 10,
        "cache": True,
        "thinking_budget": None,
        "schema": None,
        "sample": 0,
    }
    return Call(prompt=prompt, **{**fields, **changes})


def key(request=None, **changes):
    return canonical(request or Request("q"), spec(**changes)).key


def test_the_key_of_a_request_is_the_same_everywhere():
    """Pinned: a change here means that every answer of every user is bought again."""
    form = {
        "version": 1,
        "provider": "fake",
        "base_url": None,
        "extra": {},
        "scope": "session:s",
        "model": "m-small",
        "max_tokens": "100",
        "thinking_budget": "None",
        "sample": 0,
        "system": None,
        "prefix": None,
        "prompt": hashlib.sha256(b"q").hexdigest(),
        "schema": None,
    }
    assert key() == hashlib.sha256(rfc8785.dumps(form)).hexdigest()
    assert key() == "0d9c85a1a320382704d6a661eeabd0274a6e2875f69abc501adf9ada39c3ba05"


@given(st.text(), st.text(), st.integers(0, 2**31 - 1))
def test_the_quick_form_of_a_key_is_canonical_json(scope, model, sample):
    form = {"scope": scope, "model": model, "sample": sample, "none": None}
    quick = json.dumps(form, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert quick == rfc8785.dumps(form)


def test_everything_that_can_change_an_answer_changes_the_key():
    url = {"credentials": Credentials(base_url="https://elsewhere.example/v1")}
    script = {"credentials": Credentials(extra={"script": "/a.json"})}
    keys = [key(**change) for change in ({}, url, script, {"session": "t"}, {"cache_scope": "s"}, {"provider": "p"})]
    keys += [key(max_tokens=101), key(model="m-other")]
    changes = (
        {"prompt": "r"},
        {"system": "q"},
        {"prefix": "q"},
        {"sample": 1},
        {"thinking_budget": 9},
        {"schema": "{}"},
    )
    keys += [key(Request(**{"prompt": "q", **change})) for change in changes]
    assert len(set(keys)) == len(keys)


def test_what_cannot_change_an_answer_does_not_change_the_key():
    other = Credentials(api_key=Secret("another"))
    assert key(Request("q", group=7, width=3, size=9), credentials=other, concurrency=3) == key()
    assert key(Request("q", system="", prefix="")) == key()
    assert key(Request("q", schema='{"b": 1, "a": 2.0}')) == key(Request("q", schema='{ "a":2,"b":1 }'))


def test_the_record_of_a_destination_holds_no_credentials():
    where = Credentials(base_url="https://user:secret@host.example:8443/v1?key=secret")
    assert destination(spec(credentials=where)) == "fake@host.example:8443"
    assert destination(spec()) == "fake"


@given(st.text(), st.text(), st.text())
async def test_the_input_bound_covers_every_byte_sent_and_normalised(system, prefix, prompt):
    bound = await tokens_in_bound(call(prompt, system=system, prefix=prefix), TextSizes(), {})
    texts = [system, prefix, prompt]
    assert bound >= TEMPLATE_TOKENS + sum(len(text.encode()) for text in texts)
    assert bound >= TEMPLATE_TOKENS + sum(len(unicodedata.normalize("NFKC", text).encode()) for text in texts)


async def test_one_character_can_be_eighteen_when_it_is_normalised():
    bound = await tokens_in_bound(call("\ufdfa"), TextSizes(), {})
    assert TEMPLATE_TOKENS + len("صلى الله عليه وسلم".encode()) <= bound <= TEMPLATE_TOKENS + 40


async def test_thinking_and_schema_count():
    asked = call(max_tokens=10, thinking_budget=90, schema="{}")
    tokens_in = await tokens_in_bound(asked, TextSizes(), {})
    worst = worst_case(asked, tokens_in, FakeProvider(), FlatPrices(), capped=False)
    assert worst.tokens_out == 100
    assert worst.tokens_in == TEMPLATE_TOKENS + SCHEMA_TOKENS + 1 + 2


@pytest.fixture
async def keeper(tmp_path):
    keeper = Keeper(tmp_path)
    yield keeper
    await keeper.aclose()


@pytest.fixture
def cache(keeper):
    return ResponseCache(keeper, "session:s")


REPLY = Reply('text "with" \u2028 all \U0001f600', Usage(1, 2, 3, 4), "m", "end_turn", "req")


async def rows(keeper, sql, *values):
    await keeper.aclose()  # what was queued is written
    with contextlib.closing(sqlite3.connect(keeper._path, isolation_level=None)) as db:
        return db.execute(sql, values).fetchall()


async def test_a_kept_reply_comes_back_whole(keeper, cache, tmp_path):
    assert cache.get("a" * 64) is None
    assert await cache.put("a" * 64, REPLY)
    assert cache.get("a" * 64) == REPLY
    assert ResponseCache(keeper, "session:t").get("a" * 64) is None
    files = [path for path in (tmp_path / "cache").iterdir() if path.is_file()]
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}
    assert oct((tmp_path / "cache").stat().st_mode & 0o777) == "0o700"


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: b"", lambda d: d[:40] + b"x" + d[41:], lambda d: b"0" * 99]
)
async def test_a_damaged_entry_is_removed_and_counts_as_absent(keeper, cache, damage):
    await cache.put("a" * 64, REPLY)
    ((body,),) = await rows(keeper, "SELECT body FROM answers")
    await rows(keeper, "UPDATE answers SET body = ?", damage(body))
    assert cache.get("a" * 64) is None
    assert await rows(keeper, "SELECT * FROM answers") == []


@pytest.mark.parametrize("change", ["key = 'bb'", "scope = 'session:t'"])
async def test_an_entry_under_another_name_is_not_believed(keeper, cache, change):
    await cache.put("a" * 64, REPLY)
    await rows(keeper, f"UPDATE answers SET {change}")
    assert cache.get("bb") is None
    assert ResponseCache(keeper, "session:t").get("a" * 64) is None


async def test_many_writers_of_one_entry_leave_one_whole_row(keeper, cache):
    await asyncio.gather(*(cache.put("a" * 64, REPLY) for _ in range(30)))
    assert cache.get("a" * 64) == REPLY
    assert await rows(keeper, "SELECT count(*) FROM answers") == [(1,)]


@pytest.mark.parametrize("content", [b"not a database, and longer than a header of one" * 300, b"\0" * 8192])
async def test_a_file_that_is_no_database_is_set_aside(keeper, cache, tmp_path, content):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "answers.db").write_bytes(content)
    assert cache.get("a" * 64) is None
    assert await cache.put("a" * 64, REPLY)
    assert cache.get("a" * 64) == REPLY


async def test_a_file_of_a_newer_version_is_left_alone(keeper, cache):
    await cache.put("a" * 64, REPLY)
    await rows(keeper, "PRAGMA user_version = 99")
    assert cache.get("a" * 64) is None
    assert not await cache.put("b" * 64, REPLY)
    assert cache.get("b" * 64) == REPLY, "from memory"
    assert await rows(keeper, "SELECT key FROM answers") == [("a" * 64,)]


async def test_two_processes_see_each_others_answers(keeper, cache, tmp_path):
    other = Keeper(tmp_path)
    await asyncio.gather(
        *(ResponseCache(one, "shared:x").put(f"{n:064}", REPLY) for n in range(50) for one in (keeper, other))
    )
    assert all(ResponseCache(other, "shared:x").get(f"{n:064}") == REPLY for n in range(50))
    await other.aclose()


KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\nmore+lines/here==\n-----END RSA PRIVATE KEY-----"
FOUND = {
    "AKIAIOSFODNN7EXAMPLE": "AWS",
    "ghp_" + "a1B2" * 9: "GitHub",
    "sk-ant-api03-" + "Ab1_" * 20: "Anthropic",
    "xoxb-123456789012-123456789012-" + "a" * 24: "Slack",
    "github_pat_" + "a1B2_" * 14: "GitHub",
    "glpat-" + "a1B2" * 6: "GitLab",
    "npm_" + "a1B2" * 9: "NPM",
    "https://user:h0rse" + "battery@host/": "Basic Auth",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmN-l0w5N_XgL0n3I9PlFUP0THsR8U": "JSON Web",
    KEY: "Private Key",
    KEY.rpartition("\n")[0]: "Private Key",
}


@pytest.mark.parametrize("secret", FOUND)
@pytest.mark.parametrize("name", ["prompt", "system", "prefix", "schema"])
async def test_a_credential_is_refused_or_redacted_wherever_it_stands(secret, name):
    shown = f"//registry/:_authToken={secret}" if FOUND[secret] == "NPM" else secret
    texts = {"prompt": "q", name: f"line one\nuser=x {shown} tail"}
    with pytest.raises(PolicyError, match=FOUND[secret]) as caught:
        await OutboundFilter("refuse").apply(Request(**texts))
    assert secret[:20] not in caught.value.message
    cleaned = getattr(await OutboundFilter("redact").apply(Request(**texts)), name)
    half = len(secret) // 2
    assert not any(secret[at : at + half] in cleaned for at in range(half)), "no part of it is left"
    assert "more+lines" not in cleaned
    assert "[REDACTED" in cleaned
    assert cleaned.startswith("line one\nuser=x ")


@pytest.mark.parametrize(
    "text",
    [
        "commit 3f786850e387550fdab836ed7e6dc881de23001b by 192.0.2.1",
        "081109 203518 143 INFO dfs.DataNode: Receiving block blk_-1608999687919862906 src: /10.250.19.102:54106",
        "password = os.environ['PASSWORD']",
        "aGVsbG8gd29ybGQgdGhpcyBpcyBub3QgYSBzZWNyZXQgYXQgYWxs",
    ],
)
async def test_ordinary_logs_and_code_pass_unchanged(text):
    request = Request(text)
    assert await OutboundFilter("refuse").apply(request) is request


async def test_a_credential_across_windows_and_in_a_huge_line_is_found():
    secret = "ghp_" + "a1B2" * 9
    for offset in (3570, 3590, 4080, 4095, 200_000):
        cleaned = await OutboundFilter("redact").apply(Request("." * offset + " " + secret + " " + "." * 9000))
        assert "a1B2" not in cleaned.prompt, offset


async def test_redacting_leaves_the_words_around_as_they_are():
    token = "ghp_" + "a1B2" * 9 + "more"
    cleaned = await OutboundFilter("redact").apply(Request(f"ghp is a prefix, as in ('{token}'), not sk or hf_x"))
    assert cleaned.prompt == "ghp is a prefix, as in ('[REDACTED GitHub Token]'), not sk or hf_x"


async def test_no_text_of_beginnings_makes_the_filter_run_for_long():
    begun = time.monotonic()
    cleaned = await OutboundFilter("redact").apply(Request("-----BEGIN PRIVATE KEY-----" * 100_000 + "." * 20_000))
    assert cleaned.prompt.endswith("." * 20_000)
    keys = " ".join(f"sk-ant-{number:030d}" for number in range(2000))
    with pytest.raises(PolicyError, match="more than 1000 credentials"):
        await OutboundFilter("redact").apply(Request(keys))
    assert time.monotonic() - begun < 5


async def test_what_was_redacted_neither_leaves_nor_is_recorded(tmp_path, caplog):
    provider, secret = FakeProvider(), "AKIAIOSFODNN7EXAMPLE"
    async with account(tmp_path, provider, policy=Policy(secrets="redact")) as session:
        await session.ask(Request(f"what is {secret}?"), Position(1, 0))
        history = await session.history(1)
    assert provider.calls[0].prompt == "what is [REDACTED AWS Access Key]?"
    assert secret not in caplog.text + str(history)
    assert "redacted" in caplog.text


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def structured(*texts):
    async def behave(call, number):
        return texts[min(number, len(texts)) - 1]

    return FakeProvider(behave)


async def ask_structured(session, schema=None):
    return await session.ask(Request("q", schema=json.dumps(schema or SCHEMA)), Position(1, 0))


async def test_an_answer_that_satisfies_the_schema_is_kept(tmp_path):
    provider = structured('{"n": 5}')
    async with account(tmp_path, provider) as session:
        assert (await ask_structured(session)).text == '{"n": 5}'
        assert (await ask_structured(session)).cached


@pytest.mark.parametrize("wrong", ['{"n": "5"}', "no JSON", '{"n": NaN}', "[" * 100_000])
async def test_one_that_does_not_is_asked_for_once_more_with_the_reason_and_both_are_charged(tmp_path, wrong):
    provider = structured(wrong, '{"n": 5}')
    async with account(tmp_path, provider) as session:
        answer = await ask_structured(session)
        history = await session.history(5)
        assert (answer.text, answer.attempts, (await session.budget()).calls) == ('{"n": 5}', 2, 2)
        assert answer.cost_micro == sum(entry["cost_micro"] for entry in history)
        assert (await ask_structured(session)).cached
    assert "was rejected" in provider.calls[1].prompt
    assert history[0]["bytes_out"] > history[1]["bytes_out"]
    assert history[0]["prompt_sha256"] != history[1]["prompt_sha256"]


async def test_a_second_wrong_answer_is_a_provider_error_and_not_kept(tmp_path):
    provider = structured("nothing")
    async with account(tmp_path, provider) as session:
        with pytest.raises(Exception, match="does not satisfy the schema") as caught:
            await ask_structured(session)
    assert (caught.value.code, len(provider.calls)) == ("schema", 2)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "pattern": "^a+$"}, '"aaa"', '"b"'),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer"}}}, "4", '"4"'),
        ({"type": "array", "uniqueItems": True}, "[1, 2]", "[1, 1]"),
    ],
)
async def test_what_could_be_slow_is_validated_in_a_process_of_its_own(tmp_path, schema, good, bad):
    async with account(tmp_path, structured(bad, good)) as session:
        answer = await ask_structured(session, schema)
        assert (answer.text, answer.attempts) == (good, 2)


def nested(levels, word, holder):
    schema = {"type": ["object", "array"]}
    for _ in range(levels):
        schema = {holder: [schema], word: True}
    return schema


EVERY_WORD = {word for uri in REGISTRY for word in REGISTRY.contents(uri).get("properties", {})} | {
    "$recursiveRef", "$dynamicRef", "unevaluatedItems", "unevaluatedProperties", "dependentSchemas", "prefixItems",
    "contains", "if", "then", "else", "not", "propertyNames", "contentSchema", "extends", "disallow", "divisibleBy",
}  # fmt: skip
LEADS_ON = {
    "items": {},
    "additionalProperties": {},
    "properties": {"a": {}},
    "allOf": [{}],
    "anyOf": [{}],
    "oneOf": [{}],
}


def test_no_keyword_is_plain_but_those_whose_cost_is_known():
    assert len(EVERY_WORD) > 60
    plain = {word for word in EVERY_WORD if is_plain(json.dumps({word: LEADS_ON.get(word, "string")}))}
    assert plain - LEADS_ON.keys() <= PLAIN_WORDS
    assert plain >= LEADS_ON.keys()
    for holder, inner in LEADS_ON.items():
        for word in EVERY_WORD - plain:
            deep = {word: {}} if isinstance(inner, dict) else [{word: {}}]
            assert not is_plain(json.dumps({holder: {"a": deep} if holder == "properties" else deep})), (holder, word)


@pytest.mark.parametrize(
    "schema",
    [
        nested(16, "unevaluatedProperties", "allOf"),
        nested(16, "unevaluatedItems", "oneOf"),
        {"type": [{"$ref": "#"}]},
        {"items": [{"not": {}}]},
        {"properties": [1]},
        {"allOf": {"a": {}}},
        json.loads('{"items":' * 40 + "{}" + "}" * 40),
        {"a-word-of-next-year": True},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
async def test_a_schema_whose_cost_is_not_known_never_meets_the_event_loop(monkeypatch, schema):
    asked = []

    async def answer(question):
        asked.append(json.loads(question))

    monkeypatch.setattr("rlm_sandbox.broker.schema._ask_process", answer)
    assert await Validation().problem_with('{"a": 1}', json.dumps(schema)) is None
    assert [question["text"] for question in asked] == ['{"a": 1}']


async def test_plain_schemas_are_validated_on_the_loop_in_a_thread_or_a_process_by_their_size(monkeypatch):
    where = []

    def here(text, schema):
        where.append("loop" if threading.current_thread() is threading.main_thread() else "thread")

    async def there(question):
        where.append("process")

    monkeypatch.setattr("rlm_sandbox.broker.schema.schema_check.problem_with", here)
    monkeypatch.setattr("rlm_sandbox.broker.schema._ask_process", there)
    schema = json.dumps({"anyOf": [{"type": "string"}, {"type": "null"}], "title": "a" * 60})
    for size in (10, 5_000, 100_000):
        await Validation().problem_with("1" * size, schema)
    assert where == ["loop", "thread", "process"]


async def test_a_pattern_that_backtracks_for_ever_costs_an_answer_and_holds_up_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr("rlm_sandbox.broker.schema.PATIENCE_S", 1.0)
    provider = structured('"' + "a" * 60 + '!"')
    async with account(tmp_path, provider) as session:
        loop, late = asyncio.get_running_loop(), []

        async def watch():
            while True:
                due = loop.time() + 0.02
                await asyncio.sleep(0.02)
                late.append(loop.time() - due)

        watcher = asyncio.create_task(watch())
        with pytest.raises(Exception, match="limits of time and memory"):
            await ask_structured(session, {"type": "string", "pattern": "^(a+)+$"})
        watcher.cancel()
    assert len(late) > 20  # the loop went on all the while


@pytest.mark.parametrize("size", [150, 9000])
async def test_a_flood_of_schemas_holds_up_nobody(tmp_path, size):
    async with account(tmp_path, structured("1")) as session:
        loop, late = asyncio.get_running_loop(), []

        async def watch():
            while True:
                due = loop.time() + 0.01
                await asyncio.sleep(0.01)
                late.append(loop.time() - due)

        watcher = asyncio.create_task(watch())
        schemas = [{"title": f"s{n}", "anyOf": [{}] * size} for n in range(40 if size < 200 else 2)]
        answers = await asyncio.gather(*(ask_structured(session, schema) for schema in schemas for _ in range(3)))
        watcher.cancel()
    assert {answer.text for answer in answers} == {"1"}
    assert len(late) >= 20
    assert max(late) < 1.0


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$anchor": "b", "anyOf": [{"type": "integer"}, {"$ref": "#b"}]}}},
        {"const": {"$ref": "#/nope"}},
        {"$id": "http://x.example/", "$defs": {"a": {"$id": "a"}}, "$ref": "a"},
        {"$schema": "http://x.example/unknown", "type": "integer"},
        {"properties": {"$ref": {"type": "string"}, "id": {"type": "string"}}},
    ],
    ids=str,
)
async def test_references_that_lead_somewhere_are_taken(schema):
    await Validation().check(json.dumps(schema))


async def test_a_reference_to_elsewhere_is_never_followed(tmp_path):
    requests = []

    async def server(reader, writer):
        requests.append(await reader.readline())
        writer.close()

    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with account(tmp_path, structured("1")) as session:
        with pytest.raises(Exception, match="outside of itself"):
            await ask_structured(session, {"$ref": f"http://127.0.0.1:{port}/schema.json"})
    listening.close()
    assert requests == []
