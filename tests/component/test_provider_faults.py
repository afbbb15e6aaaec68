"""Every way a provider can fail, over real connections and through the unmodified SDKs: each has one stated outcome."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from rlm_sandbox.broker.types import Usage
from tests.support.asking import MODELS, ask, fail
from tests.support.fault_server import Fault

pytestmark = pytest.mark.component

BOTH = pytest.mark.parametrize("api", ["anthropic", "openai"])
USAGE = Usage(input_tokens=11, output_tokens=7, cache_read_tokens=3, cache_write_tokens=2)


@BOTH
async def test_a_good_answer_arrives_whole_with_its_counts_and_request_id(server, connect, api):
    began = []
    reply = await ask(connect(api), began=lambda: began.append(1))
    assert (reply.text, reply.usage, reply.stop_reason, reply.request_id) == ("pong", USAGE, "end_turn", "req_1")
    assert reply.model == MODELS[api]
    assert b"pong" in reply.raw
    assert began == [1]


@BOTH
async def test_an_answer_in_one_piece_is_taken_too(server, connect, api):
    server.plan = ["whole"]
    assert (await ask(connect(api))).usage == USAGE


@BOTH
async def test_an_answer_compressed_unasked_is_read(server, connect, api):
    server.plan = ["gzip"]
    assert (await ask(connect(api))).text == "pong"


OUTCOMES = [
    # fault                              code                billable    retry   rate   overload
    (Fault("rate_limited"),              "rate_limited",     "no",       True,   True,  False),
    (Fault("spend_limit_429"),           "spend_limit",      "no",       False,  False, False),
    (Fault("spend_limit_400"),           "spend_limit",      "no",       False,  False, False),
    (Fault("overloaded"),                "overloaded",       "no",       True,   False, True),
    (Fault("server_error"),              "server_error",     "no",       True,   False, True),
    (Fault("gateway", {"status": 502}),  "server_error",     "unknown",  True,   False, True),
    (Fault("gateway", {"status": 503}),  "server_error",     "no",       True,   False, True),
    (Fault("status", {"status": 504}),   "server_error",     "unknown",  True,   False, True),
    (Fault("status", {"status": 400}),   "bad_request",      "no",       False,  False, False),
    (Fault("status", {"status": 401}),   "authentication",   "no",       False,  False, False),
    (Fault("status", {"status": 402}),   "billing",          "no",       False,  False, False),
    (Fault("status", {"status": 403}),   "permission",       "no",       False,  False, False),
    (Fault("status", {"status": 404}),   "not_found",        "no",       False,  False, False),
    (Fault("status", {"status": 408}),   "unavailable",      "no",       True,   False, False),
    (Fault("status", {"status": 409}),   "unavailable",      "no",       True,   False, False),
    (Fault("status", {"status": 413}),   "too_large",        "no",       False,  False, False),
    (Fault("status", {"status": 418}),   "bad_request",      "no",       False,  False, False),
    (Fault("status", {"status": 422}),   "bad_request",      "no",       False,  False, False),
    (Fault("status", {"status": 499}),   "connection_lost",  "unknown",  True,   False, False),
    (Fault("too_long"),                  "context_length",   "no",       False,  False, False),
    (Fault("redirect"),                  "redirect",         "no",       False,  False, False),
    (Fault("reset"),                     "connection_lost",  "unknown",  True,   False, False),
    (Fault("reset_in_body"),             "connection_lost",  "unknown",  True,   False, False),
    (Fault("hang_up"),                   "connection_lost",  "unknown",  True,   False, False),
    (Fault("cut"),                       "connection_lost",  "unknown",  True,   False, False),
    (Fault("stream_error"),              "overloaded",       "unknown",  True,   False, True),
    (Fault("stream_error", {"kind": "api_error"}), "server_error", "unknown", True, False, False),
    (Fault("html"),                      "bad_answer",       "unknown",  False,  False, False),
    (Fault("truncated_json"),            "bad_answer",       "unknown",  True,   False, False),
    (Fault("truncated_event"),           "bad_answer",       "unknown",  True,   False, False),
    (Fault("encoding"),                  "bad_answer",       "unknown",  True,   False, False),
    (Fault("gzip_bomb"),                 "too_large_answer", "unknown",  False,  False, False),
    (Fault("usage", {"output": -1}),     "bad_usage",        "unknown",  False,  False, False),
    (Fault("usage", {"input": -100}),    "bad_usage",        "unknown",  False,  False, False),
    (Fault("usage", {"output": "7"}),    "bad_usage",        "unknown",  False,  False, False),
    (Fault("usage", {"output": 7.5}),    "bad_usage",        "unknown",  False,  False, False),
    (Fault("usage", {"output": True}),   "bad_usage",        "unknown",  False,  False, False),
    (Fault("usage", {"output": 10**30}), "bad_usage",        "unknown",  False,  False, False),
    (Fault("usage", {"cache_read": -1}), "bad_usage",        "unknown",  False,  False, False),
]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("fault", "code", "billable", "retry", "rate", "overload"), OUTCOMES, ids=str)
async def test_each_fault_has_its_outcome(server, connect, api, fault, code, billable, retry, rate, overload):
    server.plan = [fault]
    got = await fail(connect(api))
    assert (got.code, got.billable, got.retryable) == (code, billable, retry)
    assert (got.rate_limited, got.overloaded) == (rate, overload)
    assert sum(server.requests.values()) == 1, "an attempt is one request, whatever happens"


@BOTH
async def test_the_provider_works_again_after_every_fault(server, connect, api):
    provider = connect(api)
    for fault, *_ in OUTCOMES:
        server.plan = [fault]
        await fail(provider)
        assert (await ask(provider)).text == "pong", fault


@BOTH
async def test_missing_token_counts_make_an_answer_unusable(server, connect, api):
    server.plan = [Fault("usage", {"missing": True})]
    got = await fail(connect(api))
    assert (got.code, got.billable) == ("bad_usage", "unknown")


@BOTH
@pytest.mark.parametrize("usage", [None, [1], "many", 7], ids=str)
async def test_token_counts_of_another_kind_are_missing_ones_in_a_whole_answer_too(server, connect, api, usage):
    server.plan = [Fault("whole_with", {"usage": usage})]
    got = await fail(connect(api))
    assert (got.code, got.billable, got.retryable) == ("bad_usage", "unknown", False)


@BOTH
@pytest.mark.parametrize("fault", ["reset_after_the_end", "no_end"])
async def test_what_a_connection_does_after_the_answer_does_not_cost_the_answer(server, connect, api, fault):
    server.plan = [fault]
    provider = connect(api)
    assert (await ask(provider, max_tokens=5000)).text == "pong"
    assert (await ask(provider)).text == "pong"


@BOTH
async def test_what_a_server_says_unasked_is_not_the_answer_to_the_next_prompt(server, connect, api):
    provider = connect(api)
    server.default = "two_answers"
    for _ in range(4):
        assert (await ask(provider)).text == "pong"
    assert sum(server.requests.values()) == 4


@BOTH
async def test_a_content_type_may_be_written_in_capitals(server, connect, api):
    server.plan = [Fault("headers", {"content_type": "Application/JSON; charset=UTF-8"})]
    assert (await ask(connect(api))).text == "pong"


@BOTH
async def test_a_request_id_is_one_short_line(server, connect, api):
    hostile = "\x1b[31m" + "i" * 60_000
    for fault in (
        Fault("headers", {"request_id": hostile, "x_request_id": hostile}),
        Fault("status", {"status": 400, "headers": {"request-id": hostile, "x-request-id": hostile}}),
    ):
        server.plan = [fault]
        provider = connect(api)
        got = await (ask(provider) if fault.name == "headers" else fail(provider))
        assert len(got.request_id) <= 128
        assert got.request_id.isprintable()


@BOTH
@pytest.mark.parametrize(("fault", "code"), [("refusal", "refusal"), ("thinking_only", "no_text")])
async def test_an_answer_that_is_none_is_paid_for(server, connect, api, fault, code):
    server.plan = [fault]
    got = await fail(connect(api))
    assert (got.code, got.billable, got.usage, got.retryable, got.request_id) == (code, "yes", USAGE, False, "req_1")


@BOTH
async def test_an_answer_cut_by_its_limit_is_an_answer_that_says_so(server, connect, api):
    server.plan = ["truncated_answer"]
    reply = await ask(connect(api))
    assert (reply.text, reply.stop_reason) == ("pong", "max_tokens")


@BOTH
async def test_usage_above_any_hold_is_passed_on(server, connect, api):
    server.plan = [Fault("usage", {"output": 10**9})]
    assert (await ask(connect(api))).usage.output_tokens == 10**9


@BOTH
@pytest.mark.parametrize("fault", ["drip", "silent"])
async def test_the_deadline_is_for_the_whole_answer(server, connect, api, fault):
    server.plan = [fault]
    provider = connect(api)
    got = await fail(provider, timeout_s=0.5)
    assert (got.code, got.billable) == ("timeout", "unknown")


@BOTH
async def test_a_slow_drip_has_begun_and_a_silent_server_has_not(server, connect, api):
    for fault, times in (("drip", 1), ("silent", 0)):
        server.plan, began = [fault], []
        await fail(connect(api), timeout_s=0.5, began=lambda began=began: began.append(1))
        assert len(began) == times


@BOTH
async def test_a_cancelled_attempt_stays_cancelled(server, connect, api):
    server.plan = ["silent"]
    task = asyncio.create_task(ask(connect(api)))
    await server.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@BOTH
async def test_a_server_that_is_not_there_owes_nothing(connect, api):
    got = await fail(connect(api, base_url="http://127.0.0.1:1/v1"))
    assert (got.code, got.billable, got.retryable) == ("unreachable", "no", True)


@BOTH
@pytest.mark.parametrize(
    "extra",
    [{"ca_file": "/nonexistent.pem"}, *({"proxy": url} for url in ("nonsense", "ftp://x", "http://127.0.0.1:99999"))],
    ids=str,
)
async def test_a_way_to_the_provider_that_cannot_be_used_owes_nothing(server, connect, api, extra):
    provider = connect(api, extra=extra)
    for _ in range(2):
        got = await fail(provider)
        assert (got.code, got.billable, got.retryable) == ("unreachable", "no", False)
    assert not server.log


@BOTH
async def test_a_bomb_in_an_errors_body_is_cut_short(server, connect, api):
    server.plan = [Fault("gzip_bomb", {"status": 500})]
    got = await fail(connect(api))
    assert got.billable == "unknown"
    assert len(got.message) < 1000


@BOTH
@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("2", 2.0),
        ("0", 0.0),
        ("86400", 86400.0),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
async def test_retry_after_is_read_and_nonsense_is_ignored(server, connect, api, header, seconds):
    server.plan = [Fault("rate_limited", {"retry_after": header})]
    got = await fail(connect(api))
    assert got.retry_after_s == seconds


@BOTH
@pytest.mark.parametrize("ahead_s", [-3600, 90])
async def test_retry_after_may_be_a_date(server, connect, api, ahead_s):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead_s), usegmt=True)
    server.plan = [Fault("rate_limited", {"retry_after": date})]
    got = await fail(connect(api))
    assert math.isclose(got.retry_after_s, max(0, ahead_s), abs_tol=30)


@BOTH
async def test_a_key_quoted_in_an_error_is_not_repeated(server, connect, api):
    server.plan = [Fault("status", {"status": 401, "message": "invalid x-api-key: sk-test-key"})]
    got = await fail(connect(api))
    assert "sk-test-key" not in got.message + str(got)


@BOTH
async def test_nothing_of_the_environment_reaches_a_request(server, connect, api, monkeypatch):
    for name in ("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:9")
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "ambient-secret")
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "ambient-name")
    for name in ("ANTHROPIC_CUSTOM_HEADERS", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.setenv(name, "x-ambient: ambient-header")
    assert (await ask(connect(api))).text == "pong"
    assert "ambient" not in str(server.log[0].headers)
    assert "sk-test-key" in str(server.log[0].headers)


@BOTH
async def test_many_calls_share_connections_and_none_waits_for_another(server, connect, api):
    server.latency_s = 0.2
    provider = connect(api)
    await ask(provider)
    await asyncio.gather(*(ask(provider, prompt=f"p{n}") for n in range(40)))
    assert server.active_peak >= 20
    assert set(server.requests.values()) == {1}
