"""Where a setting comes from, what is refused, and what a policy does to it."""

import os
import stat
from pathlib import Path

import pytest

from rlm_sandbox import settings
from rlm_sandbox.errors import PolicyError, PrerequisiteError, UsageError
from rlm_sandbox.settings.model import HostPolicy, Settings, check, load, load_policy, within

pytestmark = pytest.mark.unit


def test_an_option_wins_over_a_variable_and_that_over_the_file(tmp_path):
    (tmp_path / "config.toml").write_text('budget_limit = 1\nsub_model = "file"\nconcurrency = 3\n')
    variables = {"RLM_BUDGET_LIMIT": "2", "RLM_SUB_MODEL": "variable"}
    found = load({"budget_limit": 4}, variables, tmp_path)
    assert (found.budget_limit, found.sub_model, found.concurrency) == (4, "variable", 3)
    assert load({}, {}, tmp_path / "elsewhere").budget_limit == 100


@pytest.mark.parametrize(
    ("given", "size"),
    [("512m", 512 << 20), ("2g", 2 << 30), ("1 GiB", 1 << 30), ("1024", 1024), ("64K", 64 << 10), (4096, 4096)],
)
def test_sizes_are_read_as_people_write_them(tmp_path, given, size):
    assert load({"memory": given}, {}, tmp_path).memory == size


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        ({"memory": "much"}, {}),
        ({"memory": -1}, {}),
        ({"cell_timeout": 0}, {}),
        ({"cell_timeout": float("inf")}, {}),
        ({"cost_limit": float("nan")}, {}),
        ({"no_such": 1}, {}),
        ({}, {"RLM_CONCURRENCY": "0"}),
        ({}, {"RLM_BUDGET_LIMIT": "-1"}),
        ({}, {"RLM_TOKEN_LIMIT": "1e3"}),
        ({}, {"RLM_SUB_MAX_TOKENS": "some"}),
    ],
)
def test_what_makes_no_sense_is_a_usage_error_that_names_it(tmp_path, flags, variables):
    with pytest.raises(UsageError) as caught:
        load(flags, variables, tmp_path)
    name = next(iter(flags), None) or next(iter(variables)).removeprefix("RLM_").lower()
    assert name in caught.value.message


def test_an_empty_variable_is_no_setting(tmp_path):
    assert load({}, {"RLM_BUDGET_LIMIT": ""}, tmp_path).budget_limit == 100


@pytest.mark.parametrize("text", ["budget_limt = 3\n", "= broken", "\xff"])
def test_a_configuration_file_with_a_mistake_is_refused(tmp_path, text):
    (tmp_path / "config.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"config\.toml"):
        load({}, {}, tmp_path)


def test_paths_in_the_configuration_file_start_at_its_folder(tmp_path):
    (tmp_path / "config.toml").write_text('script = "rules.json"\nsession_dir = "/elsewhere"\n')
    found = load({}, {}, tmp_path)
    assert (found.script, found.session_dir) == (tmp_path / "rules.json", Path("/elsewhere"))


CAPPED = {
    "memory": ("max_memory", 2**28, 2**29),
    "cpus": ("max_cpus", 0.5, 1.0),
    "cell_timeout": ("max_cell_timeout", 10.0, 11.0),
    "time_limit": ("max_session_time", 10.0, 11.0),
    "budget_limit": ("max_calls", 5, 6),
    "cost_limit": ("max_cost", 1.0, 1.5),
}


@pytest.mark.parametrize("name", sorted(CAPPED))
def test_a_policy_refuses_what_was_asked_and_lowers_what_was_not(name):
    cap, allowed, over = CAPPED[name]
    policy = HostPolicy(**{cap: allowed})
    with pytest.raises(PolicyError):
        check(Settings(**{name: over}), policy)
    check(Settings(**{name: allowed}), policy)
    check(Settings(), policy)
    assert getattr(within(Settings(), policy), name) == allowed
    assert getattr(within(Settings(**{name: allowed}), policy), name) == allowed


def test_a_cost_limit_of_nothing_stays_nothing():
    assert within(Settings(cost_limit=0), HostPolicy(max_cost=3.0)).cost_limit == 0


def test_without_a_policy_nothing_is_lowered():
    assert within(Settings(), HostPolicy()) == Settings()


def test_the_stricter_of_two_policies_wins_for_each_value(tmp_path):
    system = tmp_path / "system.toml"
    system.write_text('max_calls = 9\nmodels = ["a", "b"]\nsecrets = "redact"\nallow_bind = true\nmax_cost = 2.0\n')
    (tmp_path / "policy.toml").write_text(
        'max_calls = 12\nmodels = ["b", "c"]\nsecrets = "refuse"\nallow_bind = false\n'
    )
    found = load_policy(tmp_path, system)
    assert (found.max_calls, found.models, found.secrets) == (9, ("b",), "refuse")
    assert (found.allow_bind, found.max_cost) == (False, 2.0)


@pytest.mark.parametrize("line", ["max_cost = inf", "daily_cost = 1e300", "calls_per_second = inf", "max_cpus = inf"])
def test_a_policy_that_bounds_nothing_is_none(tmp_path, line):
    (tmp_path / "policy.toml").write_text(line)
    with pytest.raises(UsageError, match=line.split()[0]):
        load_policy(tmp_path, tmp_path / "none.toml")


def test_a_link_that_leads_nowhere_is_not_an_absent_policy(tmp_path):
    (tmp_path / "policy.toml").symlink_to(tmp_path / "gone.toml")
    with pytest.raises(UsageError, match="leads nowhere"):
        load_policy(tmp_path, tmp_path / "none.toml")


def test_a_pipe_in_place_of_a_file_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "policy.toml")
    with pytest.raises(UsageError, match="no file"):
        load_policy(tmp_path, tmp_path / "none.toml")


def test_a_policy_that_names_runtimes_forbids_the_default_one():
    with pytest.raises(PolicyError, match="runc"):
        check(Settings(), HostPolicy(runtimes=("runsc",)))
    check(Settings(runtime="runsc"), HostPolicy(runtimes=("runsc",)))


def test_what_goes_to_the_daemon_is_settings_and_keys_and_nothing_else(monkeypatch):
    for name in list(os.environ):
        if name.startswith("RLM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RLM_SUB_MODEL", "m")
    monkeypatch.setenv("RLM_SCRIPT", "rules.json")
    monkeypatch.setenv("RLM_EMPTY", "")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    sent = settings.client_environment()
    assert sent["RLM_SUB_MODEL"] == "m"
    assert sent["ANTHROPIC_API_KEY"] == "k"
    assert sent["RLM_SCRIPT"] == str(Path.cwd() / "rules.json")
    assert "AWS_SECRET_ACCESS_KEY" not in sent
    assert "RLM_EMPTY" not in sent
    assert not set(settings.CREDENTIAL_VARIABLES) & settings.daemon_environment().keys()


def test_a_state_folder_is_made_private_and_a_shared_one_refused(tmp_path):
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    settings.private_home(loose)
    settings.private_home(tmp_path / "new" / "folder")
    for path in (loose, tmp_path / "new" / "folder"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(PrerequisiteError, match="shared"):
        settings.private_home(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    (tmp_path / "file").touch()
    with pytest.raises(PrerequisiteError):
        settings.private_home(tmp_path / "file" / "below")


@pytest.mark.parametrize(("value", "seconds"), [("5", 5.0), ("", 100.0), ("soon", 100.0), ("-3", 0.0), ("nan", 100.0)])
def test_the_default_wait_comes_from_a_variable_that_makes_sense(monkeypatch, value, seconds):
    monkeypatch.setenv("RLM_WAIT", value)
    assert settings.default_wait() == seconds


@pytest.mark.parametrize(
    ("value", "shown"), [("", None), ("10", 10), ("0", 0), ("-1", None), ("many", None), ("9" * 5000, 2**53)]
)
def test_more_output_than_there_can_be_is_all_of_it(monkeypatch, value, shown):
    monkeypatch.setenv("RLM_STDOUT_MAX", value)
    assert settings.stdout_max() == shown


@pytest.mark.parametrize("flag", ["memory", "max_per_file_bytes", "output_max"])
def test_what_is_no_size_is_told_what_one_looks_like(tmp_path, flag):
    with pytest.raises(UsageError, match=f"{flag}: is no size such as 512m or 2g .got 'lots'."):
        load({flag: "lots"}, {}, tmp_path)
