"""SECURITY.md names tests that exist and are collected, for every promise."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in TEXT.splitlines() if re.match(r"\| P\d ", row)}


def test_every_promise_is_there_with_what_keeps_it():
    assert list(ROWS) == [f"P{number}" for number in range(1, 9)]
    assert all(len(cells) == 3 and all(cell.strip() for cell in cells) for cells in ROWS.values())


@pytest.mark.parametrize("name", ROWS)
def test_the_tests_of_a_promise_exist_and_test(name):
    named = re.findall(r"`(tests/\S+\.py)`", ROWS[name][2])
    assert named
    for path in named:
        assert re.search(
            r"^(async )?def test_|^Test\w+ = |^class Test", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE
        ), path


def test_every_file_that_the_page_names_exists():
    named = re.findall(r"`((?:tests|docs|rlm_sandbox|scripts)/[\w./-]+\.\w+)`", TEXT)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_security_test_is_named():
    made = {f"tests/security/{path.name}" for path in (ROOT / "tests" / "security").glob("test_*.py")}
    assert made - set(re.findall(r"`(tests/security/\S+\.py)`", TEXT)) == set()
