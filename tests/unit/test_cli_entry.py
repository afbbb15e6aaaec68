"""The short way into ``exec`` must mean exactly what the whole command line means, or stand back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_sandbox.cli import cells
from rlm_sandbox.cli.entry import plain_exec
from rlm_sandbox.cli.main import cli

pytestmark = pytest.mark.unit

WORDS = st.sampled_from(
    [
        "exec",
        "--session",
        "-c",
        "-f",
        "--timeout",
        "--wait",
        "--format",
        "json",
        "text",
        "x = 1",
        "s-1",
        "-",
        "--",
        "3",
        "0.5",
        "-1",
        "nan",
        "inf",
        "--help",
        "--sess",
        "--session=a",
        "-cx",
        "",
        "yaml",
        "final",
        " 7 ",
        "1_0",
    ]
)


def as_the_whole_one_reads(argv):
    """Return what the whole command line passes to ``execute``."""
    seen = []
    original, cells.execute = cells.execute, lambda **arguments: seen.append(arguments)
    try:
        cli.main(list(argv), standalone_mode=False, prog_name="rlm-sandbox")
    finally:
        cells.execute = original
    assert len(seen) == 1
    return seen[0]


@given(st.lists(WORDS, max_size=7), st.booleans())
@settings(max_examples=500)
def test_whatever_is_read_the_short_way_is_read_the_same_by_the_whole_command_line(words, begin):
    argv = ["exec", *words] if begin else words
    arguments = plain_exec(argv)
    if arguments is not None:
        assert arguments == as_the_whole_one_reads(argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["exec"],
        ["exec", "-c", "print(1)"],
        ["exec", "--session", "s-1", "-f", "cell.py", "--timeout", "300", "--wait", "1.5"],
        ["exec", "--format", "text", "-c", "-1"],
        ["--format", "text", "exec", "-c", "1"],
        ["--format", "text", "exec", "-c", "1", "--format", "json"],
    ],
)
def test_the_documented_forms_are_read_the_short_way(argv):
    assert plain_exec(argv) == as_the_whole_one_reads(argv)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["final"],
        ["exec", "--help"],
        ["exec", "-c"],
        ["exec", "-c", "1", "-c", "2"],
        ["exec", "-c1"],
        ["exec", "--timeout", "soon"],
        ["exec", "--wait", "-1"],
        ["exec", "--wait", "nan"],
        ["exec", "--format", "yaml"],
        ["exec", "cell.py"],
        ["--format", "yaml", "exec"],
    ],
)
def test_what_is_not_plain_is_left_to_the_whole_command_line(argv):
    assert plain_exec(argv) is None


def test_the_mark_that_some_editors_begin_a_file_with_is_no_code(tmp_path):
    (tmp_path / "cell.py").write_bytes(b"\xef\xbb\xbfprint(1)\n")
    assert cells._code(None, str(tmp_path / "cell.py")) == b"print(1)\n"
