"""The loop with a root model and a session that are functions: what it sends, what it runs, how it ends."""

import pytest

from rlm_sandbox.errors import DeadlineError, ProviderError
from rlm_sandbox.strategies.agent import history
from rlm_sandbox.strategies.agent.loop import Agent, prompt

pytestmark = pytest.mark.unit


def call(code, ident="t"):
    return {
        "content": [{"type": "tool_use", "id": ident, "name": "python", "input": {"code": code}}],
        "stop_reason": "tool_use",
    }


def talk(text, stop="end_turn"):
    return {"content": [{"type": "text", "text": text}], "stop_reason": stop}


class Job:
    """A loop over scripted turns; a cell that names FINAL gives the answer."""

    def __init__(self, *turns, output="ok", **options):
        self.turns = list(turns)
        self.output = output
        self.requests, self.cells, self.notes = [], [], []
        self.agent = Agent(
            ask=self.ask, execute=self.execute, show=lambda doc: doc["shown"],
            note=lambda kind, value: self.notes.append((kind, value)), **options,
        )  # fmt: skip

    def ask(self, system, messages, tools):
        self.requests.append([{**message, "content": list(message["content"])} for message in messages])
        assert tools[0]["name"] == "python"
        return self.turns.pop(0)

    def execute(self, code):
        self.cells.append(code)
        return {"final": {"kind": "direct"} if "FINAL" in code else None, "shown": f"{self.output} {len(self.cells)}"}

    def run(self):
        return self.agent.run("What is it?", "a file of 9 GB")


def last_text(request):
    block = request[-1]["content"][-1]
    return block.get("text") or block.get("content")


def test_the_task_names_question_facts_and_steps():
    job = Job(call("FINAL(1)"), max_steps=7)
    job.run()
    task = job.requests[0][0]["content"][0]["text"]
    assert "What is it?" in task
    assert "a file of 9 GB" in task
    assert "7 steps" in task


def test_a_question_with_dollars_stays_as_it_is():
    job = Job(call("FINAL(1)"))
    job.agent.run("Does it cost $facts or $5?", "F")
    assert "Does it cost $facts or $5?" in job.requests[0][0]["content"][0]["text"]


def test_it_ends_with_the_first_final_and_runs_nothing_after_it():
    both = {
        "content": [*call("FINAL(1)", "a")["content"], *call("print(2)", "b")["content"]],
        "stop_reason": "tool_use",
    }
    job = Job(call("print(1)"), both)
    outcome = job.run()
    assert (outcome.steps, outcome.how) == (2, "final")
    assert job.cells == ["print(1)", "FINAL(1)"]


def test_results_answer_the_calls_they_belong_to():
    job = Job(call("print(1)", "abc"), call("FINAL(1)"))
    job.run()
    assert job.requests[1][-1]["content"][0] == {"type": "tool_result", "tool_use_id": "abc", "content": "ok 1"}


def test_talk_is_reminded_once_and_then_taken_as_the_answer_if_cells_were_run():
    job = Job(call("print(1)"), talk("Many."), talk("It is 'the disk'."))
    outcome = job.run()
    assert outcome.how == "prose"
    assert prompt("nudge") == last_text(job.requests[2])
    assert eval(job.cells[-1], {"FINAL": str}) == "It is 'the disk'."


def test_talk_alone_is_no_answer():
    job = Job(*[talk("It is the disk.")] * 3, max_steps=3)
    with pytest.raises(ProviderError, match="wrote no code in 3 steps"):
        job.run()
    assert job.cells == []


def test_the_last_step_is_announced_and_its_talk_counts():
    job = Job(call("print(1)"), talk("It was the disk."), max_steps=2)
    assert job.run().how == "prose"
    assert last_text(job.requests[1]) == prompt("last")


def test_no_answer_in_the_last_step_is_a_deadline():
    job = Job(call("print(1)"), call("print(2)"), max_steps=2)
    with pytest.raises(DeadlineError, match="no answer in 2 steps"):
        job.run()


def test_a_turn_that_was_cut_off_is_told_so_and_never_an_answer():
    job = Job(
        call("print(1)"), talk("```python\nx = [", "max_tokens"), talk("half an ans", "max_tokens"), call("FINAL(1)")
    )
    assert job.run().how == "final"
    assert last_text(job.requests[2]) == prompt("cut_off")


def test_a_refused_call_is_an_error_result_and_the_others_run():
    turn = {
        "content": [{"type": "tool_use", "id": "x", "name": "sh", "input": {}}, *call("print(1)", "y")["content"]],
        "stop_reason": "tool_use",
    }
    job = Job(turn, call("FINAL(1)"))
    job.run()
    first, second = job.requests[1][-1]["content"]
    assert (first["tool_use_id"], first["is_error"]) == ("x", True)
    assert second["content"] == "ok 1"


def test_roles_alternate_and_every_call_has_a_result():
    job = Job(call("print(1)"), talk("Hm."), talk("```python\nprint(2)\n```"), call("FINAL(1)"))
    job.run()
    final = job.requests[-1]
    assert [message["role"] for message in final] == ["user", "assistant"] * 3 + ["user"]
    asked = [b["id"] for m in final for b in m["content"] if b["type"] == "tool_use"]
    answered = [b["tool_use_id"] for m in final for b in m["content"] if b["type"] == "tool_result"]
    assert asked == answered


def test_old_output_is_left_out_before_the_conversation_grows_too_large():
    job = Job(
        *[call(f"print({n})") for n in range(8)], call("FINAL(1)"), output="x" * 1000, history_max=4000, max_steps=9
    )
    job.run()
    for request in job.requests:
        assert sum(history._size(message) for message in request) < 4600
    assert "left out" in job.requests[-1][2]["content"][0]["content"]
    assert job.requests[-1][-1]["content"][0]["content"].startswith("x" * 1000)
    assert "What is it?" in job.requests[-1][0]["content"][0]["text"]


def test_the_transcript_has_everything_in_order():
    job = Job(call("print(1)"), call("FINAL(1)"))
    job.run()
    assert [kind for kind, _ in job.notes] == ["system", "user", "assistant", "cell", "user", "assistant", "cell"]


def test_a_turn_without_content_is_no_message_and_is_spoken_to():
    nothing = {"content": [], "stop_reason": None}
    job = Job(nothing, call("print(1)"), nothing, call("FINAL(1)"))
    assert job.run().how == "final"
    for request in job.requests:
        assert all(message["content"] for message in request)
        roles = [message["role"] for message in request]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    assert last_text(job.requests[1]) == last_text(job.requests[3]) == prompt("nudge")


def test_the_last_call_that_the_account_allows_is_announced_as_the_last_step():
    left = {"limit": 3, "calls": 2}
    job = Job({**call("print(1)"), "budget": {"limit": 3, "calls": 1}}, call("FINAL(1)"), max_steps=9)
    job.execute = lambda code: {"final": "FINAL" in code, "shown": "ok", "budget": left}
    job.agent.execute = job.execute
    job.run()
    assert last_text(job.requests[1]) == prompt("last")
    talker = Job(call("print(1)"), {**talk("Many."), "budget": left}, talk("The disk."), max_steps=9)
    assert talker.run().how == "prose"
    assert [block["text"] for block in talker.requests[2][-1]["content"]] == [prompt("nudge"), prompt("last")]
