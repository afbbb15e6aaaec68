"""The skill as files: within the client's limits, in step with the product, and the same in every form it is shipped in."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import rlm_sandbox
from rlm_sandbox.cli.main import _COMMANDS, cli
from rlm_sandbox.guest import api, errors, helpers
from rlm_sandbox.guest.namespace import API, ERRORS
from rlm_sandbox.skill import files

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
SKILL = ROOT / "skill" / "rlm-sandbox"
PAGES = [SKILL / "SKILL.md", *sorted((SKILL / "references").glob("*.md"))]
TEXT = (SKILL / "SKILL.md").read_text(encoding="utf-8")
FRONT = dict(line.split(": ", 1) for line in TEXT.split("---\n")[1].splitlines())


def commands(page):
    """Every command line of ours in a page, in blocks and in running text."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("rlm-sandbox ")]
    return lines + re.findall(r"`(rlm-sandbox [a-z][^`]*)`", text)


def test_the_front_matter_has_what_the_client_reads():
    assert list(FRONT) == ["name", "description", "allowed-tools"]
    assert FRONT["name"] == SKILL.name == "rlm-sandbox"
    assert 200 < len(FRONT["description"]) <= 1024
    assert "Use when" in FRONT["description"]
    assert "Do not use" in FRONT["description"]
    assert FRONT["allowed-tools"] == "Bash(rlm-sandbox *), Edit(.rlm/**)"


def test_the_body_is_short_and_the_references_are_one_level_deep():
    assert len(TEXT.splitlines()) < 150
    linked = set(re.findall(r"\]\((references/[\w-]+\.md)\)", TEXT))
    assert linked == {f"references/{path.name}" for path in (SKILL / "references").iterdir()}
    for path in (SKILL / "references").iterdir():
        assert "](references/" not in path.read_text(encoding="utf-8")
        assert "](../" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_can_be_shown_whole(page):
    assert len(page.read_text(encoding="utf-8")) < files.SHOW_MAX
    name = "skill" if page.name == "SKILL.md" else page.stem
    shown = CliRunner().invoke(cli, ["skill", "show", name])
    assert shown.output == page.read_text(encoding="utf-8")


def test_every_page_is_named_where_the_model_learns_to_show_it():
    for name in files.pages():
        assert name == "skill" or f"`{name}`" in TEXT or f"skill show {name}" in TEXT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_begins_plainly_and_exists(page):
    found = commands(page)
    assert found
    for line in found:
        words = line.split()
        assert words[1] in _COMMANDS, line
        for flag in re.findall(r"(?<= )--[a-z-]+", line.split("<<")[0]):
            help_text = CliRunner().invoke(cli, [words[1], "--help"]).output
            if words[1] == "skill":
                help_text += CliRunner().invoke(cli, ["skill", words[2], "--help"]).output
            assert flag in help_text or flag == "--format", line
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        assert block.startswith("rlm-sandbox "), "the client's grant covers commands that begin so"
        assert "$(" not in block.split("\n", 1)[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_that_a_model_copies_asks_for_text(page):
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        assert "--format text" in block.split("\n", 1)[0]


def test_the_helpers_page_names_everything_a_cell_finds():
    page = (SKILL / "references" / "helpers.md").read_text(encoding="utf-8")
    names = {*API, *ERRORS, *helpers.NAMES, "context", "context_files", "files"} - {"llm_query_batched"}
    assert {name for name in names if not re.search(rf"\b{name}\b", page)} == set()


def test_the_signatures_on_the_helpers_page_are_the_real_ones():
    page = (SKILL / "references" / "helpers.md").read_text(encoding="utf-8")
    asked = re.search(r"`llm_query\((.*?)\)`", page)[1]
    names = [part.split("=")[0].strip() for part in asked.split(",")]
    assert names == list(api.llm_query.__annotations__)[:-1]
    assert issubclass(errors.BudgetExceeded, errors.RLMError)


def test_the_evals_have_near_misses_and_tasks():
    triggers = json.loads((SKILL / "evals" / "triggers.json").read_text(encoding="utf-8"))
    assert len(triggers) == 20
    assert sum(item["should_trigger"] for item in triggers) == 10
    assert len({item["query"] for item in triggers}) == 20
    tasks = json.loads((SKILL / "evals" / "evals.json").read_text(encoding="utf-8"))
    assert tasks["skill_name"] == "rlm-sandbox"
    assert [task["id"] for task in tasks["evals"]] == [1, 2, 3, 4, 5]
    for task in tasks["evals"]:
        assert task["prompt"]
        assert task["expected_output"]
        assert len(task["expectations"]) >= 2


def test_the_plugin_is_of_this_version_and_its_own_marketplace():
    plugin = json.loads((ROOT / "skill" / ".claude-plugin" / "plugin.json").read_text(encoding="utf-8"))
    market = json.loads((ROOT / "skill" / ".claude-plugin" / "marketplace.json").read_text(encoding="utf-8"))
    assert plugin["version"] == rlm_sandbox.__version__
    assert plugin["skills"] == ["./rlm-sandbox"]
    assert [entry["source"] for entry in market["plugins"]] == ["./"]
    assert plugin["name"] == market["name"] == market["plugins"][0]["name"] == "rlm-sandbox"
