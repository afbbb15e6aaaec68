"""What a root model can write, and what is made of it."""

import pytest

from rlm_sandbox.strategies.agent.reply import Cell, Refused, code_in, read

pytestmark = pytest.mark.unit


def text(value):
    return {"type": "text", "text": value}


def call(code, name="python", **more):
    return {"type": "tool_use", "id": "t1", "name": name, "input": {"code": code}, **more}


def test_a_tool_call_is_a_cell():
    assert read([text("Look first."), call("print(1)")], "tool_use").steps == [Cell("print(1)", "t1")]


def test_several_calls_are_several_cells_in_order():
    second = {**call("b = 2"), "id": "t2"}
    assert read([call("a = 1"), second], "tool_use").steps == [Cell("a = 1", "t1"), Cell("b = 2", "t2")]


@pytest.mark.parametrize("tag", ["python", "py", "Python", "repl", "python title=x"])
def test_a_fenced_block_is_a_cell(tag):
    reply = read([text(f"I will look.\n```{tag}\nprint(1)\n```\nThat is all.")], "end_turn")
    assert reply.steps == [Cell("print(1)")]


def test_fenced_blocks_run_together_and_tildes_count():
    assert code_in("~~~python\na = 1\n~~~\nthen\n```py\nprint(a)\n```") == "a = 1\n\nprint(a)"


def test_a_fence_without_a_language_is_code_where_it_parses():
    assert code_in("```\nprint(1)\n```") == "print(1)"
    assert code_in("```\nERROR at line 7: no such host\n```") == ""


def test_a_fence_of_another_language_is_no_code():
    assert code_in("```json\n[1]\n```\n```sh\nls\n```") == ""


@pytest.mark.parametrize("line", ['FINAL("42 errors")', 'FINAL_VAR("report")', '  FINAL("""two\nlines""")'])
def test_a_final_in_plain_text_is_a_cell(line):
    assert read([text(f"The answer is\n{line}")], "end_turn").steps == [Cell(line.strip())]


def test_a_final_inside_a_sentence_is_talk():
    assert read([text("Then I would call FINAL(x) to end.")], "end_turn").is_prose


def test_plain_talk_is_prose():
    reply = read([text("There are many errors.")], "end_turn")
    assert reply.is_prose
    assert reply.text == "There are many errors."


def test_an_unknown_tool_is_refused_by_name():
    (step,) = read([call("ls", name="bash")], "tool_use").steps
    assert isinstance(step, Refused)
    assert "'bash'" in step.why


@pytest.mark.parametrize("given", [{}, {"code": ""}, {"code": "  \n"}, {"code": 7}, {"cmd": "x"}])
def test_a_call_without_code_is_refused(given):
    (step,) = read([{"type": "tool_use", "id": "t", "name": "python", "input": given}], "tool_use").steps
    assert isinstance(step, Refused)


def test_a_call_that_was_cut_off_is_not_run():
    assert isinstance(read([call("print(")], "max_tokens").steps[0], Refused)
    assert isinstance(read([call("x", broken=True)], "tool_use").steps[0], Refused)
    assert read([call("print(1)")], "max_tokens").steps == [Cell("print(1)", "t1")]


def test_a_fence_that_was_cut_off_is_not_run():
    reply = read([text("```python\nrows = [")], "max_tokens")
    assert reply.is_prose
    assert reply.cut_off


def test_code_that_is_nested_beyond_reason_is_left_to_the_cell_to_refuse():
    code = "(" * 5000 + ")" * 5000
    assert read([call(code)], "tool_use").steps == [Cell(code, "t1")]
