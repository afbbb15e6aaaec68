"""The other forms of a record: comparisons, spans, inspect logs, summaries and the list of past runs."""

import hashlib
import json
import re
import time

import pytest

from rlm_sandbox.errors import UsageError
from rlm_sandbox.record import history, reports
from rlm_sandbox.record.diff import compare
from rlm_sandbox.record.recording import of_session
from rlm_sandbox.record.summary import build as summary
from rlm_sandbox.session.store import Store
from tests.support.recorded import Payer, record_run, start_body

pytestmark = pytest.mark.unit

TEXT = "`````\n<script>alert(1)</script>\x1b[31m\u202e"


@pytest.fixture
def run(tmp_path):
    with of_session(record_run(tmp_path, start=start_body(question=TEXT))) as recording:
        yield recording


def test_a_run_is_identical_with_itself(run):
    found = compare(run, run)
    assert found["identical"] is True
    assert (found["calls_differing"], found["final"]["same"], found["same_input"]) == (0, True, True)
    assert found["a"]["cost_usd"] == found["b"]["cost_usd"] == 0.00024


def test_a_comparison_names_what_differs(run, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    cells = [("x = llm_query_batch(['a', 'z'])", ["a", "z"], "other\n", None), ("FINAL(str(x))", [], "", b"another")]
    payer = Payer(lambda prompt: prompt.upper())
    with of_session(record_run(folder, cells=cells, payer=payer, start=start_body(model="m-2"))) as other:
        found = compare(run, other)
    assert found["identical"] is False
    assert [cell["same"] for cell in found["cells"]] == [False, True]
    assert found["calls_differing"] == 3
    first, second, third = found["calls"]
    assert (first["request_same"], first["answer_same"]) == (True, False)
    assert (first["a"]["answer"], first["b"]["answer"]) == ("answer to a", "A")
    assert second["request_same"] is False
    assert (third["a"]["outcome"], third["b"]) == ("failed", None)
    assert (found["final"]["a"]["preview"], found["final"]["b"]["preview"]) == ("the final answer", "another")


def test_spans_form_one_tree_and_hold_no_text(run):
    raw = reports.make(run, "otel")
    for text in ("answer to a", "alert(1)", "x = llm"):
        assert text.encode() not in raw
    spans = json.loads(raw)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    by_id = {span["spanId"]: span for span in spans}
    assert len(by_id) == len(spans) == 1 + 2 + 3
    assert len({span["traceId"] for span in spans}) == 1
    for span in spans:
        assert re.fullmatch("[0-9a-f]{16}", span["spanId"])
        assert span["parentSpanId"] == "" or span["parentSpanId"] in by_id
        assert int(span["endTimeUnixNano"]) >= int(span["startTimeUnixNano"]) > 0
    chats = [span for span in spans if span["name"].startswith("chat")]
    said = {each["key"]: each["value"] for each in chats[0]["attributes"]}
    assert said["gen_ai.operation.name"] == {"stringValue": "chat"}
    assert said["gen_ai.usage.input_tokens"] == {"intValue": "10"}
    failed = [span for span in chats if span["status"]["code"] == 2]
    assert [each["value"] for each in failed[0]["attributes"] if each["key"] == "error.type"] == [
        {"stringValue": "overloaded"}
    ]


def test_spans_name_no_model_that_a_cell_made_up(tmp_path):
    record_run(tmp_path)
    raw = (tmp_path / "journal.jsonl").read_bytes()
    lines, before = [], "0" * 64
    for line in raw.splitlines():
        record = json.loads(line)
        if record["kind"] == "call":
            record["model"] = record["request"]["model"] = "a customer's name"
            record["request_id"] = record["stop_reason"] = "a customer's word"
        lines.append(json.dumps({**record, "prev": before}, separators=(",", ":")).encode() + b"\n")
        before = hashlib.sha256(lines[-1]).hexdigest()
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
    with of_session(tmp_path) as found:
        assert b"customer" not in reports.make(found, "otel")


def test_an_inspect_log_has_what_its_reader_requires(run):
    log = json.loads(reports.make(run, "inspect"))
    assert (log["version"], log["status"]) == (2, "success")
    assert {"created", "task", "dataset", "model", "config"} <= log["eval"].keys()
    (sample,) = log["samples"]
    assert {"id", "epoch", "input", "target", "messages", "output", "events"} <= sample.keys()
    assert [message["role"] for message in sample["messages"]] == ["user", "assistant", "tool", "assistant", "tool"]
    assert sample["output"]["completion"] == "the final answer"
    kinds = [event["event"] for event in sample["events"]]
    assert kinds.count("model") == 3
    assert kinds.count("span_begin") == kinds.count("span_end") == kinds.count("tool") == 2
    model = next(event for event in sample["events"] if event["event"] == "model")
    assert {"model", "input", "tools", "tool_choice", "config", "output"} <= model.keys()
    assert "\x1b" not in json.dumps(log, ensure_ascii=False)


@pytest.mark.parametrize("kind", reports.KINDS)
def test_the_same_record_makes_the_same_bytes(run, kind):
    assert reports.make(run, kind) == reports.make(run, kind)


def test_a_summary_fences_what_is_foreign(tmp_path):
    code = "```\n# not a heading\n````` more\x1b"
    with of_session(record_run(tmp_path, cells=[(code, [], "", None)], start=start_body(question=TEXT))) as run:
        page = summary(run.past, run.text).decode()
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "``````python\n```\n# not a heading" in page
    assert "- question: `'''''\\n<script>" in page


def put(root, name, *, age_s=0.0, size=0, question=None, path="/data/app.log"):
    folder = root / name
    folder.mkdir(parents=True)
    Store(root, name).save_meta({"input": path, "provider": "p", "model": "m", "request": {"question": question}})
    record_run(folder)
    (folder / "stdout-1.txt").write_bytes(bytes(size))
    then = time.time() - age_s
    import os  # noqa: PLC0415 - only to set a time

    os.utime(folder / "journal.jsonl", (then, then))


def test_history_lists_the_latest_first_and_finds(tmp_path):
    put(tmp_path, "old", age_s=100, question="What BROKE?")
    put(tmp_path, "new", path="/srv/Access.log")
    (tmp_path / "stray").mkdir()
    (tmp_path / "..bad").mkdir()
    found = list(history.entries(tmp_path))
    assert [entry.session for entry in found] == ["new", "old"]
    assert [entry.session for entry in found if history.matches(entry, "broke")] == ["old"]
    assert [entry.session for entry in found if history.matches(entry, "access.LOG")] == ["new"]
    shown = found[0].document()
    assert (shown["cells"], shown["calls"]) == (2, 3)
    assert list(history.entries(tmp_path / "nothing")) == []


def test_what_is_old_goes_and_then_the_oldest_until_the_rest_fits(tmp_path):
    for number, age in enumerate((10, 1000, 100_000)):
        put(tmp_path, f"s{number}", age_s=age, size=10_000)
    found, now = list(history.entries(tmp_path)), time.time()
    names = lambda gone: [entry.session for entry in gone]  # noqa: E731 - short
    assert names(history.surplus(found, older_than_s=5000, max_size=None, now=now)) == ["s2"]
    assert names(history.surplus(found, older_than_s=None, max_size=found[0].size + 1, now=now)) == ["s2", "s1"]
    assert names(history.surplus(found, older_than_s=5000, max_size=0, now=now)) == ["s2", "s1", "s0"]
    assert names(history.surplus(found, older_than_s=None, max_size=None, now=now)) == []


def test_a_session_in_use_is_not_removed(tmp_path):
    put(tmp_path, "busy")
    holder = Store(tmp_path, "busy")
    holder.claim()
    with pytest.raises(UsageError):
        history.remove(tmp_path, "busy")
    assert (tmp_path / "busy" / "journal.jsonl").exists()
    holder.release()
    assert history.remove(tmp_path, "busy") is True
    assert history.remove(tmp_path, "busy") is False
    assert list(tmp_path.iterdir()) == []
