"""Foreign text made visible: nothing that steers a terminal or hides from a reader passes, and nothing is dropped."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_sandbox.sanitize import one_line, visible

pytestmark = pytest.mark.unit

anything = st.text(alphabet=st.characters(codec=None, categories=None))


@given(anything)
def test_no_control_format_or_surrogate_character_passes(text):
    for char in visible(text):
        assert char in "\t\n" or unicodedata.category(char) not in {"Cc", "Cs"}
        assert unicodedata.bidirectional(char) not in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    visible(text).encode("utf-8")


@given(anything)
def test_making_visible_twice_changes_nothing_more(text):
    once = visible(text)
    assert visible(once) == once


FILLERS = "\u115f\u1160\u3164\uffa0"
"""Letters by category that no display shows."""


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters=FILLERS)))
def test_ordinary_text_is_left_alone(text):
    assert visible(text) == text


@given(anything, st.integers(1, 60))
def test_a_line_is_one_bounded_line(text, limit):
    line = one_line(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m", "\\x9b31m"),
        ("a\r\nb\rc", "a\nb\\x0dc"),
        ("\u202e", "\\u202e"),
        ("\U000e0041", "\\U000e0041"),
        ("\U000e0100", "\\U000e0100"),
        ("a\ufe00", "a\\ufe00"),
        ("\u2764\ufe0f \u2764\ufe0e", "\u2764\ufe0f \u2764\ufe0e"),
        ("\u2764\ufe0f\ufe0f\ufe0e", "\u2764\ufe0f\\ufe0f\\ufe0e"),
        ("\u3164\u115f\u034f\u180b\U0001d173", "\\u3164\\u115f\\u034f\\u180b\\U0001d173"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
        ("tab\tstays\n", "tab\tstays\n"),
        ("\U0001f468\ufe0f", "\U0001f468\ufe0f"),
    ],
)
def test_what_becomes_of_a_character(raw, shown):
    assert visible(raw) == shown
