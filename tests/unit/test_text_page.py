"""The page on reading the input, run: every line that works on both gives the same on a ``str`` and on a ``Text``."""

import ast
import re
from pathlib import Path

import pytest

from rlm_sandbox.guest import helpers
from rlm_sandbox.guest.text import Text

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).parents[2] / "docs" / "text.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
INPUT = "".join(
    f"line {n} {('alpha', 'beta', 'gamma')[n % 3]} a.b \u00e9\u4e16\U0001f600 some words\n" for n in range(300)
)


def outcomes(block, path, str_max):
    """Run a block statement by statement; return what each expression gave, as plain values."""
    names = helpers.build({"kind": "file", "path": str(path), "name": "input.txt", "index": None}, str_max=str_max)
    found = []
    for node in ast.parse(block).body:
        if isinstance(node, ast.Expr):
            value = eval(compile(ast.Expression(node.value), "page", "eval"), names)
            found.append((ast.unparse(node), plain(value)))
        else:
            exec(compile(ast.Module([node], []), "page", "exec"), names)
    return names["context"], found


def plain(value):
    if isinstance(value, str | Text):
        return str(value)
    if isinstance(value, tuple):
        return tuple(plain(each) for each in value)
    if hasattr(value, "regs"):
        return value.regs, plain(value.group())
    if isinstance(value, int | float) or value is None:
        return value
    return [plain(each) for each in value]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_line_of_the_page_gives_the_same_on_both(block, tmp_path):
    path = tmp_path / "input.txt"
    path.write_text(INPUT)
    whole, expected = outcomes(block, path, 1 << 20)
    lazy, found = outcomes(block, path, 1000)
    assert isinstance(whole, str)
    assert isinstance(lazy, Text)
    assert expected
    for (line, value), (_, other) in zip(expected, found, strict=True):
        if not line.startswith("peek"):  # it tells the size: in characters of a str, in bytes of a Text
            assert value == other, line
