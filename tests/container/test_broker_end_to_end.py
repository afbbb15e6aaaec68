"""The broker as a user meets it: commands, the daemon, a real container, the real SDKs, and a provider that misbehaves."""

import json
import os
import signal
import sqlite3
import time

import pytest

from tests.support.cli import Home, Live, eventually
from tests.support.fault_server import Fault
from tests.support.served import keys_to, served

pytestmark = pytest.mark.container

MODELS = {"anthropic": "claude-haiku-4-5", "openai": "gpt-4o-mini"}

TRY = """
def attempt(ask):
    try:
        print(repr(ask()))
    except RLMError as error:
        print(type(error).__name__, getattr(error, 'code', None), '|', error.message, '|', error.hint)
"""


@pytest.fixture(scope="module")
def provider():
    with served() as server:
        yield server


@pytest.fixture
def server(provider):
    """The shared provider, as new."""
    provider.plan.clear()
    provider.log.clear()
    provider.requests.clear()
    provider.default, provider.latency_s, provider.active_peak, provider.billed = "ok", 0.0, 0, 0
    return provider


@pytest.fixture(scope="module")
def home(tmp_path_factory, provider):
    made = Home(tmp_path_factory.mktemp("broker") / "home", **keys_to(provider))
    yield made
    made.close()


@pytest.fixture
def own(tmp_path, server):
    """A state folder of the test's own, for policies and accidents."""
    made = Home(tmp_path / "home", **keys_to(server))
    made.path.mkdir(mode=0o700)
    yield made
    made.close()


@pytest.fixture
def open_session(log_file):
    """Open sessions that are stopped at the end."""
    opened = []

    def start(home, *args, api="anthropic", **options):
        begun = home.start(log_file, "--provider", api, "--model", MODELS[api], *args, **options)
        opened.append(Live(home, begun))
        opened[-1].exec(TRY)
        return opened[-1]

    yield start
    for session in opened:
        session("stop")


def lines(done):
    assert done["status"] == "ok", done
    return done["stdout"].splitlines()


def verified(session):
    proof = session.ok("budget", "--verify")
    assert (proof["ok"], proof["mismatches"]) == (True, [])
    return proof


def calls(session):
    return session.ok("budget", "--history")["calls"]


FAULTS = {
    "refusal": ("ProviderError refusal", 1),
    "thinking_only": ("ProviderError no_text", 1),
    "html": ("ProviderError bad_answer", 1),
    "spend_limit_429": ("ProviderError spend_limit", 0),
    "spend_limit_400": ("ProviderError spend_limit", 0),
    "too_long": ("ProviderError context_length", 0),
    "gzip_bomb": ("ProviderError too_large_answer", 1),
    "truncated_answer": ("'pong'", 1),
    "overloaded": ("'pong'", 1),
    "reset": ("'pong'", 2),
    "reset_in_body": ("'pong'", 2),
    "cut": ("'pong'", 2),
    "truncated_json": ("'pong'", 2),
}
"""What a cell sees of each fault, and how many calls it is charged."""


@pytest.mark.parametrize("api", MODELS)
def test_every_fault_reaches_the_cell_as_what_it_is(home, server, open_session, api):
    session = open_session(home, "--budget", "100", "--cost-limit", "5", api=api)
    spent = 0
    for fault, (seen, charged) in FAULTS.items():
        server.plan.append(fault)
        done = session.exec(f"attempt(lambda: llm_query('about {fault}'))")
        (line,) = lines(done)
        assert line.startswith(seen), fault
        if "Error" in seen:
            assert line.rsplit("|", 1)[1].strip(), "no hint"
        assert done["budget"]["calls"] - spent == charged, fault
        spent = done["budget"]["calls"]
        assert done["budget"]["held_usd"] == 0
    assert {call["outcome"] for call in calls(session)} >= {"refusal", "no_text", "spend_limit", "ok"}
    verified(session)


def test_an_answer_that_was_cut_off_says_so(home, server, open_session):
    session = open_session(home)
    server.plan.append("truncated_answer")
    done = session.exec(
        "a = llm_query('q')\nb = llm_query('q')\nprint(isinstance(a, Truncated), isinstance(b, Truncated))"
    )
    assert lines(done) == ["True False"]
    assert server.requests["q"] == 2, "what was cut off was given again"


def test_fifty_identical_questions_are_one_request_and_all_are_listed(home, server, open_session):
    server.latency_s = 0.2
    session = open_session(home)
    done = session.exec("answers = llm_query_batch(['the same'] * 50)\nprint(len(answers), set(answers))")
    assert lines(done) == ["50 {'pong'}"]
    assert (server.requests["the same"], done["budget"]["calls"], done["budget"]["cached_calls"]) == (1, 1, 49)
    listed = calls(session)
    assert [call["source"] for call in listed].count("flight") == 49
    (bought,) = [call for call in listed if not call["cached"]]
    assert (bought["model"], bought["tokens_out"], len(bought["attempts"])) == (MODELS["anthropic"], 7, 1)
    assert bought["cost_usd"] == done["budget"]["cost_usd"] > 0


def test_samples_are_independent_and_each_is_kept(home, server, open_session):
    session = open_session(home)
    done = session.exec(
        "for _ in range(2):\n    votes = [llm_query('vote', sample=n) for n in range(5)]\nprint(len(votes))"
    )
    assert lines(done) == ["5"]
    assert (server.requests["vote"], done["budget"]["cached_calls"]) == (5, 5)


def test_a_cache_scope_is_shared_on_purpose_only(home, server, open_session):
    for scope in (("--cache-scope", "team"), ("--cache-scope", "team"), (), ()):
        open_session(home, *scope).exec("llm_query('shared?')")
    assert server.requests["shared?"] == 3


@pytest.mark.parametrize("api", MODELS)
def test_an_answer_that_does_not_fit_its_schema_is_asked_for_once_more(home, server, open_session, api):
    session = open_session(home, api=api)
    ask = "llm_query('n?', schema={'type': 'object', 'properties': {'n': {'type': 'integer'}}, 'required': ['n']})"
    server.plan += [Fault("ok", {"text": '{"n": "seven"}'}), Fault("ok", {"text": '{"n": 7}'})]
    server.plan += [Fault("ok", {"text": "no"})] * 2
    done = session.exec(f"print({ask}['n'] + 1, {ask}['n'] + 1)\nattempt(lambda: {ask.replace('n?', 'm?')})")
    first, second = lines(done)
    assert first == "8 8"
    assert second.startswith("ProviderError schema |")
    assert "rejected" in server.log[1].prompt
    assert [len(call["attempts"]) for call in calls(session)] == [2, 0, 2]


def test_a_thinking_budget_is_held_for_and_asked_for(home, server, open_session):
    session = open_session(home)
    session.exec("llm_query('hard', thinking_budget=2000, max_tokens=100)")
    body = server.log[0].body
    assert (body["thinking"]["budget_tokens"], body["max_tokens"]) == (2000, 2100)


def test_one_failing_item_costs_the_others_nothing_and_a_rerun_buys_only_what_is_missing(home, server, open_session):
    session = open_session(home, "--budget", "200")
    batch = "llm_query_batch([f'item {n}' for n in range(40)])"
    server.plan += ["ok"] * 7 + ["refusal"]
    done = session.exec(
        f"try:\n    {batch}\nexcept BatchError as error:\n    results = error.results\n"
        "print(len(results), sum(r == 'pong' for r in results), [r.code for r in results if isinstance(r, RLMError)])"
    )
    assert lines(done) == ["40 39 ['refusal']"]
    again = session.exec(f"print(len({batch}))")
    assert lines(again) == ["40"]
    assert sum(server.requests.values()) == 41
    assert again["budget"]["cached_calls"] == 39


def test_a_thousand_calls_under_faults_end_in_order_and_on_the_books(home, server, open_session):
    session = open_session(home, "--budget", "3000", "--cost-limit", "50")
    kinds = ["overloaded", "rate_limited", "reset", "server_error", "refusal"]
    server.plan += [kinds[n // 20 % 5] if n % 20 == 7 else Fault("ok", {}) for n in range(1100)]
    done = session.exec(
        "r = llm_query_batch([f'q {n}' for n in range(1000)], on_error='return')\n"
        "print(len(r), sum(x == 'pong' for x in r), {x.code for x in r if isinstance(x, RLMError)})",
        "--wait",
        "300",
        timeout=400,
    )
    count, good, codes = lines(done)[0].split(" ", 2)
    assert (count, codes) == ("1000", "{'refusal'}")
    assert 980 <= int(good) < 1000
    assert server.active_peak <= 20
    assert done["budget"]["held_calls"] == 0
    verified(session)


def test_no_cap_is_passed_by_any_batch(home, server, open_session):
    server.latency_s = 0.01
    caps = {"--budget": ("7", "calls"), "--cost-limit": ("0.005", "cost_usd"), "--token-limit": ("3000", None)}
    for flag, (cap, name) in caps.items():
        session = open_session(home, flag, cap, *(() if flag == "--budget" else ("--budget", "500")))
        done = session.exec(
            "r = llm_query_batch([f'x {n}' for n in range(300)], on_error='return', max_tokens=50)\n"
            "print({type(x).__name__ for x in r if isinstance(x, RLMError)})\nprint(next(x for x in r if isinstance(x, RLMError)))"
        )
        kinds, first = lines(done)
        assert kinds == "{'BudgetExceeded'}"
        assert "left" in first
        spent = done["budget"]
        total = spent[name] if name else spent["tokens_in"] + spent["tokens_out"] + spent["unreported_tokens"]
        assert total <= float(cap), flag
        verified(session)


def test_warnings_come_once_in_the_document_and_on_stderr(home, server, open_session):
    session = open_session(home, "--budget", "10", "--token-warning", "50")
    told, shown = [], ""
    for n in range(10):
        result = session("exec", "-c", f"llm_query('w {n}')")
        told += result.doc["warnings"]
        shown += result.err
    assert len(told) == 2, told
    assert sum("80%" in text for text in told) == 1
    assert sum("tokens are spent" in text for text in told) == 1
    assert all(shown.count(text) == 1 for text in told)


def test_the_whole_hosts_day_is_capped_by_the_policy_file(own, server, open_session):
    (own.path / "policy.toml").write_text("daily_cost = 0.02\n")
    first, second = open_session(own), open_session(own)
    batch = "r = llm_query_batch([f'{me} {n}' for n in range(600)], on_error='return', max_tokens=50)"
    batch += "\nbad = [x for x in r if isinstance(x, RLMError)]\nprint(len(bad) > 0, bad[0].message if bad else '')"
    for name, session in (("a", first), ("b", second)):
        session("budget", "--set", "10000")
        done = session.exec(batch.replace("{me}", name))
        kept = lines(done)
        assert kept[0].startswith("True the host's daily limit of $0.02"), kept
    spent = sum(session.ok("budget")["cost_usd"] for session in (first, second))
    assert 0 < spent <= 0.02
    verified(first)


def test_the_policy_file_binds_models_providers_rate_and_secrets(own, server, open_session, log_file):
    (own.path / "policy.toml").write_text(
        'models = ["claude-haiku-4-5"]\nproviders = ["anthropic"]\ncalls_per_second = 10\nsecrets = "refuse"\nmax_tokens = 500\n'
        "max_prompt_bytes = 2000\n"
    )
    barred = own("start", "--input", str(log_file), "--provider", "openai", "--model", MODELS["openai"])
    assert (barred.code, barred.error["kind"]) == (5, "policy")
    barred = own("start", "--input", str(log_file), "--provider", "anthropic", "--model", "claude-opus-4-7")
    assert (barred.code, barred.error["kind"]) == (5, "policy")
    session = open_session(own, env={"RLM_SUB_MAX_TOKENS": "400"})
    key = "AKIA" + "IOSFODNN7EXAMPLE"
    done = session.exec(
        f"attempt(lambda: llm_query('key {key}'))\nattempt(lambda: llm_query('q', model='claude-opus-4-7'))\n"
        "attempt(lambda: llm_query('q', max_tokens=501))\nattempt(lambda: llm_query('x' * 2001))"
    )
    assert [line.split()[0] for line in lines(done)] == ["PolicyError"] * 4
    assert key not in done["stdout"]
    assert not server.log
    began = time.monotonic()
    session.exec("llm_query_batch([f'{n}' for n in range(30)])")
    assert time.monotonic() - began >= (30 - 11) / 10, "more than ten a second"


def test_what_is_filtered_leaves_without_its_secret(own, server, open_session):
    (own.path / "policy.toml").write_text('secrets = "redact"\n')
    key = "AKIA" + "IOSFODNN7EXAMPLE"
    open_session(own).exec(f"llm_query('before {key} after')")
    assert key not in server.log[0].prompt
    assert server.log[0].prompt.startswith("before [REDACTED")


def test_a_rate_limit_narrows_one_session_and_passes(home, server, open_session):
    server.plan += [Fault("rate_limited", {"retry_after": "1"})] * 20
    session = open_session(home, "--budget", "700")
    done = session.exec("print(len(llm_query_batch([f'rl {n}' for n in range(100)])))")
    assert lines(done) == ["100"]
    assert done["budget"]["calls"] == 100
    server.latency_s, server.active_peak = 0.1, 0
    calls = 100
    while server.active_peak < 20:  # from the narrowest it takes 200 answers, one more at a time for each round
        assert calls < 600, f"the session stays at {server.active_peak} calls at once"
        again = session.exec(f"print(len(llm_query_batch([f'after {calls} {{n}}' for n in range(100)])))")
        calls += 100
        assert again["budget"]["calls"] == calls
    assert server.active_peak == 20


@pytest.mark.parametrize("nonsense", ["-5", "NaN", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "1e999"])
def test_nonsense_to_wait_for_is_not_waited_for(home, server, open_session, nonsense):
    server.plan.append(Fault("rate_limited", {"retry_after": nonsense}))
    assert lines(open_session(home).exec("print(llm_query('q'))")) == ["pong"]


def test_a_wait_beyond_the_deadline_fails_at_once(own, server, open_session):
    server.plan.append(Fault("rate_limited", {"retry_after": "86400"}))
    session = open_session(own)
    done = session.exec("attempt(lambda: llm_query('q'))")
    assert lines(done)[0].startswith("ProviderError rate_limited | the provider asked to wait 86400 s")
    assert done["elapsed_ms"] < 20_000


def test_one_providers_breakdown_does_not_stop_another(own, server, open_session):
    sick, well = open_session(own), open_session(own, api="openai")
    server.default = "overloaded"
    sick.ok("exec", "--wait", "1", "-c", "r = llm_query_batch([f's {n}' for n in range(30)], on_error='return')")
    server.default = "ok"
    server.plan.clear()
    began = time.monotonic()
    assert lines(well.exec("print(len(llm_query_batch([f'w {n}' for n in range(20)])))")) == ["20"]
    assert time.monotonic() - began < 20
    recovered = sick.ok("wait", "--wait", "100", timeout=150)
    assert recovered["status"] == "ok"
    assert lines(sick.exec("print(len(llm_query_batch([f's {n}' for n in range(30)])))")) == ["30"]


def test_a_killed_daemon_loses_no_answer_and_buys_none_twice(own, server, open_session, log_file):
    server.latency_s = 0.1
    session = open_session(own, "--budget", "400", "--session", "long")
    batch = "answers = llm_query_batch([f'k {n}' for n in range(200)])\nprint(len(answers))"
    running = own.spawn("exec", "--session", "long", "-c", batch)
    eventually(lambda: sum(server.requests.values()) >= 100, "no calls were made")
    daemon = own.daemon
    in_flight = server.active
    os.kill(daemon, signal.SIGKILL)
    running.wait(60)
    eventually(lambda: not own.containers(), "the container outlived its daemon")
    own.start(
        log_file, "--provider", "anthropic", "--model", MODELS["anthropic"], "--session", "long", "--budget", "400"
    )
    done = session.exec(batch, "--wait", "100", timeout=150)
    assert lines(done) == ["200"]
    twice = [prompt for prompt, count in server.requests.items() if count > 1 and prompt.startswith("k ")]
    lost = [call for call in calls(session) for each in call["attempts"] if each["state"] == "lost"]
    # What was answered and kept a moment before the kill, and not settled, is charged as lost too, but not made again.
    again = done["budget"]["calls"] - 200
    assert len(twice) <= again <= min(20, len(lost)), (len(twice), in_flight, again, len(lost))
    assert {server.requests[f"k {n}"] for n in range(200)} <= {1, 2}
    verified(session)


def test_a_locked_ledger_stops_buying_with_an_error_that_says_so(own, server, open_session):
    session = open_session(own)
    other = sqlite3.connect(own.path / "ledger.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        done = session.ok(
            "exec",
            "--wait",
            "60",
            "-c",
            "r = llm_query_batch(['a', 'b'], on_error='return')\nprint([(type(x).__name__, x.code, x.hint != '') for x in r])",
        )
        shown = lines(done)
    finally:
        other.rollback()
        other.close()
    assert shown == ["[('HostError', 'prerequisite', True), ('HostError', 'prerequisite', True)]"]
    assert not server.log
    assert lines(session.exec("print(llm_query_batch(['a', 'b']))")) == ["['pong', 'pong']"]
    verified(session)


def test_an_account_can_be_shown_and_proven_after_its_session_ended(home, server, open_session):
    session = open_session(home)
    session.exec("llm_query('q')\nllm_query('q')")
    session("stop")
    assert [call["cached"] for call in calls(session)] == [True, False]
    assert verified(session)["sums"]["calls"] == 1
    assert home("budget", "--history", "--session", "nobody").code == 4


def test_a_model_without_a_price_is_refused_under_a_cap_on_money_until_the_user_names_one(own, server, log_file):
    words = ("start", "--input", str(log_file), "--provider", "openai", "--model", "my-own-model", "--cost-limit", "1")
    refused = own(*words)
    assert (refused.code, "price" in refused.error["message"]) == (5, True)
    own("broker", "stop")
    (own.path / "prices.toml").write_text('["openai/my-own-model"]\ninput = 1.0\noutput = 2.0\n')
    begun = own.ok(*words)
    done = own.exec("llm_query('q')", "--session", begun["session"])
    own.ok("stop", "--session", begun["session"])
    assert done["budget"]["cost_usd"] == pytest.approx((16 + 2 * 7) / 1e6)


def test_a_batch_over_one_long_text_pays_for_it_once(home, server, open_session):
    server.latency_s = 0.1
    session = open_session(home)
    session.exec("llm_query_batch([f'p {n}' for n in range(20)], prefix='long text ' * 3000)")
    bodies = [seen.body for seen in server.log]
    assert all(body["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral"} for body in bodies)
    assert json.dumps(bodies[0]) != json.dumps(bodies[1])


@pytest.mark.parametrize("fault", ["drip", "silent"])
def test_a_call_ends_at_its_deadline_however_slowly_the_answer_comes(home, server, open_session, fault):
    session = open_session(home, env={"RLM_CALL_DEADLINE": "2"})
    server.plan.append(fault)
    done = session.exec("attempt(lambda: llm_query('q'))")
    assert lines(done)[0].startswith("DeadlineError None | the provider did not answer")
    assert done["elapsed_ms"] < 20_000
    assert done["budget"]["unreported_tokens"] > 512, "not charged in full"


def test_an_answer_that_cost_more_than_was_possible_shuts_the_session_and_says_so(home, server, open_session):
    session = open_session(home)
    server.plan.append(Fault("usage", {"input": 10**6}))
    done = session.exec("print(llm_query('q'))\nattempt(lambda: llm_query('r'))")
    answer, refused = lines(done)
    assert (answer, refused.split()[0]) == ("pong", "BudgetExceeded")
    assert any("shut for spending" in text for text in done["warnings"])
    assert session.ok("status")["budget"]["latched"]
    assert server.requests["r"] == 0
