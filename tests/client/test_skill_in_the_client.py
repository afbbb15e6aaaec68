"""The skill in the real Claude Code client: it does the log job with the skill's own grants, and the log stays out of the conversation.

The assistant is scripted with what SKILL.md itself teaches: its blocks are played as they stand, with the session's name put in.
"""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.support.messages_api import say, tool

pytestmark = pytest.mark.client

SKILL = Path(__file__).resolve().parents[2] / "skill" / "rlm-sandbox" / "SKILL.md"
RESULT_MAX = 10_000
SHARE_MAX = 0.01
"""Of the log's distinct lines, in everything the client sent: a prefix, samples and one example a group."""


def blocks(heading="The loop"):
    """The commands of a section of the skill."""
    section = re.search(rf"## {heading}\n(.*?)\n## ", SKILL.read_text(encoding="utf-8"), re.DOTALL)[1]
    return [block.strip() for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]


START, _, LOOK, NARROW, ASK, REPORT, FINAL, STOP, _ = blocks()
START = START.replace("/var/log/app.log", "app.log")
CELLS = (LOOK, NARROW, ASK, REPORT)


def bash(command, **options):
    """A turn that runs a command in the session that was started."""
    return lambda seen: tool("Bash", command=command.replace("ID", seen.session), **options)


def by_file(command, work):
    """Two turns: the cell of a heredoc goes to a file, and the file is run."""
    first, _, rest = command.partition("\n")
    code = rest.removesuffix("PY")
    run = first.replace("<<'PY'", "-f .rlm/cell.py")
    return [tool("Write", file_path=f"{work}/.rlm/cell.py", content=code), bash(run)]


def shapes(log):
    """What the skill's example counts, counted here."""
    shape = re.compile(r"0x[0-9a-f]+|\d+")
    lines = log.read_text(encoding="utf-8").splitlines()
    hits = [line for line in lines if re.search(r"error|fail|denied|timeout", line, re.IGNORECASE)]
    return Counter(shape.sub("#", line)[:120] for line in hits)


def check(run, log, *, turns):
    """What must hold of every run: no refusal, no error, bounded results, and the log not in the requests."""
    assert run.code == 0, run.stderr
    assert run.api.played == turns, [result["text"][-500:] for result in run.results]
    assert run.result["permission_denials"] == []
    assert run.result["is_error"] is False
    for result in run.results:
        assert not result["error"], result["text"]
        assert "requires approval" not in result["text"]
        assert "[rlm] error" not in result["text"]
        assert len(result["text"]) < RESULT_MAX
    lines = set(log.read_text(encoding="utf-8").splitlines())
    sent = set("\n".join(text for request in [*run.api.main, *run.api.side] for text in strings(request)).split("\n"))
    assert len(lines & sent) < SHARE_MAX * len(lines)


def strings(value):
    """Every string in a request."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def check_report(run, log):
    """The answer's numbers are the log's, and its words are the sub-model's."""
    report = next(result["text"] for result in run.results if "final answer" in result["text"])
    found = re.findall(r"(?m)^\| (\d+) \| line \d+ \| `(.*?)` \| ", report)
    rows = {key: int(count) for count, key in found}
    expected = shapes(log)
    assert len(rows) >= 10
    assert rows == {key: expected[key] for key in rows}
    assert run.api.sub_answer in report
    assert len(run.api.sub) == min(25, len(expected))
    assert all(request["model"].startswith("claude-haiku") for request in run.api.sub)


def put(log, folder):
    target = folder / "app.log"
    target.write_bytes(log.read_bytes())
    target.chmod(0o644)
    return target


def test_the_log_job_with_heredocs_and_the_skills_own_grants(client, planted_log):
    client.rlm("skill", "install")
    log = put(planted_log, client.work)
    turns = [
        tool("Skill", skill="rlm-sandbox"),
        tool("Bash", command=START),
        *map(bash, CELLS),
        bash(FINAL),
        bash(STOP),
    ]
    client.api.turns = [*turns, say("Done.")]
    run = client("--allowedTools", "Skill(rlm-sandbox)")
    assert "rlm-sandbox" in run.init["skills"]
    check(run, log, turns=9)
    check_report(run, log)


def test_the_log_job_with_files_and_the_skills_own_grants(client, planted_log):
    client.rlm("skill", "install")
    log = put(planted_log, client.work)
    cells = [turn for cell in CELLS for turn in by_file(cell, client.work)]
    client.api.turns = [
        tool("Skill", skill="rlm-sandbox"),
        tool("Bash", command=START),
        *cells,
        bash(FINAL),
        bash(STOP),
        say("Done."),
    ]
    run = client("--allowedTools", "Skill(rlm-sandbox)")
    check(run, log, turns=13)
    check_report(run, log)


def test_the_log_job_in_the_plugins_form(client, planted_log):
    """The plugin brings the program: the client's own PATH does not lead to it."""
    client.rlm("skill", "install", "--plugin")
    plugin = client.home / ".local" / "share" / "rlm-sandbox" / "plugin"
    log = put(planted_log, client.work)
    client.api.turns = [
        tool("Skill", skill="rlm-sandbox:rlm-sandbox"),
        tool("Bash", command=START),
        *map(bash, CELLS),
        bash(FINAL),
        bash(STOP),
        say("Done."),
    ]
    run = client(
        "--plugin-dir",
        str(plugin),
        "--allowedTools",
        "Skill(rlm-sandbox:rlm-sandbox)",
        PATH="/usr/local/bin:/usr/bin:/bin",
    )
    assert "rlm-sandbox:rlm-sandbox" in run.init["skills"]
    check(run, log, turns=9)
    check_report(run, log)


def test_a_cell_that_outlives_the_shells_limit_is_waited_for(client, planted_log):
    """The client gives up on the command; the cell goes on, and ``wait`` has its result."""
    client.rlm("skill", "install")
    log = put(planted_log, client.work)
    slow = "rlm-sandbox exec --session ID --format text <<'PY'\nimport time\ntime.sleep(8)\nprint('slept', 6 * 7)\nPY"
    client.api.turns = [
        tool("Skill", skill="rlm-sandbox"),
        tool("Bash", command=START),
        bash(slow),
        bash("rlm-sandbox list --format text"),
        bash("rlm-sandbox wait --session ID --wait 60 --format text", timeout=100_000),
        bash(STOP),
        say("Done."),
    ]
    run = client("--allowedTools", "Skill(rlm-sandbox)", BASH_DEFAULT_TIMEOUT_MS="3000", BASH_MAX_TIMEOUT_MS="120000")
    texts = [result["text"] for result in run.results]
    assert "slept 42" not in texts[2], "the shell's limit did not strike"
    assert "slept 42" in texts[4]
    assert "cell=1 ok" in texts[4]
    assert run.api.played == 7
    assert run.result["permission_denials"] == []
    assert log.exists()


def test_the_grants_reach_no_further(client, planted_log):
    """Another program, a variable before the command and a file elsewhere still need the user's consent."""
    client.rlm("skill", "install")
    put(planted_log, client.work)
    client.api.turns = [
        tool("Skill", skill="rlm-sandbox"),
        tool("Bash", command='python3 -c \'open("made", "w")\''),
        tool("Bash", command="RLM_BUDGET_LIMIT=9 rlm-sandbox start --input app.log"),
        tool("Write", file_path=str(client.work / "cell.py"), content="1"),
        tool("Bash", command="rlm-sandbox skill show helpers"),
        say("Done."),
    ]
    run = client("--allowedTools", "Skill(rlm-sandbox)")
    assert [result["error"] for result in run.results] == [False, True, True, True, False]
    assert sorted(path.name for path in client.work.iterdir()) == ["app.log"]


def test_a_model_that_lost_its_place_finds_its_session(client, planted_log):
    """A second conversation, as after a compaction: the same session, its variables, its answer."""
    client.rlm("skill", "install", "--allow")
    put(planted_log, client.work)
    client.api.turns = [tool("Bash", command=START), bash(NARROW), say("Later.")]
    client()
    client.api.turns += [
        tool("Bash", command="rlm-sandbox list --format text"),
        tool("Bash", command=START),
        tool("Bash", command="rlm-sandbox stop --all --format text"),
        say("Done."),
    ]
    first = client.api.conversation.session
    run = client(prompt="Go on with the analysis from before.")
    listed, again, stopped = (result["text"] for result in run.results)
    assert f"session: {first} " in listed
    assert "count:Counter" in listed
    assert f"warning: session {first} is live on the same input" in again
    assert run.result["permission_denials"] == []
    assert "[rlm] ok" in stopped


def test_the_plugin_installs_from_its_own_marketplace(client):
    """The client's own commands take it, and the settings they write name it."""
    env = {**client.env, "PATH": f"{Path(client.program).parent}:{client.env['PATH']}"}
    client.env = env
    assert json.loads(client.rlm("skill", "install", "--plugin"))["next"] == []
    settings = json.loads((client.home / ".claude" / "settings.json").read_text(encoding="utf-8"))
    assert settings["enabledPlugins"] == {"rlm-sandbox@rlm-sandbox": True}
    client.api.turns = [tool("Bash", command="rlm-sandbox list --format text"), say("Done.")]
    run = client("--allowedTools", "Bash(rlm-sandbox *)", PATH="/usr/local/bin:/usr/bin:/bin")
    assert "rlm-sandbox:rlm-sandbox" in run.init["skills"]
    assert run.results == [{"text": "[rlm] ok 0 session(s)", "error": False}]
    assert json.loads(client.rlm("skill", "uninstall", "--plugin"))["next"] == []
    settings = json.loads((client.home / ".claude" / "settings.json").read_text(encoding="utf-8"))
    assert settings["enabledPlugins"] == {}
    assert settings["extraKnownMarketplaces"] == {}


SANDBOX = {"sandbox": {"enabled": True}}


@pytest.mark.skipif(
    shutil.which("bwrap") is None or shutil.which("socat") is None,
    reason="the client's sandbox needs bubblewrap and socat",
)
def test_in_the_clients_own_sandbox_the_fix_is_printed_and_it_is_the_fix(client, planted_log):
    """Unix sockets are blocked there: the command says which setting mends that, and with it the job is done, cells by file."""
    client.rlm("skill", "install")
    log = put(planted_log, client.work)
    client.env["IS_SANDBOX"] = ""
    settings = client.home / ".claude" / "settings.json"
    settings.write_text(json.dumps(SANDBOX), encoding="utf-8")
    client.api.turns = [tool("Skill", skill="rlm-sandbox"), tool("Bash", command=START), say("It cannot be reached.")]
    run = client("--allowedTools", "Skill(rlm-sandbox)")
    (refusal,) = [result["text"] for result in run.results if result["error"]]
    assert refusal.startswith("Exit code 3")
    assert "operation not permitted" in refusal
    printed = json.loads(re.search(r"settings\.json: (\{.*?\]\}\})", refusal)[1])
    settings.write_text(json.dumps({"sandbox": {**SANDBOX["sandbox"], **printed["sandbox"]}}), encoding="utf-8")

    client.api.main.clear()
    cells = [turn for cell in CELLS for turn in by_file(cell, client.work)]
    client.api.turns += [
        tool("Skill", skill="rlm-sandbox"),
        tool("Bash", command=START),
        *cells,
        bash(FINAL),
        bash(STOP),
        say("Done."),
    ]
    run = client("--allowedTools", "Skill(rlm-sandbox)")
    check(run, log, turns=16)
    check_report(run, log)
