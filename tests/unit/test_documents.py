"""The page on commands against the code: every command, field, exit code and variable that exists is on it."""

import re
from pathlib import Path

import pytest

from rlm_sandbox import models
from rlm_sandbox.cli.main import _COMMANDS
from rlm_sandbox.errors import BY_KIND
from rlm_sandbox.strategies import STRATEGIES

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def named(text):
    return set(re.findall(r"`([^`]+)`", text))


def paragraph(name):
    """Return the paragraph (and table) that describes a document."""
    return re.search(rf"\*\*{name}\*\*: (.*?)(?=\n\*\*|\n## |\Z)", PAGE, re.DOTALL)[1]


def test_every_command_is_on_the_page():
    rows = set(re.findall(r"(?m)^\| `([a-z]+)(?: build)?` \|", PAGE.split("## Documents")[0]))
    assert rows == set(_COMMANDS)


@pytest.mark.parametrize(
    ("name", "document"),
    [("started", models.Started), ("executed", models.Executed), ("budget", models.BudgetState)],
)
def test_every_field_of_a_document_is_on_the_page(name, document):
    assert document.model_fields.keys() - {"format_version"} - named(paragraph(name)) == set()


def test_every_status_of_a_cell_is_on_the_page():
    assert set(models.CellStatus.__args__) <= named(paragraph("executed"))


def test_every_kind_of_failure_stands_beside_its_exit_code():
    rows = re.findall(r"(?m)^\| (\d+) \| ([^|]*) \|", PAGE)
    shown = {kind: int(code) for code, kinds in rows for kind in named(kinds)}
    assert shown == {kind: error.exit_code for kind, error in BY_KIND.items()}


def test_every_strategy_is_on_the_page():
    assert named(PAGE.split("## Strategies")[1].split("\n\n")[1]) == STRATEGIES.keys()
