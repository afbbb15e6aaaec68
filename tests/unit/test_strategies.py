"""The shipped programs: how they are put together, and map-reduce and pairwise from end to end with a scripted sub-model."""

import ast

import pytest

from rlm_sandbox.broker.providers.local_process import SLOT_TOKENS
from rlm_sandbox.cli.run import is_log
from rlm_sandbox.guest.errors import BudgetExceeded, ProviderError
from rlm_sandbox.strategies import LOCAL_PIECE_CHARS, STRATEGIES, load
from tests.support.strategy_cell import Cell

pytestmark = pytest.mark.unit


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {number:05d}\n" for number in range(2000)), encoding="utf-8")  # 22,000 characters
    return path


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("question", ['"""; import os #', "a\\'b\nc\u2028d 😀 \udc80", "{x} %s"])
def test_a_question_is_a_value_and_never_code(name, question):
    program = ast.parse(load(name, question=question))
    first = program.body[0]
    assert isinstance(first, ast.Assign)
    assert first.targets[0].id == "QUESTION"
    assert ast.literal_eval(first.value) == question


def test_an_unknown_strategy_is_a_key_error():
    with pytest.raises(KeyError):
        load("guess", question="")


def test_map_reduce_asks_about_every_piece_and_joins_the_answers(text):
    cell = Cell(text, answer=lambda prompt: "joined" if "Below are notes" in prompt else "seen")
    final = cell.run("map-reduce", piece_chars=2000)
    pieces = [prompt for prompt in cell.prompts if "Below is piece" in prompt]
    assert len(pieces) == 11
    for number in range(2000):
        assert sum(f"line {number:05d}\n" in prompt for prompt in pieces) <= 1
    assert sum(prompt.count("line 0") for prompt in pieces) >= 1990
    assert final == "joined\n"


def test_map_reduce_stays_within_its_calls_and_says_how_much_it_read(text):
    cell = Cell(text, answer=lambda prompt: "seen")
    final = cell.run("map-reduce", piece_chars=500, max_calls=6)
    assert len(cell.prompts) <= 6
    assert "of 22000 characters" in final


def test_map_reduce_leaves_out_pieces_that_say_nothing(text):
    cell = Cell(text, answer=lambda prompt: "the answer is 7" if "line 00300" in prompt else "NOTHING")
    assert cell.run("map-reduce", piece_chars=2000) == "the answer is 7\n"


def test_map_reduce_keeps_the_notes_when_they_cannot_be_joined(text):
    cell = Cell(text, answer=lambda prompt: ProviderError("down") if "Below are notes" in prompt else "a note")
    final = cell.run("map-reduce", piece_chars=2000)
    assert final.count("a note") == 11
    assert "the first with: down" in final


@pytest.mark.parametrize("name", ["map-reduce", "pairwise"])
def test_without_a_single_answer_nothing_is_claimed(text, name):
    with pytest.raises(BudgetExceeded, match="no calls left"):
        Cell(text, limit=0).run(name)
    with pytest.raises(ProviderError, match="down"):
        Cell(text, answer=lambda prompt: ProviderError("down")).run(name)


def test_map_reduce_that_read_a_part_speaks_of_that_part(text):
    final = Cell(text, limit=3, answer=lambda prompt: "**NOTHING.**").run("map-reduce", piece_chars=2000)
    assert final.startswith("Nothing in what was read answers the question.")
    assert "Only 3 of 11 sub-model calls were answered: the budget ended." in final
    assert "read 6000 of 22000 characters" in final


def test_map_reduce_plans_for_any_number_of_calls_at_once(text):
    cell = Cell(text, limit=None, answer=lambda prompt: "seen")
    assert cell.run("map-reduce", piece_chars=50, max_calls=10**9) == "seen\n"
    assert sum("Below is piece" in prompt for prompt in cell.prompts) == 440


@pytest.mark.parametrize("calls", [*range(1, 40), 73, 74, 76, 200, 700])
def test_pieces_and_the_joining_of_their_answers_fit_into_the_calls(text, calls):
    cell = Cell(text, limit=None, answer=lambda prompt: "seen")
    cell.run("map-reduce", piece_chars=10, max_calls=calls)
    assert len(cell.prompts) <= calls
    assert len(cell.prompts) >= calls - 4, "what may be asked is asked"


def test_pairwise_that_compared_nothing_says_so_and_gives_what_it_has(text):
    final = Cell(text, limit=4, answer=lambda prompt: "UNRELATED" if "two parts" in prompt else "about disks").run(
        "pairwise", max_calls=11
    )
    assert final.startswith("No two parts were compared.")
    assert final.count("about disks") == 4
    alone = Cell(text, limit=1, answer=lambda prompt: "about disks").run("pairwise", max_calls=11)
    assert alone.startswith("No two parts were compared.")
    some = Cell(text, limit=6, answer=lambda prompt: "UNRELATED.").run("pairwise", max_calls=11)
    assert some.startswith("No two of the parts that were compared relate")
    every = Cell(text, answer=lambda prompt: "UNRELATED").run("pairwise", max_calls=11)
    assert every.startswith("No two parts relate to each other")


def test_pairwise_summarises_each_part_once_and_compares_every_two(text):
    def answer(prompt):
        if "Below is one part" in prompt:
            return "summary"
        return "they overlap" if "part 1" in prompt and "part 2" in prompt else "UNRELATED"

    cell = Cell(text, answer=answer)
    final = cell.run("pairwise", max_calls=11)
    kinds = ["part" if "Below is one part" in prompt else "pair" for prompt in cell.prompts[:-1]]
    assert kinds == ["part"] * 4 + ["pair"] * 6
    assert "- 'part 1' and 'part 2': they overlap" in final
    assert "part 3" not in final


def test_pairwise_takes_files_as_parts(tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        (folder / name).write_text(f"text of {name}\n", encoding="utf-8")
    final = Cell(folder, answer=lambda prompt: "related").run("pairwise")
    for pair in ("'a.txt' and 'b.txt'", "'a.txt' and 'c.txt'", "'b.txt' and 'c.txt'"):
        assert pair in final


def test_pairwise_reports_a_budget_that_ends_between_the_pairs(text):
    final = Cell(text, limit=6, answer=lambda prompt: "related").run("pairwise", max_calls=11)
    assert "the budget ended" in final
    assert "'part 1' and 'part 2': related" in final


@pytest.mark.parametrize(
    ("beginning", "log"),
    [
        ("[Sun Dec 04 04:47:44 2005] [error] mod_jk\n[Sun Dec 04 04:47:45 2005] [notice] a\n[Sun D", True),
        ("081109 203615 148 INFO dfs.DataNode: a\n\n081109 203616 148 WARN dfs.DataNode: b\n0811", True),
        ("ts=1 level=error msg=x", True),
        ("# Notes\n\nWe met at 10:30:00 and spoke.\nThen lunch.\nThen more.\n", False),
        ("import os\n\nERROR = 1\nWHAT = 2\nWHO = 3\n", False),
        ("", False),
    ],
)
def test_a_log_is_known_by_how_it_begins(beginning, log):
    assert is_log(beginning) is log


def test_the_pieces_for_the_local_model_fit_its_window_even_where_all_is_digits():
    assert LOCAL_PIECE_CHARS / 1.4 + 400 + 300 < SLOT_TOKENS
