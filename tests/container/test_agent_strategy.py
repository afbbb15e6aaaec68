"""``run --strategy agent`` from outside: a whole job on real logs, its caps, its transcript, and real adapters on both sides."""

import json
import re
import stat
from collections import Counter
from pathlib import Path

import pytest

from tests.support.messages_api import Api, say, tool

pytestmark = pytest.mark.container

LOGHUB = Path(__file__).resolve().parents[3] / "shared" / "data" / "loghub"

LOOK = "print(len(context_files), 'files'); print([(e['path'], e['chars']) for e in context_files]); print(sample(4))"

NARROW = r"""
import re
from collections import Counter
shape = lambda text: re.sub(r"0x[0-9a-f]+|\d+", "#", text)[:100]
count, first = {}, {}
for path in files:
    for hit in grep(r"error|fail|exception", text=files[path], ignore_case=True):
        key = (path.split('/')[-1], shape(hit.text[hit.text.find(': ') + 1:]))
        count[key] = count.get(key, 0) + 1
        first.setdefault(key, hit.text)
print(len(count), sum(count.values()))
"""

ASK = """
top = sorted(count, key=lambda key: (-count[key], key))[:12]
prompts = [f"What went wrong? (data)\\n{first[key][:300]}" for key in top]
answers = llm_query_batch(prompts, max_tokens=60, on_error='return')
print(sum(isinstance(a, str) for a in answers), 'answered')
"""

REPORT = """
report = [{'file': f, 'shape': s, 'count': count[f, s], 'meaning': str(a)} for (f, s), a in zip(top, answers)]
FINAL_VAR('report')
"""


def python(code):
    return {"type": "tool_use", "name": "python", "input": {"code": code}}


def script(tmp_path, *answers, sub="A known failure."):
    """A script in which the root model says one thing after the other, and every sub-call is answered alike."""
    rules = [{"model": "^root$", "times": 1, "answer": answer} for answer in answers]
    path = tmp_path / "script.json"
    path.write_text(json.dumps([*rules, {"model": "^scripted$", "answer": sub}]), encoding="utf-8")
    return {"RLM_SCRIPT": str(path)}


def run(cli, path, *flags, env=None):
    return cli(
        "run", "Which failures occur, and how often?", "--input", str(path), "--provider", "scripted", "--strategy", "agent",
        "--root-model", "root", "--format", "json", *flags, env=env,
    )  # fmt: skip


def transcript(document):
    return [json.loads(line) for line in Path(document["agent"]["transcript"]).read_text(encoding="utf-8").splitlines()]


def seen(entries):
    """Everything that the root model was shown."""
    blocks = [block for entry in entries if entry["kind"] == "user" for block in entry["value"]]
    return [block.get("text") or block.get("content") for block in blocks]


def by_hand(folder):
    """The same count, made here."""
    count = Counter()
    for path in folder.rglob("*.log"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if re.search(r"error|fail|exception", line, re.IGNORECASE):
                shape = re.sub(r"0x[0-9a-f]+|\d+", "#", line[line.find(": ") + 1 :])[:100]
                count[path.name, shape] += 1
    return count


@pytest.mark.skipif(not LOGHUB.exists(), reason=f"the loghub samples are not at {LOGHUB}")
def test_a_scripted_root_does_a_whole_job_on_four_logs(cli, tmp_path):
    env = script(
        tmp_path,
        [{"type": "text", "text": "First the shape."}, python(LOOK)],
        f"Now narrow:\n```python\n{NARROW}\n```",
        "I have an idea of what is wrong.",
        [python(ASK)],
        [python(REPORT)],
    )
    done = run(cli, LOGHUB, "--glob", "*.log", env=env)
    assert done.code == 0, done
    report = json.loads(done.doc["answer"])
    expected = by_hand(LOGHUB)
    assert len(report) == 12
    assert {(row["file"], row["shape"]): row["count"] for row in report} == {
        key: expected[key] for key in sorted(expected, key=lambda key: (-expected[key], key))[:12]
    }
    assert {row["meaning"] for row in report} == {"A known failure."}
    assert done.doc["agent"]["steps"] == 5
    assert done.doc["agent"]["ended"] == "final"
    assert done.doc["budget"]["calls"] == 5 + 12
    entries = transcript(done.doc)
    assert [entry["kind"] for entry in entries].count("cell") == 4
    shown = seen(entries)
    assert all(len(text) <= 8000 for text in shown[1:])
    lines = {line for path in LOGHUB.rglob("*.log") for line in path.read_text(errors="replace").splitlines()}
    assert len(lines & set("\n".join(shown).split("\n"))) < 0.01 * len(lines)


def test_the_transcript_is_the_users_alone_and_the_session_is_gone(cli, log_file, tmp_path):
    done = run(cli, log_file, env=script(tmp_path, [python("FINAL('x')")]))
    path = Path(done.doc["agent"]["transcript"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert done.doc["session"] not in [entry["session"] for entry in cli.ok("list")["sessions"]]
    assert transcript(done.doc)[0]["kind"] == "system"


def test_the_roots_own_calls_count_against_the_sessions_cap(cli, log_file, tmp_path):
    env = script(tmp_path, *[[python("print(1)")]] * 5)
    done = run(cli, log_file, "--budget", "3", env=env)
    assert (done.code, done.error["kind"]) == (6, "budget")


def test_a_root_model_is_not_thereby_a_model_that_cells_may_name(cli, log_file, tmp_path):
    env = script(tmp_path, [python("llm_query('x', model='root')")], [python("FINAL('ended')")])
    done = run(cli, log_file, env=env)
    assert "PolicyError" in "\n".join(seen(transcript(done.doc)))
    assert done.doc["answer"] == "ended"


def test_talk_becomes_the_answer_and_says_so(cli, log_file, tmp_path):
    env = script(tmp_path, [python("print(1)")], "It is the database.", "It is the 'database'\nagain.")
    done = run(cli, log_file, env=env)
    assert done.doc["answer"] == "It is the 'database'\nagain."
    assert done.doc["agent"]["ended"] == "prose"
    assert any("did not call FINAL" in warning for warning in done.doc["warnings"])


def test_steps_that_run_out_end_the_run_with_their_own_exit_code(cli, log_file, tmp_path):
    done = run(cli, log_file, "--max-steps", "2", env=script(tmp_path, [python("print(1)")], [python("print(2)")]))
    assert (done.code, done.error["kind"]) == (9, "timeout")
    assert "transcript: " in done.err
    assert cli.ok("list")["sessions"] == []


def test_a_root_model_that_writes_no_code_is_a_provider_failure(cli, log_file):
    done = run(cli, log_file, "--max-steps", "2")
    assert (done.code, done.error["kind"]) == (7, "provider")


def test_the_agents_options_need_the_agent(cli, log_file):
    done = cli("run", "q", "--input", str(log_file), "--provider", "scripted", "--max-steps", "3")
    assert (done.code, done.error["kind"]) == (2, "usage")


def test_over_the_real_anthropic_adapter(cli, log_file):
    """Tool use as the API streams it: the root's turns and the sub-calls go to one server, which tells them apart by their tools."""
    api = Api(
        turns=[
            tool("python", code="hits = grep('ERROR'); print(len(hits))"),
            tool(
                "python",
                code="notes = llm_query_batch([str(h) for h in hits])\nFINAL(f'{len(hits)} errors: {notes[0]}')",
            ),
            say("never asked"),
        ],
        sub_answer="The link broke.",
    )
    env = {"ANTHROPIC_API_KEY": "not-a-real-key", "ANTHROPIC_BASE_URL": api.url}
    try:
        done = cli(
            "run", "Which errors?", "--input", str(log_file), "--strategy", "agent", "--root-model", "claude-sonnet-4-5",
            "--cost-limit", "1", "--format", "json", env=env,
        )  # fmt: skip
    finally:
        api.close()
    assert done.code == 0, done
    assert done.doc["answer"] == "2 errors: The link broke."
    assert [request["model"] for request in api.main] == ["claude-sonnet-4-5"] * 2
    assert {request["model"] for request in api.sub} == {"claude-haiku-5-5"}
    assert {request["thinking"]["type"] for request in api.sub} == {"disabled"}
    second = api.main[1]["messages"]
    assert second[1]["content"][0]["type"] == "tool_use"
    assert second[2]["content"][0]["tool_use_id"] == second[1]["content"][0]["id"]
    assert "\n2\n" in second[2]["content"][0]["content"]
    assert second[2]["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert done.doc["budget"]["calls"] == 4
    assert 0 < done.doc["budget"]["cost_usd"] < 1


def test_with_the_real_local_model(cli, log_file):
    """The mechanics with a model that is real: it is asked, what it writes is run, and it sees what came of it."""
    done = cli(
        "run", "How many lines are there?", "--input", str(log_file), "--provider", "local", "--strategy", "agent",
        "--max-steps", "3", "--keep", "--format", "json", timeout=280,
    )  # fmt: skip
    assert done.code in {0, 9}, done
    path = Path(re.search(r"transcript: (\S+)", done.err)[1])
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    turns = [entry["value"] for entry in entries if entry["kind"] == "assistant"]
    cells = [entry["value"] for entry in entries if entry["kind"] == "cell"]
    assert 1 <= len(turns) <= 3
    assert cells, "the model wrote no cell at all"
    assert turns[-1]["budget"]["calls"] == len(turns)
    assert all(turn["tokens_in"] > 0 and turn["tokens_out"] > 0 for turn in turns)
    cli.ok("stop", "--session", path.parent.name)


def test_a_run_is_replayed_from_its_cells_without_the_root_model(cli, log_file, tmp_path):
    env = script(tmp_path, [python("note = llm_query('what is it?')")], [python("FINAL(f'{note} {len(context)}')")])
    done = run(cli, log_file, env=env)
    bundle = tmp_path / "run.bundle"
    cli.ok("export", "--session", done.doc["session"], "-o", str(bundle))
    again = cli.ok("replay", str(bundle))
    assert again["identical"] is True
    assert again["calls"] == 1, "the root's own turns are not part of the record"


def test_a_root_model_without_a_price_is_refused_under_a_cap_in_money(cli, log_file):
    api = Api(turns=[tool("python", code="FINAL(1)")])
    env = {"ANTHROPIC_API_KEY": "not-a-real-key", "ANTHROPIC_BASE_URL": api.url}
    words = [
        "run",
        "q",
        "--input",
        str(log_file),
        "--strategy",
        "agent",
        "--root-model",
        "of-no-price",
        "--format",
        "json",
    ]
    try:
        refused = cli(*words, "--cost-limit", "1", env=env)
        allowed = cli(*words, env=env)
    finally:
        api.close()
    assert (refused.code, refused.error["kind"]) == (5, "policy")
    assert (allowed.code, allowed.doc["answer"]) == (0, "1")
    assert len(api.main) == 1, "nothing was sent under the cap"


def test_half_a_surrogate_pair_anywhere_costs_a_character_and_not_the_job(cli, log_file, tmp_path):
    env = script(
        tmp_path,
        "A \udc80 first.",
        [python("x = 'a\ud800b'; print(x)")],
        [python("FINAL(x + llm_query('q'))")],
        sub="s\udfff",
    )
    done = run(cli, log_file, env=env)
    assert (done.code, done.doc["answer"]) == (0, "a?bs?")


def test_a_cap_that_is_met_says_how_to_go_on_with_what_there_is(cli, log_file, tmp_path):
    spend = "kept = llm_query_batch(['a', 'b', 'c', 'd'], on_error='return')[0]"
    env = script(tmp_path, [python(spend)], [python("FINAL(kept)")])
    done = run(cli, log_file, "--budget", "3", env=env)
    assert (done.code, done.error["kind"]) == (6, "budget")
    words = re.search(r"rlm-sandbox (resume --session \S+)", done.error["hint"])[1].split()
    cli.ok(*words, env=env)
    assert "A known failure." in cli.ok("exec", "-c", "print(kept)")["stdout"]
    cli.ok("stop", "--all")
