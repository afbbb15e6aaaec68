"""docs/seccomp.md says what the profile does."""

import re
from pathlib import Path

import pytest

from rlm_sandbox.container import seccomp

pytestmark = pytest.mark.unit

TEXT = (Path(__file__).parents[2] / "docs" / "seccomp.md").read_text(encoding="utf-8")


def first_cells(title):
    """The names in code marks of the first column of a section's table."""
    section = TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return {
        name
        for row in section.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }


def test_what_is_said_to_be_denied_is_denied():
    named = first_cells("Denied in addition")
    assert len(named) > 90
    assert not named & seccomp.allowed_names()


def test_every_call_that_is_allowed_in_part_is_explained():
    partly = {name for group in seccomp.GROUPS if group.args or group.errno for name in group.names.split()}
    assert first_cells("Allowed in part") == partly


def test_what_is_allowed_in_addition_is_allowed():
    section = TEXT.partition("## Allowed in addition\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert named
    assert named <= seccomp.allowed_names()
