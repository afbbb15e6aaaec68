"""What a session may spend and which models it may ask, seen from the command line; and the policy that no flag exceeds."""

import json

import pytest

pytestmark = pytest.mark.container


def spent(cli, session):
    return cli.ok("budget", "--session", session)


def test_a_cap_on_calls_is_never_exceeded_by_a_batch(cli, log_file):
    with cli.session(log_file, "--budget", "3") as started:
        named = ("--session", started["session"])
        done = cli.exec(
            "try:\n    llm_query_batch([f'q{i}' for i in range(10)])\n"
            "except BudgetExceeded as exc:\n    print(type(exc).__name__, len(exc.results))\n",
            *named,
        )
        assert done["stdout"] == "BudgetExceeded 10\n"
        assert (done["budget"]["calls"], done["budget"]["limit"]) == (3, 3)
        again = cli.exec("llm_query('one more')", *named)
        assert again["status"] == "error"
        assert "BudgetExceeded" in again["error"]
        assert spent(cli, started["session"])["calls"] == 3


def test_a_batch_that_returns_errors_keeps_what_was_paid(cli, log_file):
    with cli.session(log_file, "--budget", "4") as started:
        done = cli.exec(
            "r = llm_query_batch([f'q{i}' for i in range(9)], on_error='return')\n"
            "print(sum(isinstance(x, str) for x in r), sum(isinstance(x, BudgetExceeded) for x in r))",
            "--session",
            started["session"],
        )
        assert done["stdout"] == "4 5\n"


def test_a_cap_set_from_outside_takes_effect_and_is_shown(cli, log_file):
    with cli.session(log_file, "--budget", "1", "--token-limit", "5000", "--token-warning", "10") as started:
        named = ("--session", started["session"])
        assert (started["budget_limit"], started["token_limit"], started["token_warning"]) == (1, 5000, 10)
        cli.exec("llm_query('a')", *named)
        assert cli.ok("budget", *named, "--set", "2")["limit"] == 2
        assert cli.exec("llm_query('b')", *named)["status"] == "ok"
        changed = cli.ok("budget", *named, "--set-token-limit", "7", "--set-token-warning", "3")
        assert (changed["token_limit"], changed["token_warning"]) == (7, 3)
        cleared = cli.ok("budget", *named, "--clear-token-limit", "--clear-token-warning")
        assert (cleared["token_limit"], cleared["token_warning"]) == (None, None)
        assert cli.ok("budget", *named, "--set-cost-limit", "1.5")["cost_limit"] == 1.5
        assert cli("budget", *named, "--set", "-1").code == 2
        assert cli("budget", *named, "--set-token-limit", "5", "--clear-token-limit").code == 2


def test_a_token_cap_stops_calls_and_a_warning_is_given_once(cli, log_file):
    with cli.session(log_file, "--token-warning", "10", "--token-limit", "20000") as started:
        named = ("--session", started["session"])
        first = cli.exec("llm_query('x' * 400)", *named)
        assert any("token" in text for text in first["warnings"])
        assert cli.exec("y = 1", *named)["warnings"] == []
        cli.ok("budget", *named, "--set-token-limit", "1")
        done = cli.exec("llm_query('z')", *named)
        assert "BudgetExceeded" in done["error"]


def test_the_same_question_is_free_the_second_time(cli, log_file):
    with cli.session(log_file) as started:
        done = cli.exec(
            "a = llm_query('same'); b = llm_query('same'); c = llm_query('same', sample=1); print(a == b)",
            "--session",
            started["session"],
        )
        assert done["stdout"] == "True\n"
        assert (done["budget"]["calls"], done["budget"]["cached_calls"]) == (2, 1)


def test_the_guest_sees_its_budget_and_cannot_raise_it(cli, log_file):
    with cli.session(log_file, "--budget", "2") as started:
        done = cli.exec(
            "b = budget(); b['limit'] = 99; print(sorted(b) == sorted(budget()), budget()['limit'], budget()['calls'])",
            "--session",
            started["session"],
        )
        assert done["stdout"] == "True 2 0\n"


def test_a_budget_of_nothing_buys_nothing(cli, log_file):
    with cli.session(log_file, "--budget", "0") as started:
        done = cli.exec("llm_query('x')", "--session", started["session"])
        assert "BudgetExceeded" in done["error"]


def test_a_model_that_was_not_allowed_is_refused_before_anything_leaves(cli, log_file):
    with cli.session(log_file, "--model", "m1", "--allow-model", "m2,m3", "--allow-model", "m4") as started:
        done = cli.exec(
            "for name in ('m1', 'm2', 'm3', 'm4', 'other', 'http://evil/'):\n"
            "    try: llm_query('q ' + name, model=name); print('ok')\n"
            "    except PolicyError: print('refused')",
            "--session",
            started["session"],
        )
        assert done["stdout"].split() == ["ok"] * 4 + ["refused"] * 2
        assert done["budget"]["calls"] == 4


def test_settings_come_from_variables_and_options_win(cli, log_file):
    variables = {
        "RLM_BUDGET_LIMIT": "7",
        "RLM_TOKEN_LIMIT": "900",
        "RLM_TOKEN_WARNING": "300",
        "RLM_SUB_MODEL": "from-variable",
        "RLM_CONTEXT_PREFIX_LEN": "5",
        "RLM_CONCURRENCY": "2",
        "RLM_SUB_MAX_TOKENS": "50",
    }
    with cli.session(log_file, env=variables) as started:
        assert (started["budget_limit"], started["token_limit"], started["token_warning"]) == (7, 900, 300)
        assert (started["model"], started["context_prefix"]) == ("from-variable", "2026-")
    with cli.session(log_file, "--budget", "9", "--model", "by-option", env=variables) as started:
        assert (started["budget_limit"], started["model"]) == (9, "by-option")
    for name in ("RLM_BUDGET_LIMIT", "RLM_CONCURRENCY", "RLM_STDOUT_MAX"):
        result = cli("start", "--input", str(log_file), "--provider", "scripted", env={name: "many"})
        assert result.code == 2
        assert name.removeprefix("RLM_").lower() in result.error["message"].lower()


def test_a_script_is_found_from_the_callers_folder(cli, log_file, tmp_path):
    (tmp_path / "script.json").write_text(json.dumps([{"match": "capital of (\\w+)", "answer": "The city of \\1"}]))
    result = cli(
        "start", "--input", str(log_file), "--provider", "scripted", env={"RLM_SCRIPT": "script.json"}, cwd=tmp_path
    )
    session = result.doc["session"]
    done = cli.exec("print(llm_query('the capital of France?'))", "--session", session)
    cli.ok("stop", "--session", session)
    assert done["stdout"] == "The city of France\n"


def test_a_folder_for_sessions_is_found_from_the_callers_folder(cli, log_file, tmp_path):
    variables = {"RLM_SESSION_DIR": "my sessions"}
    result = cli("start", "--input", str(log_file), "--provider", "scripted", env=variables, cwd=tmp_path)
    session = result.doc["session"]
    assert result.doc["session_dir"] == str(tmp_path / "my sessions" / session)
    cli.exec("FINAL('there')", "--session", session)
    cli.ok("stop", "--session", session)
    assert cli("final", "--session", session, env=variables, cwd=tmp_path).out == b"there"


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A state folder with a policy."""
    from tests.support.cli import Home  # noqa: PLC0415

    home = Home(tmp_path_factory.mktemp("strict"))
    (home.path / "policy.toml").write_text(
        'models = ["m1"]\nproviders = ["scripted"]\nruntimes = ["runc"]\nmax_calls = 5\nmax_cost = 1.0\nmax_memory = "512m"\n'
        "max_cell_timeout = 20\nmax_session_time = 900\nmax_sessions = 1\nallow_bind = false\nmax_prompt_bytes = 1000\n"
    )
    yield home
    home.close()


@pytest.mark.parametrize(
    "args",
    [
        ["--budget", "6"],
        ["--cost-limit", "1.01"],
        ["--memory", "1g"],
        ["--cell-timeout", "21"],
        ["--time-limit", "901"],
        ["--model", "m2"],
        ["--allow-model", "m2"],
        ["--provider", "local"],
        ["--runtime", "runsc"],
        ["--bind"],
    ],
    ids=" ".join,
)
def test_no_flag_exceeds_the_policy(strict, tmp_path, args):
    (tmp_path / "a.txt").write_text("x\n")
    given = args if "--provider" in args else ["--provider", "scripted", *args]
    given = given if "--model" in args else ["--model", "m1", *given]
    result = strict("start", "--input", str(tmp_path), *given)
    assert (result.code, result.error["kind"]) == (5, "policy"), result
    assert result.error["hint"]


def test_what_nobody_named_is_lowered_to_the_policy(strict, log_file):
    with strict.session(log_file, "--model", "m1") as started:
        assert started["budget_limit"] == 5
        assert started["time_limit"] == 900
        assert strict("exec", "--timeout", "21", stdin="1").code == 5
        assert strict("budget", "--set", "6").code == 5
        assert strict("budget", "--set-cost-limit", "2").code == 5
        assert "PolicyError" in strict.exec("llm_query('x' * 1001)")["error"]
        result = strict("start", "--input", str(log_file), "--provider", "scripted", "--model", "m1")
        assert result.code == 5, "one session is the limit"


def test_a_policy_that_cannot_be_understood_stops_the_start(fresh, log_file):
    fresh.path.mkdir()
    (fresh.path / "policy.toml").write_text("max_callz = 5\n")
    result = fresh("start", "--input", str(log_file), "--provider", "scripted")
    assert result.code in {2, 3}
    assert "max_callz" in result.err or "policy" in result.err


def test_an_explicit_timeout_may_exceed_the_sessions_own(cli, log_file):
    with cli.session(log_file, "--cell-timeout", "0.5") as started:
        named = ("--session", started["session"])
        assert cli.exec("import time; time.sleep(30)", *named)["status"] == "timeout"
        assert cli.exec("import time; time.sleep(1)", "--timeout", "10", *named)["status"] == "ok"


def test_history_and_verification_of_the_ledger(cli, log_file):
    with cli.session(log_file) as started:
        named = ("--session", started["session"])
        cli.exec("llm_query_batch(['a', 'b'])", *named)
        history = cli.ok("budget", "--history", *named)
        assert len(history["calls"]) == 2
        assert cli.ok("budget", "--verify", *named)["session"] == started["session"]
        assert cli("budget", "--verify", "--history", *named).code == 2
        for shown, change in (("--history", ("--set", "1")), ("--verify", ("--clear-token-limit",))):
            assert "change no caps" in cli("budget", shown, *change, *named).error["message"]
        assert cli.ok("budget", *named)["limit"] == 100
