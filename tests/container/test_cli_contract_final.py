"""The final answer: who may give it, what of it is kept, and that it comes out byte for byte."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.container


def test_a_direct_answer_ends_the_cell(live):
    done = live.exec("FINAL('the answer')\nprint('never')")
    assert done["status"] == "ok"
    assert done["stdout"] == ""
    saved = done["final"].pop("saved_to")
    assert done["final"] == {"kind": "direct", "name": None, "length": 10, "preview": "the answer"}
    assert Path(saved).read_text(encoding="utf-8") == "the answer"
    assert live.final() == b"the answer"


def test_a_variable_is_given_by_name(live):
    done = live.exec("report = 'é' * 3\nFINAL_VAR('report')\nnever = 1")
    assert (done["final"]["kind"], done["final"]["name"], done["final"]["length"]) == ("var", "report", 3)
    assert live.final() == "ééé".encode()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("{'a': [1, None, 'é']}", '{"a": [1, null, "é"]}'),
        ("[1, 2]", "[1, 2]"),
        ("12.5", "12.5"),
        ("True", "true"),
        ("''", ""),
        ("{1, }", "{1}"),
        ("b'x'", "b'x'"),
        ("float('nan')", "nan"),
    ],
)
def test_what_is_no_string_becomes_json_or_else_its_str(live, expression, expected):
    done = live.exec(f"FINAL({expression})")
    assert live.final().decode() == expected
    assert done["final"]["length"] == len(expected)


def test_the_first_final_of_a_cell_counts_and_a_later_cell_may_replace_it(live):
    live.exec("try:\n    FINAL('first')\nfinally:\n    try: FINAL('second')\n    except BaseException: pass")
    assert live.final() == b"first"
    live.exec("FINAL('third')")
    assert live.final() == b"third"


def test_a_cell_without_a_final_keeps_the_earlier_answer(live):
    live.exec("FINAL('kept')")
    assert live.exec("x = 1")["final"] is None
    assert live.final() == b"kept"
    assert live.ok("status")["final"]["preview"] == "kept"


def test_except_exception_does_not_swallow_a_final(live):
    done = live.exec("try:\n    FINAL('through')\nexcept Exception:\n    print('swallowed')")
    assert done["stdout"] == ""
    assert live.final() == b"through"


@pytest.mark.parametrize("code", ["FINAL_VAR('no_such_name')", "nothing = None\nFINAL_VAR('nothing')", "FINAL_VAR(5)"])
def test_final_var_of_nothing_is_an_error_in_the_cell_and_no_answer(live, code):
    live.exec("FINAL('before')")
    done = live.exec(code)
    assert (done["status"], done["final"]) == ("error", None)
    assert live.final() == b"before"


def test_the_answer_comes_out_byte_for_byte(live):
    odd = "\x1b[31mred\x1b[0m\r\n tab\tnul\x00 end\u202e \U0001f600"
    done = live.exec(f"FINAL({odd!r})")
    assert live.final() == odd.encode()
    assert done["final"]["length"] == len(odd)
    assert not set(done["final"]["preview"]) & {"\x1b", "\r", "\x00", "\u202e"}


def test_an_answer_of_many_megabytes_arrives_whole(live):
    done = live.exec("FINAL('0123456789abcdef' * (9 << 16))")
    assert done["final"]["length"] == 9 << 20
    assert len(done["final"]["preview"]) <= 2048
    assert live.final() == b"0123456789abcdef" * (9 << 16)


def test_final_writes_to_a_file(live, tmp_path):
    live.exec("FINAL('to a file')")
    target = tmp_path / "name with space.md"
    result = live("final", "-o", str(target))
    assert result.code == 0
    assert target.read_bytes() == b"to a file"
    assert live("final", "-o", str(tmp_path / "absent" / "x")).code == 2


def test_before_any_answer_final_fails_in_one_line(cli, log_file):
    with cli.session(log_file) as started:
        result = cli("final", "--session", started["session"])
        assert result.code == 4
        assert result.error["message"]
        assert result.error["hint"]
        assert len(result.err.splitlines()) == 1


def test_an_answer_survives_the_end_of_its_session(cli, log_file):
    with cli.session(log_file) as started:
        cli.exec("FINAL(json := 'still here')", "--session", started["session"])
    assert cli("final", "--session", started["session"]).out == b"still here"


def test_an_answer_of_a_thousand_items_is_json(live):
    live.exec("FINAL([{'n': i} for i in range(1000)])")
    assert json.loads(live.final())[-1] == {"n": 999}
